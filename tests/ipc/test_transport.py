"""Messages over one stream: what arrives, what is refused, what an end is called."""

from __future__ import annotations

import errno
import socket
import struct
import tracemalloc

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor._exceptions import MsgTypeError, TransportClosed
from tractor._protocol.framing import FrameTooLong, frame
from tractor.ipc._transport import (
    MAX_SKIPPED_FRAMES,
    MsgpackTransport,
    MsgTransport,
    is_peer_close,
)
from tractor.msg._codec import _def_tractor_codec, apply_codec, decode_any, mk_codec
from tractor.msg.types import Aid, Started, Stop, Yield

GARBAGE = frame(b'\xc1')  # a byte that msgpack never uses
AID = Aid('peer', 'a' * 32, 7)


def encoded(msg):
    return frame(_def_tractor_codec.encode(msg))


def run_pair(raw_pair, make_transport, main):
    """Run `main(transport, transport)` over a pair, at most 5 seconds."""

    async def bounded():
        left, right = (make_transport(end) for end in raw_pair())
        with trio.fail_after(5):
            await main(left, right)

    trio.run(bounded)


@pytest.fixture
def with_pair(raw_pair, make_transport):
    def run(main):
        run_pair(raw_pair, make_transport, main)

    return run


@pytest.fixture
def with_raw_peer(raw_pair, make_transport):
    """Run `main(transport, socket)`, the socket being the peer's bare end."""

    def run(main):
        async def bounded():
            end, peer = raw_pair()
            with trio.fail_after(5):
                await main(make_transport(end), peer)

        trio.run(bounded)

    return run


@pytest.mark.parametrize('size', [0, 100, 70_000, 3_000_000])
def test_messages_of_any_size_arrive_in_order(with_pair, size):
    """What one end sends the other receives, in order, however large."""

    async def main(left, right):
        async def send():
            for number in range(3):
                await left.send(Yield(f'{number}', b'x' * size))

        async with trio.open_nursery() as tn:
            tn.start_soon(send)
            got = [await right.recv() for _ in range(3)]
        assert [msg.cid for msg in got] == ['0', '1', '2']
        assert all(decode_any(msg.pld) == b'x' * size for msg in got)

    with_pair(main)


def test_frames_are_little_endian_length_and_payload(with_raw_peer):
    """A frame is four bytes of length, little-endian, and the encoded message."""

    async def main(transport, peer):
        msg = Stop('c')
        await transport.send(msg)
        data = peer.recv(1000)
        assert struct.unpack('<I', data[:4]) == (len(data) - 4,)
        assert _def_tractor_codec.decode(data[4:]) == msg

    with_raw_peer(main)


def test_one_read_brings_all_that_is_there(with_raw_peer):
    """`recv_batch()` returns every complete message of one read."""

    async def main(transport, peer):
        peer.send(b''.join(encoded(Stop(f'{n}')) for n in range(50)) + b'\x05')
        batch = await transport.recv_batch()
        assert [msg.cid for msg in batch] == [f'{n}' for n in range(50)]

    with_raw_peer(main)


def test_recv_leaves_the_rest_of_a_batch_to_the_next(with_raw_peer):
    """`recv()`, iteration and `recv_batch()` take from the same buffer."""

    async def main(transport, peer):
        peer.send(b''.join(encoded(Stop(f'{n}')) for n in range(5)))
        assert (await transport.recv()).cid == '0'
        assert (await anext(transport)).cid == '1'
        assert aiter(transport) is aiter(transport)
        assert [msg.cid for msg in await transport.recv_batch()] == ['2', '3', '4']

    with_raw_peer(main)


def test_a_cancelled_recv_loses_nothing(with_raw_peer):
    """What arrives after a cancelled wait is received by the next one."""

    async def main(transport, peer):
        data = encoded(Stop('whole'))
        peer.send(data[:7])
        with trio.move_on_after(0.01):
            await transport.recv()
        peer.send(data[7:])
        assert await transport.recv() == Stop('whole')

    with_raw_peer(main)


def test_drain_yields_what_came_before_the_end(with_raw_peer):
    """`drain()` reads until the peer is gone, keeps and yields everything."""

    async def main(transport, peer):
        peer.send(encoded(Stop('1')) + encoded(Stop('2')))
        peer.close()
        got = [msg async for msg in transport.drain()]
        assert got == transport.drained == [Stop('1'), Stop('2')]

    with_raw_peer(main)


