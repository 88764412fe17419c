"""Structs without msgspec: one set of rules, held by both libraries."""

from __future__ import annotations

import copy
import pickle
import sys
import weakref
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


def test_a_frozen_struct_can_be_forced(lib):
    """While it is made, for one."""
    made = point(lib, frozen=True)(1)
    lib.structs.force_setattr(made, 'x', 2)
    assert made.x == 2


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


@pytest.mark.parametrize('base', [TypeError, ImportError])
def test_class_keywords_of_msgspec_alone_name_the_way_out(base):
    """The error is also that of a module that refuses this interpreter."""
    says = (
        r'array_like needs msgspec, which does not support loading in subinterpreters.*'
        r"gil='shared'"
    )
    with pytest.raises(base, match=says) as caught:
        point(_fallback, array_like=True)
    assert caught.value.name == 'msgspec'


def test_unknown_class_keyword(lib):
    """It is a mistake, whatever interpreter this is."""
    with pytest.raises(TypeError, match='keyword argument') as caught:
        point(lib, nonsense=True)
    assert not isinstance(caught.value, ImportError)


def keyword_only(lib: Any) -> dict[str, Any]:
    """Return classes with fields that are only given by name, by their name."""

    class Named(lib.Struct, kw_only=True):
        a: int = 1
        b: str

    class More(Named):
        c: int
        d: int = 2

    class Again(More, kw_only=True):
        a: int
        e: int
        c: int = 5

    class Placed(Named):
        b: str = 'x'

    class Plain(lib.Struct):
        x: int
        y: int = 1

    class Mixed(Plain, kw_only=True):
        z: int
        w: int = 2
        u: int

    class Last(Mixed):
        q: int = 3

    class Freed(Mixed):
        z: int = 4

    return {k: v for k, v in locals().items() if k != 'lib'}


@pytest.mark.parametrize('name', keyword_only(msgspec))
def test_keyword_only_fields(name):
    """They come last, wherever they are declared, and are given by name only."""
    ours, theirs = keyword_only(_fallback)[name], keyword_only(msgspec)[name]
    assert ours.__struct_fields__ == theirs.__struct_fields__
    assert ours.__match_args__ == theirs.__match_args__
    assert [*map(repr, ours.__struct_defaults__)] == [
        *map(repr, theirs.__struct_defaults__)
    ]
    for count in range(5):
        for names in ('', 'a', 'b', 'ab', 'abe', 'zu', 'zwu', 'xzu', 'cabe', 'q'):
            kwargs = dict.fromkeys(names, 7)
            made = []
            for cls in (ours, theirs):
                try:
                    made.append(repr(cls(*range(count), **kwargs)))
                except TypeError:
                    made.append('refused')
            assert made[0] == made[1], (count, names)


def test_a_required_field_may_follow_only_by_name(lib):
    """A subclass that makes it positional again has to put it first."""
    Mixed = keyword_only(lib)['Mixed']
    with pytest.raises(TypeError, match='cannot follow'):
        lib.defstruct('Bad', [('z', int)], bases=(Mixed,))


class Named(_fallback.Struct, kw_only=True):
    """At module level, as a pickle needs it."""

    x: int


def test_keyword_only_copies():
    """They are made by name."""
    assert copy.copy(Named(x=1)) == Named(x=1)
    assert pickle.loads(pickle.dumps(Named(x=1))) == Named(x=1)


NAMES = ['a_b', '_c_d', 'e_', 'f__g', 'I_J', 'kL', '_m', 'n1o_p2q']


@pytest.mark.parametrize(
    'rename',
    [
        *('lower', 'upper', 'camel', 'pascal', 'kebab', {'a_b': 'q', '_m': None}),
        lambda name: None if name == 'kL' else f'{name}!',
    ],
    ids=repr,
)
def test_rename(rename):
    """Fields are called the same in encoded data, those of subclasses as well."""
    found = []
    for lib in LIBRARIES:
        Base = lib.defstruct('Base', NAMES, rename=rename)
        Sub = lib.defstruct('Sub', ['t_u'], bases=(Base,))
        Other = lib.defstruct('Other', ['v_w', '_m'], bases=(Sub,), rename='upper')
        Plain = lib.defstruct('Plain', ['v_w', '_m'], bases=(Sub,), rename=None)
        Given = lib.defstruct(
            'Given', [('x_y', int, lib.field(name='*'))], bases=(Sub,)
        )
        classes = [Base, Sub, Other, Plain, Given]
        found.append([cls.__struct_encode_fields__ for cls in classes])
        infos = lib.structs.fields(Given)
        assert [info.encode_name for info in infos] == [*found[-1][-1]]
    assert found[0] == found[1]


def test_a_name_of_its_own(lib):
    """A field keeps it when it is declared again, unless that class renames."""
    field = lib.field(name='*', default=1)
    Base = lib.defstruct('Base', [('a_b', int, field), ('c_d', int, 2)])
    for rename, names in ((None, ('*', 'c_d')), ('camel', ('aB', 'c_d'))):
        Sub = lib.defstruct('Sub', [('a_b', int, 3)], bases=(Base,), rename=rename)
        assert Sub.__struct_encode_fields__ == names


@pytest.mark.parametrize(
    ('options', 'error'),
    [
        ({'rename': lambda name: 'same'}, ValueError),
        ({'rename': 'nonsense'}, ValueError),
        ({'rename': lambda name: 5}, TypeError),
        ({'rename': {'y': 'type'}, 'tag': True}, ValueError),
        ({'order': True, 'eq': False}, ValueError),
        ({'cache_hash': True}, ValueError),
    ],
    ids=str,
)
def test_impossible_options(lib, options, error):
    """They are refused when the class is made."""
    with pytest.raises(error):
        point(lib, **options)


def test_order(lib):
    """Structs of one class are ordered as their fields are, if they say so."""
    Point = point(lib, order=True)
    assert Point(1) < Point(2)
    assert Point(1, 3) >= Point(1, 2)
    assert Point(1) <= Point(1)
    assert not Point(1) > Point(1)
    for left, right in (
        (Point(1), point(lib, order=True)(2)),
        (Point(1), 1),
        (point(lib)(1), 1),
        (Point(1), Point('a')),
    ):
        with pytest.raises(TypeError, match="'<' not supported"):
            _ = left < right


def test_options_without_much_effect(lib):
    """They are accepted."""
    Point = point(
        lib,
        frozen=True,
        weakref=True,
        cache_hash=True,
        repr_omit_defaults=True,
    )
    made = Point(1)
    assert weakref.ref(made)() is made
    assert hash(made) == hash(Point(1))
    assert (repr(made), repr(Point(1, 3))) == ('Point(x=1)', 'Point(x=1, y=3)')
    assert point(lib, gc=False)(1).x == 1
    assert lib.defstruct('Sub', ['z'], bases=(point(lib, weakref=True),), kw_only=True)


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
