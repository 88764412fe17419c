"""
Read one channel and deliver what comes.

One loop per channel.  It never waits for a task: a message goes into its context's
inbox, a request becomes a task, and what belongs to nobody is logged and dropped.  When
the channel ends, for whatever reason, everything bound to it is woken.

This task and the runtime's others are protected from `KeyboardInterrupt`: a Ctrl-C
belongs to the user's code and must not cost a connection.  While they run it goes to
the main task, at its next checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from .._boxing import lost_peer, pack_error, unpack_error
from .._exceptions import StreamOverrun, TransportClosed
from .._protocol.inbox import Fate
from ..log import get_logger
from ..msg.types import CancelAck, Error, Start, Stop
from ._endpoint import Kind, kind_of
from ._rpc import GONE, _invoke, name_of, register
from ._state import current_actor

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._context import Context
    from ..ipc._chan import Channel
    from ._runtime import Actor

log = get_logger()

FAREWELL_CID: Final = ''  # of the `CancelAck` that announces an orderly end
PATIENCE: Final = 2  # scheduler passes a full inbox is given without progress
CONGESTED: Final = 0.25  # seconds its reader may wait for the peer to read


@trio.lowlevel.enable_ki_protection
async def process_messages(
    chan: Channel,
    shield: bool = False,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    """
    Serve one channel until it ends.

    Args:
        chan: A channel whose handshake is done.
        shield: Go on through a cancellation from outside; the scope given to
            `task_status` then is the way to stop it.
    Raises:
        TransportClosed: This actor itself closed the channel while it was read.
        RemoteActorError: The peer's runtime failed, and no nursery owns it.
    """
    if trio.lowlevel.current_task().eventual_parent_nursery is not None:
        # A cancelled `start()` hands nobody over, but waits for the shielded task.
        await trio.lowlevel.checkpoint_if_cancelled()
    actor = current_actor()
    cause: BaseException | None = None
    ended = actor._loops[chan] = trio.Event()
    try:
        with trio.CancelScope(shield=shield) as scope:
            task_status.started(scope)
            while True:
                for msg in await chan.recv_batch():
                    ctx = actor._contexts.get((chan, getattr(msg, 'cid', None)))  # type: ignore[arg-type]
                    if ctx is None or type(msg) is Start:
                        _take_other(actor, chan, msg)
                    elif ctx._deliver(msg) is Fate.OVERRUN:
                        await _overrun(actor, chan, ctx, msg)
    except TransportClosed as err:
        cause = err
        _report_end(actor, err)
    except ProtocolViolation as err:
        cause = err
        log.error('%s; the connection is dropped', err)
    finally:
        _cut_off(actor, chan, cause)
        actor._loops.pop(chan, None)
        ended.set()


def _report_end(actor: Actor, err: TransportClosed) -> None:
    """Log how the channel ended; closing it under its own reader is a bug."""
    if actor._cancel_called:
        log.transport('channel ended during shutdown: %s', err.message)
        return
    err.report_n_maybe_raise('peer IPC channel closed abruptly?')


def _cut_off(actor: Actor, chan: Channel, cause: BaseException | None) -> None:
    """
    Wake every task that waits on the channel, cancel those that serve a dialog on it.

    A plain function runs on, as it was accepted to; only its answer is lost.
    """
    peer = chan.aid
    actor._child_is_cut_off(chan, by_us=_closed_here(cause))
    source = getattr(cause, 'src_exc', None) or cause
    lost = lost_peer(None if peer is None else peer.uid, chan.raddr, source)
    chan._lost = lost
    served = {
        ctx: func
        for (owner, _), (ctx, func, _done) in actor._rpc_tasks.items()
        if owner is chan
    }
    for ctx in [c for (owner, _), c in actor._contexts.items() if owner is chan]:
        if ctx not in served or not _runs_on(actor, served[ctx]):
            ctx._peer_lost(lost)
    for ctx, func in served.items():
        if ctx._scope is not None and not _runs_on(actor, func):
            log.runtime('requester of %s is gone, cancelling it', name_of(func))
            if ctx._canceller is None and peer is not None:
                ctx._canceller = peer.uid
            ctx._scope.cancel()


def _runs_on(actor: Actor, func: Any) -> bool:
    """Whether it is a user's function which does not talk to its requester."""
    try:
        kind = kind_of(func)
    except TypeError:  # which its own task will say
        return False
    return kind is Kind.PLAIN and getattr(func, '__self__', None) is not actor


class ProtocolViolation(Exception):
    """A peer sent what no actor sends: only its own channel has to suffer for it."""


