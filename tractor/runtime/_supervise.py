"""
`ActorNursery`: owns actors the way a trio nursery owns tasks.

`_protocol.supervise.Supervision` decides; this module feeds it with what happens and
does what it says: interrupt the body, ask the children to end, wait, raise.  Each child
is a task of its own (`spawn/_spawn`), shielded from cancellation, so that children stay
alive while the body unwinds and end only when they are asked to.
"""

from __future__ import annotations

import inspect
import uuid as _uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from .._exceptions import (
    ActorDied,
    ActorUnkillable,
    ContextCancelled,
    RuntimeFailure,
    Uid,
)
from .._protocol.escalate import NURSERY_TIMEOUT, Escalation, Step
from .._protocol.supervise import Join, Supervision
from ..discovery._addr import get_address_cls, wrap_address
from ..discovery._rank import prefer_addr
from ..discovery._register import unregister_actor
from ..log import get_logger, get_loglevel
from ..spawn import _spawn
from ..trionics._beg import strip
from . import _hooks, _state
from ._endpoint import check_name
from ._msgloop import ProtocolViolation
from ._portal import Portal
from ._runtime import Actor

if TYPE_CHECKING:
    from ..discovery._addr import UnwrappedAddress
    from ..ipc._chan import Channel

log = get_logger()

_shutdown_msg: Final = 'Actor-runtime-shutdown'


