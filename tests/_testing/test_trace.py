"""Snapshots of a hung test: what they hold, and when they are taken."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import trio

from tractor._testing import _reap, repodir, trace
from tractor._testing.trace import (
    AFKAlarmTimeout,
    afk_alarm_w_trace,
    dump_all,
    fail_after_w_trace,
)


@pytest.fixture(autouse=True)
def index(monkeypatch, tmp_path):
    """An index of this test alone, a socket directory of its own, and no `py-spy`."""
    monkeypatch.setattr(trace, '_SNAPSHOT_INDEX', taken := [])
    monkeypatch.setattr(_reap, 'get_uds_dir', lambda: str(tmp_path / 'sockets'))
    monkeypatch.setattr(trace.shutil, 'which', lambda name: None)
    return taken


@contextlib.contextmanager
def waiting_process(argument):
    """A process that has started to wait; its command line ends with `argument`."""
    with subprocess.Popen(
        [sys.executable, '-c', 'print(flush=True); input()', argument],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as proc:
        proc.stdout.readline()
        yield proc
        proc.kill()


@pytest.fixture
def child():
    """A child that waits."""
    with waiting_process('hung-child') as proc:
        yield proc.pid


def block():
    """Block in a system call; not in `signal.pause()`, which sleeps over a signal that
    comes just before it."""
    time.sleep(5)


# -- what is recorded ------------------------------------------------------------------


def test_snapshot_is_a_directory_of_three_files(index, tmp_path):
    """Label and time name it, and the index lists it."""
    directory = dump_all(os.getpid(), tmp_path, label='tests/a.py::test_x[1]')
    assert directory.parent == tmp_path
    assert directory.name.startswith('tests_a.py_test_x_1___')
    assert sorted(path.name for path in directory.iterdir()) == [
        'bindspace.txt',
        'meta.json',
        'trace.txt',
    ]
    assert index == [('tests/a.py::test_x[1]', directory)]


def test_two_snapshots_never_share_a_directory(tmp_path):
    """One label, twice in a row, gives two directories."""
    first = dump_all(os.getpid(), tmp_path, label='same')
    assert dump_all(os.getpid(), tmp_path, label='same') != first


def test_snapshots_go_to_the_cache_directory(monkeypatch, tmp_path):
    """Without `out_dir` the user's cache directory holds them."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    directory = dump_all(os.getpid(), label='x')
    assert directory.parent == tmp_path / 'cache' / 'tractor' / 'hung-dumps'

    monkeypatch.setenv('XDG_CACHE_HOME', '')
    monkeypatch.setenv('HOME', str(tmp_path))
    directory = dump_all(os.getpid(), label='x')
    assert directory.parent == tmp_path / '.cache' / 'tractor' / 'hung-dumps'


def test_meta_names_the_processes(tmp_path, child):
    """The JSON file can be read by a program."""
    directory = dump_all(os.getpid(), tmp_path, label='x')
    meta = json.loads((directory / 'meta.json').read_text())
    assert meta['label'] == 'x'
    assert meta['pid'] == os.getpid()
    assert child in meta['pids']


def test_tree_is_indented_by_generation(child):
    """A child stands below its parent."""
    lines = trace.dump_proc_tree([os.getpid()]).splitlines()
    assert lines[0].startswith(f'{os.getpid()} ')
    assert any(line.startswith(f'  {child} ') for line in lines)


def test_state_covers_threads_and_descriptors(child):
    """Status, what each thread waits in, and open files of every process."""
    text = trace.dump_hung_state([child])
    assert (
        f'==== {child} {sys.executable} -c print(flush=True); input() hung-child'
        in text
    )
    assert 'State:' in text
    assert f'thread {child} ' in text
    assert 'fd 0 -> pipe:' in text


def test_own_python_stacks_are_recorded():
    """No tool is needed for the stacks of the process itself."""
    text = trace.dump_hung_state([os.getpid()])
    assert "Python stack of thread 'MainThread'" in text
    assert 'test_own_python_stacks_are_recorded' in text


