"""
Bytes of a stream to frames and back.

A frame is its payload's length as four bytes, little-endian and unsigned, and
the payload.  Nothing is ever allocated from the announced length: a small frame
is a slice of the chunk it came in, a large one is collected as the chunks come
and joined once.  A transport feeds a `FrameReader` whatever its stream returns;
this is the hot receive path.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

PREFIX_SIZE: Final = 4
DEFAULT_MAX_FRAME: Final = 256 * 1024 * 1024

_PREFIX: Final = Struct('<I')
_LARGEST: Final = 2**32 - 1

# Chunks below this size are collected in one growing buffer: kept apart, a frame
# that drips in would take many times its size.
_SMALL_CHUNK: Final = 4096


class FrameTooLong(Exception):
    """A frame above the limit; the stream cannot be read any further."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(length, limit)
        self.length, self.limit = length, limit

    def __str__(self) -> str:
        return (
            f'frame of {self.length} bytes is above the limit of {self.limit};'
            ' send less at once or raise TRACTOR_MAX_FRAME'
        )


def frame(payload: bytes) -> bytes:
    """
    Return a payload as one frame.

    Raises:
        FrameTooLong: The length does not fit into the prefix.
    """
    length = len(payload)
    if length > _LARGEST:
        raise FrameTooLong(length, _LARGEST)
    return _PREFIX.pack(length) + payload


class FrameReader:
    """
    Cut a stream of bytes into frames.

    Attributes:
        wanted: Bytes still missing of the current frame, or of its prefix while that
            is incomplete; 0 between frames.  A hint for the size of the next read.
    """

    __slots__ = ('_chunks', '_failed', '_head', '_limit', 'wanted')

    def __init__(self, limit: int = DEFAULT_MAX_FRAME) -> None:
        self._limit = limit
        self._head = b''  # of a prefix that is cut
        self._chunks: list[bytes | bytearray] = []  # of a payload that is cut
        self._failed: int | None = None  # length of a frame that was too long
        self.wanted = 0

    @property
    def mid_frame(self) -> bool:
        """Whether an end of the stream now would cut a frame."""
        return self.wanted != 0

    def feed(self, data: bytes) -> list[bytes]:
        """
        Return all frames that are complete with this chunk, in order.

        Raises:
            FrameTooLong: A prefix announces more than the limit; from then on always.
        """
        if self._failed is not None:
            raise FrameTooLong(self._failed, self._limit)
        frames: list[bytes] = []
        start = 0
        if self._chunks:
            start = self._collect(data, frames)
        elif self._head:
            data, self._head = self._head + data, b''

        end = len(data)
        limit, unpack = self._limit, _PREFIX.unpack_from
        while (body := start + PREFIX_SIZE) <= end:
            (length,) = unpack(data, start)
            if length > limit:
                self._failed = length
                raise FrameTooLong(length, limit)
            stop = body + length
            if stop > end:
                self._chunks.append(data[body:])
                self.wanted = stop - end
                return frames
            frames.append(data[body:stop])
            start = stop
        if start < end:
            self._head = data[start:]
            self.wanted = body - end
        elif not self._chunks:
            self.wanted = 0
        return frames

    def _collect(self, data: bytes, frames: list[bytes]) -> int:
        """Add to the frame under way; return how much of `data` belongs to it."""
        chunks, wanted = self._chunks, self.wanted
        size = len(data)
        if size < _SMALL_CHUNK and size < wanted:
            if isinstance(last := chunks[-1], bytearray):
                last += data
            else:
                chunks.append(bytearray(data))
        else:
            chunks.append(data if size <= wanted else data[:wanted])
        if size < wanted:
            self.wanted = wanted - size
            return size
        frames.append(b''.join(chunks))
        self._chunks = []
        self.wanted = 0
        return wanted
