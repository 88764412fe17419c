"""
How an actor comes to life: the spawn backends.

`_spawn` is the core: it selects the backend and owns the lifecycle that all backends
share.  Each backend brings a way to start an actor and to wait for its end, in a module
of its own: `_trio` for subprocesses of trio, `_mp` for those of `multiprocessing`.
`_entry` is where a child begins, and the rest sees to it that none is left behind.
"""

from __future__ import annotations

from tractor._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        '_entry': 'tractor.spawn._entry',
        '_forkserver_override': 'tractor.spawn._forkserver_override',
        '_lifeline': 'tractor.spawn._lifeline',
        '_mp': 'tractor.spawn._mp',
        '_mp_fixup_main': 'tractor.spawn._mp_fixup_main',
        '_reap': 'tractor.spawn._reap',
        '_spawn': 'tractor.spawn._spawn',
        '_trio': 'tractor.spawn._trio',
    },
)
