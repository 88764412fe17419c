"""
Addresses, wrapped and plain.

An address is *wrapped* as a struct of its transport, or plain: a pair, which is what
travels in messages.  `wrap_address()` takes either, and multiaddr text.  The classes
are defined next to their transports; here is the table of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

from tractor.ipc._tcp import TCPAddress
from tractor.ipc._uds import HAS_UDS, UDSAddress
from tractor.runtime import _state

UnwrappedAddress = tuple[str, int] | tuple[str, str]


class Address(Protocol):
    """What all wrapped addresses have."""

    proto_key: ClassVar[str]
    unwrapped_type: ClassVar[Any]
    def_bindspace: ClassVar[Any]

    @property
    def is_valid(self) -> bool: ...

    @property
    def system_chooses(self) -> bool: ...

    @property
    def bindspace(self) -> Any: ...

    @classmethod
    def from_addr(cls, addr: Any) -> Self: ...

    def unwrap(self) -> UnwrappedAddress: ...

    @classmethod
    def get_random(cls, bindspace: Any = None, current_actor: Any = None) -> Self: ...

    @classmethod
    def get_root(cls) -> Self: ...


_address_types: dict[str, type[TCPAddress] | type[UDSAddress]] = {
    'tcp': TCPAddress,
    **({'uds': UDSAddress} if HAS_UDS else {}),
}


def __getattr__(name: str) -> Any:
    # Not at import: the Unix one needs the runtime directory.
    if name == '_default_lo_addrs':
        return {key: kind.get_root().unwrap() for key, kind in _address_types.items()}
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def mk_uuid() -> str:
    """Return a new random id."""
    from uuid import uuid4  # 1 ms which only who starts actors pays

    return str(uuid4())


def get_address_cls(name: str) -> type[TCPAddress] | type[UDSAddress]:
    """
    Return the address class of a transport.

    Raises:
        NotImplementedError: No such transport on this platform.
    """
    kind = _address_types.get(name)
    if kind is None:
        raise NotImplementedError(
            f'no transport {name!r} on this platform; there is '
            f'{", ".join(map(repr, _address_types))}'
        )
    return kind


def is_wrapped_addr(addr: object) -> bool:
    """Return whether this is a wrapped address."""
    return type(addr) in _address_types.values()


def default_lo_addrs(transports: Sequence[str]) -> list[UnwrappedAddress]:
    """
    Return the plain default registry address of each transport.

    Raises:
        NotImplementedError: No such transport on this platform.
    """
    return [get_address_cls(key).get_root().unwrap() for key in transports]


def wrap_address(addr: Any) -> Any:
    """
    Return the wrapped form of an address.

    Args:
        addr: A wrapped one, a pair, multiaddr text, or `None` (also a pair of them) for
            the default registry address of the default transport.
    Raises:
        TypeError: Anything else.
        ValueError: The right shape with a value that cannot be, such as a host name.
    """
    if is_wrapped_addr(addr):
        return addr
    match addr:
        case None | (None, None):
            return get_address_cls(_state._def_tpt_proto).get_root()
        case str() if addr.startswith('/'):
            # Brings a library; only who writes such text needs it.
            from tractor.discovery._multiaddr import parse_maddr

            return parse_maddr(addr)
        case (str(), int()):
            return TCPAddress.from_addr(addr)
        case (_, second) if type(second) is str:
            return UDSAddress.from_addr(addr)
    raise TypeError(
        f'cannot make an address of {addr!r}; give `(host, port)`, '
        '`(directory, file name)` or multiaddr text'
    )
