"""A channel: its members with and without a transport, its log, its handshake."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import trio

from tractor._exceptions import MsgTypeError, TransportClosed
from tractor._protocol.framing import frame
from tractor.ipc import _chan, _types
from tractor.ipc._chan import Channel, _connect_chan
from tractor.ipc._tcp import MsgpackTCPStream, TCPAddress
from tractor.ipc._transport import MAX_SKIPPED_FRAMES
from tractor.ipc._uds import (
    MsgpackUDSStream,
    UDSAddress,
    close_listener,
    start_listener,
)
from tractor.log import StackLevelAdapter
from tractor.msg._codec import DecodeError, _def_tractor_codec, mk_codec
from tractor.msg.types import Aid, Error, Start, Stop, Yield

US = Aid('us', 'u' * 32, 1)
THEM = Aid('them', 't' * 32, 2)


class DuckTransport:
    """Anything with a `send` and a `recv`."""

    def __init__(self, *replies):
        self.sent, self.replies = [], list(replies)

    async def send(self, payload, hide_tb=True):
        self.sent.append((payload, hide_tb))

    async def recv(self):
        if not self.replies:
            await trio.sleep_forever()
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def test_a_placeholder_is_inert():
    """Without a transport everything answers, and nothing can be sent."""
    chan = Channel()
    assert chan.transport is chan.msgstream is chan.stream is None
    assert chan.laddr is chan.raddr is chan.aid is chan._exc is None
    assert chan.maddr == '<no-tpt>'
    assert not chan.connected()
    assert not chan.closed
    assert not chan.cancel_called
    assert repr(chan).startswith('<Channel(')
    assert str(chan) == repr(chan) == chan.pformat(privates=True)
    with pytest.raises(TransportClosed, match='placeholder'):
        trio.run(chan.send, Stop('c'))
    trio.run(chan.aclose)
    assert chan.closed


def test_channels_are_compared_by_identity():
    """Two channels are never equal, and a channel can be a key."""
    one, other = Channel(), Channel()
    assert one != other
    assert {one: 1, other: 2}[one] == 1


def test_the_uid_is_deprecated():
    """`uid` still works, with a warning."""
    chan = Channel()
    chan.aid = THEM
    with pytest.warns(DeprecationWarning, match=r'aid\.uid'):
        assert chan.uid == THEM.uid


def test_what_was_asked_is_remembered():
    """`cancel_called` tells of the portal's request."""
    chan = Channel()
    chan._cancel_called = True
    assert chan.cancel_called


def test_a_send_is_one_send_of_the_transport():
    """Any object with a `send` will do; it is called once."""
    transport = DuckTransport()
    chan = Channel(transport=transport)
    trio.run(chan.send, Stop('c'))
    assert transport.sent == [(Stop('c'), False)]


@pytest.fixture
def rendered(monkeypatch):
    """The payloads that were rendered, and a logger of the module's own."""
    logger = logging.getLogger('tests.ipc.chan')
    logger.propagate = False
    monkeypatch.setattr(_chan, 'log', StackLevelAdapter(logger, {}))
    seen = []
    monkeypatch.setattr(_chan, 'pformat', lambda payload: seen.append(payload) or '')
    yield SimpleNamespace(seen=seen, logger=logger)
    logger.setLevel(logging.NOTSET)
    logger.disabled = False
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ('level', 'disabled', 'limit', 'count'),
    [
        ('TRANSPORT', False, 0, 1),
        ('RUNTIME', False, 0, 0),
        ('TRANSPORT', True, 0, 0),
        ('TRANSPORT', False, logging.CRITICAL, 0),
    ],
)
def test_a_payload_is_rendered_only_for_a_record(
    rendered, level, disabled, limit, count
):
    """Level, `disabled` and `logging.disable()` all keep the payload unrendered."""
    rendered.logger.setLevel(level)
    rendered.logger.disabled = disabled
    logging.disable(limit)
    transport = DuckTransport()
    trio.run(Channel(transport).send, Stop('c'))
    assert len(rendered.seen) == count
    assert len(transport.sent) == 1


@pytest.mark.parametrize('shown', [True, False])
def test_the_log_can_be_replaced(monkeypatch, shown):
    """All that is asked of it is whether the level is shown, and to show one text."""
    asked, texts = [], []
    log = SimpleNamespace(
        at_least_level=lambda level: asked.append(level) or shown,
        transport=texts.append,
    )
    monkeypatch.setattr(_chan, 'log', log)
    monkeypatch.setattr(_chan, 'pformat', lambda payload: '100% rendered')
    trio.run(Channel(DuckTransport()).send, Stop('c'))
    assert asked == ['transport']
    assert texts == ['=> to None: 100% rendered'] * shown


def handshake(*replies, timeout=None):
    chan = Channel(DuckTransport(*replies))

    async def main():
        with trio.fail_after(5):
            return await chan._do_handshake(US, timeout=timeout)

    return chan, lambda: trio.run(main)


