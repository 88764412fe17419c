"""
Where the source checkout is, and how its example scripts are started.

The package runs in place: the checkout's root is three levels above any file of this
directory, next to `examples/` and `tests/`.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path


def repodir() -> Path:
    """Return the absolute path of the checkout's root."""
    return Path(__file__).absolute().parent.parent.parent


def examples_dir() -> Path:
    """Return the absolute path of the example scripts."""
    return repodir() / 'examples'


def mk_cmd(ex_name: str, exs_subpath: str = 'debugging') -> str:
    """
    Return the shell command that runs one example script.

    Turns off coloured tracebacks in this process' environment, so that a test which
    reads the script's terminal sees plain text.

    Args:
        ex_name: File name of the script without its suffix.
        exs_subpath: Folder below `examples/`.
    """
    os.environ['PYTHON_COLORS'] = '0'
    script = examples_dir() / exs_subpath / f'{ex_name}.py'
    return f'python {shlex.quote(str(script))}'