def test_vanished_process_is_reported():
    """A root that ended meanwhile is no error."""
    proc = subprocess.Popen([sys.executable, '-c', ''])
    proc.wait(10)
    assert 'no such process' in trace.dump_hung_state([proc.pid])
    assert trace.dump_proc_tree([proc.pid]) == f'{proc.pid} gone []\n'


def test_missing_pyspy_is_reported(child):
    """The snapshot says why it holds no stacks of other processes."""
    assert 'py-spy is not on PATH' in trace.dump_hung_state([child])


@pytest.mark.parametrize(
    ('script', 'said'),
    [
        ('echo "stack of $4"', 'stack of {child}\n'),
        ('echo not permitted >&2; exit 3', 'py-spy failed: not permitted'),
        ('exec sleep 60', 'py-spy gave no answer within 0.2 s'),
    ],
)
def test_pyspy_is_used_within_bounds(monkeypatch, tmp_path, child, script, said):
    """What it prints is taken; a failure or a hang is reported instead."""
    tool = tmp_path / 'py-spy'
    tool.write_text(f'#!/bin/sh\n{script}\n')
    tool.chmod(0o700)
    monkeypatch.setattr(trace.shutil, 'which', lambda name: str(tool))
    monkeypatch.setattr(trace, '_PYSPY_TIMEOUT', 0.2 if 'sleep' in script else 30)
    assert said.format(child=child) in trace.dump_hung_state([child])


def test_pyspy_stops_when_the_budget_is_spent(monkeypatch, child):
    """Many processes do not add up to minutes."""
    monkeypatch.setattr(trace.shutil, 'which', lambda name: '/bin/false')
    monkeypatch.setattr(trace, '_PYSPY_BUDGET', 0.0)
    assert 'no time left' in trace.dump_hung_state([child])


def test_nobody_is_asked_for_a_password(monkeypatch, child):
    """Unless allowed, `sudo` is not used and the tool gets no terminal to ask on."""
    calls = []

    def run(command, **options):
        calls.append((command, options['stdin']))
        return subprocess.CompletedProcess(command, 0, 'stacks', '')

    monkeypatch.setattr(trace.shutil, 'which', lambda name: '/opt/py-spy')
    monkeypatch.setattr(trace.os, 'getuid', lambda: 1000)
    monkeypatch.setattr(trace.subprocess, 'run', run)
    trace.dump_hung_state([child])
    trace.dump_hung_state([child], allow_sudo_prompt=True)
    assert calls[0][0][0] == '/opt/py-spy'
    assert calls[0][1] is subprocess.DEVNULL
    assert calls[1][0][0] == 'sudo'


def test_socket_directory_is_listed(tmp_path):
    """Each file, with a mark where its process is dead."""
    proc = subprocess.Popen([sys.executable, '-c', ''])
    proc.wait(10)
    (tmp_path / f'gone@{proc.pid}.sock').touch()
    (tmp_path / f'live@{os.getpid()}.sock').touch()
    assert trace.scan_bindspace(tmp_path).splitlines() == [
        f'{tmp_path}:',
        f'  gone@{proc.pid}.sock  owner dead',
        f'  live@{os.getpid()}.sock',
    ]
    assert 'no such directory' in trace.scan_bindspace(tmp_path / 'missing')


def test_pids_are_resolved_from_numbers_and_text(child):
    """A number is taken as it is; text looks for actors only."""
    assert trace.resolve_pids() == [os.getpid()]
    assert trace.resolve_pids(7) == trace.resolve_pids('7') == [7]
    assert trace.resolve_pids('hung-child') == []
    name = f'odd-name-{os.getpid()}'  # all actors of the machine are looked at
    with waiting_process(f'_subactor[{name}@1]') as actor:
        assert trace.resolve_pids(name) == [actor.pid]


# -- deadlines of async blocks ---------------------------------------------------------


def test_block_in_time_takes_no_snapshot(index, tmp_path):
    """Nothing is recorded, and the result gets out."""

    async def main():
        async with fail_after_w_trace(30, label='x', out_dir=tmp_path):
            await trio.lowlevel.checkpoint()
        return 'done'

    assert trio.run(main) == 'done'
    assert index == []


