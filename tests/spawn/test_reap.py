"""What a killed child leaves in the socket directory, and who removes it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tractor.ipc._uds import UDSAddress
from tractor.spawn import _reap


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A socket directory of this test's own; its path is short, as a socket needs."""
    with tempfile.TemporaryDirectory() as base:
        monkeypatch.setenv('XDG_RUNTIME_DIR', base)
        yield UDSAddress.def_bindspace


@pytest.fixture
def dead_pid() -> int:
    """The pid of a process that is gone."""
    proc = subprocess.Popen(['true'])
    proc.wait()
    return proc.pid


def leave_socket(path: Path) -> Path:
    """Make a socket file where nobody listens, as a killed process leaves it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


@pytest.fixture
def listen_at() -> Iterator[object]:
    """Give what makes a socket file where somebody does listen."""
    socks = []

    def listen(path: Path) -> Path:
        sock = socket.socket(socket.AF_UNIX)
        socks.append(sock)
        sock.bind(str(path))
        sock.listen()
        return path

    yield listen
    for sock in socks:
        sock.close()


def actor(name: str) -> SimpleNamespace:
    return SimpleNamespace(aid=SimpleNamespace(name=name))


def proc(pid: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid)


# -- one child -------------------------------------------------------------------------


def test_socket_of_a_dead_child_is_removed(folder, dead_pid):
    """Its path follows from its name and pid; those of others stay."""
    dead = leave_socket(folder / f'worker@{dead_pid}.sock')
    sibling = leave_socket(folder / f'other@{dead_pid}.sock')
    same_name = leave_socket(folder / f'worker@{os.getpid()}.sock')
    _reap.unlink_uds_bind_addrs(proc(dead_pid), subactor=actor('worker'))
    assert not dead.exists()
    assert sibling.exists()
    assert same_name.exists()


def test_any_handle_with_a_pid_will_do(folder, dead_pid):
    """Whatever else it has is not taken for the number of an interpreter."""
    dead = leave_socket(folder / f'worker@{dead_pid}.sock')
    handle = SimpleNamespace(pid=dead_pid, id=lambda: 1)
    _reap.unlink_uds_bind_addrs(handle, subactor=actor('worker'))
    assert not dead.exists()


def test_socket_named_by_a_digest_is_removed(folder, dead_pid):
    """A name that makes no file name is found as the child itself found it."""
    name = UDSAddress.get_sockname('a/b', dead_pid, folder)
    dead = leave_socket(folder / name)
    _reap.unlink_uds_bind_addrs(proc(dead_pid), subactor=actor('a/b'))
    assert not dead.exists()


def test_given_addresses_win_over_the_default_one(folder, dead_pid):
    """A child that was told where to listen made no other socket."""
    told = leave_socket(folder / 'told.sock')
    default = leave_socket(folder / f'worker@{dead_pid}.sock')
    _reap.unlink_uds_bind_addrs(
        proc(dead_pid),
        bind_addrs=[(str(folder), 'told.sock'), ('127.0.0.1', 1)],
        subactor=actor('worker'),
    )
    assert not told.exists()
    assert default.exists()


def test_missing_socket_is_ignored(folder, dead_pid, caplog):
    """A child that cleaned up is no event."""
    with caplog.at_level(logging.WARNING):
        _reap.unlink_uds_bind_addrs(proc(dead_pid), subactor=actor('worker'))
    assert not caplog.records


def test_interpreter_that_was_never_made_left_nothing(folder):
    """The socket of its parent, named alike in the same process, stays."""
    parent = leave_socket(folder / f'worker@{os.getpid()}.sock')
    handle = SimpleNamespace(pid=os.getpid(), id=None)
    _reap.unlink_uds_bind_addrs(handle, subactor=actor('worker'))
    assert parent.exists()


def test_process_that_never_started_left_nothing(folder):
    """Without a pid there is no path to guess."""
    _reap.unlink_uds_bind_addrs(proc(None), subactor=actor('worker'))
    _reap.unlink_uds_bind_addrs(proc(1))


def test_failure_to_remove_is_logged_only(folder, dead_pid, caplog):
    """The end of a child must not fail over a file."""
    path = folder / f'worker@{dead_pid}.sock'
    path.mkdir()
    with caplog.at_level(logging.WARNING, logger='tractor'):
        _reap.unlink_uds_bind_addrs(proc(dead_pid), subactor=actor('worker'))
    assert path.exists()
    [record] = caplog.records
    assert str(path) in record.getMessage()


def test_directory_that_cannot_be_made_is_logged_only(monkeypatch, dead_pid, caplog):
    """Neither for one child nor for all of them."""

    class Unmade(type):
        @property
        def def_bindspace(cls) -> Path:
            raise PermissionError('not yours')

    class Address(metaclass=Unmade):
        pass

    monkeypatch.setattr(_reap, 'UDSAddress', Address)
    with caplog.at_level(logging.WARNING, logger='tractor'):
        _reap.unlink_uds_bind_addrs(proc(dead_pid), subactor=actor('worker'))
        assert _reap.sweep() == 0
    assert len(caplog.records) == 2


def test_no_descriptor_left_for_a_probe_is_logged_only(
    folder, dead_pid, caplog, monkeypatch
):
    """Nothing is removed that was not found to be dead."""
    path = leave_socket(folder / f'worker@{dead_pid}.sock')

    def refuse(*args: object) -> None:
        raise OSError(24, 'Too many open files')

    monkeypatch.setattr(_reap.socket, 'socket', refuse)
    with caplog.at_level(logging.WARNING, logger='tractor'):
        assert _reap.sweep() == 0
    assert path.exists()
    [record] = caplog.records
    assert 'Too many open files' in record.getMessage()


# -- everybody's -----------------------------------------------------------------------


def test_sweep_removes_sockets_of_dead_processes(folder, dead_pid):
    """Every name counts, and the number of them is returned."""
    paths = [leave_socket(folder / f'{name}@{dead_pid}.sock') for name in 'abc']
    assert _reap.sweep() == 3
    assert not any(path.exists() for path in paths)


def test_sweep_spares_living_processes(folder):
    """A socket that is bound but does not listen yet belongs to a booting process."""
    path = leave_socket(folder / f'booting@{os.getpid()}.sock')
    assert _reap.sweep() == 0
    assert path.exists()


def test_sweep_spares_whoever_listens(folder, dead_pid, listen_at):
    """A pid that is not found here may live in another container."""
    path = listen_at(folder / f'elsewhere@{dead_pid}.sock')
    assert _reap.sweep() == 0
    assert path.exists()


@pytest.mark.parametrize('name', ['registry@1616.sock', 'mine.sock', 'a@b.sock', 'x'])
def test_sweep_spares_what_names_no_process(folder, name):
    """The default registry's number is that of a port."""
    path = leave_socket(folder / name)
    assert _reap.sweep() == 0
    assert path.exists()


def test_sweep_of_a_missing_folder(folder):
    """No directory, no sockets."""
    assert _reap.sweep(folder / 'missing') == 0


def test_sweep_of_a_given_folder(folder, dead_pid):
    """Only that folder is looked at."""
    below = folder / 'below'
    below.mkdir()
    inside = leave_socket(below / f'worker@{dead_pid}.sock')
    outside = leave_socket(folder / f'worker@{dead_pid}.sock')
    assert _reap.sweep(below) == 1
    assert not inside.exists()
    assert outside.exists()


def test_refused_means_nobody_listens(folder, listen_at):
    """A missing file refuses as well; a full backlog does not."""
    assert _reap.is_refused(folder / 'missing')
    assert _reap.is_refused(leave_socket(folder / 'left'))
    assert not _reap.is_refused(listen_at(folder / 'alive'))
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(folder / 'busy'))
        busy.listen(0)
        waiting = []
        while True:
            sock = socket.socket(socket.AF_UNIX)
            waiting.append(sock)
            sock.setblocking(False)
            try:
                sock.connect(str(folder / 'busy'))
            except BlockingIOError:
                break
        assert not _reap.is_refused(folder / 'busy')
        for sock in waiting:
            sock.close()
