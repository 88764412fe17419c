"""
Encoder and decoder for interpreters that refuse `msgspec`; stands for its `msgpack`.

Both work in two steps: values to and from plain data, which is all a link within one
process needs, and plain data to and from msgpack by the pure-Python part of the
`msgpack` package, loaded at the first frame.  Plain data is exactly what a frame holds
once it is decoded without a type: `None`, numbers, text, bytes, lists, dicts, times in
UTC and `Ext`; everything else is turned into that, or refused, by `to_builtins()`.  So
what arrives does not depend on which of the two ways it came.  Used through
`pretty_struct`.
"""

from __future__ import annotations

import sys
from _thread import RLock
from collections.abc import Callable, Collection, Iterable, Iterator
from enum import EnumType
from itertools import chain
from types import GenericAlias, NoneType
from typing import Any, ClassVar, Final, Literal, get_args, get_origin

from tractor.msg._convert import Compiler, Converter, DecHook, Mismatch, freeze
from tractor.msg._fallback import (
    DecodeError,
    Raw,
    StructMeta,
    ValidationError,
    field_types,
    is_default,
)

EncHook = Callable[[Any], Any]
ToPlain = Callable[[Any, EncHook | None], Any]

_INT_MIN: Final = -(2**63)
_INT_MAX: Final = 2**64 - 1
# Types of which every value may stay, and those that also need a look at the value.
_ANY_VALUE: Final = frozenset({NoneType, bool, float, bytes})
_LEAVES: Final = _ANY_VALUE | {int, str}

# So many values are looked at one by one: that is faster than to gather their types.
_FEW: Final = 12

# Calls within calls, two or three for each level.  That reaches a bit further than
# `msgspec` decodes with the 8 MB that a thread has for its stack.
_ROOM: Final = 100_000
_room_lock: Final = RLock()

# First bytes of what is nested.
_ARRAYS: Final = frozenset({*range(0x90, 0xA0), 0xDC, 0xDD})
_MAPS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})


class Ext:
    """A msgpack extension value."""

    __slots__ = ('code', 'data')

    def __init__(self, code: int, data: bytes) -> None:
        self.code, self.data = code, data

    def __eq__(self, other: object) -> bool:
        if type(other) is not Ext:
            return NotImplemented
        return (self.code, self.data) == (other.code, other.data)

    def __hash__(self) -> int:
        return hash((self.code, self.data))


def deeply(function: Callable[..., Any], *args: Any) -> Any:
    """
    Return what a function returns that recurses a lot.

    Calls of Python functions by each other take no room on the thread's stack; what
    does is still stopped in time.  The limit is the interpreter's, so one thread at a
    time changes it.  Of an error nothing is kept of the calls that it went through:
    they can be very many.

    Raises:
        RecursionError: It recurses too much even so, or without an end.
    """
    with _room_lock:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, _ROOM))
        try:
            return function(*args)
        except RecursionError:
            failed: Exception = RecursionError('nested too deeply')
        except Exception as err:
            failed = err.with_traceback(None)
        finally:
            sys.setrecursionlimit(limit)
    raise failed from failed.__cause__


# Values to plain data


def to_builtins(obj: Any, enc_hook: EncHook | None = None) -> Any:
    """
    Return a value as plain data; containers that hold only such are not copied.

    Args:
        obj: Anything `msgspec` would encode.
        enc_hook: Makes something of that kind of any other value.
    Raises:
        TypeError: No way to encode this type.
        OverflowError: An integer that has no 64 bits.
        UnicodeEncodeError: A text that has no UTF-8.
    """
    kind = type(obj)
    if kind is str:
        if not obj.isascii():
            obj.encode()
        return obj
    if kind in _ANY_VALUE:
        return obj
    return TO_PLAIN[kind](obj, enc_hook)


def _all_plain(items: Collection[Any]) -> bool:
    """Return whether all may stay; many are judged without a loop in Python."""
    if len(items) <= _FEW:
        for each in items:
            kind = type(each)
            if kind is str:
                if not each.isascii():
                    return False
            elif kind is int:
                if not _INT_MIN <= each <= _INT_MAX:
                    return False
            elif kind not in _ANY_VALUE:
                return False
        return True
    kinds = {*map(type, items)}
    if not kinds <= _LEAVES:
        return False
    if int in kinds:
        numbers: Iterable[int] = items
        if len(kinds) > 1:
            numbers = [each for each in items if type(each) is int]
        if min(numbers) < _INT_MIN or max(numbers) > _INT_MAX:
            return False
    if str in kinds:
        texts: Iterable[str] = items
        if len(kinds) > 1:
            texts = [each for each in items if type(each) is str]
        return all(map(str.isascii, texts))
    return True


