"""
Import a module from a file path, whatever `sys.path` says.

A module is in `sys.modules` if and only if its code ran to the end.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def load_module_from_path(path: Path, module_name: str | None = None) -> ModuleType:
    """
    Execute a source file as a new module, and register that in `sys.modules`.

    Args:
        path: The file.
        module_name: The module's full name; `None` means the file's stem.
    Raises:
        ImportError: No importer takes files of this kind.
        FileNotFoundError: No such file.
    """
    path = Path(path)
    name = path.stem if module_name is None else module_name
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f'no importer for {str(path)!r}; pass a .py file', name=name)
    module = module_from_spec(spec)
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if previous is None:
            sys.modules.pop(name, None)
        else:
            sys.modules[name] = previous
        raise
    return module
