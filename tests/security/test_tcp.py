"""Who may talk to an actor over TCP, and that the key to it stays secret."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._testing import _procfs
from tractor.ipc import _auth

NOBODY: Final = 65534
TIMES: Final = 5  # processes that knock

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason='only root can start a process of another user'
)


@pytest.fixture
def server(start_server):
    """A server on a TCP port."""
    return start_server('tcp')


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory that is nobody's: the user without rights, that is."""
    with tempfile.TemporaryDirectory(prefix='elsewhere-') as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def check_refusal(error: Any, cookie: Path) -> None:
    """The refused side learns that it is about the cookie, and what to do."""
    assert error is not None, 'it was let in'
    assert error['type'] == 'TransportClosed'
    assert 'not authenticated' in error['text']
    assert str(cookie) in error['text']
    assert 'TRACTOR_COOKIE_FILE' in error['text']


def test_wrong_cookie(server, endure, elsewhere):
    """A program with a cookie of its own is refused, and told why."""

    async def attack(server, friend):
        for _ in range(TIMES):
            cookie = elsewhere / 'cookie'
            check_refusal(await server.knock(cookie=cookie), cookie)

    endure(server, attack)


def test_right_cookie(server, endure):
    """The same program with our cookie is let in: it is the cookie that decides."""

    async def attack(server, friend):
        before = (await friend.footprint())['peers']

        async def knock() -> None:
            pytest.fail(f'it was refused: {await server.knock()}')

        async with trio.open_nursery() as tn:
            tn.start_soon(knock)
            while (await friend.footprint())['peers'] == before:
                continue
            tn.cancel_scope.cancel()

    endure(server, attack)


def test_no_cookie(server, endure):
    """A program that can have no cookie does not even try."""

    async def attack(server, friend):
        error = await server.knock(cookie=Path('/dev/null/cookie'))
        assert error['type'] == 'RuntimeFailure'
        assert '/dev/null/cookie' in error['text']
        assert 'TRACTOR_COOKIE_FILE' in error['text']

    endure(server, attack)


def test_no_proof_at_all(server, endure):
    """Who skips the exchange learns nothing: no byte comes after the greeting."""

    async def attack(server, friend):
        for _ in range(TIMES):
            stream = await server.dial()
            await stream.send_all(b'\x20\x00\x00\x00' + bytes(200))
            received = b''
            # The end may be a reset: it hung up before it had read everything.
            with suppress(trio.BrokenResourceError):
                while some := await stream.receive_some():
                    received += some
            await stream.aclose()
            assert len(received) <= _auth.HELLO_SIZE

    endure(server, attack)


@needs_root
def test_other_user(server, endure, elsewhere):
    """Another user of the host can read no cookie of ours, and his own is no good."""

    async def attack(server, friend):
        server.base.chmod(0o755)  # even if he gets as far as the file
        error = await server.knock(uid=NOBODY)
        assert error['type'] == 'RuntimeFailure'
        assert str(server.cookie) in error['text']
        cookie = elsewhere / 'cookie'
        check_refusal(await server.knock(uid=NOBODY, cookie=cookie), cookie)

    endure(server, attack)


def test_mode_of_the_cookie(server):
    """Only its user can read it, even where files are open to all by default."""
    found = server.cookie.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.getuid()


@tractor.context
async def start_one_more(ctx: tractor.Context) -> None:
    async with tractor.open_nursery() as an:
        await an.start_actor('grandchild')
        await ctx.started()
        await trio.sleep_forever()


@pytest.mark.skipon_spawn_backend(
    'subint', reason='arguments and environment are those of processes'
)
def test_no_secret_in_sight(reg_addr, monkeypatch, tmp_path):
    """Neither argument nor environment of any process shows a key, raw or as text."""
    monkeypatch.setenv('TRACTOR_COOKIE_FILE', str(tmp_path / 'cookie'))
    seen: dict[int, bytes] = {}

    async def main() -> None:
        with trio.fail_after(20):
            async with tractor.open_nursery(
                registry_addrs=[reg_addr], enable_transports=[transport_of(reg_addr)]
            ) as an:
                portal = await an.start_actor('child', enable_modules=[__name__])
                async with portal.open_context(start_one_more) as (ctx, _):
                    for pid in _procfs.subtree([os.getpid()])[1:]:
                        seen[pid] = b''.join(
                            _procfs.read_bytes(pid, name)
                            for name in ('cmdline', 'environ')
                        )
                    await ctx.cancel()
                await an.cancel()

    trio.run(main)
    assert len(seen) >= 2
    for key in (
        _auth.load_cookie(),
        bytes(multiprocessing.current_process().authkey),
    ):
        for form in (key, key.hex().encode(), key.hex().upper().encode()):
            assert not [pid for pid, text in seen.items() if form in text]


def transport_of(addr: Any) -> str:
    """Return the key of the transport that an address belongs to."""
    return 'tcp' if isinstance(addr[1], int) else 'uds'
