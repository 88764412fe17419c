"""What leaves an actor nursery, for each way in which its body and children end."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import tractor
from tractor import RemoteActorError
from tractor._exceptions import RuntimeFailure
from tractor.msg.types import SpawnSpec


async def fail(message: str = 'on purpose') -> None:
    raise ValueError(message)


async def give(value: object) -> object:
    return value


async def fail_below(count: int) -> None:
    async with tractor.open_nursery() as an:
        for index in range(count):
            await an.run_in_actor(fail, name=f'leaf_{index}')


met = trio.Event()


async def outlive(other: str) -> str:
    async with tractor.wait_for_actor(other):
        met.set()
    while True:
        async with tractor.find_actor(other) as portal:
            if portal is None:
                return 'outlived'


async def wait_until_met() -> None:
    await met.wait()


async def open_another_root() -> None:
    async with tractor.open_root_actor():
        raise AssertionError('it was opened')


@tractor.context
async def serve(ctx: tractor.Context) -> None:
    await ctx.started()
    await trio.sleep_forever()


@tractor.context
async def count_up(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        number = 0
        async for _ in stream:
            await stream.send(number)
            number += 1


async def ignore_terminate() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    block_soon = trio.lowlevel.current_trio_token()
    block_soon.run_sync_soon(time.sleep, 60)


@tractor.context
async def block(ctx: tractor.Context) -> None:
    await ctx.started()
    time.sleep(60)  # noqa: ASYNC251  blocking is the point


@tractor.context
async def block_below(ctx: tractor.Context) -> None:
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('blocker', enable_modules=[__name__])
        async with portal.open_context(block) as (_, value):
            await ctx.started(value)
            await trio.sleep_forever()


async def settle(portal: tractor.Portal) -> None:
    """Return when everything the child sent so far has arrived: channels are FIFO."""
    assert await portal.run(give, value=1) == 1


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a program that opens its own root, under a deadline."""

    async def bounded() -> Any:
        with trio.fail_after(30):
            return await main()

    return trio.run(bounded)


# -- children fail ---------------------------------------------------------------------


def test_one_failed_child_is_raised_bare(run_tree):
    """The only error surfaces in no group, and idle daemons are cancelled."""
    nurseries = []

    async def body(an):
        nurseries.append(an)
        await an.start_actor('idle_1')
        await an.start_actor('idle_2')
        await an.run_in_actor(fail)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError
    [an] = nurseries
    assert an.cancel_called
    assert an._children == {}
    assert an.exited.is_set()


def test_every_failed_child_is_raised(run_tree):
    """All run-once children are waited for, and each error is collected once."""
    count = 5

    async def body(an):
        for index in range(count):
            await an.run_in_actor(fail, name=f'failing_{index}')

    with pytest.raises(ExceptionGroup) as caught:
        run_tree(body)
    assert type(caught.value) is ExceptionGroup
    assert caught.value.message == 'tractor.ActorNursery errored with'
    assert [error.boxed_type for error in caught.value.exceptions] == (
        [ValueError] * count
    )
    assert {error.src_uid[0] for error in caught.value.exceptions} == {
        f'failing_{index}' for index in range(count)
    }


def test_failure_leaves_running_siblings_their_time(reg_addr):
    """After a clean body, a failed run-once child does not cancel the others."""

    portals = []

    async def tree():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            await an.run_in_actor(fail, name='failing')
            slow = await an.run_in_actor(outlive, name='slow', other='failing')
            portals.append(slow)
            await slow.run(wait_until_met)

    async def main():
        with pytest.raises(RemoteActorError, match='on purpose'):
            await tree()
        return await portals[0].wait_for_result()

    assert run(main) == 'outlived'


def test_awaited_failure_is_raised_once(run_tree):
    """An error the body got from `wait_for_result()` is not collected again."""

    async def body(an):
        portal = await an.run_in_actor(fail)
        await portal.wait_for_result()

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError


def test_failure_that_had_arrived_joins_the_awaited_one(run_tree):
    """An error delivered but not consumed is collected with the body's own."""

    async def body(an):
        first = await an.run_in_actor(fail, name='first', message='one')
        await settle(first)
        second = await an.run_in_actor(fail, name='second', message='two')
        await second.wait_for_result()

    with pytest.raises(ExceptionGroup) as caught:
        run_tree(body)
    names = [error.src_uid[0] for error in caught.value.exceptions]
    assert names == ['second', 'first']


def test_wrong_arguments_fail_the_call(run_tree):
    """The error comes from `run_in_actor()` itself, boxed and bare."""

    async def body(an):
        with pytest.raises(RemoteActorError) as caught:
            await an.run_in_actor(fail, nonsense=1)
        assert caught.value.boxed_type is TypeError
        raise caught.value

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is TypeError


def test_sync_function_is_refused(run_tree):
    """Only async functions can be run, which is said before anything is started."""

    async def body(an):
        with pytest.raises(TypeError, match='must be an async function'):
            await an.run_in_actor(len)
        assert an._children == {}

    run_tree(body)


