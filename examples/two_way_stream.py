"""
Talk with a task in another process: a context with a stream in both directions.

What to see: the remote task reports a first value, then both sides send while the
stream is open, and it ends with a result, as if the two tasks were one conversation.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

import tractor


@tractor.context
async def running_average(ctx: tractor.Context, unit: str) -> int:
    """Answer every number with the average so far; return how many there were."""
    await ctx.started(f'averaging in {unit}')
    total = count = 0
    async with ctx.open_stream() as stream:
        async for number in stream:  # ends when the other side leaves its stream
            total, count = total + number, count + 1
            await stream.send(f'{total / count:.1f} {unit}')
    return count


@asynccontextmanager
async def one_actor() -> AsyncGenerator[tractor.Portal]:
    """Lend an actor for the length of a block."""
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('calculator', enable_modules=[__name__])
        yield portal
        await portal.cancel_actor()


async def main() -> None:
    """Send some numbers and print the answers."""
    async with one_actor() as portal:
        async with portal.open_context(running_average, unit='km') as (ctx, first):
            print(first)
            async with ctx.open_stream() as stream:
                for number in (3, 4, 8):
                    await stream.send(number)
                    print(f'{number} -> {await stream.receive()}')
            print(f'{await ctx.wait_for_result()} numbers were averaged')


if __name__ == '__main__':
    trio.run(main)
