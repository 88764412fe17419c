"""
How a boxed error changes from one actor to the next.

An error is boxed where it is raised and again by every actor it escapes from.
`hop()` computes the wire fields of one such step; `_boxing` fills in the rest.
"""

from __future__ import annotations

from typing import Final, NamedTuple

Uid = tuple[str, str]

RELAYED: Final = 'RemoteActorError'


class Hop(NamedTuple):
    """Who raised it, what it was there, what it is here, and the way it came."""

    src_uid: Uid
    src_type_str: str
    boxed_type_str: str
    relay_path: list[Uid]


def hop(
    type_name: str,
    here: Uid,
    came: Hop | None = None,
) -> Hop:
    """
    Return the fields under which the actor `here` ships an error.

    Args:
        type_name: Name of the exception's own type in this actor.
        here: `(name, uuid)` of the shipping actor.
        came: The fields it arrived with, or `None` if it was raised here.

    An exact `RemoteActorError` keeps its source and only gains a stop on its path.
    Any other type that arrived boxed (a `ContextCancelled`, a `MsgTypeError`) speaks
    for the actor that ships it, which adds itself to its path.
    """
    if came is None:
        return Hop(here, type_name, type_name, [here])
    path = [*came.relay_path, here]
    if type_name == RELAYED:
        return Hop(came.src_uid, came.src_type_str, RELAYED, path)
    return Hop(here, type_name, type_name, path)
