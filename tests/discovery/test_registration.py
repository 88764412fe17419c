"""How an actor enters the registries, and leaves them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tractor._exceptions import TransportClosed
from tractor.discovery import _api
from tractor.discovery._addr import wrap_address
from tractor.msg.types import Aid
from tractor.runtime import _state

UDS = ('/run/here', 'a@1.sock')
UDS2 = ('/run/here', 'b@2.sock')
LOOP = ('127.0.0.1', 1001)
HOST = ('192.0.2.10', 1003)
FAR = ('192.0.2.99', 1004)
REFUSED = ConnectionRefusedError('no')
CLOSED = TransportClosed('hung up')


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
        self.aid = Aid(name='root', uuid='u', is_registrar=is_registrar)
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
