"""
What a new root becomes, decided from what its registry addresses answered.

A root that finds a registrar joins it and never binds the registrar's address; one
that finds every address free becomes the registrar itself; anything between is an
error, since two registries for one address would split the tree's view.  These
functions see addresses only through `HasProto`; the random addresses they ask for
are drawn by `tractor.discovery._api.elect_root()`, which also does the probing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, Protocol

Probe = Literal['registrar', 'occupied', 'absent']

# The name of a root that was given none, by role.
REGISTRAR_NAME: Final = 'registrar'
JOINED_NAME: Final = 'anonymous'


class HasProto(Protocol):
    """The part of a wrapped address that the election looks at."""

    @property
    def proto_key(self) -> str: ...

    @property
    def system_chooses(self) -> bool: ...


class Election[A]:
    """
    The outcome: who the root is and where it listens.

    Attributes:
        is_registrar: Boot as the registrar.
        name: The name the actor gets.
        registry_addrs: The registries it talks to; for a registrar, its own.
        bind_addrs: Addresses to bind as they are.
        bind_near: Registries in whose bindspace one random address each is bound.
        bind_protos: Transports that need a random address in their own bindspace.
    """

    __slots__ = (
        'bind_addrs',
        'bind_near',
        'bind_protos',
        'is_registrar',
        'name',
        'registry_addrs',
    )

    def __init__(
        self,
        *,
        is_registrar: bool,
        name: str,
        registry_addrs: list[A],
        bind_addrs: list[A],
        bind_near: list[A],
        bind_protos: list[str],
    ) -> None:
        self.is_registrar = is_registrar
        self.name = name
        self.registry_addrs = registry_addrs
        self.bind_addrs = bind_addrs
        self.bind_near = bind_near
        self.bind_protos = bind_protos


def check_transports(enable_transports: Iterable[str]) -> list[str]:
    """
    Return the enabled transport keys, each once, in the order given.

    Raises:
        RuntimeError: None is enabled, so the actor could never be reached.
    """
    keys = list(dict.fromkeys(enable_transports))
    if not keys:
        raise RuntimeError(
            '`enable_transports` is empty: an actor needs at least one transport, '
            "for instance ['tcp']"
        )
    return keys


def check_registry_protos(
    registry_addrs: Iterable[HasProto], enable_transports: Sequence[str]
) -> None:
    """
    Refuse registries that the enabled transports cannot reach.

    Raises:
        ValueError: Some registry address uses a transport that is not enabled.
    """
    foreign = sorted({a.proto_key for a in registry_addrs} - set(enable_transports))
    if foreign:
        raise ValueError(
            f'`registry_addrs` use transport(s) {foreign} which are not among '
            f'`enable_transports` {list(enable_transports)}: enable them, or give '
            f'registry addresses of an enabled transport'
        )


def elect[A: HasProto](
    probes: Sequence[tuple[A, Probe]],
    *,
    bind_addrs: Sequence[A] | None,
    enable_transports: Sequence[str],
    ensure_registry: bool = False,
    name: str | None = None,
) -> Election[A]:
    """
    Decide role, registries and binding of a new root.

    Args:
        probes: Each registry address with what it answered.
        bind_addrs: What the caller wants bound; `None` or empty leaves the choice
            to the election.
        enable_transports: Keys of the transports to listen on, where the caller
            leaves the choice.
        ensure_registry: Refuse to join a registrar that already exists.
        name: The caller's name for the root, or `None`.
    Raises:
        RuntimeError: A registry exists although `ensure_registry`, or an address is
            held by something that is no registrar.
    """
    answered = _unique(addr for addr, probe in probes if probe == 'registrar')
    occupied = _unique(addr for addr, probe in probes if probe == 'occupied')
    wanted = _unique(bind_addrs or ())
    if answered:
        if ensure_registry:
            raise RuntimeError(
                f'registry socket(s) already bound by another registrar: {answered}; '
                f'drop `ensure_registry` to join it, or choose other `registry_addrs`'
            )
        near = [] if wanted else answered
        return Election(
            is_registrar=False,
            name=name or JOINED_NAME,
            registry_addrs=answered,
            bind_addrs=wanted,
            bind_near=near,
            bind_protos=[] if wanted else _missing(enable_transports, near),
        )
    if occupied:
        raise RuntimeError(
            f'registry address(es) occupied but did not answer as a registrar: '
            f'{occupied}; stop what listens there, or choose other `registry_addrs`'
        )
    own = _unique(addr for addr, _ in probes)
    bind = _unique([*wanted, *own])
    return Election(
        is_registrar=True,
        name=name or REGISTRAR_NAME,
        registry_addrs=own,
        bind_addrs=bind,
        bind_near=[],
        bind_protos=[] if wanted else _missing(enable_transports, bind),
    )


def _unique[A: HasProto](addrs: Iterable[A]) -> list[A]:
    """Return the addresses in order without repeats, which no two unbound ones are."""
    seen: set[A] = set()
    found = []
    for addr in addrs:
        if addr.system_chooses or addr not in seen:
            seen.add(addr)
            found.append(addr)
    return found


def _missing(protos: Sequence[str], addrs: Iterable[HasProto]) -> list[str]:
    """Return the transports that none of `addrs` serves."""
    served = {addr.proto_key for addr in addrs}
    return [proto for proto in dict.fromkeys(protos) if proto not in served]
