"""
Decode the payloads of one context, at the moment its task consumes them.

The channel's codec leaves every payload raw.  Each context owns a `PldRx` with the
decoder for its own payload type, so that a wrong type is the fault of one dialog and
breaks no other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from .._boxing import pack_from_raise, unpack_error
from .._exceptions import InternalError, MessagingError, MsgTypeError
from ..log import get_logger
from ..runtime._state import current_ipc_ctx
from ._codec import (
    DecodeError,
    MsgDec,
    ValidationError,
    current_codec,
    decode_any,
    mk_dec,
)
from .types import CancelAck, Error, Return, StartAck, Started, Stop, Yield

if TYPE_CHECKING:
    from .._context import Context
    from .._streaming import MsgStream

log = get_logger()

STALE_GRACE: Final = 0.5  # seconds of a stream nobody reads before a wait gives up

_any_dec: MsgDec = mk_dec(spec=Any)


def _ctx_of(ipc: Any) -> Context:
    ctx: Context = getattr(ipc, '_ctx', ipc)
    return ctx


class PldRx:
    """The payload decoder of one context; replaced, never shared."""

    __slots__ = ('_pld_dec',)

    def __init__(self, _pld_dec: MsgDec = _any_dec) -> None:
        self._pld_dec = _pld_dec

    def __repr__(self) -> str:
        return f'PldRx(_pld_dec={self._pld_dec!r})'

    @property
    def pld_dec(self) -> MsgDec:
        """The decoder in force."""
        return self._pld_dec

    @property
    def dec(self) -> Any:
        """The serializer's own decoder."""
        return self._pld_dec.dec

    @contextmanager
    def limit_plds(self, spec: Any, **dec_kwargs: Any) -> Iterator[MsgDec]:
        """Accept only payloads of that type inside the block."""
        before = self._pld_dec
        self._pld_dec = mk_dec(spec, **dec_kwargs)
        try:
            yield self._pld_dec
        finally:
            self._pld_dec = before

    def open_yield(self, msg: Yield[Any], ipc: MsgStream) -> Any:
        """Return a stream message's payload (the hot path of `decode_pld()`)."""
        try:
            return self._pld_dec.decode(msg.pld)
        except DecodeError as err:
            fault = self._fault(msg, _ctx_of(ipc), err)
        raise fault

    def decode_pld(
        self,
        msg: Any,
        ipc: Context | MsgStream,
        expect_msg: type[Any] | None = None,
        raise_error: bool = True,
        hide_tb: bool = True,
        is_started_send_side: bool = False,
    ) -> Any:
        """
        Return the payload of a message, or raise what the message means.

        Args:
            msg: Any message of a context.
            ipc: The context or stream it came for.
            expect_msg: The type of message the caller waits for.
            raise_error: Return the error for an `Error` instead of raising it.
            is_started_send_side: It is a trial before sending: the error is ours.
        Raises:
            MsgTypeError: The payload is of the wrong type.
            TypeError: Raised by the decoder's own hook.
            RemoteActorError: The message is an `Error`.
            trio.EndOfChannel: It is a `Stop`, and this side has a stream.
            MessagingError: It is none of what may come here.
        """
        ctx = _ctx_of(ipc)
        match msg:
            case CancelAck():
                return msg.pld
            case Started() | Yield() | Return():
                try:
                    return self._pld_dec.decode(msg.pld)
                except DecodeError as err:
                    fault = self._fault(msg, ctx, err, is_started_send_side)
                raise fault
            case Error():
                expected = getattr(expect_msg, '__name__', 'a payload')
                ended = MessagingError(
                    f'context {msg.cid} ended with an error instead of {expected}'
                )
                if not raise_error:
                    return ended
                error = ctx._remote_error or unpack_error(msg, ctx.chan)
                if error is None:
                    raise InternalError(f'cannot unbox {msg}')
                raise error from ended
            case Stop():
                if ctx._stream is None:
                    log.warning('%s: end of a stream that was never opened', ctx.cid)
                    return msg
                raise ctx._stream._end(msg)
            case _:
                expected = getattr(expect_msg, '__name__', 'a payload message')
                raise MessagingError(
                    f'got {type(msg).__name__} where {expected} was expected'
                )

    def _fault(
        self, msg: Any, ctx: Context, err: DecodeError, is_ours: bool = False
    ) -> Exception:
        """Return what to raise for a payload that failed to decode."""
        if isinstance(err, ValidationError) and self._pld_dec.hook is not None:
            cause = err.__cause__
            if isinstance(cause, TypeError):
                return cause
        if not is_ours:
            return self._refuse(msg, ctx, err)
        mte = mk_pld_mte(msg, self._pld_dec)
        mte.__cause__ = err
        return mte

    def _refuse(self, msg: Any, ctx: Context, err: DecodeError) -> MsgTypeError:
        """
        Return the error for a peer's wrong payload.

        It also ends the context, unless `Context._cancel_on_msgerr` is off.
        """
        peer = ctx.chan.aid
        uid = peer.uid if peer is not None else ('<unknown>', '')
        ours = mk_pld_mte(msg, self._pld_dec)
        wire = pack_from_raise(
            ours,
            cid=ctx.cid,
            src_uid=uid,
            relay_path=[uid],
        )
        mte = unpack_error(wire, ctx.chan)
        if not isinstance(mte, MsgTypeError):
            raise InternalError(f'cannot unbox {wire}')
        mte._boxed_type = ValidationError
        mte._extra_msgdata['_bad_msg'] = ours.bad_msg
        mte.__cause__ = err
        if ctx._cancel_on_msgerr:
            ctx._set_remote_error(mte)
        return mte

    def recv_msg_nowait(
        self,
        ipc: Context | MsgStream,
        ipc_msg: Any = None,
        expect_msg: type[Any] | None = None,
        hide_tb: bool = False,
        **dec_kw: Any,
    ) -> tuple[Any, Any]:
        """
        Return the next message and its payload.

        Raises:
            trio.WouldBlock: None is queued.
        """
        msg = ipc_msg if ipc_msg is not None else ipc._rx_chan.receive_nowait()
        return msg, self.decode_pld(msg, ipc, expect_msg, **dec_kw)

    async def recv_msg(
        self,
        ipc: Context | MsgStream,
        expect_msg: type[Any] | None = None,
        passthrough_non_pld_msgs: bool = True,
        hide_tb: bool = True,
        **dec_kw: Any,
    ) -> tuple[Any, Any]:
        """Wait for the next message; return it and its payload."""
        msg = await _ctx_of(ipc)._next_msg()
        if passthrough_non_pld_msgs and isinstance(msg, Stop | StartAck):
            return msg, None
        return msg, self.decode_pld(msg, ipc, expect_msg, **dec_kw)

    async def recv_pld(
        self,
        ipc: Context | MsgStream,
        ipc_msg: Any = None,
        expect_msg: type[Any] | None = None,
        hide_tb: bool = True,
        **dec_kw: Any,
    ) -> Any:
        """Wait for the next message; return its payload."""
        msg = ipc_msg if ipc_msg is not None else await _ctx_of(ipc)._next_msg()
        return self.decode_pld(msg, ipc, expect_msg, **dec_kw)


