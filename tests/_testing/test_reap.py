"""How left-over actors and their files are told apart from others, and ended."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tractor._testing import _procfs, _reap

# In small steps: CPython 3.14 does not look for a signal that came since the last one
# before it falls asleep.
WAIT = """
import time
print("up", flush=True)
while True:
    time.sleep(0.01)
""".strip()
DEAF = 'import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n' + WAIT

# Starts a child, says its pid and waits; on end of its stdin it leaves the child alone,
# interrupted it waits for the child's end.
PARENT = """
import select, subprocess, sys
child = subprocess.Popen([sys.executable, '-c', sys.argv[1], *sys.argv[2:]],
                         stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
child.stdout.readline()
try:
    print(child.pid, flush=True)
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        pass
except KeyboardInterrupt:
    child.wait()
"""


@contextmanager
def process(
    code: str, *args: str, cwd: object = None
) -> Iterator[subprocess.Popen[str]]:
    """A throw-away Python process that has said its first line."""
    with subprocess.Popen(
        [sys.executable, '-c', code, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
    ) as proc:
        try:
            assert select.select([proc.stdout], [], [], 30)[0], 'it said nothing'
            proc.first_line = proc.stdout.readline().strip()
            yield proc
        finally:
            proc.kill()


@contextmanager
def orphan(*args: str, cwd: object = None) -> Iterator[int]:
    """The pid of a process whose parent has ended."""
    with process(PARENT, WAIT, *args, cwd=cwd) as parent:
        pid = int(parent.first_line)
        try:
            parent.communicate('', timeout=10)
            yield pid
        finally:
            os.kill(pid, signal.SIGKILL)


def wait_until(condition, seconds=5.0):
    """Poll what has no event: the state of a process that is no child of ours."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'it did not come true'
        os.sched_yield()


@contextmanager
def dead_pid() -> Iterator[int]:
    """A pid that was in use a moment ago."""
    with process(WAIT) as proc:
        pid = proc.pid
    yield pid


# -- looking at processes --------------------------------------------------------------


def test_command_line_is_read_as_words():
    """Arguments are separated by blanks; a vanished process has none."""
    with process(WAIT, 'one', 'two') as proc:
        assert _reap._read_cmdline(proc.pid) == f'{sys.executable} -c {WAIT} one two'
    assert _reap._read_cmdline(proc.pid) == ''


def test_kernel_name_is_read():
    """The name has no line end; a vanished process has none."""
    with process(WAIT) as proc:
        assert _reap._read_comm(proc.pid) == os.path.basename(sys.executable)[:15]
    assert _reap._read_comm(proc.pid) == ''


@pytest.mark.parametrize('mark', ['tractor._child', '_subactor[worker@1]'])
def test_subactor_is_told_by_its_command_line(mark):
    """The child's module or the title's prefix in the command line is enough."""
    with process(WAIT, mark) as proc:
        assert _reap._is_tractor_subactor(proc.pid)


def test_subactor_is_told_by_its_kernel_name():
    """The prefix in the kernel's name counts when the command line tells nothing."""
    code = f'open("/proc/self/comm", "w").write("_" + "subactor[w"); {WAIT}'
    with process(code) as proc:
        assert _reap._is_tractor_subactor(proc.pid)


def test_other_processes_are_no_subactors():
    """Neither any process, nor a vanished one."""
    with process(WAIT) as proc:
        assert not _reap._is_tractor_subactor(proc.pid)
    assert not _reap._is_tractor_subactor(proc.pid)


def test_the_runner_is_no_subactor(monkeypatch):
    """A runner whose arguments look like a subactor's is still the runner."""
    monkeypatch.setattr(_reap, '_read_cmdline', lambda pid: 'x _subactor[me@1]')
    assert not _reap._is_tractor_subactor(os.getpid())
    monkeypatch.setattr(
        _reap, '_read_cmdline', lambda pid: 'python -m pytest -k reap_subactors'
    )
    assert not _reap._is_tractor_subactor(os.getppid())


def test_zombie_is_not_alive():
    """A process that ended but was not collected does not count as alive."""
    with process('print("up")') as proc:
        wait_until(lambda: _procfs.state(proc.pid) == 'Z')
        assert not _reap._is_alive(proc.pid)
    with process(WAIT) as proc:
        assert _reap._is_alive(proc.pid)
    assert not _reap._is_alive(proc.pid)


def test_without_proc_every_finder_is_empty(monkeypatch, tmp_path):
    """On a platform without `/proc` nothing is found and nothing fails."""
    monkeypatch.setattr(_procfs, 'PROC', tmp_path / 'missing')
    assert _reap.find_descendants(os.getpid()) == []
    assert _reap.find_orphans() == []
    assert _reap.find_zombies() == []
    assert _reap._read_cmdline(os.getpid()) == ''
    assert _reap._is_alive(os.getpid())


# -- finding them ----------------------------------------------------------------------


def test_direct_children_are_found():
    """Children count, grandchildren do not."""
    with process(PARENT, WAIT) as parent:
        grandchild = int(parent.first_line)
        assert parent.pid in _reap.find_descendants(os.getpid())
        assert grandchild not in _reap.find_descendants(os.getpid())
        assert _reap.find_descendants(parent.pid) == [grandchild]
        os.kill(grandchild, signal.SIGKILL)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(10) == 0


def test_orphaned_subactor_is_found_by_where_it_runs(tmp_path):
    """A subactor adopted by init is an orphan, of the checkout it runs in."""
    here = tmp_path / 'here'
    here.mkdir()
    with orphan('tractor._child', cwd=here) as pid, orphan(cwd=here) as other:
        if _procfs.ppid(pid) != 1:
            pytest.skip('another process than init adopts orphans here')
        assert pid in _reap.find_orphans()
        assert other not in _reap.find_orphans()
        assert _reap.find_orphans(tmp_path) == [pid]
        assert _reap.find_orphans(tmp_path / 'elsewhere') == []


def test_zombie_subactor_is_found_by_its_kernel_name():
    """Ended and uncollected, of this parent or of any."""
    code = 'open("/proc/self/comm", "w").write("_subactor[w"); print("up")'
    with process(code) as proc:
        wait_until(lambda: _procfs.state(proc.pid) == 'Z')
        assert _reap.find_zombies(os.getpid()) == [proc.pid]
        assert proc.pid in _reap.find_zombies()
        assert _reap.find_zombies(proc.pid) == []


def test_spinning_subactor_is_a_runaway():
    """A busy one is reported with its load and command line, an idle one is not."""
    spin = 'print("up", flush=True)\nwhile True: pass'
    with process(spin, 'tractor._child') as busy, process(WAIT, 'tractor._child'):
        [(pid, cpu, cmdline)] = _reap.find_runaway_subactors(
            os.getpid(), cpu_threshold=10, sample_interval=0.3
        )
        assert pid == busy.pid
        assert cpu >= 10
        assert 'tractor._child' in cmdline


def test_asking_for_no_pids_measures_nothing(monkeypatch):
    """An empty list returns before a sample is taken."""
    monkeypatch.setattr(_reap.time, 'sleep', lambda seconds: pytest.fail('it waited'))
    assert _reap.find_runaway_subactors(os.getpid(), only_pids=[]) == []


# -- ending them -----------------------------------------------------------------------


def test_interrupt_is_enough_for_most():
    """A process that obeys SIGINT is not killed."""
    lines: list[str] = []
    with process(WAIT) as proc:
        assert _reap.reap([proc.pid], poll=0.02, log=lines.append) == ([proc.pid], [])
        assert proc.wait(10) == -signal.SIGINT
    assert lines == [f'sent SIGINT to {proc.pid}: {sys.executable} -c {WAIT}']


def test_survivor_is_killed_after_the_grace_period():
    """A process deaf to SIGINT gets SIGKILL."""
    with process(DEAF) as proc:
        result = _reap.reap([proc.pid], grace=0.1, poll=0.02, log=lambda line: None)
        assert result == ([proc.pid], [proc.pid])
        assert proc.wait(10) == -signal.SIGKILL


def test_descendants_are_reaped_as_well():
    """Everything below goes too."""
    with process(PARENT, WAIT) as parent:
        grandchild = int(parent.first_line)
        result = _reap.reap([parent.pid], poll=0.02, log=lambda line: None)
        assert result == ([parent.pid, grandchild], [])
        assert parent.wait(10) == 0
        assert not _reap._is_alive(grandchild)


def test_descendants_can_be_left_alone():
    """Only the named process goes: this one waits for its child, which never ends."""
    with process(PARENT, WAIT) as parent:
        grandchild = int(parent.first_line)
        result = _reap.reap(
            [parent.pid], grace=0.1, log=lambda line: None, include_descendants=False
        )
        assert result == ([parent.pid], [parent.pid])
        assert _reap._is_alive(grandchild)
        os.kill(grandchild, signal.SIGKILL)


def test_vanished_processes_and_ourselves_are_never_signalled():
    """A dead pid, init and the caller are passed over."""
    with dead_pid() as gone:
        nobody = _reap.reap(
            [gone, 0, 1, os.getpid()], include_descendants=False, log=pytest.fail
        )
        assert nobody == ([], [])


def test_recycled_pid_is_not_killed(monkeypatch):
    """A process that got the pid during the grace period is another process."""
    births = iter([1, 2, 2, 2])
    with process(DEAF) as proc:
        monkeypatch.setattr(_procfs, 'started_at', lambda pid: next(births))
        result = _reap.reap(
            [proc.pid], grace=0.1, log=lambda line: None, include_descendants=False
        )
        assert result == ([proc.pid], [])
        assert proc.poll() is None


# -- sockets ---------------------------------------------------------------------------


@pytest.fixture
def listen(tmp_path):
    """Listen at a name in `tmp_path` until the end of the test."""
    with ExitStack() as stack:

        def make(name: str) -> str:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / name))
            listener.listen()
            return str(tmp_path / name)

        yield make


