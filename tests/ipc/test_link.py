"""The link to a sub-interpreter, both ends in this one."""

from __future__ import annotations

import marshal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import wraps

import pytest
import trio

from tractor._exceptions import MsgTypeError, TransportClosed
from tractor._protocol.framing import frame
from tractor.ipc._link import LinkStream
from tractor.ipc._tcp import TCPAddress
from tractor.msg._codec import current_codec, decode_any
from tractor.msg.types import Aid, Error, Return, Start, Yield

pytestmark = pytest.mark.skipif(
    sys.version_info < (3, 14), reason='links are for sub-interpreters: Python 3.14'
)


End = LinkStream
Body = Callable[[End, End], Awaitable[None]]


def over_a_link(body: Body) -> Callable[[], None]:
    """Run a test with both ends; the first knows where its peer listens."""

    async def main() -> None:
        one, other = socket.socketpair()
        ours = LinkStream(one, TCPAddress('127.0.0.1', 1616))
        theirs = LinkStream(other)
        with trio.fail_after(5):
            async with ours.stream, theirs.stream:
                await body(ours, theirs)

    @wraps(body)
    def test() -> None:
        trio.run(main)

    del test.__wrapped__  # its parameters are no fixtures
    return test


@over_a_link
async def test_messages_arrive_as_over_msgpack(ours: End, theirs: End) -> None:
    """Also what `marshal` would have kept: a tuple is a list at the other end."""
    await ours.send(Start('c', 'mod', 'fn', {'pair': (1, 2)}, ('me', '1')))
    await ours.send(Yield('c', pld={'k': (1, b'x', None)}))
    start, value = await theirs.recv(), await theirs.recv()
    assert start == Start('c', 'mod', 'fn', {'pair': [1, 2]}, ('me', '1'))
    await theirs.send(Return('c', pld=value.pld))
    answer = await ours.recv()
    assert bytes(answer.pld) == bytes(value.pld)


@over_a_link
async def test_a_large_message_arrives_whole(ours: End, theirs: End) -> None:
    """The socket takes it in many parts."""
    async with trio.open_nursery() as tn:
        tn.start_soon(ours.send, Yield('c', pld=b'x' * 2**21))
        assert len(bytes((await theirs.recv()).pld)) > 2**21


@over_a_link
async def test_what_cannot_be_sent_is_refused_here(ours: End, theirs: End) -> None:
    """As over msgpack, with the error of a message that is none."""
    with pytest.raises(MsgTypeError, match='complex'):
        await ours.send(Yield('c', pld=1j))


@over_a_link
async def test_an_invalid_message_is_told_apart(ours: End, theirs: End) -> None:
    """It stands for the message, so that its context can fail."""
    good = Start('c', 'mod', 'fn', {}, ('me', '1'))
    good.ns = 5  # type: ignore[assignment]
    await ours.send(good)
    got = await theirs.recv()
    assert isinstance(got, MsgTypeError)
    assert got.msgdata['cid'] == 'c'


def too_deep() -> bytes:
    """Return msgpack that is nested too deeply to be decoded on this stack."""
    lists = b'\x91' * 1000
    while True:
        try:
            decode_any(lists + b'\x01')
        except RecursionError:
            return lists + b'\x01'
        lists *= 2


@over_a_link
async def test_an_undecodable_request_is_answered(ours: End, theirs: End) -> None:
    """Its caller gets an error; how the frame is made does not matter."""
    theirs.peer = Aid('me', '1')
    whole = current_codec().encode(Start('c', 'mod', 'fn', {'a': 1}, ('me', '1')))
    deep = whole.replace(b'\xa1a\x01', b'\xa1a' + too_deep())
    await ours.stream.send_all(frame(marshal.dumps(deep, 2)))
    assert type(await theirs.recv()) is MsgTypeError
    bad = Start('d', 'mod', 'fn', 5, ('me', '1'))  # type: ignore[arg-type]
    await ours.send(bad)
    assert type(await theirs.recv()) is MsgTypeError
    key = whole.replace(b'\xa1a\x01', b'\xa1a\x81\x80\x01').replace(b'\xa1c', b'\xa1e')
    await ours.stream.send_all(frame(marshal.dumps(key, 2)))
    assert type(await theirs.recv()) is MsgTypeError
    for cid in 'cde':
        answer = await ours.recv()
        assert (type(answer), answer.cid) == (Error, cid)
        assert answer.boxed_type_str == 'MsgTypeError'
    assert theirs.skips_left == LinkStream.skips_left


@over_a_link
async def test_both_ends_have_an_address(ours: End, theirs: End) -> None:
    """The one that was told, or the descriptor."""
    assert ours.raddr == TCPAddress('127.0.0.1', 1616)
    assert ours.laddr.proto_key == theirs.raddr.proto_key == 'uds'
    assert str(theirs.stream.socket.fileno()) in str(theirs.laddr)
    assert LinkStream.key() == ('marshal', 'uds')


@over_a_link
async def test_the_end_is_seen(ours: End, theirs: End) -> None:
    """A closed link is a lost peer."""
    await ours.aclose()
    with pytest.raises(TransportClosed):
        await theirs.recv()


@over_a_link
async def test_nobody_can_connect(ours: End, theirs: End) -> None:
    """A link has no address that could be connected to."""
    with pytest.raises(NotImplementedError, match='made with the sub-interpreter'):
        await LinkStream.connect_to(None)
