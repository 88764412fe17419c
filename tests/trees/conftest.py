"""
Trees of real actors, under the backend and transport of the session.

Every tree runs under a deadline, so that a hang is one failed test.  Functions that run
in children stand at the top of the test modules, which the children import by name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import tractor

DEADLINE = 10.0


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
