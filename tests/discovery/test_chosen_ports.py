"""Roots and registries at ports that the system chooses."""

from __future__ import annotations

from typing import Any, Final

import trio

import tractor
from tractor.runtime import _state

ANY_PORT: Final = ('127.0.0.1', 0)
DEADLINE: Final = 10.0


async def own_registries() -> tuple[Any, Any]:
    actor = tractor.current_actor()
    return actor.reg_addrs, _state._runtime_vars['_registry_addrs']


def test_a_registry_is_known_by_the_port_it_got():
    """The registrar and its children name it, so that they find each other."""

    async def main():
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(registry_addrs=[ANY_PORT] * 2) as an:
                root = tractor.current_actor()
                assert sorted(root.reg_addrs) == sorted(root.accept_addrs)
                assert _state._runtime_vars['_registry_addrs'] == root.reg_addrs
                assert all(addr.is_valid for addr in root.registry_addrs)
                child = await an.start_actor('child', enable_modules=[__name__])
                for addrs in await child.run(own_registries):
                    assert [tuple(addr) for addr in addrs] == root.reg_addrs
                async with tractor.wait_for_actor('child') as portal:
                    assert portal.chan.aid.uid == child.chan.aid.uid
                async with tractor.find_actor('child') as portal:
                    assert portal is not None
                await an.cancel()

    before = list(_state._runtime_vars['_registry_addrs'])
    trio.run(main)
    assert _state._runtime_vars['_registry_addrs'] == before


def test_each_port_that_is_asked_for_is_bound():
    """Two that the system chooses are not the same, though they are written alike."""

    async def main():
        with trio.fail_after(DEADLINE):
            async with tractor.open_root_actor(
                registry_addrs=[ANY_PORT], tpt_bind_addrs=[ANY_PORT, ANY_PORT]
            ) as root:
                assert len(set(root.accept_addrs)) == 3
                assert root.reg_addrs == root.accept_addrs[2:]

    trio.run(main)
