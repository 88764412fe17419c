"""The codec without msgspec, beside the one of msgspec."""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tractor.msg import NamespacePath, _fallback, _fallback_codec

# Only isolated interpreters need it, hence it is there for the versions that have them.
needs_msgpack = pytest.mark.skipif(
    sys.version_info < (3, 14), reason='msgpack is no dependency there'
)


class Things(enum.Enum):
    TEXT = 'text'
    TUPLE = (1, 2)
    HUGE = 2**70


class Flags(enum.Flag):
    A = 1
    B = 2


class MyList(list):
    pass


class MyInt(int):
    pass


@dataclasses.dataclass
class Data:
    a: int
    _b: Any = None


Pair = collections.namedtuple('Pair', 'x y')
EAST = timezone(timedelta(hours=2))

VALUES = [
    *(None, True, 0, -(2**63), 2**64 - 1, 1.5, '', 'text', 'tëxt', b'', b'x'),
    *(
        bytearray(b'x'),
        memoryview(b'x'),
        [],
        [1, 2],
        (1, (2, [3])),
        {1},
        frozenset('a'),
    ),
    *({}, {'a': (1,)}, {1: 2, None: 3, 1.5: 4, b'x': 5}, {(1, (2,)): 3}),
    *(frozenset('a'), {frozenset([1]): 1}, {NamespacePath('a:b'): 1}),
    *(MyList([(1,)]), Pair(1, 2), collections.Counter('aab')),
    *(Things.TEXT, Things.TUPLE, Flags.A | Flags.B, {Things.TEXT: 1}, uuid.UUID(int=5)),
    *(datetime(2020, 1, 2, 3, 4, 5, 6), datetime(1960, 1, 2, 3, tzinfo=EAST)),
    *(datetime(2020, 1, 2, tzinfo=UTC), datetime(2120, 1, 2, 3, 4, 5, 9, tzinfo=UTC)),
    *(date(2020, 1, 2), time(1, 2, 3, 4), time(1, tzinfo=UTC), time(1, tzinfo=EAST)),
    *(timedelta(0), timedelta(1, 2, 3), timedelta(-1, 2, 3), timedelta(3)),
    *(timedelta(microseconds=500_000), timedelta(seconds=5), Decimal('1.50')),
    *(Data(1, (2,)), [Data(1)], {'k': [Things.TEXT, {1}]}, list(range(100))),
    *([*range(50), 'a', None], ['a'] * 50, ['ë'] * 50, {str(i): i for i in range(50)}),
]
REFUSED = [
    *(2**64, -(2**63) - 1, '\ud800', 1j, ..., object(), Path(), range(3), len, int),
    *(NamespacePath('a:b'), MyInt(1), collections.deque(), array.array('i'), iter([])),
    *({}.keys(), Things.HUGE, memoryview(b'abcd')[::2], [2**64], [1] * 50 + [2**64]),
    *(['a'] * 50 + ['\ud800'], ['a', 1] * 25 + [1j], {'a': object()}, {1j: 1}),
    *({'\ud800': 1}, {MyInt(1): 1}, (1, {2: {3: [...]}}), Data(1j)),
    datetime(9999, 12, 31, 23, tzinfo=timezone(-timedelta(hours=5))),
]


def nested(depth: int, inner: Any = 1) -> Any:
    """Return something within lists and dicts in turn."""
    for level in range(depth):
        inner = {'a': inner} if level % 2 else [inner]
    return inner


def unwrapped(obj: Any, depth: int) -> Any:
    """Return what is inside; comparing it as a whole would recurse."""
    for level in reversed(range(depth)):
        (obj,) = obj.values() if level % 2 else obj
    return obj


def plain(obj: Any) -> Any:
    """Return an object with every type in it, so that `1` is not `True`."""
    if type(obj) is dict:
        return dict, [(plain(key), plain(value)) for key, value in obj.items()]
    if type(obj) in (list, tuple):
        return type(obj), [plain(each) for each in obj]
    return type(obj), obj


