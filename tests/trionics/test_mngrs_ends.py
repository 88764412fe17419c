"""Rules of `maybe_open_context()`: errors, cancellation, and who gets them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor.trionics import (
    _mngrs,
    collapse_eg,
    maybe_open_context,
)


def test_last_user_waits_for_the_exit_even_if_cancelled(kit):
    """The wait is shielded, and the cancellation is delivered afterwards."""
    gate = trio.Event()
    recorder = kit.Recorder(exit_gate=gate)
    ended = []

    async def user(tn, scope, is_body_cancelled):
        with scope:
            async with maybe_open_context(recorder, tn=tn):
                if is_body_cancelled:
                    await trio.sleep_forever()
            raise AssertionError('not delivered')
        assert scope.cancelled_caught
        ended.append(list(recorder.events))

    async def main(is_body_cancelled):
        async with kit.services() as tn, trio.open_nursery() as users:
            scope = trio.CancelScope()
            users.start_soon(user, tn, scope, is_body_cancelled)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            assert ended == []
            gate.set()
        assert ended == [['enter', 'exit']]

    for is_body_cancelled in (True, False):
        gate, ended[:] = trio.Event(), []
        recorder = kit.Recorder(exit_gate=gate)
        kit.run(main, is_body_cancelled)


@pytest.mark.parametrize('how', ['normal', 'cancelled', 'failed'])
def test_exit_error_is_raised_by_the_last_user(kit, how: str):
    """As the identical object, and instead of a cancellation or error under way."""
    error = ValueError('exit')
    recorder = kit.Recorder(exit_error=error)

    async def user(tn):
        with trio.CancelScope() as scope:
            async with maybe_open_context(recorder, tn=tn):
                if how == 'cancelled':
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
                elif how == 'failed':
                    raise KeyError('body')

    async def main():
        async with kit.services() as tn:
            with pytest.raises(ValueError, match='exit') as info:
                await kit.in_task(user, tn)
            assert info.value is error
            assert not tn.cancel_scope.cancel_called
        contexts = {'normal': type(None), 'cancelled': trio.Cancelled}
        assert isinstance(error.__context__, contexts.get(how, KeyError))

    kit.run(main)


def test_only_the_last_user_gets_the_exit_error(kit):
    """Those who left before it know nothing of it."""
    recorder = kit.Recorder(exit_error=ValueError('exit'))

    async def user(tn, leave, task_status):
        async with maybe_open_context(recorder, tn=tn):
            task_status.started()
            await leave.wait()

    async def last_user(tn, *args, task_status):
        with pytest.raises(ValueError, match='exit'):
            await user(tn, *args, task_status=task_status)

    async def main():
        async with kit.services() as tn, trio.open_nursery() as users:
            early, late = trio.Event(), trio.Event()
            await users.start(user, tn, early)
            await users.start(last_user, tn, late)
            early.set()
            await wait_all_tasks_blocked()
            late.set()

    kit.run(main)


def test_entry_error_reaches_the_first_user_and_leaves_no_trace(kit):
    """The identical object; the next attempt is a fresh miss."""
    error = ValueError('entry')
    recorder = kit.Recorder(entry_error=error)

    async def user(tn):
        async with maybe_open_context(recorder, tn=tn) as got:
            return got

    async def main():
        async with kit.services() as tn:
            with pytest.raises(ValueError, match='entry') as info:
                await kit.in_task(user, tn)
            assert info.value is error
            assert _mngrs._slots == {}
            recorder.entry_error = None
            assert await kit.in_task(user, tn) == (False, 1)

    kit.run(main)


@pytest.mark.parametrize('waiters', [0, 3])
def test_first_entrant_cancelled_during_entry_frees_the_lock(kit, waiters: int):
    """The next in line opens the context; nobody hangs, and nobody's lock breaks."""
    gate = trio.Event()
    recorder = kit.Recorder(entry_gate=gate)
    got = []

    async def user(tn):
        async with maybe_open_context(recorder, tn=tn) as result:
            got.append(result)
            await wait_all_tasks_blocked()

    async def main():
        scope = trio.CancelScope()

        async def first(tn):
            with scope:
                await user(tn)
            assert scope.cancelled_caught

        async with kit.services() as tn, trio.open_nursery() as users:
            users.start_soon(first, tn)
            await wait_all_tasks_blocked()
            for _ in range(waiters):
                users.start_soon(user, tn)
                await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            gate.set()
        assert got == ([(False, 1)] + [(True, 1)] * waiters)[:waiters]

    kit.run(main)


def test_cancelled_waiter_leaves_the_line(kit):
    """A user cancelled while another enters changes nothing for the latter."""
    gate = trio.Event()
    recorder = kit.Recorder(entry_gate=gate)
    got = []

    async def user(tn, scope):
        with scope:
            async with maybe_open_context(recorder, tn=tn) as result:
                got.append(result)

    async def main():
        scopes = [trio.CancelScope() for _ in range(2)]
        async with kit.services() as tn, trio.open_nursery() as users:
            for scope in scopes:
                users.start_soon(user, tn, scope)
                await wait_all_tasks_blocked()
            scopes[1].cancel()
            await wait_all_tasks_blocked()
            gate.set()
        assert got == [(False, 1)]
        assert scopes[1].cancelled_caught

    kit.run(main)


