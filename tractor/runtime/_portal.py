"""
Calls into another actor.

A `Portal` is bound to one channel.  Every call opens a context on it, so that replies
find their caller, a lost connection wakes it, and cancelling the caller cancels the
remote task.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from sys import modules
from typing import TYPE_CHECKING, Any, Final

import trio

from .._boxing import lost_peer
from .._exceptions import ActorTooSlowError, NoResult
from .._lazy import lazy_exports
from .._open_ctx import open_context_from_portal
from .._streaming import MsgStream
from ..log import get_logger
from ..msg._codec import DecodeError, decode_any
from ..msg.ptr import NamespacePath
from ..msg.types import CancelAck, Return, Start, StartAck
from ..trionics._beg import strip
from ._endpoint import Kind, check_name, kind_of
from ._msgloop import process_messages
from ._rpc import GONE
from ._state import current_actor

if TYPE_CHECKING:
    from .._context import Context
    from ..ipc._chan import Channel
    from ._runtime import Actor

log = get_logger()

CANCEL_CALL_TIMEOUT: Final = 0.616  # seconds to tell a peer that a call is off


class Portal:
    """
    A way to call into one other actor.

    Attributes:
        cancel_timeout: Seconds that `cancel_actor()` waits for an ack by default.
        actor: The local actor.
    """

    cancel_timeout: float = 0.5

    def __init__(self, channel: Channel) -> None:
        self._chan = channel
        self.actor: Actor = current_actor()
        self._streams: set[MsgStream] = set()
        self._main: Context | None = None
        self._submitted: trio.Event | None = None
        self._taken: Callable[[], None] | None = None

    @property
    def chan(self) -> Channel:
        """The channel to the peer; its identity outlives the connection."""
        return self._chan

    @property
    def channel(self) -> Channel:
        """The same (legacy spelling)."""
        log.debug('`Portal.channel` is now `Portal.chan`')
        return self._chan

    def __repr__(self) -> str:
        peer = self._chan.aid
        return f'<Portal to {peer.reprol() if peer is not None else "<unknown>"}>'

    # -- calls ----------------------------------------------------------------

    async def run(
        self,
        func: str | Callable[..., Any],
        fn_name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Run `func(**kwargs)` as a task of the peer and return its result.

        Cancelled, it cancels the remote task and waits up to 0.616 s for that.

        Args:
            func: An async function of a module that the peer serves.
            fn_name: Its name, when `func` is the module's name (legacy).
            **kwargs: Its arguments, anything that can be encoded.
        Raises:
            TypeError: `func` is not an async function, or it streams, or its module has
                another one of that name.
            RemoteActorError: It failed, or could not be started.
            ContextCancelled: Somebody else cancelled it.
            MsgTypeError: `kwargs` cannot be encoded, or the result not decoded.
            TransportClosed: The connection is, or gets, lost.
        """
        if isinstance(func, str):
            warnings.warn(
                '`Portal.run(module, name)` is deprecated, pass the function itself',
                DeprecationWarning,
                stacklevel=2,
            )
            if fn_name is None:
                raise TypeError(f'which function of module {func!r}? pass `fn_name`')
            return await self._call(func, fn_name, kwargs)
        try:
            kind = kind_of(func)
        except TypeError:
            kind = Kind.GENERATOR
        if kind is Kind.GENERATOR or kind is Kind.STREAM:
            name = getattr(func, '__qualname__', repr(func))
            raise TypeError(f'{name} must be a non-streaming async function')
        ns, name = func.__module__, func.__name__
        if getattr(modules.get(ns), name, func) is not func:
            check_name(func)
        return await self._call(ns, name, kwargs)

    async def run_from_ns(
        self, namespace_path: str, function_name: str, **kwargs: Any
    ) -> Any:
        """
        Do what `run()` does, by names.

        Args:
            namespace_path: A module, or `'self'` for the remote runtime itself.
            function_name: The function's name there.
        """
        return await self._call(namespace_path, function_name, kwargs)

    async def _call(
        self, ns: str, name: str, kwargs: dict[str, Any], is_cancel: bool = False
    ) -> Any:
        actor, chan = self.actor, self._chan
        ctx = actor._open_call(chan, f'{ns}:{name}', self)
        try:
            await chan.send(Start(ctx.cid, ns, name, kwargs, actor._aid.uid))
            while True:
                msg = await ctx._next_msg()
                if type(msg) is Return:
                    try:
                        return decode_any(msg.pld)  # no payload type applies to a call
                    except DecodeError:
                        return ctx._pld_rx.decode_pld(msg, ctx)  # raises what it means
                if type(msg) is CancelAck:
                    return msg.pld
                if type(msg) is StartAck and msg.functype == 'asyncgen':
                    await self._call_off(ctx)
                    raise TypeError(
                        f'{ns}:{name} must be a non-streaming async function'
                    )
        except (trio.Cancelled, KeyboardInterrupt):
            if not is_cancel and not ctx._dialog.is_final:
                await self._call_off(ctx)
            raise
        finally:
            ctx._end()
            actor._forget_context(ctx)

    async def _call_off(self, ctx: Context) -> None:
        """Cancel the remote task of a call whose caller was cancelled."""
        with trio.move_on_after(CANCEL_CALL_TIMEOUT, shield=True):
            try:
                await self._cancel_task(ctx.cid)
            except GONE:
                log.transport('%s: no cancel request sent, peer gone', ctx.cid)

    async def _cancel_task(self, cid: str) -> None:
        await self._call('self', '_cancel_task', {'cid': cid}, is_cancel=True)

    open_context = open_context_from_portal

    # -- the main task of a run-once actor --------------------------------------

    async def _submit_for_result(self, ns: str, name: str, kwargs: Any) -> None:
        """Start the peer's main task; return when it is scheduled."""
        self._submitted = trio.Event()
        try:
            self._main = await self.actor.start_remote_task(
                self._chan, nsf=f'{ns}:{name}', kwargs=kwargs, portal=self
            )
        finally:
            self._submitted.set()

    def _forget_main(self) -> None:
        """Nothing more will come for the main task; its outcome stays with us."""
        main = self._main
        if main is not None:
            peer = self._chan.aid
            main._peer_lost(
                lost_peer(None if peer is None else peer.uid, self._chan.raddr)
            )
            self.actor._forget_context(main)

    async def wait_for_result(self, hide_tb: bool = True) -> Any:
        """
        Wait for the result of the peer's main task.

        Works after the nursery's block, too; later calls give the same.

        Returns:
            The result; the class `NoResult` if the actor has no main task.
        Raises:
            RemoteActorError: The task failed.  The nursery then will not raise it
                again.
            TransportClosed: The connection was lost first.
        """
        try:
            result = await self._pull_result()
        except BaseException as err:
            if self._main is not None and err is self._main._remote_error:
                self._note_taken()
            raise
        self._note_taken()
        return result

    def _note_taken(self) -> None:
        """The user has seen what the main task came to."""
        main = self._main
        if main is not None and main.has_outcome and self._taken is not None:
            self._taken()

    async def _pull_result(self) -> Any:
        """Wait for the main task on behalf of the nursery, not of the user."""
        if self._chan._exc is not None:
            raise self._chan._exc
        if self._submitted is not None:
            await self._submitted.wait()
        if self._main is None:
            log.warning('%r has no main task: was it started with start_actor()?', self)
            return NoResult
        return await self._main.wait_for_result()

    async def result(self, *args: Any, **kwargs: Any) -> Any:
        """Do what `wait_for_result()` does (legacy spelling)."""
        log.warning('`Portal.result()` is now `Portal.wait_for_result()`')
        return await self.wait_for_result(*args, **kwargs)

    # -- the peer as a whole ----------------------------------------------------

    async def cancel_actor(
        self, timeout: float | None = None, raise_on_timeout: bool = False
    ) -> bool:
        """
        Ask the peer to cancel its whole runtime, and wait for the ack.

        The wait is shielded and ends by ack, lost channel or deadline.  The process
        may outlive the ack.

        Args:
            timeout: Seconds to wait; `None` or 0 means `Portal.cancel_timeout`.
            raise_on_timeout: Raise at the deadline instead of returning `False`.
        Returns:
            `True` on ack; `False` if the peer was gone, left or stayed silent.
        Raises:
            ActorTooSlowError: Deadline passed; `.uid` is the peer's `(name, uuid)`.
        """
        chan = self._chan
        if not chan.connected():
            log.cancel('%r: already disconnected, no cancel request sent', self)
            await trio.lowlevel.checkpoint_if_cancelled()
            return False
        chan._cancel_called = True
        self.actor._child_is_asked(chan)
        limit = timeout or self.cancel_timeout
        with trio.move_on_after(limit, shield=True):
            try:
                await self._call('self', 'cancel', {}, is_cancel=True)
            except GONE as err:
                log.cancel('%r: gone before it could confirm: %s', self, err)
                return False
            return True
        peer = chan.aid
        uid = peer.uid if peer is not None else ('<unknown>', '')
        late = ActorTooSlowError(uid, limit)
        if raise_on_timeout:
            raise late
        log.cancel('%s', late)
        return False

    async def aclose(self) -> None:
        """Close the streams opened through this portal; the channel stays open."""
        for stream in list(self._streams):
            try:
                await stream.aclose()
            except trio.ClosedResourceError:
                log.runtime('%r was closed already', stream)
        self._streams.clear()

    @asynccontextmanager
    async def open_stream_from(
        self, async_gen_func: Callable[..., Any], **kwargs: Any
    ) -> AsyncIterator[MsgStream]:
        """
        Receive what a remote async generator yields (legacy; one way).

        Leaving the block cancels the remote task, shielded, for up to 0.616 s.

        Args:
            async_gen_func: An async generator function, or one with
                `@tractor.stream`.
            **kwargs: Its arguments.
        Raises:
            TypeError: It is neither.
        """
        name = getattr(async_gen_func, '__qualname__', repr(async_gen_func))
        try:
            kind = kind_of(async_gen_func)
        except TypeError:
            kind = Kind.PLAIN
        if kind not in (Kind.GENERATOR, Kind.STREAM):
            raise TypeError(f'{name} must be an async generator function')
        ctx = await self.actor.start_remote_task(
            self._chan,
            nsf=NamespacePath(f'{async_gen_func.__module__}:{async_gen_func.__name__}'),
            kwargs=kwargs,
            portal=self,
        )
        stream = MsgStream(ctx, ctx._rx_chan)
        ctx._stream, ctx._stream_opened = stream, True
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            stream._end()
            try:
                await ctx.cancel()
            except (*GONE,):
                log.transport('%s: no cancel request sent, peer gone', ctx.cid)
            ctx._end()
            self.actor._forget_context(ctx)


