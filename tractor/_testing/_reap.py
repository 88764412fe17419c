"""
Finding and removing what a test run left behind: processes, sockets, shared memory.

A process counts as a subactor by its command line or its title, and nothing that is not
one is touched unless the caller names its pid.  Finders give plain lists, empty on a
platform without `/proc`; only the `reap*` functions change anything.  Loaded by the
pytest plugin, which takes the fixtures at the end, and used by cleaning scripts.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tractor._testing import _procfs
from tractor.devx._proctitle import _def_prefix

_CHILD_MODULE: Final = 'tractor._child'

# One sample of CPU usage shorter than a scheduler tick or two measures nothing.
_RUNAWAY_SAMPLE: Final = 0.05

# The default registry's socket: its number is a port's, not that of a process.
_REGISTRY_SENTINEL: Final = 'registry@1616.sock'
_SOCKET_NAME: Final = re.compile(r'.+@(?P<pid>\d+)\.sock')

# Helpers which multiprocessing keeps for the life of the whole process.
_MP_HELPERS: Final = ('multiprocessing.resource_tracker', 'multiprocessing.forkserver')


def _read_cmdline(pid: int) -> str:
    """Return the command line with blanks between arguments, `''` if it is gone."""
    return _procfs.read_text(pid, 'cmdline').replace('\0', ' ').strip()


def _read_comm(pid: int) -> str:
    """Return the kernel's name of the process, at most 15 bytes, or `''`."""
    return _procfs.read_text(pid, 'comm').rstrip('\n')


def _is_test_runner(pid: int) -> bool:
    """Is it pytest?  Its arguments may spell a test named like a subactor."""
    if pid == os.getpid():
        return True
    words = _read_cmdline(pid).split()[:3]
    return any(Path(word).name in ('pytest', 'py.test') for word in words)


def _is_tractor_subactor(pid: int) -> bool:
    """Is it an actor's process, by command line or title?  Never the test runner."""
    comm, cmdline = _read_comm(pid), _read_cmdline(pid)
    marked = _def_prefix in comm or _def_prefix in cmdline or _CHILD_MODULE in cmdline
    return marked and not _is_test_runner(pid)


def _is_alive(pid: int) -> bool:
    """Does the process exist and still run?  A zombie does not."""
    if _procfs.PROC.is_dir():
        return _procfs.state(pid) not in ('', 'Z', 'X')
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find_descendants(parent_pid: int) -> list[int]:
    """Return the pids of the direct children, zombies included."""
    return _procfs.children_by_parent().get(parent_pid, [])


def find_orphans(repo_root: str | Path | None = None) -> list[int]:
    """
    Return this user's subactors whose parent is gone, so that init adopted them.

    Args:
        repo_root: Only those which run in this directory or below it; `None` means all.
    """
    return [
        pid
        for pid in find_descendants(1)
        if _procfs.owner(pid) == os.getuid()
        and _is_alive(pid)
        and _is_tractor_subactor(pid)
        and (repo_root is None or _runs_below(pid, Path(repo_root)))
    ]


def _runs_below(pid: int, directory: Path) -> bool:
    cwd = _procfs.read_link(pid, 'cwd')
    return bool(cwd) and Path(cwd).is_relative_to(directory.resolve())


def find_zombies(parent_pid: int | None = None) -> list[int]:
    """
    Return subactors that ended and whose parent has not collected them.

    Args:
        parent_pid: Only children of this process; `None` means any parent's.
    """
    pids = _procfs.all_pids() if parent_pid is None else find_descendants(parent_pid)
    return [
        pid for pid in pids if _procfs.state(pid) == 'Z' and _is_tractor_subactor(pid)
    ]


def find_runaway_subactors(
    parent_pid: int,
    *,
    cpu_threshold: float = 95.0,
    sample_interval: float = _RUNAWAY_SAMPLE,
    only_pids: Iterable[int] | None = None,
) -> list[tuple[int, float, str]]:
    """
    Return the children that burn CPU, as `(pid, percent of one core, command line)`.

    Blocks for one `sample_interval`, however many processes there are.

    Args:
        parent_pid: Whose direct children to look at.
        cpu_threshold: Percent of one core from which a process counts.
        sample_interval: Seconds to measure.
        only_pids: Look at these instead; empty returns at once.
    Raises:
        ImportError: `psutil` is not installed.
    """
    if only_pids is None:
        only_pids = filter(_is_tractor_subactor, find_descendants(parent_pid))
    pids = list(only_pids)
    if not pids:
        return []

    # A test-only dependency, and this is its only user on most platforms.
    import psutil

    processes: list[Any] = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            process.cpu_percent()
        except psutil.Error:
            continue
        processes.append(process)
    time.sleep(sample_interval)

    busy: list[tuple[int, float, str]] = []
    for process in processes:
        try:
            cpu = process.cpu_percent()
        except psutil.Error:
            continue
        if cpu >= cpu_threshold:
            busy.append((process.pid, cpu, _read_cmdline(process.pid)))
    return busy


