"""Who has seen the result of a run-once child, and how patient its nursery is."""

from __future__ import annotations

import threading

import pytest
import trio

import tractor
from tractor import RemoteActorError

held = threading.Event()


async def fail() -> None:
    raise ValueError('on purpose')


async def wait() -> None:
    await trio.sleep_forever()


async def hold_the_loop(seconds: float) -> str:
    """Do not even let a request be read."""
    held.wait(seconds)
    return 'done'


async def come(*portals) -> None:
    """Wait until the errors of the main tasks have come."""
    with trio.fail_after(5):
        while any(portal._main._remote_error is None for portal in portals):
            await trio.lowlevel.checkpoint()


def test_cancelled_wait_takes_no_error(run_tree):
    """The error is there, but the user has not seen it."""

    async def body(an):
        portal = await an.run_in_actor(fail)
        await come(portal)
        with trio.CancelScope() as scope:
            scope.cancel()
            await portal.wait_for_result()
        assert scope.cancelled_caught

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ValueError


def test_one_of_two_waits_takes_its_own_error_only(run_tree):
    """The other wait was cancelled by the first one's error."""

    async def body(an):
        first = await an.run_in_actor(fail, name='first')
        second = await an.run_in_actor(fail, name='second')
        await come(first, second)
        async with trio.open_nursery() as tn:
            tn.start_soon(first.wait_for_result)
            tn.start_soon(second.wait_for_result)

    with pytest.RaisesGroup(RemoteActorError, RemoteActorError, flatten_subgroups=True):
        run_tree(body)


@pytest.mark.parametrize('is_gone', [False, True])
def test_child_cancelled_over_another_portal_is_no_error(run_tree, is_gone):
    """Whether or not the body outlives it: it is what this actor asked for."""

    async def body(an):
        await an.run_in_actor(wait, name='waiting')
        async with tractor.wait_for_actor('waiting') as portal:
            await portal.cancel_actor()
        if is_gone:
            with trio.fail_after(5):
                while an._children:
                    await an._changed.wait()

    run_tree(body)


def test_nursery_asks_as_patiently_as_a_portal(run_tree, monkeypatch):
    """`Portal.cancel_timeout` is what both wait for an ack."""
    monkeypatch.setattr(tractor.Portal, 'cancel_timeout', 5.0)

    async def body(an):
        portal = await an.run_in_actor(hold_the_loop, seconds=0.8)
        await an.cancel()
        assert an._killed == set()
        assert portal.chan.aid.uid not in an.errors

    run_tree(body)


def test_no_time_at_all_means_the_usual_time(run_tree):
    """A request that could never be confirmed is of no use."""

    async def body(an):
        portal = await an.start_actor('child')
        assert await portal.cancel_actor(timeout=0)

    run_tree(body)


def test_name_that_is_no_text_is_refused(run_tree):
    """At the call, before any process exists."""

    async def body(an):
        with pytest.raises(TypeError, match='name of an actor is a str, not None'):
            await an.start_actor(None)
        assert not an._children

    run_tree(body)


def test_explicit_debug_mode_of_a_child_is_noted(run_tree):
    """Also if it is off."""

    async def body(an):
        portal = await an.start_actor('first')
        assert not an._at_least_one_child_in_debug
        other = await an.start_actor('second', debug_mode=False)
        assert an._at_least_one_child_in_debug
        await portal.cancel_actor()
        await other.cancel_actor()

    run_tree(body)