def test_what_is_no_message_is_not_sent(with_raw_peer):
    """Sending anything but the ten messages raises, and nothing is written."""

    async def main(transport, peer):
        with pytest.raises(MsgTypeError, match=r'^invalid msg -> ') as caught:
            await transport.send({'not': 'a message'})
        assert 'Valid IPC msgs are:' in caught.value.message
        with pytest.raises(BlockingIOError):
            peer.recv(1)

    with_raw_peer(main)


def test_lenient_types_only_warn(with_raw_peer, caplog):
    """With `strict_types=False` another object is sent, with a warning."""

    async def main(transport, peer):
        await transport.send({'not': 'a message'}, strict_types=False)
        assert decode_any(peer.recv(100)[4:]) == {'not': 'a message'}

    with_raw_peer(main)
    assert 'invalid msg' in caplog.text


def test_what_cannot_be_encoded_is_not_sent(with_pair):
    """A value of an unknown type raises; the connection stays usable."""

    async def main(left, right):
        with pytest.raises(MsgTypeError) as caught:
            await left.send(Started('c', pld=object()))
        assert isinstance(caught.value.__cause__, TypeError)
        await left.send(Stop('next'))
        assert await right.recv() == Stop('next')

    with_pair(main)


def test_a_frame_above_the_limit_is_not_sent(with_pair, monkeypatch):
    """A message too long for the limit raises; the connection stays usable."""
    monkeypatch.setenv('TRACTOR_MAX_FRAME', '1000')

    async def main(left, right):
        with pytest.raises(FrameTooLong, match='TRACTOR_MAX_FRAME'):
            await left.send(Yield('c', b'x' * 2000))
        await left.send(Stop('next'))
        assert await right.recv() == Stop('next')

    with_pair(main)


def test_an_announced_giant_is_refused_without_allocation(with_raw_peer):
    """A prefix above the limit closes the connection; nothing is allocated for it."""

    async def main(transport, peer):
        transport.peer = AID
        peer.send(b'\xff\xff\xff\xff' + b'x' * 100)
        tracemalloc.start()
        try:
            with pytest.raises(TransportClosed) as caught:
                await transport.recv()
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
        text = str(caught.value)
        assert '4294967295 bytes' in text
        assert '268435456' in text
        assert 'TRACTOR_MAX_FRAME' in text
        assert 'peer@7' in text
        assert not transport.connected()

    with_raw_peer(main)


def test_an_invalid_message_of_a_context_becomes_an_error_object(with_raw_peer):
    """A frame that is msgpack but no valid message is yielded as a `MsgTypeError`."""

    async def main(transport, peer):
        bad = _def_tractor_codec.encode({'msg_type': 'Start', 'cid': 'c1', 'ns': 5})
        peer.send(frame(bad) + encoded(Stop('next')))
        error, after = await transport.recv_batch()
        assert type(error) is MsgTypeError
        assert error.msgdata['cid'] == 'c1'
        assert after == Stop('next')

    with_raw_peer(main)


def test_messages_ahead_of_one_frame_too_many_arrive(with_raw_peer):
    """What a peer said before it was dropped is not lost."""

    async def main(transport, peer):
        junk = GARBAGE * (MAX_SKIPPED_FRAMES + 1)
        peer.send(encoded(Stop('1')) + junk + encoded(Stop('2')))
        assert await transport.recv_batch() == [Stop('1')]
        with pytest.raises(TransportClosed, match='undecodable'):
            await transport.recv_batch()

    with_raw_peer(main)


@pytest.mark.parametrize(
    'junk',
    [
        GARBAGE,
        frame(b''),
        frame(b'\x01'),
        frame(_def_tractor_codec.encode({'msg_type': 'Nonsense'})),
        frame(_def_tractor_codec.encode({'msg_type': 'Stop', 'cid': 5})),
    ],
)
def test_undecodable_frames_are_skipped_up_to_four_times(with_raw_peer, junk):
    """Four frames that nobody can make sense of are skipped, the fifth is the end."""

    async def main(transport, peer):
        peer.send(junk * MAX_SKIPPED_FRAMES + encoded(Stop('fine')))
        assert await transport.recv_batch() == [Stop('fine')]
        peer.send(junk)
        with pytest.raises(TransportClosed, match='undecodable') as caught:
            await transport.recv()
        assert caught.value.src_exc is not None

    assert MAX_SKIPPED_FRAMES == 4
    with_raw_peer(main)


