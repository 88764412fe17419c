"""
The mains of a child: from a fresh process to its runtime.

`_trio_main()` serves children started as `python -m tractor._child`, `_mp_main()` those
of `multiprocessing`.  Both tie the child to its parent's life and run `async_main()`.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from .. import log as _log
from .._exceptions import RuntimeFailure
from ..runtime import _state
from ..runtime._boot import async_main
from ..trionics._beg import strip
from ..trionics.patches import apply_all
from . import _lifeline

if TYPE_CHECKING:
    from ..runtime._runtime import Actor
    from ._spawn import SpawnMethodKey

log = _log.get_logger()

SUBTREE_GRACE: Final = 1.0  # seconds; less than `escalate.KILL_AFTER`


def _trio_main(
    actor: Actor,
    *,
    parent_addr: Any = None,
    infect_asyncio: bool = False,
) -> None:
    """
    Run a child's runtime to its end; Ctrl-C is an orderly end.

    Args:
        actor: The actor this process is.
        parent_addr: Where it connects back to.
        infect_asyncio: Whether trio is to run as a guest of asyncio.
    Raises:
        BaseException: Whatever ended the runtime, except `KeyboardInterrupt`.
    """
    if infect_asyncio:
        raise RuntimeFailure(
            'this release has no asyncio mode: start the actor without '
            '`infect_asyncio=True`'
        )
    _state._current_actor = actor
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end_subtree)
    if actor.loglevel is not None:
        _log.get_console_log(actor.loglevel, name='tractor')
    # What was imported until now lives as long as the process.
    gc.freeze()
    gc.enable()
    try:
        # `_child` blocks it for as long as there is nothing that could end in order.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        trio.run(partial(async_main, actor, parent_addr=parent_addr))
    except BaseException as err:
        if not isinstance(strip(err), KeyboardInterrupt):
            raise
        log.cancel('interrupted by the operating system')
    finally:
        if _lifeline.is_orphan():
            from . import _reap  # only for who is left by all

            _reap.sweep()  # nobody else does it for the parent
        _state._last_actor_terminated = actor
        _state._current_actor = None


def _mp_main(
    actor: Actor,
    accept_addrs: list[Any] | None,
    forkserver_info: Any,
    start_method: SpawnMethodKey,
    parent_addr: Any = None,
    infect_asyncio: bool = False,
) -> None:
    """
    Run the child of a `multiprocessing` backend.

    Args:
        actor: The actor this process is, as it was pickled.
        accept_addrs: Where it listens (also told by the parent's `SpawnSpec`).
        forkserver_info: How to reach the tree's fork server; `None` without one.
        start_method: The backend's key, which this child's own children use too.
        parent_addr: Where it connects back to.
        infect_asyncio: Whether trio is to run as a guest of asyncio.
    """
    import multiprocessing.process  # loaded: this process is a child of it

    from . import _spawn  # a child of the trio backend does not need it to boot

    _spawn.try_set_start_method(start_method)
    if forkserver_info is not None:
        from . import _forkserver_override

        _forkserver_override.adopt(forkserver_info)
    actor._aid.pid = os.getpid()
    parent = multiprocessing.process.parent_process()
    if parent is not None:
        _lifeline.tie(parent.sentinel)
    apply_all()
    _title(actor)
    _trio_main(actor, parent_addr=parent_addr, infect_asyncio=infect_asyncio)


def _children() -> list[int]:
    """Return the processes of this actor's children."""
    actor = _state.current_actor(err_on_no_runtime=False)
    nurseries = set() if actor is None else set(actor._actoruid2nursery.values())
    pids = [proc.pid for an in nurseries for _, proc, _ in an._children.values()]
    return [pid for pid in pids if pid != os.getpid()]  # those end with this process


def _end_subtree(signum: int, frame: Any) -> None:
    """
    End on `SIGTERM`, the children first: nobody else is there to wait for them.

    Each of them does the same with its own; one that does not end is killed.
    """
    pids = _children()
    for pid in pids:
        _send(pid, signal.SIGTERM)
    end = time.monotonic() + SUBTREE_GRACE
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.01)
    for pid in pids:
        if _is_alive(pid):
            _send(pid, signal.SIGKILL)
            _is_alive(pid, wait=True)
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        log.runtime('process %d was gone already', pid)


def _is_alive(pid: int, wait: bool = False) -> bool:
    """Tell whether a child runs; one that has ended is reaped, if it is ours."""
    try:
        return os.waitpid(pid, 0 if wait else os.WNOHANG)[0] == 0
    except ChildProcessError:  # reaped already, or forked by the fork server
        return os.path.exists(f'/proc/{pid}')


def _title(actor: Actor) -> None:
    """Show the actor's name in process listings."""
    from ..devx._proctitle import set_actor_proctitle  # beside the stack

    set_actor_proctitle(actor)