def test_deadline_cancels_after_the_snapshot(index, tmp_path):
    """The block still stands where it hung when the snapshot is taken."""
    seen_when_cancelled = []

    async def hang():
        try:
            await trio.sleep_forever()
        finally:
            seen_when_cancelled.extend(index)

    async def main():
        async with fail_after_w_trace(0.01, label='hang', out_dir=tmp_path):
            await hang()

    with pytest.raises(trio.TooSlowError):
        trio.run(main)
    [(label, directory)] = seen_when_cancelled
    assert label == 'hang'
    text = (directory / 'trace.txt').read_text()
    assert '==== trio tasks of' in text
    tasks = text.partition('==== trio tasks of')[2]
    here = [line.split()[-1] for line in tasks.splitlines() if __file__ in line]
    assert here == ['main', 'hang']


def test_error_that_follows_the_timeout_is_kept(index, tmp_path):
    """An error raised while unwinding is not replaced by the timeout."""

    async def main():
        async with fail_after_w_trace(0.01, label='x', out_dir=tmp_path):
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError('while unwinding')

    with pytest.raises(ValueError, match='while unwinding'):
        trio.run(main)
    assert len(index) == 1


def test_error_of_the_block_is_raised_bare(index, tmp_path):
    """An error before the deadline passes as it is, in no group."""

    async def main():
        async with fail_after_w_trace(30, label='x', out_dir=tmp_path):
            raise ValueError('of the block')

    with pytest.raises(ValueError, match='of the block'):
        trio.run(main)
    assert index == []


def test_outer_cancellation_is_no_timeout(index, tmp_path):
    """A scope outside the block cancels it without a snapshot."""

    async def main():
        with trio.move_on_after(0.01) as outer:
            async with fail_after_w_trace(30, label='x', out_dir=tmp_path):
                await trio.sleep_forever()
        return outer.cancelled_caught

    assert trio.run(main)
    assert index == []


def test_snapshot_that_fails_hides_nothing(index, tmp_path, capfd):
    """The timeout is raised all the same, and stderr tells what was wrong."""
    occupied = tmp_path / 'file'
    occupied.touch()

    async def main():
        async with fail_after_w_trace(0.01, label='x', out_dir=occupied):
            await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        trio.run(main)
    assert index == []
    assert "no snapshot of 'x' could be taken" in capfd.readouterr().err


def test_negative_limit_is_refused():
    """As `trio.fail_after()` does."""

    async def main():
        async with fail_after_w_trace(-1, label='x'):
            pytest.fail('it was entered')

    with pytest.raises(ValueError, match='must not be negative'):
        trio.run(main)


def test_fixtures_label_with_the_test(
    fail_after_w_trace: trace.FailAfterWTraceFactory,
    afk_alarm_w_trace: trace.AfkAlarmWTraceFactory,
    index,
    tmp_path,
):
    """The fixtures give the same blocks, named after the test."""

    async def main():
        async with fail_after_w_trace(0.01, out_dir=tmp_path):
            await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        trio.run(main)
    with pytest.raises(AFKAlarmTimeout), afk_alarm_w_trace(0.01, out_dir=tmp_path):
        block()
    assert [label for label, _ in index] == ['test_fixtures_label_with_the_test'] * 2


# -- alarms ----------------------------------------------------------------------------


@pytest.fixture
def alarm_state():
    """Check afterwards that no timer runs and the handler is the one from before."""
    before = signal.getsignal(signal.SIGALRM)
    yield
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.setitimer(signal.ITIMER_REAL, 0) == (0.0, 0.0)


@pytest.mark.usefixtures('alarm_state')
def test_block_in_time_rings_no_alarm(index):
    """The alarm is off again after the block."""
    with afk_alarm_w_trace(30, label='x'):
        pass
    assert index == []


@pytest.mark.usefixtures('alarm_state')
def test_alarm_breaks_into_blocking_code(index, tmp_path):
    """A thread blocked in a system call is interrupted, with a snapshot."""
    with pytest.raises(AFKAlarmTimeout, match=r"'x' did not end within 0\.01 s"):
        with afk_alarm_w_trace(0.01, label='x', out_dir=tmp_path):
            block()
    assert [label for label, _ in index] == ['x']
    assert issubclass(AFKAlarmTimeout, TimeoutError)


