"""TCP addresses, listeners and the authenticated connection."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress

import pytest
import trio

from tractor._exceptions import RuntimeFailure, TransportClosed
from tractor.ipc import _auth, _tcp
from tractor.ipc._auth import MAC_SIZE
from tractor.ipc._tcp import MsgpackTCPStream, TCPAddress, start_listener
from tractor.msg.types import Stop
from tractor.runtime import _state


@pytest.fixture(autouse=True)
def _fresh_cache(monkeypatch):
    monkeypatch.setattr(_auth, '_cookies', {})


@pytest.mark.parametrize('host', ['127.0.0.1', '::1', '0.0.0.0', 'fe80::1%lo'])
def test_hosts_are_ip_literals(host):
    """Literals of both versions are hosts, scoped ones too."""
    assert TCPAddress.from_addr((host, 5)).unwrap() == (host, 5)


@pytest.mark.parametrize(
    ('text', 'host'),
    [
        ('0:0:0:0:0:0:0:1', '::1'),
        ('FE80::0001%lo', 'fe80::1%lo'),
        ('2001:db8::0:1', '2001:db8::1'),
        ('::ffff:7f00:1', '::ffff:127.0.0.1'),
    ],
)
def test_a_host_has_one_text(text, host):
    """However it is written, a host is the same address with the same hash."""
    one, other = TCPAddress.from_addr((text, 5)), TCPAddress(host, 5)
    assert one == other
    assert hash(one) == hash(other)
    assert one.unwrap() == (host, 5)
    assert TCPAddress('127.0.0.1', 5) != TCPAddress('::ffff:127.0.0.1', 5)


@pytest.mark.parametrize('host', ['localhost', '', '1.2.3', 'fe80::1::2', '1.2.3.4%lo'])
def test_names_are_no_hosts(host):
    """A name would have to be resolved, which is the caller's business."""
    with pytest.raises(ValueError, match='no IP literal'):
        TCPAddress(host, 5)


@pytest.mark.parametrize('port', [-1, 2**16])
def test_ports_have_a_range(port):
    """A port that no socket can have is refused."""
    with pytest.raises(ValueError, match='port'):
        TCPAddress('127.0.0.1', port)


@pytest.mark.parametrize(
    'addr', [('127.0.0.1',), ('127.0.0.1', '5'), ('127.0.0.1', True), (1, 2), 5, 'ab']
)
def test_only_a_host_and_a_port(addr):
    """`from_addr()` takes `(str, int)` and nothing else."""
    with pytest.raises(ValueError, match='TCP address'):
        TCPAddress.from_addr(addr)


def test_addresses_are_values():
    """Equal addresses are equal and hash alike; they cannot be changed."""
    one, same = TCPAddress('127.0.0.1', 5), TCPAddress.from_addr(['127.0.0.1', 5])
    assert one == same
    assert len({one, same}) == 1
    assert one != TCPAddress('127.0.0.1', 6)
    assert repr(one) == "TCPAddress[('127.0.0.1', 5)]"
    assert one.bindspace == one.domain == '127.0.0.1'
    with pytest.raises(AttributeError):
        one._port = 6


def test_where_the_defaults_are():
    """The default registry, and a random address whose port the system picks."""
    assert TCPAddress.get_root().unwrap() == ('127.0.0.1', 1616)
    assert TCPAddress.get_random().unwrap() == ('127.0.0.1', 0)
    assert TCPAddress.get_random(bindspace='::1').unwrap() == ('::1', 0)
    assert TCPAddress.def_bindspace == '127.0.0.1'
    assert TCPAddress.proto_key == 'tcp'


@pytest.mark.parametrize(
    ('host', 'port', 'valid'),
    [
        ('127.0.0.1', 5, True),
        ('10.0.0.1', 5, True),
        ('::1', 5, True),
        ('::1', 0, False),
        ('127.0.0.1', 0, False),
        ('0.0.0.0', 5, False),
        ('8.8.8.8', 5, False),
        ('224.0.0.1', 5, False),
        ('169.254.0.1', 5, False),
    ],
)
def test_which_addresses_are_valid(host, port, valid):
    """Valid is what can be dialed from this host or a private network only."""
    assert TCPAddress(host, port).is_valid is valid


@pytest.fixture
def cookies(monkeypatch):
    """The function each role loads its cookie with; both load the same at first."""
    functions = dict.fromkeys(('client', 'server'), _auth.load_cookie)
    plain = MsgpackTCPStream.authenticate

    async def authenticate(self):
        monkeypatch.setattr(_tcp._auth, 'load_cookie', functions[self._role])
        await plain(self)

    monkeypatch.setattr(MsgpackTCPStream, 'authenticate', authenticate)
    return functions


def run(main, *args):
    """Run an async function, at most 5 s."""

    async def bounded():
        with trio.fail_after(5):
            return await main(*args)

    return trio.run(bounded)


