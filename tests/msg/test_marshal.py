"""The codec of the link within a process: a side with msgspec and one without."""

from __future__ import annotations

import marshal
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tractor._code_load import load_module_from_path
from tractor.msg import (
    Aid,
    CancelAck,
    Error,
    SpawnSpec,
    Start,
    StartAck,
    Stop,
    Yield,
    current_codec,
    decode_any,
)
from tractor.msg._marshal import dumper, loader, plain

PATH = Path(__file__).with_name('peer_without_msgspec.py')
# The peer needs `msgpack` for what marshal cannot write, and has it from 3.14 on.
HAS_MSGPACK = sys.version_info >= (3, 14)
WAIT = 20.0  # seconds

Ask = Callable[..., tuple[bool, Any]]


here = load_module_from_path(PATH)


def peer_code(inbound: int, outbound: int) -> str:
    """Return what the other side runs."""
    return (
        'import sys\n'
        f'sys.path[:] = {sys.path!r}\n'
        'from tractor._code_load import load_module_from_path\n'
        f'load_module_from_path({str(PATH)!r}).serve({inbound}, {outbound})\n'
    )


@contextmanager
def open_process(inbound: int, outbound: int) -> Iterator[None]:
    """Run the other side in a process that cannot load msgspec."""
    code = "import sys; sys.modules['msgspec'] = None\n" + peer_code(inbound, outbound)
    fds = inbound, outbound
    with subprocess.Popen([sys.executable, '-c', code], pass_fds=fds) as process:
        for fd in fds:
            os.close(fd)
        yield
    assert process.returncode == 0


@contextmanager
def open_interpreter(inbound: int, outbound: int) -> Iterator[None]:
    """Run the other side in an isolated interpreter, where msgspec refuses to load."""
    import _interpreters

    config = _interpreters.new_config('isolated', allow_daemon_threads=True)
    made = _interpreters.create(config, reqrefs=False)
    failed: list[Any] = []

    def run() -> None:
        failed.append(_interpreters.exec(made, peer_code(inbound, outbound)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(WAIT)
        _interpreters.destroy(made)
    assert failed == [None]


@contextmanager
def open_peer(kind: str) -> Iterator[Ask]:
    """Run the other side; yields what calls a function of it by name."""
    to_peer, inbound = os.pipe()[::-1]
    outbound, from_peer = os.pipe()[::-1]
    opened = open_process if kind == 'process' else open_interpreter
    with opened(inbound, outbound):
        with open(to_peer, 'wb') as requests, open(from_peer, 'rb') as answers:

            def ask(name: str, *args: Any) -> tuple[bool, Any]:
                pickle.dump((name, args), requests)
                requests.flush()
                answer: tuple[bool, Any] = pickle.load(answers)
                return answer

            yield ask


def typed(obj: Any) -> Any:
    """Return an object with every type in it, so that `1` is not `True`."""
    if type(obj) is dict:
        return dict, [(typed(key), typed(value)) for key, value in obj.items()]
    if type(obj) in (list, tuple):
        return type(obj), [typed(each) for each in obj]
    return type(obj), obj


def over_msgpack(payload: Any) -> tuple[bool, Any]:
    """Return what arrives of a payload between two sides with msgspec, or its error."""
    codec = current_codec()
    try:
        return True, decode_any(codec.decode(codec.encode(Yield('c', payload))).pld)
    except Exception as err:
        return False, type(err).__name__


def attempt(function: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
    try:
        return True, function(*args)
    except Exception as err:
        return False, type(err).__name__


def aware_times() -> st.SearchStrategy[datetime]:
    zones = st.sampled_from([UTC, timezone(timedelta(hours=5))])
    return st.datetimes(timezones=zones) if HAS_MSGPACK else st.nothing()


KEYS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=5)),
    *(st.binary(max_size=5), st.tuples(st.integers(0, 5), st.text(max_size=2))),
    *(st.sampled_from(here.Colour), st.frozensets(st.booleans(), max_size=1)),
)
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.text(max_size=5)),
    *(st.floats(allow_nan=False), st.binary(max_size=9), st.sampled_from(here.Colour)),
    *(st.datetimes(), aware_times(), st.dates(), st.timedeltas(), st.uuids()),
    st.sampled_from([1j, ..., '\ud800', object, bytearray(b'x'), range(2)]),
)
PAYLOADS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.integers(-5, 5), min_size=10, max_size=20),
        st.lists(st.text(max_size=3), min_size=10, max_size=20),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        # Of one member, since the order of more is each interpreter's own.
        st.frozensets(KEYS, max_size=1),
        st.builds(here.Point, inner),
        st.builds(here.Tagged, st.lists(inner, max_size=3)),
    ),
    max_leaves=12,
)


