"""The default backend: a subprocess of trio."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import trio

from . import _lifeline, _mp_fixup_main
from ._spawn import Launched, _live

if TYPE_CHECKING:
    from .._exceptions import Uid
    from ..runtime._portal import Portal
    from ..runtime._runtime import Actor
    from ..runtime._supervise import ActorNursery


async def trio_proc(
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
    """The default backend: `python -m tractor._child` as a subprocess of trio."""
    cmd = [
        sys.executable,
        '-m',
        'tractor._child',
        '--uid',
        str(subactor.aid.uid),
        '--parent_addr',
        str(parent_addr),
    ]
    if subactor.loglevel:
        cmd += ['--loglevel', subactor.loglevel]
    if infect_asyncio:
        cmd.append('--asyncio')
    if subactor._inherit_parent_main:
        subactor._parent_main_data = _mp_fixup_main.describe()
    kwargs = dict(proc_kwargs or {})
    parents_end: list[int] = []

    async def launch() -> Launched:
        with _lifeline.open_lifeline() as (childs, ours):
            given = kwargs.pop('env', None)
            env = dict(os.environ if given is None else given)
            env[_lifeline.ENV] = str(childs)
            fds = (*kwargs.pop('pass_fds', ()), childs)
            proc: trio.Process = await trio.lowlevel.open_process(
                cmd, env=env, pass_fds=fds, **kwargs
            )
            parents_end.append(ours)
        return proc, trio.Process.wait

    try:
        await _live(
            launch, actor_nursery, subactor, bind_addrs, _runtime_vars, task_status
        )
    finally:
        for fd in parents_end:
            _lifeline.cut(fd)
