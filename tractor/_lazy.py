"""
Export tables of packages whose names load at first use.

A package's `__init__` lists its public names and where each lives; nothing is
imported until a name is asked for, and then it is kept in the package's
globals, so that `__getattr__` runs once per name.  A Ctrl-C in a trio run has to
wait until a module is loaded: the import system has weakref callbacks, and an
interrupt raised in one of those is printed and lost.  Every `__init__` of this
project uses it:

    __getattr__, __dir__, __all__ = lazy_exports(__name__, {
        'Context': 'tractor._context:Context',  # an attribute of a module
        'log': 'tractor.log',  # a module itself
    })
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(
    module_name: str, table: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    Return `__getattr__`, `__dir__` and `__all__` for a lazily loaded package.

    Args:
        module_name: The package's own `__name__`.
        table: Name to `'package.module'` (that module) or
            `'package.module:attribute'`.  A leading dot is relative to the package.
    Returns:
        The three objects, to be bound in the package.  `__all__` lists the names
        without a leading underscore, in the order of the table.
    """

    def getattr_lazily(name: str) -> Any:
        target = table.get(name)
        if target is None:
            raise AttributeError(f'module {module_name!r} has no attribute {name!r}')
        value = load(target, module_name)
        vars(sys.modules[module_name])[name] = value
        return value

    def dir_lazily() -> list[str]:
        return sorted({*vars(sys.modules[module_name]), *table})

    return getattr_lazily, dir_lazily, [n for n in table if not n.startswith('_')]


def load(target: str, package: str | None = None) -> Any:
    """Return a module, or what it has; a Ctrl-C in a trio run waits meanwhile."""
    # Loading trio only to protect from it what may run without it takes too long.
    lowlevel = sys.modules.get('trio.lowlevel')
    if (protect := getattr(lowlevel, 'enable_ki_protection', None)) is not None:
        protect(_load)
    return _load(target, package)


def _load(target: str, package: str | None) -> Any:
    path, _, attribute = target.partition(':')
    module = import_module(path, package)
    return getattr(module, attribute) if attribute else module
