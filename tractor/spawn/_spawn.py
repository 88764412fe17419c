"""
The core of spawning: which backend is in use, and the life of one child.

A backend, in a module of its own, brings a process and a way to wait for it.
Everything after that is the same for all of them and written once, in `_live()`: wait
until the child has connected back (or has died), give it its orders, serve until its
process ends, and find out whether anybody had asked for that end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import trio

from .._exceptions import (
    ActorDied,
    ActorFailure,
    ActorUnkillable,
    ContextCancelled,
    TransportClosed,
)
from .._lazy import lazy_exports
from .._protocol.escalate import BOOT_GRACE, KILL_AFTER
from ..log import get_logger
from ..msg.types import SpawnSpec
from ..runtime import _hooks, _state
from ..runtime._portal import Portal
from . import _lifeline, _reap

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from .._exceptions import Uid
    from ..ipc._chan import Channel
    from ..runtime._runtime import Actor
    from ..runtime._supervise import ActorNursery

log = get_logger()

SpawnMethodKey = Literal['trio', 'mp_spawn', 'mp_forkserver', 'subint']

_ctx: BaseContext | None = None
_spawn_method: SpawnMethodKey = 'trio'

MP_GRACE: Final = 0.1  # seconds between an mp child's orderly end and SIGTERM
LOOP_END: Final = 0.5  # seconds to read what a dead child had still sent

Wait = Callable[[], Awaitable[Any]]
WaitFor = Callable[[Any], Awaitable[Any]]
Launched = tuple[Any, WaitFor]  # the process handle and what waits for it


# -- selection ---------------------------------------------------------------


def try_set_start_method(key: SpawnMethodKey) -> BaseContext | None:
    """
    Select the backend for this process, and so for its children.

    Returns:
        The `multiprocessing` context in use; `None` for `'trio'`.
    Raises:
        ValueError: There is no such backend.
        RuntimeError: This interpreter cannot run it.
    """
    global _ctx, _spawn_method
    if key == 'trio':
        ctx = None
    elif key == 'subint':
        if reason := __getattr__('_why_no_subint')():
            raise RuntimeError(reason)
        ctx = None
    elif key in ('mp_spawn', 'mp_forkserver'):
        ctx = _mp_context(key)
    else:
        raise ValueError(
            f'there is no spawn method {key!r}: choose one of {sorted(_methods)}'
        )
    _ctx, _spawn_method = ctx, key
    return ctx


@trio.lowlevel.enable_ki_protection
def choose(key: str | None) -> SpawnMethodKey:
    """
    Return the backend of a new child.

    Args:
        key: The one asked for; `None` means that of this tree, which the root chose.
    Raises:
        ValueError: There is no such backend.
        RuntimeError: This interpreter cannot run it.
    """
    inherited = _state.inherited_start_method()
    if inherited is not None and inherited != _spawn_method:
        try_set_start_method(inherited)  # type: ignore[arg-type]
    if key is None or key == _spawn_method:
        return _spawn_method
    before = _ctx, _spawn_method
    try:
        try_set_start_method(key)  # type: ignore[arg-type]
        return _spawn_method
    finally:
        _restore(*before)


def _restore(ctx: BaseContext | None, key: SpawnMethodKey) -> None:
    global _ctx, _spawn_method
    _ctx, _spawn_method = ctx, key


def _mp_context(key: str) -> BaseContext:
    import multiprocessing  # costs time that the trio backend's children do not need

    method = key.removeprefix('mp_')
    if method not in multiprocessing.get_all_start_methods():
        raise RuntimeError(f'this platform has no {method!r} start method')
    if method == 'forkserver':
        from . import _forkserver_override

        _forkserver_override.prepare()
    return multiprocessing.get_context(method)


def _selected_context(key: str) -> BaseContext | None:
    """Return the `multiprocessing` context of one of its backends."""
    return _ctx if key == _spawn_method else _mp_context(key)


# -- the result of a child's main task ---------------------------------------


async def exhaust_portal(portal: Portal, actor: Actor) -> Any:
    """
    Wait for the main task of a run-once child.

    Returns:
        Its result; the error if it failed; the `trio.Cancelled` if the wait was
        cancelled.  Nothing is raised.
    """
    try:
        return await portal._pull_result()
    except (Exception, BaseExceptionGroup, trio.Cancelled) as err:
        log.runtime('main task of %s: %r', actor.aid.uid, err)
        return err


async def cancel_on_completion(
    portal: Portal, actor: Actor, errors: dict[Uid, BaseException]
) -> None:
    """
    Wait for the main task of a run-once child, then cancel the child.

    Args:
        portal: To the child.
        actor: The child as its parent knows it.
        errors: Gets the task's error under the child's uid.  A lost connection is
            none: the end of the process tells more.
    """
    await _collect_result(portal, actor, errors)
    await portal.cancel_actor()


async def _collect_result(
    portal: Portal, actor: Actor, errors: dict[Uid, BaseException]
) -> None:
    """Wait for the main task of a run-once child, and sort its error out."""
    result = await exhaust_portal(portal, actor)
    if isinstance(result, trio.Cancelled):
        raise result
    if isinstance(result, ContextCancelled) and (
        portal.chan.cancel_called or result.canceller == portal.actor.aid.uid
    ):
        log.runtime('%s ended as this actor wished', actor.aid.uid)
    elif isinstance(result, Exception) and not isinstance(result, TransportClosed):
        errors[actor.aid.uid] = result


# -- ending a process --------------------------------------------------------


@trio.lowlevel.enable_ki_protection  # `join()` may load what it waits with
async def proc_waiter(proc: Any) -> None:
    """Wait until a `multiprocessing.Process` has ended and its status is known."""
    await trio.lowlevel.wait_readable(proc.sentinel)
    proc.join(timeout=0)
    if proc.exitcode is None:
        # The pipe closes an instant before the process can be reaped.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(proc.join)


async def soft_kill(proc: Any, wait_func: WaitFor, portal: Portal) -> None:
    """
    Wait for a child's end; if that wait is cancelled, ask the child to end.

    Args:
        proc: The process handle.
        wait_func: Waits for it.
        portal: To the child.
    Raises:
        trio.Cancelled: The wait was cancelled; the child may still be alive.
    """
    try:
        await wait_func(proc)
    except trio.Cancelled:
        with trio.CancelScope(shield=True):
            await _hooks.wait_for_debugger()
            async with trio.open_nursery() as tn:

                async def watch() -> None:
                    await wait_func(proc)
                    tn.cancel_scope.cancel()

                tn.start_soon(watch)
                await portal.cancel_actor()
                tn.cancel_scope.cancel()
        if proc.poll() is None:
            log.warning('%s lives on after its cancel request', proc)
        raise


async def hard_kill(
    proc: Any,
    terminate_after: float = KILL_AFTER,
    *,
    bind_addrs: list[Any] | None = None,
    subactor: Actor | None = None,
    wait_func: Wait | None = None,
) -> None:
    """
    Give a process some time to end, then kill it; remove what it leaves behind.

    Args:
        proc: The process handle.
        terminate_after: Seconds to wait before `SIGKILL`.
        bind_addrs: The addresses the child was told to bind.
        subactor: The child as its parent knows it.
        wait_func: Waits for the process; its `wait()` by default.
    """
    for pipe in ('stdin', 'stdout', 'stderr'):
        stream = getattr(proc, pipe, None)
        if stream is not None:
            await stream.aclose()
    wait = wait_func or proc.wait
    with trio.move_on_after(terminate_after) as cs:
        await wait()
    if cs.cancelled_caught:
        log.critical('#T-800 deployed to collect zombie B0\n%r', proc)
        proc.kill()
        with trio.CancelScope(shield=True):
            await wait()
    _reap.unlink_uds_bind_addrs(proc, bind_addrs=bind_addrs, subactor=subactor)


# -- the life of one child ---------------------------------------------------


@trio.lowlevel.enable_ki_protection
async def new_proc(
    name: str,
    actor_nursery: ActorNursery,
    subactor: Actor,
    errors: dict[Uid, BaseException],
    bind_addrs: list[Any] | None,
    parent_addr: Any,
    _runtime_vars: dict[str, Any],
    *,
    infect_asyncio: bool = False,
    task_status: trio.TaskStatus[Portal] = trio.TASK_STATUS_IGNORED,
    proc_kwargs: Mapping[str, Any] | None = {},
) -> None:
    """
    Start a child with its backend, or the selected one, and see it through to its end.

    Runs as one task per child inside the nursery.  Reports a portal through
    `task_status` when the child is up, returns when its process is reaped.

    Raises:
        ActorFailure: The child ended before it had connected back.
    """
    key = subactor._spawn_method = subactor._spawn_method or _spawn_method
    await _methods[key](
        name,
        actor_nursery,
        subactor,
        errors,
        bind_addrs,
        parent_addr,
        _runtime_vars,
        infect_asyncio=infect_asyncio,
        task_status=task_status,
        proc_kwargs=dict(proc_kwargs or {}),
    )


async def _live(
    launch: Callable[[], Awaitable[Launched]],
    an: ActorNursery,
    subactor: Actor,
    bind_addrs: list[Any] | None,
    runtime_vars: dict[str, Any],
    task_status: trio.TaskStatus[Portal],
) -> None:
    """See one child through its life; see the module's docstring."""
    with trio.CancelScope(shield=True):
        proc, wait_func = await launch()
    wait = partial(wait_func, proc)
    uid = subactor.aid.uid
    # One task waits for the process itself, everybody else for this.
    ended = trio.Event()
    try:
        chan = await _connect_back(an._actor, subactor, proc, wait)
        _lifeline.keep_socket_from_forks(chan.stream.socket)
        subactor._aid.pid = proc.pid
        portal = Portal(chan)
        an._child_up(subactor, proc, portal, ended.wait)
        await chan.send(_orders(an._actor, subactor, bind_addrs, runtime_vars))
        # A cancelled caller must not leave a child behind whose task is shielded.
        await trio.lowlevel.checkpoint_if_cancelled()
        task_status.started(portal)
    except BaseException as err:
        with trio.CancelScope(shield=True):
            an._child_gone(uid, None)
            try:
                if proc.poll() is None:
                    await hard_kill(
                        proc,
                        BOOT_GRACE,
                        bind_addrs=bind_addrs,
                        subactor=subactor,
                        wait_func=wait,
                    )
            finally:
                ended.set()
        if stuck := _stuck(proc):
            raise ActorUnkillable(uid, *stuck) from err
        raise
    with trio.CancelScope(shield=True):
        try:
            await _see_through(an, subactor, proc, wait, ended, portal)
            await _read_to_end(an._actor, chan)
            if proc.poll() != 0:
                _reap.unlink_uds_bind_addrs(
                    proc, bind_addrs=bind_addrs, subactor=subactor
                )
                _reap.sweep()
        finally:
            # Whatever went wrong here: the nursery waits for this.
            an._child_gone(uid, _death(uid, proc.poll(), _stuck(proc)))