def by_msgspec(obj: Any) -> Any:
    """Return what arrives of an object, sent and received by msgspec."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(obj))


@pytest.mark.parametrize('value', VALUES, ids=lambda value: repr(value)[:40])
def test_plain_data_is_what_msgspec_decodes(value):
    """Any value becomes what arrives of it, types included."""
    made = _fallback_codec.to_builtins(value)
    assert plain(made) == plain(by_msgspec(value))


@pytest.mark.parametrize('value', REFUSED, ids=lambda value: ascii(value)[:40])
def test_the_same_is_refused(value):
    """What msgspec does not encode, it refuses with the same class of error."""
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        by_msgspec(value)
    with pytest.raises(theirs.type):
        _fallback_codec.to_builtins(value)


def test_an_endless_list_is_refused():
    """It neither hangs nor breaks the process."""
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        _fallback_codec.to_builtins(endless)


def test_plain_containers_are_not_copied():
    """Only what needs a change is made anew."""
    data = {'a': [1, 'b', None]}
    assert _fallback_codec.to_builtins(data)['a'] is data['a']
    assert _fallback_codec.to_builtins(data['a']) is data['a']


def test_structs_become_dicts():
    """With their tag first, and plain values."""
    Point = _fallback.defstruct('Point', ['x', ('y', str, 'é')], tag=True)
    made = _fallback_codec.to_builtins([Point((1,))])
    assert made == [{'type': 'Point', 'x': [1], 'y': 'é'}]
    assert list(made[0]) == ['type', 'x', 'y']
    with pytest.raises(UnicodeEncodeError):
        _fallback_codec.to_builtins(Point(1, '\ud800'))


def sparse(lib: Any) -> list[Any]:
    """Return structs that leave something out, or have other names for it."""

    class Sparse(lib.Struct, omit_defaults=True, tag=True, rename='upper'):
        a: Any
        b: int = 3
        c: list[Any] = []  # noqa: RUF012
        d: Any = lib.field(default_factory=dict, name='the d')
        e: Any = 1.5
        f: Any = lib.field(default_factory=lambda: [1])
        g: Any = None

    return [
        *(Sparse(1), Sparse(1, 3, [], {}), Sparse((1,), 4, [1], {1: 2}, 2.5, [], 0)),
        *(Sparse(3, d=[], e=float('1.5'), g=()), Sparse(None, f=[1], c=())),
        *(Sparse(Sparse(1)), lib.defstruct('R', ['a_b'], rename='camel')(1)),
    ]


def test_names_and_defaults_of_structs():
    """The same is left out, and the rest is called the same."""
    made = [_fallback_codec.to_builtins(each) for each in sparse(_fallback)]
    assert plain(made) == plain(by_msgspec(sparse(msgspec)))


def test_hook_is_asked_for_what_is_unknown():
    """What it gives is encoded in turn; its error is the caller's."""
    codec = _fallback_codec.Encoder(enc_hook=lambda obj: (str(obj),))
    assert codec.to_builtins({'p': NamespacePath('a:b')}) == {'p': ['a:b']}

    def refuse(obj):
        raise NotImplementedError(type(obj))

    with pytest.raises(NotImplementedError):
        _fallback_codec.to_builtins([1j], refuse)


def test_plain_decoder():
    """A decoder takes plain data and what a `Raw` holds."""
    dec = _fallback_codec.Decoder(list[int])
    assert dec.type == list[int]
    assert dec.dec_hook is None
    assert dec.from_builtins([1]) == dec.decode(_fallback.Raw([1])) == [1]
    with pytest.raises(_fallback.ValidationError, match=r'got `str` - at `\$\[0\]`'):
        dec.from_builtins(['a'])
    with pytest.raises(_fallback.ValidationError, match='got `int`'):
        dec.decode(_fallback.Raw(1))


@needs_msgpack
@pytest.mark.parametrize('value', VALUES, ids=lambda value: repr(value)[:40])
def test_frames_are_understood_by_both(value):
    """Each reads what the other one wrote, and its own."""
    ours, theirs = _fallback_codec, msgspec.msgpack
    expected = plain(by_msgspec(value))
    assert plain(theirs.decode(ours.encode(value))) == expected
    assert plain(ours.decode(theirs.encode(value))) == expected
    assert plain(ours.decode(ours.encode(value))) == expected


