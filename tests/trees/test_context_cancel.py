"""What `Context.cancel()` does, on either side, and what an ended context reports."""

from __future__ import annotations

import pytest
import trio

import tractor
from tractor import ContextCancelled, RemoteActorError
from tractor._context import Unresolved
from tractor._exceptions import StreamOverrun


@tractor.context
async def cancel_then_raise(ctx: tractor.Context) -> None:
    await ctx.started()
    await ctx.cancel()
    raise KeyError('after')


@tractor.context
async def cancel_then_open_stream(ctx: tractor.Context) -> None:
    await ctx.started()
    await ctx.cancel()
    async with ctx.open_stream():
        pass


@tractor.context
async def cancel_then_sleep(ctx: tractor.Context) -> None:
    await ctx.started()
    await ctx.cancel()
    await trio.sleep_forever()


@tractor.context
async def stop_serving(ctx: tractor.Context) -> None:
    """End every task of this actor without a word to whoever asked for it."""
    await ctx.started()
    tractor.current_actor().ipc_server.cancel()
    await trio.sleep_forever()


@tractor.context
async def flood(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        while True:
            await stream.send(None)
            await trio.lowlevel.checkpoint()


@tractor.context
async def fail(ctx: tractor.Context) -> None:
    await ctx.started()
    raise ValueError('told')


async def start(an: tractor.ActorNursery) -> tractor.Portal:
    return await an.start_actor('child', enable_modules=[__name__])


@pytest.mark.parametrize(
    ('function', 'boxed'),
    [(cancel_then_raise, KeyError), (cancel_then_open_stream, RuntimeError)],
)
def test_child_that_cancelled_itself_runs_on_to_a_checkpoint(run_tree, function, boxed):
    """What it raises before that is what the other side gets."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError) as caught:
            async with portal.open_context(function):
                await trio.sleep_forever()
        assert caught.value.boxed_type is boxed
        await portal.cancel_actor()

    run_tree(body)


def test_child_that_cancelled_itself_is_the_canceller(run_tree):
    """The opening side raises, since the cancellation was none of its own."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(ContextCancelled) as caught:
            async with portal.open_context(cancel_then_sleep):
                await trio.sleep_forever()
        assert caught.value.canceller == portal.chan.aid.uid
        await portal.cancel_actor()

    run_tree(body)


def test_a_task_that_ended_without_a_word_is_confirmed(run_tree):
    """Its last word would have come before the answer to the cancel request."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(stop_serving) as (ctx, _):
            await ctx.cancel()
            assert await ctx.wait_for_result() is ctx.outcome
        assert isinstance(ctx.outcome, ContextCancelled)
        assert ctx.outcome.canceller == tractor.current_actor().aid.uid
        await portal.cancel_actor()

    run_tree(body)


def test_an_actor_that_was_asked_to_end_is_not_lost(run_tree):
    """Its context's block is left silently, though no outcome ever came."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(stop_serving) as (ctx, _):
            await portal.cancel_actor()
        assert ctx.outcome is Unresolved

    run_tree(body)


def test_a_flood_is_cut_off_silently(run_tree):
    """Nobody tells the child of an overrun while it is asked to end."""

    async def body(an):
        portal = await start(an)
        for _ in range(5):
            async with portal.open_context(flood) as (ctx, _):
                async with ctx.open_stream(msg_buffer_size=1):
                    await ctx.cancel()
        await portal.cancel_actor()

    run_tree(body)


@pytest.mark.parametrize('cancelled_first', [True, False])
def test_an_overrun_is_absorbed_after_a_cancellation(run_tree, cancelled_first):
    """One that came before it is an error as any other."""

    async def body(an):
        portal = await start(an)

        async def overrun_and_cancel():
            async with portal.open_context(flood) as (ctx, _):
                error = RemoteActorError(
                    'too many', boxed_type=StreamOverrun, sender=portal.chan.aid.uid
                )
                if cancelled_first:
                    ctx._cancel_called = True
                ctx._set_remote_error(error)
                await ctx.cancel()
            assert ctx.outcome is error

        if cancelled_first:
            await overrun_and_cancel()
        else:
            with pytest.raises(RemoteActorError, match='too many'):
                await overrun_and_cancel()
        await portal.cancel_actor()

    run_tree(body)


def test_an_error_that_leaves_the_block_is_also_the_local_one(run_tree):
    """Caught in the body it is not, until the block raises it again."""

    async def body(an):
        portal = await start(an)
        seen = []

        async def catch_in_body():
            async with portal.open_context(fail) as (ctx, _):
                seen.append(ctx)
                with pytest.raises(RemoteActorError, match='told'):
                    await ctx.wait_for_result()
                assert ctx._local_error is None

        with pytest.raises(RemoteActorError, match='told') as caught:
            await catch_in_body()
        assert seen[0]._local_error is seen[0]._remote_error is caught.value
        await portal.cancel_actor()

    run_tree(body)
