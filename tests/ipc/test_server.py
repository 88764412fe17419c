"""Listeners and peers: who is let in, who is waited for, what ends with what."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor._exceptions import TransportClosed
from tractor._protocol.framing import frame
from tractor.discovery._addr import wrap_address
from tractor.ipc import _auth, _server, _uds
from tractor.ipc._chan import Channel, _connect_chan
from tractor.ipc._link import LinkStream
from tractor.ipc._server import Endpoint, IPCServer, Server, open_ipc_server
from tractor.ipc._tcp import TCPAddress
from tractor.ipc._uds import UDSAddress
from tractor.msg.types import Aid, Stop

PROTOS = ['tcp', *(['uds'] if _uds.HAS_UDS else [])]


class FakeActor:
    """What the server asks of an actor."""

    def __init__(self):
        self.aid = Aid('server', 's' * 32, 1)
        self.got, self.gone = [], []

    async def _serve_peer(self, chan):
        try:
            while True:
                msg = await chan.recv()
                self.got.append((chan.aid.name, msg))
                await chan.send(msg)
        except TransportClosed:
            return

    def _peer_gone(self, chan):
        self.gone.append(chan.aid.name)


@pytest.fixture
def actor(monkeypatch):
    actor = FakeActor()
    monkeypatch.setattr(
        _server._state, 'current_actor', lambda err_on_no_runtime=True: actor
    )
    return actor


@pytest.fixture
def addr_of(tmp_path):
    """A function that returns an address to listen at."""

    def make(proto, name='a'):
        if proto == 'tcp':
            return TCPAddress('127.0.0.1', 0)
        return UDSAddress.from_addr(tmp_path / f'{name}.sock')

    return make


def run(main, *args):
    """Run an async function, at most 5 s."""

    async def bounded():
        with trio.fail_after(5):
            return await main(*args)

    return trio.run(bounded)


def serve(addr, main):
    """Run `main(server, its address)` with a server that listens, at most 5 s."""

    async def listening():
        async with open_ipc_server() as server:
            [endpoint] = await server.listen_on(accept_addrs=[addr])
            await main(server, endpoint.addr)
            server._parent_tn.cancel_scope.cancel()

    run(listening)


@pytest.mark.parametrize('proto', PROTOS)
def test_listening_without_an_actor(addr_of, proto):
    """A server needs no runtime; cancelling its nursery ends it cleanly."""
    addr = addr_of(proto)
    seen = []

    async def main(server, bound):
        [endpoint] = server._endpoints
        assert server._parent_tn is server._stream_handler_tn
        assert endpoint._listener is not None
        assert endpoint.peer_tpts == {}
        assert server.addrs == [bound]
        assert wrap_address(server.accept_addrs[0]).is_valid
        assert server.epsdict() == {bound: endpoint}
        assert server.proto_keys == [proto]
        assert server._no_more_peers.is_set()
        assert not server.has_peers()
        assert server.len_peers() == 0
        assert not server.is_shutdown()
        assert repr(server).startswith('<Server(')
        assert str(bound) in server.pformat(privates=True)
        assert server.repr_state == 'listening'
        seen.append((server, bound))

    serve(addr, main)
    [(server, bound)] = seen
    assert server.is_shutdown()
    assert server.repr_state == 'shut down'
    assert server.addrs == []
    if proto == 'uds':
        assert bound == addr
        assert not addr.sockpath.exists()
    else:
        assert bound.unwrap()[1] != 0


def test_the_default_is_the_default_registry(monkeypatch, tmp_path):
    """Without addresses the default transport's registry address is taken."""
    monkeypatch.setattr(_server._state, '_def_tpt_proto', 'uds')
    monkeypatch.setattr(UDSAddress, 'def_bindspace', tmp_path)

    async def main():
        async with open_ipc_server() as server:
            await server.listen_on()
            assert server.accept_addrs == [UDSAddress.get_root().unwrap()]
            assert server.cancel()

    run(main)


