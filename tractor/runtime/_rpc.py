"""
One request as one task.

`_invoke()` runs a bound function in the actor's service nursery, sends what it yields
and returns, boxes what it raises, and answers a cancellation.  Nothing that happens in
such a task disturbs any other: errors go to the requester, and a requester that is
gone is only logged.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from .._boxing import pack_error
from .._exceptions import (
    ContextCancelled,
    InternalError,
    RemoteActorError,
    StreamOverrun,
    TransportClosed,
)
from .._protocol.verdict import Ended, Ship, ship
from ..ipc._chan import Channel
from ..log import get_logger
from ..msg.types import Error, Return, StartAck, Stop, Yield
from ..trionics._beg import raise_as_is, strip
from ..trionics._taskc import find_masked_exc
from . import _hooks
from ._endpoint import Kind, bind, kind_of
from ._state import _ctxvar_Context

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._context import Context
    from ._runtime import Actor

log = get_logger()

GONE = (TransportClosed, trio.BrokenResourceError, trio.ClosedResourceError)


async def _invoke(
    actor: Actor,
    cid: str,
    chan: Channel,
    func: Callable[..., Any],
    kwargs: dict[str, Any],
    is_rpc: bool = True,
    hide_tb: bool = True,
    return_msg_type: type[Any] = Return,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """
    Run one request to its end and answer it; if it was registered, forget it then.

    Args:
        actor: The serving actor.
        cid: Id of the request's context.
        chan: The requester's channel.
        func: The function to call.
        kwargs: Its arguments.
        is_rpc: Whether the task counts among `actor._rpc_tasks`.
        return_msg_type: `Return`, or `CancelAck` for the runtime's own endpoints.
        task_status: Reports the context when the task is about to run.
    Raises:
        KeyboardInterrupt: Raised by the function; it is shipped, too.
    """
    # The message loop has registered the task already; whoever else calls this has not.
    entry = actor._rpc_tasks.get((chan, cid)) if is_rpc else None
    if entry is None:
        nsf = f'{func.__module__}:{name_of(func)}'
        ctx = actor.get_context(chan=chan, cid=cid, nsf=nsf)
        ctx._scope = trio.CancelScope()
        done = register(actor, chan, ctx, func) if is_rpc else trio.Event()
    else:
        ctx, _, done = entry
    scope = ctx._scope
    assert scope is not None
    token = _ctxvar_Context.set(ctx)
    try:
        try:
            kind = kind_of(func)
            call = bind(func, kind, kwargs, ctx)
        except Exception as err:
            task_status.started(err)
            await _ship_error(chan, err, cid, func)
            return
        acked = False
        with scope:
            task_status.started(ctx)
            try:
                reachable = await _reply(
                    chan, StartAck(cid=cid, functype=kind.functype)
                )
                acked = True
                if entry is not None and (
                    kind in _AWAITED
                    or (not actor._had_first_request and actor._serves_main_task(chan))
                ):
                    chan.flush()
                await _RUN[kind](ctx, chan, cid, func, call, return_msg_type, reachable)
            except BaseException as err:
                if _all_cancelled(err) and (
                    kind is Kind.PLAIN
                    if not scope.cancel_called
                    else _ends_as_well(actor) and not (kind is Kind.GENERATOR and acked)
                ):
                    # The actor stops serving, which its requester may not notice.
                    await _answer_cancelled(ctx, chan, cid, func)
                raise
            finally:
                # A coroutine that never got to run warns unless it is closed.
                if kind is not Kind.GENERATOR:
                    call.close()
        # A generator that was reached says by itself that it has ended.
        if scope.cancelled_caught and not (kind is Kind.GENERATOR and acked):
            await _answer_cancelled(ctx, chan, cid, func)
    finally:
        _ctxvar_Context.reset(token)
        if is_rpc:
            unregister(actor, chan, ctx)
        done.set()
        if entry is not None:  # the message loop made the context for this task
            ctx._end()
            actor._forget_context(ctx)


def _ends_as_well(actor: Actor) -> bool:
    """Whether all services are cancelled, so that no task's own scope catches that."""
    tn = getattr(actor, '_service_tn', None)
    return tn is not None and bool(tn.cancel_scope.cancel_called)