def test_failed_call_to_a_daemon_is_raised_bare(run_tree):
    """Run-once children that sleep or have finished add nothing to the body's error."""

    async def body(an):
        await an.run_in_actor(trio.sleep_forever)
        finished = await an.run_in_actor(give, value=3)
        assert await finished.wait_for_result() == 3
        daemon = await an.start_actor('daemon', enable_modules=[__name__])
        await daemon.run(fail)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError
    assert caught.value.src_uid[0] == 'daemon'


def test_failing_leaves_of_two_branches(run_tree):
    """Each direct child relays the group which its own nursery raised."""

    async def body(an):
        for index in range(2):
            await an.run_in_actor(fail_below, name=f'branch_{index}', count=2)

    with pytest.raises(ExceptionGroup) as caught:
        run_tree(body)
    assert [error.boxed_type for error in caught.value.exceptions] == (
        [ExceptionGroup] * 2
    )
    assert {error.src_uid[0] for error in caught.value.exceptions} == {
        'branch_0',
        'branch_1',
    }


# -- the body fails --------------------------------------------------------------------


def test_interrupt_of_a_busy_tree_is_raised_bare(run_tree):
    """A `KeyboardInterrupt` in the body ends streams, sleeps and contexts below."""
    nurseries = []

    async def body(an):
        nurseries.append(an)
        await an.run_in_actor(trio.sleep_forever)
        portal = await an.start_actor('daemon', enable_modules=[__name__])
        async with (
            portal.open_context(serve),
            portal.open_context(count_up) as (ctx, _),
            ctx.open_stream() as stream,
        ):
            await stream.send(None)
            assert await stream.receive() == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tree(body)
    assert nurseries[0]._children == {}


def test_error_over_a_blocked_grandchild_is_raised_bare(run_tree):
    """A process stuck in synchronous code two levels down is ended in bounded time."""
    raised_at = []

    async def body(an):
        portal = await an.start_actor('middle', enable_modules=[__name__])
        async with portal.open_context(block_below):
            raised_at.append(time.monotonic())
            raise AssertionError('of the body')

    with pytest.raises(AssertionError, match='of the body'):
        run_tree(body)
    assert time.monotonic() - raised_at[0] < 4


def test_cancelled_children_add_nothing(run_tree):
    """A run-once child cancelled by the teardown gives no error of its own."""

    async def body(an):
        for index in range(3):
            await an.run_in_actor(trio.sleep_forever, name=f'sleeper_{index}')
        raise ValueError('of the body')

    with pytest.raises(ValueError, match='of the body'):
        run_tree(body)


def test_lone_leaf_of_a_group_is_raised_bare(run_tree):
    """A group around one error, made by a nursery of the user, is collapsed."""

    async def body(an):
        await an.start_actor('idle')
        async with trio.open_nursery() as tn:
            tn.start_soon(fail)

    with pytest.raises(ValueError, match='on purpose') as caught:
        run_tree(body)
    notes = [note for note in caught.value.__notes__ if 'collapsed' in note]
    assert notes == ['( ^^^ this exc was collapsed from a group ^^^ )']


def test_group_of_the_body_is_not_wrapped_again(run_tree):
    """Several errors of the body surface as the one group which they came in."""

    async def body(an):
        portal = await an.start_actor('daemon', enable_modules=[__name__])
        barrier = trio.Event()

        async def call():
            try:
                await portal.run(fail)
            finally:
                # Both calls fail before either task ends and cancels the other.
                arrived.append(1)
                if len(arrived) == 2:
                    barrier.set()
                with trio.CancelScope(shield=True):
                    await barrier.wait()

        arrived = []
        async with trio.open_nursery() as tn:
            tn.start_soon(call)
            tn.start_soon(call)

    with pytest.raises(ExceptionGroup) as caught:
        run_tree(body)
    assert [type(error) for error in caught.value.exceptions] == [RemoteActorError] * 2


def test_outer_scope_that_expires_leaves_quietly(reg_addr):
    """The cancellation is the scope's to absorb, and the nursery was cancelled."""

    async def main():
        with trio.move_on_after(30) as scope:
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                await an.start_actor('idle')
                await an.run_in_actor(trio.sleep_forever)
                scope.deadline = trio.current_time()
                await trio.sleep_forever()
        return scope.cancelled_caught, an.cancel_called, an._children

    assert run(main) == (True, True, {})


def test_outer_scope_that_expires_while_joining(reg_addr):
    """Cancelled at its end, after a clean body, the nursery cancels its children."""

    async def main():
        with trio.move_on_after(30) as scope:
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                await an.run_in_actor(trio.sleep_forever)
                scope.deadline = trio.current_time() + 0.05
        return scope.cancelled_caught, an.cancel_called, an._children

    assert run(main) == (True, True, {})


# -- nothing fails ---------------------------------------------------------------------


