"""Plain data to typed values without msgspec: what comes out, and the error texts."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, Flag, IntEnum, IntFlag
from typing import Annotated, Any, Literal, NewType, TypeVar

import msgspec
import pytest

from tractor.msg import _fallback
from tractor.msg._convert import Compiler, Mismatch
from tractor.msg.ptr import NamespacePath

Bounded = TypeVar('Bounded', bound=int)
Constrained = TypeVar('Constrained', int, str)
UserId = NewType('UserId', int)


class Colour(Enum):
    RED = 'red'
    BLUE = 'blue'


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(Enum):
    A = 1
    B = 'b'


class Rights(Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


class OpenRights(IntFlag):
    NONE = 0
    READ = 1


class Forgiving(Enum):
    A = 'a'

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls.A if value else None


class Odd(Enum):
    A = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return 'odd'


def failing(error: type[Exception]) -> Any:
    """Return an enum that raises for what it does not know."""

    class Failing(Enum):
        A = 'a'

        @classmethod
        def _missing_(cls, value: object) -> Any:
            raise error(value)

    return Failing


def convert(spec: Any, obj: Any, dec_hook: Any = None) -> Any:
    """Return plain data as a value of a type."""
    return Compiler(dec_hook).converter(spec)(obj)


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a call gives, with its type, or the text of its error."""
    try:
        value = function(*args)
    except (Mismatch, msgspec.ValidationError, TypeError) as err:
        return str(err)
    return type(value), value


def by_msgspec(spec: Any, obj: Any) -> Any:
    """Return what `msgspec` makes of the same data over msgpack."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(obj), type=spec)


OBJECTS = [
    *(None, True, False, 0, 1, -5, 2**63, 1.5, 'a', 'red', b'x'),
    *([], [1], ['a'], [1, 'a'], [1, 1], [[1, 2], [3]], [['a', 1], ['b', None]]),
    *({}, {'a': 1}, {'a': 'x'}, {1: 1}, {'a': [1]}, {'a': ['x']}, {'a': {'b': 1}}),
    *(2, 3, 4, 7, -1, 2**64 - 1, 'b', 'c', '', [[[1]]], [{}], {'z': 1}),
]
SPECS = [
    *(Any, object, None, bool, int, float, str, bytes, bytearray),
    *(list, list[int], list[str], list[list[int]], list[Any], dict, dict[str, int]),
    *(dict[int, int], dict[str, Any], dict[str, list[int]], dict[str, dict[str, int]]),
    *(tuple, tuple[int, ...], tuple[int], tuple[int, str], tuple[()]),
    *(list[tuple[str, str | int]], set, set[int], frozenset[str]),
    *(int | str, int | None, int | float, float | None, bytes | None),
    *(list[int] | dict[str, int] | None, bool | int, int | float | str | None),
    *(Literal['a', 'b'], Literal[1, 'a'], Literal[None, 1], Literal['red'] | None),
    *(Colour, Level, Colour | None, Colour | int, dict[str, Colour], list[Level]),
    *(Annotated[int, 'unit'], UserId, Bounded, list[UserId | None]),
    *(
        Literal[True],
        Literal[True, 1, 'a'],
        Literal[False] | None,
        Literal[True] | bool,
    ),
    *(
        int | Literal[3],
        Literal[3] | float,
        Literal[3] | float | int,
        Literal['a'] | str,
    ),
    *(Literal['a', 'b'] | Literal['c'], Literal['a', 1] | Literal[2], list[Rights]),
    *(Literal[None, 'a'] | None, dict[Literal['a'] | Literal['b'], int]),
    *(Rights, OpenRights, Rights | None, dict[Forgiving, int], Forgiving | int),
    *(Odd, *map(failing, (KeyError, ValueError, TypeError, RuntimeError))),
    *(set[list[int]], set[tuple], set[Any], frozenset[list], set[tuple[list[int]]]),
    *(set[list[int] | None], set[dict[str, int]], frozenset[tuple[Any, ...]]),
]


@pytest.mark.parametrize('spec', SPECS, ids=str)
def test_as_msgspec_does(spec):
    """Every object becomes the same value, or is refused by the same text."""
    for obj in OBJECTS:
        assert outcome(convert, spec, obj) == outcome(by_msgspec, spec, obj), obj


def test_alias_of_a_type():
    """A `type` statement's name means what it stands for."""
    scope: dict[str, Any] = {}
    exec('type Number = int | float', scope)
    assert convert(scope['Number'] | None, 1.5) == 1.5
    with pytest.raises(Mismatch, match=r'Expected `int \| float`, got `str`'):
        convert(scope['Number'], 'a')


def test_data_is_not_changed():
    """A conversion makes new containers, or uses those it got as they are."""
    data = {'a': [[1], [2]]}
    made = convert(dict[str, list[tuple[int, ...]]], data)
    assert made == {'a': [(1,), (2,)]}
    assert data == {'a': [[1], [2]]}
    assert convert(dict[str, Any], data) is data


@pytest.mark.parametrize(
    'spec',
    [complex, NamespacePath | None, list[complex], dict[str, complex], Callable, 'int'],
    ids=str,
)
def test_unknown_types_name_the_way_out(spec):
    """They are refused when the converter is made, with the remedy."""
    with pytest.raises(
        TypeError, match=r"needs msgspec.*gil='shared'.*process backend"
    ):
        Compiler(None).converter(spec)


@pytest.mark.parametrize(
    'spec',
    [
        *(list[int] | tuple[int, ...], str | Colour, str | bytes, Mixed, Literal[1.5]),
        *(Literal[1] | Level, Literal[1.5] | float, Constrained, list[Constrained]),
    ],
    ids=str,
)
def test_impossible_types(spec):
    """What msgspec refuses is refused."""
    with pytest.raises(TypeError):
        Compiler(None).converter(spec)
    with pytest.raises(TypeError):
        msgspec.msgpack.Decoder(spec)


def dec_nsp(target: type, obj: Any) -> Any:
    """Make a path of text."""
    if not isinstance(obj, str):
        raise TypeError(f'no path: {obj!r}')
    return target(obj)


def test_hook_makes_custom_types():
    """It is called for them only, wherever they stand, and not for an allowed nil."""
    spec = _fallback.Raw | NamespacePath | None
    made = convert(spec, 'm:f', dec_nsp)
    assert (type(made), made) == (NamespacePath, 'm:f')
    assert convert(spec, None, dec_nsp) is None
    made = convert(dict[str, NamespacePath], {'a': 'm:f'}, dec_nsp)
    assert type(made['a']) is NamespacePath


def test_what_a_hook_refuses():
    """Its type and value errors say where; all others pass."""
    with pytest.raises(Mismatch, match=r'no path: 1 - at `\$\[0\]`'):
        convert(list[NamespacePath], [1], dec_nsp)
    with pytest.raises(Mismatch, match='Expected `NamespacePath`, got `int`'):
        convert(NamespacePath, 'a', lambda target, obj: 1)

    def lookup(target, obj):
        raise KeyError(obj)

    with pytest.raises(KeyError):
        convert(NamespacePath, 'a', lookup)
    with pytest.raises(TypeError, match='may contain only `None` besides'):
        Compiler(dec_nsp).converter(int | NamespacePath)


def test_raw_stays_undecoded():
    """Alone it holds the data; in a union the other members decide."""
    assert convert(_fallback.Raw, [1]) == _fallback.Raw([1])
    assert convert(int | _fallback.Raw, 1) == 1
    with pytest.raises(Mismatch):
        convert(int | _fallback.Raw, 'a')