def reap(
    pids: Iterable[int],
    *,
    grace: float = 3.0,
    poll: float = 0.25,
    log: Callable[[str], object] = print,
    include_descendants: bool = True,
) -> tuple[list[int], list[int]]:
    """
    Interrupt processes, and kill those which are still there after a while.

    Blocks until all are gone or the grace period is over.  An ended process stays a
    zombie until its own parent collects its status.  This process is never signalled.

    Args:
        pids: What to end; vanished ones are ignored.
        grace: Seconds between SIGINT and SIGKILL.
        poll: Seconds between two looks.
        log: Called with one line per signal sent.
        include_descendants: Also end everything below them.
    Returns:
        The pids that got SIGINT, and those of them that had to be killed.
    """
    targets = list(dict.fromkeys(pids))
    if include_descendants:
        targets = _procfs.subtree(targets)

    # A pid may be given to another process during the grace period.
    started = {
        pid: _procfs.started_at(pid)
        for pid in targets
        if pid > 1 and pid != os.getpid() and _is_alive(pid)
    }

    def is_same(pid: int) -> bool:
        return _is_alive(pid) and _procfs.started_at(pid) == started[pid]

    signalled = [pid for pid in started if _signal(pid, signal.SIGINT, log)]
    deadline = time.monotonic() + grace
    left = [pid for pid in signalled if is_same(pid)]
    while left and time.monotonic() < deadline:
        time.sleep(min(poll, max(0.0, deadline - time.monotonic())))
        left = [pid for pid in left if is_same(pid)]

    killed = [pid for pid in left if _signal(pid, signal.SIGKILL, log)]
    return signalled, killed


def _signal(pid: int, signum: signal.Signals, log: Callable[[str], object]) -> bool:
    cmdline = _read_cmdline(pid) or _read_comm(pid)
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    except PermissionError as err:
        log(f'cannot send {signum.name} to {pid}: {err}: {cmdline}')
        return False
    log(f'sent {signum.name} to {pid}: {cmdline}')
    return True


def find_orphaned_shm(
    *,
    uid: int | None = None,
    shm_dir: str | Path = '/dev/shm',
) -> list[str]:
    """
    Return shared memory segments that no visible process has mapped or open.

    Args:
        uid: Whose segments; `None` means this user's.
        shm_dir: Where the platform keeps them.
    Raises:
        NotImplementedError: Not on Linux or FreeBSD.
        ImportError: `psutil` is not installed.
    """
    if not sys.platform.startswith(('linux', 'freebsd')):
        raise NotImplementedError(
            f'shared memory segments cannot be listed on {sys.platform!r}; '
            'this needs Linux or FreeBSD'
        )
    owner = os.getuid() if uid is None else uid
    candidates: list[str] = []
    for path in sorted(Path(shm_dir).iterdir()) if Path(shm_dir).is_dir() else ():
        try:
            info = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(info.st_mode) and info.st_uid == owner:
            candidates.append(str(path))

    in_use = _paths_in_use() if candidates else set()
    return [path for path in candidates if path not in in_use]


def _paths_in_use() -> set[str]:
    # A test-only dependency which knows mappings and open files of each platform.
    import psutil

    paths: set[str] = set()
    for process in psutil.process_iter():
        try:
            paths.update(entry.path for entry in process.memory_maps())
            paths.update(entry.path for entry in process.open_files())
        except (psutil.Error, OSError):
            continue
    return paths


def reap_shm(
    paths: Iterable[str | Path],
    *,
    log: Callable[[str], object] = print,
) -> tuple[list[str], list[tuple[str, OSError]]]:
    """
    Unlink shared memory segments.

    Returns:
        The paths removed, and `(path, error)` of those which could not be.
    """
    return _unlink_all(paths, log)


def get_uds_dir() -> str | None:
    """Return the directory of actors' sockets, `None` without Unix sockets."""
    # Loads the transport and trio, which finding processes does without.
    from tractor.ipc._uds import HAS_UDS, UDSAddress

    return str(UDSAddress.def_bindspace) if HAS_UDS else None


