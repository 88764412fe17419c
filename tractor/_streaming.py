"""
Streams: the flow of messages inside an open context.

`MsgStream` is one side of a two-way stream.  It has no back-pressure: `send()` returns
when the bytes are written, and a receiver whose queue is full answers with a
`StreamOverrun`.  Whatever ends the stream is kept and raised again by every later call.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from ._exceptions import TransportClosed
from .log import get_logger
from .msg.types import Return, Stop, Yield

if TYPE_CHECKING:
    from ._context import Context
    from .ipc._chan import Channel
    from .trionics import BroadcastReceiver

log = get_logger()

_NOTHING: Final = object()


class MsgStream(trio.abc.Channel[Any]):
    """
    One side of a stream between two tasks in two actors.

    Several tasks may use it at once.  Hashable by identity.

    Attributes:
        ctx: The context it runs in.
        chan: The channel to the peer.
        closed: Whether it has ended.
    """

    def __init__(
        self,
        ctx: Context,
        rx_chan: Any,
        _broadcaster: BroadcastReceiver[Any] | None = None,
    ) -> None:
        self._ctx = ctx
        self._rx_chan = rx_chan
        self._broadcaster = _broadcaster
        self._eoc: trio.EndOfChannel | bool = False
        self._closed: BaseException | bool = False
        self._stop_msg: Stop | None = None

    @property
    def ctx(self) -> Context:
        return self._ctx

    @property
    def chan(self) -> Channel:
        return self._ctx.chan

    @property
    def closed(self) -> bool:
        return self._eoc is not False or self._closed is not False

    def _raise_if_ended(self) -> None:
        for why in (self._eoc, self._closed):
            if isinstance(why, BaseException):
                raise why

    def _end(self, msg: Stop | None = None) -> trio.EndOfChannel:
        """Note the end of the stream, wake its readers, return what they raise."""
        if isinstance(self._eoc, trio.EndOfChannel):
            return self._eoc
        self._stop_msg = msg
        whose = 'the peer' if msg is not None else 'this side'
        self._eoc = trio.EndOfChannel(f'the stream was ended by {whose}')
        self._rx_chan.wake_all()
        return self._eoc

    async def send(self, data: Any, hide_tb: bool = True) -> None:
        """
        Send one message; return when it is written.

        No ack is awaited and nothing tells how far the peer has read.

        Raises:
            trio.EndOfChannel: The stream has ended; always the same instance.
            RemoteActorError: The context was ended by the peer.
            TransportClosed: The connection is gone.
            MsgTypeError: `data` cannot be encoded.
        """
        ctx = self._ctx
        if ctx._remote_error is not None:
            ctx.maybe_raise()
        if self._eoc is not False or self._closed is not False:
            self._raise_if_ended()
        if ctx._lost is not None:
            raise ctx._lost
        await ctx.chan.send(Yield(ctx.cid, data))

    async def receive(self, hide_tb: bool = False) -> Any:
        """
        Return the next message's payload, in the order of sending.

        Cancelling it loses no message.

        Raises:
            trio.EndOfChannel: The peer or this side ended the stream; always the
                same instance.
            RemoteActorError: The context was ended by the peer, the answer to our
                own `Context.cancel()` included.
            TransportClosed: The connection is gone and all that came was read.
            MsgTypeError: The payload is not of the context's type.
        """
        if not self._ctx._is_broken_off:
            await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self._take()) is _NOTHING:
            await self._rx_chan.park()
            if self._broadcaster is not None:
                # It was made meanwhile, and what comes next is for all subscribers.
                return await self._broadcaster.receive()
        return data

    def receive_nowait(self, expect_msg: type[Any] = Yield) -> Any:
        """
        Return the next payload if one is queued.

        Raises:
            trio.WouldBlock: None is queued.  Otherwise as `receive()`.
        """
        broadcaster = self._broadcaster
        if broadcaster is None:
            data = self._take()
        else:
            try:
                return broadcaster.receive_nowait()
            except trio.WouldBlock:
                if broadcaster._state.recv_ready is not None:
                    raise  # the next message goes to who waits for it
            data = self._take()
            if data is not _NOTHING:
                broadcaster._state.publish(data, broadcaster.key)
        if data is _NOTHING:
            raise trio.WouldBlock
        return data

    async def _pull(self) -> Any:
        """Return the next payload for the broadcaster to share, as `receive()`."""
        if not self._ctx._is_broken_off:
            await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self._take()) is _NOTHING:
            await self._rx_chan.park()
        return data

    def _take(self) -> Any:
        """Return the next payload, or `_NOTHING`; raise what ends the stream."""
        ctx = self._ctx
        state = self._rx_chan._state
        # The error of a one-way stream comes in its place; a context it interrupts.
        if ctx._remote_error is not None and (ctx._scope is not None or not state.data):
            raise ctx._remote_error
        if self._eoc is not False or self._closed is not False:
            self._raise_if_ended()
        if state.data:
            return self._open(state.take())
        if ctx._return_msg is not None:
            raise self._end(Stop(ctx.cid))
        if ctx._lost is not None:
            raise ctx._lost
        if ctx._is_over:
            raise trio.ClosedResourceError(
                f'the context of this stream is over: {ctx.repr_state}'
            )
        return _NOTHING

    def _open(self, msg: Any) -> Any:
        """Return a queued message's payload, or raise what it means."""
        if type(msg) is Yield:
            return self._ctx._pld_rx.open_yield(msg, self)
        if type(msg) is Stop:
            raise self._end(msg)
        if type(msg) is Return:
            # The task ended without ending its stream: keep what it returned.
            self._ctx._keep_return(msg)
            raise self._end(Stop(self._ctx.cid))
        return self._ctx._pld_rx.decode_pld(msg, ipc=self, expect_msg=Yield)

    async def aclose(self) -> list[Any]:  # type: ignore[override]
        """
        End the stream; the peer's loop over it ends.

        Idempotent.  Loops over this side end normally, in other tasks too.  The
        message is sent also if this is cancelled; a broken connection is ignored.
        """
        if self.closed:
            await trio.lowlevel.checkpoint_if_cancelled()
            return []
        self._end()
        ctx = self._ctx
        if not ctx._dialog.is_final:
            try:
                await ctx.send_stop()
            except (TransportClosed, trio.BrokenResourceError):
                log.transport('%s: no end of stream sent, peer gone', ctx.cid)
        return []

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[BroadcastReceiver[Any]]:
        """
        Give the block its own copy of every message from now on.

        The first call turns this handle into one of the subscribers for good, so
        that it may raise `tractor.trionics.Lagged`, too.  What is yielded also has
        the stream's `send`.
        """
        # On demand: most streams have one reader.
        from .trionics._broadcast import broadcast_receiver

        if self._broadcaster is None:
            self._broadcaster = broadcast_receiver(
                self,  # type: ignore[arg-type]
                self._rx_chan._state.max_buffer_size,
                receive_afunc=self._pull,
            )
            self.receive = self._broadcaster.receive  # type: ignore[assignment, method-assign]
            self._rx_chan.wake_all()  # who waits in the stream itself
        async with self._broadcaster.subscribe() as receiver:
            receiver.send = self.send
            yield receiver

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def __repr__(self) -> str:
        state = 'ended' if self.closed else 'open'
        return f'<MsgStream {state} cid={self._ctx.cid} peer={self._ctx.chan.aid}>'


