"""
Find, wait for and query actors.

Every look-up asks a registrar and then dials the target's *listener*: a channel that
happens to be open to an actor of that name proves nothing about whether others can
reach it.  Who answers must be the actor that was looked up; an address may have passed
to another one.

A name may belong to several actors, and an actor have several addresses.  Actors are
tried from the oldest entry on, addresses from the cheapest to the dearest (`_rank`).
An actor none of whose addresses leads to it is gone: those that were refused are stale,
and the registrar is asked to take them from it.  Nothing else proves that: who cannot
dial, hangs up, or is slow may be reached by others.  `_root` uses `elect_root()`,
applications the rest.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from tractor._exceptions import TransportClosed
from tractor._protocol.election import Election, Probe, elect
from tractor._protocol.names import Addr, Uid, as_addr, as_uid
from tractor.discovery._addr import (
    Address,
    UnwrappedAddress,
    default_lo_addrs,
    get_address_cls,
    mk_uuid,
    wrap_address,
)
from tractor.discovery._dial import (
    UNREACHABLE,
    AnyAddress,
    RegistryPortal,
    open_addr_portal,
    portal_to_itself,
)
from tractor.discovery._rank import _is_local_addr as _is_local_addr
from tractor.discovery._rank import prefer_addr as prefer_addr
from tractor.discovery._rank import rank
from tractor.ipc._chan import Channel, _connect_chan
from tractor.log import get_logger
from tractor.msg.types import Aid
from tractor.runtime import _state
from tractor.runtime._portal import Portal
from tractor.runtime._state import current_actor
from tractor.trionics._beg import collapse_eg

if TYPE_CHECKING:
    from tractor.runtime._runtime import Actor

log = get_logger(__name__)

type Entry = tuple[Uid, list[Addr]]  # what a registrar knows about one actor
type Candidate = tuple[Uid, Addr]  # who should listen where

PROBE_NAME: Final = 'registry-probe'
REGISTRAR_ALIAS: Final = 'registrar'
LOOK_UP_TIMEOUT: Final = 3.0  # seconds for one registrar to answer
DIAL_TIMEOUT: Final = 3.0  # seconds for who listens at an address to tell who it is
DIALS: Final = 3  # of one address whose listener hangs up each time
DIAL_PAUSE: Final = 0.02  # seconds between them
# Seconds between rounds of dials to actors that are registered but do not answer.
FIRST_PAUSE: Final = 0.02
LAST_PAUSE: Final = 0.5


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
        yield portal_to_itself(actor)
        return
    async with open_addr_portal(addr) as portal:
        yield portal


@asynccontextmanager
async def _open_registry(addr: AnyAddress | None) -> AsyncGenerator[RegistryPortal]:
    """
    Yield a portal to the registrar at `addr`, closed on exit.

    A registrar dials every other one, but not itself.
    """
    actor = current_actor()
    if actor.is_registrar and (addr is None or _listens_at(actor, addr)):
        yield portal_to_itself(actor)
        return
    async with open_addr_portal(addr) as portal:
        yield portal


def _listens_at(actor: Actor, addr: AnyAddress) -> bool:
    own = [*actor.reg_addrs, *actor.accept_addrs]
    return as_addr(wrap_address(addr).unwrap()) in map(as_addr, own)


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


@asynccontextmanager
async def _open_actor_portal(uid: Uid, addr: Addr) -> AsyncGenerator[Portal]:
    """
    Yield a portal to the actor `uid` at `addr`, closed on exit.

    Raises:
        ConnectionRefusedError: It does not listen there, but another actor does.
        OSError: Nobody listens there, or who does is silent.
        TransportClosed: Who does hangs up, or refuses us.
    """
    async with open_addr_portal(addr, timeout=DIAL_TIMEOUT) as portal:
        peer = portal.chan.aid
        if peer is None or peer.uid != uid:
            raise ConnectionRefusedError(f'{peer} listens at {addr} instead of {uid}')
        yield portal


async def _dial(stack: AsyncExitStack, uid: Uid, addr: Addr) -> Portal | None:
    """
    Enter a portal to an actor; `None` if it hangs up however often it is dialed.

    A listener that is being closed drops who waits to be accepted, which looks like a
    peer that hangs up.  Only another dial tells: that one is refused.

    Raises:
        OSError: It does not listen there, does not any more, or cannot be dialed.
    """
    for attempt in range(DIALS):
        if attempt:
            await trio.sleep(DIAL_PAUSE)
        try:
            return await stack.enter_async_context(_open_actor_portal(uid, addr))
        except TransportClosed as err:
            log.runtime('peer at %s hung up: %s', addr, err)
    return None


def _is_refusal(err: OSError) -> bool:
    """Tell whether an error proves that an actor does not listen at an address."""
    # A Unix socket's transport raises an error of its own from the system's.
    gone = ConnectionRefusedError, FileNotFoundError
    return isinstance(err, gone) or isinstance(err.__cause__, gone)


async def _enter_match(
    stack: AsyncExitStack,
    registry_addr: AnyAddress | None,
    candidates: Sequence[Candidate],
) -> Portal | None:
    """
    Enter a portal to the first candidate that answers.

    Addresses that refused are stale, and the registrar is asked to drop them, unless
    their actor has another one: that one may work, here or from another host.
    """
    found: Portal | None = None
    untried = Counter(uid for uid, _ in candidates)
    refused: list[Candidate] = []
    for uid, addr in candidates:
        untried[uid] -= 1
        try:
            found = await _dial(stack, uid, addr)
        except OSError as err:
            if _is_refusal(err):
                log.runtime('%s does not listen at %s: %r', uid, addr, err)
                refused.append((uid, addr))
            else:
                log.warning('cannot reach %s at %s: %r', uid, addr, err)
        if found is not None:
            untried[uid] += 1  # it has one that works
            break
    stale = [(uid, addr) for uid, addr in refused if not untried[uid]]
    if stale:
        await _drop(registry_addr, stale)
    return found


async def _drop(registry_addr: AnyAddress | None, stale: list[Candidate]) -> None:
    """Ask a registrar to take addresses from their actors; failure is logged."""
    with trio.move_on_after(LOOK_UP_TIMEOUT):
        try:
            async with _open_registry(registry_addr) as registry:
                for uid, addr in stale:
                    log.warning('dropping stale address %s of %s', addr, uid)
                    # Of that actor: the address may be another one's by now.
                    stated = {'addr': addr, 'uid': uid}
                    await registry.run_from_ns('self', 'delete_addr', **stated)
        except UNREACHABLE as err:
            log.warning('stale addresses stay at %s: %r', registry_addr, err)


async def _entries(registry: RegistryPortal, name: str) -> list[Entry]:
    """Return what a registrar knows about all actors of that name or uuid."""
    found = await registry.run_from_ns('self', 'find_actors', name=name)
    return [(as_uid(uid), [as_addr(addr) for addr in addrs]) for uid, addrs in found]


async def _look_up(registry_addr: AnyAddress | None, name: str) -> list[Entry]:
    """
    Ask one registrar for all actors of that name or uuid.

    Raises:
        TimeoutError: It stays silent.
        OSError: It does not listen.
        TransportClosed: It hangs up.
        RemoteActorError: It is none.
    """
    with trio.move_on_after(LOOK_UP_TIMEOUT):
        async with _open_registry(registry_addr) as registry:
            return await _entries(registry, name)
    raise TimeoutError(
        f'the registrar at {registry_addr} did not answer within {LOOK_UP_TIMEOUT:g} s'
    )


async def _by_age(entries: Sequence[Entry]) -> list[Candidate]:
    """Return where to dial: one actor after the other, its best address first."""
    return [(uid, addr) for uid, addrs in entries for addr in await rank(addrs)]


async def _by_rank(entries: Sequence[Entry]) -> list[Candidate]:
    """Return where to dial: the best address of all actors first."""
    owners = {addr: uid for uid, addrs in entries for addr in addrs}
    return [(owners[addr], addr) for addr in await rank([*owners])]


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
        candidates = await _by_age(await _look_up(addr, name))
        yield await _enter_match(stack, addr, candidates)


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
    async with _open_registry(_own_registry(actor, regaddr)) as registry:
        addrs = await registry.run_from_ns('self', 'find_actor', name=name)
        yield ((await rank(addrs))[0] if addrs else None), registry


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
    entries: list[Entry] = []
    pause = FIRST_PAUSE
    async with collapse_eg(), AsyncExitStack() as stack:
        while True:
            before = entries
            async with _open_registry(registry_addr) as registry:
                await registry.run_from_ns('self', 'wait_for_actor', name=name)
                found = await _entries(registry, name)
            entries = [entry for entry in found if entry[0][0] == name]
            candidates = await _by_rank(entries)
            portal = await _enter_match(stack, registry_addr, candidates)
            if portal is not None:
                break
            # The registrar does not wait for who is registered but cannot be reached.
            pause = FIRST_PAUSE if entries != before else min(2 * pause, LAST_PAUSE)
            await trio.sleep(pause)
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

    All registrars are asked at once, and each is given `LOOK_UP_TIMEOUT`; one that is
    down, silent or none at all knows nobody.  With `only_first`, once an actor has
    answered, the other registrars are not waited for.  Connections are closed on exit.

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
        OSError: None of the registrars answers.
        TransportClosed: The same: the first of them hangs up.
        RemoteActorError: The same: the first of them is no registrar.
    """
    current_actor()  # without a runtime, say so before anything else
    registries: Sequence[AnyAddress] = (
        registry_addrs
        or _state._runtime_vars['_registry_addrs']
        or default_lo_addrs(list(enable_transports or [_state._def_tpt_proto]))
    )
    portals: list[Portal | None] = [None] * len(registries)
    failures: dict[int, Exception] = {}
    async with (
        collapse_eg(),
        trio.open_nursery() as tn,
        AsyncExitStack() as stack,
    ):
        questions = Questions(tn, registries, name)
        async for index, answer in questions:
            if isinstance(answer, Exception):
                failures[index] = answer
                continue
            candidates = await _by_age(answer)
            portal = await _enter_match(stack, registries[index], candidates)
            portals[index] = portal
            if only_first and portal is not None:
                break
        questions.withdraw()
        if len(failures) == len(registries):
            raise failures[0]
        found = [portal for portal in portals if portal is not None]
        if raise_on_none and not found:
            raise RuntimeError(
                f'no actor named {name!r} is registered at {list(registries)}'
            )
        if only_first:
            yield found[0] if found else None
        else:
            yield portals