def test_the_end_between_frames_is_graceful(with_raw_peer):
    """A peer that closes between messages has gracefully closed."""

    async def main(transport, peer):
        transport.peer = AID
        peer.close()
        with pytest.raises(TransportClosed) as caught:
            await transport.recv()
        closed = caught.value
        assert "'PairTransport' already gracefully closed" in closed.message
        assert 'peer@7' in closed.message
        assert closed.peer == AID.uid
        assert closed._loglevel == 'transport'
        assert not closed._raise_on_report

    with_raw_peer(main)


@pytest.mark.parametrize('cut', [2, 4, 7])
def test_the_end_amid_a_frame_is_no_graceful_one(with_raw_peer, cut):
    """A peer that closes in the middle of a frame has closed it, not gracefully."""

    async def main(transport, peer):
        peer.send(encoded(Stop('first')) + encoded(Stop('second'))[:cut])
        peer.close()
        assert await transport.recv() == Stop('first')
        with pytest.raises(TransportClosed) as caught:
            await transport.recv()
        assert "'PairTransport' already closed by peer" in caught.value.message
        assert caught.value._loglevel == 'transport'

    with_raw_peer(main)


def test_a_reset_is_a_close_by_the_peer(with_raw_peer):
    """A connection reset reads as closed by the peer, at transport level."""

    async def main(transport, peer):
        await transport.send(Stop('never read'))
        peer.close()  # with unread data: that resets the connection
        with pytest.raises(TransportClosed) as caught:
            await transport.recv()
        closed = caught.value
        assert "'PairTransport' already closed by peer" in closed.message
        assert closed._loglevel == 'transport'
        assert isinstance(closed.src_exc, trio.BrokenResourceError)

    with_raw_peer(main)


def test_closing_under_a_reader_is_reported_as_an_error(with_raw_peer):
    """A reader whose socket another task closes is told so, to be raised on report."""

    caught = []

    async def main(transport, peer):
        async def read():
            with pytest.raises(TransportClosed) as raised:
                await transport.recv()
            caught.append(raised.value)

        async with trio.open_nursery() as tn:
            tn.start_soon(read)
            await wait_all_tasks_blocked()
            await transport.stream.aclose()

    with_raw_peer(main)
    [closed] = caught
    assert "'PairTransport' was already closed locally?" in closed.message
    assert type(closed.__cause__) is trio.ClosedResourceError
    assert 'another task closed this fd' in closed.__cause__.args
    assert closed._loglevel == 'error'
    assert closed._raise_on_report


def test_reading_a_closed_transport(with_raw_peer):
    """Reading after a local close raises, but is not to be raised on report."""

    async def main(transport, peer):
        await transport.aclose()
        assert not transport.connected()
        with pytest.raises(TransportClosed, match='closed locally') as caught:
            await transport.recv()
        assert not caught.value._raise_on_report

    with_raw_peer(main)


def test_sending_to_a_peer_that_is_gone(with_raw_peer):
    """A send to a closed peer raises from trio's error, which is also the source."""

    async def main(transport, peer):
        peer.close()
        with pytest.raises(
            TransportClosed, match="'PairTransport' already closed by peer"
        ) as caught:
            await transport.send(Stop('c'))
        assert type(caught.value.__cause__) is trio.BrokenResourceError
        assert caught.value.src_exc is caught.value.__cause__

    with_raw_peer(main)


def test_sending_on_a_closed_transport(with_raw_peer):
    """A send after the local socket was closed says so in trio's terms."""

    async def main(transport, peer):
        await transport.stream.aclose()
        with pytest.raises(
            TransportClosed, match="'PairTransport' was already closed 'by peer'\\?"
        ) as caught:
            await transport.send(Stop('c'))
        assert type(caught.value.__cause__) is trio.ClosedResourceError

    with_raw_peer(main)


def test_sending_after_end_of_file(with_raw_peer):
    """A send after `send_eof()` is a local close, not a broken peer."""

    async def main(transport, peer):
        await transport.stream.send_eof()
        with pytest.raises(TransportClosed, match="already closed 'locally'"):
            await transport.send(Stop('c'))

    with_raw_peer(main)


def test_another_codec_of_the_task_or_of_the_transport(with_raw_peer):
    """The task's codec is used, unless the transport has one of its own."""

    async def main(transport, peer):
        peer.send(encoded(Yield('c', 5)) * 2)
        with apply_codec(mk_codec(ipc_pld_spec=int)):
            assert (await transport.recv_batch())[0].pld == 5
        transport._codec = mk_codec(ipc_pld_spec=str)
        peer.send(encoded(Yield('c', 5)))
        assert type(await transport.recv()) is MsgTypeError

    with_raw_peer(main)


class FakeStream:
    """A stream that fails in a given way."""

    def __init__(self, error=None):
        self.error, self.sent = error, b''

    async def send_all(self, data):
        if self.error is not None:
            raise self.error
        self.sent += data


