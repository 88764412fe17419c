"""The registry table: order, eviction, waiters; then any sequence of operations."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tractor._protocol.names import Names, as_addr, as_uid

A1, A2, B1 = ('a', 'u1'), ('a', 'u2'), ('b', 'u3')
X, Y = ('127.0.0.1', 1001), ('127.0.0.1', 1002)
SOCK = ('/run/x', 'a@1.sock')


@pytest.fixture
def names() -> Names[str]:
    return Names()


def test_wire_lists_become_keys(names):
    """A uid or address that arrives as a list is the same as the tuple."""
    names.register(['a', 'u1'], ['127.0.0.1', 1001])
    assert names.entries == {A1: [X]}
    assert as_uid(['a', 7]) == ('a', '7')
    assert as_addr(['h', 1]) == ('h', 1)


def test_an_address_is_listed_once(names):
    """Registering the same address twice changes nothing."""
    names.register(A1, X)
    names.register(A1, X)
    assert names.entries == {A1: [X]}


def test_addresses_keep_their_order(names):
    """An actor's addresses are listed in the order they came in."""
    names.register(A1, Y)
    names.register(A1, SOCK)
    names.register(A1, X)
    assert names.find('a') == [Y, SOCK, X]


def test_a_new_owner_evicts_the_old_one(names):
    """One address has one owner; an entry without addresses goes."""
    names.register(A1, X)
    names.register(A1, Y)
    names.register(B1, X)
    assert names.entries == {A1: [Y], B1: [X]}
    names.register(B1, Y)
    assert names.entries == {B1: [X, Y]}


def test_find_takes_the_first_of_a_name(names):
    """Of several actors of one name the earliest entry answers."""
    names.register(A1, X)
    names.register(A2, Y)
    assert names.find('a') == [X]


def test_find_also_matches_the_uuid(names):
    """Either part of a uid identifies an actor."""
    names.register(A1, X)
    names.register(A2, Y)
    assert names.find('u2') == [Y]
    assert names.find('u') is None


def test_find_returns_a_copy(names):
    """A caller cannot change the table through what it got."""
    names.register(A1, X)
    found = names.find('a')
    assert found is not None
    found.clear()
    names.addresses('a').clear()
    names.listing()['a.u1'].clear()
    assert names.entries == {A1: [X]}


def test_addresses_of_all_actors_of_a_name(names):
    """`addresses()` joins the entries of an exact name in order."""
    names.register(A1, X)
    names.register(B1, SOCK)
    names.register(A2, Y)
    assert names.addresses('a') == [X, Y]
    assert names.addresses('u1') == []


def test_listing_keys_are_name_dot_uuid(names):
    """The listing is what `get_registry()` sends."""
    names.register(A1, X)
    names.register(B1, Y)
    assert names.listing() == {'a.u1': [X], 'b.u3': [Y]}


def test_unregister_forgets_an_actor(names):
    """The addresses are handed back; an unknown actor gives `None`."""
    names.register(A1, X)
    assert names.unregister(['a', 'u1']) == [X]
    assert names.unregister(A1) is None
    assert names.entries == {}


def test_delete_addr_names_the_owner(names):
    """The owner is returned and dropped with its last address."""
    names.register(A1, X)
    names.register(A1, Y)
    assert names.delete_addr(['127.0.0.1', 1001]) == A1
    assert names.entries == {A1: [Y]}
    assert names.delete_addr(Y) == A1
    assert names.entries == {}
    assert names.delete_addr(Y) is None


def test_an_address_is_only_taken_from_who_is_named(names):
    """A report about a former owner does not hit the new one."""
    names.register(A1, X)
    assert names.delete_addr(X, A2) is None
    assert names.entries == {A1: [X]}
    assert names.delete_addr(X, ['a', 'u1']) == A1
    assert names.entries == {}


def test_all_actors_of_a_name(names):
    """`find_all()` keeps the entries apart; a uuid is found, too."""
    names.register(A1, X)
    names.register(B1, SOCK)
    names.register(A2, Y)
    assert names.find_all('a') == [(A1, [X]), (A2, [Y])]
    assert names.find_all('u3') == [(B1, [SOCK])]
    assert names.find_all('c') == []


