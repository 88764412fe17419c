"""
The link between an actor and its sub-interpreter child: a socketpair in one process.

A Unix socket with nothing to bind, to connect to or to authenticate, since both ends
were made by one process and never left it.  For the same reason its frames are
`marshal` data, which an interpreter without the serializer can read and write fast.
Used by the `subint` backend on both sides; never by anything that others can reach.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import trio

from tractor._protocol.framing import PREFIX_SIZE
from tractor.ipc._transport import MsgpackTransport
from tractor.ipc._uds import UDSAddress
from tractor.msg import _marshal
from tractor.msg._codec import MsgCodec


class LinkStream(MsgpackTransport):
    """
    Messages between two interpreters of one process.

    Args:
        sock: This end, owned from now on.
        raddr: Where the peer listens, if that is known.
    """

    codec_key: ClassVar[str] = 'marshal'
    address_type: ClassVar[type[Any]] = UDSAddress

    # What the last codec reads and writes with.
    _ready_for: MsgCodec | None = None
    _load: Callable[[bytes], Any]
    _dump: Callable[[Any], bytes]

    def __init__(self, sock: socket.socket, raddr: Any = None) -> None:
        sock.setblocking(False)
        super().__init__(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))
        if raddr is not None:
            self._raddr = raddr

    @classmethod
    async def connect_to(cls, addr: Any, *args: Any, **kwargs: Any) -> Self:
        """Refuse: a link is made with the interpreter at its other end."""
        raise NotImplementedError(
            'nobody can connect to a link: it is made with the sub-interpreter'
        )

    @classmethod
    def get_stream_addrs(
        cls, stream: trio.SocketStream
    ) -> tuple[UDSAddress, UDSAddress]:
        """Return an address that names this end's descriptor, twice."""
        folder = Path(f'/proc/{os.getpid()}/fd')
        addr = UDSAddress(folder, Path(str(stream.socket.fileno())), os.getpid())
        return addr, addr

    def _use(self, codec: MsgCodec) -> None:
        self._load, self._dump = _marshal.loader(codec), _marshal.dumper(codec)
        self._ready_for = codec

    def _dump_into(self, codec: MsgCodec, msg: Any, buffer: bytearray) -> None:
        if codec is not self._ready_for:
            self._use(codec)
        buffer[PREFIX_SIZE:] = self._dump(msg)

    def _loader(self, codec: MsgCodec) -> Callable[[bytes], Any]:
        if codec is not self._ready_for:
            self._use(codec)
        return self._load

    def _decode_any(self, frame: bytes) -> Any:
        return _marshal.plain(frame, super()._decode_any)
