"""
The root of a tree: boot a runtime in a program's own process, and end it again.

Order matters: what is wrong with the arguments is told before anything is probed, bound
or spawned, and everything that was set for the process is set back at the end.
"""

from __future__ import annotations

import importlib
import os
import sys
import uuid as _uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from errno import EADDRINUSE
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from . import log as _log
from ._exceptions import RuntimeFailure
from ._protocol.election import check_registry_protos, check_transports
from .discovery._addr import default_lo_addrs, get_address_cls, wrap_address
from .discovery._api import elect_root
from .runtime import _hooks, _state
from .runtime._boot import async_main
from .runtime._runtime import Actor
from .spawn import _spawn
from .trionics._beg import is_multi_cancelled, strip
from .trionics.patches import apply_all

if TYPE_CHECKING:
    from ._protocol.election import Election
    from .discovery._addr import Address, UnwrappedAddress

log = _log.get_logger()

# Seconds between elections, while a registry address cannot be bound although nobody
# answers there.  Whoever took it listens, as a rule, before anybody can notice.
ELECTION_PAUSES: Final = (0.0, 0.05, 0.1, 0.2)

# The runtime variables that are the choice of one root.
_OF_A_ROOT: Final = ('_enable_tpts', '_is_root', '_registry_addrs')


def _is_crash(err: BaseException) -> bool:
    return not is_multi_cancelled(err)


@asynccontextmanager
async def open_root_actor(
    *,
    tpt_bind_addrs: list[Address | UnwrappedAddress] | None = None,
    registry_addrs: list[Address | UnwrappedAddress] | None = None,
    enable_transports: list[str] | None = None,
    name: str | None = 'root',
    start_method: str | None = None,
    debug_mode: bool = False,
    maybe_enable_greenback: bool = False,
    enable_stack_on_sig: bool = False,
    loglevel: str | None = None,
    enable_modules: list[str] | None = None,
    rpc_module_paths: list[str] | None = None,
    ensure_registry: bool = False,
    hide_tb: bool = True,
    debug_filter: Callable[[BaseException], bool] = _is_crash,
    subint_gil: str | None = None,
) -> AsyncIterator[Actor]:
    """
    Run an actor runtime in this process while the block is open.

    The first root at its registry addresses becomes the registrar there; any other
    joins it, also one that was started at the same moment.  Yields when it listens and
    is registered.  Leaving the block ends the runtime, shielded, and sets the process
    back, so that it can be opened again.

    Args:
        tpt_bind_addrs: Where to listen, besides the registry addresses if this root
            becomes the registrar.
        registry_addrs: Where the registrar is or will be; plain, wrapped or as a
            multiaddr.  By default the local one of each transport.
        enable_transports: Any of `'tcp'` and `'uds'`; inherited by all children.
        name: This actor's name.
        start_method: The spawn backend; `TRACTOR_SPAWN_METHOD` wins.
        loglevel: Log level of the tree; `TRACTOR_LOGLEVEL` wins.
        enable_modules: Names of the modules whose functions peers may call.
        ensure_registry: Fail unless this root becomes the registrar.
        debug_mode, maybe_enable_greenback, enable_stack_on_sig: Not in this release.
        debug_filter: Tells which errors a debugger would show.
        subint_gil: Which GIL children in sub-interpreters get by default in this tree:
            `'own'`, `'shared'`, or `'auto'`, its own unless a module refuses that.
    Yields:
        The actor; a `Registrar` if it keeps the registry.
    Raises:
        RuntimeFailure: There is a runtime in this process already, or an option
            cannot work.
        ValueError: A registry address uses a transport that is not enabled, or there
            is no such GIL mode.
        RuntimeError: A registry address is held by something else.
        OSError: An address cannot be bound.
    """
    boot = _state.RootBoot(trio.lowlevel.current_trio_token(), trio.Event())
    _refuse_missing_features(debug_mode, maybe_enable_greenback, enable_stack_on_sig)
    with (
        boot,
        _variables_kept(),
        _gil_mode(subint_gil),
        _builtin_breakpoint_blocked(),
    ):
        registries, transports, level = _settle(
            registry_addrs, enable_transports, start_method, loglevel
        )
        if rpc_module_paths:
            warnings.warn(
                '`rpc_module_paths` is deprecated, use `enable_modules`',
                DeprecationWarning,
                stacklevel=3,
            )
        modules = [*(enable_modules or ()), *(rpc_module_paths or ())]
        elect = partial(
            elect_root,
            registries,
            bind_addrs=tpt_bind_addrs,
            enable_transports=transports,
            ensure_registry=ensure_registry,
            name=name,
        )
        make_actor = partial(_make_actor, modules=modules, level=level)
        apply_all()
        async with _run_elected(elect, make_actor, debug_filter) as actor:
            boot.end()
            yield actor


