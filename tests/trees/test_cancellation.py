"""Who may cancel what across a tree, what it raises where, and how long it takes."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest
import trio

import tractor
from tractor import ContextCancelled, RemoteActorError, TransportClosed


async def answer() -> int:
    return 42


@tractor.context
async def serve(ctx: tractor.Context) -> None:
    await ctx.started()
    await trio.sleep_forever()


@tractor.context
async def fail_when_cancelled(ctx: tractor.Context) -> None:
    await ctx.started()
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError('while cancelled')


@tractor.context
async def cancel_itself_before_started(ctx: tractor.Context) -> None:
    await ctx.cancel()
    await trio.sleep_forever()


@tractor.context
async def cancel_itself(ctx: tractor.Context) -> None:
    await ctx.started()
    await told_to_cancel.wait()
    await ctx.cancel()
    await trio.sleep_forever()


@tractor.context
async def send_what_cannot_be_encoded(ctx: tractor.Context) -> None:
    """Fail in `started()` with another context open, and cancel that on the way out."""
    async with tractor.wait_for_actor('other') as portal:
        async with portal.open_context(serve) as (other, _):
            try:
                await ctx.started(object())
            finally:
                await other.cancel()


@tractor.context
async def record_own_cancellation(ctx: tractor.Context) -> None:
    await ctx.started()
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        seen.update(
            cancel_called=ctx._scope.cancel_called,
            cancelled_caught=ctx._scope.cancelled_caught,
            has_cancel_msg=bool(ctx._cancel_msg),
            has_error=bool(ctx.maybe_error),
            has_result=ctx._final_result_is_set(),
            canceller=ctx.canceller,
        )
        raise


seen: dict[str, object] = {}


async def what_was_seen() -> dict[str, object]:
    return seen


async def cancel_actor(name: str) -> None:
    async with tractor.wait_for_actor(name) as portal:
        assert await portal.cancel_actor()


@tractor.context
async def hold_victim(ctx: tractor.Context) -> None:
    async with tractor.wait_for_actor('victim') as portal:
        async with portal.open_context(serve):
            await ctx.started()
            await trio.sleep_forever()


@tractor.context
async def serve_through_grandchild(ctx: tractor.Context) -> None:
    async with tractor.open_nursery() as an:
        await start(an, 'grandchild')
        await ctx.started()
        await trio.sleep_forever()


@tractor.context
async def block(ctx: tractor.Context) -> None:
    await ctx.started()
    time.sleep(60)  # noqa: ASYNC251  blocking is the point


told_to_cancel = trio.Event()


async def tell_to_cancel() -> None:
    told_to_cancel.set()


async def start_grandchild() -> None:
    """Start it from a task that outlives this call."""

    async def keep() -> None:
        async with tractor.open_nursery() as an:
            await start(an, 'grandchild')
            await trio.sleep_forever()

    tractor.current_actor()._service_tn.start_soon(keep)


async def write_at_exit(path: str) -> None:
    def write() -> None:
        with open(path, 'a') as file:
            file.write('x')

    tractor.current_actor().lifetime_stack.callback(write)


async def start(an: tractor.ActorNursery, name: str = 'child') -> tractor.Portal:
    return await an.start_actor(name, enable_modules=[__name__])


async def enter(portal, function, **kwargs):
    """Open a context whose block must not be reached."""
    async with portal.open_context(function, **kwargs):
        raise AssertionError('the block was entered')


def own_uid() -> tuple[str, str]:
    return tractor.current_actor().aid.uid


# -- this side cancels -----------------------------------------------------------------


def test_own_cancel_is_absorbed(run_tree):
    """Nothing is raised, and the acknowledgement is the result."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve) as (ctx, _):
            await ctx.cancel()
            result = await ctx.wait_for_result()
            assert isinstance(result, ContextCancelled)
            assert result.canceller == own_uid()
            assert ctx.cancel_acked
        assert ctx.cancel_called
        assert ctx.canceller == own_uid()
        assert not ctx._scope.cancelled_caught
        assert ctx._remote_error is ctx._local_error is ctx.maybe_error is ctx.outcome
        await an.cancel()

    run_tree(body)


