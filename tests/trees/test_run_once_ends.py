"""A run-once child that ends while the body runs, or that does not end at all."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import trio

from tractor import RemoteActorError
from tractor._exceptions import ActorDied

no_signals = pytest.mark.skipon_spawn_backend(
    'subint', reason='a signal is sent to a process'
)


async def fail() -> None:
    raise ValueError('on purpose')


async def interrupt() -> None:
    raise KeyboardInterrupt


async def leave() -> None:
    raise SystemExit(3)


async def wait() -> None:
    await trio.sleep_forever()


async def leave_a_thread_behind() -> str:
    threading.Thread(target=threading.Event().wait, daemon=False).start()
    return 'done'


async def fail_and_leave_a_thread_behind() -> None:
    await leave_a_thread_behind()
    raise ValueError('on purpose')


async def come(an, portal) -> None:
    """Wait until the error of its main task has come."""
    with trio.fail_after(5):
        await portal._submitted.wait()
        while portal._main._remote_error is None:
            await trio.lowlevel.checkpoint()


async def be_gone(an) -> None:
    """Wait until all children are reaped."""
    with trio.fail_after(5):
        while an._children:
            await an._changed.wait()


class Thing:
    async def fail(self) -> None:
        """Not the function of that name."""


def process_of(an, portal) -> int:
    pid: int = an._children[portal.chan.aid.uid][1].pid
    return pid


def test_error_of_a_child_that_was_cancelled_afterwards(run_tree):
    """It failed first: that it was asked to end explains nothing."""

    async def body(an):
        portal = await an.run_in_actor(fail)
        await come(an, portal)
        await portal.cancel_actor()
        await be_gone(an)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError


@no_signals
def test_error_of_a_child_that_was_interrupted_afterwards(run_tree):
    """Its orderly end hides nothing either."""

    async def body(an):
        portal = await an.run_in_actor(fail)
        await come(an, portal)
        os.kill(process_of(an, portal), signal.SIGINT)
        await be_gone(an)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError


@no_signals
def test_error_of_a_child_that_is_still_ending(run_tree):
    """It has said farewell, but a thread keeps its process when the body fails."""

    async def body(an):
        portal = await an.run_in_actor(fail_and_leave_a_thread_behind)
        await come(an, portal)
        os.kill(process_of(an, portal), signal.SIGINT)
        with trio.fail_after(5):
            while portal.chan.aid.uid not in an._farewells:
                await trio.lowlevel.checkpoint()
        raise KeyError('of the body')

    with pytest.RaisesGroup(KeyError, RemoteActorError):
        run_tree(body)


def test_interrupt_raised_by_the_main_task(run_tree):
    """It ends its actor in order, and still is what the task came to."""

    async def body(an):
        await an.run_in_actor(interrupt)
        await be_gone(an)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is KeyboardInterrupt


def test_error_that_the_user_took_is_not_raised_again(run_tree):
    """Also if the child is gone before."""

    async def body(an):
        portal = await an.run_in_actor(interrupt)
        await be_gone(an)
        with pytest.raises(RemoteActorError):
            await portal.wait_for_result()

    run_tree(body)


@no_signals
def test_exit_that_the_user_has_seen_is_no_death(run_tree):
    """The status of the process says no more than the error did."""

    async def body(an):
        portal = await an.run_in_actor(leave)
        with pytest.raises(RemoteActorError) as caught:
            await portal.wait_for_result()
        assert caught.value.boxed_type is SystemExit
        await be_gone(an)

    run_tree(body)


def test_cancelled_child_has_no_error(run_tree):
    """That its main task was cancelled is what was asked for."""

    async def body(an):
        portal = await an.run_in_actor(wait)
        await portal.cancel_actor()
        await be_gone(an)

    run_tree(body)


@no_signals
@pytest.mark.parametrize('function', [fail, leave])
def test_error_of_a_child_that_died_is_the_cause(run_tree, function):
    """The death is what the nursery raises, and it tells what went before."""

    async def body(an):
        portal = await an.run_in_actor(function)
        if function is fail:
            await come(an, portal)
            os.kill(process_of(an, portal), signal.SIGKILL)
        with trio.fail_after(5):
            await trio.sleep_forever()

    with pytest.raises(ActorDied) as caught:
        run_tree(body)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteActorError)
    assert cause.boxed_type is (ValueError if function is fail else SystemExit)


@no_signals
def test_child_that_does_not_end_after_its_result_is_ended(run_tree):
    """A thread keeps its process: it gets the usual deadlines, and no more."""

    async def body(an):
        await an.run_in_actor(leave_a_thread_behind)

    run_tree(body)


def test_method_is_not_taken_for_the_function_of_its_name(run_tree):
    """It is refused before anything is started, or sent."""

    async def body(an):
        with pytest.raises(TypeError, match='cannot be run in another actor'):
            await an.run_in_actor(Thing().fail)
        assert not an._children
        portal = await an.start_actor('child', enable_modules=[__name__])
        with pytest.raises(TypeError, match='cannot be run in another actor'):
            await portal.run(Thing().fail)
        await an.cancel()

    run_tree(body)
