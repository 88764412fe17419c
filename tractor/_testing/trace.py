"""
Snapshots of a hung process tree.

Owns what is recorded of a test that ran out of time, and when: `fail_after_w_trace()`
and `afk_alarm_w_trace()` take the snapshot at the deadline, before anything is
cancelled, so that the processes still stand where they hung.  Taking one is best
effort, bounded in time and asks nobody for a password; it never hides the error it
accompanies.

One snapshot is a directory `<label>__<time>` with `trace.txt` (every process: state,
threads, descriptors, Python stacks), `bindspace.txt` (the socket directory) and
`meta.json`.  The plugin lists those taken at the end of the session.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import pytest

from tractor._testing import _procfs, _reap

if TYPE_CHECKING:
    import trio

type FailAfterWTraceFactory = Callable[
    ..., AbstractAsyncContextManager[trio.CancelScope]
]
type AfkAlarmWTraceFactory = Callable[..., AbstractContextManager[None]]

# Seconds: for one `py-spy` run, and for all of them in one snapshot.
_PYSPY_TIMEOUT: Final = 5.0
_PYSPY_BUDGET: Final = 15.0

# Seconds for a block to end after its alarm rang, before it rings again.
_AGAIN_AFTER: Final = 5.0

# An earlier alarm that fell due meanwhile rings at once: a timer of zero would disarm.
_OVERDUE: Final = 1e-3

_STATUS_LINES: Final = ('State', 'PPid', 'Threads', 'VmRSS', 'SigBlk', 'SigCgt')

# What was taken in this process, for the summary of the session.
_SNAPSHOT_INDEX: Final[list[tuple[str, Path]]] = []


class AFKAlarmTimeout(TimeoutError):
    """The block under `afk_alarm_w_trace()` did not end in time."""


# -- what is recorded --------------------------------------------------------


def resolve_pids(arg: int | str | None = None) -> list[int]:
    """
    Return the processes that `arg` names.

    Args:
        arg: A pid as number or text, a part of a subactor's command line, or `None` for
            this process.
    """
    if arg is None:
        return [os.getpid()]
    if isinstance(arg, int) or arg.isdigit():
        return [int(arg)]
    return [
        pid
        for pid in _procfs.all_pids()
        if arg in _reap._read_cmdline(pid) and _reap._is_tractor_subactor(pid)
    ]


def dump_proc_tree(roots: Iterable[int]) -> str:
    """Return one line per process below `roots`, indented by generation."""
    table = _procfs.children_by_parent()
    lines: list[str] = []
    pending = [(pid, 0) for pid in reversed(list(roots))]
    while pending:
        pid, depth = pending.pop()
        text = _reap._read_cmdline(pid) or f'[{_reap._read_comm(pid)}]'
        lines.append(f'{"  " * depth}{pid} {_procfs.state(pid) or "gone"} {text}')
        pending.extend((child, depth + 1) for child in reversed(table.get(pid, [])))
    return '\n'.join(lines) + '\n'


def dump_hung_state(
    roots: Iterable[int],
    *,
    allow_sudo_prompt: bool = False,
) -> str:
    """
    Return what each process below `roots` is doing.

    Blocks for at most a quarter of a minute, however many processes there are.

    Args:
        roots: Pids; vanished ones are reported as such.
        allow_sudo_prompt: Read Python stacks through `sudo`, which may ask the person
            at the terminal for a password.
    """
    budget_ends = time.monotonic() + _PYSPY_BUDGET
    sections: list[str] = []
    for pid in _procfs.subtree(list(roots)):
        sections.append(f'==== {pid} {_reap._read_cmdline(pid)}')
        sections.extend(_describe_kernel_side(pid))
        if pid == os.getpid():
            sections.append(_own_stacks())
        else:
            seconds = min(_PYSPY_TIMEOUT, budget_ends - time.monotonic())
            sections.append(_python_stacks(pid, seconds, sudo=allow_sudo_prompt))
    return '\n'.join(sections) + '\n'


def _describe_kernel_side(pid: int) -> Iterator[str]:
    """Yield what `/proc` tells: status, threads and descriptors."""
    if not _procfs.state(pid):
        yield 'no such process'
        return

    for line in _procfs.read_text(pid, 'status').splitlines():
        if line.partition(':')[0] in _STATUS_LINES:
            yield line
    yield f'cwd: {_procfs.read_link(pid, "cwd")}'

    for tid in _procfs.list_names(pid, 'task'):
        task = f'task/{tid}'
        name = _procfs.read_text(pid, f'{task}/comm').strip()
        wchan = _procfs.read_text(pid, f'{task}/wchan').strip()
        syscall = _procfs.read_text(pid, f'{task}/syscall').strip()
        yield f'thread {tid} {name}: waits in {wchan or "?"}, system call {syscall}'
        # Readable for root only.
        yield from _indent(_procfs.read_text(pid, f'{task}/stack'))

    for number in _procfs.list_names(pid, 'fd'):
        yield f'fd {number} -> {_procfs.read_link(pid, f"fd/{number}")}'


def _indent(text: str) -> Iterator[str]:
    return (f'    {line}' for line in text.splitlines())


def _own_stacks() -> str:
    """Return the Python stack of every thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines: list[str] = []
    for ident, frame in sys._current_frames().items():
        lines.append(f'Python stack of thread {names.get(ident, ident)!r}:')
        lines.extend(_indent(''.join(traceback.format_stack(frame))))
    return '\n'.join(lines)


