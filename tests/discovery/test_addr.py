"""Wrapped and plain addresses."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

from tractor.discovery import _addr
from tractor.discovery._addr import (
    Address,
    default_lo_addrs,
    get_address_cls,
    is_wrapped_addr,
    mk_uuid,
    wrap_address,
)
from tractor.ipc import _types
from tractor.ipc._tcp import MsgpackTCPStream, TCPAddress
from tractor.ipc._uds import MsgpackUDSStream, UDSAddress
from tractor.runtime import _state


@pytest.fixture(autouse=True)
def _runtime_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(UDSAddress, 'def_bindspace', tmp_path)


@pytest.mark.parametrize(
    ('plain', 'wrapped'),
    [
        (('127.0.0.1', 5), TCPAddress('127.0.0.1', 5)),
        (['127.0.0.1', 5], TCPAddress('127.0.0.1', 5)),
        (('0.0.0.0', 0), TCPAddress('0.0.0.0', 0)),
        (('/tmp', 'a.sock'), UDSAddress(Path('/tmp'), Path('a.sock'))),
        (['/tmp', 'a.sock'], UDSAddress(Path('/tmp'), Path('a.sock'))),
        (('127.0.0.1', '5'), UDSAddress(Path('127.0.0.1'), Path('5'))),
        ('/ip4/127.0.0.1/tcp/5', TCPAddress('127.0.0.1', 5)),
    ],
)
def test_wrapping(plain, wrapped):
    """The second item of a pair decides the kind; text is a multiaddr."""
    got = wrap_address(plain)
    assert got == wrapped
    assert type(got) is type(wrapped)
    assert wrap_address(got) is got
    assert is_wrapped_addr(got)
    assert not is_wrapped_addr(plain)


@pytest.mark.parametrize('proto', ['tcp', 'uds'])
@pytest.mark.parametrize('nothing', [None, (None, None), [None, None]])
def test_nothing_is_the_default_registry(proto, nothing, monkeypatch):
    """`None` means the root address of the default transport of that moment."""
    monkeypatch.setattr(_state, '_def_tpt_proto', proto)
    assert wrap_address(nothing) == get_address_cls(proto).get_root()


@pytest.mark.parametrize(
    'junk', [5, 'localhost:5', '', (1, 2), ('a', 1, 2), ('a',), {}, ('/tmp', b'x')]
)
def test_anything_else_is_a_type_error(junk):
    """What is no address is refused, with the accepted forms in the text."""
    with pytest.raises(TypeError, match=r'\(host, port\)'):
        wrap_address(junk)


def test_a_host_name_is_a_value_error():
    """The right shape with a name in it names the problem."""
    with pytest.raises(ValueError, match='no IP literal'):
        wrap_address(('localhost', 5))


def test_the_classes():
    """The table, the look-up, and the refusal of unknown keys."""
    assert _addr._address_types == {'tcp': TCPAddress, 'uds': UDSAddress}
    assert get_address_cls('tcp') is TCPAddress
    with pytest.raises(NotImplementedError, match="'udp'"):
        get_address_cls('udp')
    assert typing.get_args(_types.Address) == (TCPAddress, UDSAddress)


def test_the_defaults(tmp_path):
    """Plain default addresses, for some transports or all."""
    tcp, uds = ('127.0.0.1', 1616), (str(tmp_path), 'registry@1616.sock')
    assert _addr._default_lo_addrs == {'tcp': tcp, 'uds': uds}
    assert default_lo_addrs(['uds', 'tcp']) == [uds, tcp]
    assert default_lo_addrs([]) == []
    with pytest.raises(NotImplementedError):
        default_lo_addrs(['udp'])
    with pytest.raises(AttributeError):
        _addr.no_such_name  # noqa: B018


def test_ids_are_new_each_time():
    """A random id is the text of a UUID."""
    one, other = mk_uuid(), mk_uuid()
    assert one != other
    assert len(one) == 36


def test_annotations_that_need_no_library():
    """Lazily loaded types are `Any` at run time, and the table's type is text."""
    hints = typing.get_type_hints
    assert hints(Address.get_random)['current_actor'] is typing.Any
    assert hints(MsgpackTCPStream.maddr.fget)['return'] is typing.Any
    assert hints(MsgpackUDSStream.maddr.fget)['return'] == typing.Any | str
    assert _addr.__annotations__['_address_types'].startswith('dict')