def bare_transport(stream):
    transport = object.__new__(MsgpackTransport)
    transport.stream = stream
    transport._send_lock = trio.StrictFIFOLock()
    transport._laddr = transport._raddr = transport._task = None
    return transport


def broken_by(cause, *, as_context=False):
    error = trio.BrokenResourceError('broken')
    if as_context:
        error.__context__ = cause
    else:
        error.__cause__ = cause
    return error


def peer_close(code=errno.EPIPE):
    return OSError(code, 'gone')


def send_over(stream):
    transport = bare_transport(stream)
    trio.run(transport.send, Stop('c'))


def test_any_other_stream_is_written_by_its_own_method():
    """A transport with nothing but a stream and its lock sends through the stream."""
    stream = FakeStream()
    send_over(stream)
    assert stream.sent == encoded(Stop('c'))


class StickyStream:
    """A stream that takes a part and then nothing more."""

    def __init__(self):
        self.closed = False

    async def send_all(self, data):
        await trio.sleep_forever()

    async def aclose(self):
        self.closed = True
        await trio.lowlevel.checkpoint()


def test_another_stream_is_closed_when_a_frame_is_cut():
    """What came next would be read as the rest of the cut frame."""
    stream = StickyStream()
    transport = bare_transport(stream)

    async def main():
        with trio.fail_after(5), trio.move_on_after(0.01) as scope:
            await transport.send(Stop('c'))
        assert scope.cancelled_caught

    trio.run(main)
    assert stream.closed


@pytest.mark.parametrize(
    'cause',
    [
        peer_close(errno.ECONNRESET),
        peer_close(errno.EPIPE),
        ExceptionGroup('', [peer_close(), ExceptionGroup('', [peer_close()])]),
        broken_by(peer_close()),
        broken_by(peer_close(), as_context=True),
    ],
)
def test_an_error_tree_that_is_all_peer_close(cause):
    """A broken stream whose every cause is a reset is `TransportClosed`."""
    error = broken_by(cause)
    with pytest.raises(TransportClosed, match='already closed by peer') as caught:
        send_over(FakeStream(error))
    assert caught.value.__cause__ is caught.value.src_exc is error


@pytest.mark.parametrize(
    'cause',
    [
        None,
        OSError(errno.ETIMEDOUT, 'late'),
        ExceptionGroup('', [peer_close(), ValueError('other')]),
    ],
)
def test_any_other_broken_stream_propagates_unchanged(cause):
    """A broken stream with any other cause in it is raised as it is."""
    error = broken_by(cause)
    with pytest.raises(trio.BrokenResourceError) as caught:
        send_over(FakeStream(error))
    assert caught.value is error
    assert caught.value.__cause__ is cause


def test_a_cycle_of_causes_ends():
    """Causes that form a circle are no peer's close, and are followed once."""
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert not is_peer_close(first)


@pytest.mark.parametrize(
    ('text', 'whom'),
    [
        ('another task closed this fd', 'locally'),
        ('this socket was already closed', 'by peer'),
    ],
)
def test_a_closed_stream_names_who_closed_it(text, whom):
    """The text says who closed, after trio's words; the cause is trio's error."""
    error = trio.ClosedResourceError(text)
    with pytest.raises(TransportClosed) as caught:
        send_over(FakeStream(error))
    assert f"'MsgpackTransport' was already closed '{whom}'?" in str(caught.value)
    assert caught.value.__cause__ is error


def test_only_the_known_prefix_size(raw_pair, make_transport):
    """Another prefix size is refused when the transport is made."""

    async def main():
        with pytest.raises(ValueError, match='4 bytes, not 8'):
            make_transport(raw_pair()[0], prefix_size=8)

    trio.run(main)


def test_it_is_a_message_transport(with_pair):
    """The class satisfies the protocol, and its text names both addresses."""

    async def main(left, right):
        assert isinstance(left, MsgTransport)
        assert 'here' in repr(left)
        assert 'there' in str(left)
        assert left.laddr == 'here'
        assert left.raddr == 'there'
        assert left.connected()

    with_pair(main)


def test_a_flood_does_not_starve_other_tasks(with_raw_peer):
    """A task that only sends lets others run in between."""

    async def main(transport, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        ran = []

        async def other():
            ran.append(True)

        async with trio.open_nursery() as tn:
            tn.start_soon(other)
            for _ in range(200):
                await transport.send(Stop('c'))
                if ran:
                    break
        assert ran

    with_raw_peer(main)
