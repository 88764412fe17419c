"""A pytest run of its own, in a process of its own, for tests of the plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tractor._testing import repodir

type PytestRun = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope='module')
def run_pytest(tmp_path_factory: pytest.TempPathFactory) -> PytestRun:
    """Run pytest with the plugin on a file of this source; in-process runs would share
    the process-wide settings which the plugin is there to change."""

    def run(
        source: str, *args: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        directory: Path = tmp_path_factory.mktemp('inner')
        (directory / 'test_inner.py').write_text(source)
        inherited = {k: v for k, v in os.environ.items() if k != 'CI'}
        return subprocess.run(
            [
                *(sys.executable, '-m', 'pytest', '-rA', '-v', '--rootdir=.'),
                *('-p', 'tractor._testing.pytest', '-p', 'no:cacheprovider'),
                *('-W', 'error', *args, 'test_inner.py'),
            ],
            cwd=directory,
            env=inherited | {'PYTHONPATH': str(repodir())} | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run
