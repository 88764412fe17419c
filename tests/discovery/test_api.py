"""Look-ups as far as they need no process: stale entries, registries, errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tractor._exceptions import NoRuntime, RemoteActorError, TransportClosed
from tractor.discovery import _api, _dial
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
REG = wrap_address(('127.0.0.1', 1616))
REFUSED = ConnectionRefusedError('no')
CLOSED = TransportClosed('hung up')


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


def dial(monkeypatch, failures, peers=None):
    """
    Record what is dialed; fail as told, else yield a portal that knows its address.

    A list of failures tells those of the first dials.  Who listens is told by `peers`,
    or by the registrar's own table.
    """
    dialed = []

    @asynccontextmanager
    async def portal_at(addr, timeout=None):
        assert timeout == 3
        dialed.append(addr)
        failure = failures.get(addr)
        if isinstance(failure, list):
            failure = failure.pop(0) if failure else None
        if failure is not None:
            raise failure
        table = _state.current_actor()._names
        name, uuid = (peers or {}).get(addr) or table.owner(addr)
        aid = Aid(name=name, uuid=uuid)
        yield SimpleNamespace(addr=addr, chan=SimpleNamespace(aid=aid))

    monkeypatch.setattr(_api, 'open_addr_portal', portal_at)
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
            assert portal.addr == LOOP
        assert dialed == [UDS, LOOP]
        assert registrar._registry == {('a', '1'): [LOOP, UDS]}

    trio.run(main)


def test_a_listener_that_is_being_closed_is_stale(monkeypatch, registrar):
    """It drops those it has not accepted, and refuses the next dial."""
    registrar._names.register(('a', '1'), UDS)
    dialed = dial(monkeypatch, {UDS: [CLOSED, REFUSED]})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None
        assert dialed == [UDS, UDS]
        assert registrar._registry == {}

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_peer_that_hung_up_once(monkeypatch, registrar):
    """It may have been too busy for one more stranger."""
    registrar._names.register(('a', '1'), UDS)
    dialed = dial(monkeypatch, {UDS: [CLOSED, CLOSED]})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal.addr == UDS
        assert dialed == [UDS] * 3
        assert registrar._registry == {('a', '1'): [UDS]}

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_peer_that_always_hangs_up_is_not_stale(monkeypatch, registrar):
    """It is there, though it does not talk to us; the dials are bounded."""
    registrar._names.register(('a', '1'), UDS)
    registrar._names.register(('a', '1'), LOOP)
    dialed = dial(monkeypatch, {UDS: CLOSED, LOOP: CLOSED})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None
        assert dialed == [UDS] * 3 + [LOOP] * 3
        assert registrar._registry == {('a', '1'): [UDS, LOOP]}

    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    'error',
    [
        OSError(errno.EMFILE, 'out of descriptors'),
        OSError(errno.ENETUNREACH, 'no network'),
        PermissionError('not for us'),
        TimeoutError('no answer'),
    ],
)
def test_an_actor_that_we_cannot_dial_is_not_stale(monkeypatch, registrar, error):
    """Only a refusal proves that nobody listens; others may reach it."""
    registrar._names.register(('a', '1'), UDS)
    failed = ConnectionError('as a socket tells it')
    failed.__cause__ = error
    for failure in (error, failed):
        dial(monkeypatch, {UDS: failure})

        async def main():
            async with _api.find_actor('a') as portal:
                assert portal is None

        trio.run(main)
        assert registrar._registry == {('a', '1'): [UDS]}


def test_a_refused_unix_socket_is_stale(monkeypatch, registrar):
    """Its transport raises an error of its own, from that of the system."""
    registrar._names.register(('a', '1'), UDS)
    failed = ConnectionError('cannot connect')
    failed.__cause__ = REFUSED
    dial(monkeypatch, {UDS: failed})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None

    trio.run(main)
    assert registrar._registry == {}


def test_a_successor_at_the_same_address_stays(monkeypatch, registrar):
    """Who registers between our dial and our report is not the one that was gone."""
    registrar._names.register(('a', 'old'), LOOP)

    @asynccontextmanager
    async def refuse(addr, timeout=None):
        registrar._names.register(('a', 'new'), LOOP)
        raise REFUSED
        yield

    monkeypatch.setattr(_api, 'open_addr_portal', refuse)

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None

    trio.run(main)
    assert registrar._registry == {('a', 'new'): [LOOP]}


def test_a_dead_actor_does_not_hide_a_living_one(monkeypatch, registrar):
    """All entries of a name are tried; the dead one is dropped."""
    registrar._names.register(('a', 'dead'), LOOP)
    registrar._names.register(('a', 'alive'), UDS)
    dial(monkeypatch, {LOOP: REFUSED})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal.addr == UDS
        async with _api.wait_for_actor('a') as portal:
            assert portal.addr == UDS

    trio.run(main)
    assert registrar._registry == {('a', 'alive'): [UDS]}


def test_another_actor_at_the_address_is_no_match(monkeypatch, registrar):
    """Ports are reused; who is looked up has lost it then."""
    registrar._names.register(('a', '1'), LOOP)
    dialed = dial(monkeypatch, {}, {LOOP: ('a', '2')})

    async def main():
        async with _api.find_actor('a') as portal:
            assert portal is None

    trio.run(main)
    assert dialed == [LOOP]
    assert registrar._registry == {}


def test_waiting_for_an_actor_that_hangs_up_is_no_spinning(monkeypatch, registrar):
    """Nor does a peer that refuses us end the wait; a minute is some 120 rounds."""
    registrar._names.register(('a', '1'), UDS)
    dialed = dial(monkeypatch, {UDS: CLOSED})

    async def main():
        with trio.move_on_after(60):
            async with _api.wait_for_actor('a'):
                pytest.fail('nobody answered')

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(dialed) < 3 * 130
    assert registrar._registry == {('a', '1'): [UDS]}


def test_waiting_goes_on_after_a_stale_entry(monkeypatch, registrar):
    """The wait ends with somebody who answers, not with a leftover."""
    registrar._names.register(('a', 'old'), LOOP)
    dial(monkeypatch, {LOOP: REFUSED})

    async def main():
        async def come_later():
            await wait_all_tasks_blocked()
            assert registrar._registry == {}
            await registrar.register_actor(('a', 'new'), UDS)

        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                tn.start_soon(come_later)
                async with _api.wait_for_actor('a') as portal:
                    assert portal.addr == UDS

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
    asked(monkeypatch, {LOOP: REFUSED, HOST: [], FAR: [(('a', '1'), [UDS])]})
    dial(monkeypatch, {}, {UDS: ('a', '1')})

    async def main():
        async with _api.find_actor('a', registry_addrs=[LOOP, HOST, FAR]) as portal:
            assert portal.addr == UDS
        async with _api.find_actor(
            'a', registry_addrs=[LOOP, HOST, FAR], only_first=False
        ) as portals:
            assert portals[:2] == [None, None]
            assert portals[2].addr == UDS

    trio.run(main)


@pytest.mark.parametrize(
    'failure', [CLOSED, RemoteActorError('no such method'), TimeoutError('silent')]
)
def test_a_registry_that_is_none_spoils_nothing(monkeypatch, registrar, failure):
    """Whatever it does instead of answering, the others' answer counts."""
    asked(monkeypatch, {LOOP: failure, FAR: [(('a', '1'), [UDS])]})
    dial(monkeypatch, {}, {UDS: ('a', '1')})

    async def main():
        async with _api.find_actor('a', registry_addrs=[LOOP, FAR]) as portal:
            assert portal.addr == UDS
        with pytest.raises(type(failure)):
            async with _api.find_actor('a', registry_addrs=[LOOP]):
                pass

    trio.run(main)