@pytest.fixture
def leave(tmp_path):
    """Leave the socket file of somebody who no longer listens."""

    def make(name: str) -> str:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / name))
            listener.listen()
        return str(tmp_path / name)

    return make


def test_socket_of_a_dead_process_is_orphaned(tmp_path, leave):
    """It has the pid in its name; other names are ignored."""
    with dead_pid() as gone:
        lost = leave(f'worker@{gone}.sock')
        leave(f'worker@{os.getpid()}.sock')
        leave('nobody.sock')
        leave('worker@x.sock')
        (tmp_path / f'directory@{gone}.sock').mkdir()
        assert _reap.find_orphaned_uds(uds_dir=tmp_path) == [lost]


def test_socket_that_somebody_serves_is_not_orphaned(tmp_path, listen):
    """A number in a name need not be a pid, and a pid may be of another container."""
    with dead_pid() as gone:
        served = listen(f'my_registry@{gone}.sock')
        assert _reap.find_orphaned_uds(uds_dir=tmp_path) == []
        assert _reap.reap_uds([served], log=pytest.fail) == ([], [])
    assert os.path.exists(served)


def test_socket_that_may_be_served_is_not_orphaned(tmp_path, listen, monkeypatch):
    """Any failure to connect but a refusal leaves the question open."""

    def connect(sock, path):
        raise PermissionError

    with dead_pid() as gone:
        served = listen(f'worker@{gone}.sock')
        closed_to_us = type('Socket', (socket.socket,), {'connect': connect})
        monkeypatch.setattr(_reap.socket, 'socket', closed_to_us)
        assert _reap.find_orphaned_uds(uds_dir=tmp_path) == []
        assert _reap.reap_uds([served], log=pytest.fail) == ([], [])
    assert os.path.exists(served)


