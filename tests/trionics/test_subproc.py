"""Rules of `tractor.trionics._subproc`: what a supervised program may and shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio

from tractor.trionics import _subproc, collapse_eg, supervise_run_process


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged at the default level."""
    return log_to(monkeypatch, 'io')


def log_to(monkeypatch: pytest.MonkeyPatch, level: str) -> list[str]:
    records: list[str] = []
    monkeypatch.setattr(_subproc.log, level, records.append, raising=False)
    return records


def python(code: str) -> list[str]:
    """Return a command that runs a few lines of Python."""
    return [sys.executable, '-S', '-c', code]


def supervise(cmd, *, timeout: float = 10, **kwargs) -> trio.Process:
    """Start it in a nursery, wait for its end, return the process."""
    processes: list[trio.Process] = []

    async def main():
        with trio.fail_after(timeout):
            async with collapse_eg(), trio.open_nursery() as tn:

                async def run(task_status):
                    await supervise_run_process(cmd, task_status=task_status, **kwargs)

                processes.append(await tn.start(run))

    trio.run(main)
    return processes[0]


def test_start_delivers_the_live_process():
    """The caller of `start()` gets a process which still runs, and may end it."""

    async def main():
        with trio.fail_after(10):
            async with collapse_eg(), trio.open_nursery() as tn:
                process = await tn.start(supervise_run_process, ['sleep', '60'])
                assert isinstance(process, trio.Process)
                assert process.returncode is None
                process.terminate()

    with pytest.raises(subprocess.CalledProcessError) as info:
        trio.run(main)
    assert info.value.returncode == -signal.SIGTERM


def test_without_start_it_is_awaited_directly():
    """The default `task_status` makes it a plain async function."""

    async def main():
        with trio.fail_after(10):
            await supervise_run_process(['true'])

    trio.run(main)


def test_program_has_no_terminal():
    """stdin and unrelayed stdout are the null device, stderr is a pipe or null."""
    code = (
        'import os, stat\n'
        'null = os.stat(os.devnull).st_rdev\n'
        'kinds = ["null" if os.fstat(fd).st_rdev == null else'
        ' "pipe" if stat.S_ISFIFO(os.fstat(fd).st_mode) or'
        ' stat.S_ISSOCK(os.fstat(fd).st_mode) else "other" for fd in range(3)]\n'
        'open(os.environ["REPORT"], "w").write(" ".join(kinds))\n'
    )
    read_end, write_end = os.pipe()

    def kinds(**kwargs: Any) -> str:
        env = {**os.environ, 'REPORT': f'/dev/fd/{write_end}'}
        supervise(python(code), env=env, pass_fds=[write_end], **kwargs)
        return os.read(read_end, 100).decode()

    try:
        assert kinds() == 'null null pipe'
        assert kinds(check=False) == 'null null null'
        assert kinds(check=False, relay_stderr=True) == 'null null pipe'
        assert kinds(relay_stdout=True) == 'null pipe pipe'
        # What is managed cannot be handed in.
        override = {'stdin': None, 'stderr': None}
        assert kinds(**override) == 'null null pipe'
    finally:
        os.close(read_end)
        os.close(write_end)


def test_stdout_can_go_to_a_file(tmp_path: Path):
    """An explicit `stdout` is used as given."""
    with (tmp_path / 'out').open('wb') as file:
        supervise(['echo', 'hello'], stdout=file)
    assert (tmp_path / 'out').read_text() == 'hello\n'


# -- relay ---------------------------------------------------------------------


def test_lines_are_relayed_with_label_and_stream(lines: list[str]):
    """Each line of either stream is one record."""
    code = 'import sys; print("a"); print("b"); print("c", file=sys.stderr)'
    supervise(python(code), label='job', relay_stdout=True, relay_stderr=True)
    assert [line for line in lines if ':out' in line] == ['[job:out] a', '[job:out] b']
    assert [line for line in lines if ':err' in line] == ['[job:err] c']


def test_only_the_relayed_stream_is_logged(lines: list[str]):
    """stderr is read for the sake of `check`, but logged only when asked for."""
    code = 'import sys; print("a"); print("c", file=sys.stderr)'
    supervise(python(code), label='job', relay_stdout=True)
    assert lines == ['[job:out] a']


def test_label_defaults_to_the_command(lines: list[str]):
    """The parts of the command, joined by spaces; a shell command as it is."""
    supervise(['echo', 'x'], relay_stdout=True)
    supervise('echo y', shell=True, relay_stdout=True)
    assert lines == ['[echo x:out] x', '[echo y:out] y']


def test_relay_level_names_the_log_method(monkeypatch: pytest.MonkeyPatch):
    """It is looked up when a line is logged, so that it may be replaced."""
    records = log_to(monkeypatch, 'error')
    supervise(['echo', 'x'], relay_stdout=True, relay_level='error', label='job')
    assert records == ['[job:out] x']


