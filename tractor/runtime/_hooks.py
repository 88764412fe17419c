"""
What a debugger fills in.

The runtime calls these at the points where a debugger has to have its say.  Without
one they answer at once.  Only a debugger assigns to them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

Debugger = Callable[[], Awaitable[None]]
Crashed = Callable[[BaseException], Awaitable[bool]]

_wait: Debugger | None = None
_post_mortem: Crashed | None = None


def install(wait: Debugger | None, post_mortem: Crashed | None) -> None:
    """
    Set the hooks, or clear them with `None`.

    Args:
        wait: Waits until no actor of the tree uses the terminal.
        post_mortem: Shows an error in a debugger; tells whether it did.
    """
    global _wait, _post_mortem
    _wait, _post_mortem = wait, post_mortem


async def wait_for_debugger() -> None:
    """Wait until no debugger is in use; without one, return at once."""
    if _wait is not None:
        await _wait()


async def post_mortem(error: BaseException) -> bool:
    """Offer an error to the debugger; return whether it was shown."""
    return _post_mortem is not None and await _post_mortem(error)
