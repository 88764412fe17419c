"""
Actors in sub-interpreters, beside the same in processes; for Python 3.14.

One run measures one part and prints one JSON object; `run.py` makes rows of them.
Whatever is compared is measured in the same run and in turn.  Parts: `cpu` (two busy
actors against one), `lateness` (of the parent's event loop), `messages` and
`messages_one_core`, `start` (with where the time goes), `memory_subint` and
`memory_trio` (of a flock), `stop` (of actors that spin).  Seconds, unless the name says
`_rate` (shares of work per second), `_bytes`, or `stopped` and `spinning`, which are
numbers of actors.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import trio

import tractor

METHODS = ('subint', 'trio')
TURNS = 400_000  # of the loop, for one share of the work: about 20 ms
TICK = 0.001  # seconds that the parent's event loop sleeps
BATCH = 100  # round trips per sample
FLOCK = 16  # actors whose memory is taken
ASK = 0.5  # seconds for which a nursery asks before it breaks in
STOP_LIMIT = ASK + 0.5  # seconds until an actor that spins is gone
GONE_WITHIN = 20.0  # seconds; beyond that it is not slow but stuck
SMALL = b'x' * 32


# What an actor does.


async def echo(value: bytes) -> bytes:
    """Return what it is given."""
    return value


@tractor.context
async def echo_stream(ctx: tractor.Context) -> None:
    """Send every message back."""
    await ctx.started()
    async with ctx.open_stream() as stream:
        async for msg in stream:
            await stream.send(msg)


async def compute(shares: int) -> int:
    """Do some shares of work in pure Python."""
    total = 0
    for number in range(shares * TURNS):
        total = (total + number * number) % 1_000_003
    return total


@tractor.context
async def spin_for(ctx: tractor.Context, seconds: float) -> None:
    """Say that it begins, then be busy in pure Python for that long."""
    await ctx.started()
    end = perf_counter() + seconds
    while perf_counter() < end:
        for _ in range(10_000):
            pass


async def spin(fd: int) -> None:
    """Say so on a descriptor, which actors of one process share; never come back."""
    os.write(fd, b'!')
    while True:
        pass


# What the root does with them.


def middle(values: Sequence[float]) -> float:
    """Return the median; `statistics` would be imported by each child as well."""
    return sorted(values)[len(values) // 2]


def options_of(method: str) -> dict[str, Any]:
    """Return what starts an actor that serves this module."""
    options: dict[str, Any] = {
        'enable_modules': [__name__],
        'start_method': method,
        'inherit_parent_main': False,
    }
    if method == 'subint':
        options['gil'] = 'own'
    return options


async def cpu(quick: bool) -> dict[str, float]:
    """Rates of one actor that does two shares, and of two that do one each."""
    shares = 10 if quick else 15
    rates: dict[str, list[float]] = {}
    async with tractor.open_nursery() as an:
        pairs = {
            method: [
                await an.start_actor(f'{method}_{n}', **options_of(method))
                for n in range(2)
            ]
            for method in METHODS
        }
        for turn in range(4 if quick else 5):
            for method, (first, second) in pairs.items():
                start = perf_counter()
                await first.run(compute, shares=2 * shares)
                middle_of_both = perf_counter()
                async with trio.open_nursery() as tn:
                    for portal in (first, second):
                        tn.start_soon(lambda p=portal: p.run(compute, shares=shares))
                end = perf_counter()
                if turn:  # the first one warms up
                    rates.setdefault(f'{method}_one_rate', []).append(
                        2 * shares / (middle_of_both - start)
                    )
                    rates.setdefault(f'{method}_two_rate', []).append(
                        2 * shares / (end - middle_of_both)
                    )
        await an.cancel()
    return {name: middle(values) for name, values in rates.items()}


async def lateness_of(seconds: float) -> float:
    """Return by how much a short sleep is too long, at the 99th percentile."""
    late = []
    end = perf_counter() + seconds
    while (start := perf_counter()) < end:
        await trio.sleep(TICK)
        late.append(perf_counter() - start - TICK)
    return sorted(late)[int(len(late) * 0.99)]


async def lateness(quick: bool) -> dict[str, float]:
    """The event loop of the parent, while an actor is idle and while it computes."""
    seconds = 0.7 if quick else 1.5
    idle, busy = [], []
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('busy', **options_of('subint'))
        for _ in range(3):
            idle.append(await lateness_of(seconds))
            async with portal.open_context(spin_for, seconds=seconds + 0.1) as (ctx, _):
                busy.append(await lateness_of(seconds))
                await ctx.wait_for_result()
        await an.cancel()
    return {'idle': middle(idle), 'busy': middle(busy)}


async def per_round_trip(call: Callable[[], Awaitable[Any]]) -> float:
    """Return the time of one call, over a batch."""
    start = perf_counter()
    for _ in range(BATCH):
        await call()
    return (perf_counter() - start) / BATCH


async def messages(quick: bool) -> dict[str, float]:
    """Calls, and round trips on a stream, to both kinds of actor in turn."""
    times: dict[str, list[float]] = {}
    async with tractor.open_nursery() as an:
        portals = {m: await an.start_actor(m, **options_of(m)) for m in METHODS}
        async with (
            portals['subint'].open_context(echo_stream) as (first, _),
            portals['trio'].open_context(echo_stream) as (second, _),
            first.open_stream() as subint_stream,
            second.open_stream() as trio_stream,
        ):
            streams = {'subint': subint_stream, 'trio': trio_stream}
            for turn in range(8 if quick else 25):
                for method in METHODS:
                    portal, stream = portals[method], streams[method]

                    async def call(portal: tractor.Portal = portal) -> None:
                        await portal.run(echo, value=SMALL)

                    async def bounce(stream: tractor.MsgStream = stream) -> None:
                        await stream.send(SMALL)
                        await stream.receive()

                    for name, way in (('run', call), ('stream', bounce)):
                        elapsed = await per_round_trip(way)
                        if turn > 1:  # the first ones warm up
                            times.setdefault(f'{method}_{name}', []).append(elapsed)
        await an.cancel()
    return {name: middle(values) for name, values in times.items()}


async def messages_one_core(quick: bool) -> dict[str, float]:
    """
    The same where the scheduler cannot choose.

    Over two cores each end looks for the answer while the other one works, so that less
    of what they cost is seen.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return await messages(quick)