def test_relayed_lines_reach_the_log(caplog: pytest.LogCaptureFixture):
    """The default level is `io`, number 21; a percent sign is just text."""
    logger = _subproc.log.logger
    handlers, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(21, logger.name):
            supervise(['echo', '100 %s %d'], relay_stdout=True, label='job')
    finally:
        logger.propagate = handlers
    (record,) = caplog.records
    assert record.levelno == 21
    assert record.getMessage() == '[job:out] 100 %s %d'


@pytest.mark.parametrize(
    ('written', 'expected'),
    [
        (b'a\nb', ['a', 'b']),
        (b'', []),
        (b'\n\n', ['', '']),
        (b'a\r\nb\r\n', ['a', 'b']),
        (b'50%\r100%\r\n', ['50%\r100%']),
        (b'\xff\n', ['�']),
        ('ä\n'.encode(), ['ä']),
    ],
)
def test_lines_are_split_trimmed_and_decoded(
    written: bytes, expected: list[str], lines: list[str]
):
    """A last line without an end counts; CR goes; bad bytes are replaced."""
    code = f'import os; os.write(1, {written!r})'
    supervise(python(code), label='x', relay_stdout=True)
    assert lines == [f'[x:out] {line}' for line in expected]


class Pipe(trio.abc.ReceiveStream):
    """A pipe of which each read brings one of the given pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter((*pieces, b''))

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return next(self._pieces)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def relayed(*pieces: bytes) -> list[str]:
    """Return the lines which are relayed of a pipe."""
    lines: list[bytes] = []
    trio.run(_subproc._Drain(lines.append).read, Pipe(*pieces))
    return [line.decode() for line in lines]


def test_line_arrives_whole_however_it_was_written():
    """A line, its end, and a character of it, may come in pieces."""
    pieces = [b'on', b'e \xc3', b'\xa4', b'\r', b'\n', b'two\nthr', b'ee']
    assert relayed(*pieces) == ['one ä', 'two', 'three']


def test_line_without_end_is_not_kept_without_limit():
    """It is relayed in pieces, long before it ends."""
    lines: list[bytes] = []
    drain = _subproc._Drain(lines.append)
    chunk = b'x' * 64 * 1024
    for _ in range(100):
        drain._take(chunk)
        assert len(drain._partial) <= _subproc._LONGEST_LINE + 1
    drain._take(b'\nnext')
    assert b''.join(lines) == chunk * 100
    assert {len(line) for line in lines[:-1]} == {_subproc._LONGEST_LINE}


@pytest.mark.parametrize(
    ('written', 'expected'),
    [
        ('x' * 8 + '\r\n', ['x' * 8]),
        ('x' * 8 + '\n', ['x' * 8]),
        ('x' * 10 + '\r\n\n', ['x' * 8, 'xx', '']),
        ('1234567\r' * 2 + 'xx\n', ['1234567\r', '1234567\r', 'xx']),
        ('äöüß€' * 2, ['äöüß', '€äö', 'üß€']),
        ('1234567😀😀😀', ['1234567', '😀😀', '😀']),
    ],
)
def test_long_line_is_cut_between_characters(
    monkeypatch: pytest.MonkeyPatch, written: str, expected: list[str]
):
    """Nothing is lost or added, and the end of the line is no piece of its own."""
    monkeypatch.setattr(_subproc, '_LONGEST_LINE', 8)
    data = written.encode()
    assert relayed(data) == expected
    assert relayed(*(data[i : i + 1] for i in range(len(data)))) == expected


def test_bytes_that_are_no_text_are_cut_anywhere(monkeypatch: pytest.MonkeyPatch):
    """No search for the start of a character goes on for ever."""
    monkeypatch.setattr(_subproc, '_LONGEST_LINE', 8)
    lines: list[bytes] = []
    trio.run(_subproc._Drain(lines.append).read, Pipe(b'\x80' * 30))
    assert b''.join(lines) == b'\x80' * 30
    assert max(map(len, lines)) <= 9


@pytest.mark.parametrize('stream', ['out', 'err'])
def test_huge_line_does_not_block(stream: str, lines: list[str]):
    """200 kB without an end arrive intact, as one line."""
    code = f'import sys; sys.std{stream}.write("x" * 200_000)'
    kwargs: dict[str, Any] = {f'relay_std{stream}': True}
    supervise(python(code), label='x', timeout=10, **kwargs)
    assert lines == [f'[x:{stream}] ' + 'x' * 200_000]


def test_unrelayed_output_does_not_block():
    """A stderr that is only kept for `check` is drained all the same."""
    supervise(python('import sys; sys.stderr.write("x" * 200_000)'), timeout=10)


# -- failure -------------------------------------------------------------------


@pytest.mark.parametrize('is_relayed', [False, True])
def test_failure_is_raised_bare_with_its_stderr(is_relayed: bool, lines: list[str]):
    """One `collapse_eg()` around the nursery suffices; a note holds the text."""
    cmd = python('import sys; print("why", file=sys.stderr); sys.exit(3)')
    with pytest.raises(subprocess.CalledProcessError) as info:
        supervise(cmd, relay_stderr=is_relayed, label='job')
    error = info.value
    assert (error.returncode, error.cmd, error.stderr) == (3, cmd, b'why\n')
    assert any('why' in note for note in error.__notes__)
    assert lines == (['[job:err] why'] if is_relayed else [])


def test_failure_is_raised_by_the_task_itself():
    """The nursery of the caller adds the only group."""

    async def main():
        with trio.fail_after(10):
            async with trio.open_nursery() as tn:
                await tn.start(supervise_run_process, ['false'])

    with pytest.raises(ExceptionGroup) as info:
        trio.run(main)
    (error,) = info.value.exceptions
    assert isinstance(error, subprocess.CalledProcessError)


def test_only_the_end_of_a_long_stderr_is_kept():
    """16 KiB of it, the last ones."""
    code = 'import sys; sys.stderr.write("x" * 100_000 + "the end"); sys.exit(1)'
    with pytest.raises(subprocess.CalledProcessError) as info:
        supervise(python(code))
    assert len(info.value.stderr) == 16 * 1024
    assert info.value.stderr.endswith(b'xthe end')


def test_unchecked_failure_is_none():
    """With `check=False` the exit status is the caller's business."""
    assert supervise(['false'], check=False).returncode == 1