def test_cancel_by_another_local_task_is_absorbed(run_tree):
    """A body asleep elsewhere is ended silently when another task cancels."""

    async def body(an):
        portal = await start(an)
        async with trio.open_nursery() as tn:
            async with portal.open_context(serve) as (ctx, _):
                tn.start_soon(ctx.cancel)
                await trio.sleep_forever()
            assert ctx.cancel_called
        await an.cancel()

    run_tree(body)


def test_real_error_beats_a_concurrent_cancel(run_tree):
    """A child that fails while being cancelled has failed."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(fail_when_cancelled) as (ctx, _):
            await ctx.cancel()

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError


def test_error_of_the_body_cancels_the_child(run_tree):
    """The body's error is raised bare, and the remote task was asked to stop."""
    contexts = []

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve) as (ctx, _):
            contexts.append(ctx)
            raise ValueError('of the body')

    with pytest.raises(ValueError, match='of the body') as caught:
        run_tree(body)
    [ctx] = contexts
    assert ctx.cancel_called
    assert ctx._local_error is caught.value


def test_cancelled_body_cancels_the_child(run_tree):
    """A local cancellation is passed on before it goes on its way."""

    async def body(an):
        portal = await start(an)
        with trio.CancelScope() as scope:
            async with portal.open_context(record_own_cancellation) as (ctx, _):
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert ctx.cancel_called
        assert (await portal.run(what_was_seen))['cancel_called']
        await an.cancel()

    run_tree(body)


def test_child_sees_who_cancels_it(run_tree):
    """In its handler the scope is cancelled, the request known, no error or result."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(record_own_cancellation) as (ctx, _):
            await ctx.cancel()
        assert await portal.run(what_was_seen) == {
            'cancel_called': True,
            'cancelled_caught': False,
            'has_cancel_msg': True,
            'has_error': False,
            'has_result': False,
            'canceller': list(own_uid()),
        }
        await an.cancel()

    run_tree(body)


def test_cancelling_the_actor_is_raised(run_tree):
    """Without `Context.cancel()` the end was not asked of this context."""
    contexts, uids = [], []

    async def hold(portal, opened):
        async with portal.open_context(serve) as (ctx, _):
            contexts.append(ctx)
            opened.set()
            await trio.sleep_forever()

    async def body(an):
        portal = await start(an)
        uids.append(own_uid())
        opened = trio.Event()
        async with trio.open_nursery() as tn:
            tn.start_soon(hold, portal, opened)
            await opened.wait()
            assert await portal.cancel_actor()

    with pytest.raises(ContextCancelled) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ContextCancelled
    assert caught.value.canceller == uids[0]
    assert not contexts[0].cancel_called
    assert not contexts[0].cancel_acked


def test_cancelling_the_actor_in_the_body_is_raised(run_tree):
    """The outcome is known, though the peer is gone when the block ends."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve):
            assert await portal.cancel_actor()

    with pytest.raises(ContextCancelled):
        run_tree(body)


# -- somebody else cancels -------------------------------------------------------------