def test_registering_hands_back_the_waiters_once(names):
    """All waiters of that name, in order, and of no other."""
    names.add_waiter('a', 'w1')
    names.add_waiter('a', 'w2')
    names.add_waiter('b', 'w3')
    assert names.register(A1, X) == ['w1', 'w2']
    assert names.register(A2, Y) == []
    assert names.waiters == {'b': ['w3']}


def test_a_uuid_does_not_wake_waiters(names):
    """Waiting is by name only."""
    names.add_waiter('u1', 'w')
    assert names.register(A1, X) == []


def test_dropped_waiters_leave_no_key(names):
    """Giving up leaves nothing; giving up twice, or after the wake-up, is harmless."""
    names.add_waiter('a', 'w1')
    names.add_waiter('a', 'w2')
    names.drop_waiter('a', 'w1')
    assert names.waiters == {'a': ['w2']}
    names.drop_waiter('a', 'w1')
    names.drop_waiter('a', 'w2')
    assert names.waiters == {}
    names.drop_waiter('a', 'w2')


UIDS = st.tuples(st.sampled_from('abc'), st.sampled_from(['u1', 'u2']))
ADDRS = st.sampled_from([X, Y, SOCK, ('10.0.0.1', 5), ('10.0.0.1', 6)])


class NamesMachine(RuleBasedStateMachine):
    """Any sequence of operations, compared with one flat list of pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Names[int] = Names()
        self.order: list[tuple[str, str]] = []
        self.pairs: list[tuple[tuple[str, str], tuple]] = []
        self.waiting: list[tuple[str, int]] = []
        self.tokens = 0

    def forget(self, uid: tuple[str, str]) -> None:
        if not any(owner == uid for owner, _ in self.pairs):
            self.order = [known for known in self.order if known != uid]

    @rule(uid=UIDS, addr=ADDRS)
    def register(self, uid, addr):
        if (uid, addr) not in self.pairs:
            evicted = [owner for owner, held in self.pairs if held == addr]
            self.pairs = [pair for pair in self.pairs if pair[1] != addr]
            for owner in evicted:
                self.forget(owner)
            self.pairs.append((uid, addr))
            if uid not in self.order:
                self.order.append(uid)
        woken = self.names.register(uid, addr)
        assert woken == [token for name, token in self.waiting if name == uid[0]]
        self.waiting = [entry for entry in self.waiting if entry[0] != uid[0]]

    @rule(uid=UIDS)
    def unregister(self, uid):
        held = [addr for owner, addr in self.pairs if owner == uid]
        assert self.names.unregister(uid) == (held or None)
        self.pairs = [pair for pair in self.pairs if pair[0] != uid]
        self.forget(uid)

    @rule(addr=ADDRS)
    def delete_addr(self, addr):
        owner = next((uid for uid, held in self.pairs if held == addr), None)
        assert self.names.delete_addr(addr) == owner
        if owner is not None:
            self.pairs.remove((owner, addr))
            self.forget(owner)

    @rule(name=st.sampled_from('abc'))
    def wait(self, name):
        self.tokens += 1
        self.waiting.append((name, self.tokens))
        self.names.add_waiter(name, self.tokens)

    @rule(data=st.data())
    def give_up(self, data):
        if self.waiting:
            entry = data.draw(st.sampled_from(self.waiting))
            self.waiting.remove(entry)
            self.names.drop_waiter(*entry)

    @invariant()
    def entries_match(self):
        expected = {
            uid: [addr for owner, addr in self.pairs if owner == uid]
            for uid in self.order
        }
        assert self.names.entries == expected
        assert list(self.names.entries) == self.order

    @invariant()
    def waiters_match(self):
        flat = [(n, t) for n, ts in self.names.waiters.items() for t in ts]
        assert sorted(flat) == sorted(self.waiting)
        assert all(self.names.waiters.values())


TestNamesMachine = NamesMachine.TestCase
TestNamesMachine.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, database=None
)
