"""
Which transport serves which address.

Everything derives from one list.  Used by channels, to connect and to wrap what was
accepted, and by the server.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from tractor.ipc._tcp import MsgpackTCPStream, TCPAddress
from tractor.ipc._transport import MsgpackTransport, MsgTransportKey
from tractor.ipc._uds import HAS_UDS, MsgpackUDSStream, UDSAddress

Address = TCPAddress | UDSAddress

_msg_transports: Final[list[type[MsgpackTransport]]] = [
    MsgpackTCPStream,
    *([MsgpackUDSStream] if HAS_UDS else []),
]
_key_to_transport: Final[dict[MsgTransportKey, type[MsgpackTransport]]] = {
    transport.key(): transport for transport in _msg_transports
}
_addr_to_transport: Final[dict[type[Any], type[MsgpackTransport]]] = {
    transport.address_type: transport for transport in _msg_transports
}

_family_to_proto: Final[dict[int, str]] = {
    trio.socket.AF_INET: 'tcp',
    trio.socket.AF_INET6: 'tcp',
    **({trio.socket.AF_UNIX: 'uds'} if HAS_UDS else {}),
}


def transport_from_addr(
    addr: Address, codec_key: str = 'msgpack'
) -> type[MsgpackTransport]:
    """
    Return the transport that connects to an address.

    Raises:
        NotImplementedError: There is none.
    """
    transport = _addr_to_transport.get(type(addr))
    if transport is None or transport.codec_key != codec_key:
        raise NotImplementedError(f'no {codec_key!r} transport for address {addr!r}')
    return transport


def transport_from_stream(
    stream: Any, codec_key: str = 'msgpack'
) -> type[MsgpackTransport]:
    """
    Return the transport for a connected stream.

    Raises:
        NotImplementedError: There is none.
    """
    family = getattr(getattr(stream, 'socket', None), 'family', None)
    proto = None if family is None else _family_to_proto.get(family)
    transport = None if proto is None else _key_to_transport.get((codec_key, proto))
    if transport is None:
        raise NotImplementedError(f'no {codec_key!r} transport for stream {stream!r}')
    return transport
