"""The backends of the standard library's `multiprocessing`."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from .._exceptions import ActorFailure
from ._spawn import Launched, _live, _selected_context, proc_waiter

if TYPE_CHECKING:
    from .._exceptions import Uid
    from ..runtime._portal import Portal
    from ..runtime._runtime import Actor
    from ..runtime._supervise import ActorNursery


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
        return proc

    async def launch() -> Launched:
        async with _start_lock(actor_nursery._actor):
            # Starting one waits for the fork server, and writes to a pipe.
            proc: Any = await trio.to_thread.run_sync(start)
        proc.poll = partial(_mp_poll, proc)
        if proc.pid is None:
            raise ActorFailure(f'actor {name!r} could not be started: {proc!r}')
        return proc, proc_waiter

    try:
        await _live(
            launch, actor_nursery, subactor, bind_addrs, _runtime_vars, task_status
        )
    finally:
        for proc in started:
            _mp_close(proc)


def _mp_poll(proc: Any) -> int | None:
    """Return the exit status, or `None` while the process runs."""
    status: int | None = proc.exitcode
    return status


def _mp_close(proc: Any) -> None:
    """Close the handle's pipes; it still tells the exit status afterwards."""
    status = _mp_poll(proc)
    if status is not None:
        proc.poll = lambda: status
        proc.close()


_start_locks: weakref.WeakKeyDictionary[Actor, trio.Lock] = weakref.WeakKeyDictionary()


def _start_lock(actor: Actor) -> trio.Lock:
    """`multiprocessing` starts one child at a time: its tables know no threads."""
    return _start_locks.setdefault(actor, trio.Lock())
