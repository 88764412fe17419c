"""A child never outlives its parent, whatever it is doing when the parent is killed."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._exceptions import ActorDied
from tractor._testing import repodir

GONE_WITHIN: Final = 2.0  # seconds from the parent's death to the child's
DEADLINE: Final = 20.0

linux_only = pytest.mark.skipif(
    sys.platform != 'linux', reason='the kernel ends a stuck orphan on Linux only'
)

pytestmark = [
    pytest.mark.has_nested_actors,
    pytest.mark.skipon_spawn_backend('subint', reason='it kills a process by its pid'),
]


def loop_forever() -> None:
    while True:
        pass


def backtrack_forever() -> None:
    """Stay in C code that never lets go of the interpreter."""
    re.match(r'(a+)+$', 'a' * 40 + 'b')


STUCK: Final = {
    'sleep': lambda: time.sleep(60),
    'python-loop': loop_forever,
    'gil-held-in-c': backtrack_forever,
}


@tractor.context
async def live(ctx: tractor.Context, below: list[str]) -> None:
    """
    Start a line of actors below this one, and be idle or stuck.

    Args:
        below: What each generation does: `'idle'` or a key of `STUCK`; the first is
            this actor's own.
    """
    own, *rest = below
    async with tractor.open_nursery() as an:
        pids = [os.getpid()]
        if rest:
            portal = await an.start_actor('child', enable_modules=[__name__])
            async with portal.open_context(live, below=rest) as (_, found):
                await ctx.started([*pids, *found])
                await be(own)
        else:
            await ctx.started(pids)
            await be(own)


async def be(state: str) -> None:
    if state != 'idle':
        STUCK[state]()
    await trio.sleep_forever()


async def ages_as_orphans(pidfds: list[int]) -> list[float]:
    """Wait until a line of actors is gone; return how long each outlived its parent."""
    ends = [trio.current_time()]
    for fd in pidfds:
        await trio.lowlevel.wait_readable(fd)
        ends.append(trio.current_time())
    return [end - start for start, end in pairwise(ends)]


def kill_parent_of(reg_addr: Any, *states: str) -> list[float]:
    """Kill the parent of such a line; return how long each outlived its own parent."""
    ages: list[float] = []

    async def body(an: tractor.ActorNursery, stack: ExitStack) -> None:
        portal = await an.start_actor('middle', enable_modules=[__name__])
        async with portal.open_context(live, below=['idle', *states]) as (_, pids):
            middle, *orphans = pids
            pidfds = []
            for pid in orphans:
                pidfds.append(os.pidfd_open(pid))
                stack.callback(os.close, pidfds[-1])
            os.kill(middle, signal.SIGKILL)
            # The nursery cancels its body as soon as it finds the middle actor dead.
            with trio.CancelScope(shield=True):
                ages.extend(await ages_as_orphans(pidfds))

    async def main() -> None:
        with trio.fail_after(DEADLINE), ExitStack() as stack:
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                await body(an, stack)

    with pytest.raises(ActorDied) as caught:
        trio.run(main)
    assert caught.value.uid[0] == 'middle'
    assert caught.value.signal == signal.SIGKILL
    assert len(ages) == len(states)
    return ages


def test_idle_child_ends_with_its_parent(reg_addr):
    """It notices the lost connection and ends its runtime."""
    assert sum(kill_parent_of(reg_addr, 'idle')) < GONE_WITHIN


@linux_only
@pytest.mark.parametrize('state', STUCK)
def test_stuck_child_ends_with_its_parent(reg_addr, state):
    """The kernel ends a child whose event loop does not run."""
    assert sum(kill_parent_of(reg_addr, state)) < GONE_WITHIN


def test_idle_grandchild_ends_with_an_idle_child(reg_addr):
    """The end goes down the line."""
    assert sum(kill_parent_of(reg_addr, 'idle', 'idle')) < GONE_WITHIN


@linux_only
@pytest.mark.parametrize(
    ('child', 'grandchild'),
    [
        ('idle', 'python-loop'),
        ('idle', 'gil-held-in-c'),
        ('sleep', 'idle'),
        ('gil-held-in-c', 'idle'),
    ],
)
def test_grandchild_ends_as_well(reg_addr, child, grandchild):
    """One stuck generation does not make the end of the line late."""
    assert sum(kill_parent_of(reg_addr, child, grandchild)) < GONE_WITHIN


@linux_only
def test_each_of_two_stuck_generations_ends_with_its_parent(reg_addr):
    """The kernel tells a generation when the one above it is gone."""
    ages = kill_parent_of(reg_addr, 'gil-held-in-c', 'gil-held-in-c')
    assert max(ages) < GONE_WITHIN


FORKING_ROOT: Final = """
import os, signal, sys
import trio
import tractor

async def main():
    async with tractor.open_nursery(registry_addrs=[REG_ADDR]) as an:
        portal = await an.start_actor('child')
        async with tractor.wait_for_actor('child'):
            pass  # it serves
        child = an._children[portal.chan.aid.uid][1].pid
        forked = os.fork()
        if not forked:
            signal.alarm(20)
            signal.pause()
        print(child, forked, flush=True)
        await trio.sleep_forever()

if __name__ == '__main__':
    trio.run(main)
"""


@linux_only
def test_child_ends_although_a_forked_process_lives(reg_addr, spawn_backend, tmp_path):
    """What the parent held of its child is not held by a process forked from it."""
    script = tmp_path / 'program.py'
    script.write_text(f'REG_ADDR = {reg_addr!r}\n{FORKING_ROOT}')
    root = subprocess.Popen(
        [sys.executable, str(script)],
        env={
            **os.environ,
            'PYTHONPATH': str(repodir()),
            'TRACTOR_SPAWN_METHOD': spawn_backend,
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    with root, ExitStack() as stack:
        stack.callback(root.kill)
        assert root.stdout is not None
        assert select.select([root.stdout], [], [], DEADLINE)[0], 'it does not come up'
        child, forked = (int(text) for text in root.stdout.readline().split())
        stack.callback(os.kill, forked, signal.SIGKILL)
        pidfd = os.pidfd_open(child)
        stack.callback(os.close, pidfd)
        root.kill()
        assert select.select([pidfd], [], [], GONE_WITHIN)[0], 'the child lives on'