def connected(client, server):
    """Run `client(transport)` and `server(transport)` over a real connection."""

    async def main():
        async with await start_listener(TCPAddress('127.0.0.1', 0)) as listener:
            port = listener.socket.getsockname()[1]

            async def serve():
                async with await listener.accept() as stream:
                    await server(MsgpackTCPStream(stream))

            async with trio.open_nursery() as tn:
                tn.start_soon(serve)
                transport = await MsgpackTCPStream.connect_to(
                    TCPAddress('127.0.0.1', port)
                )
                async with transport.stream:
                    await client(transport)

    run(main)


def test_an_authenticated_connection_carries_messages():
    """After both sides authenticated, the first frame is read whole."""
    seen = {}

    async def client(transport):
        await transport.authenticate()
        await transport.send(Stop('hello'))
        seen['client'] = transport.laddr, transport.raddr
        nodelay = transport.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert nodelay

    async def server(transport):
        await transport.authenticate()
        assert await transport.recv() == Stop('hello')
        seen['server'] = transport.raddr, transport.laddr

    connected(client, server)
    assert seen['client'] == seen['server']


@pytest.mark.parametrize('first', ['send', 'recv'])
def test_who_skips_the_handshake_is_told(first):
    """Whatever comes of it, the error names what comes before any message."""

    async def talk(transport):
        while True:
            if first == 'send':
                await transport.send(Stop('too early'))
            else:
                await transport.recv()

    async def client(transport):
        with pytest.raises(TransportClosed, match=r'Channel\._do_handshake'):
            await talk(transport)

    async def server(transport):
        with pytest.raises(TransportClosed) as caught:
            await transport.authenticate()
        assert '_do_handshake' not in str(caught.value)

    connected(client, server)


@pytest.mark.skipif(not hasattr(socket, 'TCP_KEEPIDLE'), reason='not on this platform')
def test_a_host_that_is_gone_is_missed():
    """Both sides ask a silent peer for a sign of life, for half a minute in all."""
    seen = []

    async def either(transport):
        get = transport.stream.getsockopt
        assert get(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            get(socket.IPPROTO_TCP, option)
            for option in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
            )
        )
        seen.append(idle + interval * count)

    connected(either, either)
    assert seen == [30, 30]


@pytest.mark.skipif(sys.platform != 'linux', reason='an option of Linux')
def test_a_live_peer_may_take_its_time():
    """No option ends a connection because its peer does not read for a while."""

    async def either(transport):
        option = socket.TCP_USER_TIMEOUT
        assert transport.stream.getsockopt(socket.IPPROTO_TCP, option) == 0

    connected(either, either)


def test_a_client_with_another_cookie_is_refused(cookies, cookie_file):
    """Both sides fail; the client's text names the address, the file, the variable."""
    cookies['server'] = lambda: b's' * 32

    async def client(transport):
        with pytest.raises(TransportClosed, match='TRACTOR_COOKIE_FILE') as caught:
            await transport.authenticate()
        assert str(cookie_file) in str(caught.value)
        assert str(transport.raddr) in str(caught.value)

    async def server(transport):
        with pytest.raises(TransportClosed, match='another cookie') as caught:
            await transport.authenticate()
        assert caught.value._loglevel == 'warning'

    connected(client, server)


def forwarded(client, server):
    """Run both roles with somebody in between who passes every byte on."""
    done = trio.Event()

    async def pump(source, sink):
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for data in source:
                await sink.send_all(data)
            await sink.send_eof()

    async def main():
        async with (
            await start_listener(TCPAddress('127.0.0.1', 0)) as squatter,
            await start_listener(TCPAddress('127.0.0.1', 0)) as real,
            trio.open_nursery() as tn,
        ):

            async def forward():
                async with (
                    await squatter.accept() as near,
                    await trio.open_tcp_stream(*real.socket.getsockname()) as far,
                    trio.open_nursery() as pumps,
                ):
                    pumps.start_soon(pump, near, far)
                    pumps.start_soon(pump, far, near)

            async def serve():
                async with await real.accept() as stream:
                    await server(MsgpackTCPStream(stream))
                done.set()

            tn.start_soon(forward)
            tn.start_soon(serve)
            transport = await MsgpackTCPStream.connect_to(
                TCPAddress(*squatter.socket.getsockname())
            )
            async with transport.stream:
                await client(transport)
            await done.wait()
            tn.cancel_scope.cancel()

    async def bounded():
        with trio.fail_after(5):
            await main()

    trio.run(bounded)


def test_who_listens_where_we_dial_cannot_pass_the_exchange_on():
    """A stranger in between ends up with no authenticated connection to either."""

    async def client(transport):
        with pytest.raises(TransportClosed, match='not authenticated'):
            await transport.authenticate()

    async def server(transport):
        with pytest.raises(TransportClosed, match='TRACTOR_TCP_FORWARDED'):
            await transport.authenticate()

    forwarded(client, server)


