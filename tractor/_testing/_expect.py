"""
Assertions about how a block of a test ends.

Owns `expect_ctxc()`; nothing here starts or stops a runtime.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tractor.trionics._taskc import BoxedMaybeException


@asynccontextmanager
async def expect_ctxc(
    yay: object,
    reraise: bool = False,
) -> AsyncIterator[BoxedMaybeException]:
    """
    Require that the block raises a `ContextCancelled`, if `yay` says so.

    Any other exception, `trio.Cancelled` included, passes through unchanged.

    Args:
        yay: Taken for its truth; when false the block is left alone entirely.
        reraise: Let the expected exception out of the block instead of absorbing it.
    Returns:
        A box whose `.value` is the exception after the block, or `None`.
    Raises:
        RuntimeError: An expected exception did not come.
        ContextCancelled: As raised by the block, with `reraise`.
    """
    # Both load the runtime, which a test module's import must not pay for.
    from tractor._exceptions import ContextCancelled
    from tractor.trionics._taskc import BoxedMaybeException

    box = BoxedMaybeException()
    if not yay:
        yield box
        return

    try:
        yield box
    except ContextCancelled as ctxc:
        box.value = ctxc
        if reraise:
            raise
    else:
        raise RuntimeError('Never raised ctxc?')
