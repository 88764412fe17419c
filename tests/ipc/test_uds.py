"""Unix socket addresses, listeners, and who is at the other end."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor._exceptions import TransportClosed
from tractor.ipc import _uds
from tractor.ipc._uds import (
    MsgpackUDSStream,
    UDSAddress,
    close_listener,
    peer_pid,
    peer_uid,
    start_listener,
)
from tractor.msg._codec import _def_tractor_codec
from tractor.msg.types import Aid, Stop
from tractor.runtime import _state

pytestmark = pytest.mark.skipif(not _uds.HAS_UDS, reason='no Unix sockets here')


@pytest.fixture
def addr(tmp_path):
    return UDSAddress(tmp_path, Path('a.sock'))


def test_addresses_from_pairs_and_paths():
    """A pair, a list, a text and a `Path` all give the same address."""
    expected = UDSAddress(Path('/tmp/x'), Path('y.sock'))
    for given in (
        ('/tmp/x', 'y.sock'),
        ['/tmp/x', 'y.sock'],
        (Path('/tmp/x'), Path('y.sock')),
        '/tmp/x/y.sock',
        Path('/tmp/x/y.sock'),
    ):
        assert UDSAddress.from_addr(given) == expected
    assert hash(UDSAddress.from_addr('/tmp/x/y.sock')) == hash(expected)
    assert expected.unwrap() == ('/tmp/x', 'y.sock')
    assert expected.sockpath == Path('/tmp/x/y.sock')
    assert expected.bindspace == Path('/tmp/x')


@pytest.mark.parametrize('given', [5, None, ('/tmp', 5), ('/tmp',), {'a': 'b'}])
def test_anything_else_is_a_type_error(given):
    """`from_addr()` refuses other shapes."""
    with pytest.raises(TypeError, match='UDS address'):
        UDSAddress.from_addr(given)


def test_the_default_directory_is_looked_up_when_used(tmp_path, monkeypatch):
    """`def_bindspace` is the runtime directory at that moment, and can be replaced."""
    monkeypatch.setattr(_state, 'get_rt_dir', lambda: tmp_path / 'rt')
    assert UDSAddress.def_bindspace == tmp_path / 'rt'
    assert UDSAddress(None, 'f').bindspace == tmp_path / 'rt'
    monkeypatch.setattr(UDSAddress, 'def_bindspace', tmp_path)
    assert UDSAddress(None, 'f').bindspace == tmp_path
    assert UDSAddress.get_root().unwrap() == (str(tmp_path), 'registry@1616.sock')
    assert UDSAddress.get_random().bindspace == tmp_path
    monkeypatch.undo()
    assert UDSAddress.def_bindspace == _state.get_rt_dir()


def test_random_addresses_without_a_runtime_never_collide(tmp_path):
    """Two calls in one process give two names, each with the process id."""
    one, two = (UDSAddress.get_random(tmp_path) for _ in range(2))
    assert one != two
    for addr in (one, two):
        assert str(addr.filename).startswith('no_runtime_')
        assert str(addr.filename).endswith(f'@{os.getpid()}.sock')
        assert addr.maybe_pid == os.getpid()
        assert addr.is_valid


def test_a_random_address_is_named_for_the_actor(tmp_path, monkeypatch):
    """With a runtime up, the file has the actor's name."""
    actor = SimpleNamespace(aid=Aid('worker', 'u'))
    monkeypatch.setattr(_state, '_current_actor', actor)
    assert str(UDSAddress.get_random(tmp_path).filename) == (
        f'worker@{os.getpid()}.sock'
    )


def test_valid_is_what_stays_in_its_directory(tmp_path):
    """A file name that leads out of the directory is invalid."""
    assert UDSAddress(tmp_path, 'a.sock').is_valid
    assert not UDSAddress(tmp_path, '/elsewhere/a.sock').is_valid


def test_the_text_shows_directory_file_and_process(tmp_path):
    """The process is shown where it is known."""
    assert repr(UDSAddress('/d', 'f', 5)) == 'UDSAddress[(/d/, f, 5)]'
    assert repr(UDSAddress('/d', 'f')) == 'UDSAddress[(/d/, f, <unknown-pid>)]'