def test_socket_file_is_not_reaped_while_one_is_bound(tmp_path, leave):
    """Between its bind and its listen a new owner cannot be told from a dead one."""
    lost = leave('worker@1.sock')
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        assert _reap.reap_uds([lost], log=pytest.fail) == ([], [])
    finally:
        os.close(directory)
    assert _reap.reap_uds([lost], log=lambda line: None) == ([lost], [])


def test_missing_socket_directory_holds_nothing(tmp_path):
    """A directory that was never made is no error."""
    assert _reap.find_orphaned_uds(uds_dir=tmp_path / 'missing') == []


def test_registry_socket_counts_only_on_request(tmp_path):
    """Its number is a port; it is orphaned when nobody answers there."""
    sentinel = tmp_path / 'registry@1616.sock'
    with socket.socket(socket.AF_UNIX) as registry:
        registry.bind(str(sentinel))
        registry.listen()
        find = _reap.find_orphaned_uds
        assert find(uds_dir=tmp_path, include_registry_sentinel=True) == []
    assert find(uds_dir=tmp_path) == []
    assert find(uds_dir=tmp_path, include_registry_sentinel=True) == [str(sentinel)]


def test_socket_directory_is_read_at_call_time(monkeypatch, tmp_path):
    """A test may redirect the runtime's directory."""
    from tractor.ipc._uds import UDSAddress

    monkeypatch.setattr(UDSAddress, 'def_bindspace', tmp_path)
    assert _reap.get_uds_dir() == str(tmp_path)
    with dead_pid() as gone:
        lost = tmp_path / f'worker@{gone}.sock'
        lost.touch()
        assert _reap.find_orphaned_uds() == [str(lost)]


@pytest.mark.parametrize('unlink_all', [_reap.reap_uds, _reap.reap_shm])
def test_unlinking_reports_each_path(tmp_path, unlink_all):
    """What was there is removed, what is gone passed over, what fails is reported."""
    lines: list[str] = []
    there, gone, refused = tmp_path / 'there', tmp_path / 'gone', tmp_path / 'refused'
    there.touch()
    refused.mkdir()
    unlinked, [(path, error)] = unlink_all([there, gone, refused], log=lines.append)
    assert unlinked == [str(there)]
    assert path == str(refused)
    assert isinstance(error, OSError)
    assert lines[0] == f'unlinked {there}'
    assert lines[1].startswith(f'cannot unlink {refused}: ')


# -- shared memory ---------------------------------------------------------------------


def test_unused_segment_is_orphaned(tmp_path):
    """A segment that some process has open is in use."""
    used, unused = tmp_path / 'used', tmp_path / 'unused'
    unused.touch()
    with used.open('w'):
        assert _reap.find_orphaned_shm(shm_dir=tmp_path) == [str(unused)]
        assert _reap.find_orphaned_shm(shm_dir=tmp_path, uid=os.getuid() + 1) == []


def test_segments_cannot_be_listed_everywhere(monkeypatch):
    """Elsewhere the platform is named."""
    monkeypatch.setattr(_reap.sys, 'platform', 'darwin')
    with pytest.raises(NotImplementedError, match="on 'darwin'"):
        _reap.find_orphaned_shm()
