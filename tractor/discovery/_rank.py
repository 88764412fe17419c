"""
Which address of an actor to use: the cheapest one.

Unix sockets go before TCP on this host, and that before TCP to another host; of equals
the last one leads.  To tell where a TCP address is may take resolving the name of this
host, which blocks for as long as a name server likes: `rank()` does it in a thread, and
once; what does not await does it in place.  Used by the look-ups, and by a nursery to
choose where its children connect to.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from typing import Final

import trio

from tractor.discovery._addr import Address, UnwrappedAddress, wrap_address

type AnyAddress = Address | UnwrappedAddress | str

RESOLVE_TIMEOUT: Final = 2.0  # seconds for the name of this host

# Preference of an address: the larger the better.
TIER_REMOTE: Final = 0
TIER_LOCAL_TCP: Final = 1
TIER_UDS: Final = 2

# The hosts that each name of this host was resolved to; none if that failed.
_resolved: Final[dict[str, frozenset[str]]] = {}


def _is_local_addr(addr: AnyAddress, own_hosts: Collection[str] | None = None) -> bool:
    """
    Tell whether `addr` is on this host.

    A Unix socket always is.  A TCP address is if it is a loopback one or among those
    that this host's own name resolves to; without resolution it counts as remote.

    Args:
        addr: In any form that `wrap_address()` takes.
        own_hosts: What that name resolves to; `None` means to find out, which blocks.
    """
    if not _needs_own_hosts(addr):
        return True
    if own_hosts is None:
        own_hosts = _resolve(socket.gethostname())
    return wrap_address(addr).unwrap()[0] in own_hosts


@trio.lowlevel.enable_ki_protection
def _needs_own_hosts(addr: AnyAddress) -> bool:
    """Tell whether it takes this host's addresses to know where `addr` is."""
    wrapped = wrap_address(addr)
    if wrapped.proto_key == 'uds':
        return False
    from ipaddress import ip_address  # children dial nobody as a rule

    return not ip_address(wrapped.unwrap()[0]).is_loopback


def _resolve(name: str) -> frozenset[str]:
    """Return the addresses of a host, none if they cannot be found; blocks."""
    try:
        found = socket.getaddrinfo(name, None)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(str(sockaddr[0]) for *_, sockaddr in found)


async def _own_hosts() -> frozenset[str]:
    """Return the addresses of this host; found out once, waiting for a while."""
    name = socket.gethostname()
    if name not in _resolved:
        found: frozenset[str] = frozenset()
        with trio.move_on_after(RESOLVE_TIMEOUT):
            found = await trio.to_thread.run_sync(
                _resolve, name, abandon_on_cancel=True
            )
        _resolved[name] = found
    return _resolved[name]


def _tier(addr: AnyAddress, own_hosts: Collection[str]) -> int:
    """Return how cheap it is to reach `addr`."""
    if wrap_address(addr).proto_key == 'uds':
        return TIER_UDS
    return TIER_LOCAL_TCP if _is_local_addr(addr, own_hosts) else TIER_REMOTE


def _ranked[A: AnyAddress](addrs: Sequence[A], own_hosts: Collection[str]) -> list[A]:
    """Return `addrs` from the best to the worst; of equals the last one leads."""
    return sorted(addrs, key=lambda addr: _tier(addr, own_hosts))[::-1]


def _is_settled(addrs: Sequence[AnyAddress]) -> bool:
    """Tell whether `addrs` can be ranked without the addresses of this host."""
    return len(addrs) < 2 or not any(map(_needs_own_hosts, addrs))


def prefer_addr(
    addrs: Sequence[UnwrappedAddress], own_hosts: Collection[str] | None = None
) -> UnwrappedAddress:
    """
    Choose the cheapest of an actor's addresses.

    Args:
        addrs: One or more unwrapped addresses.
        own_hosts: The addresses of this host; `None` means to find out if that is
            needed, which blocks.
    """
    if own_hosts is None:
        own_hosts = () if _is_settled(addrs) else _resolve(socket.gethostname())
    return _ranked(addrs, own_hosts)[0]


async def rank[A: AnyAddress](addrs: Sequence[A]) -> list[A]:
    """Return an actor's addresses from the cheapest to the dearest."""
    return _ranked(addrs, () if _is_settled(addrs) else await _own_hosts())
