"""
Connections to registrars and to other actors, by address.

What `_register` and the look-ups of `_api` share: every one of them opens a fresh
connection, uses it as a portal and closes it.  The one actor that a registrar never
dials is itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from tractor._exceptions import RemoteActorError, TransportClosed
from tractor.discovery._addr import Address, UnwrappedAddress
from tractor.ipc._chan import _connect_chan
from tractor.runtime._portal import LocalPortal, Portal, open_portal
from tractor.trionics._beg import collapse_eg

type AnyAddress = Address | UnwrappedAddress | str
type RegistryPortal = Portal | LocalPortal

# What it is like to ask a registrar that is not there, leaves, or is none.
UNREACHABLE: Final = (OSError, TransportClosed, RemoteActorError)


@asynccontextmanager
async def open_addr_portal(
    addr: AnyAddress | None, **portal_kwargs: Any
) -> AsyncGenerator[Portal]:
    """
    Yield a portal over a fresh connection to `addr`, closed on exit.

    Raises:
        OSError: Nobody listens there.
        TransportClosed: It hung up before it told who it is.
    """
    async with (
        collapse_eg(),
        _connect_chan(addr) as chan,
        open_portal(chan, **portal_kwargs) as portal,
    ):
        yield portal