def test_missing_program_is_raised_by_start():
    """As from `trio.run_process()`, and bare."""
    with pytest.raises(FileNotFoundError, match='no such program'):
        supervise(['no such program'])


@pytest.mark.parametrize(
    ('kwargs', 'text'),
    [
        ({'capture_stdout': True}, 'capture_stdout'),
        ({'capture_stderr': False}, 'capture_stderr'),
        ({'stdout': subprocess.PIPE}, 'stdout=PIPE'),
        ({'relay_stdout': True, 'relay_level': 'nonsense'}, 'no level'),
    ],
)
def test_arguments_that_cannot_work_are_refused(kwargs: dict[str, Any], text: str):
    """Output that nobody would read, and levels that do not exist."""
    with pytest.raises(ValueError, match=text):
        supervise(['true'], **kwargs)


# -- cancellation --------------------------------------------------------------


def cancel_after_first_line(
    cmd: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[trio.Process, list[str]]:
    """Cancel a relayed program once it has written a line; return all it wrote."""
    lines: list[str] = []

    async def main() -> trio.Process:
        ready = trio.Event()

        def emit(line: str) -> None:
            lines.append(line.removeprefix('[x:out] '))
            ready.set()

        async def run(task_status):
            await supervise_run_process(
                cmd, label='x', relay_stdout=True, task_status=task_status
            )

        monkeypatch.setattr(_subproc.log, 'io', emit, raising=False)
        with trio.fail_after(4):
            async with trio.open_nursery() as tn:
                process: trio.Process = await tn.start(run)
                await ready.wait()
                tn.cancel_scope.cancel()
        return process

    return trio.run(main), lines


def test_cancelled_program_is_ended_while_its_output_is_read(
    monkeypatch: pytest.MonkeyPatch,
):
    """It gets SIGTERM, and may get rid of more than a pipe holds before it ends."""
    code = (
        'import os, signal, sys, time\n'
        'def end(*_):\n'
        '    for _ in range(4): os.write(1, b"x" * 50_000)\n'
        '    sys.exit(0)\n'
        'signal.signal(signal.SIGTERM, end)\n'
        'os.write(1, b"ready\\n")\n'
        # One that comes just before `signal.pause()` would be slept over.
        'while True: time.sleep(.01)\n'
    )
    process, lines = cancel_after_first_line(python(code), monkeypatch)
    assert process.returncode == 0
    assert lines[0] == 'ready'
    assert len(lines[1]) >= 100_000


@pytest.mark.skipif(not Path('/proc/self/fd').exists(), reason='needs /proc')
def test_cancelling_does_not_wait_for_others_that_hold_the_pipe():
    """Once the program is gone, its pipe may be left to whoever has it."""

    async def main():
        with trio.fail_after(4), ExitStack() as stack:
            async with trio.open_nursery() as tn:
                process = await tn.start(supervise_run_process, ['sleep', '60'])
                # As a daemon would which the program has left behind.
                held = open(f'/proc/{process.pid}/fd/2', 'wb')  # noqa: ASYNC230, SIM115
                stack.enter_context(held)
                tn.cancel_scope.cancel()
        assert process.returncode == -signal.SIGTERM

    trio.run(main)