@needs_msgpack
def test_extension_values():
    """They cross with code and data, in keys as well."""
    ext = _fallback_codec.Ext(5, b'x')
    assert _fallback_codec.decode(_fallback_codec.encode([ext])) == [ext]
    theirs = msgspec.msgpack.decode(_fallback_codec.encode(ext))
    assert (theirs.code, theirs.data) == (5, b'x')
    assert _fallback_codec.decode(_fallback_codec.encode({ext: 1})) == {ext: 1}


@needs_msgpack
@pytest.mark.parametrize(
    'frame',
    [
        *(b'', b'\x92\x01', b'\x01\x01', b'\xc1', b'\xa1\xff', b'\x81\x80\1'),
        *(b'\x91' * 9999, b'\x91' * 9999 + b'\xc1', b'\x91' * 9999 + b'\1\1'),
    ],
    ids=lambda frame: repr(frame[:4]),
)
def test_broken_frames(frame):
    """Whatever is no msgpack is a `DecodeError`, as with msgspec."""
    with pytest.raises(_fallback.DecodeError):
        _fallback_codec.decode(frame)


@needs_msgpack
@pytest.mark.parametrize('offset', [0, 3, -1])
def test_encode_into(offset):
    """The buffer keeps what is before the offset, and ends behind the frame."""
    buffers = bytearray(b'abcdef'), bytearray(b'abcdef')
    _fallback_codec.Encoder().encode_into([1, 'x'], buffers[0], offset)
    msgspec.msgpack.Encoder().encode_into([1, 'x'], buffers[1], offset)
    assert buffers[0] == buffers[1]


# On versions before 3.14 `msgspec` stops at a fixed depth.
@needs_msgpack
@pytest.mark.parametrize('depth', [400, 800, 2500, 9000])
def test_deep_nesting(depth):
    """Each reads what the other one wrote, at any depth that msgspec can handle."""
    ours, theirs = _fallback_codec, msgspec.msgpack
    inner = (1, {(2, 3): Things.TEXT})
    frame = theirs.encode(nested(depth, inner))
    assert ours.encode(nested(depth, inner)) == frame
    assert unwrapped(ours.decode(frame), depth) == [1, {(2, 3): 'text'}]
    buffer = bytearray()
    ours.Encoder().encode_into(nested(depth, inner), buffer)
    assert buffer == frame
    assert sys.getrecursionlimit() < 9000


@needs_msgpack
def test_deep_structs():
    """They are made and taken apart at any depth, and refused with a short trace."""
    Node = _fallback.defstruct('Node', [('next', Any)])
    Node.__struct_annotations__['next'] = Node | int | None
    chain: Any = None
    data: Any = 'x'
    for _ in range(3000):
        chain, data = Node(chain), {'next': data}
    made = _fallback_codec.decode(_fallback_codec.encode(chain), type=Node)
    for _ in range(3000):
        assert type(made) is Node
        made = made.next
    assert made is None
    codec = _fallback_codec.Decoder(Node)
    for refuse in (
        lambda: codec.from_builtins(data),
        lambda: _fallback_codec.encode(nested(3000, 1j)),
    ):
        with pytest.raises((_fallback.ValidationError, TypeError)) as caught:
            refuse()
        assert len(caught.traceback) < 20


def test_deep_plain_data():
    """It needs no msgpack to be made plain."""
    made = _fallback_codec.Encoder().to_builtins(nested(2500, (1,)))
    assert unwrapped(made, 2500) == [1]
    with pytest.raises(RecursionError, match='nested too deeply'):
        _fallback_codec.Encoder().to_builtins(nested(100_000, (1,)))


def run_without_msgspec(code: str) -> None:
    """Run code in a fresh process in which `msgspec` refuses to load."""
    blocked = f"import sys\nsys.modules['msgspec'] = None\n{code}"
    subprocess.run([sys.executable, '-c', blocked], check=True, timeout=20)


