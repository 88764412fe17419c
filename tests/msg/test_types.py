"""The ten wire messages: fields, tags, round trips and the groupings."""

from __future__ import annotations

from typing import Any, Union, get_args, get_origin

import pytest
from msgspec import Raw, Struct, ValidationError, msgpack, structs

from tractor.log import StackLevelAdapter
from tractor.msg import pretty_struct, types
from tractor.msg._codec import decode_any
from tractor.msg.types import (
    MSG_TYPES,
    Aid,
    CancelAck,
    Error,
    Msg,
    MsgType,
    PayloadMsg,
    Return,
    SpawnSpec,
    Start,
    StartAck,
    Started,
    Stop,
    Yield,
    __msg_spec__,
    __msg_types__,
    from_dict_msg,
    mk_msg_spec,
)

UID = ('name', 'uuid')

SAMPLES = [
    Aid('bob', 'u' * 36, 12, False, True),
    SpawnSpec({'a': 1}, {'_is_root': False}, {'m': '/m.py'}, [('h', 1)], None),
    Start('c', 'mod', 'fn', {'x': [1, 2]}, UID),
    StartAck('c', 'context'),
    Stop('c'),
    CancelAck('c', True),
    Error(UID, 'A', 'B', [UID, UID], cid='c', canceller=UID, _bad_msg=Return('c', 1)),
    Started('c', {'a': 1}),
    Yield('c', [1]),
    Return('c', None),
]

FIELDS = {
    Aid: {
        'name': ...,
        'uuid': ...,
        'pid': None,
        'is_registrar': None,
        'is_probe': False,
    },
    SpawnSpec: {
        '_parent_main_data': ...,
        '_runtime_vars': ...,
        'enable_modules': ...,
        'reg_addrs': ...,
        'bind_addrs': ...,
    },
    Start: {
        'cid': ...,
        'ns': ...,
        'func': ...,
        'kwargs': ...,
        'uid': ...,
        'pld_spec': 'typing.Any',
    },
    StartAck: {'cid': ..., 'functype': ...},
    Stop: {'cid': ...},
    CancelAck: {'cid': ..., 'pld': ...},
    Error: {
        'src_uid': ...,
        'src_type_str': ...,
        'boxed_type_str': ...,
        'relay_path': ...,
        'message': None,
        'tb_str': '',
        'canceller': None,
        'sender': None,
        'cid': None,
        '_bad_msg': None,
        '_bad_msg_as_dict': None,
    },
    Started: {'cid': ..., 'pld': ...},
    Yield: {'cid': ..., 'pld': ...},
    Return: {'cid': ..., 'pld': ...},
}


@pytest.fixture(scope='module')
def decoder():
    """Whole messages, payloads left alone."""
    return msgpack.Decoder(mk_msg_spec(Raw)[0])


def test_dicts_with_keys_of_any_kind(decoder):
    """A program's own data, and what came instead of a message, may have them."""
    odd = {1: 2, None: 3}
    spec = SpawnSpec(odd, {}, {}, [('h', 1)], None)
    error = Error(UID, 'E', 'E', [UID], cid='c', _bad_msg_as_dict=odd)
    for msg in (spec, error):
        assert decoder.decode(msgpack.encode(msg)) == msg


@pytest.mark.parametrize('cls', FIELDS, ids=lambda cls: cls.__name__)
def test_fields_and_defaults(cls):
    """Fields come in the listed order with the listed defaults, others required."""
    fields = structs.fields(cls)
    assert [field.name for field in fields] == list(FIELDS[cls])
    for field in fields:
        default = FIELDS[cls][field.name]
        assert field.required == (default is ...)
        if not field.required:
            assert field.default == default


@pytest.mark.parametrize('msg', SAMPLES, ids=lambda msg: type(msg).__name__)
def test_round_trip(decoder, msg):
    """A message travels as a map tagged with its class name and comes back equal."""
    data = msgpack.encode(msg)
    assert decode_any(data)['msg_type'] == type(msg).__name__
    back = decoder.decode(data)
    assert type(back) is type(msg)
    for name in back.__struct_fields__:
        ours, theirs = getattr(msg, name), getattr(back, name)
        if type(theirs) is Raw:
            theirs = decode_any(theirs)
        assert theirs == ours
        assert type(theirs) is type(ours)


def test_typed_tuples_come_back_as_tuples(decoder):
    """Uids and addresses are tuples on both sides; untyped data becomes lists."""
    err = decoder.decode(msgpack.encode(Error(UID, 'A', 'B', [UID])))
    assert err.src_uid == UID
    assert err.relay_path == [UID]
    spec = SpawnSpec({}, {'addrs': [UID]}, {}, [('h', 1)], [('p', 'q')])
    spec = decoder.decode(msgpack.encode(spec))
    assert (spec.reg_addrs, spec.bind_addrs) == ([('h', 1)], [('p', 'q')])
    assert spec._runtime_vars == {'addrs': [list(UID)]}


@pytest.mark.parametrize(
    'bad',
    [
        {'msg_type': 'Nope', 'cid': 'c'},
        {'cid': 'c'},
        {'msg_type': 'Stop', 'cid': 1},
        {'msg_type': 'StartAck', 'cid': 'c', 'functype': 'thread'},
        {'msg_type': 'CancelAck', 'cid': 'c', 'pld': 3},
        {'msg_type': 'PayloadMsg', 'cid': 'c', 'pld': 3},
    ],
)
def test_union_refuses(decoder, bad):
    """An unknown or missing tag, or a field of the wrong type, does not decode."""
    with pytest.raises(ValidationError):
        decoder.decode(msgpack.encode(bad))


