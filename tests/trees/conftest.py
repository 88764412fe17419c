"""
Trees of real actors, under the backend and transport of the session.

Every tree runs under a deadline, so that a hang is one failed test.  Functions that run
in children stand at the top of the test modules, which the children import by name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

import tractor
from tractor._testing import repodir

DEADLINE = 30.0
PROGRAM_DEADLINE = 25.0


@pytest.fixture
def run_tree(reg_addr: Any) -> Callable[[Callable[..., Awaitable[Any]]], Any]:
    """Run a body inside the nursery of a fresh root actor; return what it returns."""

    def run(body: Callable[[tractor.ActorNursery], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            with trio.fail_after(DEADLINE):
                async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                    return await body(an)

        return trio.run(main)

    return run


@pytest.fixture
def run_program(
    tmp_path: Path, reg_addr: Any, spawn_backend: str
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own; it has the names `REG_ADDR` and `trio`."""

    def run(
        text: str, *args: str, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        script = tmp_path / 'program.py'
        script.write_text(
            f'import trio\nimport tractor\nREG_ADDR = {reg_addr!r}\n{text}'
        )
        return subprocess.run(
            [sys.executable, str(script), *args],
            cwd=cwd,
            env={
                **os.environ,
                'PYTHONPATH': f'{tmp_path}{os.pathsep}{repodir()}',
                'TRACTOR_SPAWN_METHOD': spawn_backend,
            },
            capture_output=True,
            text=True,
            timeout=PROGRAM_DEADLINE,
        )

    return run