class Questions:
    """
    One look-up at several registrars; iterate for the answers as they come.

    Each is `(index, answer)`: the entries, or why there is no answer.
    """

    def __init__(
        self, tn: trio.Nursery, registries: Sequence[AnyAddress], name: str
    ) -> None:
        self._left = len(registries)
        self._scopes = [trio.CancelScope() for _ in registries]
        self._send, self._receive = trio.open_memory_channel[
            tuple[int, list[Entry] | Exception]
        ](self._left)
        for index, registry in enumerate(registries):
            tn.start_soon(self._ask, index, registry, name)

    async def _ask(self, index: int, registry: AnyAddress, name: str) -> None:
        answer: list[Entry] | Exception
        with self._scopes[index]:
            try:
                answer = await _look_up(registry, name)
            except UNREACHABLE as err:
                log.warning('no registrar answers at %s: %r', registry, err)
                answer = err
            self._send.send_nowait((index, answer))

    def __aiter__(self) -> Questions:
        return self

    async def __anext__(self) -> tuple[int, list[Entry] | Exception]:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return await self._receive.receive()

    def withdraw(self) -> None:
        """Have nobody answer any more."""
        for scope in self._scopes:
            scope.cancel()


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
        for addr in own:
            election.bind_addrs.remove(addr)
        election.bind_addrs += sorted(own, key=_bind_rank)
    drawn = [addr.get_random(bindspace=addr.bindspace) for addr in election.bind_near]
    drawn += [get_address_cls(key).get_random() for key in election.bind_protos]
    election.bind_addrs = [*election.bind_addrs, *drawn]
    election.bind_near, election.bind_protos = [], []
    return election


def _bind_rank(addr: Address) -> tuple[str, UnwrappedAddress]:
    """Return the place of an address in the order all programs bind in."""
    return addr.proto_key, addr.unwrap()