def test_cancelled_entry_carries_no_lookup_error(kit):
    """The cancellation of a first entrant has no `KeyError` behind it."""
    contexts = []

    async def user(tn):
        try:
            async with maybe_open_context(kit.Recorder(entry_gate=trio.Event()), tn=tn):
                raise AssertionError('entered')
        except trio.Cancelled as exc:
            link: BaseException | None = exc
            while link is not None:
                contexts.append(type(link))
                link = link.__context__
            raise

    async def main():
        async with kit.services() as tn, trio.open_nursery() as users:
            users.start_soon(user, tn)
            await wait_all_tasks_blocked()
            users.cancel_scope.cancel()

    kit.run(main)
    assert set(contexts) == {trio.Cancelled}


@pytest.mark.parametrize('on_exit', ['pass', 'fail', 'swallow'])
def test_entrant_cancelled_as_the_context_starts_never_gets_inside(kit, on_exit: str):
    """The context is exited again at once; its error, if any, is the entrant's."""
    scope = trio.CancelScope()

    @asynccontextmanager
    async def opener():
        scope.cancel()
        try:
            yield 1
        except trio.Cancelled:
            if on_exit != 'swallow':
                raise
        finally:
            if on_exit == 'fail':
                raise ValueError('exit')

    async def user(tn):
        with scope:
            async with maybe_open_context(opener, tn=tn):
                raise AssertionError('inside')

    async def main():
        async with kit.services() as tn:
            if on_exit == 'fail':
                with pytest.raises(ValueError, match='exit'):
                    await kit.in_task(user, tn)
            else:
                await kit.in_task(user, tn)
                assert scope.cancelled_caught

    kit.run(main)


@pytest.mark.parametrize('exit_error', [None, ValueError('exit')])
def test_cancelling_the_nursery_exits_the_context_and_frees_its_users(kit, exit_error):
    """Users inside `tn` are cancelled with it, wherever the exit stands."""
    recorder = kit.Recorder(exit_error=exit_error)
    left = []

    async def user(tn):
        try:
            async with maybe_open_context(recorder, tn=tn):
                await trio.sleep_forever()
        finally:
            left.append(1)

    async def main():
        async with collapse_eg(), trio.open_nursery() as tn:
            for _ in range(3):
                tn.start_soon(user, tn)
            await wait_all_tasks_blocked()
            tn.cancel_scope.cancel()

    if exit_error is None:
        kit.run(main)
    else:
        with pytest.raises((ValueError, ExceptionGroup)) as info:
            kit.run(main)
        assert info.value is exit_error or info.value.subgroup(ValueError)
    assert left == [1] * 3
    assert recorder.events == ['enter', 'exit']


def test_context_that_fails_in_use_interrupts_its_users(kit):
    """Nobody sleeps on beside a dead context; the last to leave gets the error."""
    error = ValueError('broken')
    failures: list[BaseException] = []
    fail = trio.Event()

    @asynccontextmanager
    async def breaks():
        async with collapse_eg(add_notes=False), trio.open_nursery() as tn:

            async def background():
                await fail.wait()
                raise error

            tn.start_soon(background)
            yield 1

    async def user(tn):
        try:
            async with maybe_open_context(breaks, tn=tn):
                await trio.sleep_forever()
        except Exception as exc:
            failures.append(exc)

    async def main():
        async with kit.services() as tn, trio.open_nursery() as users:
            for _ in range(3):
                users.start_soon(user, tn)
            await wait_all_tasks_blocked()
            fail.set()

    kit.run(main)
    assert failures[-1] is error
    for early in failures[:-1]:
        assert isinstance(early, RuntimeError)
        assert 'failed while in use' in str(early)
        assert early.__cause__ is error
    assert len(failures) == 3


def test_dead_context_is_no_hit(kit):
    """Who comes after it was exited by its nursery opens a new one."""
    recorder = kit.Recorder()
    got = []

    async def user(tn, leave, task_status):
        async with maybe_open_context(recorder, tn=tn) as result:
            got.append(result)
            task_status.started()
            with trio.CancelScope(shield=True):
                await leave.wait()

    async def with_own_nursery(leave, task_status):
        async with trio.open_nursery() as tn, trio.open_nursery() as users:
            await users.start(user, tn, leave)
            task_status.started(tn)

    async def main():
        leave, leave_late = trio.Event(), trio.Event()
        async with trio.open_nursery() as outer:
            inner = await outer.start(with_own_nursery, leave)
            inner.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            assert recorder.events == ['enter', 'exit']
            await outer.start(user, outer, leave_late)
            assert got == [(False, 1), (False, 1)]
            # The old generation leaves without a trace of the new one.
            leave.set()
            await wait_all_tasks_blocked()
            assert recorder.events == ['enter', 'exit', 'enter']
            leave_late.set()

    kit.run(main)
    assert recorder.events == ['enter', 'exit', 'enter', 'exit']


def test_interrupt_of_the_context_is_not_kept_for_a_user(kit):
    """Only regular errors wait for the last user; an interrupt leaves at once."""

    @asynccontextmanager
    async def interrupted():
        yield 1
        raise KeyboardInterrupt

    async def user(tn):
        async with maybe_open_context(interrupted, tn=tn):
            pass

    async def main():
        async with kit.services() as tn:
            await kit.in_task(user, tn)

    with pytest.raises(KeyboardInterrupt):
        kit.run(main)
