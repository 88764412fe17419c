"""Plain data to structs without msgspec, beside the same structs of msgspec."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
import pytest

from tractor.msg import _fallback
from tractor.msg._convert import Compiler, Mismatch

T = TypeVar('T')


def family(lib: Any) -> dict[str, Any]:
    """Return struct classes made by a library, by name."""

    class Point(lib.Struct):
        x: int
        label: str = 'none'
        tags: list[str] = []  # noqa: RUF012

    class Frozen(lib.Struct, frozen=True):
        x: int

    class Checked(lib.Struct):
        x: int

        def __post_init__(self) -> None:
            if self.x < 0:
                raise ValueError(f'negative: {self.x}')

    class Cat(lib.Struct, tag=True):
        name: str

    class Dog(lib.Struct, tag=True):
        name: str
        age: int = 0

    class One(lib.Struct, tag=1):
        a: int

    class Two(lib.Struct, tag=2):
        a: int

    class Box(lib.Struct, Generic[T], tag=True):
        item: T
        more: list[T] = []  # noqa: RUF012

    class Tree(lib.Struct):
        value: int
        left: Tree | None = None

    class Closed(lib.Struct, forbid_unknown_fields=True):
        x: int
        label: str = 'none'

    class Both(lib.Struct, tag=True, forbid_unknown_fields=True):
        name: str = 'a'

    class Renamed(lib.Struct, rename='camel', tag=True):
        label: int
        the_name: str = 'n'
        other: int = lib.field(name='age', default=1)

    class Named(lib.Struct, kw_only=True):
        label: str = 'none'
        x: int

    # Annotations are text, which is looked up where the class was made.
    globals()['Tree'] = Tree
    raw = lib.Raw

    return {
        'Point': Point,
        'list[Point]': list[Point],
        'Point | None': Point | None,
        'dict[int, list[Point]]': dict[int, list[Point]],
        'Frozen': Frozen,
        'Checked': Checked,
        'list[Checked]': list[Checked],
        'Closed': Closed,
        'Both': Both,
        'Both | Dog': Both | Dog,
        'Renamed': Renamed,
        'Named': Named,
        'Cat': Cat,
        'Cat | Dog': Cat | Dog,
        'Cat | Dog | int | None': Cat | Dog | int | None,
        'Cat | list[Dog]': Cat | list[Dog],
        'One | Two': One | Two,
        'Box': Box,
        'Box[int]': Box[int],
        'Box[Point]': Box[Point],
        'Box[int] | Cat': Box[int] | Cat,
        'Box[int | Raw]': Box[int | raw],
    }


OBJECTS = [
    *(None, 1, 'a', [], {}, {'x': 1}, {'x': '1'}, {'x': -1}, {'x': 1, 'label': 2}),
    *({'x': 1, 'zz': 1}, {'x': 1, 'tags': ['a', 1]}, {1: 2}, [{'x': 'q'}], [{'x': -1}]),
    *({1: [{'x': 1}, {'x': 'q'}]}, {'type': 'Cat', 'name': 'a'}, {'name': 'a'}),
    *({'type': 'Dog', 'name': 'a', 'age': 'x'}, {'type': 'Cow'}, {'type': 1, 'a': 2}),
    *({'type': 2, 'a': 'x'}, {'type': 3}, {'type': None}, {'type': [1]}),
    *({'type': 'Box', 'item': 1}, {'type': 'Box', 'item': 'x', 'more': [1]}),
    *({None: 1}, {1: 2, 'x': 1}, {'x': 1, True: 2}, {'x': 'q', 1: 2}, {1: 2, 'x': 'q'}),
    *({'label': 5, 'x': 'q'}, {'label': 5}, {'label': 5, 1: 2}, {1: 2, 'name': 'a'}),
    *(
        {'type': 'Dog', 'name': 'a', None: 1},
        {None: 1, 'type': 'Dog'},
        {None: 1, 'type': 'Cow'},
        {'age': 'x'},
        {'name': 1, 'type': 'Cow'},
    ),
    *({'x': 1, 'label': 'a', 'zz': 1}, {'zz': 1, 'x': 'q'}, {'x': 'q', 'zz': 1}),
    *(
        {'zz': 1},
        {'x': 1, None: 1},
        {'type': 'Both', 'zz': 1},
        {'zz': 1, 'type': 'Both'},
    ),
    *({'theName': 'm', 'age': 2, 'label': 1}, {'label': 1, 'theName': 5}, {'age': 2}),
    *({'label': 1, 'the_name': 5}, {'label': 1, 'age': 'x'}, {'name': 'b', 'zz': 2}),
    *({'item': {'x': 1}, 'more': [{'x': 'q'}]}, [{'type': 'Dog', 'name': 'a'}]),
]
NAMES = list(family(_fallback))


def outcome(convert: Any, obj: Any) -> str:
    """Return what comes out as text: the classes of both libraries differ."""
    try:
        return repr(convert(obj))
    except (Mismatch, msgspec.ValidationError) as err:
        return str(err)


@pytest.mark.parametrize('name', NAMES)
def test_as_msgspec_does(name):
    """Every object becomes the same struct, or is refused by the same text."""
    ours = Compiler(None).converter(family(_fallback)[name])
    theirs = msgspec.msgpack.Decoder(family(msgspec)[name])
    for obj in OBJECTS:
        data = msgspec.msgpack.encode(obj)
        assert outcome(ours, obj) == outcome(theirs.decode, data), obj


def test_a_struct_may_contain_itself():
    """The converter of a struct is used within it."""
    family(_fallback)
    tree = globals()['Tree']
    convert = Compiler(None).converter(tree)
    made = convert({'value': 1, 'left': {'value': 2, 'left': None}})
    assert made == tree(1, tree(2))
    with pytest.raises(
        Mismatch, match=r'Expected `int`, got `str` - at `\$.left.value`'
    ):
        convert({'value': 1, 'left': {'value': 'x'}})


def test_untagged_structs_cannot_be_told_apart():
    """A union of several needs tags, different ones under one key."""
    made = family(_fallback)
    other = _fallback.defstruct('Other', ['a'], tag_field='kind')
    twin = _fallback.defstruct('Cat', ['a'], tag=True)
    for spec in (
        made['Point'] | made['Cat'],
        made['Cat'] | twin,
        made['Cat'] | other,
        made['Cat'] | dict[str, int],
    ):
        with pytest.raises(TypeError, match='union'):
            Compiler(None).converter(spec)


def test_a_field_of_unknown_type_is_found_at_once():
    """Not only when the first such struct comes."""
    bad = _fallback.defstruct('Bad', [('a', complex)])
    with pytest.raises(TypeError, match='`complex` needs msgspec'):
        Compiler(None).converter(list[bad])
