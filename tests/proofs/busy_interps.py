"""
Actors in sub-interpreters at work, as a program: what `test_interrupts.py` interrupts.

Run as `busy_interps.py DIRECTORY`.  It says `begin` before the first actor starts and
`over` when the last one has ended; in between one computes without a pause, another
streams, and a third comes and goes.  Then it waits for its end, which is Ctrl-C.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any, Final

import trio

import tractor
from tractor.trionics import collapse_eg

BUSY_SECONDS: Final = 0.2
ITEMS: Final = 300


async def compute(seconds: float) -> int:
    """Do not let the event loop run for so long."""
    end = perf_counter() + seconds
    turns = 0
    while perf_counter() < end:
        turns += 1
    return turns


@tractor.context
async def echo_stream(ctx: tractor.Context) -> None:
    """Send every message back."""
    await ctx.started()
    async with ctx.open_stream() as stream:
        async for item in stream:
            await stream.send(item)


async def start(an: tractor.ActorNursery, name: str) -> tractor.Portal:
    """Start an actor that serves this module."""
    return await an.start_actor(
        name,
        enable_modules=[__name__],
        inherit_parent_main=False,
        start_method='subint',
        gil='own',
    )


async def use_computing(an: tractor.ActorNursery) -> None:
    """An actor that is busy most of the time."""
    portal = await start(an, 'computing')
    for _ in range(2):
        await portal.run(compute, seconds=BUSY_SECONDS)
    await portal.cancel_actor()


async def use_streaming(an: tractor.ActorNursery) -> None:
    """An actor that echoes, and another one when that has ended."""
    portal = await start(an, 'streaming')
    async with (
        portal.open_context(echo_stream) as (ctx, _),
        ctx.open_stream() as stream,
    ):
        for item in range(ITEMS):
            await stream.send(item)
            await stream.receive()
    await portal.cancel_actor()
    portal = await start(an, 'passing')
    await portal.run(compute, seconds=0)
    await portal.cancel_actor()


async def work(registry: Any) -> None:
    """Use all actors, then wait."""
    async with tractor.open_nursery(
        enable_transports=['uds'], registry_addrs=[registry]
    ) as an:
        # A nursery of trio raises groups; the program is to die of a bare interrupt.
        async with collapse_eg(), trio.open_nursery() as tn:
            tn.start_soon(use_computing, an)
            tn.start_soon(use_streaming, an)
    print('over', flush=True)
    await trio.sleep_forever()


def main(directory: str) -> None:
    """Run until interrupted."""
    print('begin', flush=True)
    trio.run(work, (directory, 'registry.sock'))


if __name__ == '__main__':
    # The actors find their functions in a module, of which `__main__` is another copy.
    import busy_interps

    busy_interps.main(*sys.argv[1:])