def name_of(func: Any) -> str:
    """Return the name of a function; that of the one inside, if it is a partial."""
    while isinstance(func, partial):
        func = func.func
    return getattr(func, '__name__', None) or type(func).__name__


def register(actor: Actor, chan: Channel, ctx: Context, func: Any) -> trio.Event:
    """Note a task before it runs, so that a cancel request always finds it."""
    done = trio.Event()
    actor._rpc_tasks[(chan, ctx.cid)] = (ctx, func, done)
    return done


def unregister(actor: Actor, chan: Channel, ctx: Context) -> None:
    """Forget a task that has ended."""
    actor._rpc_tasks.pop((chan, ctx.cid), None)
    if not actor._rpc_tasks:
        actor._ongoing_rpc_tasks.set()


async def _reply(chan: Channel, msg: Any) -> bool:
    """Send to the requester; return whether it is still there."""
    try:
        await chan.send(msg)
    except GONE as err:
        log.warning('requester is gone, %s not sent: %s', type(msg).__name__, err)
        return False
    return True


async def send_last(chan: Any, msg: Any) -> None:
    """
    Send also if cancelled; over a channel, or over what only has its `send()`.

    Raises:
        As `send()` of what it is sent over.
    """
    if issubclass(type(chan), Channel):  # not what only looks like one
        await chan.send_last(msg)
        return
    with trio.CancelScope(shield=True):
        await chan.send(msg)


async def _say_last(chan: Channel, msg: Any) -> None:
    """Send what ends a dialog, whether or not this task is cancelled."""
    try:
        await send_last(chan, msg)
    except GONE as err:
        log.warning('requester is gone, %s not sent: %s', type(msg).__name__, err)


async def _run_plain(
    ctx: Context,
    chan: Channel,
    cid: str,
    func: Any,
    call: Any,
    return_msg_type: type[Any],
    reachable: bool,
) -> None:
    try:
        result = await call
    except BaseException as err:
        if _all_cancelled(err):
            raise
        await _failed(ctx, chan, cid, func, err, reachable)
        return
    if reachable and chan.connected():
        await _send_result(chan, return_msg_type(cid=cid, pld=result), func)


async def _run_generator(
    ctx: Context,
    chan: Channel,
    cid: str,
    func: Any,
    call: Any,
    return_msg_type: type[Any],
    reachable: bool,
) -> None:
    try:
        async with aclosing(call) as agen:
            async for item in agen:
                if not await _reply(chan, Yield(cid=cid, pld=item)):
                    return
    except BaseException as err:
        if _all_cancelled(err):
            await _say_end(ctx, chan, cid, func)
            raise
        await _failed(ctx, chan, cid, func, err, reachable)
        return
    await _say_end(ctx, chan, cid, func)


async def _run_stream(
    ctx: Context,
    chan: Channel,
    cid: str,
    func: Any,
    call: Any,
    return_msg_type: type[Any],
    reachable: bool,
) -> None:
    try:
        await call
    except BaseException as err:
        if _all_cancelled(err):
            raise
        await _failed(ctx, chan, cid, func, err, reachable)
        return
    await _say_end(ctx, chan, cid, func)


async def _say_end(ctx: Context, chan: Channel, cid: str, func: Any) -> None:
    """Tell that a one-way stream is complete, or that its reader refused a part."""
    refused = _reason(ctx)
    if refused is None:
        await _say_last(chan, Stop(cid=cid))
    else:
        await _ship_error(chan, refused, cid, func)


