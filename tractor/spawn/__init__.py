"""
How an actor comes to life: the spawn backends.

`_spawn` is the core: it selects the backend and owns the lifecycle that all backends
share.  Each backend brings a way to start an actor and to wait for its end, in a module
of its own: `_trio` for subprocesses of trio, `_mp` for those of `multiprocessing`, with
`_forkserver_override` and `_forkserver_preload` for the one fork server of a tree, and
`_subint` for sub-interpreters, with `_interp` (one of them, from outside) and
`_interp_main` (from inside).  `_entry` is where a child begins, and `_mp_fixup_main`
gives it the parent's `__main__`.  `_lifeline` and `_reap` see to it that none is left
behind.
"""

from __future__ import annotations

from tractor._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        '_entry': 'tractor.spawn._entry',
        '_forkserver_override': 'tractor.spawn._forkserver_override',
        '_forkserver_preload': 'tractor.spawn._forkserver_preload',
        '_interp': 'tractor.spawn._interp',
        '_interp_main': 'tractor.spawn._interp_main',
        '_lifeline': 'tractor.spawn._lifeline',
        '_mp': 'tractor.spawn._mp',
        '_mp_fixup_main': 'tractor.spawn._mp_fixup_main',
        '_reap': 'tractor.spawn._reap',
        '_spawn': 'tractor.spawn._spawn',
        '_subint': 'tractor.spawn._subint',
        '_trio': 'tractor.spawn._trio',
    },
)
