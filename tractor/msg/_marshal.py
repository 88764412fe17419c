"""
The codec of the link between two interpreters of one process.

A frame is a message as plain data, written by `marshal`: as fast as `msgspec`, which
an isolated interpreter cannot load, and safe where both ends are the same program.  A
side with `msgspec` goes through msgpack in memory, a side without makes and reads plain
data itself, so that a payload arrives with the same values and types as over msgpack.

A side with `msgspec` writes a message as a *row*, a tuple of its tag and of all its
fields in order, which the side without reads with a third of the work.  What that one
writes is a dict, since a row would cost the reader what it saves the writer.

`marshal` does not know times and extension values, and gives up on deep nesting.  Such
a message goes as msgpack, in a frame that holds bytes.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable
from typing import Any, Final

from tractor.msg._codec import DecodeError, MsgCodec, _any_decoder, decode_any
from tractor.msg.pretty_struct import HAS_MSGSPEC
from tractor.msg.types import __msg_types__

# The last version that writes each value where it stands: later ones would make one
# object of a list that occurs twice.  It is also the fastest.
_VERSION: Final = 2

_dumps: Final = marshal.dumps
_loads: Final = marshal.loads
_decode_any: Final = _any_decoder.decode

# A message's tag -> the names of what is in its row.
_NAMES: Final[dict[Any, tuple[str | None, ...]]] = {
    cls.__struct_config__.tag: (cls.__struct_config__.tag_field, *cls.__struct_fields__)
    for cls in __msg_types__
}


def dumper(codec: MsgCodec) -> Callable[[Any], bytes]:
    """
    Return what makes frames of messages; make one for many of them.

    It raises:
        TypeError: A value that cannot be encoded.
        OverflowError: An integer that has no 64 bits.
        ValueError: A text that has no UTF-8.
    """
    enc: Any = codec._enc
    encode, hook = enc.encode, enc.enc_hook
    to_plain = {} if HAS_MSGSPEC else enc.to_plain

    def dump(msg: Any) -> bytes:
        try:
            if HAS_MSGSPEC:
                data = _decode_any(encode(msg))
                # Only who insists on sending something else has no dict here.
                if type(data) is dict:
                    data = (*data.values(),)
            else:
                data = to_plain[type(msg)](msg, hook)
            return _dumps(data, _VERSION)
        except UnicodeError:
            raise
        except (ValueError, RecursionError):
            return _dumps(encode(msg), _VERSION)

    return dump


def loader(codec: MsgCodec) -> Callable[[bytes], Any]:
    """
    Return what makes messages of frames; make one for many of them.

    It raises:
        ValidationError: Not one of the messages.
        DecodeError: No frame of a `dumper()`.
    """
    dec: Any = codec._dec
    from_builtins = codec.from_builtins if HAS_MSGSPEC else dec.from_builtins
    rows: dict[Any, Callable[[Any], Any]] = {} if HAS_MSGSPEC else dec.rows

    def load(frame: bytes) -> Any:
        try:
            obj = _loads(frame)
        except (EOFError, TypeError, ValueError) as err:
            raise _broken(frame, err) from err
        if type(obj) is tuple:
            try:
                return rows[obj[0]](obj)
            except (LookupError, TypeError, ValueError):
                # By the fields' names it can be told what is wrong.
                return from_builtins(_named(obj))
        return dec.decode(obj) if type(obj) is bytes else from_builtins(obj)

    return load


def plain(frame: bytes, decode: Callable[[bytes], Any] = decode_any) -> Any:
    """
    Return what is in a frame, without a type: structs as dicts, tuples as lists.

    Args:
        decode: The same for msgpack.
    Raises:
        DecodeError: No frame of a `dumper()`.
    """
    try:
        obj = _loads(frame)
    except (EOFError, TypeError, ValueError) as err:
        raise _broken(frame, err) from err
    if type(obj) is bytes:
        return decode(obj)
    return _named(obj) if type(obj) is tuple else obj


def _named(row: tuple[Any, ...]) -> Any:
    """Return a row as the dict it stands for; as a list if it is no message's."""
    if not row or type(row[0]) is not str or row[0] not in _NAMES:
        return [*row]
    return dict(zip(_NAMES[row[0]], row, strict=False))


def _broken(frame: bytes, why: Exception) -> DecodeError:
    return DecodeError(f'no valid frame of {len(frame)} bytes: {why}')
