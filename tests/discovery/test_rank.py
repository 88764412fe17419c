"""Which address of an actor is taken, and how this host gets to know its own."""

from __future__ import annotations

import socket
import threading

import pytest
import trio

from tractor.discovery import _rank
from tractor.discovery._addr import wrap_address

UDS = ('/run/here', 'a@1.sock')
UDS2 = ('/run/here', 'b@2.sock')
LOOP = ('127.0.0.1', 1001)
LOOP6 = ('::1', 1002)
HOST = ('192.0.2.10', 1003)
FAR = ('192.0.2.99', 1004)
FAR2 = ('192.0.2.98', 1005)


@pytest.fixture(autouse=True)
def nothing_resolved(monkeypatch) -> None:
    """Forget what this host resolved its name to."""
    monkeypatch.setattr(_rank, '_resolved', {})


@pytest.fixture
def this_host(monkeypatch) -> None:
    """Let this host's name resolve to `HOST`."""
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_: [(2, 1, 6, '', (HOST[0], 0))])


@pytest.mark.parametrize(
    ('addr', 'local'),
    [(UDS, True), (LOOP, True), (LOOP6, True), (HOST, True), (FAR, False)],
)
def test_which_addresses_are_local(this_host, addr, local):
    """Sockets, loopback and what the host's own name resolves to."""
    assert _rank._is_local_addr(addr) is local
    assert _rank._is_local_addr(wrap_address(addr)) is local


def test_an_unresolvable_host_name_is_no_error(monkeypatch):
    """Without resolution an address is taken for remote."""

    def fail(*args):
        raise socket.gaierror('no such host')

    monkeypatch.setattr(socket, 'getaddrinfo', fail)
    assert _rank._is_local_addr(HOST) is False
    assert _rank._is_local_addr(LOOP) is True


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
    assert _rank.prefer_addr(addrs) == best
    assert type(_rank.prefer_addr(addrs)) is type(best)


def test_a_single_address_is_not_resolved(monkeypatch):
    """Where nothing is to choose, no name is looked up."""
    monkeypatch.setattr(socket, 'getaddrinfo', None)
    assert _rank.prefer_addr([FAR]) == FAR


def test_tasks_resolve_once_and_in_a_thread(monkeypatch):
    """A slow name server holds up who asks, nobody else."""
    threads = []

    def resolve(*args):
        threads.append(threading.current_thread())
        return [(2, 1, 6, '', (HOST[0], 0))]

    monkeypatch.setattr(socket, 'getaddrinfo', resolve)

    async def main():
        assert await _rank.rank([FAR, HOST, FAR2]) == [HOST, FAR2, FAR]
        assert await _rank.rank([HOST, FAR]) == [HOST, FAR]

    trio.run(main)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()


def test_a_silent_name_server_is_not_waited_for_long(monkeypatch):
    """Then every other address counts as remote, from then on."""
    answered = threading.Event()

    def resolve(*args):
        answered.wait(30)
        return []

    monkeypatch.setattr(socket, 'getaddrinfo', resolve)
    monkeypatch.setattr(_rank, 'RESOLVE_TIMEOUT', 0.01)

    async def main():
        assert await _rank.rank([HOST, FAR]) == [FAR, HOST]
        assert await _rank.rank([HOST, FAR]) == [FAR, HOST]

    try:
        trio.run(main)
    finally:
        answered.set()


@pytest.mark.parametrize('addrs', [[FAR], [UDS, LOOP, LOOP6]])
def test_nothing_is_resolved_without_need(monkeypatch, addrs):
    """Sockets and loopback are here; of one address there is no choice."""
    monkeypatch.setattr(socket, 'getaddrinfo', None)
    assert trio.run(_rank.rank, addrs)[0] == _rank.prefer_addr(addrs)


def test_a_nursery_resolves_nothing(monkeypatch):
    """All its own addresses are on this host."""
    monkeypatch.setattr(socket, 'getaddrinfo', None)
    assert _rank.prefer_addr([HOST, FAR], {HOST[0], FAR[0]}) == FAR