def test_a_forwarder_that_both_ends_allow(monkeypatch):
    """With the variable set the exchange goes through a tunnel."""
    monkeypatch.setenv('TRACTOR_TCP_FORWARDED', '1')

    async def client(transport):
        await transport.authenticate()
        await transport.send(Stop('hello'))

    async def server(transport):
        await transport.authenticate()
        assert await transport.recv() == Stop('hello')

    forwarded(client, server)


@pytest.mark.parametrize(('value', 'allowed'), [('', 0), ('0', 0), ('1', 1)])
def test_forwarding_is_allowed_by_a_variable(monkeypatch, value, allowed):
    """It takes more than an empty value or a zero."""
    monkeypatch.setenv('TRACTOR_TCP_FORWARDED', value)
    assert _state.env_tcp_forwarded() == bool(allowed)


def unusable():
    raise RuntimeFailure('no good')


def test_a_client_without_a_usable_cookie(cookies):
    """The connecting side raises what is wrong with its own file."""
    cookies['client'] = unusable

    async def client(transport):
        with pytest.raises(RuntimeFailure, match='no good'):
            await transport.authenticate()

    async def server(transport):
        with pytest.raises(TransportClosed, match='hung up'):
            await transport.authenticate()

    connected(client, server)


def test_a_server_without_a_usable_cookie(cookies):
    """The accepting side drops the connection and says why."""
    cookies['server'] = unusable

    async def client(transport):
        with pytest.raises(TransportClosed, match='hung up'):
            await transport.authenticate()

    async def server(transport):
        with pytest.raises(TransportClosed, match='no good'):
            await transport.authenticate()

    connected(client, server)


def test_a_server_that_reflects_is_refused():
    """A peer that sends everything back does not pass."""

    async def client(transport):
        with pytest.raises(TransportClosed, match='another cookie'):
            await transport.authenticate()

    async def server(transport):
        for size in (_auth.HELLO_SIZE, MAC_SIZE):
            data = await transport.receive_exactly(size)
            await transport.stream.send_all(data)

    connected(client, server)


@pytest.mark.parametrize('data', [b'', b'GET / HTTP/1.1\r\n\r\n', b'\0' * 4000])
def test_a_stranger_is_refused(data):
    """Whatever a stranger sends, the server's error is `TransportClosed`."""

    async def client(transport):
        await transport.stream.send_all(data) if data else None
        await transport.stream.send_eof()

    async def server(transport):
        with pytest.raises(TransportClosed, match='not authenticated'):
            await transport.authenticate()

    connected(client, server)


def test_an_address_that_is_taken():
    """Binding a port twice raises the system's error, with the address noted."""

    async def main():
        async with await start_listener(TCPAddress('127.0.0.1', 0)) as listener:
            addr = TCPAddress.from_addr(listener.socket.getsockname())
            with pytest.raises(OSError, match='in use') as caught:
                await start_listener(addr)
            assert caught.value.errno == errno.EADDRINUSE
            assert any(str(addr) in note for note in caught.value.__notes__)

    run(main)


def test_listening_needs_a_cookie(cookie_file):
    """Without a usable cookie nobody could be let in, so nothing listens."""
    cookie_file.mkdir()
    with pytest.raises(RuntimeFailure):
        run(start_listener, TCPAddress('127.0.0.1', 0))


def test_nobody_listens():
    """Connecting to a closed port raises, and names the address."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        addr = TCPAddress(*sock.getsockname())
        with pytest.raises(ConnectionRefusedError) as caught:
            run(MsgpackTCPStream.connect_to, addr)
    assert any(str(addr) in note for note in caught.value.__notes__)


def test_a_port_connected_to_itself_is_nobody(monkeypatch):
    """A connection that the system made to its own end is refused."""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        port = sock.getsockname()[1]
    make = trio.socket.socket

    def bound(family):
        sock = make(family)
        sock._sock.bind(('127.0.0.1', port))
        return sock

    monkeypatch.setattr(trio.socket, 'socket', bound)
    with pytest.raises(ConnectionRefusedError, match='nobody listens'):
        run(MsgpackTCPStream.connect_to, TCPAddress('127.0.0.1', port))


def test_ipv6():
    """The loopback of IPv6 works like the other one."""

    async def main():
        try:
            listener = await start_listener(TCPAddress('::1', 0))
        except OSError:
            pytest.skip('this host has no IPv6')
        async with listener:
            addr = TCPAddress.from_addr(listener.socket.getsockname()[:2])
            transport = await MsgpackTCPStream.connect_to(addr)
            assert transport.raddr == addr
            await transport.stream.aclose()

    run(main)
