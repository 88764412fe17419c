"""The readable struct: what its text shows and hides, and its small methods."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tractor.msg import pretty_struct
from tractor.msg._codec import mk_codec, mk_dec
from tractor.msg.pretty_struct import (
    DiffDump,
    Struct,
    iter_fields,
    iter_struct_ppfmt_lines,
    pformat,
    rendering_copy,
)


class Inner(msgspec.Struct):
    a: int
    _hidden: str = 'inner-secret'


class Middle(msgspec.Struct):
    inner: Inner
    _also: str = 'middle-secret'


class Outer(Struct):
    name: str
    middle: Middle
    maybe: int | None = None
    items: list[Any] = msgspec.field(default_factory=list)
    _private: str = 'outer-secret'


class Empty(Struct):
    pass


class Frozen(Struct, frozen=True):
    x: int
    y: dict[str, int | None] = msgspec.field(default_factory=dict)

    @property
    def double(self) -> int:
        return 2 * self.x


def outer() -> Outer:
    return Outer('bob', Middle(Inner(1)))


def test_layout():
    """The header, one line per public field, and the closing parenthesis."""
    assert repr(Frozen(1, {'k': None})) == (
        "Frozen(\n  x: int = 1,\n  y: dict[str,int|None] = {'k': None},\n)"
    )


def test_nested_structs_are_flattened():
    """A nested struct's own public fields take its place, further in."""
    lines = list(iter_struct_ppfmt_lines(outer()))
    assert [text for _, text in lines] == [
        "name: str = 'bob',",
        'a: int = 1,',
        'maybe: int|None = None,',
        'items: list[typing.Any] = [],',
    ]
    assert [len(indent) for indent, _ in lines] == [0, 4, 0, 0]


@pytest.mark.parametrize(
    'items',
    [
        [],
        [Inner(2)],
        [[Inner(2)], (Inner(3), 4)],
        [{'k': Inner(2)}],
        [(Inner(2),)],
        [Middle(Inner(2))],
    ],
)
def test_private_fields_are_hidden_at_any_depth(items):
    """No field with a leading underscore shows, nested or within a container."""
    struct = outer()
    struct.items = items
    assert 'secret' not in repr(struct)
    assert '_hidden' not in repr(struct)
    assert '_also' not in repr(struct)


def test_containers_look_like_their_repr():
    """Hiding private fields changes nothing else about a container."""
    value = [1, 'a', (), (1,), (1, 2), {'k': [None]}, {}]
    assert f'items: list[typing.Any] = {value!r},' in repr(
        Outer('', Middle(Inner(1)), items=value)
    )


def test_empty_struct():
    """Without fields there is just the header and the parenthesis."""
    assert repr(Empty()) == 'Empty(\n)'
    assert list(iter_struct_ppfmt_lines(Empty())) == []
    assert pformat(mk_dec(int)) == 'MsgDec(\n)'


def test_indents():
    """Fields stand in from the header, everything from the margin."""
    assert pformat(Inner(1), field_indent=4) == 'Inner(\n    a: int = 1,\n)'
    assert Frozen(1).pformat(field_indent=1, indent=2).splitlines() == [
        'Frozen(',
        '   x: int = 1,',
        '   y: dict[str,int|None] = {},',
        '  )',
    ]
    assert list(iter_struct_ppfmt_lines(Inner(1), 3)) == [('   ', 'a: int = 1,')]


def test_any_struct_can_be_formatted():
    """The formatter takes structs without the pretty base, codecs among them."""
    text = pformat(mk_codec())
    assert text.startswith('MsgCodec(\n  lib: ')
    assert '_dec' not in text
    assert '_buf' not in text


def test_qualified_name_of_a_local_class():
    """The header is the class's qualified name."""

    class Local(Struct):
        pass

    assert repr(Local()).startswith(Local.__qualname__ + '(')


def test_failure_falls_back_to_the_plain_repr(caplog):
    """When formatting fails the plain repr is shown, and the failure logged."""

    class Unresolvable(Struct):
        x: Nowhere  # noqa: F821

    text = repr(Unresolvable(1))
    assert text == 'Unresolvable(x=1)'
    assert 'cannot format' in caplog.text


def test_iter_fields():
    """Every field comes with its description, name and value, private ones too."""
    found = [(info.type, name, value) for info, name, value in iter_fields(Inner(1))]
    assert found == [(int, 'a', 1), (str, '_hidden', 'inner-secret')]


def test_to_dict():
    """Fields by name, and the values of properties unless left out."""
    assert Frozen(2).to_dict() == {'x': 2, 'y': {}, 'double': 4}
    assert Frozen(2).to_dict(include_non_members=False) == {'x': 2, 'y': {}}


def test_copy():
    """A copy is another object; the update is applied to both."""
    struct = outer()
    copy = struct.copy({'name': 'eve'})
    assert copy == struct
    assert copy is not struct
    assert copy.middle is not struct.middle
    assert struct.name == 'eve'


def test_copy_validates():
    """A copy with a value of the wrong type is refused."""
    with pytest.raises(msgspec.ValidationError):
        outer().copy({'name': 3})


def test_typecast():
    """Each field is replaced by what its annotated type makes of it."""

    class Cast(Struct):
        x: int
        y: float

    Cast.__module__ = __name__
    struct = Cast('3', '1.5')
    struct.typecast()
    assert (struct.x, struct.y) == (3, 1.5)


def test_difference():
    """Subtracting lists the fields that differ, ours first."""
    diff = Frozen(1, {'k': 1}) - Frozen(2, {'k': 1})
    assert isinstance(diff, DiffDump)
    assert list(diff) == [('x', 1, 2)]
    assert repr(diff).count('\n') > 1
    assert repr(Frozen(1) - Frozen(1)) == '[]'


def test_fields_diff():
    """Missing and unknown keys of a dict are listed."""
    diff = Frozen.fields_diff({'x': 1, 'z': 5})
    assert [(field, theirs) for field, _, theirs in diff] == [('y', None), ('z', 5)]
    assert not Frozen.fields_diff({'x': 1, 'y': 2})


def test_rendering_copy():
    """Each copy is read-only, pretty, of a type of its own, hence equal to nothing."""
    struct = Inner(1)
    one, two = rendering_copy(struct), rendering_copy(struct)
    assert repr(one) == 'Inner(\n  a: int = 1,\n)'
    assert isinstance(one, Inner)
    assert type(one) is not type(two)
    assert one != two
    assert one != struct
    with pytest.raises(AttributeError):
        one.a = 2


def test_log_name():
    """The module logs under its package."""
    assert pretty_struct.log.name == 'tractor.msg'
