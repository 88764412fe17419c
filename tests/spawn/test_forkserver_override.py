"""Children of the fork server: their environment, and their main module."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

import pytest
import trio

import tractor
from tractor._exceptions import ActorDied
from tractor.spawn import _forkserver_override

VARIABLE = 'TRACTOR_TEST_OF_THE_ENVIRONMENT'


async def get_variable() -> str | None:
    return os.environ.get(VARIABLE)


@pytest.mark.parametrize('value', ['first', 'second', None])
def test_environment_is_the_parents(reg_addr, monkeypatch, value):
    """A change made after the server was started reaches the child."""
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                portal = await an.start_actor('child', enable_modules=[__name__])
                assert await portal.run(get_variable) == value
                await an.cancel()

    trio.run(main)


PROGRAM = """
import errno
import os
import select
import sys

import trio
import tractor
from tractor._exceptions import ActorDied
from tractor.spawn import _forkserver_override

LOADED_BY = os.getpid()
if '{fail}' and __name__ != '__main__':
    raise ValueError('not in a child')


async def get_loader():
    return LOADED_BY, os.getpid()


async def main():
    with trio.fail_after(20):
        async with tractor.open_nursery(
            start_method='mp_forkserver',
            enable_transports=['uds'],
            registry_addrs=[('{dir}', 'registry.sock')]
        ) as an:
            found = []
            for name in ('one', 'two'):
                portal = await an.start_actor(name, enable_modules=[__name__])
                found.append(await portal.run(get_loader))
            if '{kill}':
                os.kill(os.getpid(), 9)
            await an.cancel()
    (one, first), (two, second) = found
    assert one == two and one not in (os.getpid(), first, second), found
    print('loaded once')


if __name__ == '__main__':
    trio.run(main)
"""


def run_program(
    directory, fail: str = '', kill: str = ''
) -> subprocess.CompletedProcess[str]:
    script = directory / 'program.py'
    script.write_text(
        PROGRAM.format(dir=directory, fail=fail, kill=kill), encoding='utf-8'
    )
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, 'TMPDIR': str(directory)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_main_module_is_imported_once():
    """All children are forked from a server that holds the program's main module."""
    with tempfile.TemporaryDirectory() as directory:
        done = run_program(Path(directory))
    assert done.stdout == 'loaded once\n', done.stderr
    assert done.stderr == ''


def test_main_module_that_fails_is_the_childs_error():
    """The server survives it; the child tells, and the program ends."""
    with tempfile.TemporaryDirectory() as directory:
        done = run_program(Path(directory), fail='yes')
    assert done.returncode == 1
    assert 'ValueError: not in a child' in done.stderr
    assert "ActorFailure: actor 'one' ended with status 1" in done.stderr


def test_killed_root_leaves_no_socket_of_its_server():
    """The server, which ends last, removes the file that its parent had made."""
    with tempfile.TemporaryDirectory() as directory:
        done = run_program(Path(directory), kill='yes')
        assert done.returncode == -signal.SIGKILL
        # Standard error is the whole tree's: it closed when the last of them ended.
        assert list(Path(directory).glob('pymp-*')) == []


def get_server_pid() -> int:
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


async def ignore_terminate() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


async def lose_the_server(stubborn: bool, pidfds: list[int]) -> None:
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('one', enable_modules=[__name__])
        if stubborn:
            await portal.run(ignore_terminate)
        pidfds.append(os.pidfd_open(an._children[portal.chan.aid.uid][1].pid))
        os.kill(get_server_pid(), signal.SIGKILL)
        await trio.sleep_forever()


@pytest.mark.skipif(not hasattr(os, 'pidfd_open'), reason='it needs a pidfd')
@pytest.mark.parametrize('stubborn', [False, True])
def test_child_of_a_lost_server_is_ended_before_it_is_reported(reg_addr, stubborn):
    """Nobody could tell how it ends; the next child gets a new server."""
    pidfds: list[int] = []

    async def main():
        with trio.fail_after(20):
            async with tractor.open_root_actor(
                registry_addrs=[reg_addr], start_method='mp_forkserver'
            ):
                with pytest.raises(ActorDied) as caught:
                    await lose_the_server(stubborn, pidfds)
                assert caught.value.exitcode == 255
                assert select.select(pidfds, [], [], 0)[0] == pidfds
                async with tractor.open_nursery() as an:
                    portal = await an.start_actor('two', enable_modules=[__name__])
                    assert await portal.run(get_variable) is None
                    await an.cancel()

    trio.run(main)
    os.close(*pidfds)


def test_request_that_fails_half_way_ends_no_server(reg_addr, monkeypatch):
    """The client may have no descriptor left to send; its server has other children."""

    async def main():
        with trio.fail_after(20):
            async with tractor.open_root_actor(
                registry_addrs=[reg_addr], start_method='mp_forkserver'
            ):
                async with tractor.open_nursery() as an:
                    await an.start_actor('one')
                    before = get_server_pid()
                    with monkeypatch.context() as patch:
                        patch.setattr(forkserver.reduction, 'sendfds', refuse)
                        with pytest.raises(OSError, match='no descriptor left'):
                            await an.start_actor('two')
                    await an.start_actor('three')
                    assert get_server_pid() == before
                    await an.cancel()

    trio.run(main)


def refuse(*args: object) -> None:
    raise OSError(24, 'no descriptor left')


@pytest.mark.parametrize('broken', [EOFError(), ConnectionResetError(104, 'reset')])
def test_broken_request_is_one_that_the_server_drops(monkeypatch, broken):
    """Every release goes on after that one error; all else is as it was."""

    def fail(*args: object) -> None:
        raise broken

    monkeypatch.setattr(forkserver, 'connection', forkserver.connection)
    monkeypatch.setattr(forkserver, 'reduction', forkserver.reduction)
    real = forkserver.reduction
    monkeypatch.setattr(real, 'recvfds', fail)
    _forkserver_override.drop_broken_requests()
    with pytest.raises(ConnectionAbortedError) as caught:
        forkserver.reduction.recvfds(None, 1)
    assert caught.value.errno == errno.ECONNABORTED
    assert forkserver.reduction.sendfds is real.sendfds


@pytest.mark.parametrize('failed', [True, False])
def test_directory_stays_when_an_error_ends_the_server(monkeypatch, failed):
    """Whoever started it lives, and needs the directory for the next one."""
    with tempfile.TemporaryDirectory() as base:
        address = Path(base) / 'directory' / 'socket'
        address.parent.mkdir()
        address.touch()
        monkeypatch.setattr(forkserver._forkserver, '_forkserver_address', str(address))
        monkeypatch.setattr(sys, 'last_value', OSError() if failed else None, False)
        _forkserver_override.remove_address()
        assert address.exists() is failed
        assert address.parent.exists() is failed