# What a sub-interpreter does before its actor can run, in this order.
STEPS = {
    'import_trio': 'import trio',
    'import_tractor': 'import tractor.spawn._interp_main',
    'import_modules': f'import {Path(__file__).stem}',
}


def steps() -> dict[str, float]:
    """Do by hand what starting an actor does, and time each step."""
    import _interpreters  # Python 3.14 has it, and this file is imported by children

    times = {}
    start = perf_counter()
    config = _interpreters.new_config('isolated', allow_daemon_threads=True)
    number = _interpreters.create(config, reqrefs=False)
    times['create'] = perf_counter() - start
    try:
        _interpreters.exec(number, f'import sys; sys.path[:] = {sys.path!r}')
        for name, source in STEPS.items():
            start = perf_counter()
            failure = _interpreters.exec(number, source)
            times[name] = perf_counter() - start
            if failure is not None:
                raise RuntimeError(f'{source}: {failure.formatted}')
    finally:
        start = perf_counter()
        _interpreters.destroy(number)
        times['destroy'] = perf_counter() - start
    return times


async def start(quick: bool) -> dict[str, float]:
    """Start single actors of both kinds in turn, and time the steps of one start."""
    times: dict[str, list[float]] = {}
    for turn in range(4 if quick else 8):
        for method in METHODS:
            # A nursery for each: nothing else ends while the next one starts.
            async with tractor.open_nursery() as an:
                begin = perf_counter()
                portal = await an.start_actor(f'{method}_{turn}', **options_of(method))
                elapsed = perf_counter() - begin
                await portal.run(echo, value=b'')
                await portal.cancel_actor()
            if turn:  # the first one writes bytecode and fills the page cache
                times.setdefault(method, []).append(elapsed)
        by_hand = await trio.to_thread.run_sync(steps)  # as an actor's, in a thread
        if turn:
            for name, value in by_hand.items():
                times.setdefault(name, []).append(value)
    results = {name: middle(values) for name, values in times.items()}
    done_by_hand = ['create', *STEPS]
    results['rest'] = max(
        results['subint'] - sum(results[name] for name in done_by_hand), 0.0
    )
    return results