def _refuse_missing_features(debug: bool, greenback: bool, stacks: bool) -> None:
    """Say what this release does not have, instead of ignoring the wish."""
    if debug:
        _check_debug_backend()
        raise RuntimeFailure('this release has no debugger: leave `debug_mode` off')
    if greenback:
        raise RuntimeFailure(
            'this release has no debugger: leave `maybe_enable_greenback` off'
        )
    if stacks:
        raise RuntimeFailure(
            'this release cannot dump task trees: leave `enable_stack_on_sig` off'
        )


def _check_debug_backend() -> None:
    if _spawn._spawn_method != 'trio':
        raise RuntimeError(
            f'`debug_mode` does not work with the {_spawn._spawn_method!r} backend'
        )


@trio.lowlevel.enable_ki_protection
def _settle(
    registry_addrs: list[Any] | None,
    enable_transports: list[str] | None,
    start_method: str | None,
    loglevel: str | None,
) -> tuple[list[Address], list[str], str]:
    """Settle transports, log level, backend and registry addresses, in this order."""
    if enable_transports is None:
        enable_transports = _state._runtime_vars['_enable_tpts']
    transports = check_transports(enable_transports)
    for key in transports:
        get_address_cls(key)
    level = (_state.env_loglevel() or loglevel or _log._default_loglevel).upper()
    _log.get_console_log(level, name='tractor')
    if os.environ.get('TRACTOR_ENABLE_STACKSCOPE'):
        log.warning(
            'TRACTOR_ENABLE_STACKSCOPE is set, but this release cannot dump task '
            'trees: SIGUSR1 ends an actor'
        )
    _select_backend(start_method)
    registries = [
        wrap_address(addr) for addr in registry_addrs or default_lo_addrs(transports)
    ]
    check_registry_protos(registries, transports)
    _state._runtime_vars['_enable_tpts'] = transports
    _state._runtime_vars['_is_root'] = True
    return registries, transports, level


def _select_backend(start_method: str | None) -> None:
    from_env = _state.env_spawn_method()
    if from_env and start_method and from_env != start_method:
        log.warning(
            'TRACTOR_SPAWN_METHOD=%s wins over start_method=%r', from_env, start_method
        )
    key = from_env or start_method
    if key:
        _spawn.try_set_start_method(key)  # type: ignore[arg-type]


@trio.lowlevel.enable_ki_protection
def _make_actor(
    election: Election[Address], *, modules: list[str], level: str
) -> Actor:
    kind = Actor
    if election.is_registrar:
        from .discovery._registry import Registrar  # one actor of a tree needs it

        kind = Registrar
    return kind(
        name=election.name,
        uuid=str(_uuid.uuid4()),
        enable_modules=modules,
        loglevel=level,
        registry_addrs=election.registry_addrs,
    )


@asynccontextmanager
async def _run_elected(
    elect: Callable[[], Awaitable[Election[Address]]],
    make_actor: Callable[[Election[Address]], Actor],
    debug_filter: Callable[[BaseException], bool],
) -> AsyncIterator[Actor]:
    """
    Run a root in the role it is elected to; elect again if another one was faster.

    Between the probes and the binding somebody may have taken a registry address.  Its
    holder is then found by the next probes, and joined.
    """
    async with AsyncExitStack() as stack:
        for pause in (*ELECTION_PAUSES, None):
            election = await elect()
            actor = make_actor(election)
            try:
                await stack.enter_async_context(
                    _run_root(actor, election.bind_addrs, debug_filter)
                )
                break
            except OSError as err:
                if pause is None or not election.is_registrar or not _is_taken(err):
                    raise
                log.info('another program was faster, electing again: %s', err)
            await trio.sleep(pause)
        yield actor


