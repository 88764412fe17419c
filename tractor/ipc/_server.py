"""
Listeners and connected peers of one actor.

A `Server` accepts connections on its endpoints.  Each is handled in a task of its own:
it has to prove itself, shakes hands and becomes a channel in the table of peers, which
others wait on; then the actor serves it until it ends.  What does not get that far is
dropped with one log record and disturbs nobody: its time is limited, and so is the
number of connections whose peer could still be anybody.  Those are the TCP ones that
have proved nothing yet: of a Unix socket the kernel tells the user at once.

Listeners of one server live and die together; connected peers need not die with them.
An actor opens one server at boot; tests open one without an actor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import trio

from tractor._exceptions import TransportClosed
from tractor.discovery._addr import default_lo_addrs, wrap_address
from tractor.ipc import _tcp, _uds
from tractor.ipc._chan import Channel
from tractor.log import get_logger
from tractor.msg.pretty_struct import Struct
from tractor.runtime import _state
from tractor.trionics._beg import collapse_eg

if TYPE_CHECKING:
    from tractor.runtime._runtime import Actor

log = get_logger()

Uid = tuple[str, str]

# Seconds for a peer to prove itself and tell who it is; tests patch it.
_PRE_REG_HANDSHAKE_TIMEOUT: float = 10

MAX_STRANGERS: Final = 128  # connections that have proved nothing yet
PROOF_TIMEOUT: Final = 5.0  # seconds for a peer to prove itself
MIN_PROOF_TIME: Final = 2.0  # seconds it has in any case, while others wait
CLOSE_TIMEOUT: Final = 0.5  # seconds to close one channel
ACCEPT_PAUSE: Final = 0.1  # seconds, when the process is out of descriptors
_OUT_OF_RESOURCES: Final = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM})

_transport_modules: Final[dict[str, ModuleType]] = {'tcp': _tcp, 'uds': _uds}


class Strangers:
    """
    The accepted connections that have proved nothing yet, oldest first.

    Each is known by the scope that bounds its time.  At the limit no more are accepted:
    newcomers wait in the system's queue until somebody has proved himself, has left, or
    has been there so long that his place is given away.
    """

    __slots__ = ('_left', '_since')

    def __init__(self) -> None:
        self._since: dict[trio.CancelScope, float] = {}
        self._left: trio.Event | None = None  # somebody waits for it

    def __len__(self) -> int:
        return len(self._since)

    def admit(self) -> trio.CancelScope:
        """Count one more, whose time begins now; see to it that it leaves."""
        now = trio.current_time()
        scope = trio.CancelScope(deadline=now + PROOF_TIMEOUT)
        self._since[scope] = now
        return scope

    def leave(self, stranger: trio.CancelScope) -> None:
        """Count one less, unless it has left before."""
        self._since.pop(stranger, None)
        if self._left is not None:
            self._left.set()
            self._left = None

    @contextmanager
    def proving(self, stranger: trio.CancelScope) -> Iterator[None]:
        """
        Bound the time for the proof; after it, the peer is no stranger.

        Raises:
            TransportClosed: The time was over, or others needed the place.
        """
        try:
            with stranger:
                yield
        finally:
            self.leave(stranger)
        if stranger.cancelled_caught:
            raise TransportClosed(
                'the peer did not prove itself in time', loglevel='warning'
            )

    async def wait_for_room(self) -> None:
        """Wait until there are fewer than the limit."""
        while len(self._since) >= MAX_STRANGERS:
            oldest, since = next(iter(self._since.items()))
            oldest.deadline = min(oldest.deadline, since + MIN_PROOF_TIME)
            if self._left is None:
                self._left = trio.Event()
            await self._left.wait()


# Of this process, whose descriptors they take.
_strangers: Final = Strangers()


class Endpoint(Struct, eq=False):
    """
    One address that is listened at.

    Attributes:
        addr: The address, with its real port once it is bound.
        listen_tn: Nursery of the accepting task.
        stream_handler_tn: Nursery of the tasks that handle connections.
        peer_tpts: The transport of each channel that came in here and is connected.
    """

    addr: Any
    listen_tn: Any
    stream_handler_tn: Any
    _listener: Any = None
    peer_tpts: dict[Any, Any] = {}  # noqa: RUF012

    async def start_listener(self) -> trio.SocketListener:
        """
        Bind and listen.

        Raises:
            OSError: The address cannot be bound.
        """
        module = _transport_modules[self.addr.proto_key]
        listener: trio.SocketListener = await module.start_listener(self.addr)
        self._listener = listener
        if self.addr.proto_key == 'tcp':
            self.addr = type(self.addr).from_addr(listener.socket.getsockname()[:2])
        return listener

    def close_listener(self) -> None:
        """Stop listening; what a socket leaves in the file system is removed."""
        listener = self._listener
        if listener is None:
            return
        if self.addr.proto_key == 'uds':
            _uds.close_listener(self.addr, listener)
        else:
            listener.socket.close()

    def pformat(self, field_indent: int = 2, indent: int = 0) -> str:
        """Return address and state on one line."""
        if self._listener is None:
            state = 'not bound'
        else:
            state = 'closed' if self._listener.socket.fileno() == -1 else 'listening'
        return (
            f'{" " * indent}<{type(self).__name__}({self.addr}, {state}, '
            f'{len(self.peer_tpts)} connected)>'
        )


class Server:
    """
    The listeners of one actor and the peers that are connected to it.

    Made by `open_ipc_server()`.
    """

    def __init__(
        self, parent_tn: trio.Nursery, stream_handler_tn: trio.Nursery
    ) -> None:
        self._parent_tn = parent_tn
        self._stream_handler_tn = stream_handler_tn
        self._endpoints: list[Endpoint] = []
        self._accept_scopes: set[trio.CancelScope] = set()
        self._closing = False
        self._shutdown = trio.Event()
        self._peers: defaultdict[Uid, list[Channel]] = defaultdict(list)
        self._peer_connected: dict[Uid, trio.Event] = {}
        self._arrived: dict[Uid, list[Channel]] = {}  # who waits shares the list
        self._no_more_peers = trio.Event()
        self._no_more_peers.set()

    # Listening

    async def listen_on(
        self,
        *,
        accept_addrs: Iterable[Any] | None = None,
        stream_handler_nursery: trio.Nursery | None = None,
    ) -> list[Endpoint]:
        """
        Bind all addresses and accept connections in the background.

        If one cannot be bound, or if cancelled, none is.

        Args:
            accept_addrs: In any form that `wrap_address()` takes; `None` means the
                default registry address of the default transport.
            stream_handler_nursery: Where connections are handled; `None` means the
                server's own.
        Raises:
            OSError: An address cannot be bound.
            RuntimeError: The server is shut down.
        """
        if self._closing:
            raise RuntimeError(
                'this IPC server is shut down, it cannot listen any more'
            )
        if accept_addrs is None:
            accept_addrs = default_lo_addrs([_state._def_tpt_proto])
        endpoints = [
            Endpoint(
                addr=wrap_address(addr),
                listen_tn=self._parent_tn,
                stream_handler_tn=stream_handler_nursery or self._stream_handler_tn,
            )
            for addr in accept_addrs
        ]
        try:
            for endpoint in endpoints:
                await endpoint.start_listener()
                log.runtime('listening at %s', endpoint.addr)
            scope = trio.CancelScope()
            self._parent_tn.start_soon(self._accept_from_all, endpoints, scope)
        except BaseException:
            _close_all(endpoints)
            raise
        # From here on the task sees to it that they are closed: it runs in any case.
        self._endpoints += endpoints
        self._accept_scopes.add(scope)
        return endpoints

    @trio.lowlevel.enable_ki_protection
    async def _accept_from_all(
        self, endpoints: list[Endpoint], scope: trio.CancelScope
    ) -> None:
        try:
            with scope:
                async with trio.open_nursery() as tn:
                    for endpoint in endpoints:
                        tn.start_soon(self._accept_from, endpoint)
        finally:
            _close_all(endpoints)
            self._endpoints = [ep for ep in self._endpoints if ep not in endpoints]
            self._accept_scopes.discard(scope)
            if not self._accept_scopes:
                self._closing = True
                self._shutdown.set()

    @trio.lowlevel.enable_ki_protection
    async def _accept_from(self, endpoint: Endpoint) -> None:
        open_to_all = endpoint.addr.proto_key == 'tcp'
        starved = False
        while True:
            if open_to_all:
                await _strangers.wait_for_room()
            try:
                stream = await endpoint._listener.accept()
            except OSError as err:
                if err.errno not in _OUT_OF_RESOURCES:
                    raise
                if not starved:
                    log.error('cannot accept at %s for now: %s', endpoint.addr, err)
                starved = True
                await trio.sleep(ACCEPT_PAUSE)
                continue
            if starved:
                starved = False
                log.warning('accepting at %s again', endpoint.addr)
            endpoint.stream_handler_tn.start_soon(
                self._handle,
                stream,
                endpoint,
                _strangers.admit() if open_to_all else None,
                name='peer connection',
            )

    @trio.lowlevel.enable_ki_protection
    async def _handle(
        self,
        stream: trio.SocketStream,
        endpoint: Endpoint,
        stranger: trio.CancelScope | None,
    ) -> None:
        """Handle a connection, and see to it that it is closed."""
        try:
            await handle_stream_from_peer(
                stream, server=self, endpoint=endpoint, stranger=stranger
            )
        finally:
            stream.socket.close()
            if stranger is not None:
                _strangers.leave(stranger)

    def adopt(self, chan: Channel) -> None:
        """
        Serve a connection that no listener brought, and close it at its end.

        Args:
            chan: Over a transport that was made with its peer; no handshake yet.
        """
        self._stream_handler_tn.start_soon(self._handle_adopted, chan)

    @trio.lowlevel.enable_ki_protection
    async def _handle_adopted(self, chan: Channel) -> None:
        try:
            # Its time to introduce itself begins when it is up.
            await trio.lowlevel.wait_readable(chan.stream.socket)
            await handle_stream_from_peer(chan, server=self)
        finally:
            chan.stream.socket.close()

    def cancel(self) -> bool:
        """
        Cancel the nursery that accepts: nobody can connect any more.

        Connections end too unless they are handled in another nursery.

        Returns:
            `False` if the listeners are closed already.
        """
        if self._shutdown.is_set():
            return False
        self._parent_tn.cancel_scope.cancel()
        return True

    async def _close_listeners(self) -> None:
        """Stop listening for good; connections stay."""
        self._closing = True
        for scope in self._accept_scopes:
            scope.cancel()
        if not self._accept_scopes:
            self._shutdown.set()
        await self._shutdown.wait()

    async def wait_for_shutdown(self) -> None:
        """Wait until all listeners are closed."""
        await self._shutdown.wait()

    def is_shutdown(self) -> bool:
        """Return whether all listeners are closed for good."""
        return self._shutdown.is_set()

    @property
    def addrs(self) -> list[Any]:
        """The addresses listened at, wrapped."""
        return [endpoint.addr for endpoint in self._endpoints]

    @property
    def accept_addrs(self) -> list[Any]:
        """The addresses listened at, as pairs."""
        return [endpoint.addr.unwrap() for endpoint in self._endpoints]

    @property
    def proto_keys(self) -> list[str]:
        """The transport of each endpoint."""
        return [endpoint.addr.proto_key for endpoint in self._endpoints]

    def epsdict(self) -> dict[Any, Endpoint]:
        """Return the endpoints by address."""
        return {endpoint.addr: endpoint for endpoint in self._endpoints}

    # Peers

    def has_peers(self, check_chans: bool = False) -> bool:
        """
        Return whether anybody is connected.

        Args:
            check_chans: Count only channels whose local end is open.
        """
        if check_chans:
            return any(c.connected() for chans in self._peers.values() for c in chans)
        return any(self._peers.values())

    def len_peers(self) -> int:
        """Return how many actors are connected."""
        return sum(1 for chans in self._peers.values() if chans)

    async def wait_for_no_more_peers(self) -> None:
        """Wait until nobody is connected."""
        while self.has_peers():
            await self._no_more_peers.wait()

    async def wait_for_peer(self, uid: Uid) -> tuple[trio.Event, Channel]:
        """
        Wait until an actor is connected; at once if it is.

        Args:
            uid: `(name, uuid)`.
        Returns:
            The event that was waited for, and the actor's latest channel.
        """
        uid = (uid[0], uid[1])
        if chans := self._peers.get(uid):
            event = trio.Event()
            event.set()
            await event.wait()
            return event, chans[-1]
        event = self._peer_connected.setdefault(uid, trio.Event())
        arrived = self._arrived.setdefault(uid, [])
        try:
            await event.wait()
        finally:
            if not event.is_set() and not event.statistics().tasks_waiting:
                del self._peer_connected[uid], self._arrived[uid]
        return event, arrived[-1]

    def _add_peer(self, chan: Channel) -> None:
        uid = chan.aid.uid  # type: ignore[union-attr]
        if self._no_more_peers.is_set():
            self._no_more_peers = trio.Event()
        self._peers[uid].append(chan)
        log.runtime('peer %s connected from %s', uid, chan.raddr)
        if (event := self._peer_connected.pop(uid, None)) is not None:
            self._arrived.pop(uid).append(chan)
            event.set()

    def _remove_peer(self, chan: Channel) -> None:
        uid = chan.aid.uid  # type: ignore[union-attr]
        chans = self._peers[uid]
        if chan in chans:
            chans.remove(chan)
        if not chans:
            del self._peers[uid]
        if not self.has_peers():
            self._no_more_peers.set()

    @property
    def repr_state(self) -> str:
        """One word for where it stands."""
        if self._shutdown.is_set():
            return 'shut down'
        return 'listening' if self._endpoints else 'not listening'

    def pformat(self, privates: bool = False) -> str:
        """
        Return state, endpoints and peers, one per line.

        Args:
            privates: Add each peer's channels.
        """
        lines = [f' |_state: {self.repr_state}']
        lines += [endpoint.pformat(indent=2) for endpoint in self._endpoints]
        lines.append(f'  peers: {self.len_peers()}')
        if privates:
            lines += [
                f'   {uid}: {len(chans)} channels' for uid, chans in self._peers.items()
            ]
        return '\n'.join((f'<{type(self).__name__}(', *lines, ')>'))

    __repr__ = pformat


IPCServer = Server


def _close_all(endpoints: Iterable[Endpoint]) -> None:
    """Close all listeners; the failure of one is logged."""
    for endpoint in endpoints:
        try:
            endpoint.close_listener()
        except Exception:
            log.exception('cannot close the listener at %s', endpoint.addr)


async def handle_stream_from_peer(
    stream: Any,
    *,
    server: Server,
    endpoint: Endpoint | None = None,
    stranger: trio.CancelScope | None = None,
) -> None:
    """
    Introduce a connection that was accepted, and have the actor serve it to its end.

    The channel of a peer is closed in any case; any other stream is the caller's to
    close.

    Args:
        stream: The accepted stream, or a channel over one.
        server: Whose table of peers it joins.
        endpoint: Where it came in.
        stranger: Its place among those who have proved nothing; `None` means that the
            peer need not prove itself.
    Raises:
        Exception: What the actor's message loop raises; a connection that fails to
            introduce itself raises nothing.
    """
    actor = _state.current_actor(err_on_no_runtime=False)
    if actor is None:
        log.warning('connection dropped: no actor runs in this process')
        return
    chan = await _introduce(actor, stream, server, stranger)
    if chan is None:
        return
    try:
        if endpoint is not None:
            endpoint.peer_tpts[chan] = chan.transport
        await actor._serve_peer(chan)
    finally:
        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await chan.aclose()
        if endpoint is not None:
            endpoint.peer_tpts.pop(chan, None)
        server._remove_peer(chan)
        actor._peer_gone(chan)


async def _introduce(
    actor: Actor, stream: Any, server: Server, stranger: trio.CancelScope | None
) -> Channel | None:
    """Return the channel of a peer, now in the table of them; `None` if it is none."""
    proving = {} if stranger is None else {'proving': _strangers.proving(stranger)}
    try:
        known = isinstance(stream, Channel)
        chan: Channel = stream if known else Channel.from_stream(stream)
        aid = await chan._do_handshake(
            aid=actor.aid, timeout=_PRE_REG_HANDSHAKE_TIMEOUT, **proving
        )
    except TransportClosed as err:
        with suppress(TransportClosed):  # nothing of a stranger's is raised here
            err.report_n_maybe_raise('connection dropped before it was a peer')
        return None
    except (OSError, ValueError, trio.BrokenResourceError) as err:
        log.transport('connection dropped, its peer has gone: %r', err)
        return None
    if aid.is_probe:
        log.runtime('probed by %s', aid.reprol())
        return None
    server._add_peer(chan)
    return chan


@asynccontextmanager
async def open_ipc_server(
    parent_tn: trio.Nursery | None = None,
    stream_handler_tn: trio.Nursery | None = None,
) -> AsyncGenerator[Server]:
    """
    Yield a server; on exit its listeners are closed, connections are left alone.

    Args:
        parent_tn: Runs the accepting tasks; `None` opens a nursery here, whose end
            waits for the connections, too.
        stream_handler_tn: Runs the tasks of connections; `None` means `parent_tn`.
    """
    if parent_tn is None:
        async with collapse_eg(), trio.open_nursery() as own_tn:
            async with open_ipc_server(own_tn, stream_handler_tn) as server:
                yield server
        return
    server = Server(parent_tn, stream_handler_tn or parent_tn)
    try:
        yield server
    finally:
        with trio.CancelScope(shield=True):
            await server._close_listeners()
