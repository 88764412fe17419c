"""Preference of addresses, the probe, stale entries: all that needs no process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock

from tractor._exceptions import NoRuntime, TransportClosed
from tractor.discovery import _api
from tractor.discovery._addr import wrap_address
from tractor.discovery._registry import Registrar
from tractor.msg.types import Aid
from tractor.runtime import _state
from tractor.runtime._portal import LocalPortal

UDS = ('/run/here', 'a@1.sock')
UDS2 = ('/run/here', 'b@2.sock')
LOOP = ('127.0.0.1', 1001)
LOOP6 = ('::1', 1002)
HOST = ('192.0.2.10', 1003)
FAR = ('192.0.2.99', 1004)
FAR2 = ('192.0.2.98', 1005)
REG = wrap_address(('127.0.0.1', 1616))


@pytest.fixture
def this_host(monkeypatch) -> None:
    """Let this host's name resolve to `HOST`."""
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: [(2, 1, 6, '', (HOST[0], 0))])


@pytest.fixture
def registrar(monkeypatch) -> Iterator[Registrar]:
    """Pose as the registrar's process."""
    monkeypatch.setattr(_state, '_runtime_vars', dict(_state._runtime_vars))
    actor = Registrar(
        name='root',
        uuid=str(uuid4()),
        registry_addrs=[REG],
    )
    monkeypatch.setattr(_state, '_current_actor', actor)
    return actor


# -- preference --------------------------------------------------------------------


@pytest.mark.parametrize(
    ('addr', 'local'),
    [(UDS, True), (LOOP, True), (LOOP6, True), (HOST, True), (FAR, False)],
)
def test_which_addresses_are_local(this_host, addr, local):
    """Sockets, loopback and what the host's own name resolves to."""
    assert _api._is_local_addr(addr) is local
    assert _api._is_local_addr(wrap_address(addr)) is local


def test_an_unresolvable_host_name_is_no_error(monkeypatch):
    """Without resolution an address is taken for remote."""

    def fail(*args):
        raise socket.gaierror('no such host')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    assert _api._is_local_addr(HOST) is False
    assert _api._is_local_addr(LOOP) is True


@pytest.mark.parametrize(
    ('addrs', 'best'),
    [
        ([FAR], FAR),
        ([UDS, LOOP, FAR], UDS),
        ([FAR, LOOP, UDS], UDS),
        ([LOOP, FAR], LOOP),
        ([FAR, HOST], HOST),
        ([UDS, UDS2, LOOP], UDS2),
        ([LOOP, HOST, FAR], HOST),
        ([FAR, FAR2], FAR2),
        ([['127.0.0.1', 5], ['/x', 'y.sock']], ['/x', 'y.sock']),
    ],
)
def test_the_cheapest_address_wins(this_host, addrs, best):
    """Sockets, then local TCP, then remote TCP; of equals the last, as given."""
    assert _api.prefer_addr(addrs) == best
    assert type(_api.prefer_addr(addrs)) is type(best)


def test_a_single_address_is_not_resolved(monkeypatch):
    """Where nothing is to choose, no name is looked up."""
    monkeypatch.setattr(socket, 'getaddrinfo', None)
    assert _api.prefer_addr([FAR]) == FAR


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


REFUSED = ConnectionRefusedError('no')
CLOSED = TransportClosed('hung up')


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


# -- the election of a new root ------------------------------------------------------


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


# -- look-ups in the registrar's own process ------------------------------------------


@pytest.mark.parametrize(
    'look_up',
    [
        _api.get_registry,
        _api.get_root,
        lambda: _api.find_actor('x'),
        lambda: _api.wait_for_actor('x'),
        lambda: _api.query_actor('x'),
    ],
)
def test_look_ups_need_a_runtime(look_up):
    """Every one of them says so, with the same error."""

    async def main():
        async with look_up():
            pass

    with pytest.raises(NoRuntime):
        trio.run(main)


def test_the_registrar_asks_itself(registrar):
    """`get_registry()` ignores the address and connects nowhere."""

    async def main():
        async with _api.get_registry(('127.0.0.1', 9)) as portal:
            assert isinstance(portal, LocalPortal)
            assert portal.actor is registrar
            assert '<Channel' in repr(portal.channel)
            await portal.run_from_ns(
                'self', 'register_actor', uid=registrar.aid.uid, addr=REG.unwrap()
            )
            return await portal.run_from_ns('self', 'wait_for_actor', name='root')

    assert trio.run(main) == [REG.unwrap()]


def test_the_registrar_is_not_queried_by_its_role(registrar):
    """Nobody needs to look up where it runs itself."""

    async def main():
        async with _api.query_actor('registrar'):
            pass

    with pytest.raises(RuntimeError, match='registrar'):
        trio.run(main)


def test_query_gives_the_preferred_address(registrar):
    """Nothing is dialed; an unknown name gives `None`."""
    registrar._names.register(('a', '1'), LOOP)
    registrar._names.register(('a', '1'), UDS)
    registrar._names.register(('a', '1'), LOOP6)

    async def main():
        async with _api.query_actor('a') as (addr, portal):
            assert addr == UDS
            assert isinstance(portal, LocalPortal)
        async with _api.query_actor('b') as (addr, _):
            assert addr is None

    trio.run(main)


