"""The pipe that ties a child's life to its parent's."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tractor._testing import repodir
from tractor.spawn import _lifeline

DEADLINE: Final = 10.0  # seconds for a helper to come up
ENDED_WITHIN: Final = 2.0  # seconds an orphan may live

linux_only = pytest.mark.skipif(
    sys.platform != 'linux', reason='the kernel signals a hang-up on Linux only'
)

PRELUDE: Final = """
import re, signal, sys, threading, time
from tractor.spawn import _lifeline
fd = _lifeline.take_from_env()
def say(*facts):
    print(*facts, flush=True)
"""


class Helper:
    """A process that holds the child's end of a lifeline."""

    def __init__(self, body: str, *, hang_up_first: bool = False) -> None:
        with _lifeline.open_lifeline() as (childs, parents):
            self.parents: int | None = parents
            if hang_up_first:
                self.hang_up()
            self.proc = subprocess.Popen(
                [sys.executable, '-c', PRELUDE + body],
                env={
                    **os.environ,
                    'PYTHONPATH': str(repodir()),
                    _lifeline.ENV: str(childs),
                },
                pass_fds=(childs,),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def hear(self) -> str:
        """Return the next line it says."""
        assert self.proc.stdout is not None
        ready, _, _ = select.select([self.proc.stdout], [], [], DEADLINE)
        assert ready, 'the helper says nothing'
        return self.proc.stdout.readline().strip()

    def tell(self) -> None:
        """Let it go on."""
        assert self.proc.stdin is not None
        self.proc.stdin.write('\n')
        self.proc.stdin.flush()

    def hang_up(self) -> None:
        """Do what the kernel does when the parent dies."""
        if self.parents is not None:
            _lifeline.cut(self.parents)
            self.parents = None

    def ended_after(self) -> float:
        """Wait for its end; return the seconds that took."""
        since = time.monotonic()
        self.proc.wait(timeout=DEADLINE)
        return time.monotonic() - since

    def remove(self) -> None:
        """Leave nothing of it."""
        self.hang_up()
        self.proc.kill()
        self.proc.wait()
        for pipe in (self.proc.stdin, self.proc.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def open_helper(body: str, *, hang_up_first: bool = False) -> Iterator[Helper]:
    helper = Helper(body, hang_up_first=hang_up_first)
    try:
        yield helper
    finally:
        helper.remove()


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# -- the two ends ----------------------------------------------------------------------


def test_parents_end_outlasts_the_block():
    """The child's end is closed with the block, the parent's by whoever asked."""
    with _lifeline.open_lifeline() as (childs, parents):
        assert is_open(childs)
        assert is_open(parents)
    try:
        assert not is_open(childs)
        assert is_open(parents)
    finally:
        _lifeline.cut(parents)


def test_failed_block_closes_both_ends():
    """Where no child comes to life nothing is left open."""
    ends = []

    def spawn_nothing() -> None:
        with _lifeline.open_lifeline() as found:
            ends.extend(found)
            raise OSError('no such program')

    with pytest.raises(OSError, match='no such program'):
        spawn_nothing()
    assert [is_open(fd) for fd in ends] == [False, False]


def test_ends_are_not_inherited():
    """Another child must not hold the parent's end open."""
    with _lifeline.open_lifeline() as ends:
        inheritable = [os.get_inheritable(fd) for fd in ends]
    _lifeline.cut(ends[1])
    assert inheritable == [False, False]


# -- the child's side of it ------------------------------------------------------------


def test_process_without_a_lifeline_has_none(monkeypatch):
    """A process that no actor started is tied to nobody."""
    monkeypatch.delenv(_lifeline.ENV, raising=False)
    assert _lifeline.take_from_env() is None


def test_lifeline_is_hidden_from_the_childs_own_children(monkeypatch):
    """The variable is gone and the descriptor is not inherited any more."""
    with _lifeline.open_lifeline() as (childs, parents):
        os.set_inheritable(childs, True)
        monkeypatch.setenv(_lifeline.ENV, str(childs))
        taken = _lifeline.take_from_env()
        inheritable = os.get_inheritable(childs)
    _lifeline.cut(parents)
    assert taken == childs
    assert not inheritable
    assert _lifeline.ENV not in os.environ


@linux_only
@pytest.mark.parametrize(
    'stuck',
    [
        'time.sleep(60)',
        'while True: pass',
        "re.match(r'(a+)+$', 'a' * 40 + 'b')",
        'threading.Event().wait()',
    ],
    ids=['sleep', 'python-loop', 'gil-held-in-c', 'lock'],
)
def test_orphan_that_is_stuck_is_ended(stuck):
    """No help of the interpreter is needed: the kernel ends the process."""
    body = f'_lifeline.tie(fd)\nsay("tied")\n{stuck}\n'
    with open_helper(body) as helper:
        assert helper.hear() == 'tied'
        helper.hang_up()
        assert helper.ended_after() < ENDED_WITHIN
        assert helper.proc.returncode == -signal.SIGALRM


@linux_only
def test_parent_that_was_gone_before_the_tie():
    """A hang-up that nobody was told of counts as well."""
    body = '_lifeline.tie(fd)\nsay("tied")\ntime.sleep(60)\n'
    with open_helper(body, hang_up_first=True) as helper:
        assert helper.hear() == 'tied'
        assert helper.ended_after() < ENDED_WITHIN
        assert helper.proc.returncode == -signal.SIGALRM


@linux_only
def test_child_lives_while_its_parent_does():
    """Without a hang-up no alarm runs."""
    body = """
_lifeline.tie(fd)
say(signal.getitimer(signal.ITIMER_REAL))
"""
    with open_helper(body) as helper:
        assert helper.hear() == '(0.0, 0.0)'
        assert helper.proc.wait(timeout=DEADLINE) == 0


@linux_only
def test_orphan_whose_loop_runs_gets_time_for_an_orderly_end():
    """`parent_is_lost()` replaces the kernel's second by `ORDERLY` seconds."""
    body = """
_lifeline.tie(fd)
say('tied')
sys.stdin.readline()
while not signal.getitimer(signal.ITIMER_REAL)[0]:
    pass
before = signal.getitimer(signal.ITIMER_REAL)[0]
_lifeline.parent_is_lost()
say(before, signal.getitimer(signal.ITIMER_REAL)[0])
"""
    with open_helper(body) as helper:
        assert helper.hear() == 'tied'
        helper.hang_up()
        helper.tell()
        before, after = map(float, helper.hear().split())
        assert before <= 1
        assert 1 < after <= _lifeline.ORDERLY
        assert helper.proc.wait(timeout=DEADLINE) == 0


@linux_only
def test_orderly_end_is_not_cut_short_by_a_late_hang_up():
    """Whichever is noticed first, channel or lifeline, an orphan gets `ORDERLY`."""
    body = """
_lifeline.tie(fd)
_lifeline.parent_is_lost()
say('noticed')
sys.stdin.readline()
say(signal.getitimer(signal.ITIMER_REAL)[0])
"""
    with open_helper(body) as helper:
        assert helper.hear() == 'noticed'
        helper.hang_up()
        helper.tell()
        assert 1 < float(helper.hear()) <= _lifeline.ORDERLY


@linux_only
def test_program_keeps_its_own_hang_up_handler():
    """Its handler is called as always."""
    body = """
signal.signal(signal.SIGHUP, lambda *_: say('hung up'))
_lifeline.tie(fd)
signal.raise_signal(signal.SIGHUP)
"""
    with open_helper(body) as helper:
        assert helper.hear() == 'hung up'
        assert helper.proc.wait(timeout=DEADLINE) == 0


@linux_only
@pytest.mark.parametrize('action', ['signal.SIG_IGN', 'print'])
def test_another_signal_stands_in_for_a_taken_one(action):
    """nohup(1) ignores `SIGHUP`: a stuck child must not outlive its parent for that."""
    body = f"""
signal.signal(signal.SIGHUP, {action})
_lifeline.tie(fd)
say(_lifeline._tied.name)
while True: pass
"""
    with open_helper(body) as helper:
        assert helper.hear() == 'SIGTRAP'
        helper.hang_up()
        assert helper.ended_after() < signal.SIGTRAP + ENDED_WITHIN
        assert helper.proc.returncode == -signal.SIGALRM


@linux_only
def test_program_that_has_taken_every_signal_is_not_tied():
    """Then the kernel does not end the process."""
    body = """
for taken in (signal.SIGHUP, signal.SIGTRAP):
    signal.signal(taken, signal.SIG_IGN)
_lifeline.tie(fd)
_lifeline.parent_is_lost()
say(_lifeline._tied, signal.getitimer(signal.ITIMER_REAL)[0])
"""
    with open_helper(body) as helper:
        assert helper.hear() == 'None 0.0'
        assert helper.proc.wait(timeout=DEADLINE) == 0


def test_process_that_is_not_tied_sets_no_alarm():
    """Losing a parent without a lifeline ends nothing by force."""
    with open_helper(
        '_lifeline.parent_is_lost()\nsay(signal.getitimer(signal.ITIMER_REAL)[0])\n'
    ) as helper:
        assert helper.hear() == '0.0'
        assert helper.proc.wait(timeout=DEADLINE) == 0