def _from_int(obj: int, enc_hook: EncHook | None) -> int:
    if _INT_MIN <= obj <= _INT_MAX:
        return obj
    raise OverflowError("can't serialize ints < -2**63 or > 2**64 - 1")


def _from_list(obj: list[Any], enc_hook: EncHook | None) -> list[Any]:
    if _all_plain(obj):
        return obj
    return [to_builtins(each, enc_hook) for each in obj]


def _from_array(obj: Iterable[Any], enc_hook: EncHook | None) -> list[Any]:
    return _from_list([*obj], enc_hook)


def _from_dict(obj: dict[Any, Any], enc_hook: EncHook | None) -> dict[Any, Any]:
    if type(obj) is dict and _all_plain(obj):
        if _all_plain(obj.values()):
            return obj
        return {key: to_builtins(value, enc_hook) for key, value in obj.items()}
    return {
        _from_key(key, enc_hook): to_builtins(value, enc_hook)
        for key, value in obj.items()
    }


def _from_key(obj: Any, enc_hook: EncHook | None) -> Any:
    if isinstance(obj, str):  # as a key also one of a subclass
        obj = str.__str__(obj)
    return freeze(to_builtins(obj, enc_hook))


def _from_memoryview(obj: memoryview, enc_hook: EncHook | None) -> bytes:
    if not obj.c_contiguous:
        raise BufferError('memoryview: underlying buffer is not C-contiguous')
    return bytes(obj)


def _from_raw(obj: Raw, enc_hook: EncHook | None) -> Any:
    return obj.value


def _from_value(obj: Any, enc_hook: EncHook | None) -> Any:
    return to_builtins(obj.value, enc_hook)


def _from_dataclass(obj: Any, enc_hook: EncHook | None) -> dict[str, Any]:
    names = [
        each.name
        for each in type(obj).__dataclass_fields__.values()
        if each._field_type.name == '_FIELD'
    ]
    return _from_attributes(obj, names, enc_hook)


def _from_attrs(obj: Any, enc_hook: EncHook | None) -> dict[str, Any]:
    names = [each.name for each in type(obj).__attrs_attrs__ if each.name[0] != '_']
    return _from_attributes(obj, names, enc_hook)


def _from_attributes(
    obj: Any, names: list[str], enc_hook: EncHook | None
) -> dict[str, Any]:
    return {
        name: to_builtins(getattr(obj, name), enc_hook)
        for name in names
        if hasattr(obj, name)
    }


def _from_text(obj: Any, enc_hook: EncHook | None) -> str:
    return str(obj)


def _from_datetime(obj: Any, enc_hook: EncHook | None) -> Any:
    if obj.utcoffset() is None:
        return obj.isoformat()
    from datetime import UTC  # loaded, since this is one of its objects

    return obj.astimezone(UTC)


def _from_date(obj: Any, enc_hook: EncHook | None) -> str:
    text: str = obj.isoformat()
    return text.removesuffix('+00:00') + 'Z' if text.endswith('+00:00') else text


def _from_timedelta(obj: Any, enc_hook: EncHook | None) -> str:
    """Return an ISO 8601 duration."""
    sign = '-' if obj.days < 0 else ''
    obj = abs(obj)
    days = f'{obj.days}D' if obj.days else ''
    time = ''
    if obj.seconds or obj.microseconds:
        fraction = f'.{obj.microseconds:06}'.rstrip('0').rstrip('.')
        time = f'T{obj.seconds}{fraction}S'
    return f'{sign}P{days}{time}' if days or time else 'P0D'


def _refused(obj: Any, enc_hook: EncHook | None) -> Any:
    """Ask the hook, which is here for that."""
    if enc_hook is None:
        raise TypeError(f'Encoding objects of type {type(obj).__name__} is unsupported')
    return to_builtins(enc_hook(obj), enc_hook)


class _ToPlain(dict[type, ToPlain]):
    def __missing__(self, kind: type) -> ToPlain:
        found = self[kind] = _find(kind)
        return found


# A type -> what makes plain data of its values.
TO_PLAIN: Final = _ToPlain(
    {
        int: _from_int,
        list: _from_list,
        tuple: _from_array,
        set: _from_array,
        frozenset: _from_array,
        dict: _from_dict,
        bytearray: lambda obj, enc_hook: bytes(obj),
        memoryview: _from_memoryview,
        Raw: _from_raw,
        Ext: lambda obj, enc_hook: obj,
    }
)
# By name, so that these modules need not be loaded.
_BY_NAME: Final[dict[tuple[str, str], ToPlain]] = {
    ('uuid', 'UUID'): _from_text,
    ('decimal', 'Decimal'): _from_text,
    ('datetime', 'datetime'): _from_datetime,
    ('datetime', 'date'): _from_date,
    ('datetime', 'time'): _from_date,
    ('datetime', 'timedelta'): _from_timedelta,
}