def dial(monkeypatch, failures):
    """Record what is dialed; fail as told, else yield the address as the portal."""
    dialed = []

    @asynccontextmanager
    async def portal_at(addr, **kwargs):
        dialed.append(addr)
        if addr in failures:
            raise failures[addr]
        yield addr

    monkeypatch.setattr(_api, '_open_addr_portal', portal_at)
    return dialed


def test_stale_entries_are_dropped(monkeypatch, registrar):
    """When no address answers, the actor is `None` and gone from the table."""
    registrar._names.register(('a', '1'), LOOP)
    registrar._names.register(('a', '1'), UDS)
    dialed = dial(monkeypatch, {LOOP: REFUSED, UDS: FileNotFoundError('no socket')})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None
        assert dialed == [UDS, LOOP]
        assert await registrar.get_registry() == {}

    trio.run(main)


def test_another_address_is_tried_first(monkeypatch, registrar):
    """While one address answers, none is dropped."""
    registrar._names.register(('a', '1'), LOOP)
    registrar._names.register(('a', '1'), UDS)
    dialed = dial(monkeypatch, {UDS: REFUSED})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal == LOOP
        assert dialed == [UDS, LOOP]
        assert registrar._registry == {('a', '1'): [LOOP, UDS]}

    trio.run(main)


def test_a_peer_that_hangs_up_is_not_stale(monkeypatch, registrar):
    """It is on its way out and unregisters itself."""
    registrar._names.register(('a', '1'), UDS)
    dial(monkeypatch, {UDS: CLOSED})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None
        assert registrar._registry == {('a', '1'): [UDS]}

    trio.run(main)


def test_waiting_goes_on_after_a_stale_entry(monkeypatch, registrar):
    """The wait ends with somebody who answers, not with a leftover."""
    registrar._names.register(('a', 'old'), LOOP)
    dial(monkeypatch, {LOOP: REFUSED})

    async def main():
        async def come_later():
            await trio.testing.wait_all_tasks_blocked()
            assert registrar._registry == {}
            await registrar.register_actor(('a', 'new'), UDS)

        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                tn.start_soon(come_later)
                async with _api.wait_for_actor('a') as portal:
                    assert portal == UDS

    trio.run(main)


def test_nobody_of_that_name(registrar):
    """`None`, a list of `None`, or an error that says who was asked for."""

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None
        async with _api.find_actor('a', only_first=False) as portals:
            assert portals == [None]
        with pytest.raises(RuntimeError, match="'a'"):
            async with _api.find_actor('a', raise_on_none=True):
                pass

    trio.run(main)


@pytest.mark.parametrize('error', [ValueError('mine'), KeyboardInterrupt()])
def test_errors_of_the_body_are_bare(monkeypatch, registrar, error):
    """No group is put around what the body raises."""
    registrar._names.register(('a', '1'), UDS)
    dial(monkeypatch, {})

    async def main():
        async with _api.find_actor('a'):
            raise error

    with pytest.raises(type(error)) as info:
        trio.run(main)
    assert info.value is error


def asked(monkeypatch, answers):
    """Let each registry answer a look-up as told; record who was asked."""

    async def look_up(registry, name):
        if isinstance(answers[registry], Exception):
            raise answers[registry]
        return answers[registry]

    monkeypatch.setattr(_api, '_look_up', look_up)


def test_one_registry_of_several_may_be_down(monkeypatch, registrar):
    """The others' answer counts; the list has one item for each registry."""
    asked(monkeypatch, {LOOP: REFUSED, HOST: None, FAR: [UDS]})
    dial(monkeypatch, {})

    async def main():
        async with _api.find_actor('a', registry_addrs=[LOOP, HOST, FAR]) as portal:
            assert portal == UDS
        async with _api.find_actor(
            'a', registry_addrs=[LOOP, HOST, FAR], only_first=False
        ) as portals:
            assert portals == [None, None, UDS]

    trio.run(main)


def test_all_registries_are_down(monkeypatch, registrar):
    """Then a miss would be a lie."""
    asked(monkeypatch, {LOOP: REFUSED, HOST: REFUSED})

    async def main():
        async with _api.find_actor('a', registry_addrs=[LOOP, HOST]):
            pass

    with pytest.raises(ConnectionRefusedError):
        trio.run(main)


def test_registries_are_read_at_call_time(monkeypatch, registrar):
    """The runtime variable decides, then the defaults of the transports asked for."""
    seen = []

    async def look_up(registry, name):
        seen.append(registry)

    monkeypatch.setattr(_api, '_look_up', look_up)

    async def main():
        _state._runtime_vars['_registry_addrs'] = [HOST]
        async with _api.find_actor('a'):
            pass
        _state._runtime_vars['_registry_addrs'] = []
        async with _api.find_actor('a', enable_transports=['tcp']):
            pass

    trio.run(main)
    assert seen == [HOST, ('127.0.0.1', 1616)]


# -- registration --------------------------------------------------------------------


