"""
TCP: its addresses, listeners and message stream.

Hosts are IP literals, so nothing here resolves a name.  A port is open to every user of
the host: each connection begins with the cookie exchange of `_auth`.  A peer whose host
is gone without a word is missed within half a minute, or, if something was being sent
to it, when the system gives up sending (15 minutes on Linux).  `_types` lists the
transport, the server and channels reach it through there.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, Self

import trio

from tractor._exceptions import RuntimeFailure, TransportClosed
from tractor.ipc import _auth
from tractor.ipc._transport import MsgpackTransport
from tractor.msg._codec import MsgCodec
from tractor.msg.pretty_struct import Struct, structs
from tractor.runtime import _state

LOOPBACK: Final = '127.0.0.1'
REGISTRY_PORT: Final = 1616

# A silent peer is asked whether its host is still there: after a first pause in which
# nothing came, then again and again, and lost after so many questions without answer.
KEEPALIVE_IDLE: Final = 15  # seconds
KEEPALIVE_INTERVAL: Final = 5  # seconds
KEEPALIVE_COUNT: Final = 3


def _keepalive_options() -> list[tuple[int, int, int]]:
    """Return level, name and value of what this platform has."""
    # Not among them is TCP_USER_TIMEOUT: it also ends the connection to a live peer
    # that reads nothing for so long, such as one that is stopped in a debugger.
    found = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for names, value in (
        (('TCP_KEEPIDLE', 'TCP_KEEPALIVE'), KEEPALIVE_IDLE),  # the latter on macOS
        (('TCP_KEEPINTVL',), KEEPALIVE_INTERVAL),
        (('TCP_KEEPCNT',), KEEPALIVE_COUNT),
    ):
        name = next((name for name in names if hasattr(socket, name)), None)
        if name is not None:
            found.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return found


_KEEPALIVE: Final = _keepalive_options()


def _family(host: object) -> socket.AddressFamily | None:
    """Return the address family of an IP literal, `None` if it is none."""
    # `ipaddress` would say it too, and takes 2 ms to import in every child.
    if isinstance(host, str):
        literal, _, scope = host.partition('%')
        for family in (socket.AF_INET, socket.AF_INET6):
            if scope and family == socket.AF_INET:
                continue
            try:
                socket.inet_pton(family, literal)
            except (OSError, ValueError):
                continue
            return family
    return None


class TCPAddress(Struct, frozen=True):  # type: ignore[misc]
    """
    A host, as an IP literal, and a port; port 0 lets the system choose.

    The literal is kept in its shortest form, so that equal hosts are equal text.
    """

    _host: str
    _port: int

    proto_key: ClassVar[str] = 'tcp'
    unwrapped_type: ClassVar[Any] = tuple[str, int]
    def_bindspace: ClassVar[str] = LOOPBACK

    def __post_init__(self) -> None:
        family = _family(self._host)
        if family is None:
            raise ValueError(
                f'TCP host {self._host!r} is no IP literal; resolve it first'
            )
        if not 0 <= self._port < 2**16:
            raise ValueError(f'TCP port {self._port!r} is not in 0..65535')
        literal, percent, scope = self._host.partition('%')
        shortest = socket.inet_ntop(family, socket.inet_pton(family, literal))
        if shortest != literal:
            structs.force_setattr(self, '_host', f'{shortest}{percent}{scope}')

    @classmethod
    def from_addr(cls, addr: Sequence[Any]) -> Self:
        """
        Return the address for `(host, port)`.

        Raises:
            ValueError: Another shape, no IP literal, or no port.
        """
        match addr:
            case (str(host), int(port)) if not isinstance(port, bool):
                return cls(host, port)
        raise ValueError(f'a TCP address is `(host: str, port: int)`, not {addr!r}')

    @classmethod
    def get_random(
        cls, bindspace: str | None = None, current_actor: Any = None
    ) -> Self:
        """Return an address whose port the system chooses when it is bound."""
        return cls(bindspace or cls.def_bindspace, 0)

    @classmethod
    def get_root(cls) -> Self:
        """Return the default registry address."""
        return cls(LOOPBACK, REGISTRY_PORT)

    def unwrap(self) -> tuple[str, int]:
        """Return `(host, port)`."""
        return self._host, self._port

    @property
    def bindspace(self) -> str:
        """The host."""
        return self._host

    @property
    def domain(self) -> str:
        """The host."""
        return self._host

    @property
    def system_chooses(self) -> bool:
        """Whether the port is known only once it is bound."""
        return self._port == 0

    @property
    def is_valid(self) -> bool:
        """Whether one can dial it, and only from this host or a private network."""
        from ipaddress import ip_address  # of use to few, see `_family()`

        ip = ip_address(self._host)
        if self._port == 0 or ip.is_loopback:  # `::1` counts as reserved, too
            return self._port != 0
        return not (
            ip.is_reserved
            or ip.is_unspecified
            or ip.is_link_local
            or ip.is_multicast
            or ip.is_global
        )

    def __repr__(self) -> str:
        return f'{type(self).__name__}[{self.unwrap()}]'

    __str__ = __repr__


@trio.lowlevel.enable_ki_protection  # looking up a host may load its codec
async def start_listener(addr: TCPAddress, **kwargs: Any) -> trio.SocketListener:
    """
    Bind and listen.

    Args:
        addr: Where.
        **kwargs: See `trio.open_tcp_listeners()`.
    Raises:
        OSError: The address is taken or not this host's.
        RuntimeFailure: There is no usable cookie, so nobody could be authenticated.
    """
    _auth.load_cookie()
    host, port = addr.unwrap()
    try:
        [listener] = await trio.open_tcp_listeners(port, host=host, **kwargs)
    except OSError as err:
        err.add_note(f'while binding {addr}')
        raise
    return listener


class MsgpackTCPStream(MsgpackTransport):
    """Messages over TCP."""

    address_type: ClassVar[type[Any]] = TCPAddress

    _role: _auth.Role = 'server'
    _is_proving: bool = False  # or has proved, or failed to

    def __init__(
        self,
        stream: trio.SocketStream,
        prefix_size: int = 4,
        codec: MsgCodec | None = None,
    ) -> None:
        super().__init__(stream, prefix_size=prefix_size, codec=codec)
        with suppress(OSError):  # a peer that has gone is met by the first read
            for option in _KEEPALIVE:
                stream.setsockopt(*option)

    @property
    def maddr(self) -> Any:
        """The peer's address as a `multiaddr.Multiaddr`."""
        return super().maddr

    @classmethod
    async def connect_to(
        cls,
        addr: TCPAddress,
        prefix_size: int = 4,
        codec: MsgCodec | None = None,
        **kwargs: Any,
    ) -> Self:
        """
        Connect; the peer has proved nothing yet, see `authenticate()`.

        Raises:
            OSError: Nobody listens there, or it cannot be reached.
        """
        host, port = addr.unwrap()
        sock = trio.socket.socket(_family(host) or socket.AF_INET)
        try:
            await sock.connect((host, port))
            # A free port of the system's range can get connected to itself.
            if sock.getsockname()[:2] == sock.getpeername()[:2]:
                raise ConnectionRefusedError(f'nobody listens at {addr}')
            transport = cls(
                trio.SocketStream(sock), prefix_size=prefix_size, codec=codec
            )
        except BaseException as err:
            sock.close()
            if isinstance(err, OSError):
                err.add_note(f'while connecting to {addr}')
            raise
        transport._role = 'client'
        return transport

    @classmethod
    def get_stream_addrs(
        cls, stream: trio.SocketStream
    ) -> tuple[TCPAddress, TCPAddress]:
        """Return the local and the remote address."""
        sock = stream.socket
        laddr, raddr = sock.getsockname(), sock.getpeername()
        return TCPAddress.from_addr(laddr[:2]), TCPAddress.from_addr(raddr[:2])

    async def authenticate(self) -> None:
        """
        Prove to the peer that we hold the cookie, and have it prove the same.

        Must come before any message.  There is no deadline here; if it fails or is
        cancelled the connection has to be closed.

        Raises:
            TransportClosed: The peer left, holds another cookie, or is reached through
                a forwarder.
            RuntimeFailure: The connecting side has no usable cookie.
        """
        self._is_proving = True
        try:
            key = _auth.load_cookie()
        except RuntimeFailure as err:
            if self._role == 'client':
                raise
            raise self._closed(f'cannot authenticate: {err}', err, 'error') from err
        try:
            await _auth.authenticate(
                self._role, key, self._ends, self._send_bytes, self.receive_exactly
            )
        except _auth.AuthError as err:
            raise self._refused(str(err), err) from err
        except TransportClosed as err:
            if isinstance(err.src_exc, trio.ClosedResourceError):  # by our own side
                raise
            raise self._refused('it hung up', err) from err

    @property
    def _ends(self) -> bytes:
        if _state.env_tcp_forwarded():
            return b''
        ours, others = self.laddr.unwrap(), self.raddr.unwrap()
        client, server = (ours, others) if self._role == 'client' else (others, ours)
        return _auth.ends_of(client, server)

    def _closed(self, message: str, *args: Any, **kwargs: Any) -> TransportClosed:
        if self._role == 'client' and not self._is_proving:
            message += (
                '; over TCP `Channel._do_handshake()` comes before any other message, '
                'it authenticates the connection'
            )
        return super()._closed(message, *args, **kwargs)

    async def _send_bytes(self, data: bytes) -> None:
        await self._send_by_stream(bytearray(data))

    def _refused(self, why: str, err: Exception) -> TransportClosed:
        text = f'TCP peer not authenticated, connection dropped: {why}'
        if self._role == 'client':
            text += (
                f'; both ends need the same cookie, ours is {_auth.cookie_path()}, '
                'TRACTOR_COOKIE_FILE names another'
            )
        return self._closed(text, err, loglevel='warning')