def _find(kind: type) -> ToPlain:
    """Return what makes plain data of a type's values."""
    if kind in _LEAVES:
        return to_builtins
    if isinstance(kind, StructMeta):
        return _generate(kind)
    if isinstance(kind, EnumType):
        return _from_value
    if (kind.__module__, kind.__qualname__) in _BY_NAME:
        return _BY_NAME[kind.__module__, kind.__qualname__]
    if issubclass(kind, list | tuple | set | frozenset):
        return _from_array
    if issubclass(kind, dict):
        return _from_dict
    if hasattr(kind, '__dataclass_fields__'):
        return _from_dataclass
    return _from_attrs if hasattr(kind, '__attrs_attrs__') else _refused


def _generate(cls: StructMeta) -> ToPlain:
    """Compile the function that makes a dict of a struct."""
    config = cls.__struct_config__
    if config.omit_defaults:
        return _generate_sparse(cls)
    pairs = []
    for name, kind in field_types(cls).items():
        held = f'type(v := obj.{name})'
        # What a field mostly holds needs no call.
        if kind is str or get_origin(kind) is Literal:
            value = f'v if {held} is str and v.isascii() else to(v, enc_hook)'
        elif kind is Raw or Raw in get_args(kind):
            value = f'v.value if {held} is Raw else to(v, enc_hook)'
        else:
            value = f'to(obj.{name}, enc_hook)'
        pairs.append(f'{cls.__struct_encoded__[name]!r}: {value}')
    if config.tag is not None:
        pairs.insert(0, f'{config.tag_field!r}: {config.tag!r}')
    scope: dict[str, Any] = {'to': to_builtins, 'Raw': Raw}
    source = f'def to_plain(obj, enc_hook):\n return {{{", ".join(pairs)}}}'
    exec(source, scope)  # of our own making: names of fields are identifiers
    made: ToPlain = scope['to_plain']
    return made


def _generate_sparse(cls: StructMeta) -> ToPlain:
    """Return what makes a dict of a struct, without fields that hold their default."""
    config = cls.__struct_config__
    fields = [
        (name, cls.__struct_encoded__[name], default)
        for name, default in cls.__struct_declared__.items()
    ]

    def to_plain(obj: Any, enc_hook: EncHook | None) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        if config.tag is not None:
            made[config.tag_field] = config.tag
        for name, key, default in fields:
            value = getattr(obj, name)
            if not is_default(value, default):
                made[key] = to_builtins(value, enc_hook)
        return made

    return to_plain


# Plain data to msgpack


class Encoder:
    """
    Encodes anything, by a hook what it does not know.

    Attributes:
        to_plain: For a type what makes plain data of a value and an `enc_hook`.
    """

    __slots__ = ('enc_hook',)

    to_plain: ClassVar[dict[type, ToPlain]] = TO_PLAIN

    def __init__(self, *, enc_hook: EncHook | None = None) -> None:
        self.enc_hook = enc_hook

    def to_builtins(self, obj: Any) -> Any:
        """Return plain data, as `to_builtins()` does."""
        return _plain(obj, self.enc_hook)

    def encode(self, obj: Any) -> bytes:
        """
        Return an object as msgpack.

        Raises:
            As `to_builtins()`.
        """
        return _pack(_plain(obj, self.enc_hook))

    def encode_into(self, obj: Any, buffer: bytearray, offset: int = 0) -> None:
        """
        Write an object into a buffer, which ends behind it.

        Args:
            offset: Where to begin; -1 is the buffer's end.
        """
        frame = _pack(_plain(obj, self.enc_hook))
        buffer[len(buffer) if offset == -1 else offset :] = frame


class Rows(dict[Any, Converter]):
    """
    For each tag of a union's structs, what makes one of a row; made when asked for.

    Args:
        compiler: Makes them.
        union: The structs' types.
    """

    def __init__(self, compiler: Compiler, union: Any) -> None:
        self._compiler, self._union = compiler, union

    def __missing__(self, tag: Any) -> Converter:
        for member in get_args(self._union):
            if (get_origin(member) or member).__struct_config__.tag == tag:
                made = self[tag] = self._compiler.row_converter(member)
                return made
        raise KeyError(tag)