@asynccontextmanager
async def open_stream_from_ctx(
    ctx: Context,
    allow_overruns: bool | None = False,
    msg_buffer_size: int | None = None,
) -> AsyncIterator[MsgStream]:
    """
    Open this side of the context's stream; the peer's side is not waited for.

    Args:
        allow_overruns: Keep up to 616 excess messages instead of refusing them;
            replaces the context's setting.
        msg_buffer_size: Messages that may wait unread, 64 by default.
    Raises:
        RuntimeError: `started()` was not called yet, or `cancel()` was.
        RemoteActorError: The context was ended already.
        trio.ClosedResourceError: The context is over, or had its stream.
    """
    if ctx._cancel_called:
        if ctx._remote_error is not None:
            raise ctx._remote_error
        raise RuntimeError(
            'Stream opened after Context.cancel() called: the remote task is ending'
        )
    if ctx.side == 'child' and not ctx._started_called:
        raise RuntimeError(
            'call `await ctx.started()` before `ctx.open_stream()`: '
            'the other side waits for that first value'
        )
    if ctx._is_over or ctx._stream is not None:
        raise trio.ClosedResourceError(
            'a context has one stream, and this one had it'
            if ctx._stream is not None
            else 'the context is over'
        )
    box = ctx._rx_chan
    if msg_buffer_size:
        box._state.max_buffer_size = msg_buffer_size
    ctx._allow_overruns = box._state.allow_overruns = bool(allow_overruns)
    stream = MsgStream(ctx, box)
    ctx._stream, ctx._stream_opened = stream, True
    if ctx._portal is not None:
        ctx._portal._streams.add(stream)
    try:
        try:
            yield stream
        except trio.EndOfChannel as end:
            if end is not stream._eoc:
                raise
    finally:
        await stream.aclose()
        if ctx._portal is not None:
            ctx._portal._streams.discard(stream)


def stream[F: Callable[..., Any]](func: F) -> F:
    """
    Mark a coroutine function as one that streams to its caller (legacy).

    It has to take a parameter named `ctx`, `stream` or `to_trio`.

    Raises:
        TypeError: It takes none of them.
    """
    params = inspect.signature(func).parameters
    if not {'ctx', 'stream', 'to_trio'} & params.keys():
        raise TypeError(
            'The first argument to the stream function '
            f'{func.__name__} must be `ctx: tractor.Context` '
            '(or one named `stream` or `to_trio`)'
        )
    if 'ctx' in params and 'stream' not in params:
        warnings.warn(
            '`@tractor.stream decorated funcs should declare a `stream` arg '
            'instead of `ctx`; better still, use `@tractor.context`',
            DeprecationWarning,
            stacklevel=2,
        )
    func._tractor_stream_function = True  # type: ignore[attr-defined]
    return func
