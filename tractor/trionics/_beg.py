"""
Collapse exception groups that hold a single error.

A strict nursery wraps whatever leaves it, even one error.  Code that expects one
bare error reduces the group here, where the rule lives: a group counts as its
only leaf, however deep that leaf sits.  A leaf is raised as the identical object,
with its own cause and context, so that what it says about its origin survives.
Used by every block that opens a nursery on a caller's behalf, by the RPC engine,
and by applications.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Final, Literal, NoReturn

import trio

from tractor._protocol.verdict import leaves

COLLAPSE_NOTE: Final = '( ^^^ this exc was collapsed from a group ^^^ )'


def get_collapsed_eg(beg: BaseException) -> BaseException | None:
    """
    Reduce a group: every group with one member becomes that member.

    Args:
        beg: A group, or any other exception.
    Returns:
        The only leaf, or a derived group with fewer levels; `None` when there is
        nothing to reduce.
    """
    reduced = _reduce(beg)
    return None if reduced is beg else reduced


def _reduce(exc: BaseException) -> BaseException:
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    members = [_reduce(member) for member in exc.exceptions]
    if len(members) == 1:
        return members[0]
    if all(new is old for new, old in zip(members, exc.exceptions, strict=True)):
        return exc
    derived: BaseExceptionGroup[BaseException] = exc.derive(members)
    return derived


def collapse(
    exc: BaseException,
    ignore: Collection[type[BaseException]] = (),
    add_notes: bool = True,
) -> BaseException:
    """
    Return the single leaf of a group, or `exc` itself.

    Args:
        exc: A group, nested or not, or any other exception.
        ignore: Exact leaf types for which the group is kept.
        add_notes: Append `COLLAPSE_NOTE` to the leaf, unless it is there already.
    Returns:
        The leaf object; `exc` unchanged when it is no group, has several leaves
        or its leaf is to be ignored.
    """
    leaf = exc
    while isinstance(leaf, BaseExceptionGroup):
        if len(leaf.exceptions) != 1:
            return exc
        leaf = leaf.exceptions[0]
    if leaf is exc or type(leaf) in ignore:
        return exc
    if add_notes and COLLAPSE_NOTE not in getattr(leaf, '__notes__', ()):
        leaf.add_note(COLLAPSE_NOTE)
    return leaf


def strip(exc: BaseException) -> BaseException:
    """
    Take off groups with one member from the outside: nurseries put them there.

    What several tasks met and raised, one and the same exception, is one member.

    Returns:
        The only leaf, with its note, or the outermost group with several members.
    """
    inner = exc
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    if not isinstance(inner, BaseExceptionGroup):
        return collapse(exc)
    first, *others = leaves(inner)
    return inner if any(leaf is not first for leaf in others) else first


def raise_as_is(exc: BaseException) -> NoReturn:
    """
    Raise `exc` with the context it has.

    A plain `raise` inside a handler replaces `__context__` by the exception being
    handled, and with it the trace of what `exc` itself was raised in response to.

    Raises:
        BaseException: `exc`, always.
    """
    context = exc.__context__
    try:
        raise exc
    finally:
        exc.__context__ = context
        # The traceback refers to this frame; do not refer back.
        del exc, context


@asynccontextmanager
async def collapse_eg(
    hide_tb: bool = True,
    ignore: Collection[type[BaseException]] = frozenset(),
    add_notes: bool = True,
    bp: bool = False,
) -> AsyncGenerator[None]:
    """
    Raise the only leaf of a group which the body raises, instead of the group.

    Waits for nothing.  Groups with several leaves, and everything that is no
    group, pass unchanged.

    Args:
        hide_tb: Mark this frame as hidden for debuggers and test reports.
        ignore: Exact types of leaves which keep their group.
        add_notes: Append one note to the leaf which says that it was collapsed.
        bp: Enter the debugger (`sys.breakpointhook()`) before raising the leaf.
    Raises:
        BaseException: The leaf, as the identical object.
    """
    __tracebackhide__ = hide_tb
    try:
        yield
    except BaseExceptionGroup as group:
        leaf = collapse(group, ignore, add_notes)
        if leaf is group:
            raise
        if bp:
            sys.breakpointhook()  # noqa: T100  what `bp` asks for
        # The group says nothing that the leaf does not: as `raise leaf from None`,
        # except that a cause is kept.
        leaf.__suppress_context__ = True
        raise_as_is(leaf)


def is_multi_cancelled(
    beg: BaseException,
    ignore_nested: Collection[type[BaseException]] = frozenset(),
) -> Literal[False] | BaseExceptionGroup[BaseException]:
    """
    Return the part of a group that is cancellation.

    Args:
        beg: The exception to look into; one that is no group never matches.
        ignore_nested: Types that count as cancellation beside `trio.Cancelled`.
    Returns:
        The subgroup of matching leaves, thus truthy when some leaf matches, or
        `False`.
    """
    if not isinstance(beg, BaseExceptionGroup):
        return False
    return beg.subgroup((trio.Cancelled, *ignore_nested)) or False