class Registry:
    """A registry that records what it is asked."""

    def __init__(self) -> None:
        self.calls = []

    async def run_from_ns(self, ns, name, **kwargs):
        self.calls.append((ns, name, kwargs))


class Chan:
    """The identity of a parent channel's peer."""

    def __init__(self, raddr, is_registrar=True, is_open=True) -> None:
        self.raddr = wrap_address(raddr)
        self.aid = aid_of(is_registrar)
        self.connected = lambda: is_open


class Member:
    """The part of an actor that registration looks at."""

    is_registrar = False
    aid = Aid(name='me', uuid='u1')

    def __init__(self, reg_addrs, parent_chan=None) -> None:
        self.reg_addrs, self._parent_chan = reg_addrs, parent_chan
        self._parent_loop = trio.CancelScope()
        self.accept_addrs = [UDS, LOOP]
        self.parent = Registry()

    def get_parent(self):
        return self.parent


@pytest.fixture
def registries(monkeypatch):
    """Give each registry address a recording registry; a missing one refuses."""
    table: dict[object, Registry] = {}

    @asynccontextmanager
    async def get_registry(addr):
        if addr not in table:
            raise REFUSED
        yield table[addr]

    monkeypatch.setattr(_api, 'get_registry', get_registry)
    monkeypatch.setattr(
        _state, '_runtime_vars', {**_state._runtime_vars, '_root_addrs': []}
    )
    return table


ANNOUNCED = [
    ('self', 'register_actor', {'uid': ('me', 'u1'), 'addr': addr})
    for addr in (UDS, LOOP)
]
LEFT = [('self', 'unregister_actor', {'uid': ('me', 'u1')})]


def test_every_address_at_every_registry(registries):
    """All accept addresses, in their order, everywhere."""
    registries.update({HOST: Registry(), FAR: Registry()})
    trio.run(_api.register_actor, Member([HOST, FAR]))
    assert registries[HOST].calls == registries[FAR].calls == ANNOUNCED


def test_the_parent_channel_serves_when_it_leads_to_the_registrar(registries):
    """No connection is made to a process that one is open to."""
    member = Member([HOST], Chan(HOST))
    trio.run(_api.register_actor, member)
    assert member.parent.calls == ANNOUNCED


def test_another_address_of_the_root_is_the_same_process(registries):
    """The root lists its addresses, so that a child can tell."""
    _state._runtime_vars['_root_addrs'] = [list(UDS2), list(HOST)]
    member = Member([HOST], Chan(UDS2))
    trio.run(_api.register_actor, member)
    assert member.parent.calls == ANNOUNCED


@pytest.mark.parametrize(
    'chan',
    [
        None,
        Chan(FAR),
        Chan(HOST, is_open=False),
        Chan(HOST, is_registrar=False),
        Chan(HOST, is_registrar=None),
    ],
)
def test_any_other_parent_does_not_serve(registries, chan):
    """The peer must be a registrar, and the one at that address."""
    registries[HOST] = Registry()
    member = Member([HOST], chan)
    trio.run(_api.register_actor, member)
    assert member.parent.calls == []
    assert registries[HOST].calls == ANNOUNCED


def test_registration_needs_the_registry(registries):
    """An actor that nobody could find does not boot."""
    with pytest.raises(ConnectionRefusedError):
        trio.run(_api.register_actor, Member([HOST]))


def test_a_parent_channel_that_nobody_reads_does_not_serve(registries):
    """An answer could not arrive: at boot the loop starts late."""
    registries[HOST] = Registry()
    member = Member([HOST], Chan(HOST))
    member._parent_loop = None
    trio.run(_api.unregister_actor, member)
    assert member.parent.calls == []
    assert registries[HOST].calls == LEFT


def test_unregistering_over_the_parent_channel(registries):
    """Leaving goes the way that registering went."""
    member = Member([HOST], Chan(HOST))
    trio.run(_api.unregister_actor, member)
    assert member.parent.calls == LEFT


def test_unregistering_when_the_parent_channel_breaks(registries):
    """A connection of its own is tried then."""

    class Broken:
        async def run_from_ns(self, ns, name, **kwargs):
            raise CLOSED

    registries[HOST] = Registry()
    member = Member([HOST], Chan(HOST))
    member.parent = Broken()
    trio.run(_api.unregister_actor, member)
    assert registries[HOST].calls == LEFT


def test_unregistering_from_a_dead_registry_is_no_error(registries):
    """Whoever ends need not care."""
    trio.run(_api.unregister_actor, Member([HOST, FAR]))


def test_unregistering_is_shielded_and_bounded(registries, monkeypatch):
    """Silent registries cost 0.5 s together, even when cancelled."""

    class Silent:
        async def run_from_ns(self, ns, name, **kwargs):
            await trio.sleep_forever()

    registries.update({HOST: Silent(), FAR: Silent()})

    async def main():
        with trio.CancelScope() as scope:
            scope.cancel()
            await _api.unregister_actor(Member([HOST, FAR]))
        return trio.current_time()

    async def timed():
        start = trio.current_time()
        return await main() - start

    took = trio.run(timed, clock=MockClock(autojump_threshold=0))
    assert took == pytest.approx(0.5)