def _is_taken(err: OSError) -> bool:
    """Tell whether an address could not be bound because somebody holds it."""
    # A Unix socket's listener raises an error of its own from the system's.
    return any(getattr(e, 'errno', None) == EADDRINUSE for e in (err, err.__cause__))


@asynccontextmanager
async def _run_root(
    actor: Actor,
    bind_addrs: list[Address],
    debug_filter: Callable[[BaseException], bool],
) -> AsyncIterator[None]:
    """Keep the runtime up around the body, and set the process back afterwards."""
    rtvars = _state._runtime_vars
    _state._current_actor = actor
    try:
        async with trio.open_nursery() as root_tn:
            actor._root_tn = root_tn
            await root_tn.start(
                partial(async_main, actor, accept_addrs=list(bind_addrs))
            )
            rtvars['_root_addrs'].extend(actor.accept_addrs)
            rtvars['_root_mailbox'] = actor.accept_addrs[0]
            try:
                yield
            except (Exception, BaseExceptionGroup) as err:
                shown = debug_filter(err) and await _hooks.post_mortem(err)
                if not shown and _is_crash(err):
                    # The traceback follows from whoever catches it.
                    log.error(
                        'Root actor crashed: %s\n ^^^ raised to its caller ^^^',
                        type(err).__name__,
                    )
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await actor.cancel(None)
    except BaseException as err:
        error = strip(err)
        raise error from error.__cause__
    finally:
        rtvars['_debug_mode'] = False
        rtvars['_root_addrs'].clear()
        rtvars['_root_mailbox'] = None
        _state._current_actor = None
        _state._last_actor_terminated = actor
        log.info('Root actor terminated')


@contextmanager
def _variables_kept() -> Iterator[None]:
    """Set back what a root chooses for its tree, also if it does not come up."""
    rtvars = _state._runtime_vars
    before = {key: rtvars[key] for key in _OF_A_ROOT}
    try:
        yield
    finally:
        rtvars.update(before)


@contextmanager
def _gil_mode(mode: str | None) -> Iterator[None]:
    """Have sub-interpreter children use that GIL, where none is asked for."""
    before = _state.subint_gil()
    if mode is not None:
        _state.set_subint_gil(mode)
    try:
        yield
    finally:
        _state.set_subint_gil(before)


@contextmanager
def _builtin_breakpoint_blocked() -> Iterator[None]:
    """Keep `breakpoint()` off a terminal that several processes share."""
    hook, variable = sys.breakpointhook, os.environ.get('PYTHONBREAKPOINT')

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            'the builtin `breakpoint()` cannot be used while an actor runtime is open: '
            'the actors of a tree share one terminal'
        )

    sys.breakpointhook = refuse
    os.environ['PYTHONBREAKPOINT'] = '0'
    try:
        yield
    finally:
        sys.breakpointhook = hook
        if variable is None:
            os.environ.pop('PYTHONBREAKPOINT', None)
        else:
            os.environ['PYTHONBREAKPOINT'] = variable


def run_daemon(
    enable_modules: list[str],
    name: str | None = 'root',
    registry_addrs: list[UnwrappedAddress] | None = None,
    start_method: str | None = None,
    debug_mode: bool = False,
    **kwargs: Any,
) -> None:
    """
    Run a root actor that serves its modules until Ctrl-C; blocks.

    Args:
        enable_modules: Names of the modules; imported at once, so that their errors
            are raised here.
        **kwargs: Further arguments of `open_root_actor()`.
    Raises:
        KeyboardInterrupt: On Ctrl-C.
    """
    for module in enable_modules:
        importlib.import_module(module)

    async def main() -> None:
        async with open_root_actor(
            name=name,
            registry_addrs=list(registry_addrs) if registry_addrs else None,
            start_method=start_method,
            debug_mode=debug_mode,
            enable_modules=list(enable_modules),
            **kwargs,
        ):
            await trio.sleep_forever()

    trio.run(main)
