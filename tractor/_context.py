"""
Contexts: two tasks in two actors, linked as if one had started the other.

A `Context` is one side of such a pair.  It owns a `Dialog` (what may come next), a
mailbox (what came) and the cancel scope around its task; `_protocol.verdict` tells it
what an end means.  `_open_ctx` drives the side that opens, `runtime/_rpc` the side
that is called, and the message loop delivers into both.
"""

from __future__ import annotations

import warnings
from types import NoneType
from typing import TYPE_CHECKING, Any, Final

import trio

from ._boxing import unpack_error
from ._exceptions import (
    ContextCancelled,
    MessagingError,
    RemoteActorError,
    TransportClosed,
    Uid,
)
from ._mailbox import Mailbox
from ._protocol.dialog import Dialog, Stage, Violation
from ._protocol.inbox import Fate
from ._protocol.verdict import Outcome, canceller_of, interrupts_body, is_own_ack
from ._streaming import MsgStream, open_stream_from_ctx
from .log import get_logger
from .msg._codec import current_codec
from .msg._ops import PldRx, drain_to_final_msg, validate_payload_msg
from .msg.types import Error, Return, StartAck, Started, Stop, Yield
from .runtime._state import current_actor

if TYPE_CHECKING:
    from .ipc._chan import Channel
    from .msg.ptr import NamespacePath
    from .runtime._portal import Portal
    from .runtime._runtime import Actor

log = get_logger()

CANCEL_TIMEOUT: Final = 0.616  # seconds that `Context.cancel()` waits for its ack

# What can be encoded of these can be decoded.
_SCALARS: Final = frozenset({NoneType, bool, int, float, str, bytes})


class Unresolved:
    """Sentinel class: a context's outcome is not known."""


