"""
The parent's `__main__` in a child.

A script's functions live in `__main__`, which is another module in every process.  The
parent describes its own (`describe()`), the child runs it again under the name
`__mp_main__` and lets that stand for `__main__` too (`replay()`), as the standard
library's `multiprocessing.spawn` does for its own children.  With it go the parent's
`sys.path`, where the script's own imports come from, and its `sys.argv`.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from typing import Any, Final

ALIAS: Final = '__mp_main__'


def describe() -> dict[str, Any]:
    """
    Return what a child needs to run this process's `__main__` again.

    `init_main_from_name` for a module run with `-m`, else `init_main_from_path`; empty
    for what cannot be run again, such as an interactive session.  Also `sys_path` and
    `sys_argv`, as bytes: file names need not be text that can be encoded.
    """
    return {
        **_describe_main(),
        'sys_path': [_encoded(entry) for entry in sys.path],
        'sys_argv': [_encoded(arg) for arg in sys.argv],
    }


def _encoded(entry: object) -> bytes:
    return str(entry).encode('utf-8', 'surrogatepass')


def _decoded(entries: list[bytes]) -> list[str]:
    return [entry.decode('utf-8', 'surrogatepass') for entry in entries]


def _describe_main() -> dict[str, Any]:
    main = sys.modules['__main__']
    spec = getattr(main, '__spec__', None)
    name = getattr(spec, 'name', None)
    if name is not None:
        return {'init_main_from_name': name}
    path = getattr(main, '__file__', None)
    if path is None or not os.path.exists(path):
        return {'init_main_from_path': ''}
    return {'init_main_from_path': os.path.abspath(path)}


def replay(data: dict[str, Any]) -> None:
    """
    Run the described `__main__` as `__mp_main__`; a second time is a no-op.

    What is importable here and not in the parent stays so, after what is there.

    Raises:
        Exception: Whatever the module raises while it is run.
    """
    if 'sys_path' in data:
        sys.path[:] = dict.fromkeys([*_decoded(data['sys_path']), *sys.path])
    if 'sys_argv' in data:
        sys.argv[:] = _decoded(data['sys_argv'])
    name, path = data.get('init_main_from_name'), data.get('init_main_from_path')
    if name:
        _from_name(name)
    elif path:
        _from_path(path)


def _from_name(name: str) -> None:
    # A package's own main, `python -m pkg`, is not meant to be run again.
    current = sys.modules['__main__']
    if name == '__main__' or name.endswith('.__main__'):
        return
    if getattr(current.__spec__, 'name', None) == name:
        return
    _install(runpy.run_module(name, run_name=ALIAS, alter_sys=True))


def _from_path(path: str) -> None:
    current = sys.modules['__main__']
    if os.path.splitext(os.path.basename(path))[0] == 'ipython':
        return
    if getattr(current, '__file__', None) == path:
        return
    _install(runpy.run_path(path, run_name=ALIAS))


def _install(content: dict[str, Any]) -> None:
    module = types.ModuleType(ALIAS)
    module.__dict__.update(content)
    sys.modules['__main__'] = sys.modules[ALIAS] = module
