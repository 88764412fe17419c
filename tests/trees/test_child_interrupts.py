"""A `KeyboardInterrupt` that ends a child: nobody's failure, wherever it hits."""

from __future__ import annotations

import os
import signal

import pytest

from tractor import RemoteActorError


async def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.skipon_spawn_backend('subint', reason='a signal is sent to a process')
def test_a_child_may_be_interrupted_while_it_boots(run_tree):
    """From when `start_actor()` returns: Ctrl-C reaches the whole foreground group."""

    async def body(an):
        for number in range(5):
            portal = await an.start_actor(f'child_{number}')
            _, proc, _ = an._children[portal.chan.aid.uid]
            os.kill(proc.pid, signal.SIGINT)

    run_tree(body)


def test_a_task_that_raises_it_ends_its_actor(run_tree):
    """Its requester is told; the nursery waits for the actor's end and is content."""

    async def body(an):
        portal = await an.start_actor('child', enable_modules=[__name__])
        with pytest.raises(RemoteActorError) as caught:
            await portal.run(interrupt)
        assert caught.value.boxed_type is KeyboardInterrupt

    run_tree(body)


def test_it_may_leave_the_nursery_of_its_requester(run_tree):
    """As the one error that it is."""

    async def body(an):
        portal = await an.start_actor('child', enable_modules=[__name__])
        await portal.run(interrupt)

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is KeyboardInterrupt