KINDS = [
    'process',
    pytest.param(
        'interpreter',
        marks=pytest.mark.skipif(
            sys.version_info < (3, 14), reason='isolated interpreters need Python 3.14'
        ),
    ),
]


@pytest.mark.parametrize('kind', KINDS)
def test_payloads_arrive_as_over_msgpack(kind):
    """In both directions the same values and types arrive, and the same is refused."""
    with open_peer(kind) as ask:
        assert ask('library') == (True, 'tractor.msg._fallback')

        @settings(max_examples=200, deadline=None, derandomize=True, database=None)
        @given(PAYLOADS)
        def check(payload: Any) -> None:
            expected = over_msgpack(payload)
            ours, theirs = attempt(here.written, payload), ask('written', payload)
            if not expected[0]:
                assert ours == theirs == expected
                return
            for done, frame in (ours, theirs):
                assert done, frame
                assert typed(here.read(frame)) == typed(expected[1])
                assert typed(ask('read', frame)[1]) == typed(expected[1])
                assert typed(plain(frame)['pld']) == typed(expected[1])

        check()


@pytest.mark.parametrize('kind', KINDS)
def test_typed_payloads(kind):
    """A payload becomes the same struct on either side, or is refused on both."""
    spec = list[here.Point | int] | here.Tagged
    with open_peer(kind) as ask:
        for payload in ([here.Point([1]), 1], here.Tagged([1]), ['x']):
            frame = here.written(payload)
            mine, other = attempt(here.read, frame, spec), ask('read', frame, spec)
            assert mine == other
            refused = payload == ['x']
            assert mine == (not refused, 'ValidationError' if refused else payload)


def frame_of(msg: Any) -> bytes:
    return dumper(current_codec())(msg)


def message_in(frame: bytes) -> Any:
    return loader(current_codec())(frame)


MESSAGES = [
    Aid('a', 'b', 5, None, True),
    SpawnSpec({'a': [1]}, {'b': [1]}, {'m': 'f.py'}, [('h', 1)], None),
    Start('c', 'm', 'f', {'a': {'b': None}}, ('name', 'uuid'), 'int'),
    StartAck('c', 'context'),
    Stop('c'),
    CancelAck('c', True),
    Error(('a', 'b'), 'X', 'X', [('a', 'b'), ('c', 'd')], canceller=('c', 'd')),
]


@pytest.mark.parametrize('kind', KINDS)
def test_every_message_arrives(kind):
    """The first of its kind as well as later ones, as a row or by the fields' names."""
    rows = [frame_of(msg) for msg in MESSAGES]
    assert {type(marshal.loads(row)) for row in rows} == {tuple}
    dicts = [marshal.dumps(plain(row), 2) for row in rows]
    with open_peer(kind) as ask:
        for frames in (rows, rows * 2, dicts):
            done, arrived = ask('read_messages', frames)
            assert done, arrived
            assert [msgspec.to_builtins(msg) for msg in arrived] == [
                msgspec.to_builtins(msg) for msg in MESSAGES * (len(frames) // 7)
            ]
    assert [message_in(row) for row in rows] == MESSAGES


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('row', 'why'),
    [
        ((), 'Expected `object`, got `array`'),
        (('Nope', 'c'), 'Expected `object`, got `array`'),
        (([], 'c'), 'Expected `object`, got `array`'),
        (('Yield', 'c'), 'Object missing required field `pld`'),
        (('Stop', 5), 'Expected `str`, got `int` - at `$.cid`'),
        (
            ('Start', 'c', 'm', 'f', {1: 2}, ['a', 'b'], ''),
            'Expected `str`, got `int` - at `key` in `$.kwargs`',
        ),
    ],
    ids=str,
)
def test_rows_that_are_no_message(kind, row, why):
    """Either side says what is wrong and where."""
    frame = marshal.dumps(row, 2)
    with pytest.raises(msgspec.ValidationError) as caught:
        message_in(frame)
    assert str(caught.value) == why
    with open_peer(kind) as ask:
        good = frame_of(Yield('c', 1)), frame_of(Stop('c')), frame_of(MESSAGES[2])
        ask('read_messages', [*good])
        assert ask('why_refused', frame) == (True, why)


