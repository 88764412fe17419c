"""
The actor: one process's identity, its open contexts and running tasks.

An `Actor` answers for what its process does on behalf of others.  It owns the table
of open contexts, the table of running requests and the cancellation of its runtime;
`_boot` brings it up and down, `_msgloop` feeds it, `ipc/_server` connects its peers.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import uuid as _uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from .._boxing import lost_peer
from .._context import Context
from .._exceptions import (
    ContextCancelled,
    MsgTypeError,
    RuntimeFailure,
    TransportClosed,
    Uid,
)
from .._protocol.dialog import Stage
from .._protocol.framing import FrameTooLong
from ..discovery._addr import wrap_address
from ..log import get_logger
from ..msg.ptr import NamespacePath
from ..msg.types import Aid, CancelAck, SpawnSpec, Start, StartAck
from . import _hooks, _state
from ._endpoint import files_of, folders_of, look_up
from ._msgloop import FAREWELL_CID, process_messages, send_if_reachable
from ._portal import Portal

if TYPE_CHECKING:
    from ..discovery._addr import Address, UnwrappedAddress
    from ..ipc._chan import Channel
    from ..ipc._server import Server

log = get_logger()

# The only methods that a peer may name with the namespace 'self'.
_ENDPOINTS: Final = frozenset(
    {
        'find_actor',
        'find_actors',
        'wait_for_actor',
        'get_registry',
        'register_actor',
        'unregister_actor',
        'delete_addr',
    }
)


class Actor:
    """
    The runtime of one process.  Made by `open_root_actor()` or by a parent actor.

    Args:
        name: Any text; need not be unique.
        uuid: Makes it unique.
        enable_modules: Names of the modules whose functions it serves; each is
            imported here already, to find its file.
        loglevel: Its level, kept as given.
        registry_addrs: Where it registers.
        spawn_method: The backend that made it.
        inherit_parent_main: Whether its process replays this one's `__main__`.
    Raises:
        ModuleNotFoundError: A module cannot be imported; so for every other error
            that importing it raises.
    """

    is_registrar: bool = False
    msg_buffer_size: int = 64
    # Of the process, whose actor closes it when it ends.
    lifetime_stack: ClassVar[ExitStack] = ExitStack()

    def __init__(
        self,
        name: str,
        uuid: str,
        *,
        enable_modules: list[str] | None = None,
        loglevel: str | None = None,
        registry_addrs: list[Address] | None = None,
        spawn_method: str | None = None,
        inherit_parent_main: bool = True,
        arbiter_addr: UnwrappedAddress | None = None,
    ) -> None:
        if arbiter_addr is not None:
            warnings.warn(
                '`Actor(arbiter_addr=)` is deprecated, use `registry_addrs=[...]`',
                DeprecationWarning,
                stacklevel=2,
            )
            registry_addrs = [wrap_address(arbiter_addr)]
        self._aid = Aid(
            name=name, uuid=uuid, pid=os.getpid(), is_registrar=self.is_registrar
        )
        self.enable_modules: dict[str, str] = files_of(enable_modules or ())
        self.loglevel = loglevel
        self._spawn_method = spawn_method
        self._subint_gil: _state.GilMode | None = None
        self._inherit_parent_main = inherit_parent_main
        self._parent_main_data: dict[str, Any] = {}
        self._infected_aio = False
        self._spawn_spec: SpawnSpec | None = None
        self._registry_addrs: list[Address] = []
        if registry_addrs:
            self.reg_addrs = [addr.unwrap() for addr in registry_addrs]

        self._root_tn: trio.Nursery | None = None
        self._service_tn: trio.Nursery = None  # type: ignore[assignment]
        self._ipc_server: Server | None = None
        self._parent_chan: Channel | None = None
        self._parent_loop: trio.CancelScope | None = None
        self._task: trio.lowlevel.Task | None = None
        self._run: trio.lowlevel.TrioToken | None = None  # None until it boots

        # A uuid whose last part counts: unique to this actor, and fast to make.
        self._cid_prefix = str(_uuid.uuid4())[:24]
        self._cids = itertools.count(1)
        self._contexts: dict[tuple[Channel, str], Context] = {}
        self._rpc_tasks: dict[tuple[Channel, str], tuple[Context, Any, trio.Event]] = {}
        self._no_rpc_tasks = trio.Event()
        self._no_rpc_tasks.set()
        self._loops: dict[Channel, trio.Event] = {}
        self._early_requests: list[tuple[Channel, Start]] | None = None
        self._actoruid2nursery: dict[Uid, Any] = {}

        self._had_first_request = False

        self._cancel_called = False
        self._cancel_called_by: Aid | None = None
        self._cancel_complete = trio.Event()
        # Requests that wait in `cancel()`, for which nobody may wait there.
        self._ending: set[Context] = set()
        self._one_more_ends = trio.Event()

    @property
    def _ongoing_rpc_tasks(self) -> trio.Event:
        """An event that is set exactly while no request runs; made when asked for."""
        if self._rpc_tasks and self._no_rpc_tasks.is_set():
            self._no_rpc_tasks = trio.Event()
        return self._no_rpc_tasks

    # -- identity -------------------------------------------------------------

    @property
    def aid(self) -> Aid:
        """Its identity; peers see the same."""
        return self._aid

    @property
    def name(self) -> str:
        """Its name."""
        return self._aid.name

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._aid.pid

    @property
    def uid(self) -> Uid:
        """Its `(name, uuid)` (deprecated; use `.aid.uid`)."""
        warnings.warn(
            '`Actor.uid` is deprecated, use `Actor.aid.uid`',
            DeprecationWarning,
            stacklevel=2,
        )
        return self._aid.uid

    @property
    def is_arbiter(self) -> bool:
        """Whether it keeps the registry (deprecated; use `.is_registrar`)."""
        warnings.warn(
            '`Actor.is_arbiter` is deprecated, use `Actor.is_registrar`',
            DeprecationWarning,
            stacklevel=2,
        )
        return self.is_registrar

    @property
    def is_root(self) -> bool:
        """Whether its process is the root of the tree."""
        return _state.is_root_process()

    def is_infected_aio(self) -> bool:
        """Whether trio runs here as a guest of asyncio."""
        return self._infected_aio

    # -- addresses ------------------------------------------------------------

    @property
    def ipc_server(self) -> Server | None:
        """Its listeners and connected peers; `None` before it listens."""
        return self._ipc_server

    @property
    def accept_addrs(self) -> list[UnwrappedAddress]:
        """The plain addresses it listens on."""
        return [] if self._ipc_server is None else self._ipc_server.accept_addrs

    @property
    def accept_addr(self) -> UnwrappedAddress:
        """The first of them."""
        return self.accept_addrs[0]

    @property
    def registry_addrs(self) -> list[Address]:
        """The addresses of its registrars."""
        return self._registry_addrs

    @property
    def reg_addrs(self) -> list[UnwrappedAddress]:
        """The same, plain."""
        return [addr.unwrap() for addr in self._registry_addrs]

    @reg_addrs.setter
    def reg_addrs(self, addrs: Iterable[UnwrappedAddress]) -> None:
        found = [wrap_address(addr) for addr in addrs]
        if not found:
            log.warning('an empty list of registry addresses is ignored')
            return
        self._registry_addrs = found
        _state._runtime_vars['_registry_addrs'] = self.reg_addrs

    def get_parent(self) -> Portal:
        """Return a portal to the parent actor; the root has none."""
        assert self._parent_chan is not None, 'the root actor has no parent'
        return Portal(self._parent_chan)

    # -- contexts -------------------------------------------------------------

    def get_context(
        self,
        chan: Channel,
        cid: str,
        nsf: NamespacePath | str,
        msg_buffer_size: int | None = None,
        allow_overruns: bool = False,
    ) -> Context:
        """Return the called side of a context, making it if it is new."""
        ctx = self._contexts.get((chan, cid))
        if ctx is None:
            ctx = self._contexts[(chan, cid)] = Context(
                chan,
                cid,
                self,
                nsf,
                msg_buffer_size or self.msg_buffer_size,
                allow_overruns,
                Stage.SERVING,
            )
        return ctx

    def _open_call(
        self,
        chan: Channel,
        nsf: NamespacePath | str,
        portal: Portal,
        msg_buffer_size: int | None = None,
        allow_overruns: bool = False,
    ) -> Context:
        """Make the calling side of a new context."""
        if chan._lost is not None:
            peer = None if chan.aid is None else chan.aid.uid
            raise lost_peer(peer, chan.raddr, chan._lost)
        cid = f'{self._cid_prefix}{next(self._cids):012x}'
        ctx = self._contexts[(chan, cid)] = Context(
            chan,
            cid,
            self,
            nsf,
            msg_buffer_size or self.msg_buffer_size,
            allow_overruns,
        )
        ctx._portal = portal
        return ctx

    def _forget_context(self, ctx: Context) -> None:
        self._contexts.pop((ctx.chan, ctx.cid), None)

    async def start_remote_task(
        self,
        chan: Channel,
        nsf: NamespacePath | str,
        kwargs: dict[str, Any],
        portal: Portal | None = None,
        msg_buffer_size: int | None = None,
        allow_overruns: bool = False,
        load_nsf: bool = False,
        ack_timeout: float = float('inf'),
    ) -> Context:
        """
        Start a task of the peer; return its context when it is scheduled.

        Args:
            chan: The channel to the peer.
            nsf: `'module:function'`.
            kwargs: The function's arguments.
            portal: The portal on whose behalf.
            load_nsf: Resolve the function here first, to fail early.
            ack_timeout: Seconds to wait for the ack.
        Raises:
            RemoteActorError: It could not be scheduled.
            TransportClosed: The connection is gone.
            trio.TooSlowError: No ack came in time.
        """
        if load_nsf:
            NamespacePath(nsf).load_ref()
        ns, _, func = str(nsf).rpartition(':')
        portal = Portal(chan) if portal is None else portal
        ctx = self._open_call(chan, nsf, portal, msg_buffer_size, allow_overruns)
        try:
            with trio.fail_after(ack_timeout):
                ctx._awaits_ack = True
                await chan.send(Start(ctx.cid, ns, func, kwargs, self._aid.uid))
                ack = await ctx._wait_for_ack()
            ctx._remote_func_type = ack.functype
        except BaseException as err:
            unsent = isinstance(err, FrameTooLong | MsgTypeError | TransportClosed)
            if not (unsent or ctx._dialog.is_final):
                await portal._call_off(ctx)
            ctx._end()
            self._forget_context(ctx)
            raise
        return ctx

    def _get_rpc_func(self, ns: str, name: str) -> Callable[..., Any]:
        """Return a function that a peer may call."""
        if ns != 'self':
            return look_up(self.enable_modules, ns, name, self._aid.name)
        if name not in _ENDPOINTS:
            raise AttributeError(f'the runtime of {self.name!r} has no {name!r}')
        func: Callable[..., Any] = getattr(self, name)
        return func

    def _serves_main_task(self, chan: Channel) -> bool:
        """Whether this is the first request of the parent, who may wait for its ack."""
        first = chan is self._parent_chan and not self._had_first_request
        self._had_first_request |= first
        return first

    def _refusal(self) -> BaseException | None:
        """Return why no request can be served any more, or `None`."""
        by = self._cancel_called_by
        if by is not None:
            return ContextCancelled(
                f'actor {self._aid.uid!r} is being cancelled by {by.uid!r}',
                boxed_type=ContextCancelled,
                canceller=by.uid,
            )
        if self._service_tn.cancel_scope.cancel_called:
            return RuntimeFailure(f'actor {self._aid.uid!r} has ended its services')
        return None

    def _send_soon(self, chan: Channel, msg: Any) -> None:
        """Send from a task of its own: the caller must not wait for a slow peer."""
        tn = self._root_tn
        if tn is not None:
            tn.start_soon(send_if_reachable, chan, msg)

    @trio.lowlevel.enable_ki_protection
    def load_modules(self) -> None:
        """Import what this actor serves, the parent's `__main__` first."""
        if self._parent_main_data:
            from ..spawn import _mp_fixup_main  # only in a child that inherits it

            _mp_fixup_main.replay(self._parent_main_data)
        for name, path in self.enable_modules.items():
            for folder in folders_of(name, path):
                if folder not in sys.path:
                    sys.path.append(folder)
            if name == '__main__' and '__mp_main__' in sys.modules:
                continue
            importlib.import_module(name)

    # -- peers ----------------------------------------------------------------

    async def _serve_peer(self, chan: Channel) -> None:
        """Serve a connected peer until its channel ends."""
        await process_messages(chan)

    async def _loop_ended(self, chan: Channel) -> None:
        """Wait until everything that came over a channel was read."""
        loop = self._loops.get(chan)
        if loop is not None:
            await loop.wait()

    def _peer_gone(self, chan: Channel) -> None:
        """A peer's connection has ended."""
        log.runtime('peer left: %s', chan.aid)

    def _nursery_of(self, chan: Channel) -> Any:
        return None if chan.aid is None else self._actoruid2nursery.get(chan.aid.uid)

    def _child_is_asked(self, chan: Channel) -> None:
        """Somebody here asks the peer to end: if it is a child, that is no death."""
        nursery = self._nursery_of(chan)
        if nursery is not None and chan.aid is not None:
            nursery._child_asked(chan.aid.uid)

    def _child_says_farewell(self, chan: Channel) -> None:
        """The peer ends in order; if it is a child, its nursery expects that now."""
        nursery = self._nursery_of(chan)
        if nursery is not None and chan.aid is not None:
            nursery._child_farewell(chan.aid.uid)
            self._child_has_left(chan.aid.uid)

    def _child_is_cut_off(self, chan: Channel, by_us: bool) -> None:
        """A channel has ended: if it is a child's, its nursery has to know."""
        nursery = self._nursery_of(chan)
        if nursery is not None and chan.aid is not None:
            nursery._child_lost(chan, by_us)

    def _child_has_left(self, uid: Uid) -> None:
        """A child ends, or is gone; a registrar drops it from its table."""

    def _child_failed(self, chan: Channel, error: BaseException) -> bool:
        """Give a child's runtime error to its nursery; `False` if it has none."""
        nursery = self._nursery_of(chan)
        if nursery is None or chan.aid is None:
            return False
        nursery._child_runtime_failed(chan.aid.uid, error)
        return True

    # -- requests to the runtime itself -----------------------------------------

    def _runtime_endpoint(self, chan: Channel, msg: Start) -> Callable[[], None] | None:
        """Return what serves a cancel request, or `None` for any other request."""
        if msg.func == '_cancel_task':
            return partial(self._cancel_task, chan, msg)
        if msg.func == 'cancel':
            return partial(self._start_internal, self._cancel_on_request, chan, msg)
        return None

    def _start_internal(self, func: Callable[..., Any], *args: Any) -> None:
        assert self._root_tn is not None
        self._root_tn.start_soon(func, *args)

    def _cancel_task(self, chan: Channel, msg: Start) -> None:
        """Cancel one task for the channel that started it; ack when it has ended."""
        entry = self._rpc_tasks.get((chan, msg.kwargs.get('cid', '')))
        if entry is None:  # it has ended already
            self._start_internal(self._ack_cancel, chan, msg.cid, None)
            return
        ctx, _func, done = entry
        ctx._canceller = None if chan.aid is None else chan.aid.uid
        ctx._cancel_msg = msg
        if ctx._scope is not None:
            ctx._scope.cancel()
        self._start_internal(self._ack_cancel, chan, msg.cid, done)

    async def _ack_cancel(
        self, chan: Channel, cid: str, done: trio.Event | None
    ) -> None:
        with trio.CancelScope(shield=True):
            if done is not None:
                await done.wait()
            await send_if_reachable(chan, StartAck(cid=cid, functype='asyncfunc'))
            await send_if_reachable(chan, CancelAck(cid=cid, pld=True))

    async def _cancel_on_request(self, chan: Channel, msg: Start) -> None:
        with trio.CancelScope(shield=True):
            first = not self._cancel_called
            await self._stop_serving(chan.aid)
            await self._ack_cancel(chan, msg.cid, None)
            if first:
                self._release()

    # -- cancellation -----------------------------------------------------------

    @property
    def cancel_called(self) -> bool:
        """Whether its runtime was asked to end."""
        return self._cancel_called

    @property
    def cancel_complete(self) -> bool:
        """Whether its runtime has ended on request."""
        return self._cancel_complete.is_set()

    @property
    def cancel_caller(self) -> Aid | None:
        """Who asked; itself included."""
        return self._cancel_called_by

    async def cancel(self, req_chan: Channel | None) -> bool:
        """
        End this actor's runtime: its tasks, its listeners, its connections.

        Shielded; waits until every task has ended.  Each open context ends with a
        `ContextCancelled` that names the requester.  The body of a root actor is not
        touched.

        Args:
            req_chan: Whose request it is; `None` means its own.
        """
        with trio.CancelScope(shield=True):
            first = not self._cancel_called
            own = _state._ctxvar_Context.get()
            if own is not None:
                self._ending.add(own)
                self._one_more_ends.set()
                self._one_more_ends = trio.Event()
            try:
                await self._stop_serving(None if req_chan is None else req_chan.aid)
            finally:
                # An impatient Ctrl-C cuts the wait short, and nobody would come again.
                if first:
                    self._release()
            await self._cancel_complete.wait()
        return True

    async def _stop_serving(self, requester: Aid | None) -> None:
        """Cancel all tasks and wait for them; take no more connections."""
        if not self._cancel_called:
            self._cancel_called = True
            self._cancel_called_by = requester or self._aid
            log.cancel('runtime cancelled by %s', self._cancel_called_by.reprol())
        await _hooks.wait_for_debugger()
        await self.cancel_rpc_tasks(self._cancel_called_by or self._aid)
        if self._ipc_server is not None:
            await self._ipc_server._close_listeners()

    def _release(self) -> None:
        """End what still runs; `_boot` then lets go of the connections."""
        if self._service_tn is not None:
            self._service_tn.cancel_scope.cancel()
        self._cancel_complete.set()

    async def cancel_rpc_tasks(
        self, req_aid: Aid, parent_chan: Channel | None = None
    ) -> None:
        """
        Cancel running requests and wait until they have ended.

        Args:
            req_aid: In whose name.
            parent_chan: Only those that came over this channel; `None` means all.
        """
        waits = []
        for (chan, _cid), (ctx, _func, done) in list(self._rpc_tasks.items()):
            if parent_chan is not None and chan is not parent_chan:
                continue
            if ctx._canceller is None:
                ctx._canceller = req_aid.uid
            if ctx._scope is not None:
                ctx._scope.cancel()
            if ctx is not _state._ctxvar_Context.get():  # not for whoever calls this
                waits.append((ctx, done))
        for ctx, done in waits:
            await self._ended(ctx, done)

    async def _ended(self, ctx: Context, done: trio.Event) -> None:
        """Wait until a request has ended, or waits itself for the end of all."""
        while not done.is_set() and ctx not in self._ending:
            async with trio.open_nursery() as tn:
                for event in (done, self._one_more_ends):
                    tn.start_soon(_wait_and_cancel, event, tn.cancel_scope)

    def cancel_soon(self) -> None:
        """Schedule the end of the runtime and then of everything in this process."""
        log.cancel('`Actor.cancel_soon()` was called!')
        self._start_internal(self._cancel_all)

    async def _cancel_all(self) -> None:
        await self.cancel(None)
        if self._root_tn is not None:
            self._root_tn.cancel_scope.cancel()

    async def _say_farewell(self) -> None:
        """Tell the parent that this end was asked for."""
        chan = self._parent_chan
        if chan is not None and chan.connected():
            await send_if_reachable(chan, CancelAck(cid=FAREWELL_CID, pld=True))

    # -- rendering ----------------------------------------------------------------

    @property
    def repr_state(self) -> str:
        """One word for where it stands."""
        if self._cancel_complete.is_set():
            return 'cancelled'
        if self._cancel_called:
            return 'cancelling'
        return 'up' if self._ipc_server is not None else 'booting'

    def pformat(self) -> str:
        """Several lines for a report."""
        return (
            f'<{type(self).__name__}(\n'
            f' |_aid: {self._aid.reprol(sin_uuid=False)}\n'
            f' |_state: {self.repr_state}\n'
            f' |_accepts: {self.accept_addrs}\n'
            f' |_tasks: {len(self._rpc_tasks)}\n'
            f' |_contexts: {len(self._contexts)}\n'
            f')>'
        )

    __repr__ = pformat

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what a child of `multiprocessing` needs to start as this actor."""
        return (_rebuild, (self._aid.name, self._aid.uuid, self.loglevel))


async def _wait_and_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _rebuild(name: str, uuid: str, loglevel: str | None) -> Actor:
    return Actor(name=name, uuid=uuid, loglevel=loglevel)


def __getattr__(name: str) -> Any:
    # Offered from above, at first use: they build on this module.
    if name == 'async_main':
        from ._boot import async_main

        return async_main
    if name in ('Registrar', 'Arbiter'):
        from ..discovery._registry import Registrar

        return Registrar
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