def _reason(ctx: Context) -> BaseException | None:
    """Return the caller's error that ended a task; a wish to cancel says more."""
    error: BaseException | None = getattr(ctx, '_remote_error', None)
    if (
        isinstance(error, RemoteActorError)
        and error.boxed_type is StreamOverrun
        and ctx._cancel_msg is not None
    ):
        return None
    return error


async def _run_context(
    ctx: Context,
    chan: Channel,
    cid: str,
    func: Any,
    call: Any,
    return_msg_type: type[Any],
    reachable: bool,
) -> None:
    """Run an `@context` function in its own nursery and ship what it comes to."""
    meta = func._tractor_context_meta
    ended, error, result = Ended.FOREIGN_SCOPE, None, None
    held: BaseException | None = None
    ctx._task = trio.lowlevel.current_task()
    outer = ctx._scope
    try:
        async with trio.open_nursery() as tn:
            ctx._scope_nursery, ctx._scope = tn, tn.cancel_scope
            if outer is not None and outer.cancel_called:
                tn.cancel_scope.cancel()
            with _payload_type(ctx, meta):
                try:
                    result = await call
                except BaseException as err:
                    masked = _unmask(err)
                    if not _has_repr(masked):
                        held = masked
                        tn.cancel_scope.cancel()
                    elif masked is err:
                        raise
                    else:
                        raise_as_is(masked)
            ended = Ended.RETURNED
        if held is not None:
            raise held
        if ended is not Ended.RETURNED:
            ended = Ended.OWN_SCOPE
    except BaseException as err:
        error = strip(_unwrap(err if held is None else held))
        if _all_cancelled(error):
            raise
        ended = Ended.RAISED
    finally:
        ctx._end()
        ctx._scope = outer  # which a cancel request finds while the answer is sent
    reason = _reason(ctx)
    match ship(ended, reason is not None):
        case Ship.RESULT:
            ctx._result = result
            if reachable and chan.connected():
                await _send_result(chan, return_msg_type(cid=cid, pld=result), func)
        case Ship.ERROR:
            assert error is not None
            ctx._local_error = error
            await _failed(ctx, chan, cid, func, error, reachable)
        case Ship.REMOTE_ERROR:
            assert reason is not None
            await _failed(ctx, chan, cid, func, reason, reachable)
        case Ship.CANCELLED:
            await _answer_cancelled(ctx, chan, cid, func)


# Whoever calls these waits for the ack before anything else.
_AWAITED = (Kind.GENERATOR, Kind.STREAM)

_RUN = {
    Kind.PLAIN: _run_plain,
    Kind.GENERATOR: _run_generator,
    Kind.STREAM: _run_stream,
    Kind.CONTEXT: _run_context,
}


@contextmanager
def _payload_type(ctx: Context, meta: dict[str, Any]) -> Iterator[None]:
    spec, hook = meta['pld_spec'], meta['dec_hook']
    if spec is Any and hook is None:
        yield
        return
    extra = {} if hook is None else {'dec_hook': hook, 'ext_types': [spec]}
    with ctx._pld_rx.limit_plds(spec, **extra):
        yield


def _has_repr(err: BaseException) -> bool:
    """Whether `repr()` works: a nursery shows what leaves it, and breaks otherwise."""
    try:
        repr(err)
    except Exception:
        return False
    return True


def _unwrap(err: BaseException) -> BaseException:
    """Take off the group that our own nursery put around the function's error."""
    if isinstance(err, BaseExceptionGroup) and len(err.exceptions) == 1:
        return err.exceptions[0]
    return err


# Raised to steer a loop, and then handled: no error was covered.
_STEERING = (
    trio.EndOfChannel,
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
    KeyboardInterrupt,
)


def _unmask(err: BaseException) -> BaseException:
    """Return the error that a cancellation in a `finally:` covered, if any."""
    if not _all_cancelled(err):
        return err
    masked = find_masked_exc(err)
    if masked is None or isinstance(masked, _STEERING):
        return err
    log.warning('a cancellation had covered %r', masked)
    return masked


