"""Message streams between actors: order, ends, overruns and several readers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
import trio.testing

import tractor
from tractor import ContextCancelled, RemoteActorError, TransportClosed
from tractor._exceptions import StreamOverrun
from tractor.runtime import _msgloop

QUEUE_SIZE = 64

sent = trio.Event()


async def wait_until_sent() -> None:
    await sent.wait()


LONG = 16 * 2**20  # more than a socket holds, and than is read amid a few sends


@tractor.context
async def answer_at_length(ctx: tractor.Context, mark: str) -> None:
    """Make the file `mark` once an answer finds no room."""
    _msgloop.CONGESTED = 30  # this machine may be busy
    is_sending = False

    async def watch() -> None:
        while not is_sending:
            await trio.testing.wait_all_tasks_blocked(0.01)
        Path(mark).touch()  # noqa: ASYNC240  an instant, in a file system

    await ctx.started()
    async with ctx.open_stream(msg_buffer_size=1) as stream, trio.open_nursery() as tn:
        tn.start_soon(watch)
        async for number in stream:
            is_sending = True
            await stream.send(bytes(number + LONG))


@tractor.context
async def echo(ctx: tractor.Context) -> str:
    await ctx.started()
    async with ctx.open_stream() as stream:
        async for message in stream:
            await stream.send(message)
    return 'echoed'


@tractor.context
async def pass_on(ctx: tractor.Context, to: str) -> None:
    """Send each message through another actor's echo, and its answer back."""
    async with (
        tractor.wait_for_actor(to) as portal,
        portal.open_context(echo) as (below, _),
        below.open_stream() as lower,
    ):
        await ctx.started()
        async with ctx.open_stream() as upper:
            async for message in upper:
                await lower.send(message)
                await upper.send(await lower.receive())


@tractor.context
async def open_stream_too_early(ctx: tractor.Context) -> None:
    async with ctx.open_stream():
        raise AssertionError('it was opened')


@tractor.context
async def read_to_the_end(ctx: tractor.Context) -> list[object]:
    await ctx.started()
    async with ctx.open_stream() as stream:
        return [message async for message in stream]


@tractor.context
async def never_read(ctx: tractor.Context) -> None:
    await ctx.started()
    await trio.sleep_forever()


@tractor.context
async def send_too_much(ctx: tractor.Context, count: int) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        for number in range(count):
            await stream.send(number)
        await trio.sleep_forever()


@tractor.context
async def send_and_return(ctx: tractor.Context, count: int) -> str:
    await ctx.started()
    async with ctx.open_stream() as stream:
        for number in range(count):
            await stream.send(number)
    sent.set()
    return 'result'


async def start(an: tractor.ActorNursery, name: str = 'child') -> tractor.Portal:
    return await an.start_actor(name, enable_modules=[__name__])


# -- order and ends --------------------------------------------------------------------


def test_messages_come_back_in_order(run_tree):
    """What one side sends the other reads in the same order."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                for number in range(100):
                    await stream.send(number)
                    assert await stream.receive() == number
            assert await ctx.wait_for_result() == 'echoed'
        await an.cancel()

    run_tree(body)


def test_messages_pass_a_pipeline(run_tree):
    """Two hops keep order and lose nothing."""

    async def body(an):
        await start(an, 'last')
        portal = await start(an, 'middle')
        async with portal.open_context(pass_on, to='last') as (ctx, _):
            async with ctx.open_stream() as stream:
                for number in range(200):
                    await stream.send(number)
                    assert await stream.receive() == number
        await an.cancel()

    run_tree(body)


def test_sender_that_leaves_ends_the_reader_loop(run_tree):
    """Leaving the stream block sends end-of-stream, behind every message."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(read_to_the_end) as (ctx, _):
            async with ctx.open_stream() as stream:
                for number in range(30):
                    await stream.send(number)
            assert await ctx.wait_for_result() == list(range(30))
        await an.cancel()

    run_tree(body)


def test_end_of_stream_is_one_instance(run_tree):
    """Receiving and sending after the peer's end raise the stored exception."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(send_and_return, count=1) as (ctx, _):
            async with ctx.open_stream() as stream:
                assert await stream.receive() == 0
                with pytest.raises(trio.EndOfChannel) as received:
                    await stream.receive()
                with pytest.raises(trio.EndOfChannel) as sending:
                    await stream.send('too late')
                assert received.value is sending.value is stream._eoc
                assert stream.closed
        await an.cancel()

    run_tree(body)


def test_own_end_of_stream_is_swallowed_by_the_block(run_tree):
    """An `EndOfChannel` that escapes the stream block ends it normally."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(send_and_return, count=0) as (ctx, _):
            async with ctx.open_stream() as stream:
                await stream.receive()
            assert await ctx.wait_for_result() == 'result'
        await an.cancel()

    run_tree(body)


