"""`tractor.experimental.msgpub` between actors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from itertools import cycle

import pytest
import trio

import tractor
from tractor.experimental import msgpub

# Set in the process that publishes: what tells the topics of the current run.
_topics: list[Callable[[], tuple[str, ...]]] = []


@msgpub
async def parity(
    get_topics: Callable[[], tuple[str, ...]], seed: int = 10
) -> AsyncGenerator[dict[str, int]]:
    """Publish numbers under `even` and `odd`."""
    _topics[:] = [get_topics]
    for number in cycle(range(seed)):
        yield {('odd' if number % 2 else 'even'): number}
        await trio.sleep(0.01)


@msgpub(tasks=['one', 'two'])
async def ends_at_once(get_topics) -> AsyncGenerator[dict[str, int]]:
    """Publish one value and return."""
    yield {'doggy': 10}


async def read_parity(portal: tractor.Portal, topics: list[str], count: int) -> None:
    """Take some numbers of these topics, then leave."""
    async with portal.open_stream_from(parity, topics=topics, seed=20) as stream:
        async for packet in stream:
            ((topic, number),) = packet.items()
            assert topic in topics
            assert topic == ('odd' if number % 2 else 'even')
            count -= 1
            if not count:
                break


async def subscribe_forever(publisher: str, topics: list[str]) -> None:
    """Take numbers until cancelled; run in a subscribing actor."""
    async with tractor.wait_for_actor(publisher) as portal:
        await read_parity(portal, topics, -1)


async def topics_become(expected: set[str]) -> None:
    """Wait until the run in this process has exactly these topics."""
    with trio.fail_after(5):
        # The endpoint tells nobody that a subscriber has left.
        while not _topics or set(_topics[0]()) != expected:  # noqa: ASYNC110
            await trio.sleep(0.01)


def run(main, *args) -> None:
    """Run an async test under a deadline."""

    async def bounded():
        with trio.fail_after(15):
            await main(*args)

    trio.run(bounded)


def test_subscriber_gets_its_topics_from_another_actor(reg_addr):
    """The plain case, and a second subscription after the first has ended."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            portal = await an.start_actor('streamer', enable_modules=[__name__])
            await read_parity(portal, ['even'], 5)
            await read_parity(portal, ['odd', 'even'], 5)
            await portal.cancel_actor()

    run(main)


def test_tasks_of_one_actor_subscribe_at_once(reg_addr):
    """Several subscriptions share the run, and outlive the one that started it."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            portal = await an.start_actor('streamer', enable_modules=[__name__])
            async with trio.open_nursery() as tn:
                for count in (3, 6, 9):
                    tn.start_soon(read_parity, portal, ['even'], count)
                    tn.start_soon(read_parity, portal, ['odd', 'even'], count)
            await portal.cancel_actor()

    run(main)


def test_end_of_the_generator_ends_the_stream(reg_addr):
    """A subscriber's loop ends, whatever `ctx` the caller wrote."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            portal = await an.start_actor('pubber', enable_modules=[__name__])
            kwargs = {'ctx': None, 'topics': ['doggy'], 'task_name': 'one'}
            async with portal.open_stream_from(ends_at_once, **kwargs) as stream:
                assert [packet async for packet in stream] == [{'doggy': 10}]
            await portal.cancel_actor()

    run(main)


def test_wrong_task_name_is_raised_remotely(reg_addr):
    """The endpoint's own `TypeError` reaches the caller."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            portal = await an.start_actor('pubber', enable_modules=[__name__])
            with pytest.raises(tractor.RemoteActorError) as info:
                async with portal.open_stream_from(
                    ends_at_once, topics=['doggy'], task_name='three'
                ) as stream:
                    await stream.receive()
            assert info.value.boxed_type is TypeError
            await portal.cancel_actor()

    run(main)


def test_root_publishes_to_actors_that_come_and_go(reg_addr):
    """Topics follow the actors which subscribe to them, also if these are cancelled."""
    _topics.clear()

    async def main():
        async with tractor.open_nursery(
            registry_addrs=[reg_addr], enable_modules=[__name__]
        ) as an:
            portals = {
                topic: await an.start_actor(topic, enable_modules=[__name__])
                for topic in ('even', 'odd')
            }
            async with trio.open_nursery() as tn:

                async def follow(topic: str) -> None:
                    with pytest.raises(tractor.RemoteActorError):
                        await portals[topic].run(
                            subscribe_forever, publisher='root', topics=[topic]
                        )

                tn.start_soon(follow, 'even')
                await topics_become({'even'})
                tn.start_soon(follow, 'odd')
                await topics_become({'even', 'odd'})
                await portals['even'].cancel_actor()
                await topics_become({'odd'})
                await portals['odd'].cancel_actor()
                await topics_become(set())

    run(main)
