"""
Keep an actor in its registries while it lives, and take it out at its end.

The registry of the actor's own tree is that of its root: it lives as long as the tree,
and an actor that cannot register there does not boot.  Any other registry belongs to
another program, which may end, and be started again, at any time.  The tree must not
suffer from that: an actor keeps one connection open to each such registry, and when
that breaks, or cannot be made, it is tried again, ever more rarely, as long as the
actor lives.  So a registrar that comes back with an empty table gets to know everybody
again.

Where the parent is the registrar its channel serves.  Used by the boot code, and by
nurseries in the name of children that could not leave in order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from tractor._exceptions import TransportClosed
from tractor.discovery._dial import (
    UNREACHABLE,
    RegistryPortal,
    open_addr_portal,
    portal_to_itself,
)
from tractor.log import get_logger
from tractor.runtime import _state
from tractor.trionics._beg import collapse_eg

if TYPE_CHECKING:
    from tractor._protocol.names import Uid
    from tractor.discovery._addr import UnwrappedAddress
    from tractor.runtime._runtime import Actor

log = get_logger(__name__)

REGISTER_TIMEOUT: Final = 3.0  # seconds for a registry of another program
UNREGISTER_TIMEOUT: Final = 0.5  # seconds for each registry
FIRST_PAUSE: Final = 0.1  # seconds before a lost registry is tried again
LAST_PAUSE: Final = 30.0  # seconds that pause grows to


def parent_is_registrar(actor: Actor, registry_addr: UnwrappedAddress) -> bool:
    """
    Tell whether the parent channel serves for the registrar at `registry_addr`.

    Its message loop must run, its peer have shaken hands as a registrar, and its
    socket be that address, or one that the root lists together with that address.
    """
    chan = actor._parent_chan
    if chan is None or actor._parent_loop is None or not chan.connected():
        return False
    if chan.aid is None or chan.aid.is_registrar is not True:
        return False
    peer, wanted = tuple(chan.raddr.unwrap()), tuple(registry_addr)
    return peer == wanted or (_is_of_root(peer) and _is_of_root(wanted))


def _is_of_root(addr: tuple[object, ...]) -> bool:
    """Tell whether the root of this tree listens at `addr`."""
    return tuple(addr) in map(tuple, _state._runtime_vars['_root_addrs'])


async def _for_each(
    registries: list[UnwrappedAddress],
    task: Callable[[UnwrappedAddress], Awaitable[None]],
) -> None:
    """Run `task` for all registries at once."""
    if len(registries) == 1:
        await task(registries[0])
        return
    async with collapse_eg(), trio.open_nursery() as tn:
        for registry_addr in registries:
            tn.start_soon(task, registry_addr)


async def register_actor(actor: Actor, tn: trio.Nursery) -> None:
    """
    Register every address that `actor` listens on with every registry.

    Returns once each registry has answered; one of another program is waited for no
    longer than `REGISTER_TIMEOUT`, and is not given up.  A registrar registers with
    itself in process.

    Args:
        actor: The actor of this process.
        tn: Where it is kept registered with registries of other programs.
    Raises:
        OSError: The registry of its own tree does not listen any more.
    """

    async def register(registry_addr: UnwrappedAddress) -> None:
        if parent_is_registrar(actor, registry_addr):
            await _announce(actor, actor.get_parent())
        elif _is_of_root(registry_addr):
            async with open_addr_portal(registry_addr) as registry:
                await _announce(actor, registry)
        else:
            await tn.start(_stay_registered, actor, registry_addr)

    if actor.is_registrar:
        await _announce(actor, portal_to_itself(actor))
        return
    await _for_each(actor.reg_addrs, register)


async def _announce(actor: Actor, registry: RegistryPortal) -> None:
    """Register all addresses with one request, in the order that they are listed."""
    if not actor.accept_addrs:
        log.runtime('nothing to register: %s does not listen any more', actor.aid.uid)
        return
    addr, *others = actor.accept_addrs
    more = {'others': others} if others else {}
    await registry.run_from_ns(
        'self', 'register_actor', uid=actor.aid.uid, addr=addr, **more
    )


async def _stay_registered(
    actor: Actor,
    registry_addr: UnwrappedAddress,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """
    Register with a registry of another program, again whenever that is lost.

    Args:
        task_status: Told of the first outcome, whatever it is.
    """
    is_first, pause = True, FIRST_PAUSE
    while True:
        since = trio.current_time()
        why: object = f'no answer within {REGISTER_TIMEOUT:g} s'
        with trio.move_on_after(REGISTER_TIMEOUT) as scope:
            try:
                async with open_addr_portal(registry_addr) as registry:
                    await _announce(actor, registry)
                    scope.deadline = inf
                    log.runtime('registered at %s', registry_addr)
                    if is_first:
                        is_first = False
                        task_status.started()
                    await actor._loop_ended(registry.chan)
                    why = 'it has left'
            except UNREACHABLE as err:
                why = repr(err)
        level = log.warning if pause == FIRST_PAUSE else log.runtime
        level(
            'registry %s does not know %s: %s; trying again',
            registry_addr,
            actor.aid.uid,
            why,
        )
        if is_first:
            is_first = False
            task_status.started()
        if trio.current_time() - since > LAST_PAUSE:
            pause = FIRST_PAUSE
        await trio.sleep(pause)
        pause = min(2 * pause, LAST_PAUSE)


async def unregister_actor(actor: Actor, uid: Uid | None = None) -> None:
    """
    Remove an actor from every registry; failures are logged, never raised.

    Shielded, and bounded by `UNREGISTER_TIMEOUT` for each registry, all at once.  Where
    the parent channel serves and breaks, a connection is tried.  A registrar keeps its
    table to the end.

    Args:
        actor: The actor of this process.
        uid: A child of it that died, with the same registries; `None` means itself.
    """
    leaver = uid or actor.aid.uid

    async def leave(registry: RegistryPortal) -> None:
        await registry.run_from_ns('self', 'unregister_actor', uid=leaver)

    async def unregister(registry_addr: UnwrappedAddress) -> None:
        with trio.move_on_after(UNREGISTER_TIMEOUT, shield=True) as scope:
            try:
                if parent_is_registrar(actor, registry_addr):
                    try:
                        await leave(actor.get_parent())
                        return
                    except TransportClosed as err:
                        log.runtime('parent channel is gone: %s', err)
                async with open_addr_portal(registry_addr) as registry:
                    await leave(registry)
            except UNREACHABLE as err:
                log.runtime('cannot unregister at %s: %r', registry_addr, err)
        if scope.cancelled_caught:
            log.warning(
                'registry %s did not confirm within %g s that %s left',
                registry_addr,
                UNREGISTER_TIMEOUT,
                leaver,
            )

    if not actor.is_registrar:
        await _for_each(actor.reg_addrs, unregister)