@pytest.mark.parametrize('spec', [int, str | None, list[int], Any])
def test_cancel_ack_takes_no_payload_spec(spec):
    """A cancel ack decodes whatever payloads are limited to."""
    dec = msgpack.Decoder(mk_msg_spec(spec)[0])
    assert dec.decode(msgpack.encode(CancelAck('c', True))).pld is True


def test_aid_identity():
    """Equality and hash look at the uuid only."""
    one, other = Aid('a', 'x', pid=1), Aid('b', 'x', is_probe=True)
    assert one == other
    assert hash(one) == hash(other)
    assert one != Aid('a', 'y', pid=1)
    assert one != ('a', 'x')
    assert len({one, other, Aid('a', 'y')}) == 2


def test_aid_text():
    """`uid`, the two one-line forms, and the readable repr."""
    aid = Aid('bob', '0123456789', pid=7)
    assert aid.uid == ('bob', '0123456789')
    assert aid.reprol() == 'bob@7'
    assert aid.reprol(sin_uuid=False) == 'bob[012345]@7'
    assert Aid('bob', 'x').reprol() == 'bob@None'
    assert repr(aid).startswith("Aid(\n  name: str = 'bob',\n")


def test_spawn_spec_is_pretty():
    """`SpawnSpec` has the readable struct as base; its private fields stay hidden."""
    spec = SpawnSpec({}, {'secret': 1}, {}, [], None)
    assert isinstance(spec, pretty_struct.Struct)
    assert 'secret' not in repr(spec)
    assert 'reg_addrs' in repr(spec)


def test_groupings():
    """Runtime messages first, then payload messages; `PayloadMsg` is none of them."""
    runtime = [Aid, SpawnSpec, Start, StartAck, Stop, CancelAck, Error]
    payload = [Started, Yield, Return]
    assert types._runtime_msgs == runtime
    assert types._payload_msgs == payload
    assert __msg_types__ == runtime + payload
    assert frozenset(__msg_types__) == MSG_TYPES
    assert types._msg_table == {cls.__name__: cls for cls in __msg_types__}
    assert PayloadMsg not in MSG_TYPES
    assert Msg is PayloadMsg
    assert all(issubclass(cls, PayloadMsg) for cls in (*payload, CancelAck))
    assert MsgType is __msg_spec__
    assert get_args(MsgType) == tuple(__msg_types__)


def test_log():
    """The module's logger is importable."""
    assert isinstance(types.log, StackLevelAdapter)


class Point(Struct):
    x: int


@pytest.mark.parametrize('pld', [Any, Raw, int, Point, Point | None, list[int] | str])
def test_mk_msg_spec(pld):
    """The union holds the payload messages for that type and the rest unchanged."""
    union, members = mk_msg_spec(pld)
    assert get_origin(union) is Union
    assert len(members) == len(get_args(union)) == 10
    assert list(get_args(union)) == members
    assert [get_origin(m) for m in members[:3]] == [Started, Yield, Return]
    assert all(get_args(m) == (pld,) for m in members[:3])
    assert members[3:] == types._runtime_msgs


def test_mk_msg_spec_limits_payloads():
    """A payload of another type does not decode; the right one becomes its class."""
    dec = msgpack.Decoder(mk_msg_spec(Point)[0])
    assert dec.decode(msgpack.encode(Yield('c', Point(1)))).pld == Point(1)
    with pytest.raises(ValidationError):
        dec.decode(msgpack.encode(Yield('c', 3)))


def test_mk_msg_spec_knows_one_method():
    """Another way to build the union is refused by name."""
    with pytest.raises(ValueError, match='indexed_generics'):
        mk_msg_spec(int, spec_build_method='defstruct')


@pytest.mark.parametrize('msg', SAMPLES, ids=lambda msg: type(msg).__name__)
@pytest.mark.parametrize('use_pretty', [False, True])
def test_from_dict_msg(msg, use_pretty):
    """A plainly decoded dict becomes its message; the tag is taken out of it."""
    plain = decode_any(msgpack.encode(msg))
    back = from_dict_msg(plain, use_pretty=use_pretty)
    assert 'msg_type' not in plain
    assert isinstance(back, type(msg))
    assert (type(back) is type(msg)) is not use_pretty
    assert type(back).__name__ == type(msg).__name__
    if use_pretty:
        assert isinstance(back, pretty_struct.Struct)
        assert repr(back).startswith(f'{type(msg).__name__}(\n')
        assert decode_any(msgpack.encode(back)) == decode_any(msgpack.encode(msg))


def test_from_dict_msg_options():
    """The class may be given, the tag's key too; an unknown tag is a `KeyError`."""
    assert from_dict_msg({'cid': 'c'}, msgT=Stop) == Stop('c')
    assert from_dict_msg({'kind': 'Stop', 'cid': 'c'}, tag_field='kind') == Stop('c')
    with pytest.raises(KeyError):
        from_dict_msg({'msg_type': 'Nope'})
    with pytest.raises(KeyError):
        from_dict_msg({'cid': 'c'})
