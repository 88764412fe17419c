"""
What stands for a portal where an actor would talk to itself.

A module of its own, since only a registrar needs it, and `dataclasses` takes longer to
load than all else here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..ipc._chan import Channel
    from ._runtime import Actor


@dataclass(eq=False, slots=True)
class LocalPortal:
    """
    What stands for a portal to this very actor: direct calls, no connection.

    Args:
        actor: The local actor.
        channel: A channel without a transport.
    """

    actor: Actor
    channel: Channel

    @property
    def chan(self) -> Channel:
        """The channel without a transport."""
        return self.channel

    async def run_from_ns(self, ns: str, func_name: str, **kwargs: Any) -> Any:
        """
        Call a method of the actor (`ns == 'self'`), or a function of a module.

        Raises:
            AttributeError: There is none of that name.
        """
        if ns == 'self':
            return await getattr(self.actor, func_name)(**kwargs)
        import importlib  # only for this rare case

        return await getattr(importlib.import_module(ns), func_name)(**kwargs)

    def __repr__(self) -> str:
        return f'<LocalPortal of {self.actor.aid.reprol()}>'