def test_a_list_that_occurs_twice_arrives_as_two():
    """As over msgpack: who changes one does not change the other."""
    shared = [1]
    frame = frame_of(Yield('c', [shared, shared]))
    first, second = plain(frame)['pld']
    assert first == second
    assert first is not second


@pytest.mark.parametrize(
    'payload',
    [datetime(2020, 1, 1, tzinfo=UTC), msgspec.msgpack.Ext(5, b'x')],
    ids=['time', 'extension'],
)
def test_what_marshal_cannot_write_goes_as_msgpack(payload):
    """The frame then holds bytes, and is read as any other."""
    frame = frame_of(Yield('c', [payload]))
    assert type(marshal.loads(frame)) is bytes
    arrived = decode_any(message_in(frame).pld)
    assert typed(arrived[0])[0] is type(payload)
    assert plain(frame)['cid'] == 'c'


@pytest.mark.skipif(not HAS_MSGPACK, reason='only there the peer can read it')
@pytest.mark.parametrize('kind', KINDS)
def test_deep_nesting(kind):
    """Deeper than marshal goes, msgpack carries it, in both directions."""
    with open_peer(kind) as ask:
        for depth in (400, 800, 1500, 2500, 9000):
            ours, theirs = here.written_nested(depth), ask('written_nested', depth)
            assert theirs[0], depth
            for frame in (ours, theirs[1]):
                assert ask('depth_of', frame) == (True, depth)
                assert here.depth_of(frame) == depth


@pytest.mark.parametrize(
    'frame',
    [
        *(
            b'',
            b'\xff',
            b'garbage',
            marshal.dumps(b'\xc1', 2),
            frame_of(Stop('c'))[:-2],
        ),
        marshal.dumps({'msg_type': 'Yield', 'cid': 'c', 'pld': ...}, 2),
    ],
    ids=repr,
)
def test_broken_frames(frame):
    """They are decode errors, and never a message."""
    with pytest.raises(msgspec.DecodeError):
        message_in(frame)


@pytest.mark.parametrize('content', [1, [], {'msg_type': 'Nope'}, {'cid': 'c'}])
def test_frames_that_hold_no_message(content):
    """They are validation errors; what they hold can be shown."""
    frame = marshal.dumps(content, 2)
    with pytest.raises(msgspec.ValidationError):
        message_in(frame)
    assert plain(frame) == content


@pytest.mark.skipif(sys.version_info < (3, 13), reason='marshal cannot refuse it')
def test_code_is_refused():
    """A frame carries data only."""
    frame = marshal.dumps({'msg_type': 'Stop', 'cid': frame_of.__code__})
    with pytest.raises(msgspec.DecodeError, match='code'):
        message_in(frame)


def test_messages_keep_their_types():
    """Fields that are tuples arrive as such, payloads undecoded."""
    start = Start('c', 'm', 'f', {'a': (1, 2)}, ('name', 'uuid'))
    assert message_in(frame_of(start)) == Start(
        'c', 'm', 'f', {'a': [1, 2]}, ('name', 'uuid')
    )


@pytest.mark.parametrize(
    ('payload', 'error'),
    [(1j, TypeError), (2**64, OverflowError), ('\ud800', UnicodeEncodeError)],
)
def test_unsendable_payloads(payload, error):
    """They are refused as the channel's encoder refuses them."""
    with pytest.raises(error):
        frame_of(Yield('c', payload))
