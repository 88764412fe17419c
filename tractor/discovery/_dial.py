"""
Connections to registrars and to other actors, by address.

What `_register` and the look-ups of `_api` share: every one of them opens a fresh
connection, uses it as a portal and closes it.  The one actor that a registrar never
dials is itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Final

import trio

from tractor._exceptions import RemoteActorError, TransportClosed
from tractor.discovery._addr import Address, UnwrappedAddress
from tractor.ipc._chan import Channel, _connect_chan
from tractor.runtime._portal import Portal, open_portal
from tractor.trionics._beg import collapse_eg

if TYPE_CHECKING:
    from tractor.runtime._local_portal import LocalPortal
    from tractor.runtime._runtime import Actor

type AnyAddress = Address | UnwrappedAddress | str
type RegistryPortal = Portal | LocalPortal

# What it is like to ask a registrar that is not there, leaves, or is none.
UNREACHABLE: Final = (OSError, TransportClosed, RemoteActorError)


@trio.lowlevel.enable_ki_protection
def portal_to_itself(actor: Actor) -> LocalPortal:
    """Return what a registrar uses where others dial it."""
    from tractor.runtime._local_portal import LocalPortal  # one actor of a tree

    return LocalPortal(actor, Channel())


@asynccontextmanager
async def open_addr_portal(
    addr: AnyAddress | None, timeout: float = inf, **portal_kwargs: Any
) -> AsyncGenerator[Portal]:
    """
    Yield a portal over a fresh connection to `addr`, closed on exit.

    Args:
        addr: In any form that `wrap_address()` takes.
        timeout: Seconds for the peer to accept and to tell who it is.
        portal_kwargs: Passed to `open_portal()`.
    Raises:
        TimeoutError: It did not in that time.
        OSError: Nobody listens there.
        TransportClosed: It hung up before it told who it is.
    """
    with trio.move_on_after(timeout) as scope:
        async with (
            collapse_eg(),
            _connect_chan(addr) as chan,
            open_portal(chan, **portal_kwargs) as portal,
        ):
            scope.deadline = inf
            if scope.cancel_called:  # too late by an instant
                await trio.lowlevel.checkpoint_if_cancelled()
            yield portal
    if scope.cancelled_caught:
        raise TimeoutError(f'no answer from {addr} within {timeout:g} s')
