"""
One connection to one peer, and its handshake.

A `Channel` adds to a transport who the peer is, and what became of the connection; the
runtime's tables are keyed by it, so it is compared by identity.  Without a transport it
is an inert placeholder.  Portals, contexts and the message loop all talk through it.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from math import inf
from typing import Any, Final, Self

import trio

from tractor import _exceptions
from tractor._exceptions import MsgTypeError, TransportClosed
from tractor.discovery._addr import wrap_address
from tractor.ipc._transport import MAX_SKIPPED_FRAMES, MsgpackTransport
from tractor.ipc._types import transport_from_addr, transport_from_stream
from tractor.log import get_logger
from tractor.msg._codec import DecodeError, MsgCodec
from tractor.msg.types import Aid

log = get_logger()

_NO_TRANSPORT: Final = '<no-tpt>'


def pformat(payload: object) -> str:
    """Return what the log shows of a message."""
    return repr(payload)


class Channel:
    """
    A connection to one peer.

    Args:
        transport: Carries the messages; `None` makes a placeholder.

    Attributes:
        aid: The peer's identity; `None` before the handshake.
    """

    def __init__(self, transport: Any = None) -> None:
        self._transport = transport
        self.aid: Aid | None = None
        self._closed = False
        # Set by the portal that asks the peer's runtime to end.
        self._cancel_called = False
        # Set by the message loop: the peer's runtime failed.
        self._exc: BaseException | None = None
        # Set by it when it has ended: nobody would read an answer.
        self._lost: TransportClosed | None = None

    @classmethod
    def from_stream(cls, stream: Any) -> Self:
        """
        Wrap an accepted stream.

        Raises:
            NotImplementedError: No transport for this kind of stream.
            OSError: The peer is gone already.
        """
        return cls(transport_from_stream(stream)(stream))

    @classmethod
    async def from_addr(cls, addr: Any, **kwargs: Any) -> Self:
        """
        Connect; no message is exchanged yet.

        Args:
            addr: In any form that `wrap_address()` takes.
            **kwargs: See the transport's `connect_to()`.
        Raises:
            OSError: Nobody listens there.
        """
        wrapped = wrap_address(addr)
        transport = await transport_from_addr(wrapped).connect_to(wrapped, **kwargs)
        return cls(transport)

    @property
    def transport(self) -> Any:
        """What carries the messages, or `None`."""
        return self._transport

    @property
    def msgstream(self) -> Any:
        """The same as `transport`."""
        return self._transport

    @property
    def stream(self) -> Any:
        """The byte stream, or `None`."""
        return None if self._transport is None else self._transport.stream

    @property
    def uid(self) -> tuple[str, str] | None:
        """Deprecated, use `aid.uid`."""
        warnings.warn(
            '`Channel.uid` is deprecated, use `Channel.aid.uid`',
            DeprecationWarning,
            stacklevel=2,
        )
        return None if self.aid is None else self.aid.uid

    @property
    def laddr(self) -> Any:
        """The local address, also once closed; `None` without a transport."""
        return None if self._transport is None else self._transport.laddr

    @property
    def raddr(self) -> Any:
        """The peer's address, also once closed; `None` without a transport."""
        return None if self._transport is None else self._transport.raddr

    @property
    def maddr(self) -> Any:
        """The peer's address as a `multiaddr.Multiaddr`."""
        return _NO_TRANSPORT if self._transport is None else self._transport.maddr

    @property
    def closed(self) -> bool:
        """Whether `aclose()` has completed."""
        return self._closed

    @property
    def cancel_called(self) -> bool:
        """Whether a portal over this channel asked the peer's runtime to end."""
        return self._cancel_called

    def connected(self) -> bool:
        """Return whether this end is open; says nothing of the peer's."""
        return self._transport is not None and bool(self._transport.connected())

    async def send(self, payload: Any, hide_tb: bool = False) -> None:
        """
        Send one message; returns when the socket has taken it.

        Raises:
            TransportClosed: The connection is closed or broken.
            MsgTypeError: It is none of the ten messages, or cannot be encoded.
        """
        __tracebackhide__ = hide_tb
        if log.at_least_level('transport'):
            text = f'=> to {self.aid}: {pformat(payload)}'
            log.transport(text)
        transport = self._transport
        if transport is None:
            raise TransportClosed('this channel is a placeholder without a transport')
        await transport.send(payload, hide_tb=hide_tb)

    async def send_last(self, msg: Any) -> None:
        """
        Send the last word of a dialog: never cancelled, never held up by the peer.

        Raises:
            As `send()`.
        """
        transport = self._transport
        if isinstance(transport, MsgpackTransport):
            await transport.send_last(msg)
            return
        with trio.CancelScope(shield=True):
            await self.send(msg)

    async def wait_drained(self) -> None:
        """Wait until the socket has taken what is being sent; at once if it is free."""
        if isinstance(self._transport, MsgpackTransport):
            await self._transport.wait_drained()

    def flush(self) -> None:
        """Write what was held back, as far as that needs no waiting."""
        if isinstance(self._transport, MsgpackTransport):
            self._transport.flush()

    async def recv(self) -> Any:
        """
        Return the next message as the transport has it.

        One that is invalid is a `MsgTypeError`, returned.

        Raises:
            TransportClosed: The connection is closed or broken.
        """
        return await self._transport.recv()

    async def recv_batch(self) -> list[Any]:
        """
        Return all messages that one read brings, at least one.

        One that is invalid is an `Error` for its context.

        Raises:
            TransportClosed: The connection is closed or broken.
        """
        batch: list[Any] = await self._transport.recv_batch()
        if MsgTypeError in map(type, batch):
            return [self._as_message(msg) for msg in batch]
        return batch

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return self._as_message(await self.recv())

    def _as_message(self, msg: Any) -> Any:
        """Return an `Error`, as if the peer had sent it, for a message that is none."""
        if type(msg) is not MsgTypeError:
            return msg
        peer = {} if self.aid is None else {'src_uid': self.aid.uid}
        return _exceptions.pack_from_raise(msg, cid=msg.msgdata['cid'], **peer)

    @contextmanager
    def apply_codec(self, codec: MsgCodec) -> Iterator[None]:
        """Use a codec for everything on this channel instead of each task's own."""
        transport = self._transport
        before = transport._codec
        transport._codec = codec
        try:
            yield
        finally:
            transport._codec = before

    async def aclose(self) -> None:
        """Close the connection; whoever reads it meets `TransportClosed`."""
        transport = self._transport
        if transport is not None:
            if isinstance(transport, MsgpackTransport):
                await transport.aclose()
            else:
                await transport.stream.aclose()
        self._closed = True

    async def _do_handshake(
        self,
        aid: Aid,
        timeout: float | None = None,
        proving: AbstractContextManager[None] | None = None,
    ) -> Aid:
        """
        Tell the peer who we are, learn who it is, and keep that as `aid`.

        If it fails or is cancelled the connection has to be closed.

        Args:
            aid: Our identity.
            timeout: Seconds for all of it; `None` sets no limit.
            proving: Entered while the peer proves that it may talk to us.
        Raises:
            TransportClosed: The peer is gone, too slow, not allowed to talk to us, or
                does not speak our protocol; `src_exc` tells which.
        """
        transport = self._transport
        native = isinstance(transport, MsgpackTransport)
        try:
            with trio.fail_after(inf if timeout is None else timeout):
                if native:
                    with proving or nullcontext():
                        await transport.authenticate()
                    transport.skips_left = 0
                await self.send(aid)
                reply = await self.recv()
        except trio.TooSlowError as err:
            raise self._no_handshake(f'no answer within {timeout} s', err) from err
        except (MsgTypeError, DecodeError, UnicodeError) as err:
            raise self._no_handshake('it is not one of our messages', err) from err
        if isinstance(reply, MsgTypeError):
            raise self._no_handshake('it is not one of our messages', reply) from reply
        if not isinstance(reply, Aid):
            wrong = TypeError(f'a handshake takes an Aid, not a {type(reply).__name__}')
            raise self._no_handshake(str(wrong), wrong) from wrong
        if native:
            transport.skips_left = MAX_SKIPPED_FRAMES
            transport.peer = reply
        self.aid = reply
        return reply

    def _no_handshake(self, why: str, err: Exception) -> TransportClosed:
        raddr = getattr(self._transport, 'raddr', _NO_TRANSPORT)
        return TransportClosed(
            f'no handshake with the peer at {raddr}: {why}',
            loglevel='warning',
            src_exc=err,
        )

    def pformat(self, privates: bool = False) -> str:
        """
        Return the state of the connection, one fact per line.

        Args:
            privates: Add what only the runtime uses.
        """
        if self._transport is None:
            return f'<{type(self).__name__}(\n {_NO_TRANSPORT}\n)>'
        lines = [
            f' |_peer: {None if self.aid is None else self.aid.reprol(sin_uuid=False)}',
            f'  transport: {type(self._transport).__name__}',
            f'  laddr: {getattr(self._transport, "laddr", None)}',
            f'  raddr: {getattr(self._transport, "raddr", None)}',
            f'  closed: {self._closed}',
            f'  cancel_called: {self._cancel_called}',
        ]
        if privates:
            lines += [f'  _exc: {self._exc!r}', f'  _transport: {self._transport!r}']
        return '\n'.join((f'<{type(self).__name__}(', *lines, ')>'))

    def __repr__(self) -> str:
        return self.pformat()


@asynccontextmanager
async def _connect_chan(
    addr: Any, close_timeout: float | None = None
) -> AsyncGenerator[Channel]:
    """
    Yield a channel to an address, and close it in any case.

    Closing is shielded from cancellation.

    Args:
        addr: In any form that `wrap_address()` takes.
        close_timeout: Seconds for closing; `None` sets no limit.
    Raises:
        OSError: Nobody listens there.
    """
    chan = await Channel.from_addr(addr)
    try:
        yield chan
    finally:
        limit = inf if close_timeout is None else close_timeout
        with trio.move_on_after(limit, shield=True) as scope:
            await chan.aclose()
        if scope.cancelled_caught:
            log.warning('channel to %s not closed within %g s', addr, limit)