def _python_stacks(pid: int, seconds: float, *, sudo: bool) -> str:
    """Return the Python stacks of another process, or why there are none."""
    pyspy = shutil.which('py-spy')
    if pyspy is None:
        return 'Python stacks: py-spy is not on PATH'
    if seconds <= 0:
        return 'Python stacks: no time left'

    # Without `--nonblocking` the process is stopped, for good if the dump gets stuck.
    command = [pyspy, 'dump', '--nonblocking', '--pid', str(pid)]
    if sudo and os.getuid() != 0:
        command.insert(0, 'sudo')
    try:
        done = subprocess.run(
            command,
            stdin=None if sudo else subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            text=True,
            errors='replace',
        )
    except subprocess.TimeoutExpired:
        return f'Python stacks: py-spy gave no answer within {seconds:.1f} s'
    except OSError as err:
        return f'Python stacks: py-spy could not be run: {err}'
    if done.returncode:
        return f'Python stacks: py-spy failed: {done.stderr.strip()}'
    return done.stdout


def scan_bindspace(arg: str | Path | None = None) -> str:
    """
    Return a listing of a socket directory, each file with the state of its process.

    Args:
        arg: The directory; `None` means the runtime's own.
    """
    directory = _reap.get_uds_dir() if arg is None else arg
    if directory is None:
        return 'no Unix sockets on this platform\n'
    path = Path(directory)
    if not path.is_dir():
        return f'{path}: no such directory\n'

    lines = [f'{path}:']
    orphaned = set(_reap.find_orphaned_uds(uds_dir=path))
    for entry in sorted(path.iterdir()):
        lines.append(f'  {entry.name}{"  owner dead" * (str(entry) in orphaned)}')
    return '\n'.join(lines) + '\n'


def _trio_tasks() -> str:
    """Return where every task of the calling trio loop waits."""
    # Loading trio is the runtime's business; who gets here runs it.
    import trio

    lines: list[str] = []
    root = trio.lowlevel.current_root_task()
    pending: list[tuple[trio.lowlevel.Task, int]] = [(root, 0)] if root else []
    while pending:
        task, depth = pending.pop()
        lines.append(f'{"  " * depth}task {task.name}')
        for frame, line_number in task.iter_await_frames():
            code = frame.f_code
            where = f'{code.co_filename}:{line_number} {code.co_name}'
            lines.append(f'{"  " * depth}    {where}')
        for nursery in task.child_nurseries:
            pending.extend((child, depth + 1) for child in nursery.child_tasks)
    return '\n'.join(lines)


# -- where it goes -----------------------------------------------------------