def test_a_handshake_swaps_identities():
    """Ours is sent, theirs is kept and returned."""
    chan, run = handshake(THEM)
    assert run() == THEM
    assert chan.aid == THEM
    assert chan.transport.sent == [(US, False)]


@pytest.mark.parametrize(
    'error',
    [
        DecodeError('bad'),
        MsgTypeError('bad'),
        UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad'),
    ],
)
def test_a_reply_that_cannot_be_read(error):
    """A failure to decode the reply is `TransportClosed` with that failure in it."""
    chan, run = handshake(error)
    with pytest.raises(TransportClosed, match='no handshake') as caught:
        run()
    assert caught.value.src_exc is error
    assert chan.aid is None


@pytest.mark.parametrize('reply', [Stop('c'), None, MsgTypeError('bad')])
def test_a_reply_that_is_no_identity(reply):
    """Any other first message is `TransportClosed`, too."""
    chan, run = handshake(reply)
    with pytest.raises(TransportClosed) as caught:
        run()
    assert caught.value.src_exc is not None
    assert chan.aid is None


def test_a_silent_peer_is_not_waited_for():
    """After the time limit it is `TransportClosed`, from trio's error."""
    _, run = handshake(timeout=0.01)
    with pytest.raises(TransportClosed, match=r'within 0\.01 s') as caught:
        run()
    assert isinstance(caught.value.src_exc, trio.TooSlowError)


def test_a_callers_deadline_is_the_callers():
    """A scope around a handshake without a limit of its own ends it as usual."""
    chan = Channel(DuckTransport())

    async def main():
        with trio.move_on_after(0.01) as scope:
            await chan._do_handshake(US)
        assert scope.cancelled_caught

    trio.run(main)


def test_methods_can_be_replaced_on_an_instance():
    """The handshake goes through `send` and `recv` of the channel itself."""
    chan = Channel(DuckTransport())
    sent = []

    async def send(payload):
        sent.append(payload)

    async def recv():
        return THEM

    chan.send, chan.recv = send, recv
    assert trio.run(chan._do_handshake, US) == THEM
    assert sent == [US]


@pytest.fixture
def with_pair(raw_pair, make_transport):
    """Run `main(channel, channel)` over a pair."""

    def run(main):
        async def bounded():
            with trio.fail_after(5):
                await main(*(Channel(make_transport(end)) for end in raw_pair()))

        trio.run(bounded)

    return run


async def shake(one, other):
    async with trio.open_nursery() as tn:
        tn.start_soon(one._do_handshake, US)
        await other._do_handshake(THEM)


def test_both_ends_know_each_other(with_pair):
    """After a handshake, errors of the transport name the peer."""

    async def main(one, other):
        await shake(one, other)
        assert (one.aid, other.aid) == (THEM, US)
        assert one.aid.uid == THEM.uid
        assert 'them' in repr(one)
        await other.aclose()
        assert other.closed
        with pytest.raises(TransportClosed, match='them@2') as caught:
            await one.recv()
        assert caught.value.peer == THEM.uid
        assert (one.laddr, one.raddr) == ('here', 'there')
        assert one.connected()
        assert not other.connected()

    with_pair(main)


@pytest.mark.parametrize('junk', [b'\xc1', b'', b'\x01', b'\x81\xa1a\x01'])
def test_garbage_instead_of_an_identity_ends_at_once(with_pair, junk):
    """During the handshake not a single bad frame is skipped."""

    async def main(one, other):
        await other.stream.send_all(frame(junk))
        with pytest.raises(TransportClosed) as caught:
            await one._do_handshake(US)
        assert isinstance(caught.value.src_exc, DecodeError)

    with_pair(main)


def test_after_the_handshake_bad_frames_are_skipped(with_pair):
    """A peer that has introduced itself is allowed some."""

    async def main(one, other):
        await shake(one, other)
        await other.stream.send_all(frame(b'\xc1') * 4)
        await other.send(Stop('fine'))
        assert await one.recv_batch() == [Stop('fine')]

    with_pair(main)


BAD = frame(
    _def_tractor_codec.encode(
        {
            'msg_type': 'Start',
            'cid': 'c1',
            'ns': 5,
            'func': 'f',
            'kwargs': {},
            'uid': ['a', 'b'],
        }
    )
)


UNDECODABLE = frame(  # a map as the key of a map
    b'\x86\xa8msg_type\xa5Start\xa3cid\xa2c1\xa2ns\xa1m\xa4func\xa1f'
    b'\xa6kwargs\x81\xa1x\x81\x80\x01\xa3uid\x92\xa1a\xa1b'
)