class Decoder:
    """
    Decodes to one type.

    Args:
        type: What frames hold.
        dec_hook: Makes values of custom types: `hook(type, data)`.

    Attributes:
        rows: What makes the union's structs out of rows, if the type is such a union.
    Raises:
        TypeError: No way to decode that type.
    """

    __slots__ = ('_convert', 'dec_hook', 'rows', 'type')

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    def __init__(
        self,
        type: Any = Any,  # noqa: A002
        *,
        dec_hook: DecHook | None = None,
    ) -> None:
        self.type, self.dec_hook = type, dec_hook
        compiler = Compiler(dec_hook)
        self._convert: Converter = compiler.converter(type)
        self.rows = Rows(compiler, type)

    def from_builtins(self, obj: Any) -> Any:
        """
        Return plain data as a value of the type.

        Raises:
            ValidationError: Not of this type.
        """
        try:
            return self._convert(obj)
        except RecursionError:
            return deeply(self._convert_checked, obj)
        except Mismatch as err:
            raise ValidationError(str(err)) from err.__cause__

    def _convert_checked(self, obj: Any) -> Any:
        try:
            return self._convert(obj)
        except Mismatch as err:
            raise ValidationError(str(err)) from err.__cause__

    def decode(self, data: Any) -> Any:
        """
        Return the value in a frame or in a `Raw`.

        Raises:
            ValidationError: Not of this type.
            DecodeError: Not msgpack.
        """
        obj = data.value if type(data) is Raw else _unpack(data)
        try:
            return self._convert(obj)
        except RecursionError:
            return deeply(self._convert_checked, obj)
        except Mismatch as err:
            raise ValidationError(str(err)) from err.__cause__


def encode(obj: Any, *, enc_hook: EncHook | None = None) -> bytes:
    """Return an object as msgpack."""
    return _pack(_plain(obj, enc_hook))


def decode(
    data: Any,
    *,
    type: Any = Any,  # noqa: A002
    dec_hook: DecHook | None = None,
) -> Any:
    """Return the value in a frame or in a `Raw`."""
    return Decoder(type, dec_hook=dec_hook).decode(data)


def _plain(obj: Any, enc_hook: EncHook | None) -> Any:
    """Return plain data, however deeply it is nested."""
    try:
        return to_builtins(obj, enc_hook)
    except RecursionError:
        return deeply(to_builtins, obj, enc_hook)


def _pack(plain: Any) -> bytes:
    # Most actors of one process talk only to each other, without this.
    import msgpack  # type: ignore[import-untyped,unused-ignore]

    def ext_type(obj: Any) -> Any:
        if type(obj) is Ext:
            return msgpack.ExtType(obj.code, bytes(obj.data))
        raise TypeError(f'Encoding objects of type {type(obj).__name__} is unsupported')

    try:
        packed: bytes = msgpack.packb(plain, default=ext_type, datetime=True)
    except (RecursionError, ValueError):  # it says no more of what is too deep
        packer = msgpack.Packer(default=ext_type, datetime=True, autoreset=False)
        packed = _pack_nested(packer, plain)
    return packed


def _pack_nested(packer: Any, plain: Any) -> bytes:
    """Pack one value after the other; what is open waits in a list."""
    opened: list[Iterator[Any]] = [iter((plain,))]
    while opened:
        for each in opened[-1]:
            if type(each) is dict:
                packer.pack_map_header(len(each))
                opened.append(chain.from_iterable(each.items()))
                break
            if type(each) in (list, tuple):
                packer.pack_array_header(len(each))
                opened.append(iter(each))
                break
            packer.pack(each)
        else:
            opened.pop()
    packed: bytes = packer.bytes()
    return packed


def _unpack(frame: Any) -> Any:
    # As above.
    import msgpack  # type: ignore[import-untyped,unused-ignore]

    options: dict[str, Any] = {
        'object_pairs_hook': _dict_of_pairs,
        'ext_hook': Ext,
        'strict_map_key': False,
        'timestamp': 3,
    }
    try:
        try:
            return msgpack.unpackb(frame, **options)
        except (msgpack.StackError, RecursionError):
            unpacker = msgpack.Unpacker(max_buffer_size=len(frame), **options)
            return deeply(_unpack_nested, unpacker, frame)
    except (
        ValueError,
        TypeError,
        OverflowError,
        msgpack.UnpackException,
    ) as err:
        raise DecodeError(f'no valid msgpack: {err or type(err).__name__}') from err


def _unpack_nested(unpacker: Any, frame: Any) -> Any:
    """Unpack one value after the other; what is open waits in a list."""
    unpacker.feed(frame)
    opened: list[tuple[list[Any], int, bool]] = [([], 1, False)]
    while True:
        items, size, is_map = opened[-1]
        if len(items) < size:
            at = unpacker.tell()
            kind = frame[at] if at < len(frame) else None
            if kind in _ARRAYS:
                opened.append(([], unpacker.read_array_header(), False))
            elif kind in _MAPS:
                opened.append(([], 2 * unpacker.read_map_header(), True))
            else:
                items.append(unpacker.unpack())
            continue
        opened.pop()
        if not opened:
            break
        pairs = zip(items[::2], items[1::2], strict=True)
        opened[-1][0].append(_dict_of_pairs(pairs) if is_map else items)
    if unpacker.tell() != len(frame):
        raise ValueError('more follows')
    return items[0]


def _dict_of_pairs(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    return {freeze(key): value for key, value in pairs}