def _all_cancelled(err: BaseException) -> bool:
    if isinstance(err, BaseExceptionGroup):
        return err.split(trio.Cancelled)[1] is None
    return isinstance(err, trio.Cancelled)


async def _send_result(chan: Channel, msg: Any, func: Any) -> None:
    """Send a result; one that cannot be encoded is an error of the function."""
    try:
        await chan.send(msg)
    except GONE as err:
        log.warning('requester of %s is gone, result dropped: %s', name_of(func), err)
    except Exception as err:
        await _ship_error(chan, err, msg.cid, func)


async def _failed(
    ctx: Context,
    chan: Channel,
    cid: str,
    func: Any,
    err: BaseException,
    reachable: bool,
) -> None:
    """Ship what a function raised; an interrupt ends the actor, too."""
    lost = getattr(ctx, '_lost', None)
    if lost is not None and err is lost:
        log.runtime('%s ended with its requester', name_of(func))
        return
    if not isinstance(err, ContextCancelled):
        shown = await _hooks.post_mortem(err)
        if not shown and log.at_least_level('error'):
            log.error('RPC task crashed: %s\n%s', name_of(func), _report(err))
    if reachable:
        await _ship_error(chan, err, cid, func)
    if isinstance(err, KeyboardInterrupt | SystemExit):
        raise err


def _report(err: BaseException) -> str:
    """Return a text whose last line names no error: stderr is shared by a tree."""
    import traceback  # only for a report

    text = ''.join(traceback.format_exception(err)).rstrip()
    return f'{text}\n ^^^ shipped to the requester ^^^'


async def _ship_error(chan: Channel, err: BaseException, cid: str, func: Any) -> None:
    try:
        await send_last(chan, pack_error(err, cid=cid))
    except GONE as gone:
        log.warning('requester is gone, error of %s lost: %s', func, gone)
    except Exception as why:
        log.exception('an error of %s cannot be shipped', func)
        stand_in = InternalError(
            f'a {type(err).__name__} that cannot be shipped: {why}'
        )
        await _say_last(chan, pack_error(stand_in, cid=cid))


async def _answer_cancelled(ctx: Context, chan: Channel, cid: str, func: Any) -> None:
    """Tell the requester that its task was cancelled, and by whom."""
    if (reason := _reason(ctx)) is not None:
        await _ship_error(chan, reason, cid, func)
        return
    actor = ctx._actor
    own = actor.aid.uid
    by_itself = ctx._cancel_called and ctx.side == 'child'
    canceller = own if by_itself or ctx._canceller is None else ctx._canceller
    who = 'itself' if by_itself or canceller == own else f'actor {canceller!r}'
    ctxc = ContextCancelled(
        f'task {name_of(func)!r} of actor {own!r} was cancelled by {who}',
        boxed_type=ContextCancelled,
        canceller=canceller,
    )
    msg = pack_error(ctxc, cid=cid, src_uid=own, tb_str=f'{ctxc.message}\n')
    await _say_last(chan, msg)


async def try_ship_error_to_remote(
    channel: Channel,
    err: BaseException,
    cid: str | None = None,
    remote_descr: str = 'parent',
    hide_tb: bool = True,
) -> None:
    """
    Send an error to a peer if it can be reached at all; never raises.

    Args:
        channel: The channel to the peer.
        err: The error.
        cid: Its context; `None` means that this actor's runtime failed.
        remote_descr: What the peer is to us, for the log.
    """
    try:
        msg: Error = pack_error(err, cid=cid)
        await send_last(channel, msg)
    except Exception as why:
        log.error('%s cannot be told of %r: %s', remote_descr, err, why)


def __getattr__(name: str) -> Any:
    if name == 'process_messages':
        from ._msgloop import process_messages  # it imports this module

        return process_messages
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