@asynccontextmanager
async def open_portal(
    channel: Channel,
    tn: trio.Nursery | None = None,
    start_msg_loop: bool = True,
    shield: bool = False,
) -> AsyncIterator[Portal]:
    """
    Give a portal over a channel that no server handles.

    Does the handshake if it was not done yet, and reads the channel in the background
    while the block is open.

    Args:
        channel: A connected channel; the caller closes it.
        tn: Where the background task runs; by default a nursery of its own.
        start_msg_loop: `False` if somebody reads the channel already.
        shield: Whether a cancellation from outside leaves the reading alone.
    Raises:
        TransportClosed: The handshake failed, or the peer left it.
    """
    actor = current_actor()
    if channel.aid is None:
        await channel._do_handshake(aid=actor.aid)
    if not start_msg_loop:
        portal = Portal(channel)
        yield portal
        await portal.aclose()
        return
    if tn is not None:
        async with _reading(tn, channel, shield):
            portal = Portal(channel)
            yield portal
            await portal.aclose()
        return
    try:
        async with trio.open_nursery() as own_tn, _reading(own_tn, channel, shield):
            portal = Portal(channel)
            yield portal
            await portal.aclose()
    except BaseExceptionGroup as group:
        raise strip(group) from None


@asynccontextmanager
async def _reading(
    tn: trio.Nursery, channel: Channel, shield: bool
) -> AsyncIterator[None]:
    """Serve a channel in a task of the nursery until the block is left."""
    scopes: list[trio.CancelScope] = []

    async def read(task_status: trio.TaskStatus[None]) -> None:
        class Started:  # a `start()` that Ctrl-C leaves returns no scope
            def started(self, scope: trio.CancelScope) -> None:
                scopes.append(scope)
                task_status.started()

        await process_messages(channel, shield, Started())  # type: ignore[arg-type]

    try:
        await tn.start(read)
        yield
    finally:
        for scope in scopes:
            scope.cancel()


# Only a registrar stands in for a portal to itself.
__getattr__ = lazy_exports(
    __name__, {'LocalPortal': 'tractor.runtime._local_portal:LocalPortal'}
)[0]