class ActorNursery:
    """
    Owns the actors started through it; `open_nursery()` makes one.

    Attributes:
        exited: Set when the block is left, after all children are reaped.
    """

    def __init__(self, actor: Actor, tn: trio.Nursery) -> None:
        self._actor = actor
        self._da_tn = tn
        self._body_scope = trio.CancelScope()
        self._sup = Supervision()
        self._changed = trio.Event()
        self._waits: dict[Uid, Callable[[], Awaitable[Any]]] = {}
        self._killed: set[Uid] = set()
        self._farewells: set[Uid] = set()
        self._children: dict[Uid, tuple[Actor, Any, Portal | None]] = {}
        self._cancel_after_result_on_exit: set[Portal] = set()
        self._join_procs = trio.Event()
        self._cancel_called = False
        self._cancelled_caught = False
        self._joined = False
        self._at_least_one_child_in_debug = False
        self._implicit_runtime_started = False
        self.exited = trio.Event()

    @property
    def errors(self) -> dict[Uid, BaseException]:
        """Failures by uid; the body's own error is under this actor's."""
        found = dict(self._sup.errors)
        if self._sup.own_error is not None:
            found[self._actor.aid.uid] = self._sup.own_error
        return found

    @property
    def cancel_called(self) -> bool:
        """Whether `cancel()` was called, by the user or by supervision."""
        return self._cancel_called

    @property
    def cancelled_caught(self) -> bool:
        """Whether a cancel ended all children in order."""
        return self._cancelled_caught

    @property
    def cancelled(self) -> bool:
        """The same as `cancel_called` (deprecated)."""
        warnings.warn(
            '`ActorNursery.cancelled` is deprecated, use `.cancel_called`',
            DeprecationWarning,
            stacklevel=2,
        )
        return self._cancel_called

    def __repr__(self) -> str:
        names = ', '.join(uid[0] for uid in self._children)
        return f'<ActorNursery of {self._actor.aid.reprol()}: {names or "no children"}>'

    # -- starting -------------------------------------------------------------------

    async def start_actor(
        self,
        name: str,
        *,
        bind_addrs: list[UnwrappedAddress] | None = None,
        rpc_module_paths: list[str] | None = None,
        enable_transports: list[str] | None = None,
        enable_modules: list[str] | None = None,
        loglevel: str | None = None,
        debug_mode: bool | None = None,
        infect_asyncio: bool = False,
        inherit_parent_main: bool = True,
        nursery: trio.Nursery | None = None,
        proc_kwargs: dict[str, Any] | None = None,
        start_method: str | None = None,
        gil: str | None = None,
    ) -> Portal:
        """
        Start an actor that serves until it is cancelled.

        Returns when it has connected back and was sent its orders; its registration is
        not waited for (see `wait_for_actor()`).  Cancelled, it kills the new process
        and waits for that.

        Args:
            name: Any text; need not be unique.
            bind_addrs: Where it listens; by default one random address for each
                transport.
            enable_transports: Transports it listens on, `'tcp'` or `'uds'`; by default
                those of this tree.
            enable_modules: Names of the modules whose functions it serves.
            loglevel: Its log level; by default this actor's.
            debug_mode: Not in this release.
            infect_asyncio: Not in this release.
            inherit_parent_main: Whether the functions of this process's `__main__`
                are available there.
            proc_kwargs: Passed on to `trio.lowlevel.open_process()`.
            start_method: Its spawn backend; by default that of this tree.
            gil: For a sub-interpreter: `'own'`, `'shared'`, or `'auto'`, its own unless
                a module that it serves refuses to be loaded there; by default what
                the root chose with `subint_gil`.
        Raises:
            ModuleNotFoundError: A module cannot be imported; so for every other error
                that importing one raises, before any process exists.
            ActorFailure: The process ended before it had connected back.
            ActorUnkillable: It was cancelled while it started, and cannot be stopped.
            RuntimeFailure: This nursery is over or being cancelled, or an option
                cannot work.
            RuntimeError: This interpreter cannot run that backend.
            ValueError: There is no such backend or mode.
        """
        if rpc_module_paths:
            warnings.warn(
                '`rpc_module_paths` is deprecated, use `enable_modules`',
                DeprecationWarning,
                stacklevel=2,
            )
        if not isinstance(name, str):
            raise TypeError(f'the name of an actor is a str, not {name!r}')
        _refuse_missing_features(debug_mode, infect_asyncio)
        if debug_mode is not None:
            self._at_least_one_child_in_debug = True
        if self._cancel_called or self._joined:
            why = 'is over' if self._joined else 'is being cancelled'
            raise RuntimeFailure(f'actor {name!r} cannot be started: its nursery {why}')
        modules = [*(enable_modules or ()), *(rpc_module_paths or ())]
        subactor = Actor(
            name=name,
            uuid=str(_uuid.uuid4()),
            enable_modules=list(dict.fromkeys(modules)),
            loglevel=loglevel or self._actor.loglevel or get_loglevel(),
            spawn_method=_spawn.choose(start_method),
            inherit_parent_main=inherit_parent_main,
        )
        subactor._subint_gil = _checked_gil(gil, subactor)
        rtvars = _inherited_vars(enable_transports)
        tn = nursery or self._da_tn
        portal: Portal
        self._sup.start_begun(subactor.aid.uid)
        try:
            portal = await tn.start(
                partial(
                    _spawn.new_proc,
                    name,
                    self,
                    subactor,
                    self._sup.errors,
                    _plain(bind_addrs),
                    _parent_addr(self._actor),
                    rtvars,
                    infect_asyncio=infect_asyncio,
                    proc_kwargs=dict(proc_kwargs or {}),
                )
            )
        finally:
            self._sup.start_over(subactor.aid.uid)
            self._notify()
        return portal

    async def run_in_actor(
        self,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        bind_addrs: list[UnwrappedAddress] | None = None,
        rpc_module_paths: list[str] | None = None,
        enable_modules: list[str] | None = None,
        loglevel: str | None = None,
        infect_asyncio: bool = False,
        inherit_parent_main: bool = True,
        proc_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Portal:
        """
        Start an actor for one task: run `fn(**kwargs)` there, then end it.

        Returns when the task is scheduled.  Its result comes from
        `Portal.wait_for_result()`, its error from there or from the nursery's end.

        Args:
            fn: Any async function of an importable module.
            name: The actor's name; that of `fn` by default.
            **kwargs: Its arguments; the names above are not passed on.
        Raises:
            TypeError: `fn` is not an async function, or it streams, or it is not what
                its module has under its name.
            RemoteActorError: The task could not be scheduled.  Otherwise as
                `start_actor()`.
        """
        fn_name = getattr(fn, '__name__', repr(fn))
        if not inspect.iscoroutinefunction(fn) or getattr(
            fn, '_tractor_stream_function', False
        ):
            raise TypeError(f'{fn_name} must be an async function that does not stream')
        check_name(fn, absent_is_wrong=True)
        portal = await self.start_actor(
            name or fn_name,
            bind_addrs=bind_addrs,
            enable_modules=[fn.__module__, *(enable_modules or rpc_module_paths or ())],
            loglevel=loglevel,
            infect_asyncio=infect_asyncio,
            inherit_parent_main=inherit_parent_main,
            proc_kwargs=proc_kwargs,
        )
        uid = _uid_of(portal)
        self._cancel_after_result_on_exit.add(portal)
        self._sup.runs_once(uid)
        portal._taken = partial(self._sup.result_taken, uid)
        try:
            await portal._submit_for_result(fn.__module__, fn_name, kwargs)
        except BaseException:
            # Nothing runs there: the caller has the error, the actor is of no use.
            self._cancel_after_result_on_exit.discard(portal)
            self._sup.result_taken(uid)
            self._sup.finished(uid)
            self._da_tn.start_soon(self._end_child, uid)
            raise
        return portal

    # -- events, called by the child tasks and the message loops -----------------------

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        if self._sup.must_cancel and not self._sup.body_over:
            self._body_scope.cancel()

    def _child_up(
        self,
        subactor: Actor,
        proc: Any,
        portal: Portal,
        wait: Callable[[], Awaitable[Any]],
    ) -> None:
        uid = subactor.aid.uid
        self._sup.added(uid)
        self._children[uid] = (subactor, proc, portal)
        self._waits[uid] = wait
        self._actor._actoruid2nursery[uid] = self
        if self._cancel_called:
            self._da_tn.start_soon(self._end_child, uid)

    async def _wait_to_reap(self, uid: Uid) -> None:
        """Wait until the block is over and it is known what this child is for."""
        await self._join_procs.wait()
        while uid in self._sup.starting:
            await self._changed.wait()

    def _child_asked(self, uid: Uid, reachable: bool = True) -> None:
        self._tell_delivered(uid)
        self._sup.asked(uid, reachable)

    def _portal_of(self, uid: Uid) -> Portal | None:
        return self._children[uid][2] if uid in self._children else None

    def _tell_delivered(self, uid: Uid) -> None:
        """An error that a child had before it is asked to end is its own."""
        if _delivered_error(self._portal_of(uid)) is not None:
            self._sup.delivered(uid)

    def _child_farewell(self, uid: Uid) -> None:
        self._farewells.add(uid)
        # A main task that was cancelled may be so by whoever asked the child to end.
        if not isinstance(_delivered_error(self._portal_of(uid)), ContextCancelled):
            self._tell_delivered(uid)
        self._sup.farewell(uid)

    def _child_lost(self, chan: Channel, by_us: bool) -> None:
        """A child without its parent's channel ends; whose doing that is matters."""
        uid = _chan_uid(chan)
        portal = self._portal_of(uid)
        if portal is not None and portal.chan is chan:
            self._sup.asked(uid, reachable=by_us)

    def _child_runtime_failed(self, uid: Uid, error: BaseException) -> None:
        if uid in self._sup.children:
            self._tell_delivered(uid)
            self._sup.failed(uid, error)
            self._notify()

    def _main_task_over(self, uid: Uid, error: BaseException | None) -> None:
        self._sup.finished(uid, error)
        self._notify()

    def _child_gone(self, uid: Uid, death: ActorDied | ActorUnkillable | None) -> None:
        """A child's process is reaped, or given up; `None` if it never came up."""
        _actor, _proc, portal = self._children.pop(uid, (None, None, None))
        if portal is not None:
            portal._forget_main()
        self._waits.pop(uid, None)
        self._actor._actoruid2nursery.pop(uid, None)
        self._actor._child_has_left(uid)
        if uid not in self._sup.children:
            return
        if uid not in self._farewells and not self._actor.is_registrar:
            # It had no time to take itself out of the registries.
            self._actor._start_internal(unregister_actor, self._actor, uid)
        error = _delivered_error(portal)
        # Its status is then no news: the user has seen what it stands for.
        told = self._sup.children[uid].taken and _is_exit(error)
        orderly = death is None or uid in self._killed or told
        died = self._sup.ended(uid, orderly)
        if isinstance(death, ActorUnkillable):
            # Worth telling whatever else went wrong, also with this child.
            died, death.__cause__ = True, self._sup.errors.pop(uid, None)
        if died and death is not None:
            if death.__cause__ is None:
                death.__cause__ = error or _violation(portal)
            log.error('%s', death)
            self._sup.died(uid, death)
        elif error is not None:
            self._sup.left(uid, error, isinstance(error, ContextCancelled))
        self._notify()

    # -- cancelling -----------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def cancel(self, hard_kill: bool = False) -> None:
        """
        End all children: ask each, then terminate those that do not confirm.

        Shielded, at most 3 s.  Returns when all have confirmed or were given up on,
        not when their processes are gone; leaving the nursery's block waits for that.
        The body itself is not cancelled.  May be called any number of times.

        Args:
            hard_kill: Send `SIGTERM` at once instead of asking.
        """
        self._cancel_called = True
        self._sup.cancel_started()
        with trio.move_on_after(NURSERY_TIMEOUT, shield=True) as cs:
            async with trio.open_nursery() as tn:
                for uid, (_actor, proc, _portal) in list(self._children.items()):
                    if hard_kill:
                        steps = Escalation(reachable=False)
                        steps.overdue()
                        self._terminate(uid, proc)
                        self._see_to_its_end(uid, steps)
                    else:
                        tn.start_soon(self._end_child, uid)
        if cs.cancelled_caught:
            log.error('%r: children did not end within %g s', self, NURSERY_TIMEOUT)
            for uid, (_actor, proc, _portal) in list(self._children.items()):
                self._terminate(uid, proc)
        self._join_procs.set()

    @trio.lowlevel.enable_ki_protection
    async def _end_child(self, uid: Uid) -> None:
        """Ask one child to end; return when it confirmed or is being terminated."""
        if uid not in self._children:
            return
        _actor, proc, portal = self._children[uid]
        assert portal is not None
        reachable = portal.chan.connected()
        self._child_asked(uid, reachable)
        steps = Escalation(reachable)
        with trio.CancelScope(shield=True):
            if reachable and await portal.cancel_actor():
                limit = steps.acked()
            elif reachable and portal.chan.connected():
                log.error(
                    'actor %r did not confirm within %g s',
                    uid[0],
                    portal.cancel_timeout,
                )
                await _hooks.wait_for_debugger()
                steps.overdue()
                self._terminate(uid, proc)
                limit = steps.deadline
            else:
                # Its connection broke: it may be ending by itself.
                steps = Escalation(reachable=False)
                limit = steps.deadline
        self._see_to_its_end(uid, steps, limit)

    def _see_to_its_end(
        self, uid: Uid, steps: Escalation, limit: float | None = None
    ) -> None:
        """Make sure in the background that a child's process does end."""
        if uid in self._children:
            self._da_tn.start_soon(
                self._escalate, uid, steps, steps.deadline if limit is None else limit
            )

    @trio.lowlevel.enable_ki_protection
    async def _escalate(self, uid: Uid, steps: Escalation, limit: float) -> None:
        if uid not in self._children:
            return
        subactor, proc, _portal = self._children[uid]
        wait = self._waits[uid]
        with trio.CancelScope(shield=True):
            while proc.poll() is None:
                with trio.move_on_after(limit):
                    await wait()
                if proc.poll() is not None:
                    return
                if steps.overdue() is Step.TERMINATE:
                    self._terminate(uid, proc)
                    limit = steps.deadline
                    continue
                self._killed.add(uid)
                await _spawn.hard_kill(proc, 0, subactor=subactor, wait_func=wait)

    def _terminate(self, uid: Uid, proc: Any) -> None:
        self._killed.add(uid)
        if proc.poll() is None:
            proc.terminate()

    # -- the end of the block ----------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _join(self, error: BaseException | None) -> None:
        """
        The body is over: see the children through to their end.

        A Ctrl-C comes at a checkpoint only, where it counts as an interrupted wait.
        """
        if error is not None or self._sup.must_cancel or self._cancel_called:
            await self._wait_for_debugger()
            self._collect_delivered()
        self._sup.body_ended(error)
        while True:
            step = self._sup.next_step()
            if step is Join.DONE:
                break
            try:
                if step is Join.CANCEL:
                    await self.cancel()
                    continue
                self._join_procs.set()
                with trio.CancelScope(shield=self._sup.cancelling):
                    await self._changed.wait()
            except BaseException as err:
                self._sup.join_cancelled(err, trio.Cancelled)
        self._joined = True
        self._join_procs.set()
        self._cancelled_caught = self._cancel_called and not self._sup.errors

    async def _wait_for_debugger(self) -> None:
        with trio.CancelScope(shield=True):
            await _hooks.wait_for_debugger()

    def _collect_delivered(self) -> None:
        """Errors of run-once children that had come, unseen, before the body failed."""
        for portal in self._cancel_after_result_on_exit:
            error = _delivered_error(portal)
            if error is not None:
                self._sup.collected(_uid_of(portal), error)


def _delivered_error(portal: Portal | None) -> BaseException | None:
    """Return the error of a run-once child's main task, if it has come."""
    main = None if portal is None else portal._main
    return None if main is None else main._remote_error


def _is_exit(error: BaseException | None) -> bool:
    """Whether a main task ended its own process."""
    return getattr(error, 'boxed_type_str', None) == 'SystemExit'


def _violation(portal: Portal | None) -> BaseException | None:
    """Return what a child had sent, if its connection was dropped for that."""
    lost = None if portal is None else portal.chan._lost
    source = None if lost is None else lost.src_exc
    return source if isinstance(source, ProtocolViolation) else None


def _chan_uid(chan: Channel) -> Uid:
    assert chan.aid is not None
    uid: Uid = chan.aid.uid
    return uid


def _uid_of(portal: Portal) -> Uid:
    return _chan_uid(portal.chan)


def _refuse_missing_features(debug_mode: bool | None, infect_asyncio: bool) -> None:
    """Say at the call that asks for it what this release does not have."""
    if debug_mode:
        raise RuntimeFailure('this release has no debugger: leave `debug_mode` off')
    if infect_asyncio:
        raise RuntimeFailure(
            'this release has no asyncio mode: leave `infect_asyncio` off'
        )


def _checked_gil(gil: str | None, subactor: Actor) -> _state.GilMode | None:
    """Return the GIL mode asked for, if the child is to live in a sub-interpreter."""
    if gil is None:
        return None
    if subactor._spawn_method != 'subint':
        raise ValueError(
            f'gil={gil!r} is for sub-interpreters, {subactor.aid.name!r} is started '
            f"with {subactor._spawn_method!r}; add start_method='subint'"
        )
    return _state.checked_gil_mode(gil)


def _inherited_vars(enable_transports: list[str] | None) -> dict[str, Any]:
    """Return the runtime variables that a child starts with."""
    rtvars = _state.get_runtime_vars()
    assert isinstance(rtvars, dict)
    rtvars['_is_root'] = False
    rtvars['_is_infected_aio'] = False
    if enable_transports is not None:
        if not enable_transports:
            raise RuntimeError(
                '`enable_transports` is empty: an actor needs at least one transport'
            )
        for key in enable_transports:
            get_address_cls(key)
        rtvars['_enable_tpts'] = list(enable_transports)
    return rtvars


def _plain(addrs: list[Any] | None) -> list[Any] | None:
    if addrs is None:
        return None
    return [tuple(wrap_address(addr).unwrap()) for addr in addrs]


def _parent_addr(actor: Actor) -> UnwrappedAddress:
    """Return the cheapest address of this actor for a child to connect to."""
    if not actor.accept_addrs:
        raise RuntimeFailure(
            f'{actor.aid.reprol()} does not listen (any more), so that it can have no '
            'children'
        )
    own_hosts = {str(host) for host, _ in actor.accept_addrs}
    return prefer_addr(actor.accept_addrs, own_hosts)


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def _supervise(actor: Actor) -> AsyncIterator[ActorNursery]:
    try:
        async with trio.open_nursery() as tn:
            an = ActorNursery(actor, tn)
            error: BaseException | None = None
            try:
                with an._body_scope:
                    yield an
            except BaseException as err:
                error = strip(err)
            await an._join(error)
    except BaseException as err:  # the last of the waiting was interrupted
        an._sup.join_cancelled(strip(err), trio.Cancelled)
    an.exited.set()
    outcome = an._sup.outcome(trio.Cancelled)
    if outcome is not None:
        raise outcome


@asynccontextmanager
async def open_nursery(
    *,
    hide_tb: bool = True,
    **kwargs: Any,
) -> AsyncIterator[ActorNursery]:
    """
    Open a nursery for actors; in a process without a runtime, boot a root first.

    A root that is on its way up already is waited for, and used.

    Leaving the block waits for all children: run-once children end by themselves,
    others when somebody cancels them.  An error in the body, or the death of a child,
    cancels them all.  Every process is reaped before the block is left.

    Args:
        **kwargs: For `open_root_actor()`, if there is no runtime yet; else ignored.
    Raises:
        ActorDied: A child ended without having been asked to.
        ActorUnkillable: A sub-interpreter is stuck in C code, and was given up.
        RemoteActorError: A run-once child failed.
        BaseExceptionGroup: More than one of these, or one beside the body's own error.
        RuntimeFailure: The actor of this process runs in another event loop.
    """
    run = trio.lowlevel.current_trio_token()
    while (boot := _state.boot_of(run)) is not None:
        await boot.over.wait()
    actor = _state.actor_of(run)
    if actor is not None:
        async with _supervise(actor) as an:
            yield an
        return
    try:
        async with _root_opener()(**kwargs) as root:
            async with _supervise(root) as an:
                an._implicit_runtime_started = True
                yield an
    finally:
        log.info(_shutdown_msg)


@trio.lowlevel.enable_ki_protection
def _root_opener() -> Callable[..., AbstractAsyncContextManager[Actor]]:
    from .._root import open_root_actor  # builds on this module

    return open_root_actor