class Context:
    """
    One side of a pair of linked tasks.  Made by the runtime, never by users.

    Attributes:
        chan: The channel to the peer.
        cid: Id of the pair, equal on both sides.
    """

    # Defaults of what most contexts never change; making one has to be cheap.
    _portal: Portal | None = None
    _scope: trio.CancelScope | None = None
    _scope_nursery: trio.Nursery | None = None
    _task: trio.lowlevel.Task | None = None
    _remote_error: BaseException | None = None
    _local_error: BaseException | None = None
    _lost: TransportClosed | None = None
    _late_overrun: BaseException | None = None  # came after our own `cancel()`
    _canceller: Uid | None = None
    _cancel_called: bool = False
    _cancel_msg: Any = None
    _owner_in_cancel: bool = False
    _result: Any = Unresolved
    _return_msg: Return[Any] | None = None
    _started_called: bool = False
    _started_msg: Started[Any] | None = None
    _started_pld: Any = None
    _stream: MsgStream | None = None
    _stream_opened: bool = False
    _remote_func_type: str | None = None
    _is_over: bool = False
    _awaits_ack: bool = False
    _box: Mailbox | None = None
    _in_overrun: bool = False
    _enter_debugger_on_cancel: bool = True
    _cancel_on_msgerr: bool = True

    def __init__(
        self,
        chan: Channel,
        cid: str,
        actor: Actor,
        nsf: NamespacePath | str,
        msg_buffer_size: int = 64,
        allow_overruns: bool = False,
        stage: Stage = Stage.CALLED,
    ) -> None:
        self.chan = chan
        self.cid = cid
        self._actor = actor
        self._nsf = nsf
        self._buffer_size = msg_buffer_size
        self._allow_overruns = allow_overruns
        self._dialog = Dialog(cid, stage)
        self._pld_rx = PldRx()

    # -- facts ----------------------------------------------------------------

    @property
    def side(self) -> str:
        """`'parent'` for the side that opened it, `'child'` for the other."""
        return 'child' if self._portal is None else 'parent'

    @property
    def peer_side(self) -> str:
        """The other side's `side`."""
        return 'parent' if self._portal is None else 'child'

    @property
    def portal(self) -> Portal | None:
        """The portal it was opened through; `None` on the child side."""
        return self._portal

    @property
    def parent_task(self) -> trio.lowlevel.Task | None:
        """The local task that owns it."""
        return self._task

    @property
    def pld_rx(self) -> PldRx:
        """Its payload decoder."""
        return self._pld_rx

    @property
    def cancel_called(self) -> bool:
        """Whether this side called `cancel()`, or left its block by an error."""
        return self._cancel_called

    @property
    def canceller(self) -> Uid | None:
        """Uid of the actor that ended it; `None` while nobody has."""
        return self._canceller

    @property
    def cancel_acked(self) -> bool:
        """Whether the peer confirmed this side's own `cancel()`."""
        peer = self.chan.aid
        error = self._remote_error
        return (
            self._cancel_called
            and isinstance(error, ContextCancelled)
            and peer is not None
            and error.src_uid == peer.uid
            and self._is_own_ack(error)
            and self._canceller == self._own_uid
        )

    @property
    def cancelled_caught(self) -> bool:
        """Whether its scope swallowed a cancellation."""
        return self._scope is not None and self._scope.cancelled_caught

    @property
    def maybe_error(self) -> BaseException | None:
        """The remote error if one came, else the local one, else `None`."""
        return self._remote_error or self._local_error

    @property
    def outcome(self) -> Any:
        """The error or the result; the class `Unresolved` while there is neither."""
        return self.maybe_error or self._result

    @property
    def has_outcome(self) -> bool:
        """Whether an error or the final result is known."""
        return self.maybe_error is not None or self._final_result_is_set()

    @property
    def _rx_chan(self) -> Mailbox:
        """What came and was not taken; made at first use, a plain task has none."""
        box = self._box
        if box is None:
            box = self._box = Mailbox(self._buffer_size, self._allow_overruns)
            if self._is_over:
                box.close()
        return box

    _send_chan = _rx_chan

    @property
    def _own_uid(self) -> Uid:
        return self._actor.aid.uid

    @property
    def _overflow_q(self) -> Any:
        return self._rx_chan._state._spill

    def _final_result_is_set(self) -> bool:
        return self._result is not Unresolved

    def _is_own_ack(self, error: BaseException | None) -> bool:
        if not isinstance(error, ContextCancelled):
            return False
        canceller = error._shown('canceller')
        return is_own_ack(self._cancel_called, True, canceller, self._own_uid)

    def _is_absorbed(self, error: BaseException | None) -> bool:
        """Whether it only shows that the task was ended by our own `cancel()`."""
        return self._is_own_ack(error) or error is self._late_overrun

    def _known_outcome(self) -> Outcome:
        """Return what is known of the remote task, in the terms of `verdict`."""
        if self._remote_error is not None:
            own = self._is_absorbed(self._remote_error)
            return Outcome.OWN_ACK if own else Outcome.ERROR
        if self._return_msg is not None or self._final_result_is_set():
            return Outcome.RESULT
        if self._lost is not None and not len(self._rx_chan):
            asked = self._cancel_called or self.chan._cancel_called
            return Outcome.LOST_ASKED if asked else Outcome.LOST
        return Outcome.PENDING

    # -- inbound: called by the message loop, never waits ----------------------

    def _deliver(self, msg: Any) -> Fate:
        """Take one message in; `Fate.OVERRUN` means it did not fit."""
        kind = type(msg)
        if kind is Error and _is_overrun(msg):
            # The peer's runtime complains of our overrun; its task still runs.
            self._take_error(msg)
            return Fate.QUEUED
        try:
            self._dialog.receive(msg)
        except Violation as err:
            return self._take_violation(err)
        if kind is Yield:
            return self._take_yield(msg)
        if kind is Error:
            self._take_error(msg)
        elif kind is not StartAck or self._awaits_ack or msg.functype == 'asyncgen':
            # Whoever waits for the result alone is not woken for an ack.
            box = self._box if self._box is not None else self._rx_chan
            if box._state.put_final(msg) is Fate.QUEUED:
                box.wake_all()
        return Fate.QUEUED

    def _take_yield(self, msg: Yield[Any]) -> Fate:
        """Queue a stream message; also for another try after an overrun."""
        box = self._box if self._box is not None else self._rx_chan
        fate = box._state.put(msg)
        if fate is Fate.OVERRUN:
            # Nobody reads an ended stream: what still comes is stale, not too much.
            if self._stream is not None and self._stream.closed:
                return Fate.SHED
            return fate
        if fate is Fate.SHED:
            self._in_overrun = True
        box.wake_one()
        return fate

    def _take_error(self, msg: Error) -> None:
        error = unpack_error(msg, self.chan)
        if error is not None:
            self._set_remote_error(error)

    def _take_violation(self, err: Violation) -> Fate:
        if self._dialog.is_final or self._is_over:
            log.runtime('%s: dropped a late %s', self.cid, err.kind.__name__)
            return Fate.CLOSED
        log.error('%s', err)
        self._set_remote_error(MessagingError(str(err)))
        return Fate.QUEUED

    def _set_remote_error(self, error: BaseException) -> None:
        """Apply an error from the peer at once: interrupt the body, wake waiters."""
        if self._remote_error is not None or self._is_over:
            return
        if self._cancel_called and self._is_own_overrun(error):
            self._late_overrun = error
        own_ack = self._is_absorbed(error)
        listens = self._owner_in_cancel or self._rx_chan.listens(self._task)
        self._remote_error = error
        if isinstance(error, RemoteActorError):
            is_ctxc = isinstance(error, ContextCancelled)
            self._canceller = canceller_of(
                is_ctxc,
                error.canceller if isinstance(error, ContextCancelled) else None,
                error.src_uid,
                self._own_uid,
            )
        self._rx_chan.wake_all()
        if interrupts_body(own_ack, listens):
            self._interrupt()

    def _peer_lost(self, lost: TransportClosed) -> None:
        """The channel is gone: wake everybody who waits on this context."""
        if self._lost is not None or self._is_over:
            return
        self._lost = lost
        done = self._return_msg is not None or self._dialog.is_final
        self._dialog.end()
        self._rx_chan.wake_all()
        if not done and self._remote_error is None:
            self._interrupt()

    @property
    def _is_broken_off(self) -> bool:
        """
        Whether the peer's end has cancelled the scope around our own tasks.

        Whoever then asks for messages gets what is left, and the reason, rather than
        the cancellation that it caused.
        """
        return self._remote_error is not None or self._lost is not None

    def _interrupt(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def _keep_return(self, msg: Return[Any]) -> None:
        """Note the result for everybody who waits for it, and wake them."""
        self._return_msg = msg
        self._rx_chan.wake_all()

    async def _next_msg(self, queued_first: bool = False) -> Any:
        """Wait for the next queued message, or raise what ended the context."""
        box = self._rx_chan
        queue = box._state
        if self._remote_error is None and self._lost is None:  # not broken off
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self._remote_error is not None and not (queued_first and queue.data):
                raise self._remote_error
            if queue.data:
                return queue.take()
            if self._return_msg is not None:
                return self._return_msg
            if self._lost is not None:
                raise self._lost
            if self._is_over:
                raise trio.ClosedResourceError(f'context {self.cid} is over')
            await box.park()

    async def _wait_for_ack(self) -> StartAck:
        """Wait until the peer has scheduled the task; raise why it could not."""
        box = self._rx_chan
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if box._state.data:  # what the task itself raised comes behind it
                ack = box._state.take()
                assert type(ack) is StartAck
                return ack
            if self._remote_error is not None:
                raise self._remote_error
            if self._lost is not None:
                raise self._lost
            await box.park()

    def _end(self) -> None:
        """Nothing more is expected: forget what is queued, drop what still comes."""
        self._is_over = True
        if self._box is not None and (left := self._box.close()):
            log.runtime('%s: %d unread messages dropped', self.cid, left)

    # -- outbound -------------------------------------------------------------

    async def started(
        self,
        value: Any = None,
        validate_pld_spec: bool = True,
        strict_pld_parity: bool = False,
        hide_tb: bool = True,
    ) -> None:
        """
        Send the first value, which the other side's `open_context()` waits for.

        Returns once it is written; no ack is awaited.  After an error nothing was
        sent and it may be called again.

        Args:
            value: Any payload of the context's type.
            validate_pld_spec: Check the type here already.
            strict_pld_parity: Also require that it arrives as an equal value.
        Raises:
            RuntimeError: Called on the parent side, or for the second time.
            MsgTypeError: `value` is not of the context's payload type, or would not
                arrive at all.
            TypeError: `value` cannot be encoded.
            TransportClosed: The connection is gone.
        """
        if self.side == 'parent':
            raise RuntimeError('only the child side of a context calls `.started()`')
        if self._started_called:
            raise RuntimeError(f'called .started() twice on context {self.cid}')
        pld = current_codec().raw(value)
        msg: Started[Any] = Started(cid=self.cid, pld=pld)
        if validate_pld_spec:
            if strict_pld_parity or self._pld_rx._pld_dec.spec is not Any:
                validate_payload_msg(
                    msg, value, self, strict_pld_parity=strict_pld_parity
                )
            elif type(value) not in _SCALARS:
                self._pld_rx.decode_pld(msg, self, is_started_send_side=True)
        await self.chan.send(msg)
        self._started_called = True
        self._started_msg, self._started_pld = msg, value

    async def send_stop(self) -> None:
        """Tell the peer that this side's stream has ended."""
        await self.chan.send_last(Stop(cid=self.cid))

    async def _send_yield(self, data: Any) -> None:
        await self.chan.send(Yield(cid=self.cid, pld=data))

    async def send_yield(self, data: Any) -> None:
        """Send one stream message (legacy; use `MsgStream.send()`)."""
        warnings.warn(
            '`Context.send_yield()` is deprecated, use `MsgStream.send()`',
            DeprecationWarning,
            stacklevel=2,
        )
        await self._send_yield(data)

    open_stream = open_stream_from_ctx

    async def cancel(self, timeout: float = CANCEL_TIMEOUT) -> None:
        """
        Cancel the linked task.

        On the parent side: ask the peer to cancel exactly that task and wait, shielded,
        until it has ended or `timeout` is over.  The own body is not cancelled unless
        its task waits elsewhere when the confirmation comes.  On the child side: cancel
        the own scope; the peer's block raises.

        Args:
            timeout: Seconds to wait for the ack.
        Raises:
            TransportClosed: The request cannot be written.
        """
        self._cancel_called = True
        if self._portal is None:
            self._canceller = self._own_uid
            self._interrupt()
            return
        if self._dialog.is_final:
            return
        is_owner = trio.lowlevel.current_task() is self._task
        if is_owner:  # which another task that cancels as well does not change
            self._owner_in_cancel = True
        try:
            with trio.move_on_after(timeout, shield=True) as cs:
                await self._portal._cancel_task(self.cid)
        finally:
            if is_owner:
                self._owner_in_cancel = False
        if cs.cancelled_caught:
            log.cancel('%s: no cancel ack within %g s', self.cid, timeout)
        elif not self._dialog.is_final:
            # A task's last word comes before the ack: this one ended without any.
            self._dialog.end()
            self._set_remote_error(
                ContextCancelled(
                    f'task {self._nsf} ended without an answer, after its cancellation',
                    boxed_type=ContextCancelled,
                    canceller=self._own_uid,
                )
            )

    # -- the result -----------------------------------------------------------

    async def wait_for_result(self, hide_tb: bool = True) -> Any:
        """
        Wait for the remote task's result, discarding what it still streams.

        Works inside the block and after it; later calls give the same.  Interrupted
        from outside, it can be called again.

        Returns:
            The result; the `ContextCancelled` that confirms our own `cancel()`; or
            the class `Unresolved` if a peer that streams on was given up.
        Raises:
            RuntimeError: Called on the child side.
            RemoteActorError: The remote task failed or was cancelled.
            TransportClosed: The connection is gone and no result came.
        """
        if self.side == 'child':
            raise RuntimeError(
                'Invalid usage: only the side that opened a context waits for a result'
            )
        if self._final_result_is_set():
            return self._result
        if self._remote_error is None:
            if self._is_over:
                if self._lost is not None:
                    raise self._lost
                return Unresolved
            try:
                msg, _ = await drain_to_final_msg(self)
            except BaseException as err:
                if err is not self._remote_error:
                    raise
            else:
                return Unresolved if msg is None else self._open_return(msg)
        return self._raise_or_ack()

    def _open_return(self, msg: Return[Any]) -> Any:
        if not self._final_result_is_set():
            self._result = self._pld_rx.decode_pld(msg, self, Return)
        return self._result

    def _raise_or_ack(self) -> BaseException | None:
        error = self._remote_error
        if error is None or self._is_absorbed(error):
            return error
        raise error

    async def result(self, *args: Any, **kwargs: Any) -> Any:
        """Do what `wait_for_result()` does (legacy spelling)."""
        log.warning('`Context.result()` is now `Context.wait_for_result()`')
        return await self.wait_for_result(*args, **kwargs)

    def maybe_raise(
        self,
        hide_tb: bool = True,
        from_src_exc: BaseException | bool | None = False,
        raise_ctxc_from_self_call: bool = False,
        raise_overrun_from_self: bool = True,
    ) -> BaseException | None:
        """
        Raise the remote error if there is one that is not to be absorbed.

        Args:
            from_src_exc: Exception (or `None`) to raise it from.
            raise_ctxc_from_self_call: Also raise the answer to our own `cancel()`.
            raise_overrun_from_self: Also raise the peer's complaint of our overrun.
        Returns:
            The absorbed error, or `None`.
        """
        error = self._remote_error
        if error is None:
            return None
        if self._is_own_ack(error) and not raise_ctxc_from_self_call:
            return error
        if not raise_overrun_from_self and self._is_own_overrun(error):
            return error
        if isinstance(from_src_exc, bool):
            raise error
        raise error from from_src_exc

    def _is_own_overrun(self, error: BaseException) -> bool:
        peer = self.chan.aid
        return (
            isinstance(error, RemoteActorError)
            and error.sender is not None
            and peer is not None
            and error.sender == peer.uid
        )

    def _maybe_raise_remote_err(
        self, remote_error: BaseException, **kwargs: Any
    ) -> BaseException | None:
        return self.maybe_raise(**kwargs)

    # -- rendering ------------------------------------------------------------

    @property
    def dst_maddr(self) -> str:
        """The peer's address as text."""
        return str(self.chan.maddr)

    dmaddr = dst_maddr

    @property
    def repr_rpc(self) -> str:
        """The remote function as a call."""
        return f'{self._nsf}()'

    @property
    def repr_caller(self) -> str:
        """The local task that owns it."""
        return repr(self._task)

    @property
    def repr_api(self) -> str:
        """How it was made."""
        return 'Portal.open_context()' if self._portal is not None else '@context'

    @property
    def repr_state(self) -> str:
        """One word or two for where it stands."""
        from . import _ctx_repr  # only to show one

        return _ctx_repr.state(self)

    def repr_outcome(self, show_error_fields: bool = False) -> str:
        """The outcome on one line."""
        if self.maybe_error is None and self._result is Unresolved:
            return 'Unresolved'
        from . import _ctx_repr  # only to show one

        return _ctx_repr.outcome(self)

    def pformat(self) -> str:
        """Several lines for a report."""
        from . import _ctx_repr  # only to show one

        return _ctx_repr.block(self)

    __repr__ = pformat
    __str__ = pformat


def mk_context(
    chan: Channel,
    cid: str,
    nsf: NamespacePath | str,
    msg_buffer_size: int = 64,
    allow_overruns: bool = False,
    stage: Stage = Stage.CALLED,
) -> Context:
    """Return one side of a context over a channel of the current actor."""
    return Context(
        chan,
        cid,
        current_actor(),
        nsf,
        msg_buffer_size=msg_buffer_size,
        allow_overruns=allow_overruns,
        stage=stage,
    )


def __getattr__(name: str) -> Any:
    # Offered from above, at first use: they build on this module.
    if name == 'open_context_from_portal':
        from ._open_ctx import open_context_from_portal

        return open_context_from_portal
    if name == 'context':
        from ._ctx_mark import context

        return context
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _is_overrun(msg: Error) -> bool:
    """Whether the peer's runtime itself complains, and relays no task's error."""
    return (
        msg.sender is not None
        and msg.boxed_type_str == 'StreamOverrun'
        and len(msg.relay_path) <= 1
    )