@pytest.mark.parametrize('only_first', [True, False])
def test_a_silent_registry_is_waited_for_only_in_need(
    monkeypatch, registrar, only_first
):
    """The first match will do, if one is wanted; else each has its time."""

    @asynccontextmanager
    async def open_registry(addr):
        if addr == LOOP:
            await trio.sleep_forever()
        yield LocalPortal(registrar, None)

    monkeypatch.setattr(_api, '_open_registry', open_registry)
    registrar._names.register(('a', '1'), UDS)
    dial(monkeypatch, {})

    async def main():
        start = trio.current_time()
        async with _api.find_actor('a', [LOOP, FAR], only_first=only_first) as found:
            took = trio.current_time() - start
            portal = found if only_first else found[1]
            assert portal.addr == UDS
        return took

    took = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert took == pytest.approx(0 if only_first else 3)


def test_a_registrar_asks_the_others(monkeypatch, registrar):
    """Its own table answers for its own addresses only."""
    registrar._names.register(('near', '1'), UDS)
    answers = {'near': [], 'far': [[['far', '2'], [list(HOST)]]]}
    dialed = []

    class Far:
        chan = SimpleNamespace(aid=Aid(name='far', uuid='2'))

        async def run_from_ns(self, ns, method, name):
            assert (ns, method) == ('self', 'find_actors')
            return answers[name]

    @asynccontextmanager
    async def portal_at(addr, timeout=None):
        dialed.append(addr)
        yield Far()

    monkeypatch.setattr(_api, 'open_addr_portal', portal_at)

    async def main():
        async with _api.find_actor('far', registry_addrs=[FAR]) as portal:
            assert portal is not None
        async with _api.find_actor('near', registry_addrs=[FAR]) as portal:
            assert portal is None
        async with _api.find_actor('far', registry_addrs=[REG]) as portal:
            assert portal is None

    trio.run(main)
    assert dialed == [FAR, HOST, FAR]


def test_a_peer_that_never_tells_who_it_is(monkeypatch):
    """The time for that is bounded, that of what follows is not."""

    @asynccontextmanager
    async def connect(addr):
        if addr == FAR:
            await trio.sleep_forever()
        yield SimpleNamespace(addr=addr)

    @asynccontextmanager
    async def open_portal(chan):
        yield chan

    monkeypatch.setattr(_dial, '_connect_chan', connect)
    monkeypatch.setattr(_dial, 'open_portal', open_portal)

    async def main():
        async with _dial.open_addr_portal(LOOP, timeout=3):
            await trio.sleep(60)
        with pytest.raises(TimeoutError, match='within 3 s'):
            async with _dial.open_addr_portal(FAR, timeout=3):
                pass

    trio.run(main, clock=MockClock(autojump_threshold=0))


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
        return []

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