async def _connect_back(
    parent: Actor, subactor: Actor, proc: Any, wait: Wait
) -> Channel:
    """Wait for a child's connection, or for its death."""
    server = parent.ipc_server
    assert server is not None
    chan: Channel | None = None
    async with trio.open_nursery() as tn:

        async def watch() -> None:
            await wait()
            tn.cancel_scope.cancel()

        tn.start_soon(watch)
        _, chan = await server.wait_for_peer(subactor.aid.uid)
        tn.cancel_scope.cancel()
    if chan is None:
        raise ActorFailure(
            f'actor {subactor.aid.name!r} ended with status {proc.poll()} before it '
            'connected back; its own stderr tells more'
        )
    return chan


def _orders(
    parent: Actor,
    subactor: Actor,
    bind_addrs: list[Any] | None,
    runtime_vars: dict[str, Any],
) -> SpawnSpec:
    return SpawnSpec(
        _parent_main_data=subactor._parent_main_data,
        # With what the root chose for the whole tree, which is no variable there.
        _runtime_vars={
            **runtime_vars,
            '_start_method': _spawn_method,
            '_subint_gil': _state.subint_gil(),
        },
        enable_modules=subactor.enable_modules,
        reg_addrs=[(addr[0], addr[1]) for addr in parent.reg_addrs],
        bind_addrs=bind_addrs,
    )