def test_child_that_cancels_itself_at_once(run_tree):
    """The cancellation is raised by the entry and names the child."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(ContextCancelled) as caught:
            await enter(portal, cancel_itself_before_started)
        assert caught.value.canceller == portal.chan.aid.uid
        assert 'itself' in caught.value.tb_str
        await an.cancel()

    run_tree(body)


def test_child_that_cancels_itself_later(run_tree):
    """The block raises, since this side asked for nothing."""
    contexts = []

    async def body(an):
        portal = await start(an)
        async with portal.open_context(cancel_itself) as (ctx, _):
            contexts.append(ctx)
            await portal.run(tell_to_cancel)
            await trio.sleep_forever()

    with pytest.raises(ContextCancelled) as caught:
        run_tree(body)
    [ctx] = contexts
    assert caught.value.canceller == ctx.canceller == ctx.chan.aid.uid
    assert not ctx.cancel_called


def test_third_actor_cancels_the_child(run_tree):
    """The error names the third actor, the context the peer which told us."""
    contexts, uids = [], []

    async def body(an):
        child, third = await start(an), await start(an, 'third')
        uids.append(third.chan.aid.uid)
        async with trio.open_nursery() as tn:
            async with child.open_context(serve) as (ctx, _):
                contexts.append(ctx)
                tn.start_soon(partial(third.run, cancel_actor, name='child'))
                await trio.sleep_forever()

    with pytest.raises(ContextCancelled) as caught:
        run_tree(body)
    assert caught.value.canceller == uids[0]
    assert caught.value.boxed_type is ContextCancelled
    [ctx] = contexts
    assert ctx.canceller == ctx.chan.aid.uid
    assert not ctx.cancel_called
    assert not ctx.cancel_acked


def test_body_replaces_a_foreign_cancellation(run_tree):
    """An error raised in its place wins, and cancels every open context."""
    contexts = []

    async def replace_the_end_of(ctx):
        try:
            await ctx.wait_for_result()
        except ContextCancelled:
            raise RuntimeError('instead') from None

    async def body(an):
        child, other = await start(an), await start(an, 'other')
        third = await start(an, 'third')
        async with (
            trio.open_nursery() as tn,
            other.open_context(serve) as (outer, _),
            child.open_context(serve) as (inner, _),
        ):
            contexts.extend((outer, inner))
            tn.start_soon(partial(third.run, cancel_actor, name='child'))
            await replace_the_end_of(inner)

    with pytest.raises(RuntimeError, match='instead') as caught:
        run_tree(body)
    assert type(caught.value) is RuntimeError
    assert [ctx.cancel_called for ctx in contexts] == [True, True]


def test_foreign_cancellation_passes_an_unrelated_context(run_tree):
    """An outer context is not cancelled by an inner one's `ContextCancelled`."""
    contexts = []

    async def body(an):
        child, other = await start(an), await start(an, 'other')
        async with other.open_context(serve) as (outer, _):
            contexts.append(outer)
            async with child.open_context(cancel_itself):
                await child.run(tell_to_cancel)
                await trio.sleep_forever()

    with pytest.raises(ContextCancelled) as caught:
        run_tree(body)
    [outer] = contexts
    assert not outer.cancel_called
    assert outer._local_error is caught.value


def test_real_error_beats_cancelling_another_context(run_tree):
    """A value that cannot be encoded is a `TypeError`, whatever is cancelled then."""

    async def body(an):
        await start(an, 'other')
        portal = await start(an)
        await enter(portal, send_what_cannot_be_encoded)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is TypeError
    assert caught.value.src_uid[0] == 'child'


def test_relayed_cancellation_keeps_its_canceller(run_tree):
    """An actor that passes a foreign cancellation upward does not put itself there."""
    uids = []

    async def body(an):
        await start(an, 'victim')
        middle, third = await start(an, 'middle'), await start(an, 'third')
        uids.append(third.chan.aid.uid)
        async with trio.open_nursery() as tn:
            async with middle.open_context(hold_victim):
                tn.start_soon(partial(third.run, cancel_actor, name='victim'))
                await trio.sleep_forever()

    with pytest.raises(ContextCancelled) as caught:
        run_tree(body)
    assert caught.value.canceller == uids[0]
    assert caught.value.src_uid[0] == 'middle'


# -- whole trees -----------------------------------------------------------------------


