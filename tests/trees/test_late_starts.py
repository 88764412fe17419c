"""Children started by tasks outside the block while the block ends."""

from __future__ import annotations

import pytest
import trio

import tractor
from tractor._exceptions import RuntimeFailure


async def give(value: object) -> object:
    return value


async def until(condition) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


def test_cancelled_join_ends_a_child_that_was_on_its_way(run_tree):
    """It comes up after the body is over; the join still sees to its end."""

    async def body(outer_an):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as tn:
                async with tractor.open_nursery() as an:
                    tn.start_soon(an.start_actor, 'late')
                    await until(lambda: an._sup.starting)
                    tn.start_soon(cancel_when_up, an, scope)
        assert scope.cancelled_caught
        assert not an._children

    async def cancel_when_up(an, scope):
        assert an._sup.body_over
        await until(lambda: an._children)
        scope.cancel()

    run_tree(body)


def test_failed_body_ends_a_child_that_was_on_its_way(run_tree):
    """The join does not take an empty nursery for a finished one."""
    started = []

    async def body(outer_an):
        async with trio.open_nursery() as tn:
            try:
                async with tractor.open_nursery() as an:
                    tn.start_soon(start, an)
                    await until(lambda: an._sup.starting)
                    raise ValueError('on purpose')
            finally:
                assert not an._children
                assert not an._sup.starting

    async def start(an):
        started.append(await an.start_actor('late'))

    with pytest.raises(ValueError, match='on purpose'):
        run_tree(body)
    assert len(started) < 2


def test_result_of_a_late_run_once_child(run_tree):
    """It is reaped like the others, but not before its task has begun."""
    results = []

    async def body(outer_an):
        async with trio.open_nursery() as tn:
            async with tractor.open_nursery() as an:
                daemon = await an.start_actor('daemon')
                tn.start_soon(run_late, an, daemon)

    async def run_late(an, daemon):
        await an._join_procs.wait()
        portal = await an.run_in_actor(give, value=3)
        results.append(await portal.wait_for_result())
        await daemon.cancel_actor()

    run_tree(body)
    assert results == [3]


def test_run_once_child_cancelled_before_its_task_ends(run_tree, monkeypatch):
    """Nobody holds its portal, so that nobody else could end it."""
    submitting = trio.Event()

    async def submit(portal, ns, name, kwargs):
        submitting.set()
        await trio.sleep_forever()

    async def body(an):
        monkeypatch.setattr(tractor.Portal, '_submit_for_result', submit)
        async with trio.open_nursery() as tn:
            tn.start_soon(an.run_in_actor, give)
            await submitting.wait()
            tn.cancel_scope.cancel()

    run_tree(body)


def test_start_after_the_block_is_refused(run_tree):
    """The error tells that it is over."""

    async def body(outer_an):
        async with tractor.open_nursery() as an:
            pass
        with pytest.raises(RuntimeFailure, match=r"'late' .* its nursery is over"):
            await an.start_actor('late')

    run_tree(body)
