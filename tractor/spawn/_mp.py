"""
The backends of the standard library's `multiprocessing`.

How a child of the fork server ended is known to the server only.  If that is lost, the
standard library takes all its children for ended, with status 255, though they live.
A pidfd, where the system has one, is how they are ended then, and when they are.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from .._exceptions import ActorFailure
from .._protocol.escalate import KILL_AFTER
from ..log import get_logger
from . import _lifeline
from ._spawn import Launched, _live, _selected_context, proc_waiter

if TYPE_CHECKING:
    from .._exceptions import Uid
    from ..runtime._portal import Portal
    from ..runtime._runtime import Actor
    from ..runtime._supervise import ActorNursery

log = get_logger()


async def mp_proc(
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
    proc_kwargs: dict[str, Any] | None = None,
) -> None:
    """The backends of the standard library: `mp_spawn` and `mp_forkserver`."""
    if proc_kwargs:
        raise ValueError(
            f'{sorted(proc_kwargs)} in `proc_kwargs`: only the trio backend starts a '
            'subprocess that takes them'
        )
    from . import _entry  # what the child runs; nothing else here needs it

    key = str(subactor._spawn_method)
    mp_ctx: Any = _selected_context(key)
    started: list[Any] = []

    def start() -> Any:
        info = None
        if key == 'mp_forkserver':
            from . import _forkserver_override

            info = _forkserver_override.describe()
        proc = mp_ctx.Process(
            target=_entry._mp_main,
            args=(subactor, bind_addrs, info, key, parent_addr, infect_asyncio),
            name=name,
        )
        proc.start()
        started.append(proc)
        _lifeline.keep_from_forks(*_pipe_ends(proc))
        return proc

    async def launch() -> Launched:
        async with _start_lock(actor_nursery._actor):
            # Starting one waits for the fork server, and writes to a pipe.
            proc: Any = await trio.to_thread.run_sync(start)
        proc.poll = partial(_mp_poll, proc)
        if proc.pid is None:
            raise ActorFailure(f'actor {name!r} could not be started: {proc!r}')
        if key == 'mp_forkserver':
            _follow(proc)
        return proc, _wait

    try:
        await _live(
            launch, actor_nursery, subactor, bind_addrs, _runtime_vars, task_status
        )
    finally:
        for proc in started:
            _lifeline.forget(*_pipe_ends(proc))
            _mp_close(proc)


def _pipe_ends(proc: Any) -> list[int]:
    """Return this process's ends of a child's pipes; one of them is its lifeline."""
    finalizer = getattr(getattr(proc, '_popen', None), 'finalizer', None)
    return list(getattr(finalizer, '_args', None) or ())


def _mp_poll(proc: Any) -> int | None:
    """Return the exit status, or `None` while the process runs."""
    status: int | None = proc.exitcode
    return status


def _mp_close(proc: Any) -> None:
    """Close the handle's pipes; it still tells the exit status afterwards."""
    status = proc.poll()
    if status is not None:
        proc.poll = lambda: status
        proc.close()
        pidfd = getattr(proc, 'pidfd', None)
        if pidfd is not None:
            os.close(pidfd)


_LOST: Final = 255  # what the standard library says when the fork server is gone


def _follow(proc: Any) -> None:
    """Have a child of the fork server live for as long as its process does."""
    if not hasattr(os, 'pidfd_open'):
        return
    try:
        pidfd = proc.pidfd = os.pidfd_open(proc.pid)
    except OSError:  # it has ended, or the system knows none
        return

    def send(signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signum)

    # Those of the standard library do nothing once it has given a child up.
    proc.terminate = partial(send, signal.SIGTERM)
    proc.kill = partial(send, signal.SIGKILL)
    proc.poll = lambda: None if _is_given_up(proc) else _mp_poll(proc)


def _is_given_up(proc: Any) -> bool:
    """Whether a child runs whose fork server is lost."""
    pidfd = getattr(proc, 'pidfd', None)
    if pidfd is None or _mp_poll(proc) != _LOST:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


async def _wait(proc: Any) -> None:
    """Wait for a child's end; one whose end nobody could tell is ended here."""
    await proc_waiter(proc)
    if _is_given_up(proc):
        log.error('the fork server of %r is gone: nobody could tell its end', proc)
        proc.terminate()
        with trio.move_on_after(KILL_AFTER):
            await trio.lowlevel.wait_readable(proc.pidfd)
        if _is_given_up(proc):
            proc.kill()
        await trio.lowlevel.wait_readable(proc.pidfd)


_start_locks: weakref.WeakKeyDictionary[Actor, trio.Lock] = weakref.WeakKeyDictionary()


def _start_lock(actor: Actor) -> trio.Lock:
    """`multiprocessing` starts one child at a time: its tables know no threads."""
    return _start_locks.setdefault(actor, trio.Lock())
