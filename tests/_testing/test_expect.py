"""Expected cancellations, and what becomes of them and of other errors."""

from __future__ import annotations

import pytest
import trio

from tractor._exceptions import ContextCancelled
from tractor._testing import expect_ctxc


def run(block, **options):
    """Run `block` under `expect_ctxc()` and return the box."""

    async def main():
        async with expect_ctxc(**options) as box:
            assert box.value is None
            await block()
        return box

    return trio.run(main)


async def raise_ctxc():
    raise ContextCancelled('cancelled in the test')


async def do_nothing():
    await trio.lowlevel.checkpoint()


def test_expected_cancellation_is_absorbed_and_kept():
    """The exception ends in the box and not in the caller; any truth will do."""
    assert isinstance(run(raise_ctxc, yay=1).value, ContextCancelled)


def test_expected_cancellation_can_be_let_through():
    """With `reraise` the very exception of the block leaves it."""
    with pytest.raises(ContextCancelled, match='cancelled in the test'):
        run(raise_ctxc, yay=True, reraise=True)


def test_missing_cancellation_is_an_error():
    """A block that ends quietly did not do what was expected."""
    with pytest.raises(RuntimeError, match=r'Never raised ctxc\?'):
        run(do_nothing, yay=True)


def test_other_errors_pass():
    """Only a `ContextCancelled` counts."""

    async def fail():
        raise ValueError('something else')

    with pytest.raises(ValueError, match='something else'):
        run(fail, yay=True)


def test_without_expectation_the_block_is_left_alone():
    """A false `yay`, of any type, neither requires nor absorbs anything."""
    assert run(do_nothing, yay=0).value is None
    with pytest.raises(ContextCancelled):
        run(raise_ctxc, yay=None)
