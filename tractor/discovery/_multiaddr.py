"""
Addresses as multiaddr text, such as `/ip4/127.0.0.1/tcp/1616` and `/unix/tmp/a.sock`.

Used for what people write and read; messages carry pairs.  Loaded, with the library it
needs, by whoever first asks for such text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote

from tractor.discovery._addr import wrap_address
from tractor.ipc._tcp import TCPAddress
from tractor.ipc._uds import UDSAddress

_tpt_proto_to_maddr: Final[dict[str, str]] = {'tcp': 'tcp', 'uds': 'unix'}
_maddr_to_tpt_proto: Final[dict[str, str]] = {
    maddr: tpt for tpt, maddr in _tpt_proto_to_maddr.items()
}


def mk_maddr(addr: Any) -> Any:
    """
    Return the `multiaddr.Multiaddr` of a wrapped address.

    Raises:
        ValueError: Its transport has no such form.
    """
    # A heavy library, needed by few programs.
    from multiaddr import Multiaddr

    match addr.proto_key:
        case 'tcp':
            host, port = addr.unwrap()
            version = 'ip6' if ':' in host else 'ip4'
            return Multiaddr(f'/{version}/{host}/tcp/{port}')
        case 'uds':
            path = addr.sockpath.absolute().as_posix().lstrip('/')
            return Multiaddr(f'/unix/{quote(path)}')
    raise ValueError(
        f'Unsupported proto_key {addr.proto_key!r}; multiaddrs exist for '
        f'{", ".join(map(repr, _tpt_proto_to_maddr))}'
    )


def parse_maddr(maddr: str) -> Any:
    """
    Return the wrapped address that multiaddr text stands for.

    Raises:
        ValueError: Not a multiaddr, or one of a transport we do not have.
    """
    from multiaddr import Multiaddr  # see `mk_maddr()`

    parsed = Multiaddr(maddr)
    match [proto.name for proto in parsed.protocols()]:
        case [('ip4' | 'ip6') as version, 'tcp']:
            host = parsed.value_for_protocol(version)
            return TCPAddress(host, int(parsed.value_for_protocol('tcp')))
        case ['unix']:
            # Whichever way it was written, the library gives it percent-encoded.
            path = Path('/') / unquote(parsed.value_for_protocol('unix'))
            return UDSAddress.from_addr(path)
        case names:
            raise ValueError(
                f'Unsupported multiaddr protocol combo {"/".join(names)!r} in '
                f'{maddr!r}; give /ip4/HOST/tcp/PORT, /ip6/HOST/tcp/PORT or /unix/PATH'
            )


def parse_endpoints(table: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """
    Return a table of endpoints with every address wrapped, order kept.

    Args:
        table: Name to addresses in any form that `wrap_address()` takes.
    Raises:
        TypeError: As `wrap_address()`.
        ValueError: As `wrap_address()`.
    """
    return {name: [wrap_address(addr) for addr in table[name]] for name in table}
