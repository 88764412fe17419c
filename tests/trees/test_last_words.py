"""How a dialog ends if task, peer or caller misbehave: never in silence."""

from __future__ import annotations

import os
import signal
import time

import pytest
import trio

import tractor
from tractor import ContextCancelled, MsgTypeError, RemoteActorError, TransportClosed
from tractor.ipc._chan import _connect_chan
from tractor.runtime._portal import open_portal

SURROGATE = 'a file named \udcff'

started = trio.Event()


async def give(value: object) -> object:
    return value


async def give_a_huge_number() -> int:
    return 2**70


async def fail_with_undecodable_text() -> None:
    raise ValueError(SURROGATE)


async def compute(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - the event loop is meant to stand still


async def generate():
    yield 1


async def sleep_forever() -> None:
    started.set()
    await trio.sleep_forever()


async def running_tasks() -> list[str]:
    tasks = tractor.current_actor()._rpc_tasks.values()
    return [func.__name__ for _, func, _ in tasks]


async def cancel_own_runtime() -> None:
    await tractor.current_actor().cancel(None)


async def where_it_listens() -> list[object]:
    return list(tractor.current_actor().accept_addr)


@tractor.context
async def fail_at_once(ctx: tractor.Context) -> None:
    await ctx.started('first')
    raise ValueError('second')


@tractor.context
async def fail_in_response(ctx: tractor.Context) -> None:
    await ctx.started()
    try:
        raise LookupError('the origin')
    except LookupError:
        raise ValueError('what came of it')  # noqa: B904


@tractor.context
async def fail_when_cancelled(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        try:
            while True:
                await stream.send(b'x')
                await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            raise ValueError('on the way out') from None


@tractor.context
async def end_slowly(ctx: tractor.Context) -> None:
    await ctx.started()
    try:
        await trio.sleep_forever()
    finally:
        time.sleep(0.2)  # noqa: ASYNC251


@tractor.context
async def stop_the_process(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream():
        os.kill(os.getpid(), signal.SIGSTOP)


@tractor.stream
async def cancel_itself(ctx: tractor.Context) -> None:
    await ctx.send_yield(1)
    await ctx.cancel()
    await trio.sleep_forever()


async def start(an: tractor.ActorNursery) -> tractor.Portal:
    return await an.start_actor('child', enable_modules=[__name__])


def test_undecodable_text_of_an_error_arrives(run_tree):
    """It is escaped; the actor lives on."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError, match=r'a file named \\udcff'):
            await portal.run(fail_with_undecodable_text)
        assert await portal.run(give, value=1) == 1
        await an.cancel()

    run_tree(body)


@pytest.mark.parametrize('value', [SURROGATE, 2**70], ids=['surrogate', 'huge'])
def test_argument_that_cannot_be_encoded_is_named_at_once(run_tree, value):
    """The call raises, and nothing is sent: not even a cancel request."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(MsgTypeError):
            await portal.run(give, value=value)
        assert await portal.run(give, value=1) == 1
        await an.cancel()

    run_tree(body)


def test_result_that_cannot_be_encoded_is_an_error(run_tree):
    """The caller is told instead of waiting."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError):
            await portal.run(give_a_huge_number)
        assert await portal.run(give, value=1) == 1
        await an.cancel()

    run_tree(body)


def test_run_in_actor_does_not_wait_for_a_busy_task(run_tree):
    """It returns when the task is scheduled, so that two compute at the same time."""

    async def body(an):
        began = trio.current_time()
        portal = await an.run_in_actor(compute, seconds=1.0)
        returned = trio.current_time()
        await portal.wait_for_result()
        assert trio.current_time() - returned > 0.5
        assert returned - began < trio.current_time() - began - 0.5

    run_tree(body)


@pytest.mark.skipon_spawn_backend('subint', reason='it stops the process of an actor')
def test_peer_that_stands_still_delays_no_deadline(run_tree):
    """The end of a stream is not waited for, even though its socket is full."""

    async def body(an):
        portal = await start(an)
        with trio.CancelScope() as scope:
            async with (
                portal.open_context(stop_the_process) as (ctx, _),
                ctx.open_stream() as stream,
            ):
                scope.deadline = trio.current_time() + 0.5
                while True:
                    await stream.send(bytes(60_000))
        assert scope.cancelled_caught
        assert trio.current_time() - scope.deadline < 2
        await an.cancel(hard_kill=True)

    run_tree(body)


def test_async_generator_is_no_function_to_run(run_tree):
    """By name it is found out only there; the call is refused all the same."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(TypeError, match='non-streaming'):
            await portal.run_from_ns(__name__, 'generate')
        await an.cancel()

    run_tree(body)


def test_stream_function_that_cancels_itself_ends_its_consumer(run_tree):
    """The consumer learns of it."""

    async def body(an):
        portal = await start(an)
        # The block itself is what raises, here and below.
        with pytest.raises(ContextCancelled):  # noqa: PT012
            async with portal.open_stream_from(cancel_itself) as stream:
                async for _ in stream:
                    pass
        await an.cancel()

    run_tree(body)


def test_call_after_the_peers_end_fails_at_once(run_tree):
    """Also where the first write to a connection that is half closed succeeds."""

    async def body(an):
        portal = await start(an)
        addr = tuple(await portal.run(where_it_listens))
        async with _connect_chan(addr) as chan, open_portal(chan) as other:
            assert await other.run(give, value=1) == 1
            await portal.cancel_actor()
            loop = tractor.current_actor()._loops.get(chan)
            if loop is not None:
                await loop.wait()
            with pytest.raises(TransportClosed):
                await other.run(give, value=2)

    run_tree(body)


def test_runtime_can_be_cancelled_by_one_of_its_own_tasks(run_tree):
    """It does not wait for the task that asks."""

    async def body(an):
        portal = await start(an)
        with pytest.raises((TransportClosed, ContextCancelled)):
            await portal.run(cancel_own_runtime)

    run_tree(body)


def test_error_beats_a_cancel_of_our_own(run_tree):
    """A peer that streams on is given up; what it then raises is not dropped."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError, match='on the way out'):  # noqa: PT012
            async with portal.open_context(fail_when_cancelled) as (ctx, _):
                async with ctx.open_stream() as stream:
                    await stream.receive()
        await an.cancel()

    run_tree(body)


def test_first_value_is_seen_before_the_error_behind_it(run_tree):
    """However busy this event loop is: the block is entered, and raises."""

    async def body(an):
        portal = await start(an)
        entered = []
        for pause in (0, 0.05):

            async def be_busy(pause=pause):
                await trio.lowlevel.checkpoint()
                time.sleep(pause)  # noqa: ASYNC251

            with pytest.raises(RemoteActorError, match='second'):  # noqa: PT012
                async with trio.open_nursery(strict_exception_groups=False) as tn:
                    tn.start_soon(be_busy)
                    async with portal.open_context(fail_at_once) as (_, first):
                        entered.append(first)
                        await trio.sleep_forever()
        assert entered == ['first', 'first']
        await an.cancel()

    with pytest.warns(trio.TrioDeprecationWarning):
        run_tree(body)


def test_second_cancel_waits_as_the_first(run_tree):
    """Whoever calls it finds the task ended, and the cancel acknowledged."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(end_slowly) as (ctx, _):
            async with trio.open_nursery() as tn:
                tn.start_soon(ctx.cancel)
                await trio.lowlevel.checkpoint()
                await ctx.cancel()
                assert ctx.cancel_acked
        await an.cancel()

    run_tree(body)


def test_interrupted_call_cancels_its_task(run_tree):
    """A Ctrl-C in the middle of a call is no reason to leave its task running."""

    async def body(an):
        portal = await start(an)

        async def interrupt():
            while 'sleep_forever' not in await portal.run(running_tasks):
                pass
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            await interrupted(portal, interrupt)
        while 'sleep_forever' in await portal.run(running_tasks):
            pass
        await an.cancel()

    run_tree(body)


async def interrupted(portal, interrupt):
    """Call while another task interrupts; a lone error comes bare."""
    try:
        async with trio.open_nursery() as tn:
            tn.start_soon(interrupt)
            await portal.run(sleep_forever)
    except BaseExceptionGroup as group:
        found = group.subgroup(KeyboardInterrupt)
        assert found is not None
        raise KeyboardInterrupt from None


def test_error_of_a_context_keeps_its_history(run_tree):
    """What it was raised in response to is in the shipped traceback."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError) as caught:
            async with portal.open_context(fail_in_response):
                await trio.sleep_forever()
        assert 'the origin' in caught.value.tb_str
        await an.cancel()

    run_tree(body)
