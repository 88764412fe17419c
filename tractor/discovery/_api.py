"""
Find, wait for and query actors, and keep one's own registration.

Every look-up asks a registrar and then dials the target's *listener*: a channel that
happens to be open to an actor of that name proves nothing about whether others can
reach it.  The one shortcut is towards the registrar itself, where the parent channel
serves if its peer is that very process.

An actor may have several addresses.  They are dialed from the cheapest to the
dearest (`prefer_addr`); if none answers, they are stale and the registrar is asked to
drop them.  `_root` uses `elect_root()`, applications the rest.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from tractor._exceptions import TransportClosed
from tractor._protocol.election import Election, Probe, elect
from tractor.discovery._addr import (
    Address,
    UnwrappedAddress,
    default_lo_addrs,
    get_address_cls,
    mk_uuid,
    wrap_address,
)
from tractor.discovery._dial import AnyAddress, RegistryPortal, open_addr_portal
from tractor.ipc._chan import Channel, _connect_chan
from tractor.log import get_logger
from tractor.msg.types import Aid
from tractor.runtime import _state
from tractor.runtime._portal import LocalPortal, Portal
from tractor.runtime._state import current_actor
from tractor.trionics._beg import collapse_eg

if TYPE_CHECKING:
    from tractor.runtime._runtime import Actor

log = get_logger(__name__)

PROBE_NAME: Final = 'registry-probe'
REGISTRAR_ALIAS: Final = 'registrar'
DIALS: Final = 3  # of one address whose listener hangs up each time
DIAL_PAUSE: Final = 0.02  # seconds between them

# Preference of an address: the larger the better.
TIER_REMOTE: Final = 0
TIER_LOCAL_TCP: Final = 1
TIER_UDS: Final = 2


def _is_local_addr(addr: AnyAddress) -> bool:
    """
    Tell whether `addr` is on this host.

    A Unix socket always is.  A TCP address is if it is a loopback one or among those
    that this host's own name resolves to; without resolution it counts as remote.
    """
    wrapped = wrap_address(addr)
    if wrapped.proto_key == 'uds':
        return True
    from ipaddress import ip_address  # children dial nobody as a rule

    host = wrapped.unwrap()[0]
    if ip_address(host).is_loopback:
        return True
    try:
        found = socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return False
    return any(sockaddr[0] == host for *_, sockaddr in found)


def _tier(addr: AnyAddress) -> int:
    """Return how cheap it is to reach `addr`."""
    if wrap_address(addr).proto_key == 'uds':
        return TIER_UDS
    return TIER_LOCAL_TCP if _is_local_addr(addr) else TIER_REMOTE


def _ranked[A: AnyAddress](addrs: Sequence[A]) -> list[A]:
    """Return `addrs` from the best to the worst; of equals the last one leads."""
    if len(addrs) < 2:
        return list(addrs)  # no need to look up this host's name
    return sorted(addrs, key=_tier)[::-1]


def prefer_addr(addrs: Sequence[UnwrappedAddress]) -> UnwrappedAddress:
    """
    Choose the cheapest of an actor's addresses.

    Unix sockets go before local TCP, local before remote TCP; of equals the last.

    Args:
        addrs: One or more unwrapped addresses.
    """
    return _ranked(addrs)[0]


@asynccontextmanager
async def get_registry(
    addr: AnyAddress | None = None,
) -> AsyncGenerator[RegistryPortal]:
    """
    Yield a portal to the registrar at `addr`, closed on exit.

    In the registrar itself `addr` is ignored and a `LocalPortal` is yielded, which
    awaits the methods in process.

    Args:
        addr: Where it listens; `None` is the default registry address of the default
            transport.
    Raises:
        OSError: Nothing listens at `addr`.
        NoRuntime: No actor runs in this process.
    """
    actor = current_actor()
    if actor.is_registrar:
        yield LocalPortal(actor, Channel())
        return
    async with open_addr_portal(addr) as portal:
        yield portal


@asynccontextmanager
async def get_root(**open_portal_kwargs: Any) -> AsyncGenerator[Portal]:
    """
    Yield a portal to the root of this actor's tree, closed on exit.

    Args:
        open_portal_kwargs: Passed to `open_portal()`.
    Raises:
        RuntimeError: The runtime does not know a root.
        OSError: The root does not listen any more.
    """
    actor = current_actor()
    mailbox = _state._runtime_vars['_root_mailbox']
    if mailbox is None or mailbox[0] is None:
        raise RuntimeError(f'actor {actor.aid.uid} knows no address of its root')
    async with open_addr_portal(mailbox, **open_portal_kwargs) as portal:
        yield portal


def get_peer_by_name(name: str) -> list[Channel] | None:
    """
    Return the live inbound channels of the first peer called `name`, or `None`.

    Only peers that connected to this actor are seen; `find_actor()` sees all.
    """
    server = current_actor().ipc_server
    if server is None:
        return None
    for uid, chans in server._peers.items():
        if uid[0] == name:
            live = [chan for chan in chans if chan.connected()]
            if live:
                return live
    return None


async def _dial(stack: AsyncExitStack, addr: UnwrappedAddress) -> Portal | None:
    """
    Enter a portal to `addr`; `None` if it hangs up however often it is dialed.

    A listener that is being closed drops who waits to be accepted, which looks like a
    peer that hangs up.  Only another dial tells: that one is refused.

    Raises:
        OSError: Nobody listens there, or nobody does any more.
    """
    for attempt in range(DIALS):
        if attempt:
            await trio.sleep(DIAL_PAUSE)
        try:
            return await stack.enter_async_context(open_addr_portal(addr))
        except TransportClosed as err:
            log.runtime('peer at %s hung up: %s', addr, err)
    return None


async def _enter_match(
    stack: AsyncExitStack,
    registry_addr: AnyAddress | None,
    addrs: Sequence[UnwrappedAddress] | None,
) -> Portal | None:
    """
    Enter a portal to the first of an actor's addresses that answers, best first.

    If none does, those that refused are stale and the registrar is asked to drop
    them.  While one works the others stay: they may serve somebody on another host.
    """
    stale: list[UnwrappedAddress] = []
    for addr in _ranked(addrs or ()):
        try:
            portal = await _dial(stack, addr)
        except OSError as err:
            log.runtime('nobody listens at %s: %r', addr, err)
            stale.append(addr)
        else:
            if portal is not None:
                return portal
    if stale:
        async with get_registry(registry_addr) as registry:
            for addr in stale:
                uid = await registry.run_from_ns('self', 'delete_addr', addr=addr)
                log.warning('dropped stale address %s of %s', addr, uid)
    return None


async def _look_up(
    registry_addr: AnyAddress | None, name: str
) -> list[UnwrappedAddress] | None:
    """Ask one registrar for the addresses of an actor."""
    async with get_registry(registry_addr) as registry:
        found: list[UnwrappedAddress] | None = await registry.run_from_ns(
            'self', 'find_actor', name=name
        )
    return found


@asynccontextmanager
async def maybe_open_portal(
    addr: AnyAddress | None, name: str
) -> AsyncGenerator[Portal | None]:
    """
    Yield a portal to the actor `name` known to the registrar at `addr`, or `None`.

    Stale entries are removed from that registrar.

    Raises:
        OSError: No registrar listens at `addr`.
    """
    async with collapse_eg(), AsyncExitStack() as stack:
        yield await _enter_match(stack, addr, await _look_up(addr, name))


@asynccontextmanager
async def query_actor(
    name: str, regaddr: AnyAddress | None = None
) -> AsyncGenerator[tuple[UnwrappedAddress | None, RegistryPortal]]:
    """
    Yield what a registrar knows about `name`, without connecting to it.

    Args:
        name: An actor's name or uuid.
        regaddr: The registrar; `None` is the first one this actor registers with.
    Yields:
        `(addr, reg_portal)`: the preferred unwrapped address or `None`, and the
        portal to the registrar.
    Raises:
        RuntimeError: The registrar asks for itself by its role.
        OSError: No registrar listens at `regaddr`.
    """
    actor = current_actor()
    if name == REGISTRAR_ALIAS and actor.is_registrar:
        raise RuntimeError('this actor is the registrar: it need not look itself up')
    async with get_registry(_own_registry(actor, regaddr)) as registry:
        addrs = await registry.run_from_ns('self', 'find_actor', name=name)
        yield (prefer_addr(addrs) if addrs else None), registry


@asynccontextmanager
async def wait_for_actor(
    name: str, registry_addr: AnyAddress | None = None
) -> AsyncGenerator[Portal]:
    """
    Wait until an actor registers as `name`, and yield a portal to it.

    The wait has no deadline; cancelling it leaves nothing at the registrar.  Of
    several actors of that name the latest with the cheapest address is taken.  The
    connection is closed on exit.

    Args:
        name: The exact name.
        registry_addr: The registrar; `None` is the first one this actor registers
            with.
    Raises:
        OSError: No registrar listens there.
    """
    registry_addr = _own_registry(current_actor(), registry_addr)
    async with collapse_eg(), AsyncExitStack() as stack:
        while True:
            async with get_registry(registry_addr) as registry:
                addrs = await registry.run_from_ns('self', 'wait_for_actor', name=name)
            portal = await _enter_match(stack, registry_addr, addrs)
            if portal is not None:
                break
        yield portal


@asynccontextmanager
async def find_actor(
    name: str,
    registry_addrs: Sequence[AnyAddress] | None = None,
    enable_transports: Sequence[str] | None = None,
    only_first: bool = True,
    raise_on_none: bool = False,
) -> AsyncGenerator[Portal | list[Portal | None] | None]:
    """
    Yield a portal to the actor `name`, or `None` if no registrar knows it.

    All registrars are asked at once.  Connections are closed on exit.

    Args:
        name: An actor's name or uuid.
        registry_addrs: The registrars; `None` means those this actor tree uses, or
            the default address of each transport if there are none.
        enable_transports: Keys of the transports whose default addresses those are;
            `None` is the default transport.
        only_first: Yield one portal; otherwise a list with one item, a portal or
            `None`, for each registrar.
        raise_on_none: Raise where `None` would be yielded.
    Raises:
        RuntimeError: Nobody is called `name` and `raise_on_none` is set.
        OSError: None of the registrars listens.
    """
    current_actor()  # without a runtime, say so before anything else
    registries: Sequence[AnyAddress] = (
        registry_addrs
        or _state._runtime_vars['_registry_addrs']
        or default_lo_addrs(list(enable_transports or [_state._def_tpt_proto]))
    )
    async with collapse_eg(), AsyncExitStack() as stack:
        answers = await _look_up_all(registries, name)
        portals: list[Portal | None] = []
        for registry, addrs in zip(registries, answers, strict=True):
            portal = await _enter_match(stack, registry, addrs)
            portals.append(portal)
            if only_first and portal is not None:
                break
        found = [portal for portal in portals if portal is not None]
        if raise_on_none and not found:
            raise RuntimeError(
                f'no actor named {name!r} is registered at {list(registries)}'
            )
        if only_first:
            yield found[0] if found else None
        else:
            yield portals


async def _look_up_all(
    registries: Sequence[AnyAddress], name: str
) -> list[list[UnwrappedAddress] | None]:
    """
    Ask all registrars at once; one that is down knows nobody.

    Raises:
        OSError: All are down.
    """
    answers: list[list[UnwrappedAddress] | None] = [None] * len(registries)
    failures: list[OSError] = []

    async def ask(index: int, registry: AnyAddress) -> None:
        try:
            answers[index] = await _look_up(registry, name)
        except OSError as err:
            log.warning('no registrar at %s: %r', registry, err)
            failures.append(err)

    async with trio.open_nursery() as tn:
        for index, registry in enumerate(registries):
            tn.start_soon(ask, index, registry)
    if len(failures) == len(registries):
        raise failures[0]
    return answers


def _own_registry(actor: Actor, given: AnyAddress | None) -> AnyAddress | None:
    """Return `given`, else the first registry of `actor`, else `None`."""
    if given is not None:
        return given
    return actor.reg_addrs[0] if actor.reg_addrs else None


async def _probe_registry(
    addr: Address,
    timeout: float = 3,
    attempt_timeout: float = 1,
    max_attempts: int = 3,
    retry_delay: float = 0.05,
    close_timeout: float = 0.2,
) -> Probe:
    """
    Find out what listens at `addr`, leaving no trace in a registrar's peer table.

    Args:
        addr: A wrapped address.
        timeout: Seconds for everything.
        attempt_timeout: Seconds for connecting and shaking hands once.
        max_attempts: How often a peer that accepts but stays silent is tried.
        retry_delay: Seconds before the second attempt; the n-th pause is n times it.
        close_timeout: Seconds for closing one connection.
    Returns:
        `'registrar'`, `'occupied'` (somebody accepts connections but is no
        registrar), or `'absent'` (nobody does).
    """
    aid = Aid(name=PROBE_NAME, uuid=mk_uuid(), pid=os.getpid(), is_probe=True)
    accepted = False
    with trio.move_on_after(timeout):
        for attempt in range(1, max_attempts + 1):
            peer: Aid | None = None
            with trio.move_on_after(attempt_timeout):
                try:
                    async with _connect_chan(
                        addr.unwrap(), close_timeout=close_timeout
                    ) as chan:
                        accepted = True
                        peer = await chan._do_handshake(
                            aid=aid, timeout=attempt_timeout
                        )
                except TransportClosed as err:
                    accepted = True
                    log.runtime('probe of %s: no handshake: %s', addr, err)
                except trio.TooSlowError:  # as if the time of the attempt were over
                    log.runtime('probe of %s: attempt %d too slow', addr, attempt)
                except OSError as err:
                    log.runtime('probe of %s: %r', addr, err)
                    return 'occupied' if accepted else 'absent'
            if peer is not None:
                return 'occupied' if peer.is_registrar is False else 'registrar'
            if not accepted:
                return 'absent'
            if attempt < max_attempts:
                await trio.sleep(retry_delay * attempt)
    return 'occupied' if accepted else 'absent'


async def _probe_registry_addrs(
    addrs: Sequence[Address], **probe_kwargs: Any
) -> list[tuple[Address, Probe]]:
    """Probe all addresses at once; return each with its result, in order."""
    results: dict[int, Probe] = {}

    async def probe(index: int, addr: Address) -> None:
        results[index] = await _probe_registry(addr, **probe_kwargs)

    async with collapse_eg(), trio.open_nursery() as tn:
        for index, addr in enumerate(addrs):
            tn.start_soon(probe, index, addr)
    return [(addr, results[index]) for index, addr in enumerate(addrs)]


async def elect_root(
    registry_addrs: Sequence[Address],
    *,
    bind_addrs: Sequence[AnyAddress] | None,
    enable_transports: Sequence[str],
    ensure_registry: bool = False,
    name: str | None = None,
) -> Election[Address]:
    """
    Probe the registries and decide what a new root becomes.

    Args:
        registry_addrs: Wrapped registry addresses.
        bind_addrs: Addresses the caller wants bound, or `None`.
        enable_transports: Keys of the transports to listen on.
        ensure_registry: Refuse to join an existing registrar.
        name: The caller's name for the root, or `None`.
    Returns:
        The election with all random addresses drawn: `bind_addrs` is complete.  The
        registry addresses in it are sorted, so that of several programs that race for
        the same ones, the first to bind gets them all.
    Raises:
        RuntimeError: See `tractor._protocol.election.elect()`.
    """
    probes = await _probe_registry_addrs(registry_addrs)
    election = elect(
        probes,
        bind_addrs=[wrap_address(addr) for addr in bind_addrs or ()],
        enable_transports=enable_transports,
        ensure_registry=ensure_registry,
        name=name,
    )
    if election.is_registrar:
        own = election.registry_addrs
        wanted = [addr for addr in election.bind_addrs if addr not in own]
        election.bind_addrs = [*wanted, *sorted(own, key=_bind_rank)]
    drawn = [addr.get_random(bindspace=addr.bindspace) for addr in election.bind_near]
    drawn += [get_address_cls(key).get_random() for key in election.bind_protos]
    election.bind_addrs = [*election.bind_addrs, *drawn]
    election.bind_near, election.bind_protos = [], []
    return election


def _bind_rank(addr: Address) -> tuple[str, UnwrappedAddress]:
    """Return the place of an address in the order all programs bind in."""
    return addr.proto_key, addr.unwrap()