def find_orphaned_uds(
    *,
    uds_dir: str | Path | None = None,
    include_registry_sentinel: bool = False,
) -> list[str]:
    """
    Return the paths of sockets `<name>@<pid>.sock` which a dead process left.

    Its pid is not enough: users choose such names for their registries, and a pid says
    nothing of a process in another container.  Nobody must listen there either.

    Args:
        uds_dir: Where to look; `None` means the runtime's own directory.
        include_registry_sentinel: Also return the default registry's socket, whose
            number is no pid, if nobody listens there.
    """
    directory = get_uds_dir() if uds_dir is None else uds_dir
    if directory is None or not Path(directory).is_dir():
        return []

    orphaned: list[str] = []
    for path in sorted(Path(directory).iterdir()):
        match = _SOCKET_NAME.fullmatch(path.name)
        if match is None or path.is_dir():
            continue
        if path.name == _REGISTRY_SENTINEL:
            dead = include_registry_sentinel
        else:
            dead = not _is_alive(int(match['pid']))
        if dead and _is_refused(path):
            orphaned.append(str(path))
    return orphaned


def _is_refused(path: str | Path) -> bool:
    """Return whether it is certain that nobody listens at a socket file."""
    with socket.socket(socket.AF_UNIX) as probe:
        # Never waits: a full backlog is an error, which only a listener can have.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def reap_uds(
    paths: Iterable[str | Path],
    *,
    log: Callable[[str], object] = print,
) -> tuple[list[str], list[tuple[str, OSError]]]:
    """
    Unlink socket files; those already gone or in use by now are passed over.

    Returns:
        The paths removed, and `(path, error)` of those which could not be.
    """
    # Loads the transport and trio, which finding processes does without.
    from tractor.ipc import _uds

    def unlink(path: str) -> bool:
        # Between binding and listening a new owner would look like nobody.
        with _uds._opened(Path(path).parent) as directory:
            if _uds._lock_soon(directory) and _is_refused(path):
                os.unlink(path)
                return True
        return False

    return _unlink_all(paths, log, unlink)


def _unlink(path: str) -> bool:
    os.unlink(path)
    return True


def _unlink_all(
    paths: Iterable[str | Path],
    log: Callable[[str], object],
    unlink: Callable[[str], bool] = _unlink,
) -> tuple[list[str], list[tuple[str, OSError]]]:
    """Apply `unlink`, which says whether it did, and keep account."""
    unlinked: list[str] = []
    errors: list[tuple[str, OSError]] = []
    for path in map(str, paths):
        try:
            if not unlink(path):
                continue
        except FileNotFoundError:
            continue
        except OSError as err:
            log(f'cannot unlink {path}: {err}')
            errors.append((path, err))
        else:
            log(f'unlinked {path}')
            unlinked.append(path)
    return unlinked, errors


# -- fixtures ----------------------------------------------------------------


def _leftover_children() -> list[int]:
    """Return live children of this process, without those multiprocessing keeps."""
    return [
        pid
        for pid in find_descendants(os.getpid())
        if _is_alive(pid)
        and not any(helper in _read_cmdline(pid) for helper in _MP_HELPERS)
    ]


def _write_stderr(line: str) -> None:
    sys.stderr.write(f'{line}\n')


@pytest.fixture(scope='session')
def _reap_orphaned_subactors() -> Iterator[None]:
    """After the session, end subactors that are still there and drop dead sockets."""
    yield
    reap(filter(_is_tractor_subactor, _leftover_children()), log=_write_stderr)
    # Nobody left a socket behind if nobody loaded the transport.
    if 'tractor.ipc._uds' in sys.modules:
        reap_uds(find_orphaned_uds(), log=_write_stderr)


@pytest.fixture
def reap_subactors_per_test() -> Iterator[int]:
    """Yield the runner's pid; afterwards end its children and newly orphaned actors."""
    here = Path.cwd()
    before = set(find_orphans(here))
    yield os.getpid()
    orphans = [pid for pid in find_orphans(here) if pid not in before]
    reap([*_leftover_children(), *orphans], log=_write_stderr)


@pytest.fixture
def track_orphaned_uds_per_test() -> Iterator[None]:
    """Remove the sockets which the test's dead actors left, with a warning."""
    before = set(find_orphaned_uds())
    yield
    leaked = [path for path in find_orphaned_uds() if path not in before]
    reap_uds(leaked, log=_write_stderr)
    if leaked:
        warnings.warn(f'the test leaked sockets: {", ".join(leaked)}', stacklevel=1)


@pytest.fixture
def detect_runaway_subactors_per_test() -> Iterator[None]:
    """Warn of actors which the test left behind spinning; nothing is killed."""
    yield
    for pid, cpu, cmdline in find_runaway_subactors(os.getpid()):
        warnings.warn(
            f'the test left subactor {pid} at {cpu:.0f}% CPU: {cmdline}', stacklevel=1
        )
