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
from functools import partial
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

    def _dump_into(self, codec: MsgCodec, msg: Any, buffer: bytearray) -> None:
        _marshal.dumps_into(codec, msg, buffer, PREFIX_SIZE)

    def _loader(self, codec: MsgCodec) -> Callable[[bytes], Any]:
        return partial(_marshal.loads, codec)

    def _decode_any(self, frame: bytes) -> Any:
        return _marshal.plain(frame)
