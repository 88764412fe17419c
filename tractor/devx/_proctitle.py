"""
The process title of a subactor.

Owns the one text by which an actor's process is recognized from outside: `ps`, `top`
and the reaping helpers of the test plugin look for its prefix.  The main of every child
sets it once, right after its `Actor` was built and before the runtime starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tractor.runtime._runtime import Actor

_def_prefix: Final = '_subactor'


def set_actor_proctitle(actor: Actor, prefix: str = _def_prefix) -> str | None:
    """
    Name this process `<prefix>[<actor name>@<pid>]` for process listings.

    The command line shows the whole text, the kernel's task name its first 15 bytes.

    Args:
        actor: Any object with the identity as `.aid`; a running runtime is not needed.
        prefix: Text before the bracket.
    Returns:
        The title, or `None` where `setproctitle` is not installed.
    """
    # A C extension which only titles need: an interpreter without it runs actors too.
    try:
        from setproctitle import setproctitle
    except ImportError:
        return None

    title = f'{prefix}[{actor.aid.reprol()}]'
    setproctitle(title)
    return title
