"""How one-way streams end: complete, or with an error; never cut without a word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

import tractor
from tractor import RemoteActorError
from tractor.ipc import _connect_chan
from tractor.msg import Aid, Start, StartAck


async def count(number: int) -> AsyncIterator[int]:
    for n in range(number):
        yield n


async def count_and_fail(number: int) -> AsyncIterator[int]:
    for n in range(number):
        yield n
    raise ValueError('on purpose')


async def count_and_stay(number: int) -> AsyncIterator[int]:
    for n in range(number):
        yield n
    await trio.sleep_forever()


@tractor.stream
async def send_and_stay(stream: tractor.Context, number: int) -> None:
    for n in range(number):
        await stream.send_yield(n)
    await trio.sleep_forever()


async def own_address() -> tuple[str, int] | tuple[str, str]:
    return tractor.current_actor().accept_addr


async def touch_when_told(mark: str, go: str) -> None:
    """Make a file when another one is there."""
    Path(f'{mark}.begun').touch()  # noqa: ASYNC240  an instant
    while not Path(go).exists():  # noqa: ASYNC110, ASYNC240
        await trio.sleep(0.01)
    Path(mark).touch()  # noqa: ASYNC240


async def appears(path: Path) -> None:
    """Wait for a file: another process tells by that."""
    with trio.fail_after(5):
        while not path.exists():  # noqa: ASYNC110, ASYNC240
            await trio.sleep(0.01)


async def start(an: tractor.ActorNursery) -> tractor.Portal:
    return await an.start_actor('child', enable_modules=[__name__])


@pytest.mark.parametrize('function', [count_and_stay, send_and_stay])
def test_reader_that_lost_items_is_told(run_tree, function):
    """The producer was told that the queue is full, and that is how the loop ends."""

    async def body(an):
        portal = await start(an)
        received = []

        async def read_late():
            async with portal.open_stream_from(function, number=500) as stream:
                box = stream._rx_chan
                with trio.fail_after(5):
                    while not box.overran:
                        await trio.lowlevel.checkpoint()
                async for item in stream:
                    received.append(item)

        with pytest.raises(RemoteActorError) as caught:
            await read_late()
        assert caught.value.boxed_type is RemoteActorError
        assert 'StreamOverrun' in caught.value.tb_str
        assert received == [*range(len(received))]
        await an.cancel()

    run_tree(body)


def test_items_before_an_error_come_before_it(run_tree):
    """However late they are read."""

    async def body(an):
        portal = await start(an)
        received = []

        async def read_late():
            async with portal.open_stream_from(count_and_fail, number=5) as stream:
                with trio.fail_after(5):
                    while stream.ctx._remote_error is None:
                        await trio.lowlevel.checkpoint()
                async for item in stream:
                    received.append(item)

        with pytest.raises(RemoteActorError) as caught:
            await read_late()
        assert caught.value.boxed_type is ValueError
        assert received == [*range(5)]
        await an.cancel()

    run_tree(body)


def test_complete_stream_ends_the_loop(run_tree):
    """With all that was yielded."""

    async def body(an):
        portal = await start(an)
        async with portal.open_stream_from(count, number=20) as stream:
            assert [item async for item in stream] == [*range(20)]
        await an.cancel()

    run_tree(body)


def test_end_of_the_stream_is_not_hidden_from_who_asks_beyond_it(run_tree):
    """A `receive()` too many leaves the block as what it is."""

    async def body(an):
        portal = await start(an)

        async def ask_beyond():
            async with portal.open_stream_from(count, number=1) as stream:
                await stream.receive()
                await stream.receive()

        with pytest.raises(trio.EndOfChannel):
            await ask_beyond()
        await an.cancel()

    run_tree(body)


def test_plain_function_runs_on_without_its_requester(run_tree, tmp_path):
    """It was accepted; only its answer is lost."""

    async def body(an):
        portal = await start(an)
        mark, go = tmp_path / 'mark', tmp_path / 'go'
        async with _connect_chan(await portal.run(own_address)) as chan:
            me = Aid('stranger', 'its-uuid')
            await chan._do_handshake(aid=me)
            kwargs = {'mark': str(mark), 'go': str(go)}
            await chan.send(Start('cid', __name__, 'touch_when_told', kwargs, me.uid))
            assert isinstance(await chan.recv(), StartAck)
            await appears(tmp_path / 'mark.begun')
        await portal.run(own_address)  # the end of the other channel was read by now
        go.touch()
        await appears(mark)
        await an.cancel()

    run_tree(body)
