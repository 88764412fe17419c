"""
Type unions as lists of names, and back.

A payload spec cannot travel, the names of its members can.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin


def enc_type_union(union_or_type: Any) -> list[str]:
    """Return the `__qualname__` of each member, in order."""
    if get_origin(union_or_type) in (Union, UnionType):
        members: tuple[Any, ...] = get_args(union_or_type)
    else:
        members = (union_or_type,)
    return [
        (type(None) if member is None else member).__qualname__ for member in members
    ]


def dec_type_union(type_names: Sequence[str], mods: Sequence[ModuleType] = ()) -> Any:
    """
    Return the union of the named types.

    Args:
        type_names: As `enc_type_union()` gives them.
        mods: Where to look, in this order, after `typing`.  A name found nowhere is
            left out.
    Raises:
        TypeError: None of the names was found.
    """
    found: list[Any] = []
    for name in type_names:
        for mod in (typing, *mods):
            if hasattr(mod, name):
                found.append(getattr(mod, name))
                break
    if not found:
        raise TypeError(
            f'none of the types {list(type_names)} is in typing or'
            f' {[mod.__name__ for mod in mods]}; pass their modules as `mods`'
        )
    return Union[tuple(found)]  # noqa: UP007
