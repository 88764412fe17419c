"""Look-ups as far as they need no process: preference, stale entries, errors."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tractor._exceptions import NoRuntime, TransportClosed
from tractor.discovery import _api
from tractor.discovery._addr import wrap_address
from tractor.discovery._registry import Registrar
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
REFUSED = ConnectionRefusedError('no')
CLOSED = TransportClosed('hung up')


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
    """
    Record what is dialed; fail as told, else yield the address as the portal.

    A list of failures tells those of the first dials.
    """
    dialed = []

    @asynccontextmanager
    async def portal_at(addr, **kwargs):
        dialed.append(addr)
        failure = failures.get(addr)
        if isinstance(failure, list):
            failure = failure.pop(0) if failure else None
        if failure is not None:
            raise failure
        yield addr

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
            assert portal == LOOP
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
            assert portal == UDS
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
