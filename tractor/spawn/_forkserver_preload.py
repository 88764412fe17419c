"""
Everything a child needs, imported once in the fork server.

The standard library's server imports this module before it serves; each child then
starts with trio and the runtime in place.  Collected objects are frozen, so that a
child's garbage collector does not write to (and thereby copy) the shared pages.
"""

from __future__ import annotations

import gc
import importlib

from ..discovery import _multiaddr, _registry
from ..ipc import _auth, _tcp, _uds
from ..runtime import _boot, _supervise
from . import _entry, _forkserver_override, _spawn

LOADED = (
    _auth,
    _boot,
    _entry,
    _forkserver_override,
    _multiaddr,
    _registry,
    _spawn,
    _supervise,
    _tcp,
    _uds,
)

# What the runtime loads at first use, which is in every child.
for _name in (
    'tractor._log_console',
    'tractor.devx._proctitle',
    'colorlog',
    'hmac',
    'pkgutil',
    'platformdirs.unix',
    'secrets',
    'setproctitle',
):
    importlib.import_module(_name)

gc.collect()
gc.freeze()
