"""
One fork server for the whole tree.

The standard library gives every process its own server, and a child knows nothing of
its parent's.  Here the first actor that needs one starts it, with trio, the runtime and
the program's main module preloaded, and every descendant asks the same server:
`describe()` is passed down with each child, `adopt()` is called in it.  The server ends
with the last process that holds its pipe, so it does not outlive the tree.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable
from multiprocessing import connection, forkserver, process, reduction, spawn, util
from typing import Any, Final

PRELOAD: Final = ('tractor.spawn._forkserver_preload',)

# What a process has to know of a server that another one started.
_FACTS: Final = ('_forkserver_address', '_forkserver_authkey')

# Tells the server where the program's main module is; removed there and here.
_MAIN_ENV: Final = 'TRACTOR_FORKSERVER_MAIN'
_MAIN_KEYS: Final = (
    'sys_path',
    'sys_argv',
    'dir',
    'orig_dir',
    'init_main_from_name',
    'init_main_from_path',
)

_server: Any = forkserver._forkserver


def prepare() -> None:
    """Let the server that this process may come to start import the runtime."""
    if _server._forkserver_address is None:
        forkserver.set_forkserver_preload(list(PRELOAD))


def describe() -> dict[str, Any]:
    """Start the server unless it runs, and return what a child needs to reach it."""
    if _server._forkserver_address is None:
        found = spawn.get_preparation_data('ignore')
        os.environ[_MAIN_ENV] = json.dumps(
            {key: found[key] for key in _MAIN_KEYS if key in found}
        )
    try:
        _server.ensure_running()
    finally:
        os.environ.pop(_MAIN_ENV, None)
    facts = {name: getattr(_server, name) for name in _FACTS if hasattr(_server, name)}
    return {'server': facts, 'environ': dict(os.environ)}


def import_main() -> None:
    """
    Import the program's main module, in the server and as its children would.

    The standard library means to do this by default, but some of its releases never
    find the module (cpython#126631).  Where it cannot be imported the server goes on
    without it: each child then meets the error and reports it.
    """
    text = os.environ.pop(_MAIN_ENV, None)
    if text is None:
        return
    server: Any = process.current_process()
    server._inheriting = True  # a main module without a guard starts no process here
    try:
        spawn.prepare(json.loads(text))
    except (Exception, SystemExit):
        return
    finally:
        del server._inheriting
        # Buffered output would be written again by each child.
        util._flush_std_streams()  # type: ignore[attr-defined]


class _Dropping:
    """A module of the standard library whose failing calls end one request only."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return _dropping(found) if name in _OF_A_REQUEST else found


_OF_A_REQUEST: Final = ('answer_challenge', 'deliver_challenge', 'recvfds')


def _dropping(func: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        try:
            return func(*args)
        except (EOFError, OSError) as err:
            # The one error after which the server's loop goes on, in all releases.
            raise ConnectionAbortedError(errno.ECONNABORTED, str(err)) from err

    return call


def drop_broken_requests() -> None:
    """
    In the server: a client that gives up in the middle of a request ends no server.

    It may be out of descriptors, or be killed there.  Most releases take that for a
    failure of the server, and with it every child loses who tells how it ended.
    """
    server: Any = forkserver
    server.connection, server.reduction = _Dropping(connection), _Dropping(reduction)


def remove_address() -> None:
    """
    In the server, at its end: a parent that was killed has left its socket file.

    If it is an error that ends the server, the parent lives and needs its directory.
    """
    address = _server._forkserver_address
    if address and getattr(sys, 'last_value', None) is None:
        with contextlib.suppress(OSError):  # the parent has removed it already
            os.unlink(address)
            os.rmdir(os.path.dirname(address))


def adopt(facts: dict[str, Any]) -> None:
    """
    Use a server that an ancestor started; never start or wait for one here.

    The environment becomes the parent's, as in any other child: the server's is that
    of the moment when it was started.
    """
    for name, value in facts['server'].items():
        setattr(_server, name, value)
    if os.environ != facts['environ']:
        os.environ.clear()
        os.environ.update(facts['environ'])
    _server.ensure_running = _assume_running


def _assume_running() -> None:
    """The server lives as long as any process of the tree holds its pipe."""
