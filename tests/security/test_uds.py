"""Who may talk to an actor over a Unix socket."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import pytest

NOBODY: Final = 65534
TIMES: Final = 5  # processes that knock

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason='only root can start a process of another user'
)


@pytest.fixture
def server(start_server):
    """A server on a Unix socket."""
    return start_server('uds')


@needs_root
def test_other_user_does_not_reach_the_socket(server, endure):
    """Another user of the host cannot enter the directory, whatever its parents say."""

    async def attack(server, friend):
        open_to_all(server.base)
        open_to_all(server.base / 'run')
        for _ in range(TIMES):
            error = await server.knock(uid=NOBODY)
            assert error['type'] == 'ConnectionError'
            assert 'Permission denied' in error['text']

    endure(server, attack)


@needs_root
def test_other_user_who_reaches_the_socket_is_refused(server, endure):
    """The kernel says who connects: a socket that is open to all changes nothing."""

    async def attack(server, friend):
        folder, name = map(Path, server.addr)
        for path in (server.base, server.base / 'run', folder):
            open_to_all(path)
        (folder / name).chmod(0o666)
        for _ in range(TIMES):
            error = await server.knock(uid=NOBODY)
            assert error is not None, 'it was let in'
            assert error['type'] == 'TransportClosed'
            assert 'uid' in error['text']

    endure(server, attack)


def test_modes(server):
    """Directory and socket are their user's alone, whatever the default mode is."""
    folder, name = map(Path, server.addr)
    for path, mode in ((folder, 0o700), (folder / name, 0o600)):
        found = path.stat()
        assert stat.S_IMODE(found.st_mode) == mode
        assert found.st_uid == os.getuid()
    assert stat.S_ISSOCK((folder / name).stat().st_mode)


def open_to_all(path: Path) -> None:
    """Let everybody enter a directory."""
    path.chmod(0o755)
