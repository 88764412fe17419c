"""
A busy tree of 40 actors, as a program: what `test_chaos.py` kills.

Three levels: the root, 3 middle actors, 12 leaves below each.  Every leaf has a stream
to its middle actor and calls a leaf of another branch; every middle actor has a stream
to the root.  Run as `chaos_tree.py BACKEND TRANSPORT REPORTS`, it prints one JSON line
when every actor is at work and one when the tree has ended, with the error that ended
it.  Each actor leaves in the directory REPORTS what it saw: how its own task ended, who
cancelled it, and what became of its calls.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

import tractor
from tractor._exceptions import ActorDied, TransportClosed

MIDDLES: Final = 3
LEAVES: Final = 12  # below each middle actor
PACE: Final = 0.05  # seconds between two calls of one leaf: 40 actors share few cores
WARM: Final = 3  # calls and stream items before an actor counts as busy


def describe(error: BaseException | None) -> Any:
    """Return what the test wants to know of an error, as plain data."""
    if error is None:
        return None
    found: dict[str, Any] = {'type': type(error).__name__, 'text': str(error)}
    if isinstance(error, BaseExceptionGroup):
        found['members'] = [describe(member) for member in error.exceptions]
    if isinstance(error, ActorDied):
        found |= {'uid': error.uid, 'signal': error.signal, 'exitcode': error.exitcode}
    if isinstance(error, TransportClosed):
        found['uid'] = error.peer
    if isinstance(error, tractor.RemoteActorError):
        found |= {'src_type': error.src_type_str, 'src_uid': error.src_uid}
    return found


@asynccontextmanager
async def reporting(
    ctx: tractor.Context, reports: str
) -> AsyncIterator[dict[str, Any]]:
    """Leave a report of how the block ended; the caller may add to it."""
    report: dict[str, Any] = {'uid': tractor.current_actor().aid.uid}
    try:
        yield report
    except BaseException as err:
        report['ended_by'] = describe(err)
        raise
    finally:
        report['canceller'] = ctx.canceller
        leave(report, Path(reports, f'{tractor.current_actor().name}.json'))


def leave(report: dict[str, Any], path: Path) -> None:
    """Write a report in one piece: its writer may be killed at any moment."""
    draft = path.with_suffix('.draft')
    draft.write_text(json.dumps(report))
    draft.rename(path)


# -- leaves ----------------------------------------------------------------------------


async def ping(number: int) -> int:
    """Answer a call."""
    return number + 1


async def call_forever(
    other: str, report: dict[str, Any], task_status: trio.TaskStatus[None]
) -> None:
    """Call another leaf until that fails; the failure is no reason to end."""
    try:
        async with tractor.wait_for_actor(other) as portal:
            report['calls_to'] = portal.chan.aid.uid
            number = 0
            while True:
                number = await portal.run(ping, number=number)
                if number == WARM:
                    task_status.started()
                await trio.sleep(PACE)
    except (TransportClosed, tractor.RemoteActorError) as err:
        report['calls_ended_by'] = describe(err)


@tractor.context
async def be_leaf(ctx: tractor.Context, other: str, reports: str) -> None:
    """Echo a stream, and call the leaf named `other` all the while."""
    async with reporting(ctx, reports) as report, trio.open_nursery() as tn:
        await ctx.started(os.getpid())
        async with ctx.open_stream() as stream:
            await tn.start(call_forever_with_status, other, report)
            async for item in stream:
                await stream.send(item)


async def call_forever_with_status(
    other: str,
    report: dict[str, Any],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `call_forever()` as a nursery's `start()` wants it."""
    await call_forever(other, report, task_status)


# -- the levels above ------------------------------------------------------------------


async def stream_forever(
    ctx: tractor.Context, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Send to a peer that echoes."""
    async with ctx.open_stream() as stream:
        number = 0
        while True:
            await stream.send(number)
            assert await stream.receive() == number
            number += 1
            if number == WARM:
                task_status.started()
            await trio.sleep(PACE)


async def start_all(
    an: tractor.ActorNursery, names: list[str]
) -> dict[str, tractor.Portal]:
    """Start several actors at once."""
    portals = {}

    async def start(name: str) -> None:
        portals[name] = await an.start_actor(
            name, enable_modules=[__name__], inherit_parent_main=False
        )

    async with trio.open_nursery() as tn:
        for name in names:
            tn.start_soon(start, name)
    return portals


@asynccontextmanager
async def open_all(
    calls: dict[str, tuple[tractor.Portal, Any]],
) -> AsyncIterator[dict[str, tuple[tractor.Context, Any]]]:
    """Open one context with each of several actors."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(portal.open_context(**kwargs))
            for name, (portal, kwargs) in calls.items()
        }


def leaf_name(middle: int, leaf: int) -> str:
    """Return the name of one leaf."""
    return f'leaf_{middle}_{leaf}'


@tractor.context
async def be_middle(ctx: tractor.Context, index: int, reports: str) -> None:
    """Keep a dozen busy leaves, and echo a stream to the root."""
    neighbour = (index + 1) % MIDDLES
    async with reporting(ctx, reports), tractor.open_nursery() as an:
        names = [leaf_name(index, leaf) for leaf in range(LEAVES)]
        portals = await start_all(an, names)
        calls = {
            name: (
                portals[name],
                {
                    'func': be_leaf,
                    'other': leaf_name(neighbour, leaf),
                    'reports': reports,
                },
            )
            for leaf, name in enumerate(names)
        }
        async with open_all(calls) as contexts, trio.open_nursery() as tn:
            uids = {
                name: (leaf.chan.aid.uid, pid) for name, (leaf, pid) in contexts.items()
            }
            await ctx.started((os.getpid(), uids))
            for leaf, _ in contexts.values():
                await tn.start(stream_forever, leaf)
            async with ctx.open_stream() as stream:
                async for item in stream:
                    await stream.send(item)


async def be_root(backend: str, transport: str, reports: str) -> None:
    """Keep the tree until something ends it."""
    async with tractor.open_nursery(
        start_method=backend,
        enable_transports=[transport],
        registry_addrs=[own_address(transport)],
    ) as an:
        names = [f'middle_{index}' for index in range(MIDDLES)]
        portals = await start_all(an, names)
        calls = {
            name: (
                portals[name],
                {'func': be_middle, 'index': index, 'reports': reports},
            )
            for index, name in enumerate(names)
        }
        async with open_all(calls) as contexts, trio.open_nursery() as tn:
            actors: dict[str, Any] = {
                'root': (tractor.current_actor().aid.uid, os.getpid())
            }
            for name, (middle, (pid, leaves)) in contexts.items():
                actors |= {name: (middle.chan.aid.uid, pid), **leaves}
            for middle, _ in contexts.values():
                await tn.start(stream_forever, middle)
            say({'busy': actors})


def own_address(transport: str) -> Any:
    """Return a registry address that is this tree's alone."""
    from tractor._testing.addr import get_rando_addr

    return get_rando_addr(transport)


def say(fact: dict[str, Any]) -> None:
    """Print one line for the test."""
    print(json.dumps(fact), flush=True)


def main(backend: str, transport: str, reports: str) -> None:
    """Run the tree to its end."""
    try:
        trio.run(partial(be_root, backend, transport, reports))
    except BaseException as err:
        say({'error': describe(err)})
    else:
        say({'error': None})


if __name__ == '__main__':
    # The actors find their functions in a module, of which `__main__` is another copy.
    import chaos_tree

    chaos_tree.main(*sys.argv[1:])