def test_closing_twice_is_fine(run_tree):
    """`aclose()` is idempotent and ends loops in other tasks of this actor."""

    async def body(an):
        portal = await start(an)

        async def read(stream):
            assert [message async for message in stream] == []

        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                async with trio.open_nursery() as tn:
                    tn.start_soon(read, stream)
                    await trio.testing.wait_all_tasks_blocked()
                    await stream.aclose()
                assert await stream.aclose() == []
        await an.cancel()

    run_tree(body)


def test_stream_is_not_opened_twice(run_tree):
    """After the first ended, a second one is refused."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream():
                pass
            try:
                async with ctx.open_stream():
                    pass
            except trio.ClosedResourceError as error:
                refused.append(error)
        await an.cancel()

    refused = []
    run_tree(body)
    assert len(refused) == 1


def test_cancelled_receive_loses_nothing(run_tree):
    """A message that comes after a reader gave up is there for the next one."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                for number in range(10):
                    with trio.CancelScope() as scope:
                        scope.cancel()
                        await stream.receive()
                    assert scope.cancelled_caught
                    await stream.send(number)
                    assert await stream.receive() == number
        await an.cancel()

    run_tree(body)


def test_one_task_sends_while_another_receives(run_tree):
    """Both directions of one stream may be used at once."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:

                async def send_all():
                    for number in range(500):
                        await stream.send(number)

                async with trio.open_nursery() as tn:
                    tn.start_soon(send_all)
                    for number in range(500):
                        assert await stream.receive() == number
        await an.cancel()

    run_tree(body)


def test_reader_that_waits_for_its_peer_to_read_is_given_time(run_tree, tmp_path):
    """It keeps up; what stops it is the full socket of its own answers."""
    count = 4
    mark = tmp_path / 'blocked'

    async def body(an):
        portal = await start(an)
        async with portal.open_context(answer_at_length, mark=str(mark)) as (ctx, _):
            async with ctx.open_stream() as stream:
                for number in range(count):
                    await stream.send(number)
                end = time.monotonic() + 30
                while not mark.exists():
                    assert time.monotonic() < end, 'no answer found the socket full'
                    time.sleep(0.01)  # noqa: ASYNC251  it is to read nothing meanwhile
                for number in range(count):
                    assert len(await stream.receive()) == number + LONG
        await an.cancel()

    run_tree(body)


def test_streams_can_be_kept_in_sets(run_tree):
    """A stream is hashable by identity."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                assert stream in {stream}
                assert stream.ctx is ctx
        await an.cancel()

    run_tree(body)


# -- opening ---------------------------------------------------------------------------


def test_child_opens_no_stream_before_its_first_value(run_tree):
    """A stream belongs behind `started()`."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(open_stream_too_early):
            raise AssertionError('the block was entered')

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is RuntimeError


def test_queue_size_can_be_chosen(run_tree):
    """The inbound queue is resized in place."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            assert ctx._send_chan._state.max_buffer_size == QUEUE_SIZE
            async with ctx.open_stream(msg_buffer_size=7):
                assert ctx._send_chan._state.max_buffer_size == 7
        await an.cancel()

    run_tree(body)


def test_no_stream_after_a_cancel(run_tree):
    """Who cancelled the context gets its `ContextCancelled`, or is told so."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            await ctx.cancel()
            with pytest.raises(ContextCancelled):
                await open_and_leave(ctx)
        await an.cancel()

    run_tree(body)


async def open_and_leave(ctx: tractor.Context) -> None:
    async with ctx.open_stream():
        pass


def test_cancel_inside_the_stream_leaves_quietly(run_tree):
    """Both blocks end without an error."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream():
                await ctx.cancel()
        assert ctx.cancel_acked
        await an.cancel()

    run_tree(body)


def test_receive_raises_the_own_cancel(run_tree):
    """A reader sees the acknowledgement, which the context then absorbs."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                await ctx.cancel()
                await stream.receive()
                raise AssertionError('something was received')
        await an.cancel()

    run_tree(body)


def test_sending_to_a_peer_that_was_asked_to_end_tells_that(run_tree):
    """Its task's last word comes before the ack, and is what the sender raises."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                await portal.cancel_actor()
                with pytest.raises(ContextCancelled):
                    await send_until_refused(stream)

    with pytest.raises(ContextCancelled):
        run_tree(body)


async def send_until_refused(stream: tractor.MsgStream) -> None:
    while True:
        await stream.send('anybody there?')


# -- overruns --------------------------------------------------------------------------


