"""
What every test of the suite is held to: it leaves nothing behind.

Owns the leak check, which runs around each test, and the options of the long proofs.
After a test there may be no process, thread, sub-interpreter, file descriptor, socket
file or shared memory segment that was not there before; whoever is slow gets
`GRACE_SECONDS`.  What is still there then fails the test by name, and is removed or
counted as known, so that no later test fails for it.  A clean test pays for a few
directory listings: 0.2 ms.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

GRACE_SECONDS: Final = 6.0  # an actor that lost its parent may take 5
POLL_SECONDS: Final = 0.02

PROC: Final = Path('/proc')
SHARED_MEMORY: Final = Path('/dev/shm')
SOCKET_NAME: Final = re.compile(r'.+@(\d+)\.sock')
# The default registry's socket: its number is a port's, not that of a process.
REGISTRY_SOCKET: Final = 'registry@1616.sock'
# Threads that drive actors in sub-interpreters: daemons, and yet to be joined.
ACTOR_THREAD: Final = 'tractor-subint '

pytest_plugins = ('pytester',)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that turns the long proofs on."""
    parser.addoption(
        '--proof-rounds',
        type=int,
        default=None,
        metavar='N',
        help='run the tests marked long_proof, N rounds each (default: leave them out)',
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the suite's own markers."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background jobs so, and every process here inherits it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.name == 'posix' and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so does nohup(1)
    config.addinivalue_line(
        'markers', 'long_proof: runs only with --proof-rounds, and as long as that says'
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave the long proofs out of a run that did not ask for them."""
    if config.getoption('--proof-rounds') is not None:
        return
    proofs = [item for item in items if item.get_closest_marker('long_proof')]
    if proofs:
        config.hook.pytest_deselected(items=proofs)
        items[:] = [item for item in items if item not in proofs]


@pytest.fixture(autouse=True)
def _log_levels() -> Iterator[None]:
    """A root actor sets the level of the whole package: set it back after the test."""
    loggers = [logging.getLogger('tractor')]
    loggers += [
        logger
        for name, logger in logging.Logger.manager.loggerDict.items()
        if name.startswith('tractor.') and isinstance(logger, logging.Logger)
    ]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def interrupt_at() -> Iterator[Callable[[Callable[..., Any], str], None]]:
    """A function that has one Ctrl-C arrive at a line: of a function, with a text."""

    def arm(function: Callable[..., Any], text: str) -> None:
        lines, first = inspect.getsourcelines(function)
        (number,) = [first + n for n, line in enumerate(lines) if text in line]
        code = inspect.unwrap(function).__code__

        def trace(frame: Any, event: str, arg: object) -> Any:
            if frame.f_code is not code:
                return None
            if event == 'line' and frame.f_lineno == number:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
            return trace

        sys.settrace(trace)

    before = sys.gettrace()
    yield arm
    sys.settrace(before)


@pytest.fixture(scope='session')
def proof_rounds(request: pytest.FixtureRequest) -> int:
    """How many rounds a long proof runs."""
    rounds: int = request.config.getoption('--proof-rounds')
    return rounds


@pytest.fixture(scope='session')
def ci_env() -> bool:
    """Whether this is a run of continuous integration, where machines are slow."""
    return bool(os.environ.get('CI'))


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaks, and remove what it leaked."""
    before = Holdings()
    yield
    leaks = before.leaks_since()
    if leaks and (leaks := before.wait_for_none()):
        for _, remove in leaks:
            remove()
        pytest.fail(
            'the test left behind: ' + '; '.join(text for text, _ in leaks),
            pytrace=False,
        )


type Leak = tuple[str, Callable[[], object]]


def nothing() -> None:
    """
    Leave a thread, interpreter or descriptor alone: the next test starts with it.

    Closing a descriptor behind its owner's back would break whoever gets its number,
    and an interpreter that still runs cannot be destroyed.
    """


def listed(directory: Path | str | None) -> set[str]:
    """Return the names in a directory, none if there is no such directory."""
    if directory is None:
        return set()
    try:
        return set(os.listdir(directory))
    except OSError:
        return set()


def open_fds() -> set[str]:
    """Return our descriptors, without that of the listing, whose number is free."""
    folder = '/proc/self/fd'
    return {name for name in listed(folder) if os.path.lexists(f'{folder}/{name}')}


class Holdings:
    """What this process and its children hold at one moment, for comparison."""

    __slots__ = ('fds', 'interpreters', 'pids', 'segments', 'sockets', 'threads')

    def __init__(self) -> None:
        self.pids = listed(PROC)
        self.threads = set(threading.enumerate())
        self.interpreters = interpreter_ids()
        self.fds = open_fds()
        self.sockets = listed(socket_directory())
        self.segments = listed(SHARED_MEMORY)

    def leaks_since(self) -> list[Leak]:
        """Return a text and a way to remove it for each thing that came since."""
        return [
            *self.leaked_processes(),
            *self.leaked_threads(),
            *self.leaked_interpreters(),
            *self.leaked_fds(),
            *self.leaked_sockets(),
            *self.leaked_segments(),
        ]

    def wait_for_none(self) -> list[Leak]:
        """Return what is still there after the grace period; nothing tells its end."""
        deadline = time.monotonic() + GRACE_SECONDS
        gc.collect()  # what only a cycle held is no leak
        while (leaks := self.leaks_since()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return leaks

    def leaked_processes(self) -> Iterator[Leak]:
        """
        Give new descendants, orphans included: those stay in our process group.

        The helpers of `multiprocessing` last as long as this process; a process that a
        helper forked does not.
        """
        helpers = helper_pids()
        parents = {int(name): parent_and_group(name) for name in self.new_pids()}
        ours = {os.getpid(), *helpers}
        group = os.getpgrp()
        for pid, (parent, pgid) in sorted(parents.items()):
            if pid in helpers or parent == 0:
                continue
            ancestor = parent
            while ancestor in parents and ancestor not in ours:
                ancestor = parents[ancestor][0]
            orphan = parent == 1 and pgid == group
            if orphan and is_zombie(pid):
                continue  # init reaps it when it gets to it
            if ancestor in ours or orphan:
                yield f'process {pid} ({command_of(pid)})', killer(pid)

    def new_pids(self) -> list[str]:
        """Return the processes of the machine that were not there before."""
        return [name for name in listed(PROC) - self.pids if name.isdigit()]

    def leaked_threads(self) -> Iterator[Leak]:
        """
        Give new threads; trio caches its worker threads.

        Of the daemons only those count that drive an actor.
        """
        for thread in threading.enumerate():
            known = thread in self.threads or thread.name.startswith('Trio thread')
            counts = not thread.daemon or thread.name.startswith(ACTOR_THREAD)
            if counts and not known:
                yield f'thread {thread.name!r}', nothing

    def leaked_interpreters(self) -> Iterator[Leak]:
        """Give new sub-interpreters."""
        for number in sorted(interpreter_ids() - self.interpreters):
            yield f'sub-interpreter {number}', nothing

    def leaked_fds(self) -> Iterator[Leak]:
        """Give new file descriptors, except those that lead to a helper."""
        for name in open_fds() - self.fds - helper_fds():
            with contextlib.suppress(OSError):
                target = os.readlink(f'/proc/self/fd/{name}')
                yield f'file descriptor {name} ({target})', nothing

    def leaked_sockets(self) -> Iterator[Leak]:
        """Give new socket files of actors that are dead."""
        directory = socket_directory()
        for name in listed(directory) - self.sockets - {REGISTRY_SOCKET}:
            owner = SOCKET_NAME.fullmatch(name)
            if owner is not None and not (PROC / owner[1]).exists():
                path = Path(directory or '', name)
                yield f'socket {path}', remover(path)

    def leaked_segments(self) -> Iterator[Leak]:
        """Give new segments of this user that no unrelated process has mapped."""
        for name in listed(SHARED_MEMORY) - self.segments:
            path = SHARED_MEMORY / name
            with contextlib.suppress(OSError):
                if path.stat().st_uid == os.getuid() and not self.is_foreign(path):
                    yield f'shared memory {path}', remover(path)

    def is_foreign(self, path: Path) -> bool:
        """
        Tell whether a process maps it that cannot be from this test.

        It was there before, or is of another process group, as a suite beside this one.
        """
        group = os.getpgrp()
        for name in listed(PROC):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            if name in self.pids or parent_and_group(name)[1] != group:
                with contextlib.suppress(OSError):
                    if str(path) in (PROC / name / 'maps').read_text(errors='replace'):
                        return True
        return False


def interpreter_ids() -> set[int]:
    """Return the interpreters of this process; before 3.14 no actor lives in one."""
    if sys.version_info < (3, 14):
        return set()
    import _interpreters  # is not there, or differs, on older versions

    return {number for number, *_ in _interpreters.list_all()}


def socket_directory() -> str | None:
    """Return where actors' sockets are; nobody made one before the module loads."""
    if 'tractor.ipc._uds' not in sys.modules:
        return None
    from tractor._testing._reap import get_uds_dir  # loads the runtime

    return get_uds_dir()


def helper(module: str, name: str, attribute: str) -> int | None:
    """Return a number that a helper of `multiprocessing` keeps, if it runs."""
    owner = getattr(sys.modules.get(f'multiprocessing.{module}'), name, None)
    number: int | None = getattr(owner, attribute, None)
    return number


def helper_pids() -> set[int]:
    """Return the processes that `multiprocessing` starts once and keeps."""
    pids = (
        helper('resource_tracker', '_resource_tracker', '_pid'),
        helper('forkserver', '_forkserver', '_forkserver_pid'),
    )
    return {pid for pid in pids if pid is not None}


def helper_fds() -> set[str]:
    """Return the descriptors that keep those processes alive."""
    fds = (
        helper('resource_tracker', '_resource_tracker', '_fd'),
        helper('forkserver', '_forkserver', '_forkserver_alive_fd'),
    )
    return {str(fd) for fd in fds if fd is not None}


def parent_and_group(pid: str) -> tuple[int, int]:
    """Return the parent and the process group of a process, zeros if it is gone."""
    try:
        stat = (PROC / pid / 'stat').read_text(errors='replace')
    except OSError:
        return 0, 0
    # The task name may hold blanks and parentheses; the last one closes it.
    _, parent, group, *_ = stat.rpartition(')')[2].split()
    return int(parent), int(group)


def is_zombie(pid: int) -> bool:
    """Tell whether a process has ended and was not waited for yet."""
    try:
        stat = (PROC / str(pid) / 'stat').read_text(errors='replace')
    except OSError:
        return True
    return stat.rpartition(')')[2].split()[0] == 'Z'


def command_of(pid: int) -> str:
    """Return a process's command line, or that it is dead but was not waited for."""
    try:
        command = (PROC / str(pid) / 'cmdline').read_text(errors='replace')
    except OSError:
        return 'gone'
    return command.replace('\0', ' ').strip() or 'a zombie: nobody waited for it'


def killer(pid: int) -> Callable[[], object]:
    """Return what kills and reaps a process."""

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # a grandchild is not ours
            os.waitpid(pid, 0)

    return kill


def remover(path: Path) -> Callable[[], object]:
    """Return what removes a file that its owner forgot."""
    return lambda: path.unlink(missing_ok=True)