def test_cancelled_task_takes_its_subtree_along(run_tree):
    """When the cancel is acknowledged, what the task had started is gone."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve_through_grandchild) as (ctx, _):
            async with tractor.wait_for_actor('grandchild'):
                pass
            await ctx.cancel()
        async with tractor.find_actor('grandchild') as gone:
            assert gone is None
        await an.cancel()

    run_tree(body)


def test_cancelled_actor_takes_its_subtree_along(run_tree):
    """`cancel_actor()` ends the actor's children with it, in order."""

    async def body(an):
        portal = await start(an)
        await portal.run(start_grandchild)
        async with tractor.wait_for_actor('grandchild') as grandchild:
            await portal.cancel_actor()
            with trio.fail_after(5):
                await ended(grandchild)

    run_tree(body)


async def ended(portal: tractor.Portal) -> None:
    """Return when the peer is gone, however it goes."""
    try:
        async with portal.open_context(serve) as (ctx, _):
            await ctx.wait_for_result()
    except (RemoteActorError, TransportClosed):  # it may end before it serves this
        return
    raise AssertionError('it returned a result')


def test_idle_children_are_cancelled_quickly(run_tree):
    """The graceful request comes before any waiting for a kill."""
    began = []

    async def body(an):
        for index in range(3):
            portal = await start(an, f'idle_{index}')
            assert await portal.run(answer) == 42  # it imports nothing any more
        began.append(time.monotonic())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tree(body)
    assert time.monotonic() - began[0] < 2


def test_deaf_child_is_ended_in_bounded_time(run_tree):
    """A child that holds the interpreter in synchronous code cannot answer."""
    began = []

    async def body(an):
        portal = await start(an)
        async with portal.open_context(block):
            began.append(time.monotonic())
            raise ValueError('of the body')

    with pytest.raises(ValueError, match='of the body'):
        run_tree(body)
    assert time.monotonic() - began[0] < 4


def test_lifetime_stack_is_closed_before_the_nursery_ends(run_tree, tmp_path):
    """Callbacks of a child run once, on cancellation as well."""

    async def body(an):
        portal = await start(an)
        await portal.run(write_at_exit, path=str(tmp_path / 'left'))
        assert not (tmp_path / 'left').exists()
        await an.cancel()

    run_tree(body)
    assert (tmp_path / 'left').read_text() == 'x'


# -- signals ---------------------------------------------------------------------------


def test_interrupted_root_raises_it_bare(run_tree):
    """SIGINT in the root surfaces as one `KeyboardInterrupt`, within 2 s."""
    began = []

    async def body(an):
        portal = await start(an)
        assert await portal.run(answer) == 42  # it imports nothing any more
        began.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        run_tree(body)
    assert time.monotonic() - began[0] < 2


def test_interrupt_while_the_runtime_reads_is_the_programs(run_tree, monkeypatch):
    """It costs no connection: a child's call goes on until the program ends."""
    deliver = tractor.Context._deliver
    seen = []

    def interrupted(ctx, msg):
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        return deliver(ctx, msg)

    async def body(an):
        portal = await start(an)
        monkeypatch.setattr(tractor.Context, '_deliver', interrupted)
        try:
            assert await portal.run(answer) == 42
            await trio.sleep_forever()
        except KeyboardInterrupt:
            seen.append('interrupted')
            with trio.CancelScope(shield=True):
                seen.append(await portal.run(answer))
            raise

    with pytest.raises(KeyboardInterrupt):
        run_tree(body)
    assert seen == ['interrupted', 42]


@pytest.mark.skipon_spawn_backend('subint', reason='a signal is sent to a process')
def test_interrupted_child_ends_cleanly(run_tree, tmp_path):
    """SIGINT ends a child's runtime in order: exit status 0, its stack closed."""
    processes = []

    async def body(an):
        portal = await start(an)
        await portal.run(write_at_exit, path=str(tmp_path / 'left'))
        [(_, proc, _)] = an._children.values()
        processes.append(proc)
        os.kill(proc.pid, signal.SIGINT)
        with trio.fail_after(5):
            await ended(portal)

    run_tree(body)
    assert processes[0].poll() == 0
    assert (tmp_path / 'left').read_text() == 'x'
