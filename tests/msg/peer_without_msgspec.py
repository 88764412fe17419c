"""
The other end of a link, without msgspec: payload types, and a loop that answers.

Loaded by path under one name on both sides, so that payloads can be pickled to it.
"""

from __future__ import annotations

import pickle
from enum import Enum
from typing import Any

from tractor.msg import Raw, Struct, ValidationError, Yield, current_codec, mk_dec
from tractor.msg._marshal import dumper, loader


class Colour(Enum):
    RED = 'red'
    BLUE = 'blue'


class Point(Struct):
    x: Any
    label: str = 'none'


class Tagged(Struct, tag=True, frozen=True):
    items: list[Any]


def written(payload: Any) -> bytes:
    """Return the frame that a side writes for a payload."""
    return dumper(current_codec())(Yield('c', payload))


def read(frame: bytes, spec: Any = Any) -> Any:
    """Return the payload that a side gets of a frame."""
    msg = loader(current_codec())(frame)
    assert (type(msg), msg.cid, type(msg.pld)) == (Yield, 'c', Raw)
    return mk_dec(spec).decode(msg.pld)


def written_nested(depth: int) -> bytes:
    """Return the frame that a side writes for lists in each other."""
    payload: list[Any] = []
    for _ in range(depth):
        payload = [payload]
    return written(payload)


def depth_of(frame: bytes) -> int:
    """Return how many lists in each other a side gets of a frame."""
    payload, depth = read(frame), 0
    while payload:
        (payload,) = payload
        depth += 1
    return depth


def read_messages(frames: list[bytes]) -> list[Any]:
    """Return the messages in some frames, read one after the other."""
    return [*map(loader(current_codec()), frames)]


def why_refused(frame: bytes) -> str:
    """Return what the error of a frame says."""
    try:
        return repr(loader(current_codec())(frame))
    except ValidationError as err:
        return str(err)


def serve(inbound: int, outbound: int) -> None:
    """Answer `(name of a function, its arguments)` until the descriptor is closed."""
    with open(inbound, 'rb') as requests, open(outbound, 'wb') as answers:
        while True:
            try:
                name, args = pickle.load(requests)
            except EOFError:
                return
            try:
                answer = (True, globals()[name](*args))
            except Exception as err:
                answer = (False, type(err).__name__)
            pickle.dump(answer, answers)
            answers.flush()


def library() -> str:
    """Return the name of what stands for msgspec here."""
    return current_codec().lib.__name__
