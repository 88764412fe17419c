"""Addresses as multiaddr text, and back."""

from __future__ import annotations

import subprocess
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import pytest
from multiaddr import Multiaddr

from tractor.discovery import _multiaddr
from tractor.discovery._multiaddr import mk_maddr, parse_endpoints, parse_maddr
from tractor.ipc._tcp import TCPAddress
from tractor.ipc._uds import UDSAddress

PAIRS = [
    (TCPAddress('127.0.0.1', 1616), '/ip4/127.0.0.1/tcp/1616'),
    (TCPAddress('0.0.0.0', 0), '/ip4/0.0.0.0/tcp/0'),
    (TCPAddress('::1', 5), '/ip6/::1/tcp/5'),
    (UDSAddress(Path('/tmp/x'), Path('y.sock')), '/unix/tmp/x/y.sock'),
]


@pytest.mark.parametrize(('addr', 'text'), PAIRS)
def test_there_and_back(addr, text):
    """An address becomes its text, and the text the same address."""
    maddr = mk_maddr(addr)
    assert type(maddr) is Multiaddr
    assert str(maddr) == text
    assert Multiaddr(text) == maddr
    back = parse_maddr(str(maddr))
    assert type(back) is type(addr)
    assert back.unwrap() == addr.unwrap()
    assert back == addr


@pytest.mark.parametrize(
    'name', ['a@1.sock', 'a b', '100%', 'a%40b', 'größe', '+:~*?#&=', 'a%2Fb']
)
def test_any_file_name_there_and_back(name):
    """What a file may be called is not changed on the way, nor in its directory."""
    addr = UDSAddress(Path(f'/tmp/{name}'), Path(name))
    maddr = mk_maddr(addr)
    assert Multiaddr(str(maddr)) == maddr
    assert parse_maddr(str(maddr)).unwrap() == addr.unwrap()


def test_a_path_as_people_write_it():
    """Only `%` has to be encoded; everything else may be written as it is."""
    for text in ('/unix/tmp/x y/a@1%25.sock', '/unix/tmp/x%20y/a%401%25.sock'):
        assert parse_maddr(text).unwrap() == ('/tmp/x y', 'a@1%.sock')


def test_the_tables_are_inverse():
    """Transport keys and multiaddr names."""
    assert _multiaddr._tpt_proto_to_maddr == {'tcp': 'tcp', 'uds': 'unix'}
    assert _multiaddr._maddr_to_tpt_proto == {'tcp': 'tcp', 'unix': 'uds'}
    assert typing.get_type_hints(mk_maddr)['return'] is typing.Any


def test_a_transport_without_such_a_form():
    """Only the key is looked at before it is refused."""
    with pytest.raises(ValueError, match='Unsupported proto_key'):
        mk_maddr(SimpleNamespace(proto_key='quic'))


@pytest.mark.parametrize(
    'text', ['/ip4/1.2.3.4/udp/5', '/ip4/1.2.3.4', '/dns4/example.org/tcp/5', '/']
)
def test_a_combination_that_we_do_not_have(text):
    """Valid multiaddrs of other protocols are refused by name."""
    with pytest.raises(ValueError, match='Unsupported multiaddr protocol combo'):
        parse_maddr(text)


@pytest.mark.parametrize('text', ['/nonsense/5', '/ip4/1.2.3.4/tcp/99999', 'tcp', ''])
def test_text_that_is_no_multiaddr(text):
    """Anything else is a `ValueError`, too."""
    with pytest.raises(ValueError):  # noqa: PT011  the library words it
        parse_maddr(text)


def test_a_table_of_endpoints():
    """Same keys, all wrapped in order, whatever form they had."""
    addr, text = PAIRS[0]
    uds, uds_text = PAIRS[3]
    table = {'a': [text, ('127.0.0.1', 5), uds], 'b': [], 'c': [uds_text, addr]}
    assert parse_endpoints(table) == {
        'a': [addr, TCPAddress('127.0.0.1', 5), uds],
        'b': [],
        'c': [uds, addr],
    }
    assert parse_endpoints({}) == {}


@pytest.mark.parametrize('bad', ['/ip4/1.2.3.4/udp/5', 5])
def test_errors_of_a_table_propagate(bad):
    """One bad entry fails the whole table."""
    with pytest.raises((ValueError, TypeError)):
        parse_endpoints({'a': [bad]})


def test_the_library_is_loaded_when_used():
    """Neither the addresses nor this module load it at import."""
    script = (
        'import sys; from tractor.discovery import _addr, _multiaddr, _api;'
        'from tractor.ipc import _server; sys.exit("multiaddr" in sys.modules)'
    )
    subprocess.run(
        [sys.executable, '-c', script],
        cwd=Path(_multiaddr.__file__).parents[2],
        timeout=60,
        check=True,
    )
