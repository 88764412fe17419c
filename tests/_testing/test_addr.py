"""Random addresses for tests: which are given, and which are passed over."""

from __future__ import annotations

import socket

import pytest

from tractor._testing import addr
from tractor._testing.addr import get_rando_addr


def test_tcp_address_is_a_free_loopback_port_of_the_range():
    """The port lies in 1024..10023 and can be bound."""
    host, port = get_rando_addr('tcp')
    assert host == '127.0.0.1'
    assert 1024 <= port <= 10023
    with socket.socket() as listener:
        # As a server does, so that connections of the past do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))


def test_tcp_addresses_of_one_process_differ():
    """No two calls give the same port."""
    assert len({get_rando_addr('tcp') for _ in range(50)}) == 50


def test_occupied_ports_and_the_default_registry_are_passed_over(monkeypatch):
    """Of a range with one usable port, that one is found."""
    with socket.socket() as occupied:
        occupied.bind(('127.0.0.1', 0))
        occupied.listen()
        first = occupied.getsockname()[1]
        monkeypatch.setattr(addr, '_FIRST_PORT', first)
        monkeypatch.setattr(addr, '_PORTS', 1)
        with pytest.raises(RuntimeError, match=r'no free TCP port on 127\.0\.0\.1'):
            get_rando_addr('tcp')

    monkeypatch.setattr(addr, '_FIRST_PORT', 1616)
    with pytest.raises(RuntimeError, match='no free TCP port'):
        get_rando_addr('tcp')


def test_uds_addresses_differ_and_avoid_the_default_registry():
    """Every call gives a new socket name in the runtime directory."""
    from tractor.ipc._uds import UDSAddress

    first, second = get_rando_addr('uds'), get_rando_addr('uds')
    assert first != second
    assert UDSAddress.get_root().unwrap() not in (first, second)
    assert all(isinstance(part, str) for part in first)


def test_unknown_transport_is_a_key_error():
    """A transport nobody registered is named in a `KeyError`."""
    with pytest.raises(KeyError, match='carrier-pigeon'):
        get_rando_addr('carrier-pigeon')
