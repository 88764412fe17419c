"""
Sub-interpreter backend.  `kill()` breaks into Python code; code stuck in C is reported.

An actor gets an interpreter with a GIL of its own, so that the actors of one process
compute in parallel.  Where a module that it has to serve refuses to be loaded there,
mode `auto` starts it again on the GIL of the main interpreter.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

import trio

from .._exceptions import ActorFailure, RuntimeFailure
from ..ipc._chan import Channel
from ..log import get_logger
from ..runtime import _state
from . import _mp_fixup_main, _spawn

if TYPE_CHECKING:
    from .._exceptions import Uid
    from ..runtime._portal import Portal
    from ..runtime._runtime import Actor
    from ..runtime._supervise import ActorNursery
    from ._interp import Gil, Interp

log = get_logger()

_MODES: Final[dict[str, tuple[Gil, ...]]] = {
    'auto': ('own', 'shared'),
    'own': ('own',),
    'shared': ('shared',),
}

_warned: Final[set[str]] = set()  # modules, each told once per process


def unavailable() -> str | None:
    """Return why this interpreter cannot host the backend, or `None`."""
    if sys.version_info < (3, 14):
        return f'subint needs Python 3.14, this is {platform.python_version()}'
    if sys.implementation.name != 'cpython':
        return f'subint needs CPython, this is {sys.implementation.name}'
    return None


async def subint_proc(
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
    """The backend `subint`: an interpreter of this process."""
    if proc_kwargs:
        raise ValueError(
            f'{sorted(proc_kwargs)} in `proc_kwargs`: a sub-interpreter is no process '
            'that takes them'
        )
    if reason := unavailable():
        raise RuntimeFailure(f'actor {name!r} cannot be started: {reason}')
    if subactor._inherit_parent_main:
        subactor._parent_main_data = _mp_fixup_main.describe()
    mode = subactor._subint_gil or _state.subint_gil()
    launched: list[Interp] = []
    for gil in _MODES[mode]:

        async def launch(gil: Gil = gil) -> _spawn.Launched:
            interp = _start(actor_nursery._actor, subactor, parent_addr, gil)
            launched.append(interp)
            return interp, type(interp).wait

        try:
            await _spawn._live(
                launch, actor_nursery, subactor, bind_addrs, _runtime_vars, task_status
            )
            return
        except ActorFailure as err:
            refusal = launched[-1].refusal if launched else None
            if refusal is None:
                raise
            if failure := _judge(subactor, gil, mode, *refusal):
                raise failure from err


def _judge(
    subactor: Actor, gil: Gil, mode: str, served: str, refused: str, by_any: bool
) -> ActorFailure | None:
    """Return what a refusal means for the caller; if nothing, warn of what follows."""
    name = subactor.aid.name
    does, way_out = 'serve', ''
    if served == '__main__' and served not in subactor.enable_modules:
        does, way_out = "run its parent's", 'inherit_parent_main=False, '
    if by_any or gil == 'shared':
        return ActorFailure(
            f'actor {name!r} cannot {does} {served!r} in a sub-interpreter: '
            f'{refused!r} can be loaded once per process only; use {way_out}a process '
            "backend: start_method='trio'"
        )
    if mode == 'own':
        return ActorFailure(
            f'actor {name!r} cannot {does} {served!r} on a GIL of its own: {refused!r} '
            f"refuses to be loaded there; use {way_out}gil='shared', or a process "
            "backend: start_method='trio'"
        )
    text = (
        f'actor {name!r} runs on the GIL of the main interpreter: {refused!r}, which '
        f'{served!r} needs, refuses to be loaded on another one; '
        f"use {way_out}gil='shared' if that is fine, or a process backend"
    )
    log.warning('%s', text)
    if refused not in _warned:
        _warned.add(refused)
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return None


@trio.lowlevel.enable_ki_protection
def _start(parent: Actor, subactor: Actor, parent_addr: Any, gil: Gil) -> Interp:
    """Start the thread and return its handle; connecting back is not awaited."""
    # On interpreters that do not have it, this module can still tell so.
    from ..ipc._link import LinkStream
    from ._interp import Interp

    server = parent.ipc_server
    assert server is not None
    ours, childs = socket.socketpair()
    order = {
        'path': [os.fspath(entry) for entry in sys.path],
        'argv': [str(arg) for arg in sys.argv],
        'uid': tuple(subactor.aid.uid),
        'loglevel': subactor.loglevel,
        'modules': dict(subactor.enable_modules),
        'main': dict(subactor._parent_main_data),
        'parent_addr': tuple(parent_addr),
    }
    try:
        interp = Interp(subactor.aid.name, order, gil, ours, childs)
        interp.start()
    except Exception:
        ours.close()
        childs.close()
        raise
    server.adopt(Channel(LinkStream(ours)))
    return interp
