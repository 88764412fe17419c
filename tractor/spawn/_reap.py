"""
What a child leaves behind when it could not clean up.

A killed process leaves its Unix sockets in the file system.  Its parent removes them,
or whoever finds them: a socket file that names a process is dead when nobody listens.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ..ipc._uds import UDSAddress
from ..log import get_logger
from ..runtime._state import socket_owner

if TYPE_CHECKING:
    from ..runtime._runtime import Actor

log = get_logger()

_NAMED_FOR_A_PROCESS: Final = re.compile(r'.+@(\d+)\.sock')


def unlink_uds_bind_addrs(
    proc: Any,
    *,
    bind_addrs: Iterable[Any] | None = None,
    subactor: Actor | None = None,
) -> None:
    """
    Remove the Unix sockets of a child that is gone.

    Args:
        proc: Its process handle; only `.pid` is used, and `.id` of an interpreter.
        bind_addrs: The addresses it was told to bind; else its default one is made up
            from its name and pid.
        subactor: The actor it was.

    Missing files are ignored, other failures only logged.
    """
    try:
        paths = _paths(proc, bind_addrs, subactor)
    except Exception as err:
        log.warning('no socket paths for process %s: %s', proc.pid, err)
        return
    for path in paths:
        _unlink(path)


def _paths(
    proc: Any, bind_addrs: Iterable[Any] | None, subactor: Actor | None
) -> list[Path]:
    if bind_addrs:
        from ..discovery._addr import wrap_address  # rarely needed

        found = [wrap_address(addr) for addr in bind_addrs]
        return [addr.sockpath for addr in found if isinstance(addr, UDSAddress)]
    if subactor is None or proc.pid is None:
        return []
    number = getattr(proc, 'id', 0)  # of an interpreter, where it is one
    if number is None:
        return []  # it was never made
    if not isinstance(number, int):
        number = 0
    space = UDSAddress.def_bindspace
    owner = socket_owner(subactor.aid.name, number)
    name = UDSAddress.get_sockname(name=owner, pid=proc.pid, bindspace=space)
    return [space / name]


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as err:
        log.warning('cannot remove the socket %s: %s', path, err)
        return
    log.runtime('removed the socket %s of a dead process', path)


def sweep(folder: Path | None = None) -> int:
    """
    Remove sockets of dead processes from our runtime directory.

    Only files named `<name>@<pid>.sock` whose process is gone and where nobody
    accepts connections (a pid proves nothing across containers).  Failures are only
    logged.

    Returns:
        How many were removed.
    """
    removed = 0
    try:
        space = UDSAddress.def_bindspace if folder is None else folder
        for path in _dead_sockets(space):
            _unlink(path)
            removed += 1
    except FileNotFoundError:
        log.runtime('nobody has bound a socket yet: there is no directory for them')
    except Exception as err:
        log.warning('cannot look for sockets of dead processes: %s', err)
    return removed


def _dead_sockets(space: Path) -> Iterator[Path]:
    for name in os.listdir(space):
        match = _NAMED_FOR_A_PROCESS.fullmatch(name)
        if match is None or name.startswith('registry@'):
            continue
        if not _is_alive(match[1]) and is_refused(space / name):
            yield space / name


def _is_alive(pid: str) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        with open(f'/proc/{pid}/stat', encoding='ascii', errors='replace') as stat:
            state = stat.read().rpartition(')')[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in 'ZX'


def is_refused(path: Path) -> bool:
    """Whether nobody listens on a socket file."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
        except OSError:
            return False
    return False
