"""
The side that opens a context: `Portal.open_context()`.

Enter: start the remote task, wait for its first value.  Body: runs inside the
context's scope, which a remote error cancels.  Exit: `_protocol.verdict.AT_EXIT` says
what leaves the block; everything here only finds the facts and carries that out.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import trio

from ._context import Context, Unresolved
from ._exceptions import ContextCancelled, MessagingError, TransportClosed
from ._protocol.verdict import AT_EXIT, Body, Exit, Outcome
from .log import get_logger
from .msg.ptr import NamespacePath
from .msg.types import Return, StartAck, Started
from .runtime import _hooks
from .runtime._state import _ctxvar_Context
from .trionics._beg import strip

if TYPE_CHECKING:
    from .runtime._portal import Portal

log = get_logger()


@asynccontextmanager
async def open_context_from_portal(
    portal: Portal,
    func: Callable[..., Any],
    allow_overruns: bool = False,
    hide_tb: bool = True,
    **kwargs: Any,
) -> AsyncIterator[tuple[Context, Any]]:
    """
    Run `func` as a task of the peer, linked to this block.

    Waits for the remote `Context.started()`.  Leaving the block waits for the remote
    task's end; leaving it by an error or a cancellation cancels that task first.  An
    error of the remote task interrupts the body and is raised here.

    Args:
        func: A function decorated with `@tractor.context`.
        allow_overruns: Keep excess inbound messages instead of refusing them.
        **kwargs: Its arguments, anything that can be encoded.
    Yields:
        `(ctx, first)`: the context and the value given to `started()`.
    Raises:
        TypeError: `func` is not such a function.
        RuntimeError: The portal leads to this very actor.
        RemoteActorError: The remote task failed, or could not be started.
        ContextCancelled: It was cancelled, by anybody but this context's `cancel()`.
        MsgTypeError: `kwargs` cannot be encoded, or a payload has the wrong type.
        TransportClosed: The connection was lost before an outcome was known.
    """
    meta = _check(portal, func)
    actor = portal.actor
    ctx = await actor.start_remote_task(
        portal.chan,
        nsf=NamespacePath.from_ref(func),
        kwargs=kwargs,
        portal=portal,
        allow_overruns=allow_overruns,
    )
    ctx._task = trio.lowlevel.current_task()
    token = _ctxvar_Context.set(ctx)
    raised: BaseException | None = None
    try:
        with _payload_type(ctx, meta):
            first = await _first_value(ctx)
            try:
                async with trio.open_nursery() as tn:
                    ctx._scope_nursery, ctx._scope = tn, tn.cancel_scope
                    if ctx._remote_error is not None or ctx._lost is not None:
                        tn.cancel_scope.cancel()
                    yield ctx, first
            except BaseException as err:
                raised = _unwrap(err)
            await _leave(ctx, raised)
    finally:
        ctx._end()
        actor._forget_context(ctx)
        _reset(token)


def _check(portal: Portal, func: Callable[..., Any]) -> dict[str, Any]:
    """Return the decorator's data, or raise what is wrong with the call."""
    peer = portal.chan.aid
    if peer is not None and peer.uid == portal.actor.aid.uid:
        raise RuntimeError(
            'Invalid Operation: a context cannot be opened with this very actor '
            f'({peer.reprol()}); call the function, or start an actor for it'
        )
    name = getattr(func, '__qualname__', repr(func))
    if not inspect.iscoroutinefunction(func):
        raise TypeError(f'{name} must be an async function')
    meta: dict[str, Any] | None = getattr(func, '_tractor_context_meta', None)
    if meta is None:
        raise TypeError(f'{name} must be decorated with `@tractor.context`')
    return meta


@contextmanager
def _payload_type(ctx: Context, meta: dict[str, Any]) -> Iterator[None]:
    """Apply the payload type that the decorator names."""
    spec, hook = meta['pld_spec'], meta['dec_hook']
    if spec is Any and hook is None:
        yield
        return
    extra = {} if hook is None else {'dec_hook': hook, 'ext_types': [spec]}
    with ctx._pld_rx.limit_plds(spec, **extra):
        yield