def mk_pld_mte(msg: Any, dec: MsgDec) -> MsgTypeError:
    """Return the error for a payload that does not match the decoder's type."""
    name = type(msg).__name__
    try:
        value = decode_any(msg.pld)
    except DecodeError as err:
        return MsgTypeError.from_decode(
            message=f'invalid `{name}` msg payload, which cannot be decoded: {err}',
            bad_msg=type(msg)(cid=msg.cid, pld=bytes(msg.pld)),
        )
    return MsgTypeError.from_decode(
        message=(
            f'invalid `{name}` msg payload\n\n'
            f'value: `{value!r}`\n\n'
            f'has type {type(value)}\n\n'
            'and does not match type-spec '
            f'`{name}.pld: {dec.pld_spec_str}`'
        ),
        bad_msg=type(msg)(cid=msg.cid, pld=value),
    )


@contextmanager
def limit_plds(spec: Any, **dec_kwargs: Any) -> Iterator[MsgDec]:
    """
    Accept only payloads of that type in the current context, inside the block.

    Args:
        spec: The type, or a union of types.
        **dec_kwargs: `dec_hook` and `ext_types`, as `tractor.msg.mk_dec()` takes them.
    Raises:
        RuntimeError: There is no current context.
    """
    ctx = current_ipc_ctx()
    if ctx is None:
        raise RuntimeError('`limit_plds()` works inside an open context only')
    with ctx._pld_rx.limit_plds(spec, **dec_kwargs) as dec:
        yield dec


