"""What a context block gives and raises, for each way in which the child ends it."""

from __future__ import annotations

import pytest
import trio

import tractor
from tractor import ModuleNotExposed, MsgTypeError, RemoteActorError
from tractor._context import Unresolved


@tractor.context
async def serve(ctx: tractor.Context) -> None:
    await ctx.started()
    await trio.sleep_forever()


@tractor.context
async def answer(ctx: tractor.Context, value: object = None) -> object:
    await ctx.started(value)
    return value


@tractor.context
async def fail_before_started(ctx: tractor.Context) -> None:
    raise ValueError('before')


@tractor.context
async def fail_after_started(ctx: tractor.Context) -> None:
    await ctx.started()
    raise ValueError('after')


told_to_fail = trio.Event()


async def tell_to_fail() -> None:
    told_to_fail.set()


@tractor.context
async def fail_when_told(ctx: tractor.Context) -> None:
    await ctx.started()
    await told_to_fail.wait()
    raise ValueError('as told')


@tractor.context
async def fail_on_message(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        await stream.receive()
        raise ValueError('on message')


@tractor.context
async def never_start(ctx: tractor.Context) -> str:
    return 'done'


@tractor.context
async def start_twice(ctx: tractor.Context) -> None:
    await ctx.started()
    await ctx.started()


@tractor.context
async def send_and_return(ctx: tractor.Context, count: int) -> str:
    await ctx.started()
    async with ctx.open_stream() as stream:
        for number in range(count):
            await stream.send(number)
    return 'result'


async def fail() -> None:
    raise ValueError('of the leaf')


async def fail_below() -> None:
    async with tractor.open_nursery() as an:
        await an.run_in_actor(fail, name='leaf')


async def relay_failure() -> None:
    """Let the error of a grandchild's function escape."""
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('leaf', enable_modules=[__name__])
        await portal.run(fail)


async def plain() -> None: ...


async def start(an: tractor.ActorNursery, name: str = 'child') -> tractor.Portal:
    return await an.start_actor(name, enable_modules=[__name__])


# -- results ---------------------------------------------------------------------------


def test_result_is_known_inside_and_after_the_block(run_tree):
    """`wait_for_result()` gives the same object every time, and so does `outcome`."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(answer, value=['x', 1]) as (ctx, first):
            assert ctx.portal is portal
            assert ctx.side == 'parent'
            inside = await ctx.wait_for_result()
        assert first == inside == ['x', 1]
        assert await ctx.wait_for_result() is inside
        assert ctx.outcome is inside
        assert ctx.has_outcome
        assert ctx.maybe_error is None
        assert not ctx.cancel_called
        assert ctx.canceller is None
        await an.cancel()

    run_tree(body)


def test_outcome_is_unresolved_while_the_child_runs(run_tree):
    """The sentinel is the class itself."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve) as (ctx, _):
            assert ctx.outcome is Unresolved
            assert not ctx.has_outcome
            await ctx.cancel()
        await an.cancel()

    run_tree(body)


def test_stream_messages_nobody_asked_for_are_skipped(run_tree):
    """A parent that opened no stream gets the result behind them."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(send_and_return, count=20) as (ctx, _):
            assert await ctx.wait_for_result() == 'result'
        await an.cancel()

    run_tree(body)


def test_result_outlives_the_actor(run_tree):
    """Cancelling an actor after its task returned changes nothing about the result."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(answer, value=7) as (ctx, _):
            assert await ctx.wait_for_result() == 7
            await portal.cancel_actor()
        assert ctx.outcome == 7
        assert ctx.maybe_error is None

    run_tree(body)


def test_waiting_for_a_result_can_time_out(run_tree):
    """The context stays usable when the wait was cancelled from outside."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve) as (ctx, _):
            with trio.move_on_after(0.01) as scope:
                await ctx.wait_for_result()
            assert scope.cancelled_caught
            await ctx.cancel()
        assert ctx.cancel_acked
        await an.cancel()

    run_tree(body)


# -- errors of the child ---------------------------------------------------------------


@pytest.mark.parametrize(
    ('function', 'text'),
    [(fail_before_started, 'before'), (fail_after_started, 'after')],
)
def test_error_of_the_child_is_raised_bare(run_tree, function, text):
    """Before or after the first value, the block raises the boxed error."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(function):
            await trio.sleep_forever()

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError
    assert f'ValueError: {text}' in caught.value.tb_str


def test_error_caught_in_the_body_is_raised_at_the_end(run_tree):
    """A remote error can be observed in the body, but not be hidden there."""
    contexts = []

    async def body(an):
        portal = await start(an)
        async with (
            trio.open_nursery() as tn,
            portal.open_context(fail_when_told) as (ctx, _),
        ):
            contexts.append(ctx)
            tn.start_soon(portal.run, tell_to_fail)
            with pytest.raises(RemoteActorError) as caught:
                await ctx.wait_for_result()
            assert caught.value is ctx._remote_error is ctx.maybe_error is ctx.outcome
            assert ctx._local_error is None

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value is contexts[0]._remote_error


def test_error_ends_the_outer_of_two_contexts(run_tree):
    """A parent asleep in two contexts gets the bare error of the one that failed."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(fail_on_message) as (outer, _):
            async with portal.open_context(serve):
                async with outer.open_stream() as stream:
                    await stream.send('fail')
                    await trio.sleep_forever()

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError


def test_error_ends_the_inner_of_two_contexts(run_tree):
    """The same with the failing one inside."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve):
            async with portal.open_context(fail_on_message) as (inner, _):
                async with inner.open_stream() as stream:
                    await stream.send('fail')
                    await trio.sleep_forever()

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError


def test_error_in_one_task_leaves_the_others_alone(run_tree):
    """The child goes on serving after one of its tasks failed."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve) as (ctx, _):
            with pytest.raises(RemoteActorError):
                await portal.run(fail)
            assert not ctx.has_outcome
            await ctx.cancel()
        await an.cancel()

    run_tree(body)


def test_error_of_a_grandchild_is_relayed(run_tree):
    """Its source is kept, the box is what the middle actor raised."""

    async def body(an):
        portal = await start(an, 'middle')
        await portal.run(relay_failure)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    error = caught.value
    assert error.boxed_type is RemoteActorError
    assert error.src_type is ValueError
    assert error.src_uid[0] == 'leaf'
    assert error.relay_uid[0] == 'middle'
    assert [uid[0] for uid in error.relay_path] == ['leaf', 'middle']


def test_error_of_a_grandchild_passes_a_nursery(run_tree):
    """A lone error collected by the middle actor's nursery is relayed the same way."""

    async def body(an):
        await an.run_in_actor(fail_below, name='middle')

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is RemoteActorError
    assert caught.value.src_type is ValueError
    assert caught.value.relay_uid[0] == 'middle'


def test_child_that_never_starts_is_an_error(run_tree):
    """A function which returns without `started()` does not hang its caller."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(Exception, match=r'started\(\)'):
            await enter(portal, never_start)
        await an.cancel()

    run_tree(body)


async def enter(portal, function, **kwargs):
    """Open a context whose block must not be reached."""
    async with portal.open_context(function, **kwargs):
        raise AssertionError('the block was entered')


# -- calls that fail at entry ----------------------------------------------------------


def test_wrong_arguments_are_refused_at_entry(run_tree):
    """The child's `TypeError` is raised by the entry, boxed."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError) as caught:
            await enter(portal, answer, nonsense=1)
        assert caught.value.boxed_type is TypeError
        await an.cancel()

    run_tree(body)


def test_unexposed_module_is_refused_at_entry(run_tree):
    """A child serves only the modules it was started with."""

    async def body(an):
        portal = await an.start_actor('closed')
        with pytest.raises(RemoteActorError) as caught:
            await enter(portal, serve)
        assert caught.value.boxed_type is ModuleNotExposed
        await an.cancel()

    run_tree(body)


def test_function_without_the_decorator_is_refused(run_tree):
    """A plain coroutine function cannot be the other side of a context."""

    async def body(an):
        portal = await start(an)
        with pytest.raises((TypeError, RemoteActorError)):
            await enter(portal, plain)
        await an.cancel()

    run_tree(body)


def test_arguments_that_cannot_be_encoded_are_refused(run_tree):
    """The error is local, and nothing was started."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(MsgTypeError):
            await enter(portal, answer, value=object())
        await an.cancel()

    run_tree(body)


def test_second_started_is_refused(run_tree):
    """One context has one first value."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(start_twice):
            await trio.sleep_forever()

    with pytest.raises(RemoteActorError, match=r'called \.started\(\) twice') as caught:
        run_tree(body)
    assert caught.value.boxed_type is RuntimeError


def test_child_side_calls_are_refused_on_the_parent_side(run_tree):
    """Only the child has a first value to send."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(serve) as (ctx, _):
            with pytest.raises(RuntimeError):
                await ctx.started()
            await ctx.cancel()
        await an.cancel()

    run_tree(body)


# -- current context -------------------------------------------------------------------


def test_current_context_is_the_one_of_the_block(run_tree):
    """It is set in the block and what it was before afterwards."""

    async def body(an):
        portal = await start(an)
        assert tractor.current_ipc_ctx() is None
        async with portal.open_context(serve) as (outer, _):
            assert tractor.current_ipc_ctx() is outer
            async with portal.open_context(serve) as (inner, _):
                assert tractor.current_ipc_ctx() is inner
                await inner.cancel()
            assert tractor.current_ipc_ctx() is outer
            await outer.cancel()
        assert tractor.current_ipc_ctx() is None
        await an.cancel()

    run_tree(body)


# -- errors that cannot be shown -------------------------------------------------------


class Unshowable(Exception):
    def __repr__(self) -> str:
        raise AttributeError('no such field')


async def never_ends(ended: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        ended.set()


@tractor.context
async def fail_unshowably(ctx: tractor.Context, in_group: bool) -> None:
    error = Unshowable('x')
    others = [error, Unshowable('y')]
    raise ExceptionGroup('several', others) if in_group else error


@tractor.context
async def fail_unshowably_beside_a_task(ctx: tractor.Context) -> None:
    task_ended = trio.Event()
    ctx._scope_nursery.start_soon(never_ends, task_ended)
    await ctx.started()
    raise Unshowable('x')


@pytest.mark.parametrize(
    ('function', 'kwargs', 'name'),
    [
        (fail_unshowably, {'in_group': False}, 'Unshowable'),
        (fail_unshowably, {'in_group': True}, 'ExceptionGroup'),
        (fail_unshowably_beside_a_task, {}, 'Unshowable'),
    ],
)
def test_an_error_that_cannot_be_shown_ends_its_task_only(
    run_tree, function, kwargs, name
):
    """It is shipped like any other, and the child goes on serving."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError) as caught:
            async with portal.open_context(function, **kwargs) as (ctx, _):
                await ctx.wait_for_result()
        assert caught.value.boxed_type_str == name
        assert 'Unshowable' in caught.value.tb_str
        await portal.run(plain)
        await an.cancel()

    run_tree(body)
