"""How an actor enters the registries, and leaves them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tractor._exceptions import TransportClosed
from tractor.discovery import _register
from tractor.discovery._addr import wrap_address
from tractor.msg.types import Aid
from tractor.runtime import _state
from tractor.trionics._beg import collapse_eg

UDS = ('/run/here', 'a@1.sock')
UDS2 = ('/run/here', 'b@2.sock')
LOOP = ('127.0.0.1', 1001)
HOST = ('192.0.2.10', 1003)
FAR = ('192.0.2.99', 1004)
REFUSED = ConnectionRefusedError('no')
CLOSED = TransportClosed('hung up')


class Registry:
    """A registry that records what it is asked, and when; `lost` ends it."""

    def __init__(self) -> None:
        self.calls, self.times = [], []
        self.chan = self
        self.lost = trio.Event()

    async def run_from_ns(self, ns, name, **kwargs):
        self.calls.append((ns, name, kwargs))
        self.times.append(trio.current_time())


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

    async def _loop_ended(self, chan):
        await chan.lost.wait()


@pytest.fixture
def registries(monkeypatch):
    """Give each registry address a recording registry; a missing one refuses."""
    table: dict[object, Registry] = {}

    @asynccontextmanager
    async def open_addr_portal(addr):
        if addr not in table:
            raise REFUSED
        yield table[addr]

    monkeypatch.setattr(_register, 'open_addr_portal', open_addr_portal)
    monkeypatch.setattr(
        _state, '_runtime_vars', {**_state._runtime_vars, '_root_addrs': []}
    )
    return table


def boot(member, then=None):
    """Register an actor; go on with `then` while it lives; return the seconds taken."""

    async def main():
        with trio.fail_after(3600):
            async with collapse_eg(), trio.open_nursery() as tn:
                start = trio.current_time()
                await _register.register_actor(member, tn)
                took = trio.current_time() - start
                if then is not None:
                    await then()
                tn.cancel_scope.cancel()
        return took

    return trio.run(main, clock=MockClock(autojump_threshold=0))


ANNOUNCED = [
    ('self', 'register_actor', {'uid': ('me', 'u1'), 'addr': UDS, 'others': [LOOP]})
]
LEFT = [('self', 'unregister_actor', {'uid': ('me', 'u1')})]


def test_every_address_at_every_registry(registries):
    """All accept addresses, in their order, everywhere."""
    registries.update({HOST: Registry(), FAR: Registry()})
    boot(Member([HOST, FAR]))
    assert registries[HOST].calls == registries[FAR].calls == ANNOUNCED


def test_a_single_address_is_registered_without_others(registries):
    """Every registrar understands that form."""
    member = Member([HOST], Chan(HOST))
    member.accept_addrs = [LOOP]
    boot(member)
    stated = {'uid': ('me', 'u1'), 'addr': LOOP}
    assert member.parent.calls == [('self', 'register_actor', stated)]


def test_an_actor_that_does_not_listen_is_not_registered(registries):
    """Nobody could reach it."""
    member = Member([HOST], Chan(HOST))
    member.accept_addrs = []
    boot(member)
    assert member.parent.calls == []


def test_the_parent_channel_serves_when_it_leads_to_the_registrar(registries):
    """No connection is made to a process that one is open to."""
    member = Member([HOST], Chan(HOST))
    boot(member)
    assert member.parent.calls == ANNOUNCED


def test_another_address_of_the_root_is_the_same_process(registries):
    """The root lists its addresses, so that a child can tell."""
    _state._runtime_vars['_root_addrs'] = [list(UDS2), list(HOST)]
    member = Member([HOST], Chan(UDS2))
    boot(member)
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
    boot(member)
    assert member.parent.calls == []
    assert registries[HOST].calls == ANNOUNCED


def test_registration_needs_the_registry_of_its_own_tree(registries):
    """An actor that its own root could not find does not boot."""
    _state._runtime_vars['_root_addrs'] = [list(UDS2), list(HOST)]
    with pytest.raises(ConnectionRefusedError):
        boot(Member([HOST]))


def test_a_registry_of_its_own_tree_takes_no_lasting_connection(registries):
    """It lives as long as the tree does: nobody need watch it."""
    _state._runtime_vars['_root_addrs'] = [list(HOST)]
    registries[HOST] = Registry()
    trio.run(_register.register_actor, Member([HOST]), None)
    assert registries[HOST].calls == ANNOUNCED


def test_a_dead_registry_of_another_program_is_no_error(registries):
    """The actor boots, known to those that answer, and goes on trying the other."""
    registries[FAR] = Registry()

    async def then():
        assert registries[FAR].calls == ANNOUNCED
        registries[HOST] = Registry()
        await trio.sleep(30)
        assert registries[HOST].calls == ANNOUNCED

    assert boot(Member([HOST, FAR]), then) == 0


def test_a_silent_registry_of_another_program_delays_the_boot_a_little(registries):
    """It may answer later; the actor does not wait for that."""

    class Silent(Registry):
        async def run_from_ns(self, ns, name, **kwargs):
            await trio.sleep_forever()

    registries[HOST] = Silent()
    assert boot(Member([HOST])) == pytest.approx(3)


def test_a_registry_that_comes_back_is_told_again(registries):
    """Its table is empty then."""
    registries[HOST] = Registry()

    async def then():
        first = registries.pop(HOST)
        first.lost.set()
        await trio.sleep(60)
        second = registries[HOST] = Registry()
        await trio.sleep(60)
        assert first.calls == second.calls == ANNOUNCED

    boot(Member([HOST]), then)


def test_a_registry_that_hangs_up_is_tried_ever_more_rarely(registries):
    """Ten minutes of that are some thirty attempts."""

    class HangsUp(Registry):
        async def run_from_ns(self, ns, name, **kwargs):
            await super().run_from_ns(ns, name, **kwargs)
            raise CLOSED

    registries[HOST] = HangsUp()

    async def then():
        await trio.sleep(600)
        times = registries[HOST].times
        assert 20 < len(times) < 40
        assert times[1] - times[0] == pytest.approx(0.1)
        assert times[-1] - times[-2] == pytest.approx(30)

    boot(Member([HOST]), then)


def test_a_parent_channel_that_nobody_reads_does_not_serve(registries):
    """An answer could not arrive: at boot the loop starts late."""
    registries[HOST] = Registry()
    member = Member([HOST], Chan(HOST))
    member._parent_loop = None
    trio.run(_register.unregister_actor, member)
    assert member.parent.calls == []
    assert registries[HOST].calls == LEFT


def test_unregistering_over_the_parent_channel(registries):
    """Leaving goes the way that registering went."""
    member = Member([HOST], Chan(HOST))
    trio.run(_register.unregister_actor, member)
    assert member.parent.calls == LEFT


def test_unregistering_a_child_that_died(registries):
    """Its parent does it in its name, wherever they both are registered."""
    registries[FAR] = Registry()
    member = Member([HOST, FAR], Chan(HOST))
    trio.run(_register.unregister_actor, member, ('child', 'u2'))
    left = [('self', 'unregister_actor', {'uid': ('child', 'u2')})]
    assert member.parent.calls == registries[FAR].calls == left


def test_unregistering_when_the_parent_channel_breaks(registries):
    """A connection of its own is tried then."""

    class Broken:
        async def run_from_ns(self, ns, name, **kwargs):
            raise CLOSED

    registries[HOST] = Registry()
    member = Member([HOST], Chan(HOST))
    member.parent = Broken()
    trio.run(_register.unregister_actor, member)
    assert registries[HOST].calls == LEFT


def test_unregistering_from_a_dead_registry_is_no_error(registries):
    """Whoever ends need not care."""
    trio.run(_register.unregister_actor, Member([HOST, FAR]))


def test_unregistering_is_shielded_and_bounded(registries, monkeypatch):
    """Silent registries cost 0.5 s together, even when cancelled."""

    class Silent:
        async def run_from_ns(self, ns, name, **kwargs):
            await trio.sleep_forever()

    registries.update({HOST: Silent(), FAR: Silent()})

    async def main():
        with trio.CancelScope() as scope:
            scope.cancel()
            await _register.unregister_actor(Member([HOST, FAR]))
        return trio.current_time()

    async def timed():
        start = trio.current_time()
        return await main() - start

    took = trio.run(timed, clock=MockClock(autojump_threshold=0))
    assert took == pytest.approx(0.5)