def test_an_ordinary_name_is_kept():
    """A name that fits is used as it is."""
    assert UDSAddress.get_sockname('worker', 5, '/tmp') == Path('worker@5.sock')


@pytest.mark.parametrize(
    'name', ['a/b', '/abs', 'nul\0', 'x' * 200, 'é' * 60, '\udcff/', '\ud800']
)
def test_an_unsafe_or_long_name_is_compacted(name):
    """Such a name becomes one short component that depends on the name alone."""
    compact = UDSAddress.get_sockname(name, 5, '/tmp')
    assert compact == UDSAddress.get_sockname(name, 5, '/tmp')
    assert compact != UDSAddress.get_sockname(name + 'x', 5, '/tmp')
    assert len(compact.parts) == 1
    digest = str(compact).removeprefix('actor.').removesuffix('@5.sock')
    assert len(bytes.fromhex(digest)) == 16


def test_the_limit_counts_bytes_of_the_whole_path(monkeypatch):
    """The limit is looked up when used, and a path must stay below it."""
    path = '/tmp/worker@5.sock'
    monkeypatch.setattr(_uds, '_SUN_PATH_LIMIT', len(path) + 1)
    assert UDSAddress.get_sockname('worker', 5, '/tmp') == Path('worker@5.sock')
    monkeypatch.setattr(_uds, '_SUN_PATH_LIMIT', len(path))
    with pytest.raises(ValueError, match='leaves no room') as caught:
        UDSAddress.get_sockname('worker', 5, '/tmp')
    text = str(caught.value)
    assert 'name was unsafe: False' in text
    assert 'name was over budget: True' in text
    assert f'AF_UNIX path limit: {len(path)}' in text


def run_connected(addr, main):
    """Run `main(client transport, server transport)` over a real connection."""

    async def connected():
        with trio.fail_after(5):
            listener = await start_listener(addr)
            client = await MsgpackUDSStream.connect_to(addr)
            stream = await listener.accept()
            close_listener(addr, listener)
            async with client.stream, stream:
                await main(client, MsgpackUDSStream(stream))

    trio.run(connected)


def test_both_ends_report_the_listeners_path(addr):
    """The addresses of a connection are the listener's, told apart by process."""

    async def main(client, server):
        for transport in (client, server):
            for end in (transport.laddr, transport.raddr):
                assert end.unwrap() == addr.unwrap()
                assert end.maybe_pid == os.getpid()
            assert _def_tractor_codec.encode(transport.raddr.unwrap())
        await server.authenticate()
        await client.authenticate()
        await client.send(Stop('c'))
        assert await server.recv() == Stop('c')
        assert peer_pid(server.stream.socket) == os.getpid()
        assert peer_uid(server.stream.socket) == os.getuid()
        if sys.platform == 'linux':
            sock = client.stream.socket
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)

    run_connected(addr, main)


@pytest.mark.parametrize('side', [0, 1])
def test_a_peer_of_another_user_is_refused(addr, side, monkeypatch):
    """Either side refuses a process of another user, naming both users."""

    async def main(*transports):
        monkeypatch.setattr(_uds, 'peer_uid', lambda sock: os.getuid() + 1)
        with pytest.raises(TransportClosed, match=f'uid {os.getuid() + 1}') as caught:
            await transports[side].authenticate()
        assert caught.value._loglevel == 'warning'

    run_connected(addr, main)


def test_a_pair_without_a_path_has_no_address(raw_pair):
    """Sockets that were never bound cannot be wrapped."""

    async def main():
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(raw_pair()[0]))
        with pytest.raises(ValueError, match='no path'):
            MsgpackUDSStream.get_stream_addrs(stream)

    trio.run(main)


def test_the_directory_is_made_and_the_file_is_ours_alone(tmp_path):
    """Missing directories are made; the socket cannot be used by others."""
    addr = UDSAddress(tmp_path / 'one' / 'two', 'a.sock')

    async def main():
        listener = await start_listener(addr)
        assert stat.S_IMODE(addr.sockpath.stat().st_mode) == 0o600
        assert stat.S_IMODE(addr.bindspace.stat().st_mode) == 0o700
        close_listener(addr, listener)
        assert not addr.sockpath.exists()
        assert listener.socket.fileno() == -1

    trio.run(main)


