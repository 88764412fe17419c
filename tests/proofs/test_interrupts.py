"""
Ctrl-C at any moment ends a program with sub-interpreters as it ends any program.

Each round runs `busy_interps.py` on a terminal of its own and presses Ctrl-C once, at a
random moment from before its first actor until after its last.  The program has to be
gone within 2 s, with the status of a trio program that dies of `KeyboardInterrupt`, and
may print no other traceback than that one.  A round is one test; its number seeds the
moment, so that `-k 'round_17'` repeats it.
"""

from __future__ import annotations

import os
import random
import re
import select
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pexpect
import pytest

from tractor._testing import repodir
from tractor.spawn import _subint

if (reason := _subint.unavailable()) is not None:
    pytest.skip(reason, allow_module_level=True)

PROGRAM: Final = Path(__file__).with_name('busy_interps.py')
PLAIN: Final = "import trio; print('begin', flush=True); trio.run(trio.sleep_forever)"

GONE_WITHIN: Final = 2.0  # seconds from Ctrl-C
BEGIN_WITHIN: Final = 30.0  # seconds for the imports
OVER_WITHIN: Final = 60.0  # seconds for all the work, undisturbed
BEYOND: Final = 1.1  # the last moment, as a part of the time the work takes

HEAD: Final = 'Traceback (most recent call last):'
# What Python prints between an error and the one that came while it was handled.
CHAINED: Final = re.compile(
    r'(During handling of the above|The above exception was)[^\n]*\s+\Z'
)
UNWANTED: Final = re.compile(
    r'Fatal Python error|\w+Warning\b|Exception ignored|InterpreterError|'
    r'could not be stopped|core dumped'
)

pytestmark = pytest.mark.long_proof

type Status = tuple[int | None, int | None]  # exit status, signal


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each round."""
    if 'number' in metafunc.fixturenames:
        rounds = metafunc.config.getoption('--proof-rounds') or 1
        metafunc.parametrize(
            'number', range(rounds), ids=[f'round_{n}' for n in range(rounds)]
        )


class Terminal:
    """A program on a terminal of its own, and what it printed."""

    def __init__(self, child: pexpect.spawn[str]) -> None:
        self.child = child
        self.output = ''

    def wait_for(self, word: str, seconds: float) -> None:
        """Return when the program has said that."""
        self.child.expect_exact(word, timeout=seconds)
        self.output += self.child.before + word

    def press_ctrl_c(self) -> tuple[Status, float]:
        """Interrupt it; return how it ended and the seconds that took."""
        pidfd = os.pidfd_open(self.child.pid)
        try:
            start = time.monotonic()
            self.child.sendintr()
            try:
                try:
                    self.child.expect(pexpect.EOF, timeout=GONE_WITHIN)
                except pexpect.TIMEOUT:
                    pytest.fail(f'it runs on, having printed: {self.child.before}')
            finally:
                if isinstance(self.child.before, str):
                    self.output += self.child.before
            left = GONE_WITHIN - (time.monotonic() - start)
            ended, _, _ = select.select([pidfd], [], [], max(left, 0))
            assert ended, f'it still runs {GONE_WITHIN:g} s after Ctrl-C'
            took = time.monotonic() - start
        finally:
            os.close(pidfd)
        self.child.wait()
        return (self.child.exitstatus, self.child.signalstatus), took


@contextmanager
def run_on_terminal(*arguments: str) -> Iterator[Terminal]:
    """Run Python on a terminal; show what it printed if the test fails."""
    env = {k: v for k, v in os.environ.items() if not k.startswith('TRACTOR_')}
    with tempfile.TemporaryDirectory(prefix='interrupts-') as folder:
        env |= {
            'PYTHONPATH': str(repodir()),
            'XDG_RUNTIME_DIR': folder,
            'PYTHON_COLORS': '0',  # the tracebacks are compared
        }
        child = pexpect.spawn(
            sys.executable,
            [*arguments, folder],
            env=env,
            encoding='utf-8',
            codec_errors='replace',
            dimensions=(50, 200),
        )
        terminal = Terminal(child)
        try:
            terminal.wait_for('begin', BEGIN_WITHIN)
            yield terminal
        except BaseException:
            print(terminal.output)
            raise
        finally:
            child.close(force=True)


def complaints(output: str) -> list[str]:
    """Return what an interrupted program should not have printed."""
    output = output.replace('\r\n', '\n')
    found = [line for line in output.splitlines() if UNWANTED.search(line)]
    # An interrupt may come while anything is handled: the last one of a chain counts.
    for block in output.split(HEAD)[1:]:
        if CHAINED.search(block):
            continue
        lines = block.splitlines()[1:]
        closing = next((line for line in lines if line[:1].strip()), 'no end of it')
        if closing != 'KeyboardInterrupt':
            found.append(f'a traceback of: {closing}')
    return found


@pytest.fixture(scope='module')
def usual_status() -> Status:
    """How a trio program ends that is interrupted and does nothing about it."""
    with run_on_terminal('-c', PLAIN) as terminal:
        status, _ = terminal.press_ctrl_c()
        assert complaints(terminal.output) == []
    return status


@pytest.fixture(scope='module')
def duration() -> float:
    """Seconds that the program takes from `begin` to `over`."""
    with run_on_terminal(str(PROGRAM)) as terminal:
        start = time.monotonic()
        terminal.wait_for('over', OVER_WITHIN)
        return time.monotonic() - start


def test_interrupt_ends_the_program(
    number: int, usual_status: Status, duration: float
) -> None:
    """It is gone in time, with the usual status and no foreign traceback."""
    moment = random.Random(number).uniform(0, BEYOND * duration)
    with run_on_terminal(str(PROGRAM)) as terminal:
        # The moment is what the round is about: anywhere in the work, not at an event.
        time.sleep(moment)
        status, took = terminal.press_ctrl_c()
        print(
            f'seed {number}: after {moment:.3f} of {duration:.3f} s, took {took:.2f} s'
        )
        assert complaints(terminal.output) == []
        assert status == usual_status
