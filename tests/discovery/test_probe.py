"""What a new root finds at its registry addresses, and what it becomes."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tractor._exceptions import TransportClosed
from tractor.discovery import _api
from tractor.discovery._addr import wrap_address
from tractor.msg.types import Aid

REG = wrap_address(('127.0.0.1', 1616))
REFUSED = ConnectionRefusedError('no')
CLOSED = TransportClosed('hung up')
SLOW = trio.TooSlowError()
# -- the probe ---------------------------------------------------------------------

HANG = object()  # what a scripted step does instead of raising or returning


class Peer:
    """A scripted peer: for each attempt, what connecting and shaking hands do."""

    def __init__(self, *script) -> None:
        self.script = list(script)
        self.attempts: list[float] = []
        self.aids: list[Aid] = []
        self.close_timeouts: list[float | None] = []
        self.closed = 0

    @staticmethod
    async def act(step):
        if step is HANG:
            await trio.sleep_forever()
        if isinstance(step, Exception):
            raise step
        return step

    @asynccontextmanager
    async def connect(self, addr, close_timeout=None):
        connecting, self.handshake = self.script.pop(0)
        self.attempts.append(trio.current_time())
        self.close_timeouts.append(close_timeout)
        await self.act(connecting)
        try:
            yield self
        finally:
            self.closed += 1

    async def _do_handshake(self, aid, timeout=None):
        self.aids.append(aid)
        return await self.act(self.handshake)


def probe(monkeypatch, *script, **kwargs):
    """Probe a scripted peer on a clock that jumps; return result, peer, duration."""
    peer = Peer(*script)
    monkeypatch.setattr(_api, '_connect_chan', peer.connect)

    async def main():
        start = trio.current_time()
        result = await _api._probe_registry(REG, **kwargs)
        peer.attempts = [at - start for at in peer.attempts]
        return result, peer, trio.current_time() - start

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def aid_of(is_registrar):
    return Aid(name='x', uuid='u', is_registrar=is_registrar)


@pytest.mark.parametrize(
    ('is_registrar', 'result'),
    [(True, 'registrar'), (None, 'registrar'), (False, 'occupied')],
)
def test_a_peer_that_shakes_hands(monkeypatch, is_registrar, result):
    """Only a peer that says it is none is no registrar; one attempt is enough."""
    found, peer, _ = probe(monkeypatch, (None, aid_of(is_registrar)))
    assert found == result
    assert peer.closed == 1
    assert peer.close_timeouts == [0.2]
    (aid,) = peer.aids
    assert aid.is_probe is True
    assert aid.name == 'registry-probe'


def test_nobody_listens(monkeypatch):
    """A refused connection is final."""
    found, peer, took = probe(monkeypatch, (REFUSED, None))
    assert (found, len(peer.attempts), took) == ('absent', 1, 0)


def test_a_connect_that_hangs(monkeypatch):
    """Bounded by the attempt's timeout, and final."""
    found, peer, took = probe(monkeypatch, (HANG, None))
    assert found == 'absent'
    assert len(peer.attempts) == 1
    assert took == pytest.approx(1)


def test_silence_is_tried_again(monkeypatch):
    """A handshake that times out is repeated, with growing pauses."""
    found, peer, _ = probe(
        monkeypatch, (None, HANG), (None, HANG), (None, aid_of(True)), timeout=10
    )
    assert found == 'registrar'
    assert peer.attempts == pytest.approx([0, 1.05, 2.15])
    assert peer.closed == 3


@pytest.mark.parametrize(
    ('script', 'result', 'attempts'),
    [
        ([(None, SLOW), (None, aid_of(True))], 'registrar', [0, 0.05]),
        ([(None, SLOW)] * 3, 'occupied', [0, 0.05, 0.15]),
        ([(SLOW, None)], 'absent', [0]),
        ([(None, SLOW), (SLOW, None), (SLOW, None)], 'occupied', [0, 0.05, 0.15]),
    ],
)
def test_a_deadline_below_the_probe(monkeypatch, script, result, attempts):
    """`TooSlowError` of connecting or of the handshake counts as their timeout."""
    found, peer, _ = probe(monkeypatch, *script)
    assert found == result
    assert peer.attempts == pytest.approx(attempts)


