"""The stack of what a process has to undo when its actor ends."""

from __future__ import annotations

import pytest
import trio

import tractor


@pytest.mark.parametrize('error', [None, ValueError])
def test_the_lifetime_stack_is_that_of_the_process(reg_addr, error):
    """It can be filled before there is an actor; each actor closes it once."""
    closed = []

    async def main(name):
        async with tractor.open_root_actor(registry_addrs=[reg_addr]):
            stack = tractor.current_actor().lifetime_stack
            assert stack is tractor.Actor.lifetime_stack
            stack.callback(closed.append, name)
            assert closed == before
            if error is not None:
                raise error

    for name in ('first', 'second'):
        tractor.Actor.lifetime_stack.callback(closed.append, f'ahead of {name}')
        before = [*closed]
        if error is None:
            trio.run(main, name)
        else:
            with pytest.raises(error):
                trio.run(main, name)
        assert closed == [*before, name, f'ahead of {name}']
