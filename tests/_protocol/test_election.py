"""What a new root becomes: every combination of probe results and wishes."""

from __future__ import annotations

from itertools import product

import pytest

from tractor._protocol.election import (
    JOINED_NAME,
    REGISTRAR_NAME,
    check_registry_protos,
    check_transports,
    elect,
)


class Addr:
    """A stand-in for a wrapped address: a transport key and an identity."""

    def __init__(self, proto_key: str, where: str) -> None:
        self.proto_key, self.where = proto_key, where
        self.system_chooses = where == 'any'

    def __repr__(self) -> str:
        return f'{self.proto_key}:{self.where}'

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


T1, T2, U1 = Addr('tcp', '1'), Addr('tcp', '2'), Addr('uds', '1')
MINE = Addr('tcp', 'mine')
PROBES = ('registrar', 'occupied', 'absent')
ALL_PAIRS = list(product(PROBES, repeat=2))


@pytest.mark.parametrize('results', ALL_PAIRS, ids='-'.join)
@pytest.mark.parametrize('ensure_registry', [False, True])
@pytest.mark.parametrize('wanted', [None, [], [MINE]], ids=repr)
def test_every_outcome(results, ensure_registry, wanted):
    """Answered: join those; else occupied: refuse; else all absent: be it."""
    addrs = [T1, T2]
    answered = [a for a, r in zip(addrs, results, strict=True) if r == 'registrar']

    def run():
        return elect(
            list(zip(addrs, results, strict=True)),
            bind_addrs=wanted,
            enable_transports=['tcp'],
            ensure_registry=ensure_registry,
        )

    if answered and ensure_registry:
        with pytest.raises(RuntimeError, match='already bound'):
            run()
    elif answered:
        won = run()
        assert won.is_registrar is False
        assert won.registry_addrs == answered
        assert won.bind_addrs == (wanted or [])
        assert won.bind_near == ([] if wanted else answered)
        assert won.bind_protos == []
        assert won.name == JOINED_NAME
    elif 'occupied' in results:
        with pytest.raises(RuntimeError, match='occupied but did not answer') as info:
            run()
        for addr, result in zip(addrs, results, strict=True):
            assert (repr(addr) in str(info.value)) == (result == 'occupied')
    else:
        won = run()
        assert won.is_registrar is True
        assert won.registry_addrs == addrs
        assert won.bind_addrs == [*(wanted or []), *addrs]
        assert won.bind_near == []
        assert won.bind_protos == []
        assert won.name == REGISTRAR_NAME


@pytest.mark.parametrize('probe', ['registrar', 'absent'])
def test_a_given_name_is_kept(probe):
    """The default names depend on the role, a given one does not."""
    won = elect([(T1, probe)], bind_addrs=None, enable_transports=['tcp'], name='boss')
    assert won.name == 'boss'


def test_a_registrar_binds_the_union_once():
    """An address that is both wanted and a registry is bound once."""
    won = elect(
        [(T1, 'absent'), (T1, 'absent'), (T2, 'absent')],
        bind_addrs=[T2, MINE, MINE],
        enable_transports=['tcp'],
    )
    assert won.registry_addrs == [T1, T2]
    assert won.bind_addrs == [T2, MINE, T1]


def test_what_the_system_chooses_is_bound_each_time():
    """Two such addresses are two, though they are equal until they are bound."""
    anywhere = Addr('tcp', 'any')
    won = elect(
        [(anywhere, 'absent'), (T1, 'absent'), (anywhere, 'absent')],
        bind_addrs=[anywhere, anywhere],
        enable_transports=['tcp'],
    )
    assert won.registry_addrs == [anywhere, T1, anywhere]
    assert won.bind_addrs == [anywhere, anywhere, anywhere, T1, anywhere]


def test_a_joined_root_never_binds_the_registry():
    """Without wishes it binds near the registry, not at it."""
    won = elect([(T1, 'registrar')], bind_addrs=None, enable_transports=['tcp'])
    assert won.bind_addrs == []
    assert won.bind_near == [T1]


@pytest.mark.parametrize('probe', ['registrar', 'absent'])
def test_each_enabled_transport_is_listened_on(probe):
    """A transport without a registry address gets a random one of its own."""
    won = elect([(T1, probe)], bind_addrs=None, enable_transports=['tcp', 'uds', 'uds'])
    assert won.bind_protos == ['uds']


@pytest.mark.parametrize('probe', ['registrar', 'absent'])
def test_given_bind_addresses_are_final(probe):
    """Who says where to listen gets no further addresses."""
    won = elect([(T1, probe)], bind_addrs=[MINE], enable_transports=['tcp', 'uds'])
    assert won.bind_protos == []
    assert won.bind_near == []


def test_registries_on_two_transports():
    """Both answer: one random address near each."""
    won = elect(
        [(T1, 'registrar'), (U1, 'registrar')],
        bind_addrs=None,
        enable_transports=['tcp', 'uds'],
    )
    assert won.bind_near == [T1, U1]
    assert won.bind_protos == []


def test_transports_are_kept_once_and_in_order():
    """Any list with at least one key will do."""
    assert check_transports(['uds', 'tcp', 'uds']) == ['uds', 'tcp']
    with pytest.raises(RuntimeError, match='enable_transports'):
        check_transports([])


def test_a_registry_on_a_transport_that_is_off():
    """The error names both arguments and the transport."""
    check_registry_protos([T1, U1], ['tcp', 'uds'])
    with pytest.raises(ValueError, match='uds') as info:
        check_registry_protos([T1, U1], ['tcp'])
    assert 'enable_transports' in str(info.value)
    assert 'registry_addrs' in str(info.value)