@pytest.mark.usefixtures('alarm_state')
def test_alarm_lets_a_trio_run_unwind(tmp_path):
    """The main task is interrupted as by Ctrl-C, and the alarm is what leaves."""
    unwound = []

    async def main():
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            await trio.sleep_forever()
        finally:
            unwound.append('main')

    with pytest.raises(AFKAlarmTimeout) as caught:
        with afk_alarm_w_trace(30, label='x', out_dir=tmp_path):
            trio.run(main)
    assert isinstance(caught.value.__cause__, KeyboardInterrupt)
    assert unwound == ['main']


def test_alarm_breaks_into_a_trio_run_that_does_not_unwind(tmp_path):
    """A run that ignores the interrupt is wrecked, in a process of its own here."""
    script = f"""
import trio
from tractor._testing import trace, _reap

async def main():
    while True:
        try:
            await trio.sleep_forever()
        except KeyboardInterrupt:
            print('asked')

_reap.get_uds_dir = lambda: None
trace._AGAIN_AFTER = 0.05
try:
    with trace.afk_alarm_w_trace(0.2, label='x', out_dir={str(tmp_path)!r}):
        trio.run(main)
except trace.AFKAlarmTimeout:
    print('broken into')
"""
    done = subprocess.run(
        [sys.executable, '-c', script],
        cwd=repodir(),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == 'asked\nbroken into\n'


@pytest.mark.usefixtures('alarm_state')
def test_alarm_that_got_lost_rings_again(tmp_path, monkeypatch):
    """Neither a caught alarm nor one in a finalizer leaves the block to block on."""
    monkeypatch.setattr(trace, '_AGAIN_AFTER', 0.05)
    lost = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda info: lost.append(info.exc_type))

    class Finalized:
        def __del__(self):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            block()

    def loses_two():
        Finalized()
        with contextlib.suppress(AFKAlarmTimeout):
            block()
        block()

    with pytest.raises(AFKAlarmTimeout):
        with afk_alarm_w_trace(30, label='x', out_dir=tmp_path):
            loses_two()
    assert lost == [AFKAlarmTimeout]


@pytest.mark.usefixtures('alarm_state')
def test_swallowed_alarm_is_raised_at_the_end(tmp_path):
    """A block that catches everything was too slow all the same."""

    def ignore_it():
        with contextlib.suppress(TimeoutError):
            block()

    with pytest.raises(AFKAlarmTimeout):
        with afk_alarm_w_trace(0.01, label='x', out_dir=tmp_path):
            ignore_it()


@pytest.mark.usefixtures('alarm_state')
def test_error_before_the_alarm_is_kept(index):
    """The alarm does not touch errors of the block."""
    with pytest.raises(ValueError, match='of the block'):
        with afk_alarm_w_trace(30, label='x'):
            raise ValueError('of the block')
    assert index == []


def test_earlier_alarm_goes_on():
    """A timer that ran before has what was left of it, under its own handler."""
    handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        signal.setitimer(signal.ITIMER_REAL, 20)
        with afk_alarm_w_trace(5, label='x'):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 20
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_overdue_alarm_rings_after_the_block():
    """A timer that fell due under the block's alarm is not lost."""
    rung = []
    handler = signal.signal(signal.SIGALRM, lambda *args: rung.append(args))
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with afk_alarm_w_trace(30, label='x'):
            assert rung == []
            overdue = time.monotonic() + 0.15
            while time.monotonic() < overdue:
                os.sched_yield()
        while not rung and time.monotonic() < overdue + 5:
            os.sched_yield()
        assert len(rung) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_alarm_needs_the_main_thread():
    """Elsewhere signals do not arrive, which is said at once."""
    errors = []

    def enter():
        try:
            with afk_alarm_w_trace(1, label='x'):
                pass
        except RuntimeError as err:
            errors.append(str(err))

    thread = threading.Thread(target=enter, name='side')
    thread.start()
    thread.join()
    assert errors == ["the alarm of 'x' needs the main thread, not 'side'"]


def test_alarm_must_lie_ahead():
    """Zero would never ring."""
    with pytest.raises(ValueError, match='more than 0 s away'):
        with afk_alarm_w_trace(0, label='x'):
            pytest.fail('it was entered')