@pytest.mark.parametrize('proto', PROTOS)
def test_a_peer_is_introduced_served_and_forgotten(actor, addr_of, proto):
    """A peer is in the table from its handshake until its channel ends."""

    async def main(server, bound):
        async with _connect_chan(bound.unwrap()) as chan:
            assert await chan._do_handshake(Aid('peer', 'p' * 32)) == actor.aid
            await chan.send(Stop('c'))
            assert await chan.recv() == Stop('c')
            assert server.has_peers()
            assert server.has_peers(check_chans=True)
            assert server.len_peers() == 1
            [ours] = server._peers['peer', 'p' * 32]
            assert list(server._endpoints[0].peer_tpts) == [ours]
            assert not server._no_more_peers.is_set()
        await server.wait_for_no_more_peers()
        assert server._peers == {}
        assert server._no_more_peers.is_set()
        await wait_all_tasks_blocked()
        assert ours.closed
        assert server._endpoints[0].peer_tpts == {}
        assert actor.gone == ['peer']

    serve(addr_of(proto), main)


def test_a_probe_leaves_no_trace(actor, addr_of):
    """A registry probe gets its answer and never is a peer."""

    async def main(server, bound):
        seen = []
        add = server._add_peer
        server._add_peer = lambda chan: seen.append(chan) or add(chan)
        async with _connect_chan(bound) as chan:
            reply = await chan._do_handshake(Aid('probe', 'p', is_probe=True))
            assert reply == actor.aid
            with pytest.raises(TransportClosed):
                await chan.recv()
        assert seen == []
        assert server._peers == {}
        assert server._no_more_peers.is_set()
        assert actor.gone == []

    serve(addr_of('uds'), main)


def test_waiting_for_a_peer(actor, addr_of):
    """Everybody who waits is woken, and a later question is answered at once."""
    uid = ('peer', 'p' * 32)

    async def main(server, bound):
        answers = []

        async def wait():
            answers.append(await server.wait_for_peer(uid))

        async with _connect_chan(bound) as chan:
            async with trio.open_nursery() as tn:
                for _ in range(2):
                    tn.start_soon(wait)
                await wait_all_tasks_blocked()
                await chan._do_handshake(Aid(*uid))
            await wait()
            event, ours = answers[0]
            assert event.is_set()
            assert ours.aid == Aid(*uid)
            assert [answer[1] for answer in answers] == [ours] * 3
            assert answers[2][0].is_set()
            async with _connect_chan(bound) as second:
                await second._do_handshake(Aid(*uid))
                await second.send(Stop('c'))
                await second.recv()
                _, latest = await server.wait_for_peer(uid)
                assert latest is server._peers[uid][-1] is not ours

    serve(addr_of('uds'), main)


def test_giving_up_on_a_peer_leaves_nothing(actor, addr_of):
    """A cancelled wait is forgotten."""

    async def main(server, bound):
        with trio.move_on_after(0.01):
            await server.wait_for_peer(('never', 'n'))
        assert server._peer_connected == {}
        assert server._arrived == {}
        assert server._peers == {}

    serve(addr_of('uds'), main)


GARBAGE = [
    b'',
    b'\0',
    b'\xff\xff\xff\xff',
    b'GET / HTTP/1.1\r\n\r\n',
    frame(b'\xc1'),
    frame(b'\x01') * 10,
    bytes(range(256)) * 20,
    frame(b'x' * 100)[:50],
]


@pytest.mark.parametrize('proto', PROTOS)
def test_garbage_disturbs_nobody(actor, addr_of, proto):
    """Whatever strangers send, a peer that is connected stays connected."""

    async def main(server, bound):
        async with _connect_chan(bound) as chan:
            await chan._do_handshake(Aid('peer', 'p' * 32))
            for data in GARBAGE:
                stream = await connect_plainly(bound)
                async with stream:
                    with suppress(trio.BrokenResourceError):  # dropped already
                        await stream.send_all(data)
                        await stream.send_eof()
                    while await receive_or_reset(stream):
                        continue
            await wait_all_tasks_blocked()
            assert not _server._strangers
            assert server.len_peers() == 1
            await chan.send(Stop('c'))
            assert await chan.recv() == Stop('c')

    serve(addr_of(proto), main)


