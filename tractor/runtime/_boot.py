"""
Bring an actor up, keep it up, and bring it down in order.

Up: connect to the parent and take its orders, open the nurseries, import what is
served, listen, register, serve.  Down: tasks and listeners end first, then the
lifetime stack is closed, the registrars and the parent are told, and the parent's
channel goes last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from .._exceptions import InternalError, TransportClosed
from ..discovery._addr import default_lo_addrs, wrap_address
from ..discovery._register import (
    parent_is_registrar,
    register_actor,
    unregister_actor,
)
from ..ipc._chan import Channel
from ..ipc._idle import IdleHook
from ..ipc._server import open_ipc_server
from ..log import get_logger
from ..msg.types import SpawnSpec
from ..spawn._lifeline import parent_is_lost
from ..trionics._beg import raise_as_is, strip
from . import _state
from ._msgloop import _start, process_messages
from ._rpc import try_ship_error_to_remote

if TYPE_CHECKING:
    from ..ipc._server import Endpoint
    from ._runtime import Actor

log = get_logger()

LAST_WORDS: Final = 3.0  # seconds for all peers to take what is sent to them
LAST_READ: Final = 0.25  # seconds for the parent to close its end


async def async_main(
    actor: Actor,
    accept_addrs: list[Any] | None = None,
    parent_addr: Any = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """
    Run an actor's runtime from boot to end.

    Args:
        actor: The actor of this process.
        accept_addrs: Where it listens; `None` means one random address for each
            transport.
        parent_addr: Where a child connects back to, or the channel it has already;
            `None` for a root.
        task_status: Told when the actor is registered and serves.
    Raises:
        OSError: The parent cannot be reached, or an address not be bound.
        RemoteActorError: The parent's runtime failed.
    """
    actor._task = trio.lowlevel.current_task()
    actor._run = trio.lowlevel.current_trio_token()
    IdleHook.install()
    try:
        try:
            if parent_addr is not None:
                spec = await _meet_parent(actor, parent_addr)
                accept_addrs = spec.bind_addrs
            await _run_in_root_nursery(actor, accept_addrs, task_status)
        except BaseException as err:
            error = strip(err)
            chan = actor._parent_chan
            if chan is not None and isinstance(error, Exception):
                await try_ship_error_to_remote(chan, error)
            elif isinstance(error, KeyboardInterrupt):
                # The whole foreground group got it, or its requester has been told.
                await actor._say_farewell()
            raise_as_is(error)
        finally:
            await _close_parent_chan(actor)
    finally:
        IdleHook.remove()


async def _meet_parent(actor: Actor, parent_addr: Any) -> SpawnSpec:
    """Connect back, exchange identities, take the parent's orders."""
    if isinstance(parent_addr, Channel):
        chan = parent_addr
    else:
        chan = await Channel.from_addr(wrap_address(parent_addr))
    actor._parent_chan = chan  # which is told of whatever ends this actor from here on
    await chan._do_handshake(aid=actor.aid)
    spec = await chan.recv()
    if not isinstance(spec, SpawnSpec):
        raise InternalError(f'the parent sent {spec!r} instead of a SpawnSpec')
    actor._spawn_spec = spec
    rtvars = spec._runtime_vars
    if bool(rtvars['_is_infected_aio']) is not actor._infected_aio:
        raise InternalError(
            'the parent asked for asyncio='
            f'{rtvars["_is_infected_aio"]}, this process was started otherwise'
        )
    rtvars['_is_root'] = False
    _state.inherit_backend(
        rtvars.pop('_start_method', None), rtvars.pop('_subint_gil', None)
    )
    _state.set_runtime_vars(rtvars)
    actor._registry_addrs = [wrap_address(addr) for addr in spec.reg_addrs]
    actor.enable_modules = spec.enable_modules
    actor._parent_main_data = spec._parent_main_data
    return spec


async def _run_in_root_nursery(
    actor: Actor, accept_addrs: list[Any] | None, task_status: trio.TaskStatus[None]
) -> None:
    if actor._root_tn is not None:
        await _run_services(actor, actor._root_tn, accept_addrs, task_status)
        return
    async with trio.open_nursery() as root_tn:
        actor._root_tn = root_tn
        await _run_services(actor, root_tn, accept_addrs, task_status)


