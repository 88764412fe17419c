"""
A struct with a readable repr, and the formatter it uses.

The formatter shows the public fields of any `msgspec.Struct`, one per line;
fields with a leading underscore are hidden at every depth and nested structs
are flattened into the listing.  Used by messages, codecs and as a base of
payload types in applications.

As the lowest module of this package it also decides what the serializer is: `msgspec`,
or the same names in pure Python where that refuses to load, as it does in an isolated
sub-interpreter.  The other modules take theirs from here.
"""

from __future__ import annotations

from collections import UserList
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, TypeVar, Union, get_args, get_origin

from tractor.log import get_logger

if TYPE_CHECKING:
    import msgspec as msgspec
    from msgspec import msgpack as msgpack
    from msgspec import structs as structs
else:
    try:
        import msgspec
        from msgspec import msgpack, structs
    except ImportError:
        from tractor.msg import _fallback as msgspec
        from tractor.msg import _fallback_codec as msgpack
        from tractor.msg._fallback import structs

log = get_logger()

HAS_MSGSPEC: Final = msgspec.__name__ == 'msgspec'

_Struct = msgspec.Struct


class DiffDump(UserList[tuple[str, Any, Any]]):
    """Differing fields as `(field, ours, theirs)`, one per line in its repr."""

    def __repr__(self) -> str:
        if not self.data:
            return super().__repr__()
        lines = (
            f'({field!r},\n |_ours: {ours!r},\n |_theirs: {theirs!r},\n),'
            for field, ours, theirs in self.data
        )
        return '\n'.join(('[', *lines, ']'))


def iter_fields(struct: _Struct) -> Iterator[tuple[structs.FieldInfo, str, Any]]:
    """Yield `(FieldInfo, name, value)` of every field, private ones included."""
    for info in structs.fields(struct):
        yield info, info.name, getattr(struct, info.name)


def iter_struct_ppfmt_lines(
    struct: _Struct, field_indent: int = 0
) -> Iterator[tuple[str, str]]:
    """
    Yield `(indent, 'name: type = repr,')` of every public field.

    A field that holds a struct is replaced by that struct's own public fields,
    two columns further in.

    Args:
        field_indent: Width of the indent, in columns.
    """
    for info, name, value in iter_fields(struct):
        if name.startswith('_'):
            continue
        if isinstance(value, _Struct):
            yield from iter_struct_ppfmt_lines(value, field_indent + 2)
        else:
            text = _public_repr(value)
            yield ' ' * field_indent, f'{name}: {_type_name(info.type)} = {text},'


def _public_repr(value: Any) -> str:
    """Return a value's repr, without private fields of structs in containers."""
    if isinstance(value, _Struct):
        shown = (
            f'{name}={_public_repr(field)}'
            for _, name, field in iter_fields(value)
            if not name.startswith('_')
        )
        return f'{type(value).__qualname__}({", ".join(shown)})'
    if type(value) is list:
        return f'[{", ".join(map(_public_repr, value))}]'
    if type(value) is tuple:
        end = ',)' if len(value) == 1 else ')'
        return f'({", ".join(map(_public_repr, value))}{end}'
    if type(value) is dict:
        items = (f'{_public_repr(k)}: {_public_repr(v)}' for k, v in value.items())
        return f'{{{", ".join(items)}}}'
    return repr(value)


def _type_name(spec: Any) -> str:
    if get_origin(spec) in (Union, UnionType):
        return '|'.join(map(_type_name, get_args(spec))).replace('NoneType', 'None')
    if isinstance(spec, type | TypeVar):
        return spec.__name__
    return str(spec).replace(' ', '')


def pformat(struct: _Struct, field_indent: int = 2, indent: int = 0) -> str:
    """
    Return a struct's public fields as text, one per line.

    Args:
        field_indent: Columns by which fields stand in from the type name.
        indent: Columns by which the closing parenthesis and all fields are shifted.
    """
    shift = ' ' * indent
    lines = (
        f'{shift}{ws}{text}\n'
        for ws, text in iter_struct_ppfmt_lines(struct, field_indent)
    )
    return f'{type(struct).__qualname__}(\n{"".join(lines)}{shift})'


class Struct(_Struct):
    """A `msgspec.Struct` that shows itself readably and can be compared."""

    def to_dict(self, include_non_members: bool = True) -> dict[str, Any]:
        """
        Return the fields by name.

        Args:
            include_non_members: Add public attributes which are no field, such as
                the values of properties.
        """
        fields = structs.asdict(self)
        if include_non_members:
            for cls in reversed(type(self).__mro__):
                for name, member in vars(cls).items():
                    if isinstance(member, property) and not name.startswith('_'):
                        fields[name] = getattr(self, name)
        return fields

    def pformat(self, field_indent: int = 2, indent: int = 0) -> str:
        """Return the public fields, one per line, or the plain repr if that fails."""
        try:
            return pformat(self, field_indent, indent)
        except Exception:
            log.exception('cannot format a %s, showing it plainly', type(self))
            return _Struct.__repr__(self)

    def __repr__(self) -> str:
        return self.pformat()

    def copy(self, update: Mapping[str, Any] | None = None) -> Any:
        """
        Set the given attributes on self, then return a validated copy.

        Raises:
            msgspec.ValidationError: A field's value does not match its type.
        """
        for name, value in (update or {}).items():
            setattr(self, name, value)
        return msgpack.Decoder(type(self)).decode(msgpack.encode(self))

    def typecast(self) -> None:
        """Replace each field's value by what calling its annotated type returns."""
        for info, name, value in iter_fields(self):
            setattr(self, name, info.type(value))

    def __sub__(self, other: _Struct) -> DiffDump:
        """Return the fields whose values differ."""
        return DiffDump(
            (name, value, getattr(other, name))
            for _, name, value in iter_fields(self)
            if value != getattr(other, name)
        )

    @classmethod
    def fields_diff(cls, other: Mapping[str, Any]) -> DiffDump:
        """Return what a dict lacks and what it has too much for this struct."""
        names = cls.__struct_fields__
        missing = ((n, cls.__name__, None) for n in names if n not in other)
        unknown = ((n, None, v) for n, v in other.items() if n not in names)
        return DiffDump([*missing, *unknown])


def pretty_subclass(cls: type[_Struct], frozen: bool = False) -> type[_Struct]:
    """Return a new subclass of the same name, with the readable repr."""
    bases = (cls,) if issubclass(cls, Struct) else (Struct, cls)
    return msgspec.defstruct(
        cls.__name__, (), bases=bases, module=cls.__module__, frozen=frozen
    )


def rendering_copy(struct: _Struct) -> Any:
    """
    Return a read-only copy with the readable repr.

    It is of a new type, hence equal to nothing else.
    """
    return pretty_subclass(type(struct), frozen=True)(**structs.asdict(struct))
