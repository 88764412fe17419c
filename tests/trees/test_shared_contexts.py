"""One context used by several tasks at once: what one meets, all meet, once."""

from __future__ import annotations

import time

import pytest
import trio

import tractor
from tractor import RemoteActorError
from tractor._exceptions import StreamOverrun

told = trio.Event()


@tractor.context
async def be_deaf(ctx: tractor.Context) -> None:
    await ctx.started()
    await trio.sleep_forever()


@tractor.context
async def fail_when_told(ctx: tractor.Context) -> None:
    await ctx.started()
    await told.wait()  # a stream that ends would be the end of its readers
    raise ValueError('on purpose')


async def tell() -> None:
    told.set()


@tractor.context
async def flood_and_read(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream, trio.open_nursery() as tn:
        tn.start_soon(read, stream)
        await flood(stream)


@tractor.context
async def flood_only(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        await flood(stream)


async def answer() -> str:
    return 'answer'


async def read(stream: tractor.MsgStream) -> None:
    async for _ in stream:
        pass


async def flood(stream: tractor.MsgStream) -> None:
    while True:
        await stream.send(0)


async def start(an: tractor.ActorNursery) -> tractor.Portal:
    return await an.start_actor('child', enable_modules=[__name__])


def test_overrun_met_by_two_tasks_is_one_error(run_tree):
    """One sends and one receives; the block raises the complaint as it is."""

    async def body(an):
        portal = await start(an)

        async def talk():
            async with portal.open_context(be_deaf) as (ctx, _):
                async with ctx.open_stream() as stream, trio.open_nursery() as tn:
                    tn.start_soon(read, stream)
                    await flood(stream)

        with pytest.raises(RemoteActorError) as caught:
            await talk()
        assert caught.value.boxed_type is StreamOverrun
        await an.cancel()

    run_tree(body)


def test_overrun_met_by_two_tasks_of_the_child_is_relayed_as_one(run_tree):
    """No group is shipped."""

    async def body(an):
        portal = await start(an)

        async def listen_to_nothing():
            async with portal.open_context(flood_and_read) as (ctx, _):
                async with ctx.open_stream():
                    await trio.sleep_forever()

        with pytest.raises(RemoteActorError) as caught:
            await listen_to_nothing()
        assert caught.value.boxed_type is RemoteActorError
        assert 'StreamOverrun' in caught.value.tb_str
        await an.cancel()

    run_tree(body)


def test_error_met_by_all_readers_is_one_error(run_tree):
    """The child's error, raised by each of them."""
    met = []

    async def body(an):
        portal = await start(an)

        async def read(stream):
            try:
                await stream.receive()
            except RemoteActorError as error:
                met.append(error)
                raise

        async def listen():
            async with portal.open_context(fail_when_told) as (ctx, _):
                async with ctx.open_stream() as stream, trio.open_nursery() as tn:
                    tn.start_soon(read, stream)
                    tn.start_soon(read, stream)
                    tn.start_soon(ctx.wait_for_result)
                    await portal.run(tell)

        with pytest.raises(RemoteActorError) as caught:
            await listen()
        assert caught.value.boxed_type is ValueError
        assert met == [caught.value] * 2
        await an.cancel()

    run_tree(body)


def test_own_cancel_met_by_all_readers_is_no_error(run_tree):
    """Each of them meets the answer to it."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(be_deaf) as (ctx, _):
            async with ctx.open_stream() as stream, trio.open_nursery() as tn:
                tn.start_soon(read, stream)
                tn.start_soon(read, stream)
                await ctx.cancel()
        await an.cancel()

    run_tree(body)


def test_body_goes_on_after_its_cancel_although_another_task_cancels_as_well(run_tree):
    """The owner knows what it did; that somebody else did, too, changes nothing."""

    async def body(an):
        portal = await start(an)
        reached = False
        async with portal.open_context(be_deaf) as (ctx, _):
            async with trio.open_nursery() as tn:
                tn.start_soon(ctx.cancel)
                await ctx.cancel()
                await trio.lowlevel.checkpoint()
                reached = True
        assert reached
        assert not ctx._scope.cancelled_caught
        await an.cancel()

    run_tree(body)


def test_two_sides_that_flood_each_other_are_told_at_once(run_tree):
    """Neither message loop waits for the other: calls are answered meanwhile."""

    async def body(an):
        portal = await start(an)

        async def quarrel():
            async with portal.open_context(flood_only) as (ctx, _):
                async with ctx.open_stream() as stream:
                    await flood(stream)

        began = trio.current_time()
        with pytest.raises(RemoteActorError) as caught:
            await quarrel()
        assert caught.value.boxed_type in (StreamOverrun, RemoteActorError)
        assert await portal.run(answer) == 'answer'
        assert trio.current_time() - began < 5
        await an.cancel()

    run_tree(body)


def test_own_cancel_of_a_child_that_overruns_is_confirmed(run_tree):
    """It is told of no overrun any more, so its answer is that it was cancelled."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(flood_only) as (ctx, _):
            time.sleep(0.3)  # noqa: ASYNC251  its messages pile up unread
            await ctx.cancel()
            outcome = await ctx.wait_for_result()
            assert isinstance(outcome, tractor.ContextCancelled)
            assert ctx.cancel_acked
            assert not ctx._rx_chan.overran
        await an.cancel()

    run_tree(body)