async def connect_plainly(addr):
    if addr.proto_key == 'uds':
        return await trio.open_unix_socket(str(addr.sockpath))
    return await trio.open_tcp_stream(*addr.unwrap())


async def receive_or_reset(stream):
    try:
        return await stream.receive_some(1000)
    except trio.BrokenResourceError:
        return b''


@pytest.mark.parametrize('proto', PROTOS)
@pytest.mark.parametrize('data', [b'', b'\x10\0\0\0half'])
def test_a_silent_peer_is_dropped(actor, addr_of, proto, data, monkeypatch):
    """A connection that does not introduce itself in time is closed."""
    monkeypatch.setattr(_server, '_PRE_REG_HANDSHAKE_TIMEOUT', 0.05)

    async def main(server, bound):
        async with await connect_plainly(bound) as stream:
            await stream.send_all(data)
            while await receive_or_reset(stream):
                continue
        assert server._peers == {}

    serve(addr_of(proto), main)


def test_the_limit_is_ten_seconds():
    """How long a stranger may take."""
    assert _server._PRE_REG_HANDSHAKE_TIMEOUT == 10


async def greeted(bound):
    """Connect, and wait until the server has begun to ask for a proof."""
    stream = await connect_plainly(bound)
    assert len(await stream.receive_some()) == _auth.HELLO_SIZE
    return stream


async def introduced(bound):
    """Connect as a peer, and leave."""
    async with _connect_chan(bound) as chan:
        await chan._do_handshake(Aid('peer', 'p' * 32))


def test_a_newcomer_waits_while_there_are_too_many_strangers(
    actor, addr_of, monkeypatch
):
    """At the limit nobody is dropped: one is let in as soon as another has left."""
    monkeypatch.setattr(_server, 'MAX_STRANGERS', 2)

    async def main(server, bound):
        strangers = [await greeted(bound) for _ in range(2)]
        assert len(_server._strangers) == 2
        async with trio.open_nursery() as tn:
            tn.start_soon(introduced, bound)
            await wait_all_tasks_blocked()
            assert server._peers == {}
            await strangers.pop().aclose()
        for stream in strangers:
            await stream.aclose()

    serve(addr_of('tcp'), main)
    assert actor.gone == ['peer']
    assert not _server._strangers


def test_the_oldest_stranger_makes_room(actor, addr_of, monkeypatch, caplog):
    """Who has had the least time that is due gives way to a newcomer; others stay."""
    monkeypatch.setattr(_server, 'MAX_STRANGERS', 2)
    monkeypatch.setattr(_server, 'MIN_PROOF_TIME', 0.05)

    async def main(server, bound):
        async with await greeted(bound) as oldest, await greeted(bound) as other:
            # The first one's end is settled; who is the oldest then is due more.
            monkeypatch.setattr(_server, 'MIN_PROOF_TIME', 60)
            await introduced(bound)
            assert await receive_or_reset(oldest) == b''
            await wait_all_tasks_blocked()
            assert len(_server._strangers) == 1
            with pytest.raises(BlockingIOError):
                other.socket._sock.recv(1)

    serve(addr_of('tcp'), main)
    assert 'did not prove itself in time' in caplog.text


def test_no_peer_of_a_burst_is_lost(actor, addr_of, monkeypatch):
    """Many more honest peers than there may be strangers all get in."""
    monkeypatch.setattr(_server, 'MAX_STRANGERS', 3)

    async def main(server, bound):
        async with trio.open_nursery() as tn:
            for _ in range(50):
                tn.start_soon(introduced, bound)

    serve(addr_of('tcp'), main)
    assert actor.gone == ['peer'] * 50