def test_results_are_kept_after_the_block(reg_addr):
    """A result pulled at the nursery's end can be asked for afterwards, also `None`."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            portals = [
                await an.run_in_actor(give, name=f'child_{value}', value=value)
                for value in ('x', None)
            ]
        return [await portal.wait_for_result() for portal in portals]

    assert run(main) == ['x', None]


def test_cancel_lets_the_body_go_on(reg_addr):
    """After `cancel()` the body runs to its end and the block is left cleanly."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            await an.start_actor('idle')
            await an.cancel()
            await trio.lowlevel.checkpoint()
            went_on = True
        return went_on, an.cancel_called, an._children

    assert run(main) == (True, True, {})


def test_cancel_can_be_repeated(run_tree):
    """Cancelling again, or cancelling nothing, is fine."""

    async def body(an):
        await an.cancel()
        await an.cancel()

    run_tree(body)


def test_hard_cancel_skips_the_request(run_tree, monkeypatch):
    """`hard_kill` asks nobody, so that a child which cannot answer costs no wait."""
    asked = []
    cancel_actor = tractor.Portal.cancel_actor

    async def ask(portal, *args, **kwargs):
        asked.append(portal)
        return await cancel_actor(portal, *args, **kwargs)

    monkeypatch.setattr(tractor.Portal, 'cancel_actor', ask)

    async def body(an):
        portal = await an.start_actor('blocker', enable_modules=[__name__])
        async with trio.open_nursery() as tn:

            async def hold():
                async with portal.open_context(block):
                    blocked.set()
                    await trio.sleep_forever()

            blocked = trio.Event()
            tn.start_soon(hold)
            await blocked.wait()
            await an.cancel(hard_kill=True)
            tn.cancel_scope.cancel()

    run_tree(body)
    assert asked == []


@pytest.mark.skipon_spawn_backend('subint', reason='a process ignores a signal')
def test_hard_cancel_terminates_once_and_kills(run_tree):
    """A child that ignores the one `SIGTERM` is killed 1.6 s later."""
    signals = []

    async def body(an):
        portal = await an.start_actor('deaf', enable_modules=[__name__])
        await portal.run(ignore_terminate)
        [(_, proc, _)] = an._children.values()
        terminate = proc.terminate
        proc.terminate = lambda: (signals.append('SIGTERM'), terminate())
        began.append(time.monotonic())
        await an.cancel(hard_kill=True)

    began = []
    run_tree(body)
    assert signals == ['SIGTERM']
    assert time.monotonic() - began[0] > 1.5


def test_cancelled_run_once_child_is_no_error(run_tree):
    """`cancel_actor()` on a run-once child, then a clean body: nothing is raised."""

    async def body(an):
        portal = await an.run_in_actor(trio.sleep_forever)
        assert await portal.cancel_actor() is True

    run_tree(body)


def test_children_are_started_concurrently(run_tree):
    """Several tasks may start children in one nursery at once."""

    async def body(an):
        names = {f'child_{index}' for index in range(4)}
        async with trio.open_nursery() as tn:
            for name in names:
                tn.start_soon(an.start_actor, name)
        assert {uid[0] for uid in an._children} == names
        await an.cancel()

    run_tree(body)


# -- booting ---------------------------------------------------------------------------


def test_bad_module_name_is_raised_as_it_is(run_tree):
    """The parent imports enabled modules first, so the import error is its own."""

    async def body(an):
        await an.start_actor('child', enable_modules=['no.such.module'])

    with pytest.raises(ModuleNotFoundError, match=r"No module named 'no'"):
        run_tree(body)


def test_second_root_is_refused(run_tree):
    """One process has one runtime."""

    async def body(an):
        async with tractor.open_root_actor():
            raise AssertionError('it was opened')

    with pytest.raises(RuntimeFailure, match='A current actor already exists'):
        run_tree(body)


def test_root_in_a_child_is_refused(run_tree):
    """The same in a child reaches the caller boxed."""

    async def body(an):
        await an.run_in_actor(open_another_root)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is RuntimeFailure


def test_first_nursery_boots_the_root(reg_addr):
    """The nursery that found no runtime says so, and its runtime ends with it."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            assert an._implicit_runtime_started
            assert tractor.current_actor().name == 'root'
            # Arguments for a runtime that is already there are ignored.
            async with tractor.open_nursery(debug_mode=True, name='x') as inner:
                assert not inner._implicit_runtime_started
                assert tractor.current_actor().name == 'root'

    run(main)
    assert tractor.current_actor(err_on_no_runtime=False) is None


def test_start_cancelled_at_its_last_step_ends_the_child(run_tree, monkeypatch):
    """The orders are out, the caller does not wait any more: nobody owns the child."""
    scope = trio.CancelScope()
    send = tractor.Channel.send

    async def send_then_cancel(chan, msg, *args, **kwargs):
        await send(chan, msg, *args, **kwargs)
        if isinstance(msg, SpawnSpec):
            scope.cancel()

    monkeypatch.setattr(tractor.Channel, 'send', send_then_cancel)

    async def body(an):
        with scope:
            await an.start_actor('unwanted')
        assert scope.cancelled_caught
        assert not an._children

    run_tree(body)