@asynccontextmanager
async def maybe_limit_plds(
    ctx: Context,
    spec: Any = None,
    dec_hook: Any = None,
    **kwargs: Any,
) -> AsyncIterator[MsgDec | None]:
    """
    Apply a payload type to the current context, or nothing if none is given.

    Args:
        ctx: The current context.
        spec: The type, or a union of types.
        dec_hook: As `tractor.msg.mk_dec()` takes it; without `ext_types` it makes
            what `spec` names.
        **kwargs: `ext_types`.
    """
    if spec is None and dec_hook is None:
        yield None
        return
    if current_ipc_ctx() is not ctx:
        raise RuntimeError(f'context {ctx.cid} is not the current one')
    if dec_hook is not None:
        kwargs = {'ext_types': [spec], 'dec_hook': dec_hook, **kwargs}
    with ctx._pld_rx.limit_plds(spec, **kwargs) as dec:
        yield dec


async def drain_to_final_msg(
    ctx: Context,
    msg_limit: int = 6,
    hide_tb: bool = True,
) -> tuple[Return[Any] | None, list[Any]]:
    """
    Read on until the peer's result, discarding stream messages.

    If this side had a stream and the peer goes on sending into it, the wait is given
    up after more than `msg_limit` stale messages and 0.5 s.

    Returns:
        The result message, or `None` if given up; and the first discarded messages.
    Raises:
        RemoteActorError: The peer ended with an error instead.
        TransportClosed: The connection is gone before a result came.
    """
    discarded: list[Any] = []
    stale = 0
    give_up = float('inf')
    while True:
        if ctx._return_msg is not None:
            return ctx._return_msg, discarded
        msg = await ctx._next_msg()
        if type(msg) is Return:
            ctx._keep_return(msg)
            continue
        if len(discarded) < msg_limit:
            discarded.append(msg)
        if type(msg) is Stop and ctx._stream is not None:
            ctx._stream._end(msg)
        if type(msg) is not Yield or not ctx._stream_opened:
            continue
        stale += 1
        if stale <= msg_limit:
            continue
        now = trio.current_time()
        if give_up == float('inf'):
            give_up = now + STALE_GRACE
        elif now > give_up:
            log.warning('%s: the peer streams on, its result is given up', ctx.cid)
            return None, discarded


def validate_payload_msg(
    pld_msg: Any,
    pld_value: Any,
    ipc: Context | MsgStream,
    raise_mte: bool = True,
    strict_pld_parity: bool = False,
    hide_tb: bool = True,
) -> MsgTypeError | None:
    """
    Check by a round trip that the peer will accept a payload.

    Raises:
        TypeError: It cannot be encoded.
        MsgTypeError: It cannot be decoded, or to another type than the context's only;
            with `strict_pld_parity` also if to something unequal.  Returned instead
            when `raise_mte` is false.
    """
    ctx = _ctx_of(ipc)
    wire = current_codec().round_trip(pld_msg)
    try:
        decoded = ctx._pld_rx.decode_pld(wire, ipc, is_started_send_side=True)
        if strict_pld_parity and decoded != pld_value:
            name = type(pld_msg).__name__
            raise MsgTypeError.from_decode(
                message=f'`{name}.pld`: {pld_value!r} would arrive as {decoded!r}',
                bad_msg=type(pld_msg)(cid=pld_msg.cid, pld=decode_any(wire.pld)),
            )
    except MsgTypeError as mte:
        if not raise_mte:
            return mte
        raise
    return None