async def _see_through(
    an: ActorNursery,
    subactor: Actor,
    proc: Any,
    wait: Wait,
    ended: trio.Event,
    portal: Portal,
) -> None:
    """Wait for the process; meanwhile end a run-once child after its main task."""
    async with trio.open_nursery() as tn:

        async def watch() -> None:
            await wait()
            ended.set()

        async def reap_result() -> None:
            await an._wait_to_reap(subactor.aid.uid)
            if portal not in an._cancel_after_result_on_exit:
                return
            uid = subactor.aid.uid
            found: dict[Uid, BaseException] = {}
            try:
                await _collect_result(portal, subactor, found)
                await an._end_child(uid)
            finally:
                an._main_task_over(uid, found.get(uid))

        tn.start_soon(watch)
        tn.start_soon(reap_result)
        await soft_kill(proc, lambda _: ended.wait(), portal)
        tn.cancel_scope.cancel()


async def _read_to_end(parent: Actor, chan: Channel) -> None:
    """Let the message loop read what the child sent before its end."""
    with trio.move_on_after(LOOP_END):
        await parent._loop_ended(chan)


def _stuck(proc: Any) -> tuple[str, str] | None:
    """Return where and why a child could not be stopped; no process ever is one."""
    stuck: tuple[str, str] | None = getattr(proc, 'stuck', None)
    return stuck


def _death(
    uid: Uid, status: int | None, stuck: tuple[str, str] | None = None
) -> ActorDied | ActorUnkillable:
    if stuck is not None:
        return ActorUnkillable(uid, *stuck)
    if status is not None and status < 0:
        return ActorDied(uid, signal=-status)
    return ActorDied(uid, exitcode=status)


# -- backends ----------------------------------------------------------------


class _Methods(dict[str, Any]):
    """The mains of the backends by key; one in a module of its own loads late."""

    def __getitem__(self, key: str) -> Callable[..., Awaitable[None]]:
        main = super().__getitem__(key)
        return __getattr__(main) if isinstance(main, str) else main  # type: ignore[no-any-return]

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


_methods = _Methods(
    {
        'trio': 'trio_proc',
        'mp_spawn': 'mp_proc',
        'mp_forkserver': 'mp_proc',
        'subint': 'subint_proc',
    }
)

# Each builds on this module, which therefore names it only.
__getattr__ = lazy_exports(
    __name__,
    {
        'trio_proc': 'tractor.spawn._trio:trio_proc',
        'mp_proc': 'tractor.spawn._mp:mp_proc',
        'subint_proc': 'tractor.spawn._subint:subint_proc',
        '_why_no_subint': 'tractor.spawn._subint:unavailable',
    },
)[0]
