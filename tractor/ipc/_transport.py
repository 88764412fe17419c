"""
Messages over one byte stream.

Owns a channel's stream: encodes and frames what is sent, decodes what one read brings,
and turns every error of the stream into a `TransportClosed` that names the peer.

Sending is one encode and one system call, without a scheduler pass; every 32nd send
takes one, for the others' sake.  `_outbox` has the rest of it: full sockets, cancelled
senders, and a `StartAck`, which is held back: nobody waits for it alone, and mostly the
task it announces sends something soon, so both go in one call.

One read takes what the socket holds, and `recv_batch()` returns all messages in it.
The length of a frame is checked before anything is allocated for it.  An invalid
message becomes an error of its context, an invalid request is answered with one, and
a frame that names no context is skipped; a peer that sends many such is dropped.  Such
a frame is judged when all before it was taken: behind a handshake, by what that set.

A stream that is no `trio.SocketStream` works through its own `send_all()` and
`receive_some()`.  Subclasses in `_tcp` and `_uds` add addresses and connecting.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from errno import ECONNRESET, EPIPE
from struct import Struct
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    NoReturn,
    Protocol,
    Self,
    runtime_checkable,
)

import trio
from trio.lowlevel import (
    cancel_shielded_checkpoint,
    checkpoint_if_cancelled,
    wait_readable,
)

from tractor import _exceptions
from tractor._exceptions import MsgTypeError, TransportClosed
from tractor._protocol.framing import PREFIX_SIZE, FrameReader, FrameTooLong
from tractor.ipc._idle import IdleHook
from tractor.ipc._outbox import (
    CLOSED_BEFORE,
    CLOSED_BY_TASK,
    Outbox,
    StreamError,
    translated,
)
from tractor.log import get_logger
from tractor.msg._codec import (
    DecodeError,
    MsgCodec,
    _ctxvar_MsgCodec,
    decode_any,
    decode_envelope,
)
from tractor.msg.types import MSG_TYPES, Aid, Start, StartAck
from tractor.runtime import _state

if TYPE_CHECKING:
    from tractor.discovery._addr import Address

log = get_logger()

MsgTransportKey = tuple[str, str]  # codec, protocol

READ_SIZE: Final = 64 * 1024  # bytes
MAX_READ_SIZE: Final = 1024 * 1024  # bytes; for the rest of a large frame
MAX_SKIPPED_FRAMES: Final = 4

# Scheduler passes: at most so many sends, or reads, without one.
LAST_WORD: Final = 0.5  # seconds, for a stream that is no socket
SENDS_PER_PASS: Final = 32
READS_PER_PASS: Final = 8

_PREFIX: Final = Struct('<I')
_PEER_CLOSE_ERRNOS: Final = frozenset({ECONNRESET, EPIPE})


@runtime_checkable
class MsgTransport(Protocol):
    """Messages to and from one peer, over anything."""

    codec_key: ClassVar[str]
    address_type: ClassVar[type[Any]]
    stream: Any
    drained: list[Any]

    @classmethod
    def key(cls) -> MsgTransportKey: ...

    @property
    def laddr(self) -> Address: ...

    @property
    def raddr(self) -> Address: ...

    @property
    def maddr(self) -> Any: ...

    async def send(
        self, msg: Any, strict_types: bool = True, hide_tb: bool = True
    ) -> None: ...

    async def recv(self) -> Any: ...

    def __aiter__(self) -> Self: ...

    def drain(self) -> AsyncGenerator[Any]: ...

    def connected(self) -> bool: ...

    @classmethod
    async def connect_to(
        cls, addr: Any, prefix_size: int = 4, codec: Any = None, **kwargs: Any
    ) -> Self: ...

    @classmethod
    def get_stream_addrs(cls, stream: Any) -> tuple[Address, Address]: ...


class MsgpackTransport:
    """
    Length-prefixed msgpack messages over a trio stream.

    Args:
        stream: Owned from now on.
        prefix_size: Bytes of the length prefix; only 4.
        codec: Used instead of the calling task's current one.

    Attributes:
        peer: Identity of the other end, set once it is known; names it in errors.
        drained: The messages that `drain()` collected.
        skips_left: How many more frames that are no message it puts up with.
    """

    codec_key: ClassVar[str] = 'msgpack'
    layer_key: ClassVar[int] = 4
    address_type: ClassVar[type[Any]]

    # On the class, so that an instance works with nothing but a stream, its lock,
    # both addresses and its task.
    _sock: trio.socket.SocketType | None = None
    _outbox: Outbox
    _codec: MsgCodec | None = None
    _sends: int = 0
    _reads_ahead: int = 0
    skips_left: int = MAX_SKIPPED_FRAMES
    _max_frame: int = _state.MAX_FRAME_LIMIT
    peer: Aid | None = None

    def __init__(
        self, stream: Any, prefix_size: int = 4, codec: MsgCodec | None = None
    ) -> None:
        if prefix_size != PREFIX_SIZE:
            raise ValueError(
                f'a length prefix has {PREFIX_SIZE} bytes, not {prefix_size}'
            )
        self.stream = stream
        self._codec = codec
        self._laddr, self._raddr = self.get_stream_addrs(stream)
        self._task = trio.lowlevel.current_task()
        self._send_lock = trio.StrictFIFOLock()
        if isinstance(stream, trio.SocketStream) and sys.platform != 'win32':
            self._sock = stream.socket
            self._outbox = Outbox(stream.socket, self._send_lock)
        self._max_frame = _state.env_max_frame()
        self._reader = FrameReader(self._max_frame)
        self._inbox: deque[Any] = deque()
        self._undecoded: deque[bytes] = deque()  # frames, from a bad one on
        self.drained: list[Any] = []

    @classmethod
    def key(cls) -> MsgTransportKey:
        """Return `(codec, protocol)`."""
        return cls.codec_key, cls.address_type.proto_key

    @classmethod
    async def connect_to(
        cls,
        addr: Any,
        prefix_size: int = 4,
        codec: MsgCodec | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return a transport connected to an address."""
        raise NotImplementedError(f'{cls.__name__} does not know how to connect')

    @classmethod
    def get_stream_addrs(cls, stream: Any) -> tuple[Any, Any]:
        """Return the local and the remote address of a connected stream."""
        raise NotImplementedError(f'{cls.__name__} does not know its addresses')

    @property
    def laddr(self) -> Any:
        """The local address."""
        return self._laddr

    @property
    def raddr(self) -> Any:
        """The peer's address."""
        return self._raddr

    @property
    def maddr(self) -> Any:
        """The peer's address as a `multiaddr.Multiaddr`."""
        # Brings a library that only people who ask for such an address need.
        from tractor.discovery._multiaddr import mk_maddr

        return mk_maddr(self.raddr)

    def connected(self) -> bool:
        """Return whether this end is open; says nothing of the peer's."""
        return bool(self.stream.socket.fileno() != -1)

    async def authenticate(self) -> None:
        """
        Make sure that the peer may talk to us; comes before any message.

        Raises:
            TransportClosed: It may not; the connection has to be closed.
        """

    def pformat(self) -> str:
        """Return type, addresses and task, one per line."""
        return (
            f'<{type(self).__name__}(\n'
            f' |_peer: {self._peer_name()}\n'
            f'  laddr: {self._laddr}\n'
            f'  raddr: {self._raddr}\n'
            f'  task: {self._task}\n'
            f')>'
        )

    __repr__ = __str__ = pformat

    # Sending

    async def send(
        self, msg: Any, strict_types: bool = True, hide_tb: bool = True
    ) -> None:
        """
        Send one message; returns when the socket has taken it.

        A cancelled send has either sent nothing or all of it.  A `StartAck` may stay
        behind until the next message or until the loop is idle.

        Args:
            msg: One of the ten messages.
            strict_types: `False` only warns of any other.
            hide_tb: Leave this frame out of tracebacks, where that is supported.
        Raises:
            MsgTypeError: No such message, or a value in it that cannot be encoded.
            FrameTooLong: Its encoding is above the limit; the connection stays usable.
            TransportClosed: The connection is.
        """
        __tracebackhide__ = hide_tb
        codec = self._codec or _ctxvar_MsgCodec.get()
        kind = type(msg)
        if kind not in MSG_TYPES:
            self._refuse(msg, codec, strict_types)
        if self._sock is None:
            await self._send_by_stream(self._encode(msg, codec, bytearray(PREFIX_SIZE)))
            return
        await checkpoint_if_cancelled()
        outbox = self._outbox
        self._encode(msg, codec, outbox.buffer)
        if kind is StartAck and (idle := IdleHook.current()) is not None:
            outbox.hold(idle)
            return
        try:
            rest = outbox.post()
            if rest is not None:
                await outbox.wait_written(rest)
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            self._raise_unsent(err)
        self._sends += 1
        if self._sends >= SENDS_PER_PASS:
            self._sends = 0
            await cancel_shielded_checkpoint()

    def _refuse(self, msg: Any, codec: MsgCodec, strict: bool) -> None:
        error = _exceptions._mk_send_mte(msg, codec)
        if strict:
            raise error
        log.warning('%s', error.message)

    def _encode(self, msg: Any, codec: MsgCodec, buffer: bytearray) -> bytearray:
        """Return `buffer` with the message's frame in it, and nothing else."""
        try:
            self._dump_into(codec, msg, buffer)
        except (TypeError, ValueError, OverflowError, RecursionError) as err:
            raise _exceptions._mk_send_mte(msg, codec, src_type_error=err) from err
        length = len(buffer) - PREFIX_SIZE
        if length > self._max_frame:
            del buffer[PREFIX_SIZE:]
            raise FrameTooLong(length, self._max_frame)
        _PREFIX.pack_into(buffer, 0, length)
        return buffer

    def _dump_into(self, codec: MsgCodec, msg: Any, buffer: bytearray) -> None:
        """Put a message's encoding behind the room for its prefix."""
        codec._enc.encode_into(msg, buffer, PREFIX_SIZE)

    async def _send_by_stream(self, frame: bytearray) -> None:
        try:
            async with self._send_lock:
                try:
                    await self.stream.send_all(frame)
                except trio.Cancelled:
                    # A part may be out: what comes next would be taken for its rest.
                    await trio.aclose_forcefully(self.stream)
                    raise
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            self._raise_unsent(err)

    async def send_last(self, msg: Any) -> None:
        """
        Send one message also if cancelled, and without waiting for the peer to read.

        What the socket does not take yet is written behind the caller's back.

        Raises:
            As `send()`.
        """
        if self._sock is None:
            with trio.move_on_after(LAST_WORD, shield=True):
                await self.send(msg)
            return
        self._send_nowait(msg)

    def _send_nowait(self, msg: Any) -> None:
        outbox = self._outbox
        self._encode(msg, self._codec or _ctxvar_MsgCodec.get(), outbox.buffer)
        try:
            outbox.post()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            self._raise_unsent(err)
        outbox.start_finishing()

    def flush(self) -> None:
        """Write what was held back, as far as that needs no waiting."""
        if self._sock is not None and not self._outbox.flush():
            self._outbox.start_finishing()

    async def wait_drained(self) -> None:
        """Wait until the socket has taken what is being sent; at once if it is free."""
        if self._sock is not None:
            await self._outbox.wait_drained()

    async def aclose(self) -> None:
        """Close the stream; what was held back is written if that needs no waiting."""
        if self._sock is not None:
            self._outbox.close()
        await self.stream.aclose()

    def _raise_unsent(self, err: StreamError) -> NoReturn:
        name = f'{type(self).__name__!r}'
        if isinstance(err, trio.ClosedResourceError):
            whom = 'by peer' if CLOSED_BEFORE in err.args else 'locally'
            raise self._closed(f"{name} was already closed '{whom}'?", err) from err
        if is_peer_close(err):
            raise self._closed(f'{name} already closed by peer', err) from err
        raise err

    def _closed(
        self,
        message: str,
        err: BaseException | None = None,
        loglevel: str = 'transport',
        raise_on_report: bool = False,
    ) -> TransportClosed:
        peer = self.peer
        closed = TransportClosed(
            f'{message} ({self._peer_name()} at {self._raddr})',
            loglevel=loglevel,
            src_exc=err,
            raise_on_report=raise_on_report,
        )
        closed.peer = None if peer is None else peer.uid
        return closed

    def _peer_name(self) -> str:
        return 'unknown peer' if self.peer is None else self.peer.reprol()

    # Receiving

    async def recv(self) -> Any:
        """
        Return the next message, or a `MsgTypeError` standing for one that is none.

        Nothing is lost if cancelled.

        Raises:
            TransportClosed: The connection is, or nothing on it makes sense.
        """
        inbox = self._inbox
        if not inbox:
            inbox.extend(await self.recv_batch())
        return inbox.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self.recv()

    async def recv_batch(self) -> list[Any]:
        """
        Return all messages that one read brings: one or more, as `recv()` does.

        Nothing is lost if cancelled.

        Raises:
            TransportClosed: As `recv()`.
        """
        if self._inbox:
            batch = list(self._inbox)
            self._inbox.clear()
            return batch
        if self._undecoded and (batch := self._decode_each()):
            return batch
        reader = self._reader
        while True:
            wanted = reader.wanted
            size = READ_SIZE if wanted <= READ_SIZE else min(wanted, MAX_READ_SIZE)
            try:
                data = await self._read(size)
                if not data:
                    raise self._end_of_stream()
                frames = reader.feed(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
                raise self._recv_failure(err) from err
            except FrameTooLong as err:
                raise self._close_on(err) from err
            if frames and (batch := self._decode(frames)):
                return batch
            if len(data) >= READ_SIZE and self._sock is not None:
                self._outbox.expect()  # the rest, from a peer that writes fast

    async def drain(self) -> AsyncGenerator[Any]:
        """Read until the peer is gone, then yield all that came, also `drained`."""
        try:
            while True:
                self.drained.extend(await self.recv_batch())
        except TransportClosed as closed:
            log.transport('drained %d messages: %s', len(self.drained), closed.message)
        for msg in self.drained:
            yield msg

    async def receive_exactly(self, size: int) -> bytes:
        """Return that many bytes, fewer only if the stream ends; not amid frames."""
        data = b''
        try:
            while len(data) < size:
                chunk = await self._read(size - len(data))
                if not chunk:
                    break
                data += chunk
        except (trio.BrokenResourceError, trio.ClosedResourceError) as err:
            raise self._recv_failure(err) from err
        return data

    def _end_of_stream(self) -> TransportClosed:
        name = f'{type(self).__name__!r}'
        if self._reader.mid_frame:
            return self._closed(f'{name} already closed by peer (amid a frame)')
        return self._closed(f'{name} already gracefully closed')

    def _close_on(self, err: FrameTooLong) -> TransportClosed:
        if self._sock is not None:
            self._sock.close()
        return self._closed(
            f'{type(self).__name__!r} closed here: {err}', err, loglevel='error'
        )

    async def _read(self, size: int) -> bytes:
        """Return what is there, up to `size` bytes; wait for it if need be."""
        sock = self._sock
        if sock is None:
            some: bytes = await self.stream.receive_some(size)
            return some
        if (fd := sock.fileno()) == -1:
            raise trio.ClosedResourceError(CLOSED_BEFORE)
        if self._reads_ahead % READS_PER_PASS:
            await checkpoint_if_cancelled()
        else:
            await wait_readable(fd)
        while True:
            if (fd := sock.fileno()) == -1:
                raise trio.ClosedResourceError(CLOSED_BY_TASK)
            try:
                data = os.read(fd, size)
            except BlockingIOError:
                await wait_readable(fd)
                continue
            except OSError as err:
                raise translated(err, sock) from err
            self._outbox.expects = False
            # A read that filled its buffer leaves more behind, most likely.
            self._reads_ahead = self._reads_ahead + 1 if len(data) == size else 0
            return data

    def _recv_failure(self, err: StreamError) -> TransportClosed:
        name = f'{type(self).__name__!r}'
        if isinstance(err, trio.ClosedResourceError):
            return self._closed(
                f'{name} was already closed locally?',
                err,
                loglevel='error',
                raise_on_report=CLOSED_BY_TASK in err.args,
            )
        reset = (
            isinstance(cause := err.__cause__, OSError) and cause.errno == ECONNRESET
        )
        return self._closed(
            f'{name} already closed by peer',
            err,
            loglevel='transport' if reset else 'warning',
        )

    def _decode(self, frames: list[bytes]) -> list[Any]:
        """Return the messages in the frames, leaving out what cannot be decoded."""
        codec = self._codec or _ctxvar_MsgCodec.get()
        decode = self._loader(codec)
        try:
            return [decode(frame) for frame in frames]
        except Exception:
            # One of them is bad: they are taken one by one.
            self._undecoded.extend(frames)
            return self._decode_each()

    def _loader(self, codec: MsgCodec) -> Callable[[bytes], Any]:
        """Return what makes a message of a frame."""
        decode: Callable[[bytes], Any] = codec._dec.decode
        return decode

    def _decode_each(self) -> list[Any]:
        """Return what the frames hold, up to a bad one behind a good one."""
        codec = self._codec or _ctxvar_MsgCodec.get()
        decode = self._loader(codec)
        frames = self._undecoded
        msgs: list[Any] = []
        is_good = False
        while frames:
            try:
                msgs.append(decode(frames[0]))
            except Exception as err:
                if is_good:
                    break
                error = self._stand_in(frames.popleft(), codec, err)
                if error is not None:
                    msgs.append(error)
            else:
                frames.popleft()
                is_good = True
        return msgs

    def _stand_in(
        self, frame: bytes, codec: MsgCodec, err: Exception
    ) -> MsgTypeError | None:
        """Return what stands for a bad frame, or `None`: then it is skipped."""
        try:
            error = self._type_error(frame, codec, err)
        except Exception:
            self._skip(frame, err)
            return None
        self._answer(error)
        return error

    def _type_error(
        self, frame: bytes, codec: MsgCodec, err: Exception
    ) -> MsgTypeError:
        """Return what stands for an invalid message of a context."""
        error: MsgTypeError = _exceptions._mk_recv_mte(
            frame, codec, err, decode=self._decode_any
        )
        # Without a context there is nobody whom it concerns.
        if not isinstance(error.msgdata.get('cid'), str):
            raise err
        return error

    def _decode_any(self, frame: bytes) -> Any:
        """
        Return what a frame holds, without making a message of it.

        Only whom it is for if the rest is broken or nested too deeply.
        """
        try:
            return decode_any(frame)
        except (DecodeError, RecursionError):
            return decode_envelope(frame)

    def _answer(self, error: MsgTypeError) -> None:
        """Tell who sent an invalid request: nobody here knows of its context."""
        if (
            error.msgdata['_bad_msg_as_dict'].get('msg_type') != Start.__name__
            or self.peer is None
            or self._sock is None
        ):
            return
        try:
            self._send_nowait(_exceptions.pack_error(error, cid=error.msgdata['cid']))
        except TransportClosed as closed:
            log.transport('invalid request not answered: %s', closed.message)

    def _skip(self, frame: bytes, err: Exception) -> None:
        """Leave out a frame; raise if it is one too many."""
        if self.skips_left == 0:
            raise self._closed(
                f'{type(self).__name__!r} carries no messages of ours: the frame '
                f'{frame[:32]!r} ({len(frame)} bytes) is undecodable, {err}',
                err,
                loglevel='error',
            ) from err
        self.skips_left -= 1
        log.error(
            'skipped a frame of %d bytes from %s at %s, which cannot be decoded: %r',
            len(frame),
            self._peer_name(),
            self._raddr,
            err,
        )


def is_peer_close(err: BaseException) -> bool:
    """
    Return whether an error means nothing but that the peer closed the connection.

    Its causes are followed to the end; in a group that must hold for every member.
    """
    seen: set[int] = set()

    def check(exc: BaseException | None) -> bool:
        while exc is not None and id(exc) not in seen:
            seen.add(id(exc))
            if isinstance(exc, BaseExceptionGroup):
                return all(check(member) for member in exc.exceptions)
            if isinstance(exc, OSError) and exc.errno in _PEER_CLOSE_ERRNOS:
                return True
            exc = exc.__cause__ or exc.__context__
        return False

    return check(err)
