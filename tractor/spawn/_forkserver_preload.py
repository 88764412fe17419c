"""
Everything a child needs, imported and tried once in the fork server.

The standard library's server imports this module before it serves; each child then
starts with trio, the runtime and the program's main module in place.  A short run of
trio brings the interpreter's own caches into being, which each child would otherwise
write into its copy of the shared pages.  Collected objects are frozen, so that a
child's garbage collector does not do the same.
"""

from __future__ import annotations

import atexit
import gc
import importlib

import trio

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


async def _try_out() -> None:
    with trio.move_on_after(1):
        async with trio.open_nursery() as tn:
            tn.start_soon(trio.lowlevel.checkpoint)


for _ in range(2):  # bytecode is specialized from its second run on
    trio.run(_try_out)
_forkserver_override.drop_broken_requests()
_forkserver_override.import_main()
# `multiprocessing` drops it in the children.
atexit.register(_forkserver_override.remove_address)
gc.collect()
gc.freeze()