def _take_other(actor: Actor, chan: Channel, msg: Any) -> None:
    """A request, or a message that belongs to no open context."""
    try:
        if type(msg) is Start:
            _start(actor, chan, msg)
        else:
            _take_stray(actor, chan, msg)
    except (RuntimeError, TypeError, ValueError, LookupError) as err:
        raise ProtocolViolation(f'{chan.aid} broke the protocol: {err}') from err


def _closed_here(cause: BaseException | None) -> bool:
    """Whether this actor closed the channel itself, or stopped reading it."""
    if isinstance(cause, TransportClosed):
        return isinstance(cause.src_exc, trio.ClosedResourceError)
    return not isinstance(cause, ProtocolViolation)  # else it was cancelled


def _take_stray(actor: Actor, chan: Channel, msg: Any) -> None:
    """A message that belongs to no open context."""
    if type(msg) is Error and msg.cid is None:
        error = unpack_error(msg, chan)
        chan._exc = error
        assert error is not None
        if not actor._child_failed(chan, error):
            raise error
    elif type(msg) is CancelAck and msg.cid == FAREWELL_CID:
        actor._child_says_farewell(chan)
    elif not hasattr(msg, 'cid'):
        raise ValueError(f'a second {type(msg).__name__} in one connection')
    elif type(msg) is Stop:
        log.runtime('late end of stream for context %s', msg.cid)
    else:
        log.runtime('dropped a %s for no open context: %s', type(msg).__name__, msg)


def _start(actor: Actor, chan: Channel, msg: Start) -> None:
    """Schedule a request, or answer why not."""
    if actor._early_requests is not None:
        actor._early_requests.append((chan, msg))
        return
    if chan._lost is not None:
        log.runtime('%s:%s not started, its requester is gone', msg.ns, msg.func)
        return
    peer = chan.aid
    if peer is None or msg.uid != peer.uid:
        raise RuntimeError(
            f'a request in the name of {tuple(msg.uid)} came from '
            f'{None if peer is None else peer.uid}'
        )
    if msg.ns == 'self':
        runner = actor._runtime_endpoint(chan, msg)
        if runner is not None:
            runner()
            return
    refusal = actor._refusal()
    if refusal is not None:
        log.cancel('%s:%s came too late: %s', msg.ns, msg.func, refusal)
        actor._send_soon(chan, pack_error(refusal, cid=msg.cid))
        return
    try:
        func: Callable[..., Any] = actor._get_rpc_func(msg.ns, msg.func)
    except Exception as err:
        log.warning('refused %s:%s for %s: %r', msg.ns, msg.func, peer.reprol(), err)
        actor._send_soon(chan, pack_error(err, cid=msg.cid))
        return
    ctx = actor.get_context(chan=chan, cid=msg.cid, nsf=f'{msg.ns}:{msg.func}')
    ctx._scope = trio.CancelScope()
    register(actor, chan, ctx, func)
    actor._service_tn.start_soon(
        _invoke, actor, msg.cid, chan, func, msg.kwargs, name=name_of(func)
    )


async def _overrun(actor: Actor, chan: Channel, ctx: Context, msg: Any) -> None:
    """
    Give the reader of a full inbox the chance to run, else refuse the message.

    Many messages come with one read, so that a reader which keeps up may not have
    run at all since the inbox was empty.  A reader that answers may also wait for the
    peer to read the answers, which is nobody's fault for a short time.
    """
    box = ctx._rx_chan
    if box.overran:  # the sender has been told, and may not have read it yet
        return
    idle = 0
    limit = trio.current_time() + CONGESTED
    while idle < PATIENCE or box.has_waking_reader:
        before = len(box)
        with trio.CancelScope(deadline=limit, shield=True):
            await chan.wait_drained()
        await trio.lowlevel.cancel_shielded_checkpoint()
        idle = idle + 1 if len(box) >= before else 0
        if ctx._take_yield(msg) is not Fate.OVERRUN:
            return
    if ctx._cancel_called:  # the peer is to end anyway, and not for this
        return
    box.overran = True
    peer = chan.aid
    size = box._state.max_buffer_size
    box._state.max_buffer_size = 0  # what comes next would leave a gap
    error = StreamOverrun(
        f'the inbound queue of context {ctx.cid} ({ctx._nsf}) in actor '
        f'{actor.aid.uid!r} is full: {size} messages wait unread. Read faster, or open '
        'the stream with a larger `msg_buffer_size` or with `allow_overruns=True`',
        sender=None if peer is None else peer.uid,
    )
    actor._send_soon(
        chan, pack_error(error, cid=ctx.cid, tb_str=f'StreamOverrun: {error.message}\n')
    )


async def send_if_reachable(chan: Channel, msg: Any) -> None:
    """Send also if cancelled, or log that the peer is gone."""
    try:
        await chan.send_last(msg)
    except GONE as err:
        log.transport('%s not sent, the peer is gone: %s', type(msg).__name__, err)
