"""The codec without msgspec, beside the one of msgspec."""

from __future__ import annotations

import array
import collections
import dataclasses
import enum
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tractor.msg import NamespacePath, _fallback, _fallback_codec


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