def test_strangers_do_not_hinder_who_is_none(actor, addr_of, monkeypatch, raw_pair):
    """Over a Unix socket or an adopted link peers get in while TCP is full."""
    monkeypatch.setattr(_server, 'MAX_STRANGERS', 1)

    async def main(server, bound):
        [uds] = await server.listen_on(accept_addrs=[addr_of('uds')])
        async with await greeted(bound):
            assert len(_server._strangers) == 1
            silent = await connect_plainly(uds.addr)
            await introduced(uds.addr)
            ours, theirs = raw_pair()
            server.adopt(Channel(LinkStream(ours)))
            await Channel(LinkStream(theirs))._do_handshake(Aid('link', 'l' * 32))
            await server.wait_for_peer(('link', 'l' * 32))
            assert len(_server._strangers) == 1
            await silent.aclose()

    serve(addr_of('tcp'), main)


def test_the_proof_has_a_deadline_of_its_own(actor, addr_of, monkeypatch):
    """Who proves nothing is dropped early; who has, has the time of the handshake."""
    assert _server.PROOF_TIMEOUT < _server._PRE_REG_HANDSHAKE_TIMEOUT

    async def main(server, bound):
        async with _connect_chan(bound) as slow:
            await slow.transport.authenticate()
            await wait_all_tasks_blocked()
            assert not _server._strangers
            monkeypatch.setattr(_server, 'PROOF_TIMEOUT', 0.05)
            async with await connect_plainly(bound) as silent:
                while await receive_or_reset(silent):
                    continue
            await slow.send(Aid('slow', 's' * 32))
            assert await slow.recv() == actor.aid

    serve(addr_of('tcp'), main)


def test_without_an_actor_connections_are_dropped(addr_of, caplog):
    """A process without a runtime can serve nobody."""

    async def main(server, bound):
        async with await connect_plainly(bound) as stream:
            assert await receive_or_reset(stream) == b''

    serve(addr_of('uds'), main)
    assert 'no actor runs' in caplog.text


def test_what_the_message_loop_raises_propagates(actor, addr_of):
    """An error of the actor's loop takes the server's nursery down, cleaned up."""

    async def fail(chan):
        raise ValueError('mine')

    actor._serve_peer = fail
    servers = []

    async def main(server, bound):
        servers.append(server)
        async with _connect_chan(bound) as chan:
            await chan._do_handshake(Aid('peer', 'p' * 32))
            await trio.sleep_forever()

    with pytest.raises(ValueError, match='mine'):
        serve(addr_of('uds'), main)
    assert servers[0]._peers == {}
    assert servers[0].is_shutdown()
    assert actor.gone == ['peer']


def test_peers_outlive_the_listeners_in_a_nursery_of_their_own(actor, addr_of):
    """`cancel()` ends accepting; a connection handled elsewhere goes on."""

    async def main():
        with trio.fail_after(5):
            async with trio.open_nursery() as handlers:
                async with trio.open_nursery() as accepting:
                    async with open_ipc_server(accepting, handlers) as server:
                        [ep] = await server.listen_on(accept_addrs=[addr_of('uds')])
                        chan = await Channel.from_addr(ep.addr)
                        await chan._do_handshake(Aid('peer', 'p' * 32))
                        assert server.cancel()
                        await trio.sleep_forever()
                assert server.is_shutdown()
                assert not server.cancel()
                await server.wait_for_shutdown()
                with pytest.raises(ConnectionError):
                    await Channel.from_addr(ep.addr)
                await chan.send(Stop('c'))
                assert await chan.recv() == Stop('c')
                await chan.aclose()
                await server.wait_for_no_more_peers()

    run(main)