def test_parent_overruns_the_child(run_tree):
    """One message more than the queue holds is refused, and raised at the sender."""

    async def body(an):
        portal = await start(an)
        async with (
            portal.open_context(never_read) as (ctx, _),
            ctx.open_stream() as stream,
        ):
            for number in range(QUEUE_SIZE + 1):
                await stream.send(number)
            await trio.sleep_forever()

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is StreamOverrun
    assert type(caught.value) is RemoteActorError


def test_child_overruns_the_parent(run_tree):
    """The error ends the child, which relays it."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(send_too_much, count=QUEUE_SIZE + 1):
            await trio.sleep_forever()

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is RemoteActorError
    assert 'StreamOverrun' in caught.value.tb_str
    assert caught.value.tb_str == caught.value.msgdata['tb_str']


@pytest.mark.parametrize('count', [QUEUE_SIZE + 1, 3 * QUEUE_SIZE])
def test_overruns_can_be_allowed(run_tree, count):
    """The reader gets everything in order, however late it reads."""

    async def body(an):
        portal = await start(an)
        async with (
            portal.open_context(send_and_return, count=count, allow_overruns=True) as (
                ctx,
                _,
            ),
            ctx.open_stream(allow_overruns=True) as stream,
        ):
            # Channels are FIFO: with this answer everything sent before has arrived.
            await portal.run(wait_until_sent)
            assert [number async for number in stream] == list(range(count))
            assert await ctx.wait_for_result() == 'result'
        await an.cancel()

    run_tree(body)


# -- several readers -------------------------------------------------------------------


def test_every_subscriber_gets_every_message(run_tree):
    """Each has its own copy, and the peer's end reaches all."""

    async def body(an):
        portal = await start(an)
        received = {}

        async def read(name, stream, ready):
            async with stream.subscribe() as reader:
                ready.set()
                received[name] = [message async for message in reader]

        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                async with trio.open_nursery() as tn:
                    for name in 'ab':
                        ready = trio.Event()
                        tn.start_soon(read, name, stream, ready)
                        await ready.wait()
                    for number in range(20):
                        await stream.send(number)
                    await ctx.send_stop()
        assert received == {'a': list(range(20)), 'b': list(range(20))}
        await an.cancel()

    run_tree(body)


def test_task_that_waits_already_becomes_a_subscriber(run_tree):
    """The first `subscribe()` finds another task in the stream's own loop."""

    async def body(an):
        portal = await start(an)
        received = {'handle': [], 'subscriber': []}

        async def read(name, source):
            async for number in source:
                received[name].append(number)

        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                async with trio.open_nursery() as tn:
                    tn.start_soon(read, 'handle', stream)
                    await trio.testing.wait_all_tasks_blocked()
                    async with stream.subscribe() as reader:
                        for number in range(5):
                            await stream.send(number)
                        await ctx.send_stop()
                        await read('subscriber', reader)
        assert received == {'handle': [*range(5)], 'subscriber': [*range(5)]}
        await an.cancel()

    run_tree(body)


def test_message_taken_without_waiting_reaches_the_subscribers(run_tree):
    """The stream's own `receive_nowait()` is that of a subscriber, too."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream, stream.subscribe() as reader:
                with pytest.raises(trio.WouldBlock):
                    stream.receive_nowait()
                await stream.send(1)
                with trio.fail_after(5):
                    while not len(stream._rx_chan):
                        await trio.lowlevel.checkpoint()
                assert stream.receive_nowait() == 1
                assert reader.receive_nowait() == 1
                await stream.send(2)
                assert await reader.receive() == 2
                assert stream.receive_nowait() == 2
        await an.cancel()

    run_tree(body)


def test_taking_without_waiting_tells_that_the_peer_is_lost(run_tree):
    """Not that there is nothing yet: a loop that polls would never end."""

    async def body(an):
        portal = await start(an)
        lost = TransportClosed('as if the connection had been cut')

        async def take():
            async with portal.open_context(echo) as (ctx, _):
                async with ctx.open_stream() as stream:
                    with pytest.raises(trio.WouldBlock):
                        stream.receive_nowait()
                    ctx._peer_lost(lost)
                    stream.receive_nowait()

        with pytest.raises(TransportClosed) as caught:
            await take()
        assert caught.value is lost
        await an.cancel()

    run_tree(body)


def test_subscriber_that_leaves_is_forgotten(run_tree):
    """Others are not slowed down by who is gone."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            async with ctx.open_stream() as stream:
                async with stream.subscribe() as reader:
                    assert id(reader) in reader._state.subs
                assert id(reader) not in reader._state.subs
        await an.cancel()

    run_tree(body)
