"""
One fork server for the whole tree.

The standard library gives every process its own server, and a child knows nothing of
its parent's.  Here the first actor that needs one starts it, with trio and the runtime
preloaded, and every descendant asks the same server: `describe()` is passed down with
each child, `adopt()` is called in it.  The server ends with the last process that holds
its pipe, so it does not outlive the tree.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver
from typing import Any, Final

PRELOAD: Final = ('tractor.spawn._forkserver_preload',)

# What a process has to know of a server that another one started.
_FACTS: Final = ('_forkserver_address', '_forkserver_authkey')

_server: Any = forkserver._forkserver


def prepare() -> None:
    """Let the server that this process may come to start import the runtime."""
    if _server._forkserver_address is None:
        forkserver.set_forkserver_preload(list(PRELOAD))


def describe() -> dict[str, Any]:
    """Start the server unless it runs, and return what a child needs to reach it."""
    _server.ensure_running()
    facts = {name: getattr(_server, name) for name in _FACTS if hasattr(_server, name)}
    return {'server': facts, 'environ': dict(os.environ)}


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
