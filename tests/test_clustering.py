"""Clusters: how their actors are named, and how they end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import tractor


async def own_name() -> str:
    return tractor.current_actor().name


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a program that opens its own root, under a deadline."""

    async def bounded() -> Any:
        with trio.fail_after(10):
            return await main()

    return trio.run(bounded)


def test_cluster_is_named_after_its_parent(reg_addr):
    """Each child is listed under, and carries, its full name."""

    async def main():
        async with tractor.open_actor_cluster(
            modules=[__name__], count=2, registry_addrs=[reg_addr]
        ) as portals:
            return {
                name: await portal.run(own_name) for name, portal in portals.items()
            }

    assert run(main) == {
        'root.worker_0': 'root.worker_0',
        'root.worker_1': 'root.worker_1',
    }


def test_cluster_needs_a_name_for_each_child(reg_addr):
    """Names and count must agree."""

    async def main():
        async with tractor.open_actor_cluster(
            modules=[], count=2, names=['one'], registry_addrs=[reg_addr]
        ):
            raise AssertionError('it was opened')

    with pytest.raises(ValueError, match='names'):
        run(main)


def test_error_in_a_cluster_is_raised_bare(reg_addr):
    """A cluster ends like a nursery."""

    async def main():
        async with tractor.open_actor_cluster(
            modules=[], count=2, registry_addrs=[reg_addr]
        ):
            raise ValueError('of the body')

    with pytest.raises(ValueError, match='of the body'):
        run(main)