def tree_memory() -> int:
    """Return the bytes of this process and all below it, shared pages by share."""
    parents = {}
    for entry in Path('/proc').iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / 'stat').read_text(errors='replace')
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(')')[2].split()[1])
    tree = {os.getpid()}
    while more := {p for p, parent in parents.items() if parent in tree} - tree:
        tree |= more
    total = 0
    for pid in tree:
        for line in Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines():
            if line.startswith('Pss:'):
                total += int(line.split()[1]) * 1024
    return total


async def memory(method: str) -> dict[str, float]:
    """What one actor of an idle flock takes."""
    async with tractor.open_nursery() as an:
        gc.collect()
        alone = tree_memory()
        portals = [
            await an.start_actor(f'idle_{n}', **options_of(method))
            for n in range(FLOCK)
        ]
        for portal in portals:
            await portal.run(echo, value=b'')
        gc.collect()
        together = tree_memory()
        await an.cancel()
    return {f'{method}_bytes': (together - alone) / FLOCK}


async def stop_one(name: str) -> float:
    """Start an actor that spins, and return the time from cancelling it to its end."""
    read, write = os.pipe()
    try:
        async with tractor.open_nursery() as an:
            portal = await an.start_actor(name, **options_of('subint'))
            async with trio.open_nursery() as tn:
                tn.start_soon(lambda: portal.run(spin, fd=write))
                await trio.lowlevel.wait_readable(read)
                tn.cancel_scope.cancel()  # takes the time of a cancelled call
            begin = perf_counter()
            await an.cancel()
        return perf_counter() - begin
    finally:
        os.close(read)
        os.close(write)


async def stop(quick: bool) -> dict[str, float]:
    """Stop actors that spin; each one's interpreter has to be destroyed by then."""
    import _interpreters  # Python 3.14 has it, and this file is imported by children

    count = 10 if quick else 50
    times, stopped = [], 0
    before = len(_interpreters.list_all())
    for number in range(count):
        with trio.fail_after(GONE_WITHIN):
            times.append(await stop_one(f'spinning_{number}'))
        gone = len(_interpreters.list_all()) == before
        stopped += gone and times[-1] <= STOP_LIMIT
    return {
        'spinning': float(count),
        'stopped': float(stopped),
        'worst': max(times),
        'limit': STOP_LIMIT,
    }


PARTS: dict[str, Callable[[bool], Awaitable[dict[str, float]]]] = {
    'cpu': cpu,
    'lateness': lateness,
    'messages': messages,
    'messages_one_core': messages_one_core,
    'start': start,
    'memory_subint': lambda quick: memory('subint'),
    'memory_trio': lambda quick: memory('trio'),
    'stop': stop,
}


async def measure(part: str, quick: bool, directory: str) -> dict[str, float]:
    """Measure one part below a root whose registry meets no other program's."""
    async with tractor.open_root_actor(
        enable_transports=['uds'], registry_addrs=[(directory, 'registry.sock')]
    ):
        return await PARTS[part](quick)


def main() -> None:
    """Measure the part named on the command line: `subint.py PART [quick]`."""
    part, quick = sys.argv[1], sys.argv[2:] == ['quick']
    with tempfile.TemporaryDirectory(prefix='bench') as directory:
        print(json.dumps(trio.run(measure, part, quick, directory)))


if __name__ == '__main__':
    # The functions that actors serve, and this program's, are those of one module.
    import subint

    subint.main()