def dump_all(
    pid: int,
    out_dir: str | Path | None = None,
    *,
    label: str,
    allow_sudo_prompt: bool = False,
) -> Path:
    """
    Write a snapshot of a process and all its descendants.

    Blocks for at most a quarter of a minute.

    Args:
        pid: Root of the tree.
        out_dir: Where the snapshot's own directory is made; `None` means
            `$XDG_CACHE_HOME/tractor/hung-dumps`.
        label: What hung; becomes part of the directory's name.
        allow_sudo_prompt: See `dump_hung_state()`.
    Returns:
        The directory made.
    Raises:
        OSError: It cannot be written.
    """
    return _write_snapshot(
        pid, out_dir, label=label, allow_sudo_prompt=allow_sudo_prompt
    )


def _write_snapshot(
    pid: int,
    out_dir: str | Path | None,
    *,
    label: str,
    allow_sudo_prompt: bool = False,
    trio_tasks: str = '',
) -> Path:
    taken_at = datetime.now().astimezone()
    directory = _make_directory(out_dir, label, taken_at)
    tree = dump_proc_tree([pid])
    state = dump_hung_state([pid], allow_sudo_prompt=allow_sudo_prompt)
    (directory / 'trace.txt').write_text(
        f'{tree}\n{state}'
        + (f'\n==== trio tasks of {os.getpid()}\n{trio_tasks}\n' if trio_tasks else '')
    )
    (directory / 'bindspace.txt').write_text(scan_bindspace())
    meta = {
        'label': label,
        'pid': pid,
        'time': taken_at.isoformat(),
        'taken_by': os.getpid(),
        'argv': sys.argv,
        'cwd': os.getcwd(),
        'python': sys.version,
        'platform': sys.platform,
        'pids': _procfs.subtree([pid]),
    }
    (directory / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n')
    _SNAPSHOT_INDEX.append((label, directory))
    return directory


def _make_directory(out_dir: str | Path | None, label: str, taken_at: datetime) -> Path:
    if out_dir is None:
        # An empty variable counts as unset, as for every XDG directory.
        cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
        out_dir = Path(cache) / 'tractor' / 'hung-dumps'
    # Node ids hold slashes and brackets, and may be longer than a file name.
    name = re.sub(r'[^\w.=-]+', '_', label)[:120]
    directory = Path(out_dir) / f'{name}__{taken_at:%Y%m%d-%H%M%S-%f}'
    directory.mkdir(parents=True)
    return directory


def _try_snapshot(
    pid: int | None, out_dir: str | Path | None, label: str, trio_tasks: str = ''
) -> None:
    """Take a snapshot, or say on stderr why not; a failure must not hide the hang."""
    try:
        directory = _write_snapshot(
            os.getpid() if pid is None else pid,
            out_dir,
            label=label,
            trio_tasks=trio_tasks,
        )
    except Exception as err:
        sys.stderr.write(f'no snapshot of {label!r} could be taken: {err!r}\n')
    else:
        sys.stderr.write(f'{label!r} ran out of time, snapshot: {directory}\n')


# -- when it is taken --------------------------------------------------------


@asynccontextmanager
async def fail_after_w_trace(
    seconds: float,
    *,
    label: str,
    pid: int | None = None,
    out_dir: str | Path | None = None,
) -> AsyncIterator[trio.CancelScope]:
    """
    Like `trio.fail_after()`, with a snapshot taken before the block is cancelled.

    The cancellation comes late by the time the snapshot takes.  A block that ends
    meanwhile has succeeded.

    Args:
        seconds: Until the deadline; not negative.
        label: What is timed, for the snapshot's name.
        pid: Root of the tree to record; `None` means this process.
        out_dir: See `dump_all()`.
    Returns:
        The cancel scope around the block.
    Raises:
        trio.TooSlowError: The block was cancelled by the deadline.
    """
    # The plugin imports this module in suites that may never run trio.
    import trio

    if not seconds >= 0:
        raise ValueError(f'the time limit must not be negative, but is {seconds} s')

    watch_scope = trio.CancelScope()
    watch_ended = trio.Event()
    with trio.CancelScope() as scope:

        async def watch() -> None:
            try:
                with watch_scope:
                    await trio.sleep(seconds)
                    # Neither the end of the block nor that of the run stops it halfway.
                    with trio.CancelScope(shield=True):
                        tasks = _trio_tasks()
                        await trio.to_thread.run_sync(
                            _try_snapshot, pid, out_dir, label, tasks
                        )
                    scope.cancel()
            finally:
                watch_ended.set()

        # A nursery of our own would put what the block raises into a group.
        trio.lowlevel.spawn_system_task(watch, name=f'deadline of {label}')
        try:
            yield scope
        finally:
            watch_scope.cancel()
            with trio.CancelScope(shield=True):
                await watch_ended.wait()
    if scope.cancelled_caught:
        raise trio.TooSlowError


def _in_trio_run() -> bool:
    # Whoever is in a run has loaded it; an alarm handler imports as little as it can.
    trio = sys.modules.get('trio')
    return trio is not None and trio.lowlevel.in_trio_run()


@contextmanager
def afk_alarm_w_trace(
    seconds: float,
    *,
    label: str,
    pid: int | None = None,
    out_dir: str | Path | None = None,
) -> Iterator[None]:
    """
    Break into a block that takes too long, even one that blocks the whole thread.

    Uses SIGALRM.  A trio run in the block is interrupted as by Ctrl-C.  A block that
    goes on, say because a finalizer was interrupted, which no error leaves, is broken
    into every 5 s.  An alarm that was already set goes on when the block is left; one
    that fell due meanwhile rings then.

    Args:
        seconds: Until the alarm; more than 0.
        label: What is timed, for the snapshot's name.
        pid: Root of the tree to record; `None` means this process.
        out_dir: See `dump_all()`.
    Raises:
        AFKAlarmTimeout: Time ran out; its cause is what the block made of the alarm.
        RuntimeError: Not in the main thread, where alone signals arrive.
        ValueError: `seconds` is not more than 0.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            f'the alarm of {label!r} needs the main thread, '
            f'not {threading.current_thread().name!r}'
        )
    if not seconds > 0:
        raise ValueError(f'the alarm must be more than 0 s away, but is {seconds} s')

    alarm: AFKAlarmTimeout | None = None
    over = False

    def ring(signum: int, frame: FrameType | None) -> None:
        nonlocal alarm
        if over:
            return
        first = alarm is None
        if alarm is None:
            _try_snapshot(pid, out_dir, label)
            alarm = AFKAlarmTimeout(f'{label!r} did not end within {seconds:g} s')
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_AFTER)
        if first and _in_trio_run():
            # Trio hands a Ctrl-C to its main task and unwinds; an exception out of
            # nowhere would wreck its loop.
            signal.raise_signal(signal.SIGINT)
            return
        raise alarm

    began = time.monotonic()
    previous = signal.signal(signal.SIGALRM, ring)
    earlier = interval = 0.0
    try:
        earlier, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    except BaseException as err:
        # Trio reports an interrupt, or a group, or that its loop was wrecked.
        if alarm is None or err is alarm:
            raise
        raise alarm from err
    else:
        if alarm is not None:
            raise alarm
    finally:
        over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if earlier:
            left = earlier - (time.monotonic() - began)
            signal.setitimer(signal.ITIMER_REAL, max(left, _OVERDUE), interval)


# -- fixtures ----------------------------------------------------------------


@pytest.fixture(name='fail_after_w_trace')
def _fail_after_w_trace(request: pytest.FixtureRequest) -> FailAfterWTraceFactory:
    """`fail_after_w_trace()` labelled with the test's name."""

    def factory(
        seconds: float, **options: Any
    ) -> AbstractAsyncContextManager[trio.CancelScope]:
        options.setdefault('label', request.node.name)
        return fail_after_w_trace(seconds, **options)

    return factory


@pytest.fixture(name='afk_alarm_w_trace')
def _afk_alarm_w_trace(request: pytest.FixtureRequest) -> AfkAlarmWTraceFactory:
    """`afk_alarm_w_trace()` labelled with the test's name."""

    def factory(seconds: float, **options: Any) -> AbstractContextManager[None]:
        options.setdefault('label', request.node.name)
        return afk_alarm_w_trace(seconds, **options)

    return factory