async def _run_services(
    actor: Actor,
    root_tn: trio.Nursery,
    accept_addrs: list[Any] | None,
    task_status: trio.TaskStatus[None],
) -> None:
    try:
        with trio.CancelScope() as scope:
            # Connections outlast the tasks that may need them to end in order.
            async with trio.open_nursery() as peers_tn:
                async with trio.open_nursery() as service_tn:
                    actor._service_tn = service_tn
                    async with open_ipc_server(
                        parent_tn=service_tn, stream_handler_tn=peers_tn
                    ) as server:
                        actor._ipc_server = server
                        actor.load_modules()
                        addrs = accept_addrs or _random_addrs(actor)
                        bound = await server.listen_on(accept_addrs=addrs)
                        if actor.is_registrar:
                            _fill_in_ports(actor, addrs, bound)
                        await _go_live(actor, root_tn)
                        # A scope around all of this cancels the program's own tasks
                        # first; the runtime serves them until they have ended.
                        scope.shield = True
                        task_status.started()
                        await _until_cancelled(actor)
                # Without its services an actor still has its parent and its body.
                await actor._cancel_complete.wait()
                with trio.CancelScope(shield=True):
                    await _leave_in_order(actor)
                peers_tn.cancel_scope.cancel()
    finally:
        actor.lifetime_stack.close()
        if actor._parent_loop is not None:
            actor._parent_loop.cancel()


def _fill_in_ports(registrar: Actor, asked: list[Any], bound: list[Endpoint]) -> None:
    """Put the ports that the system chose into the registry addresses."""
    if not any(addr.system_chooses for addr in registrar.registry_addrs):
        return
    chosen: dict[Any, list[Any]] = {}
    for addr, endpoint in zip(asked, bound, strict=True):
        chosen.setdefault(wrap_address(addr), []).append(endpoint.addr)
    # Of equal ones those of the registry come last, see `elect_root()`.
    found = [
        chosen[addr].pop() if addr.system_chooses and chosen.get(addr) else addr
        for addr in registrar.registry_addrs
    ]
    registrar.reg_addrs = [addr.unwrap() for addr in found]


def _random_addrs(actor: Actor) -> list[Any]:
    """One address of the system's choice for each enabled transport."""
    found = []
    for plain in default_lo_addrs(_state.current_ipc_protos()):
        default = wrap_address(plain)
        found.append(default.get_random(bindspace=default.bindspace))
    return found


async def _go_live(actor: Actor, root_tn: trio.Nursery) -> None:
    """Register, then serve the parent; what it asked meanwhile comes first."""
    if actor._parent_chan is None:
        await register_actor(actor, actor._service_tn)
        return
    actor._early_requests = []
    await root_tn.start(_serve_parent, actor)
    await register_actor(actor, actor._service_tn)
    early, actor._early_requests = actor._early_requests, None
    for chan, msg in early:
        _start(actor, chan, msg)


async def _serve_parent(
    actor: Actor, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    """Read the parent's channel; without it, this actor has no reason to live."""
    chan = actor._parent_chan
    assert chan is not None

    class Started:
        def started(self, scope: trio.CancelScope) -> None:
            actor._parent_loop = scope
            task_status.started(scope)

    await process_messages(chan, shield=True, task_status=Started())  # type: ignore[arg-type]
    if actor._parent_loop is not None and actor._parent_loop.cancel_called:
        return
    log.cancel('the parent %s is gone, this actor ends', chan.aid)
    parent_is_lost()
    with trio.CancelScope(shield=True):
        if actor._ipc_server is not None:
            # First what would be left behind if the rest took too long.
            await actor._ipc_server._close_listeners()
        await actor.cancel(None)


async def _until_cancelled(actor: Actor) -> None:
    """Wait until the service nursery is cancelled; Ctrl-C ends a child in order."""
    try:
        await trio.sleep_forever()
    except KeyboardInterrupt:
        if actor._parent_chan is None:
            raise
        log.cancel('interrupted by the operating system')
        await actor.cancel(None)


async def _leave_in_order(actor: Actor) -> None:
    """All tasks have ended: clean up, and tell those who know of this actor."""
    actor.lifetime_stack.close()
    if not actor.is_registrar and not _parent_keeps_us(actor):
        await unregister_actor(actor)
    await actor._say_farewell()
    # Peers get some time to read what ended their dialogs.
    with trio.move_on_after(LAST_WORDS):
        for chan in list(actor._loops):
            await chan.wait_drained()


def _parent_keeps_us(actor: Actor) -> bool:
    """Whether our registrar is our parent, which sees our end by itself."""
    return all(parent_is_registrar(actor, addr) for addr in actor.reg_addrs)


async def _read_out(chan: Channel) -> None:
    """
    Let the parent read everything before the connection is closed.

    Closing a TCP socket that holds unread bytes resets the connection, and what the
    peer has not read yet is lost with it (RFC 2525, 2.17).
    """
    stream: Any = chan.stream
    try:
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        log.transport('the parent closed first')


async def _close_parent_chan(actor: Actor) -> None:
    chan = actor._parent_chan
    if chan is None:
        return
    with trio.move_on_after(LAST_READ, shield=True):
        await chan.wait_drained()  # of an error, for one, if the socket was full
    if chan.connected() and chan.transport.address_type.proto_key == 'tcp':
        with trio.move_on_after(LAST_READ, shield=True):
            await _read_out(chan)
    with trio.move_on_after(LAST_READ, shield=True):
        try:
            await chan.aclose()
        except (TransportClosed, trio.BrokenResourceError):
            log.transport('the parent closed first')
