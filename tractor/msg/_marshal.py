"""
The codec of the link between two interpreters of one process.

A frame is a message as plain data, written by `marshal`: as fast as `msgspec`, which
an isolated interpreter cannot load, and safe where both ends are the same program.  A
side with `msgspec` goes through msgpack in memory, a side without makes and reads plain
data itself, so that a payload arrives with the same values and types as over msgpack.

`marshal` does not know times and extension values, and gives up on deep nesting.  Such
a message goes as msgpack, in a frame that holds bytes instead of a dict.
"""

from __future__ import annotations

import marshal
from typing import Any, Final

from tractor.msg._codec import DecodeError, MsgCodec, decode_any

# The last version that writes each value where it stands: later ones would make one
# object of a list that occurs twice.  It is also the fastest.
_VERSION: Final = 2

_dumps: Final = marshal.dumps
_loads: Final = marshal.loads


def dumps_into(codec: MsgCodec, msg: Any, buffer: bytearray, offset: int = 0) -> None:
    """
    Write a message's frame into a buffer, which ends behind it.

    Args:
        offset: Where the frame begins; what is before it stays.
    Raises:
        TypeError: A value that cannot be encoded.
        OverflowError: An integer that has no 64 bits.
        ValueError: A text that has no UTF-8.
    """
    try:
        frame = _dumps(codec.to_builtins(msg), _VERSION)
    except UnicodeError:
        raise
    except ValueError:
        frame = _dumps(codec.encode(msg), _VERSION)
    buffer[offset:] = frame


def loads(codec: MsgCodec, frame: bytes | bytearray | memoryview) -> Any:
    """
    Return the message in a frame.

    Raises:
        ValidationError: Not one of the messages.
        DecodeError: No frame of `dumps_into()`.
    """
    obj = _read(frame)
    return codec.decode(obj) if type(obj) is bytes else codec.from_builtins(obj)


def plain(frame: bytes | bytearray | memoryview) -> Any:
    """
    Return what is in a frame, without a type: structs as dicts, tuples as lists.

    Raises:
        DecodeError: No frame of `dumps_into()`.
    """
    obj = _read(frame)
    return decode_any(obj) if type(obj) is bytes else obj


def _read(frame: bytes | bytearray | memoryview) -> Any:
    try:
        return _loads(frame)
    except (EOFError, TypeError, ValueError) as err:
        raise DecodeError(f'no valid frame of {len(frame)} bytes: {err}') from err