def test_closing_only_the_listeners(actor, addr_of):
    """`_close_listeners()` waits until they are closed; peers stay."""

    async def main(server, bound):
        async with _connect_chan(bound) as chan:
            await chan._do_handshake(Aid('peer', 'p' * 32))
            await server._close_listeners()
            assert server.is_shutdown()
            assert not bound.sockpath.exists()
            await chan.send(Stop('c'))
            assert await chan.recv() == Stop('c')
            with pytest.raises(RuntimeError, match='shut down'):
                await server.listen_on(accept_addrs=[bound])

    serve(addr_of('uds'), main)


def test_if_one_address_is_taken_none_is_bound(addr_of):
    """A failure to bind closes what was bound before it."""
    addrs = [addr_of('uds', name) for name in 'abc']
    addrs[1].sockpath.write_text('taken')

    async def main():
        async with open_ipc_server() as server:
            with pytest.raises(ConnectionError):
                await server.listen_on(accept_addrs=addrs)
            assert server._endpoints == []
            assert not addrs[0].sockpath.exists()
            await server.listen_on(accept_addrs=[addrs[2]])
            server.cancel()

    run(main)


def test_one_listener_that_cannot_be_closed(addr_of, monkeypatch, caplog):
    """The others are closed all the same, and the shutdown is announced."""
    addrs = [addr_of('uds', name) for name in 'abc']
    close = Endpoint.close_listener

    def fail_for_the_first(self):
        close(self)
        if self.addr == addrs[0]:
            raise OSError(errno.EIO, 'no luck')

    monkeypatch.setattr(Endpoint, 'close_listener', fail_for_the_first)

    async def main():
        async with open_ipc_server() as server:
            await server.listen_on(accept_addrs=addrs)
            server.cancel()
        assert server.is_shutdown()
        assert not any(addr.sockpath.exists() for addr in addrs)

    run(main)
    assert 'cannot close the listener' in caplog.text


def test_out_of_descriptors(actor, addr_of, monkeypatch, caplog):
    """When the process has no descriptors left, accepting pauses and goes on."""
    monkeypatch.setattr(_server, 'ACCEPT_PAUSE', 0.01)
    accept = trio.SocketListener.accept
    failures = [OSError(errno.EMFILE, 'too many open files') for _ in range(3)]

    async def fail_at_first(self):
        if failures:
            await trio.lowlevel.checkpoint()
            raise failures.pop()
        return await accept(self)

    monkeypatch.setattr(trio.SocketListener, 'accept', fail_at_first)

    async def main(server, bound):
        for _ in range(2):
            await introduced(bound)

    serve(addr_of('uds'), main)
    # One record when it begins, one when it ends.
    assert caplog.text.count('cannot accept') == 1
    assert caplog.text.count('again') == 1


def test_a_connection_that_is_gone_before_it_is_handled(actor, addr_of):
    """A peer that connects and resets at once is no error."""

    async def main(server, bound):
        with socket.socket() as sock:
            sock.connect(bound.unwrap())
            # With these options closing sends a reset.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
        await wait_all_tasks_blocked()
        async with _connect_chan(bound) as chan:
            await chan._do_handshake(Aid('peer', 'p' * 32))

    serve(addr_of('tcp'), main)


def test_a_probe_is_not_the_handlers_to_close(actor, monkeypatch):
    """The handler leaves the table alone, and the stream of a probe to its caller."""

    class Probe:
        async def _do_handshake(self, aid, timeout):
            return Aid('probe', 'p', is_probe=True)

    monkeypatch.setattr(Channel, 'from_stream', lambda stream: Probe())

    async def main():
        # All that a probe may meet of a server.
        server = SimpleNamespace(_peers={}, _no_more_peers=trio.Event())
        server._no_more_peers.set()
        await _server.handle_stream_from_peer(object(), server=server)
        assert server._peers == {}
        assert server._no_more_peers.is_set()
        assert not _server._strangers

    run(main)


def test_names():
    """The server has an alias."""
    assert IPCServer is Server
