"""What the tests of the transports share: a cookie of its own, connected pairs."""

from __future__ import annotations

import socket

import pytest
import trio

from tractor.ipc._tcp import TCPAddress
from tractor.ipc._transport import MsgpackTransport
from tractor.msg.types import Yield

SMALL = 4096  # bytes of a send buffer; the kernel doubles it


class PairTransport(MsgpackTransport):
    """A transport over one end of a socket pair, whose ends have no addresses."""

    address_type = TCPAddress

    @classmethod
    def get_stream_addrs(cls, stream):
        return 'here', 'there'


@pytest.fixture(autouse=True)
def cookie_file(tmp_path, monkeypatch):
    """A cookie file of this test alone; it does not exist yet."""
    path = tmp_path / 'cookie'
    monkeypatch.setenv('TRACTOR_COOKIE_FILE', str(path))
    return path


@pytest.fixture
def raw_pair():
    """A function that returns two connected stdlib sockets, closed after the test."""
    opened = []

    def make(send_buffer=None):
        ends = socket.socketpair()
        opened.extend(ends)
        for end in ends:
            end.setblocking(False)
            if send_buffer is not None:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        return ends

    yield make
    for end in opened:
        end.close()


@pytest.fixture
def make_transport():
    """A function that wraps a stdlib socket; for use inside a trio run."""

    def make(sock, **kwargs):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        return PairTransport(stream, **kwargs)

    return make


@pytest.fixture
def make_yield():
    """A function that returns a stream message with a number and a payload size."""

    def make(number, size=0):
        return Yield(cid=f'{number}', pld=b'x' * size)

    return make


@pytest.fixture
def run(raw_pair, make_transport):
    """Run `main(transport, peer socket)` with small buffers, at most 5 seconds."""

    def run(main, **kwargs):
        async def bounded():
            end, peer = raw_pair(SMALL)
            with trio.fail_after(5):
                await main(make_transport(end), peer)

        trio.run(bounded, **kwargs)

    return run
