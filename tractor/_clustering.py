"""Actor clusters: a number of equal actors, started together."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from .runtime._supervise import open_nursery
from .trionics._beg import strip

if TYPE_CHECKING:
    from .runtime._portal import Portal


@asynccontextmanager
async def open_actor_cluster(
    modules: list[str],
    count: int = os.cpu_count() or 1,
    names: list[str] | None = None,
    hard_kill: bool = False,
    **runtime_kwargs: Any,
) -> AsyncIterator[dict[str, Portal]]:
    """
    Start `count` actors at once that all serve the same modules.

    Leaving the block cancels them and waits for their processes.

    Args:
        modules: Names of the modules.
        count: How many; one for each processor by default.
        names: Their names, `worker_0` and so on by default; each is prefixed with
            this actor's name and a dot.
        hard_kill: End them by `SIGTERM` instead of asking.
        **runtime_kwargs: For `open_root_actor()`, if there is no runtime yet.
    Yields:
        `{name: portal}`.
    Raises:
        ValueError: There are not as many names as actors.
    """
    if names is None:
        names = [f'worker_{i}' for i in range(count)]
    if len(names) != count:
        raise ValueError(f'{count} actors need {count} names, there are {len(names)}')
    portals: dict[str, Portal] = {}
    async with open_nursery(**runtime_kwargs) as an:
        prefix = an._actor.name

        async def start(name: str) -> None:
            portals[name] = await an.start_actor(name, enable_modules=modules)

        try:
            async with trio.open_nursery() as tn:
                for name in names:
                    tn.start_soon(start, f'{prefix}.{name}')
        except BaseExceptionGroup as group:
            raise strip(group) from None
        yield {name: portals[name] for name in sorted(portals, key=_in_order)}
        await an.cancel(hard_kill=hard_kill)


def _in_order(name: str) -> tuple[str, int, str]:
    """Sort `worker_10` behind `worker_9`."""
    stem, _, number = name.rpartition('_')
    return (stem, int(number), name) if number.isdigit() else (name, 0, name)
