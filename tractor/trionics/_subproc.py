"""
Run a foreign program as a task: its output becomes log records, its failure an error.

The program never gets hold of the controlling terminal: it has no stdin, and what it
writes goes into a pipe that is drained concurrently, or nowhere.  The task ends when
the program has exited and its pipes are at end of file.  Used by applications.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from tractor.log import get_logger
from tractor.trionics._beg import collapse_eg

if TYPE_CHECKING:
    from trio.abc import ReceiveStream

log = get_logger(__name__)

type Command = str | bytes | os.PathLike[str] | Sequence[str | bytes | os.PathLike[str]]

# How much of a program's stderr its error keeps, in bytes: the end of it.
_STDERR_TAIL: Final = 16 * 1024

# How much of a line is kept waiting for its end, in bytes.
_LONGEST_LINE: Final = 1024 * 1024

_UNSET: Final[Any] = object()


async def supervise_run_process(
    cmd: Command,
    *,
    check: bool = True,
    label: str | None = None,
    relay_stdout: bool = False,
    relay_stderr: bool = False,
    relay_level: str = 'io',
    stdout: Any = _UNSET,
    task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED,
    **run_process_kwargs: Any,
) -> None:
    """
    Run a program to its end; for use with `nursery.start()`.

    Waits until the program has exited and what is piped has reached end of file: a
    daemon which it leaves behind, holding the pipe, keeps this task waiting.  When
    cancelled, the program is ended as by `trio.run_process()` while its output is
    still being read; what it had not written by then is dropped.

    Args:
        cmd: The program and its arguments, or a shell command with `shell=True`.
        check: Raise if the exit status is not zero.  Its stderr is kept for that.
        label: Prefix of its log records; `None` means the command itself.
        relay_stdout: Log each line of stdout as `[<label>:out] <line>`; a line above
            1 MiB in several pieces.
        relay_stderr: Log each line of stderr as `[<label>:err] <line>`.
        relay_level: Name of the method of this module's `log` that is called.
        stdout: Where stdout goes when it is not relayed; by default nowhere.
        run_process_kwargs: More arguments of `trio.run_process()`; `stdin` and
            `stderr` are ignored, as they are managed here.
    Raises:
        subprocess.CalledProcessError: The exit status was not zero.  `.stderr` holds
            the last 16 KiB, as bytes; a note holds the text.
        ValueError: An output was to be captured or piped with nobody to read it, or
            the log has no such level.
    """
    if captured := {'capture_stdout', 'capture_stderr'} & run_process_kwargs.keys():
        raise ValueError(
            f'{" and ".join(sorted(captured))}: a supervised program has no result to'
            ' hold the output; use relay_stdout= or relay_stderr='
        )
    if stdout is subprocess.PIPE and not relay_stdout:
        raise ValueError(
            'stdout=PIPE: nobody would read it, and the program would block; use'
            ' relay_stdout=True'
        )
    if (relay_stdout or relay_stderr) and not callable(getattr(log, relay_level, None)):
        raise ValueError(f'relay_level={relay_level!r} is no level of the log')
    if label is None:
        label = _command_text(cmd)
    if relay_stdout:
        stdout = subprocess.PIPE
    elif stdout is _UNSET:
        stdout = subprocess.DEVNULL
    run_process_kwargs |= {
        'stdin': subprocess.DEVNULL,
        'stdout': stdout,
        'stderr': subprocess.PIPE if relay_stderr or check else subprocess.DEVNULL,
        'check': False,
    }
    out = _Drain(partial(_relay, f'[{label}:out] ', relay_level))
    err = _Drain(
        partial(_relay, f'[{label}:err] ', relay_level) if relay_stderr else None,
        _STDERR_TAIL,
    )
    # The nursery is an internal matter: an error is to leave bare.
    async with collapse_eg(add_notes=False), trio.open_nursery() as tn:
        run = partial(_run, (out, err), cmd, run_process_kwargs)
        process: trio.Process = await tn.start(run)
        if relay_stdout and process.stdout is not None:
            tn.start_soon(out.read, process.stdout)
        if process.stderr is not None:
            tn.start_soon(err.read, process.stderr)
        task_status.started(process)
    if check and process.returncode:
        raise _failure(process, cmd, label, bytes(err.tail))


async def _run(
    drains: Sequence[_Drain],
    cmd: Command,
    options: dict[str, Any],
    task_status: trio.TaskStatus[trio.Process],
) -> None:
    try:
        await trio.run_process(cmd, task_status=task_status, **options)
    finally:
        # The program is gone; what holds its pipes open now may be cancelled.
        for drain in drains:
            drain.scope.shield = False


def _relay(prefix: str, level: str, line: bytes) -> None:
    # The level is looked up for each line, so that a replaced method takes effect.
    getattr(log, level)(prefix + line.decode(errors='replace'))


def _command_text(cmd: Command) -> str:
    parts = [cmd] if isinstance(cmd, str | bytes | os.PathLike) else cmd
    return ' '.join(os.fsdecode(part) for part in parts)


def _failure(
    process: trio.Process, cmd: Command, label: str, stderr: bytes
) -> subprocess.CalledProcessError:
    error = subprocess.CalledProcessError(process.returncode or 0, cmd, stderr=stderr)
    text = stderr.decode(errors='replace').rstrip()
    error.add_note(f'stderr of {label}: {text or "empty"}')
    return error


class _Drain:
    """
    Reads one pipe to its end, by lines.

    Shielded as long as the program lives: one that is told to end may have to get
    rid of its output first.
    """

    __slots__ = ('_emit', '_partial', '_tail_size', 'scope', 'tail')

    def __init__(
        self, emit: Callable[[bytes], None] | None, tail_size: int = 0
    ) -> None:
        self._emit = emit
        self._tail_size = tail_size
        # The line that is not complete yet.
        self._partial = bytearray()
        # The last `tail_size` bytes.
        self.tail = bytearray()
        self.scope = trio.CancelScope(shield=True)

    async def read(self, pipe: ReceiveStream) -> None:
        """Read until end of file; a last line without an end is a line too."""
        with self.scope:
            try:
                async with pipe:
                    async for data in pipe:
                        self._take(bytes(data))
            finally:
                if self._partial:
                    self._end_line()

    def _take(self, data: bytes) -> None:
        if self._tail_size:
            self.tail += data
            del self.tail[: -self._tail_size]
        if self._emit is None:
            return
        *ends, rest = data.split(b'\n')
        for end in ends:
            self._add(end)
            self._end_line()
        self._add(rest)

    def _add(self, data: bytes) -> None:
        self._partial += data
        # By more than one byte: what is left must not be a lone CR.
        while len(self._partial) > _LONGEST_LINE + 1:
            self._emit_first(_character_start(self._partial, _LONGEST_LINE))

    def _end_line(self) -> None:
        line = self._partial
        self._emit_first(len(line.rstrip(b'\r')))
        line.clear()

    def _emit_first(self, size: int) -> None:
        piece = bytes(self._partial[:size])
        del self._partial[:size]
        if self._emit is not None:
            self._emit(piece)


def _character_start(text: bytearray, at: int) -> int:
    """Return where the UTF-8 character starts which has its part at `at`."""
    start = at
    while start > at - 3 and text[start] & 0xC0 == 0x80:
        start -= 1
    return start