def test_messages_without_msgspec():
    """The message classes, both codecs' names and the repr work as with it."""
    run_without_msgspec(
        'from typing import Any\n'
        'from tractor.msg import (\n'
        '    Aid, Error, MsgDec, Raw, Start, Started, Struct, ValidationError, Yield,\n'
        '    apply_codec, current_codec, mk_codec, mk_dec, types)\n'
        'assert "msgpack" not in sys.modules\n'
        'codec = current_codec()\n'
        'assert len(codec.msg_spec_str.split()) == 10\n'
        'assert str(Aid("a", "u", pid=1)).startswith("Aid(\\n  name: str = ")\n'
        'msg = codec.round_trip(Yield("c", (1, {"a": [2]})))\n'
        'assert (type(msg), type(msg.pld)) == (Yield, Raw)\n'
        'assert mk_dec(list[int | dict[str, list[int]]]).decode(msg.pld)'
        ' == [1, {"a": [2]}]\n'
        'try: mk_dec(dict[str, str]).decode(msg.pld)\n'
        'except ValidationError as err: assert "got `array`" in str(err)\n'
        'else: raise AssertionError\n'
        'start = Start("c", "m", "f", {"a": (1,)}, ("n", "u"))\n'
        'back = codec.round_trip(start)\n'
        'assert (back.uid, back.kwargs) == (("n", "u"), {"a": [1]})\n'
        'error = Error(("n", "u"), "E", "E", [("n", "u")], _bad_msg=Started("c", 1))\n'
        'assert codec.round_trip(error) == error\n'
        'plain = codec.to_builtins(start)\n'
        'assert types.from_dict_msg(plain, use_pretty=True).ns == "m"\n'
        'try: codec.raw(1j)\n'
        'except TypeError: pass\n'
        'else: raise AssertionError\n'
        'assert codec.round_trip(Started("c", codec.raw((1,)))).pld.value == [1]\n'
        'try: mk_codec(complex)\n'
        'except TypeError as err: assert "needs msgspec" in str(err)\n'
        'else: raise AssertionError\n'
        'class Point(Struct): x: int\n'
        'point = mk_dec(Point).decode(codec.round_trip(Yield("c", Point(3))).pld)\n'
        'assert (type(point), point) == (Point, Point(3))\n'
        'assert "msgpack" not in sys.modules\n'
    )


@needs_msgpack
def test_channel_codec_without_msgspec():
    """Messages to other processes are msgpack, as always."""
    frame = msgspec.msgpack.encode({'msg_type': 'Yield', 'cid': 'c', 'pld': [1]})
    run_without_msgspec(
        'from tractor.msg import DecodeError, Yield\n'
        'from tractor.msg import current_codec, decode_any, mk_dec\n'
        'codec = current_codec()\n'
        f'msg = codec.decode({frame!r})\n'
        'assert mk_dec(list[int]).decode(msg.pld) == decode_any(msg.pld) == [1]\n'
        f'assert codec.encode(Yield("c", (1,))) == {frame!r}\n'
        'try: codec.decode(b"\\xc1")\n'
        'except DecodeError: pass\n'
        'else: raise AssertionError\n'
    )


@needs_msgpack
def test_envelope_without_msgspec():
    """Whom a message is for is told also if the rest cannot be decoded."""
    key = b'\x83\xa3cid\xa1c\xa3pld\x81\x80\x01\xa8msg_type\xa5Yield'
    run_without_msgspec(
        'from tractor.msg._codec import DecodeError, decode_any, decode_envelope\n'
        f'try: decode_any({key!r})\n'
        'except DecodeError: pass\n'
        'else: raise AssertionError\n'
        f'assert decode_envelope({key!r}) == {{"msg_type": "Yield", "cid": "c"}}\n'
        f'for bad in (b"\\xc1", {key[:-1]!r}, b"\\x81\\xa3cid\\xa1c"):\n'
        '    try: decode_envelope(bad)\n'
        '    except Exception: pass\n'
        '    else: raise AssertionError(bad)\n'
    )


def test_nothing_of_it_is_loaded_beside_msgspec():
    """Where msgspec loads, the rest costs nothing."""
    code = (
        'import sys, tractor.msg._codec, tractor.msg._ops\n'
        "names = ('_fallback', '_fallback_codec', '_convert', '_marshal')\n"
        "assert not {f'tractor.msg.{name}' for name in names} & set(sys.modules)\n"
        "assert 'msgpack' not in sys.modules\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=20)