def _unwrap(err: BaseException) -> BaseException:
    """Take off the group that our own nursery put around the body's error."""
    if isinstance(err, BaseExceptionGroup) and len(err.exceptions) == 1:
        return err.exceptions[0]
    return err


def _reset(token: Any) -> None:
    try:
        _ctxvar_Context.reset(token)
    except ValueError:
        # Left in another `contextvars.Context`, as async generators may be.
        log.runtime('a context block was left in another context than entered')


async def _first_value(ctx: Context) -> Any:
    """Wait for the first value; on the way out of a failure end the remote task."""
    try:
        # An error that came behind the first value is the block's to raise.
        msg = await ctx._next_msg(queued_first=True)
        while type(msg) is StartAck:
            msg = await ctx._next_msg(queued_first=True)
        if type(msg) is Return:
            raise MessagingError(
                f'{ctx._nsf} returned without calling `await ctx.started()`, '
                'which `open_context()` waits for'
            )
        first = ctx._pld_rx.decode_pld(msg, ctx, Started)
    except trio.Cancelled:
        await _cancel_remote(ctx)
        ctx.maybe_raise()
        raise
    except BaseException:
        if not ctx._dialog.is_final:
            await _cancel_remote(ctx)
        raise
    ctx._started_msg, ctx._started_pld = msg, first
    return first


async def _cancel_remote(ctx: Context) -> None:
    """Ask the remote task to end; a broken connection has ended it already."""
    try:
        await ctx.cancel()
    except (TransportClosed, trio.BrokenResourceError, trio.ClosedResourceError):
        log.transport('%s: no cancel request sent, peer gone', ctx.cid)


async def _leave(ctx: Context, raised: BaseException | None) -> None:
    """Do what the verdict says: wait, return, or raise."""
    error = strip(raised) if raised is not None else None
    body = _judge(ctx, error)
    if error is not None:
        ctx._local_error = error
    known = ctx._known_outcome()
    if AT_EXIT[body][known] is Exit.WAIT:
        known = await _wait_for_outcome(ctx)
    step = AT_EXIT[body][known]
    if step is Exit.RETURN or step is Exit.WAIT:
        if ctx._local_error is None and known is Outcome.OWN_ACK:
            ctx._local_error = ctx._remote_error
        if known is Outcome.RESULT and ctx._return_msg is not None:
            ctx._open_return(ctx._return_msg)
        return
    if step is Exit.CANCEL:
        await _hooks.wait_for_debugger()
        await _cancel_remote(ctx)
    if step is Exit.RAISE_REMOTE:
        remote = ctx._remote_error or ctx._lost
        assert remote is not None
        if not ctx._dialog.is_final:
            await _cancel_remote(ctx)  # refused payload, overrun: its task runs on
        if ctx._local_error is None:
            ctx._local_error = remote
        raise remote
    assert error is not None
    raise error


def _judge(ctx: Context, error: BaseException | None) -> Body:
    """Sort the body's end into the kinds that the verdict table knows."""
    if error is None:
        return Body.CLEAN
    if isinstance(error, ContextCancelled):
        if error is ctx._remote_error and ctx._is_own_ack(error):
            return Body.OWN_ACK
        return Body.CTXC
    if error is ctx._late_overrun:
        return Body.OWN_ACK
    return Body.ERROR


async def _wait_for_outcome(ctx: Context) -> Outcome:
    """Wait for the remote task's end, and cancel it if that wait is cancelled."""
    try:
        result = await ctx.wait_for_result()
    except (trio.Cancelled, KeyboardInterrupt) as err:
        ctx._local_error = err
        await _cancel_remote(ctx)
        raise
    except (TransportClosed, trio.ClosedResourceError):
        if ctx._lost is None:
            raise
    except Exception as err:
        if err is not ctx._remote_error:
            raise
    else:
        if result is Unresolved:
            await _cancel_remote(ctx)  # it streams on and ignores our end of stream
            known = ctx._known_outcome()
            return known if known is Outcome.ERROR else Outcome.OWN_ACK
    return ctx._known_outcome()
