"""Frames: any split of any frames, and nothing kept for a frame that is too long."""

from __future__ import annotations

import pickle
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tractor._protocol import framing
from tractor._protocol.framing import FrameReader, FrameTooLong, frame


@st.composite
def chunked_frames(draw):
    """Payloads, and the bytes of their frames cut anywhere."""
    sizes = st.one_of(st.integers(0, 12), st.sampled_from([300, 5000, 20_000]))
    payloads = [bytes(draw(sizes)) for _ in range(draw(st.integers(0, 6)))]
    payloads = [bytes([i]) + p if p else p for i, p in enumerate(payloads)]
    stream = b''.join(map(frame, payloads))
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(edges)]
    return payloads, chunks


@settings(deadline=None)  # the machine may be busy
@given(chunked_frames())
def test_any_split_of_any_frames(case):
    """However the stream is cut, the same frames come out in order."""
    payloads, chunks = case
    reader = FrameReader()
    got = [payload for chunk in chunks for payload in reader.feed(chunk)]
    assert got == payloads
    assert all(type(payload) is bytes for payload in got)
    assert not reader.mid_frame
    assert reader.wanted == 0


@settings(deadline=None)  # the machine may be busy
@given(chunked_frames())
def test_wanted_never_reaches_beyond_the_frame(case):
    """Feeding exactly `wanted` bytes completes a prefix or a payload, never more."""
    payloads, chunks = case
    stream, reader, got = b''.join(chunks), FrameReader(), []
    while stream:
        size = reader.wanted or framing.PREFIX_SIZE
        got += reader.feed(stream[:size])
        stream = stream[size:]
    assert got == payloads


def test_format():
    """The prefix is four bytes, little-endian."""
    assert frame(b'abc') == b'\x03\0\0\0abc'
    assert framing.PREFIX_SIZE == 4
    assert framing.DEFAULT_MAX_FRAME == 256 * 2**20


def test_byte_by_byte():
    """`wanted` counts down through prefix and payload, and `mid_frame` follows it."""
    reader = FrameReader()
    assert not reader.mid_frame
    seen = []
    for i, byte in enumerate(frame(b'abc')):
        frames = reader.feed(bytes([byte]))
        seen.append(reader.wanted)
        assert reader.mid_frame == (i < 6)
    assert seen == [3, 2, 1, 3, 2, 1, 0]
    assert frames == [b'abc']


def test_empty_chunk_changes_nothing():
    """An empty chunk is no frame and no progress, wherever it comes."""
    reader = FrameReader()
    assert reader.feed(b'') == []
    reader.feed(b'\x02')
    assert reader.feed(b'') == []
    assert reader.wanted == 3
    reader.feed(b'\0\0\0x')
    assert reader.feed(b'') == []
    assert reader.wanted == 1
    assert reader.feed(b'y') == [b'xy']


def test_empty_payload():
    """A frame may be empty."""
    assert FrameReader().feed(frame(b'') * 3) == [b''] * 3


def test_end_of_one_frame_with_start_of_the_next():
    """One chunk may finish a frame, hold another and begin a third."""
    reader = FrameReader()
    reader.feed(frame(b'a' * 100)[:50])
    tail = frame(b'a' * 100)[50:] + frame(b'b') + frame(b'c' * 9)[:6]
    assert reader.feed(tail) == [b'a' * 100, b'b']
    assert reader.wanted == 7


@pytest.mark.parametrize('split', [1, 2, 3, 4, 5])
def test_too_long_as_soon_as_the_prefix_is_known(split):
    """The fourth byte of the prefix raises, not the payload; and so does all after."""
    reader = FrameReader(limit=10)
    data = frame(b'x' * 11)
    if split < framing.PREFIX_SIZE:
        assert reader.feed(data[:split]) == []
        data = data[split : framing.PREFIX_SIZE]
    with pytest.raises(FrameTooLong) as info:
        reader.feed(data)
    assert (info.value.length, info.value.limit) == (11, 10)
    for later in (b'', frame(b'ok')):
        with pytest.raises(FrameTooLong):
            reader.feed(later)


def test_limit_itself_is_allowed():
    """A frame as long as the limit passes."""
    assert FrameReader(limit=10).feed(frame(b'x' * 10)) == [b'x' * 10]


def test_nothing_is_allocated_from_the_prefix():
    """A prefix that announces 4 GiB within a lax limit costs nothing."""
    reader = FrameReader(limit=2**32)
    assert reader.feed(b'\xff\xff\xff\xff' + b'x') == []
    assert reader.wanted == 2**32 - 2
    assert sum(map(sys.getsizeof, reader._chunks)) < 1000


def test_dripping_frame_stays_near_its_size():
    """A frame that comes in tiny pieces is not kept as one object per piece."""
    reader = FrameReader()
    payload = bytes(range(250)) * 40
    data = frame(payload)
    for i in range(0, len(data) - 3, 3):
        assert reader.feed(data[i : i + 3]) == []
    assert sum(map(sys.getsizeof, reader._chunks)) < 2 * len(payload)
    rest = len(data) - reader.wanted
    assert reader.feed(data[rest:]) == [payload]


def test_small_and_large_pieces_keep_their_order():
    """Pieces of all sizes of one frame are joined in the order they came."""
    payload = bytes(i % 251 for i in range(40_000))
    data, reader, got, at = frame(payload), FrameReader(), [], 0
    for size in (10, 7, 9000, 3, 5, 5000, 4096, 4095, 1, 30_000):
        got += reader.feed(data[at : at + size])
        at += size
    assert got == [payload]


def test_error_text_names_the_remedy_and_survives_pickling():
    """The text is one line with both numbers and the variable that helps."""
    err = pickle.loads(pickle.dumps(FrameTooLong(300, 200)))
    assert (err.length, err.limit) == (300, 200)
    assert '300' in str(err)
    assert '200' in str(err)
    assert 'TRACTOR_MAX_FRAME' in str(err)
    assert '\n' not in str(err)


def test_payload_beyond_the_prefix():
    """A payload whose length needs five bytes is refused by name."""

    class Huge(bytes):
        def __len__(self):
            return 2**32

    with pytest.raises(FrameTooLong):
        frame(Huge())
