"""Errors: their texts, their wire form, what they tell of a message that is wrong."""

from __future__ import annotations

import pickle

import pytest

from tractor._boxing import pack_error, pack_from_raise, unpack_error
from tractor._exceptions import ContextCancelled, MsgTypeError, RemoteActorError
from tractor.msg.types import Aid, Error, Yield

AS_DICT = {'msg_type': 'Yield', 'cid': 'c1', 'pld': 5}


def wire(cid, tb_str=''):
    return Error(
        src_uid=('a', 'u'),
        src_type_str='MsgTypeError',
        boxed_type_str='MsgTypeError',
        relay_path=[('a', 'u')],
        tb_str=tb_str,
        cid=cid,
    )


@pytest.mark.parametrize(
    ('data', 'cid'),
    [
        ({'_bad_msg': Yield('c1', pld=5)}, 'c1'),
        ({'_bad_msg_as_dict': AS_DICT}, 'c1'),
        ({'ipc_msg': wire('c1')}, 'c1'),
        ({'cid': 'c1'}, 'c1'),
        ({'ipc_msg': wire(None), 'cid': 'c1'}, 'c1'),
        ({'_bad_msg': Yield('c1', pld=5), 'cid': 'c2'}, 'c1'),
        ({'_bad_msg': Aid('a', 'u'), 'cid': 'c1'}, 'c1'),
    ],
)
def test_the_context_of_a_wrong_message(data, cid):
    """The message tells it, else the data that came with the error."""
    error = MsgTypeError('bad', **data)
    assert error.cid == cid
    assert pickle.loads(pickle.dumps(error)).cid == cid


@pytest.mark.parametrize('data', [{}, {'ipc_msg': wire(None)}, {'cid': None}])
def test_a_wrong_message_of_no_context(data):
    """Nothing tells it: then it is `None`, as of any boxed error."""
    error = MsgTypeError('bad', **data)
    assert error.cid is None
    assert 'bad' in repr(error)


def test_the_expected_type_is_that_of_the_wrong_message():
    """Without a message it is that of `None`, which is not worth showing."""
    error = MsgTypeError('bad', _bad_msg=Yield('c1', pld=5))
    assert error.expected_msg_type is Yield
    assert 'expected_msg_type=' in repr(error)
    assert MsgTypeError('bad', _bad_msg_as_dict=AS_DICT).expected_msg_type is Yield
    error = MsgTypeError('bad', ipc_msg=wire('c1'))
    assert error.bad_msg is None
    assert error.expected_msg_type is type(None)
    assert 'expected_msg_type' not in repr(error)


@pytest.mark.parametrize(
    'error',
    [
        ValueError('x'),
        BaseExceptionGroup('x', [KeyboardInterrupt()]),
        MsgTypeError('x'),
    ],
)
def test_an_error_is_packed_as_if_a_peer_had_raised_it(error):
    """Of whatever type it is; the fields given win."""
    msg = pack_from_raise(error, cid='c1', src_uid=('b', 'v'))
    assert msg.boxed_type_str == type(error).__name__
    assert (msg.cid, msg.src_uid) == ('c1', ('b', 'v'))
    assert 'in pack_from_raise' in msg.tb_str


RENDERED = {
    'local': RemoteActorError('one\ntwo'),
    'received': RemoteActorError('one', ipc_msg=wire('c1', tb_str='trace')),
    'ctxc': ContextCancelled('one', canceller=('a', 'u')),
    'empty': RemoteActorError(''),
}


@pytest.mark.parametrize('name', RENDERED)
def test_an_error_has_one_text_behind_its_type(name):
    """`repr()` is `pformat()`, `str()` the same without the type, raised or not."""
    error = RENDERED[name]
    text = error.pformat()
    assert text == repr(error)
    assert text.startswith(f'<{type(error).__name__}(')
    assert error.pformat(with_type_header=False) == str(error)
    assert str(error) in text
    try:
        raise error
    except RemoteActorError:
        assert error.pformat() == repr(error) == text


@pytest.mark.parametrize(
    'source',
    [
        ValueError('x'),
        ExceptionGroup('many', [ValueError('x')]),
        BaseExceptionGroup('many', [KeyboardInterrupt()]),
        UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'bad'),
        UnicodeEncodeError('ascii', 'é', 0, 1, 'bad'),
        UnicodeTranslateError('é', 0, 1, 'bad'),
    ],
)
def test_unwrapping_gives_the_source_type(source):
    """Also a type that is not made from one string; the text is the traceback."""
    boxed = unpack_error(pack_error(source, cid='c1', tb_str='the trace'))
    made = boxed.unwrap()
    assert type(made) is type(source)
    assert 'the trace' in str(made)
    assert made is not boxed.unwrap()


def test_unwrapping_keeps_the_trace_of_a_child_that_died():
    """No text makes an `ActorDied`, and none is taken for the name of an actor."""
    made = RemoteActorError('x', src_type_str='ActorDied', tb_str='trace').unwrap()
    assert type(made) is RuntimeError
    assert str(made) == 'ActorDied: trace'


def test_unwrapping_what_is_unknown_gives_a_runtime_error():
    """It names the type, if there was one, and tells what happened."""
    made = RemoteActorError('x', src_type_str='Foreign', tb_str='trace').unwrap()
    assert type(made) is RuntimeError
    assert str(made) == 'Foreign: trace'
    made = RemoteActorError('x').unwrap()
    assert type(made) is RuntimeError
    assert str(made) == 'x'


def test_one_line_form_keeps_the_first_field():
    """An error that was made here has no boxed type to leave out."""
    error = ContextCancelled('x', canceller=('boss', 'uuid'))
    assert "canceller=('boss', 'uuid')" in error.reprol()


def test_only_who_asks_for_the_canceller_is_warned(monkeypatch):
    """A missing one is logged when it is read, not when the error is shown."""
    warned = []
    monkeypatch.setattr('tractor._exceptions.log.warning', lambda *a: warned.append(a))
    error = ContextCancelled('x')
    assert 'canceller' not in f'{error!r}{error}{error.reprol()}{error.pformat()}'
    assert warned == []
    assert error.canceller is None
    assert len(warned) == 1
    assert "canceller=('a', 'u')" in repr(ContextCancelled('x', canceller=('a', 'u')))