def test_the_file_of_a_closed_listener(addr, caplog):
    """It is removed once; that it is missing then is no error but mentioned."""

    async def main():
        listener = await start_listener(addr)
        await listener.aclose()
        assert addr.sockpath.exists()
        close_listener(addr, listener)
        assert not addr.sockpath.exists()
        assert not caplog.records
        close_listener(addr, listener)

    trio.run(main)
    assert 'was already gone' in caplog.text


def test_the_file_of_a_closed_listener_that_another_has_now(addr):
    """Whoever replaced it and listens keeps it."""

    async def main():
        closed = await start_listener(addr)
        await closed.aclose()
        listener = await start_listener(addr)
        close_listener(addr, closed)
        client = await MsgpackUDSStream.connect_to(addr)
        await client.aclose()
        close_listener(addr, listener)
        assert not addr.sockpath.exists()

    trio.run(main)


def test_the_file_of_an_open_listener_that_another_has_now(addr, caplog):
    """A file that was removed and bound again by another is the other's to remove."""

    async def main():
        robbed = await start_listener(addr)
        addr.sockpath.unlink()
        listener = await start_listener(addr)
        close_listener(addr, robbed)
        assert robbed.socket.fileno() == -1
        client = await MsgpackUDSStream.connect_to(addr)
        await client.aclose()
        close_listener(addr, listener)
        assert not addr.sockpath.exists()

    trio.run(main)
    assert 'left to who may have it' in caplog.text


def test_a_listener_that_was_made_elsewhere(addr):
    """Its file is removed all the same: nobody listens there once it is closed."""

    async def main():
        sock = trio.socket.socket(socket.AF_UNIX)
        await sock.bind(str(addr.sockpath))
        sock.listen()
        close_listener(addr, trio.SocketListener(sock))
        assert not addr.sockpath.exists()

    trio.run(main)


def locked_by_other(path):
    """Lock a directory as another process does; the stack returned unlocks it."""
    with ExitStack() as stack:
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return stack.pop_all()


@pytest.fixture
def locked(addr):
    """The directory's lock, held by another; `close()` gives it up."""
    with locked_by_other(addr.bindspace) as stack:
        yield stack


def test_waiting_for_a_locked_directory_can_be_cancelled(addr, locked):
    """Who locks a directory holds up neither the other tasks nor a cancellation."""

    async def main():
        with trio.fail_after(5), trio.move_on_after(0.02) as scope:
            await start_listener(addr)
        assert scope.cancelled_caught
        assert not addr.sockpath.exists()
        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                tn.start_soon(start_and_close, addr)
                await wait_all_tasks_blocked()
                locked.close()

    trio.run(main)


async def start_and_close(addr):
    listener = await start_listener(addr)
    close_listener(addr, listener)
    assert not addr.sockpath.exists()


def test_a_directory_that_stays_locked(addr, locked, monkeypatch):
    """There is an end to the waiting, with an error that tells why."""
    monkeypatch.setattr(_uds, 'LOCK_TIMEOUT', 0.01)
    with pytest.raises(ConnectionError, match='another process has had') as caught:
        trio.run(start_listener, addr)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert not addr.sockpath.exists()


def test_closing_in_a_locked_directory(addr):
    """One's own file is removed; one that may be another's by now is left."""
    other = UDSAddress(addr.bindspace, 'b.sock')

    async def main():
        listener, closed = await start_listener(addr), await start_listener(other)
        await closed.aclose()
        with locked_by_other(addr.bindspace):
            close_listener(addr, listener)
            close_listener(other, closed)
        assert not addr.sockpath.exists()
        assert other.sockpath.exists()

    trio.run(main)


@pytest.mark.parametrize('part', ['\0abs', 'x\0y', '\ud800'])
def test_a_part_that_no_path_can_have(part):
    """A NUL, which begins an abstract name, and what is no text are no addresses."""
    for make in (UDSAddress.from_addr, lambda pair: UDSAddress(*pair)):
        for pair in (('.', part), (part, 'a.sock')):
            with pytest.raises(ValueError, match='file system path'):
                make(pair)


