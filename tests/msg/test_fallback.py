"""Structs without msgspec: one set of rules, held by both libraries."""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import pytest

from tractor.msg import _fallback

T = TypeVar('T')

LIBRARIES = [msgspec, _fallback]


@pytest.fixture(params=LIBRARIES, ids=['msgspec', 'fallback'])
def lib(request: pytest.FixtureRequest) -> ModuleType:
    """The library under test; what holds for one has to hold for the other."""
    return request.param


class PlainPoint(_fallback.Struct, frozen=True):
    """At module level, as a pickle needs it."""

    x: int
    y: list[int] = []  # noqa: RUF012


def point(lib: Any, **options: Any) -> Any:
    class Point(lib.Struct, **options):
        x: int
        y: int = 2

        kind: ClassVar[str] = 'point'

        @property
        def both(self) -> tuple[int, int]:
            return self.x, self.y

    return Point


def test_made_by_position_and_name(lib):
    """Fields are set in order or by name; class variables and members are none."""
    Point = point(lib)
    made = Point(1, y=3)
    assert (made.x, made.y, made.both, made.kind) == (1, 3, (1, 3), 'point')
    assert Point.__struct_fields__ == Point.__match_args__ == ('x', 'y')
    assert Point.__struct_defaults__ == (2,)
    assert repr(Point(1)) == 'Point(x=1, y=2)'


@pytest.mark.parametrize(
    ('args', 'kwargs'),
    [((), {}), ((1, 2, 3), {}), ((1,), {'x': 1}), ((1,), {'z': 1})],
    ids=['missing', 'too many', 'twice', 'unknown'],
)
def test_wrong_arguments(lib, args, kwargs):
    """They are refused as a function's would be."""
    with pytest.raises(TypeError):
        point(lib)(*args, **kwargs)


def test_has_no_other_attributes(lib):
    """There are slots for the fields and nothing else."""
    made = point(lib)(1)
    with pytest.raises(AttributeError):
        made.z = 1
    assert not hasattr(made, '__dict__')
    del made.x
    with pytest.raises(AttributeError):
        _ = made.x


def test_equality_and_hash(lib):
    """Equal are structs of one class with equal fields; only frozen ones hash."""
    Point, Frozen = point(lib), point(lib, frozen=True)
    assert Point(1) == Point(1) != Point(2)
    assert Point(1) != Frozen(1)
    assert Point(1) != 1
    with pytest.raises(TypeError, match='unhashable'):
        hash(Point(1))
    assert len({Frozen(1), Frozen(1), Frozen(2)}) == 2


def test_without_equality(lib):
    """With `eq=False` each is equal to itself only."""
    Point = point(lib, eq=False)
    made = Point(1)
    assert made == made != Point(1)
    assert len({made, Point(1)}) == 2


def test_frozen(lib):
    """A field cannot be set or deleted."""
    made = point(lib, frozen=True)(1)
    with pytest.raises(AttributeError, match='immutable'):
        made.x = 2
    with pytest.raises(AttributeError, match='immutable'):
        del made.x
    assert made.x == 1


def test_a_subclass_keeps_places_and_may_give_defaults(lib):
    """A redeclared field stays where it was, with the new default."""

    class Sub(point(lib)):
        z: int = 3
        x: int = 5

    assert Sub.__struct_fields__ == ('x', 'y', 'z')
    assert repr(Sub()) == 'Sub(x=5, y=2, z=3)'


def test_mutable_defaults_are_not_shared(lib):
    """An empty container or a factory gives each instance its own."""

    class Box(lib.Struct):
        a: list[int] = []  # noqa: RUF012
        b: dict[str, int] = lib.field(default_factory=lambda: {'n': 1})
        c: int = lib.field(default=4)

    first, second = Box(), Box()
    first.a.append(1)
    first.b['n'] = 2
    assert (second.a, second.b, second.c) == ([], {'n': 1}, 4)


def test_post_init(lib):
    """It runs once all fields are set."""

    class Checked(lib.Struct):
        x: int

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError(f'negative: {self.x}')

    assert Checked(1).x == 1
    with pytest.raises(ValueError, match='negative: -1'):
        Checked(-1)


def test_own_equality_wins(lib):
    """What the class body defines is not replaced."""

    class Named(lib.Struct):
        x: int
        y: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Named) and self.x == other.x

        def __hash__(self) -> int:
            return self.x

    assert Named(1, 2) == Named(1, 3)
    assert hash(Named(7, 2)) == 7


@pytest.mark.parametrize(
    ('options', 'tag'),
    [
        ({}, (None, None)),
        ({'tag': True}, ('type', 'Point')),
        ({'tag_field': 'kind_'}, ('kind_', 'Point')),
        ({'tag': 'p', 'tag_field': 'k'}, ('k', 'p')),
        ({'tag': 3}, ('type', 3)),
        ({'tag': str.lower}, ('type', 'point')),
        ({'tag': False}, (None, None)),
    ],
    ids=repr,
)
def test_tags(lib, options, tag):
    """The tag is a name, a number, or what a function makes of the class name."""
    config = point(lib, **options).__struct_config__
    assert (config.tag_field, config.tag) == tag


