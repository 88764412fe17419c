"""
The runtime under the measurements of `raw.py`, through its public interface only.

One run measures one part and prints one JSON object; `run.py` puts the parts beside
the limit.  Parts: `messages` (over one transport), `messages_one_core` (both ends on
one), `spawn` (the `trio` backend), `forkserver` (a warm `mp_forkserver`), `import`.
Seconds, unless the name says `oneway_32` (messages per second) or `oneway_1m` (bytes
per second).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import trio

import tractor

SMALL = b'x' * 32
LARGE = b'x' * (1 << 20)
BATCH = 200  # round trips per sample
FLOCK = 16  # children cancelled at once

IMPORTS = """\
from time import perf_counter
start = perf_counter()
import trio
middle = perf_counter()
import tractor
end = perf_counter()
tractor.open_nursery, tractor.context, tractor.Portal
print(middle - start, end - middle, perf_counter() - middle)
"""


async def echo(value: bytes) -> bytes:
    """Return what it is given."""
    return value


@tractor.context
async def touch(ctx: tractor.Context, value: bytes) -> bytes:
    """Send one first value and one result."""
    await ctx.started(value)
    return value


@tractor.context
async def echo_stream(ctx: tractor.Context) -> None:
    """Send every message back."""
    await ctx.started()
    async with ctx.open_stream() as stream:
        async for msg in stream:
            await stream.send(msg)


@tractor.context
async def sink(ctx: tractor.Context, count: int) -> int:
    """Take `count` messages, then say so."""
    await ctx.started()
    taken = 0
    async with ctx.open_stream() as stream:
        async for _ in stream:
            taken += 1
            if taken == count:
                await stream.send('done')
    return taken


def middle(values: list[float]) -> float:
    """Return the median; `statistics` would be imported by each child as well."""
    return sorted(values)[len(values) // 2]


async def per_round_trip(
    call: Callable[[], Awaitable[Any]], batches: int, size: int = BATCH
) -> float:
    """Return the median time of one call, over batches; the first one warms up."""
    times = []
    for batch in range(batches + 1):
        start = perf_counter()
        for _ in range(size):
            await call()
        if batch:
            times.append((perf_counter() - start) / size)
    return middle(times)


async def one_way(portal: tractor.Portal, payload: bytes, count: int) -> float:
    """Stream `count` messages to the child; return messages per second."""
    async with portal.open_context(sink, count=count) as (ctx, _):
        async with ctx.open_stream() as stream:
            start = perf_counter()
            for _ in range(count):
                await stream.send(payload)
            await stream.receive()
            elapsed = perf_counter() - start
    return count / elapsed


def root_kwargs(transport: str, directory: str) -> dict[str, Any]:
    """Return what boots a root whose registry meets no other program's."""
    if transport == 'uds':
        registry: tuple[str, Any] = (directory, 'registry.sock')
    else:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            registry = free.getsockname()
    return {'enable_transports': [transport], 'registry_addrs': [registry]}


async def messages(root: dict[str, Any], quick: bool) -> dict[str, float]:
    """Round trips and one-way streams between a root and one child."""
    batches = 3 if quick else 10
    async with tractor.open_nursery(**root) as an:
        portal = await an.start_actor('peer', enable_modules=[__name__])
        results = {
            'run': await per_round_trip(lambda: portal.run(echo, value=SMALL), batches),
        }

        async def touch_once() -> None:
            async with portal.open_context(touch, value=SMALL) as (ctx, _):
                await ctx.wait_for_result()

        results['context'] = await per_round_trip(touch_once, batches, BATCH // 4)

        async with portal.open_context(echo_stream) as (ctx, _):
            async with ctx.open_stream() as stream:

                async def bounce() -> None:
                    await stream.send(SMALL)
                    await stream.receive()

                results['stream_echo'] = await per_round_trip(bounce, batches)

        small = 5_000 if quick else 20_000
        large = 50 if quick else 150
        await one_way(portal, SMALL, small // 10)
        results['oneway_32'] = await one_way(portal, SMALL, small)
        await one_way(portal, LARGE, large // 10)
        results['oneway_1m'] = await one_way(portal, LARGE, large) * len(LARGE)
        await portal.cancel_actor()
    return results


async def messages_one_core(root: dict[str, Any], quick: bool) -> dict[str, float]:
    """The same where nobody gains by looking for an answer: it would not come."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return await messages(root, quick)


async def start_one(an: tractor.ActorNursery, name: str) -> float:
    """Start a child, let it answer once, end it; return the time of the start."""
    start = perf_counter()
    portal = await an.start_actor(name, enable_modules=[__name__])
    elapsed = perf_counter() - start
    await portal.run(echo, value=b'')
    await portal.cancel_actor()
    return elapsed


async def cancel_and_reap(count: int) -> float:
    """Start idle children; return the time from cancelling them to their end."""
    async with tractor.open_nursery() as an:
        async with trio.open_nursery() as tn:
            for number in range(count):
                tn.start_soon(answer_once, an, f'idle_{number}')
        start = perf_counter()
        await an.cancel()
    return perf_counter() - start


async def answer_once(an: tractor.ActorNursery, name: str) -> None:
    """Start a child and wait until it is fully up."""
    portal = await an.start_actor(name, enable_modules=[__name__])
    await portal.run(echo, value=b'')


async def spawn(root: dict[str, Any], quick: bool) -> dict[str, float]:
    """Start single children, then end one and many."""
    async with tractor.open_root_actor(**root):
        async with tractor.open_nursery() as an:
            await start_one(an, 'warm')  # bytecode and page cache
            times = [await start_one(an, f'c{n}') for n in range(3 if quick else 7)]
        ones = [await cancel_and_reap(1) for _ in range(2 if quick else 5)]
        flocks = [await cancel_and_reap(FLOCK) for _ in range(1 if quick else 3)]
    return {
        'start_actor': middle(times),
        'reap_one': middle(ones),
        'reap_flock': middle(flocks),
    }


async def forkserver(root: dict[str, Any], quick: bool) -> dict[str, float]:
    """Start single children from a server that is already up."""
    async with tractor.open_nursery(start_method='mp_forkserver', **root) as an:
        await start_one(an, 'warm')
        times = [await start_one(an, f'c{n}') for n in range(5 if quick else 15)]
    return {'start_forkserver': middle(times)}


def imports(quick: bool) -> dict[str, float]:
    """Return the times of `import trio`, of `import tractor` after it, and with use."""
    times: list[list[float]] = []
    for turn in range(4 if quick else 10):
        done = subprocess.run(
            [sys.executable, '-c', IMPORTS], check=True, capture_output=True, text=True
        )
        if turn:
            times.append([float(figure) for figure in done.stdout.split()])
    of_trio, of_tractor, of_use = (
        middle(list(column)) for column in zip(*times, strict=True)
    )
    return {
        'import_of_trio': of_trio,
        'import_of_tractor': of_tractor,
        'import_of_use': of_use,
    }


PARTS = {
    'messages': messages,
    'messages_one_core': messages_one_core,
    'spawn': spawn,
    'forkserver': forkserver,
}


def main() -> None:
    """Measure the part named on the command line: `runtime.py PART TRANSPORT [q]`."""
    part, transport, quick = sys.argv[1], sys.argv[2], sys.argv[3:] == ['quick']
    if part == 'import':
        results = imports(quick)
    else:
        with tempfile.TemporaryDirectory(prefix='bench') as directory:
            root = root_kwargs(transport, str(Path(directory)))
            results = trio.run(PARTS[part], root, quick)
    print(json.dumps(results))


if __name__ == '__main__':
    main()