def test_any_failure_to_listen_closes_the_socket(addr, monkeypatch):
    """Also an error that is none of the system's leaves nothing open."""
    opened = []
    make = socket.socket

    def remember(*args):
        opened.append(make(*args))
        return opened[-1]

    def fail(sock, path):
        raise ValueError('mine')

    monkeypatch.setattr(_uds, '_bind', fail)
    monkeypatch.setattr(_uds.socket, 'socket', remember)
    with pytest.raises(ValueError, match='mine'):
        trio.run(start_listener, addr)
    assert opened[-1].fileno() == -1


def test_binding_twice_is_a_connection_error(addr):
    """The address of a live listener is taken; the system's error is the context."""

    async def main():
        listener = await start_listener(addr)
        with pytest.raises(ConnectionError) as caught:
            await start_listener(addr)
        assert type(caught.value.__context__) is OSError
        assert 'Address already in use' in caught.value.__context__.args
        assert addr.sockpath.exists()
        close_listener(addr, listener)

    trio.run(main)


def test_a_busy_listener_is_a_live_one(addr, monkeypatch):
    """A listener whose backlog is full still has the address."""
    monkeypatch.setattr(_uds, 'BACKLOG', 0)

    async def main():
        listener = await start_listener(addr)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(addr.sockpath))
            with pytest.raises(ConnectionError):
                await start_listener(addr)
        close_listener(addr, listener)

    trio.run(main)


def test_the_file_of_a_dead_process_is_replaced(addr, caplog):
    """A socket file that nobody listens at is no obstacle, and is mentioned."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(addr.sockpath))

    async def main():
        listener = await start_listener(addr)
        close_listener(addr, listener)

    trio.run(main)
    assert str(addr.sockpath) in caplog.text


def test_a_file_that_is_no_socket_is_left_alone(addr):
    """Only a socket is ever replaced."""
    addr.sockpath.write_text('precious')
    with pytest.raises(ConnectionError):
        trio.run(start_listener, addr)
    assert addr.sockpath.read_text() == 'precious'


def test_a_socket_of_another_user_is_left_alone(addr, monkeypatch):
    """A stale socket is replaced only by its owner."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(addr.sockpath))
    monkeypatch.setattr(os, 'getuid', lambda: addr.sockpath.stat().st_uid + 1)
    with pytest.raises(ConnectionError):
        trio.run(start_listener, addr)
    assert addr.sockpath.exists()


def test_a_path_that_is_too_long_is_a_connection_error(tmp_path):
    """What the system refuses to bind raises, with its error as the cause."""
    with pytest.raises(ConnectionError, match='too long'):
        trio.run(start_listener, UDSAddress(tmp_path, 'x' * 200))


def test_closing_a_listener_whose_file_is_gone(addr, caplog):
    """A missing file is tolerated with a warning."""

    async def main():
        listener = await start_listener(addr)
        addr.sockpath.unlink()
        close_listener(addr, listener)
        assert listener.socket.fileno() == -1

    trio.run(main)
    assert 'already gone' in caplog.text


@pytest.mark.parametrize('exists', [True, False])
def test_connecting_where_nobody_listens(addr, exists):
    """A missing path, or a stale one, is a `ConnectionError`."""
    if exists:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(addr.sockpath))
    with pytest.raises(ConnectionError, match=r'a\.sock'):
        trio.run(MsgpackUDSStream.connect_to, addr)


def test_connecting_waits_for_a_busy_listener(addr, monkeypatch):
    """While the backlog is full, connecting waits and can be cancelled."""
    monkeypatch.setattr(_uds, 'BACKLOG', 0)

    async def main():
        listener = await start_listener(addr)
        with trio.fail_after(5), socket.socket(socket.AF_UNIX) as first:
            first.connect(str(addr.sockpath))
            with trio.move_on_after(0.02) as scope:
                await MsgpackUDSStream.connect_to(addr)
            assert scope.cancelled_caught
            async with trio.open_nursery() as tn:

                async def accept():
                    for _ in range(2):
                        await (await listener.accept()).aclose()

                tn.start_soon(accept)
                transport = await MsgpackUDSStream.connect_to(addr)
                await transport.stream.aclose()
        close_listener(addr, listener)

    trio.run(main)