def test_silence_to_the_end(monkeypatch):
    """Somebody who only ever accepts occupies the address."""
    found, peer, _ = probe(monkeypatch, *[(None, HANG)] * 3, timeout=10)
    assert found == 'occupied'
    assert len(peer.attempts) == 3


def test_the_whole_probe_is_bounded(monkeypatch):
    """All attempts together get `timeout` seconds."""
    found, peer, took = probe(monkeypatch, *[(None, HANG)] * 3, timeout=1.5)
    assert found == 'occupied'
    assert len(peer.attempts) == 2
    assert took == pytest.approx(1.5)


def test_a_hung_up_handshake_is_tried_again(monkeypatch):
    """`TransportClosed` may be a registrar that is just starting."""
    found, peer, _ = probe(monkeypatch, (None, CLOSED), (None, aid_of(True)))
    assert found == 'registrar'
    assert peer.attempts == pytest.approx([0, 0.05])


@pytest.mark.parametrize('then', [REFUSED, ConnectionResetError('gone')])
def test_refused_after_it_accepted(monkeypatch, then):
    """What accepted once is there, whatever it does later."""
    found, _, _ = probe(monkeypatch, (None, CLOSED), (then, None))
    assert found == 'occupied'


def test_a_reset_in_the_handshake(monkeypatch):
    """A connection that stood proves that somebody listens."""
    found, _, _ = probe(monkeypatch, (None, ConnectionResetError('gone')))
    assert found == 'occupied'


def test_no_pause_after_the_last_attempt(monkeypatch):
    """The result is given at once."""
    found, _, took = probe(monkeypatch, *[(None, CLOSED)] * 2, max_attempts=2)
    assert found == 'occupied'
    assert took == pytest.approx(0.05)


def test_all_addresses_are_probed_at_once(monkeypatch):
    """Results keep the order; the time is that of the slowest."""
    delays = {('127.0.0.1', 1): 0.9, ('127.0.0.1', 2): 0.1}

    @asynccontextmanager
    async def connect(addr, close_timeout=None):
        await trio.sleep(delays[addr])
        raise REFUSED
        yield

    monkeypatch.setattr(_api, '_connect_chan', connect)
    addrs = [wrap_address(addr) for addr in delays]

    async def main():
        start = trio.current_time()
        found = await _api._probe_registry_addrs(addrs)
        return found, trio.current_time() - start

    found, took = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert found == [(addr, 'absent') for addr in addrs]
    assert took == pytest.approx(0.9)


def elect(monkeypatch, peer_aid, bind_addrs=None, transports=('tcp',)):
    @asynccontextmanager
    async def connect(addr, close_timeout=None):
        if peer_aid is None:
            raise REFUSED
        yield Peer.__new__(Peer)

    async def shake(self, aid, timeout=None):
        return peer_aid

    monkeypatch.setattr(_api, '_connect_chan', connect)
    monkeypatch.setattr(Peer, '_do_handshake', shake)

    async def main():
        return await _api.elect_root(
            [REG], bind_addrs=bind_addrs, enable_transports=transports
        )

    return trio.run(main)


def test_a_new_registrar_binds_its_registry_address(monkeypatch):
    """Together with what the caller wants, wrapped."""
    won = elect(monkeypatch, None, bind_addrs=['/ip4/127.0.0.1/tcp/1700'])
    assert won.is_registrar
    assert won.bind_addrs == [wrap_address(('127.0.0.1', 1700)), REG]


def test_a_joining_root_binds_near_the_registry(monkeypatch):
    """One random address in the registry's bindspace."""
    won = elect(monkeypatch, aid_of(True))
    assert not won.is_registrar
    assert won.registry_addrs == [REG]
    assert won.bind_addrs == [wrap_address(('127.0.0.1', 0))]


@pytest.mark.parametrize('peer_aid', [None, aid_of(True)])
def test_a_root_listens_on_every_transport(monkeypatch, peer_aid):
    """A transport without a registry gets a random address."""
    won = elect(monkeypatch, peer_aid, transports=('tcp', 'uds'))
    assert {addr.proto_key for addr in won.bind_addrs} == {'tcp', 'uds'}
