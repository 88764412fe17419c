"""Children of the fork server: their environment is their parent's."""

from __future__ import annotations

import os

import pytest
import trio

import tractor

VARIABLE = 'TRACTOR_TEST_OF_THE_ENVIRONMENT'


async def get_variable() -> str | None:
    return os.environ.get(VARIABLE)


@pytest.mark.parametrize('value', ['first', 'second', None])
def test_environment_is_the_parents(reg_addr, monkeypatch, value):
    """A change made after the server was started reaches the child."""
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                portal = await an.start_actor('child', enable_modules=[__name__])
                assert await portal.run(get_variable) == value
                await an.cancel()

    trio.run(main)