@pytest.mark.parametrize('bad', [BAD, UNDECODABLE])
def test_what_came_with_the_handshake_is_judged_after_it(with_pair, bad):
    """One read brings both: the peer is known by then, allowed some, and answered."""

    async def main(one, other):
        start = Start('c2', 'm', 'f', {}, THEM.uid)
        msgs = [_def_tractor_codec.encode(msg) for msg in (THEM, start)]
        first, last = map(frame, msgs)
        await other.stream.send_all(first + frame(b'\xc1') * 2 + bad + last)
        assert await one._do_handshake(US) == THEM
        error = await anext(one)
        assert (type(error), error.cid) == (Error, 'c1')
        assert tuple(error.src_uid) == THEM.uid
        assert await one.recv_batch() == [start]
        assert one.transport.skips_left == MAX_SKIPPED_FRAMES - 2
        assert await other.recv() == US
        answer = await other.recv()
        assert (type(answer), answer.cid) == (Error, 'c1')

    with_pair(main)


@pytest.mark.parametrize('how', ['batch', 'iterate'])
def test_an_invalid_message_arrives_as_an_error(with_pair, how):
    """Readers of messages get an `Error` of that context, in the peer's name."""

    async def main(one, other):
        await shake(one, other)
        await other.stream.send_all(BAD)
        error = (await one.recv_batch())[0] if how == 'batch' else await anext(one)
        assert type(error) is Error
        assert error.cid == 'c1'
        assert tuple(error.src_uid) == THEM.uid
        assert error.boxed_type_str == 'MsgTypeError'
        await other.stream.send_all(BAD)
        assert type(await one.recv()) is MsgTypeError

    with_pair(main)


def test_a_codec_for_one_channel(with_pair):
    """`apply_codec()` decodes with that codec for as long as it is open."""

    async def main(one, other):
        for _ in range(2):
            await other.send(Yield('c', 5))
        with one.apply_codec(mk_codec(ipc_pld_spec=int)):
            assert (await one.recv()).pld == 5
        await other.send(Yield('c', 5))
        await one.recv()
        assert (await one.recv()).pld != 5

    with_pair(main)


def test_closing_twice(with_pair):
    """`aclose()` may be called again."""

    async def main(one, other):
        await one.aclose()
        await one.aclose()
        assert one.closed

    with_pair(main)


def test_connecting_by_any_form_of_address(tmp_path):
    """Wrapped, pair and multiaddr text lead to the same listener."""
    addr = UDSAddress.from_addr(tmp_path / 'a.sock')

    async def main():
        listener = await start_listener(addr)
        for form in (addr, addr.unwrap(), f'/unix{addr.sockpath}'):
            async with _connect_chan(form) as chan:
                assert chan.raddr.unwrap() == addr.unwrap()
                assert str(chan.maddr) == f'/unix{addr.sockpath}'
                stream = await listener.accept()
                accepted = Channel.from_stream(stream)
                assert type(accepted.transport) is MsgpackUDSStream
                await accepted.aclose()
            assert chan.closed
        close_listener(addr, listener)

    trio.run(main)


def test_a_channel_is_closed_whatever_happens(monkeypatch):
    """`_connect_chan()` closes once, shielded, after an error too."""
    closed = []

    class Fake:
        async def aclose(self):
            await trio.lowlevel.checkpoint()
            closed.append(self)

    async def from_addr(addr):
        return Fake()

    monkeypatch.setattr(Channel, 'from_addr', from_addr)

    async def main():
        with trio.CancelScope() as scope:
            async with _connect_chan(('127.0.0.1', 1)):
                scope.cancel()
        with pytest.raises(ValueError, match='mine'):
            async with _connect_chan(('127.0.0.1', 1)):
                raise ValueError('mine')

    trio.run(main)
    assert len(closed) == 2


def test_a_close_that_hangs_is_given_up(monkeypatch, caplog):
    """With a close timeout the block is left after it, with a warning."""

    class Fake:
        async def aclose(self):
            await trio.sleep_forever()

    async def from_addr(addr):
        return Fake()

    monkeypatch.setattr(Channel, 'from_addr', from_addr)

    async def main():
        with trio.fail_after(5):
            async with _connect_chan(('127.0.0.1', 1), close_timeout=0.01):
                pass

    trio.run(main)
    assert 'not closed within 0.01 s' in caplog.text


def test_the_transport_for_an_address_or_a_stream(raw_pair):
    """The tables derive from one list; what is unknown is refused."""
    assert _types.transport_from_addr(TCPAddress('::1', 1)) is MsgpackTCPStream
    assert _types.transport_from_addr(UDSAddress('/d', 'f')) is MsgpackUDSStream
    assert _types._key_to_transport['msgpack', 'tcp'] is MsgpackTCPStream
    for addr, codec in ((('127.0.0.1', 1), 'msgpack'), (TCPAddress('::1', 1), 'json')):
        with pytest.raises(NotImplementedError):
            _types.transport_from_addr(addr, codec_key=codec)

    async def main():
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(raw_pair()[0]))
        assert _types.transport_from_stream(stream) is MsgpackUDSStream
        with pytest.raises(NotImplementedError):
            _types.transport_from_stream(stream, codec_key='json')
        with pytest.raises(NotImplementedError):
            _types.transport_from_stream(object())

    trio.run(main)
