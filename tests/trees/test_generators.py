"""Remote async generators, read as streams."""

from __future__ import annotations

import pytest
import trio

import tractor


async def count_to(limit: int):
    for number in range(limit):
        yield number


async def count_forever():
    try:
        number = 0
        while True:
            yield number
            number += 1
            await trio.lowlevel.checkpoint()
    finally:
        closed.set()


closed = trio.Event()


async def wait_until_closed() -> None:
    await closed.wait()


async def start(an: tractor.ActorNursery, name: str = 'child') -> tractor.Portal:
    return await an.start_actor(name, enable_modules=[__name__])


def test_remote_generator_is_read_to_its_end(run_tree):
    """The loop ends when the remote generator does."""

    async def body(an):
        portal = await start(an)
        async with portal.open_stream_from(count_to, limit=10) as stream:
            assert [number async for number in stream] == list(range(10))
        await an.cancel()

    run_tree(body)


def test_remote_generator_is_closed_with_the_block(run_tree):
    """Leaving early cancels the remote task, which closes the generator."""

    async def body(an):
        portal = await start(an)
        async with portal.open_stream_from(count_forever) as stream:
            async for number in stream:
                if number == 3:
                    break
        await portal.run(wait_until_closed)
        await an.cancel()

    run_tree(body)


def test_closed_generator_stream_stops_iterating(run_tree):
    """After `aclose()` inside the loop the next step is the end."""

    async def body(an):
        portal = await start(an)
        async with portal.open_stream_from(count_forever) as stream:
            async for _ in stream:
                await stream.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        await an.cancel()

    run_tree(body)


def test_two_generators_over_one_portal(run_tree):
    """Each call is a remote task of its own."""

    async def body(an):
        portal = await start(an)
        async with (
            portal.open_stream_from(count_to, limit=5) as first,
            portal.open_stream_from(count_to, limit=3) as second,
        ):
            assert [number async for number in second] == [0, 1, 2]
            assert [number async for number in first] == [0, 1, 2, 3, 4]
        await an.cancel()

    run_tree(body)


def test_only_generators_are_streamed(run_tree):
    """Any other function is refused before anything is sent."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(TypeError, match='must be an async generator function'):
            async with portal.open_stream_from(wait_until_closed):
                raise AssertionError('it was opened')
        await an.cancel()

    run_tree(body)
