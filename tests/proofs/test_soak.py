"""
Long use leaves no trace: what a root and a child hold ends where it began.

Each proof warms up, takes the measure of the process, does the same things many times
over, and takes it again.  Counts must be the same; memory may differ by what the
allocator keeps, which is far less than what one forgotten object per turn would cost.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._exceptions import RemoteActorError

BATCH: Final = 20  # actors that live at the same time
# Batches before the first measure, at most as many as follow it: what the allocator
# keeps grows by some 1.1 MB with the first 600 actors, and then stays.
WARM_UP: Final = 30
TASKS: Final = 10  # concurrent users of the one child
WARM_CALLS: Final = 50  # of each kind, before the first measure

# One round of these proofs, so that 500 rounds are 1,000 actors and 10,000 calls.
ACTORS_PER_ROUND: Final = 2
CALLS_PER_ROUND: Final = 20

SECONDS_PER_BATCH: Final = 60.0  # a hang, not a speed
SECONDS_PER_CALL: Final = 0.5

# Python's allocator takes and gives back 1 MiB at a time, and what it keeps depends on
# what else the machine does.  What is in use is counted in blocks.
MEMORY_SLACK: Final = 3 * 2**20  # bytes
# Objects: trio keeps up to 40 idle worker threads, which are 25 objects each.
OBJECT_SLACK: Final = 40 * 25 + 100
BLOCK_SLACK: Final = 4 * OBJECT_SLACK

PAGE: Final = os.sysconf('SC_PAGE_SIZE')

pytestmark = pytest.mark.long_proof


def footprint() -> dict[str, int]:
    """Return what this process and its actor hold, in numbers."""
    gc.collect()
    actor = tractor.current_actor()
    server = actor.ipc_server
    assert server is not None
    workers = trio.to_thread.current_default_thread_limiter()
    return {
        'memory': int(Path('/proc/self/statm').read_text().split()[1]) * PAGE,
        'objects': len(gc.get_objects()),
        'blocks': sys.getallocatedblocks(),
        'descriptors': len(os.listdir('/proc/self/fd')),
        # trio keeps idle workers for a while, for the next one who needs one.
        'threads': sum(
            not thread.name.startswith('Trio thread')
            for thread in threading.enumerate()
        ),
        'busy workers': workers.borrowed_tokens,
        'tasks': count_tasks(trio.lowlevel.current_root_task()),
        'contexts': len(actor._contexts),
        'requests': len(actor._rpc_tasks),
        'loops': len(actor._loops),
        'children': len(actor._actoruid2nursery),
        'peers': len(server._peers),
        'waiters': len(server._peer_connected) + len(server._arrived),
        'endpoints': sum(len(ep.peer_tpts) for ep in server._endpoints),
    }


def count_tasks(root: Any) -> int:
    """Return the number of trio tasks below one."""
    return 1 + sum(
        count_tasks(child)
        for nursery in root.child_nurseries
        for child in nursery.child_tasks
    )


def show(title: str, before: dict[str, int], after: dict[str, int]) -> None:
    """Print both measures side by side."""
    print(f'\n{title:<14}{"before":>14}{"after":>14}{"growth":>12}')
    for name, value in before.items():
        print(f'{name:<14}{value:>14,}{after[name]:>14,}{after[name] - value:>+12,}')


def check(title: str, before: dict[str, int], after: dict[str, int]) -> None:
    """Compare two measures of one process."""
    show(title, before, after)
    slack = {
        'memory': MEMORY_SLACK,
        'objects': OBJECT_SLACK,
        'blocks': BLOCK_SLACK,
    }
    grown = {
        name: after[name] - value
        for name, value in before.items()
        if after[name] - value > slack.get(name, 0)
    }
    assert not grown, f'{title} grew: {grown}'


# -- many actors -----------------------------------------------------------------------


async def echo(value: int) -> int:
    """Answer a call."""
    return value


async def run_batch() -> None:
    """Start a batch of actors, use and reap them: half serve, half have one task."""
    async with tractor.open_nursery() as an:

        async def serve_once(index: int) -> None:
            portal = await an.start_actor(f'daemon_{index}', enable_modules=[__name__])
            assert await portal.run(echo, value=index) == index
            await portal.cancel_actor()

        async def run_once(index: int) -> None:
            portal = await an.run_in_actor(echo, name=f'once_{index}', value=index)
            assert await portal.wait_for_result() == index

        async with trio.open_nursery() as tn:
            for index in range(BATCH // 2):
                tn.start_soon(serve_once, index)
                tn.start_soon(run_once, index)


def test_root_ends_where_it_began(proof_rounds: int, reg_addr: Any) -> None:
    """A thousand actors come and go, and the root is as small as before."""
    batches = max(1, proof_rounds * ACTORS_PER_ROUND // BATCH)

    async def main() -> tuple[dict[str, int], dict[str, int]]:
        async with tractor.open_root_actor(registry_addrs=[reg_addr]):
            for _ in range(min(WARM_UP, batches)):
                await run_in_time()
            before = footprint()
            for _ in range(batches):
                await run_in_time()
            return before, footprint()

    async def run_in_time() -> None:
        with trio.fail_after(SECONDS_PER_BATCH):
            await run_batch()

    check(f'{batches * BATCH} actors', *trio.run(main))


# -- many calls ------------------------------------------------------------------------


async def measure() -> dict[str, int]:
    """Return the footprint of the actor that is asked."""
    return footprint()


async def fail(value: int) -> None:
    """Fail the call."""
    raise ValueError(value)


@tractor.context
async def double(ctx: tractor.Context, value: int) -> int:
    """Serve one context without a stream."""
    await ctx.started(value)
    return 2 * value


@tractor.context
async def echo_stream(ctx: tractor.Context) -> None:
    """Send back what comes, until the other side stops."""
    await ctx.started()
    async with ctx.open_stream() as stream:
        async for item in stream:
            await stream.send(item)


@tractor.context
async def wait(ctx: tractor.Context) -> None:
    """Serve until cancelled."""
    await ctx.started()
    await trio.sleep_forever()


async def call(portal: tractor.Portal, value: int) -> None:
    assert await portal.run(echo, value=value) == value


async def call_in_vain(portal: tractor.Portal, value: int) -> None:
    with pytest.raises(RemoteActorError):
        await portal.run(fail, value=value)


async def open_a_context(portal: tractor.Portal, value: int) -> None:
    async with portal.open_context(double, value=value) as (ctx, first):
        assert first == value
        assert await ctx.wait_for_result() == 2 * value


async def cancel_a_context(portal: tractor.Portal, value: int) -> None:
    async with portal.open_context(wait) as (ctx, _):
        await ctx.cancel()


async def stream_a_little(portal: tractor.Portal, value: int) -> None:
    async with (
        portal.open_context(echo_stream) as (ctx, _),
        ctx.open_stream() as stream,
    ):
        for item in range(3):
            await stream.send(item)
            assert await stream.receive() == item


USES: Final[list[Callable[[tractor.Portal, int], Awaitable[None]]]] = [
    call,
    call_in_vain,
    open_a_context,
    cancel_a_context,
    stream_a_little,
]


async def use(portal: tractor.Portal, times: int) -> None:
    """Use a child in every way, each so many times, from several tasks."""
    todo = iter(range(times))

    async def work() -> None:
        for value in todo:
            for way in USES:
                await way(portal, value)

    with trio.fail_after(SECONDS_PER_CALL * times + 10):
        async with trio.open_nursery() as tn:
            for _ in range(TASKS):
                tn.start_soon(work)


def test_nothing_grows_with_use(proof_rounds: int, reg_addr: Any) -> None:
    """Ten thousand calls, contexts and streams leave nothing in either process."""
    times = proof_rounds * CALLS_PER_ROUND

    async def main() -> list[tuple[dict[str, int], dict[str, int]]]:
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            portal = await an.start_actor('child', enable_modules=[__name__])
            await use(portal, WARM_CALLS)
            before = await portal.run(measure), footprint()
            await use(portal, times)
            after = await portal.run(measure), footprint()
            await portal.cancel_actor()
        return list(zip(before, after, strict=True))

    child, parent = trio.run(main)
    show(f'child, {times}', *child)
    check(f'parent, {times}', *parent)
    check(f'child, {times}', *child)