def test_a_tag_is_inherited(lib):
    """The field is; the value unless it is the class name, then it is the new one."""

    class Sub(point(lib, tag=True, tag_field='k')):
        pass

    assert (Sub.__struct_config__.tag_field, Sub.__struct_config__.tag) == ('k', 'Sub')


def test_generics(lib):
    """A generic struct is subscripted; its types know what the variable stands for."""

    class Holder(lib.Struct, Generic[T]):
        one: T
        many: list[T]

    class IntHolder(Holder[int]):
        more: int = 0

    def types(target):
        return [each.type for each in lib.structs.fields(target)]

    assert Holder[int](1, [2]) == Holder(1, [2])
    assert types(Holder[int]) == [int, list[int]]
    assert types(Holder) == [T, list[T]]
    assert types(IntHolder) == [int, list[int], int]


def test_field_infos(lib):
    """A field tells its name, type and default."""

    class Node(lib.Struct):
        name: str
        items: list[str] = []  # noqa: RUF012
        width: int = 3

    name, items, width = lib.structs.fields(Node)
    assert (name.name, name.encode_name, name.type, name.required) == (
        *('name', 'name', str, True),
    )
    assert (items.default_factory, items.required) == (list, False)
    assert width.default == 3
    assert lib.structs.asdict(Node('n')) == {'name': 'n', 'items': [], 'width': 3}


def test_defstruct(lib):
    """A class is made of a list of fields, or of bases alone."""
    Made = lib.defstruct('Made', ['a', ('b', int), ('c', int, 3)], module='m')
    assert repr(Made(1, 2)) == 'Made(a=1, b=2, c=3)'
    assert Made.__module__ == 'm'
    Sub = lib.defstruct('Made', (), bases=(Made,), frozen=True)
    assert Sub(1, 2).c == 3
    with pytest.raises(AttributeError, match='immutable'):
        Sub(1, 2).a = 1


def test_frozen_is_lifted_by_a_subclass(lib):
    """`frozen=False` makes fields settable again."""
    Open = lib.defstruct('Open', (), bases=(point(lib, frozen=True),), frozen=False)
    made = Open(1)
    made.x = 5
    assert made.x == 5


@pytest.mark.parametrize(
    ('body', 'error'),
    [
        ({'__annotations__': {'a': int, 'b': int}, 'a': 1}, TypeError),
        ({'__annotations__': {'a': list}, 'a': [1]}, TypeError),
        ({'__slots__': ('a',)}, TypeError),
    ],
    ids=['order', 'shared default', 'slots'],
)
def test_impossible_classes(lib, body, error):
    """They are refused when they are made."""
    with pytest.raises(error):
        type(lib.Struct)('Bad', (lib.Struct,), {'__module__': __name__, **body})


def test_a_tag_field_is_no_field(lib):
    """Both would be one key of the encoded struct."""
    with pytest.raises(ValueError, match='tag_field'):
        lib.defstruct('Bad', ['a'], tag=True, tag_field='a')


def test_copies():
    """A struct is copied and pickled by its fields, a frozen one as well."""
    made = PlainPoint(1, [2])
    shallow = copy.copy(made)
    assert shallow == made
    assert shallow.y is made.y
    assert copy.deepcopy(made).y is not made.y
    assert pickle.loads(pickle.dumps(made)) == made


def test_unknown_class_keyword_names_the_way_out():
    """What only msgspec can do is refused with the remedy."""
    with pytest.raises(TypeError, match=r"array_like needs msgspec.*gil='shared'"):
        point(_fallback, array_like=True)


@pytest.mark.skipif(sys.version_info < (3, 14), reason='annotations are a dict')
def test_deferred_annotations():
    """A function in the place of annotations is called, unknown names included."""
    scope: dict[str, Any] = {'Struct': _fallback.Struct, '__name__': __name__}
    body = 'class Late(Struct):\n    a: int\n    b: Later = None\n'
    exec(compile(body, 'late', 'exec', dont_inherit=True), scope)
    assert scope['Late'].__struct_fields__ == ('a', 'b')


def test_raw_holds_an_object():
    """It is equal by what it holds."""
    assert _fallback.Raw([1]) == _fallback.Raw([1]) != _fallback.Raw([2])
    assert pickle.loads(pickle.dumps(_fallback.Raw(3))).value == 3


def test_errors_are_related_as_in_msgspec():
    """A type error is a decode error."""
    assert issubclass(_fallback.ValidationError, _fallback.DecodeError)
    assert issubclass(_fallback.DecodeError, _fallback.MsgspecError)
