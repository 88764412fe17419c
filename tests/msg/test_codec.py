"""Codecs: payload decoders, message codecs, the current one, extension types."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Union, get_args

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tractor.msg import NamespacePath, _codec
from tractor.msg._codec import (
    DecodeError,
    MsgCodec,
    MsgDec,
    Raw,
    ValidationError,
    _ctxvar_MsgCodec,
    _def_tractor_codec,
    apply_codec,
    current_codec,
    decode_any,
    decode_envelope,
    limit_msg_spec,
    mk_codec,
    mk_dec,
    mk_msgspec_table,
    pformat_msgspec,
    unpack_spec_types,
)
from tractor.msg.types import (
    Error,
    MsgType,
    Return,
    Started,
    Stop,
    Yield,
    __msg_types__,
    _runtime_msgs,
)


class PldMsg(msgspec.Struct):
    field: str


SPEC = PldMsg | None


def enc_nsp(obj: Any) -> Any:
    """Encode a `NamespacePath` as its text."""
    if isinstance(obj, NamespacePath):
        return str(obj)
    raise NotImplementedError(type(obj))


def dec_nsp(target: type, obj: Any) -> Any:
    """Decode text to a `NamespacePath`; pass `None`."""
    return NamespacePath(obj) if target is NamespacePath and obj is not None else obj


def ref() -> None:
    """What the paths of these tests refer to."""


# payload decoders


@pytest.mark.parametrize('spec', [SPEC, PldMsg, int, Any, list[int] | str])
def test_decoder_keeps_the_very_spec(spec):
    """`spec`, `pld_spec` and the decoder's type are the object that was given."""
    dec = mk_dec(spec)
    assert isinstance(dec, MsgDec)
    assert dec.spec is spec
    assert dec.pld_spec is spec
    assert dec.dec.type is spec
    assert dec.hook is None


@pytest.mark.parametrize(
    ('spec', 'text'),
    [
        (SPEC, 'PldMsg|NoneType'),
        (None | PldMsg, 'NoneType|PldMsg'),
        (int, 'int'),
        (Any, 'Any'),
        (str | int | None, 'str|int|NoneType'),
    ],
)
def test_spec_text(spec, text):
    """The names of the members stand in the union's order."""
    dec = mk_dec(spec)
    assert dec.spec_str == dec.pld_spec_str == text
    assert text in repr(dec)
    assert 'dec_hook' in repr(dec)
    assert '_dec=' not in repr(dec)


def test_decode_payload():
    """A payload becomes its type, from bytes or `Raw`; another type is refused."""
    dec, data = mk_dec(SPEC), msgspec.msgpack.encode(PldMsg('x'))
    assert dec.decode(data) == dec.decode(Raw(data)) == PldMsg('x')
    assert dec.decode(b'\xc0') is None
    with pytest.raises(ValidationError):
        dec.decode(msgspec.msgpack.encode(10))


def test_no_spec():
    """Without any type there is nothing to decode to."""
    with pytest.raises(TypeError, match='ext_types'):
        mk_dec(None)
    with pytest.raises(TypeError, match='ext_types'):
        mk_dec(SPEC, dec_hook=dec_nsp)


def test_nil_only():
    """`None` with `ext_types` but no hook takes nil and nothing else."""
    dec = mk_dec(None, ext_types=[])
    assert dec.spec is None
    assert dec.spec_str == 'NoneType'
    assert dec.decode(b'\xc0') is None
    with pytest.raises(ValidationError):
        dec.decode(b'\x01')


def test_hook_decoder_takes_the_extension_types():
    """With a hook the type is `Raw` or one of `ext_types`; `spec` is not looked at."""
    dec = mk_dec(int, dec_hook=dec_nsp, ext_types=[NamespacePath | None])
    assert dec.hook is dec_nsp
    assert unpack_spec_types(dec.spec) == {Raw, NamespacePath, type(None)}
    data = msgspec.msgpack.encode('mod:name')
    assert type(dec.decode(data)) is NamespacePath
    assert dec.decode(b'\xc0') is None


# message codecs


@pytest.fixture
def codec():
    """A codec that is neither of the default ones."""
    return mk_codec(ipc_pld_spec=SPEC)


def test_codec_members(codec):
    """A codec shows its encoder, decoder and types."""
    assert codec.pld_spec is SPEC
    assert codec.pld_spec_str == str(SPEC)
    assert mk_codec(ipc_pld_spec=PldMsg).pld_spec_str == 'PldMsg'
    assert mk_codec(ipc_pld_spec=list[int]).pld_spec_str == 'list[int]'
    assert codec.lib is msgspec
    assert codec.enc.enc_hook is None
    assert codec.dec.dec_hook is None
    assert codec.msg_spec is codec.dec.type
    assert len(get_args(codec.msg_spec)) == 10


def test_codec_text(codec):
    """Its text names library, hooks, payload type and all messages."""
    names = {cls.__name__ for cls in __msg_types__}
    for each in (codec, _def_tractor_codec):
        assert set(each.msg_spec_str.split('\n')) == names
    text = repr(codec)
    for part in ('msgspec', 'enc_hook', 'dec_hook', codec.pld_spec_str, *names):
        assert part in text
    assert '_buf' not in text


@pytest.mark.parametrize('use_buf', [False, True])
def test_encode_decode(use_buf):
    """A message comes back; its payload stays raw until decoded."""
    codec = mk_codec()
    for value in ({'a': [1]}, None):
        data = codec.encode(Started('c', value), use_buf=use_buf)
        assert type(data) is bytes
        for view in (data, memoryview(data)):
            msg = codec.decode(view)
            assert type(msg) is Started
            assert type(msg.pld) is Raw
            assert decode_any(msg.pld) == value


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
payloads = st.recursive(
    st.none() | st.booleans() | st.text() | st.binary() | numbers,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from([Started, Yield, Return]), st.text(), payloads)
def test_any_payload_survives(cls, cid, payload):
    """Any plain value comes back equal, within any payload message."""
    codec = current_codec()
    msg = codec.decode(codec.encode(cls(cid, payload)))
    assert type(msg) is cls
    assert msg.cid == cid
    assert decode_any(msg.pld) == payload


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=60))
def test_garbage_is_never_accepted_silently(data):
    """Whatever arrives, the codec gives a message or one of two errors."""
    try:
        msg = _def_tractor_codec.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # `ValidationError` is a `DecodeError`
    assert isinstance(msg, MsgType)


def test_relayed_raw_payload_is_verbatim():
    """A raw payload is encoded as the bytes it holds."""
    codec = mk_codec()
    data = codec.encode(Yield('c', [1, 2]))
    assert codec.encode(codec.decode(data)) == data


def test_error_carries_the_bad_message():
    """An `Error` may hold the message it is about."""
    codec = mk_codec()
    err = Error(('a', 'b'), 'X', 'X', [], _bad_msg=Started('c', 10))
    assert codec.decode(codec.encode(err))._bad_msg == Started('c', 10)


def test_payload_spec_is_enforced(codec):
    """A codec with a payload type decodes it at once and refuses others."""
    assert codec.decode(codec.encode(Started('c', PldMsg('x')))).pld == PldMsg('x')
    with pytest.raises(ValidationError):
        codec.decode(codec.encode(Started('c', 10)))


def test_unsupported_type_is_a_type_error(codec):
    """What msgpack does not know, a path among it, needs a hook."""
    for value in (NamespacePath('a:b'), object()):
        with pytest.raises(TypeError):
            codec.encode(Started('c', value))


def test_extension_wrapping(codec):
    """On request the encoding is wrapped in an extension value."""
    data = codec.encode(Stop('c'), as_ext_type=True)
    ext = decode_any(data)
    assert isinstance(ext, msgspec.msgpack.Ext)
    assert codec.decode(ext.data) == Stop('c')


def test_other_library():
    """There is one codec library."""
    with pytest.raises(ValueError, match='msgspec'):
        mk_codec(libname='json')


def test_enc_hook_needs_its_types():
    """An encode hook must say for which types; types alone are fine."""
    with pytest.raises(TypeError, match='ext_types'):
        mk_codec(enc_hook=enc_nsp)
    assert mk_codec(ext_types=[NamespacePath]).enc.enc_hook is None


def test_enc_hook_leaves_the_decoder_alone():
    """A codec with an encode hook has no decode hook."""
    codec = mk_codec(enc_hook=enc_nsp, ext_types=[NamespacePath])
    assert codec.enc.enc_hook is enc_nsp
    assert codec.dec.dec_hook is None


def test_extension_type_round_trip():
    """A path is sent as its text, stays raw in the message, and is a path again."""
    path = NamespacePath.from_ref(len)
    codec = mk_codec(enc_hook=enc_nsp, ext_types=[NamespacePath])
    encoded = codec.encode(path)
    assert encoded == codec.encode(str(path))
    data = codec.encode(Started(cid='c', pld=path))
    assert encoded in data
    msg = codec.decode(data)
    assert type(msg.pld) is Raw
    back = mk_dec(spec=None, dec_hook=dec_nsp, ext_types=[NamespacePath]).decode(
        msg.pld
    )
    assert type(back) is NamespacePath
    assert back == path
    assert back.load_ref() is len


@pytest.mark.parametrize('value', ['text', None])
def test_plain_values_pass_an_encode_hook(value):
    """What msgpack knows never reaches the hook."""
    codec = mk_codec(enc_hook=enc_nsp, ext_types=[NamespacePath])
    assert decode_any(codec.decode(codec.encode(Yield('c', value))).pld) == value


def test_ext_dec():
    """A decoder's hook and types are adopted by the codec it is given to."""
    ext_dec = mk_dec(None, dec_hook=dec_nsp, ext_types=[NamespacePath])
    codec = mk_codec(enc_hook=enc_nsp, ext_types=[NamespacePath], ext_dec=ext_dec)
    assert codec.dec.dec_hook is dec_nsp
    assert unpack_spec_types(codec.pld_spec) >= {Raw, NamespacePath}
    msg = codec.decode(codec.encode(Yield('c', NamespacePath('a:b'))))
    assert type(msg.pld) is NamespacePath


@pytest.mark.parametrize('spec', [int, int | str])
def test_ext_dec_beside_another_type(spec):
    """Nothing decodes to both: the error names the two."""
    ext_dec = mk_dec(None, dec_hook=dec_nsp, ext_types=[NamespacePath])
    text = r'`ipc_pld_spec` int.* `ext_dec` .*NamespacePath.* take `Raw`'
    with pytest.raises(TypeError, match=text):
        mk_codec(spec, ext_dec=ext_dec)


# the current codec


def test_default_codec():
    """The default leaves payloads raw; the other default decodes them at once."""
    assert current_codec() is _def_tractor_codec is _ctxvar_MsgCodec.get()
    assert _ctxvar_MsgCodec.name == 'msgspec_codec'
    assert _def_tractor_codec.pld_spec is Raw
    other = _codec._def_msgspec_codec
    assert isinstance(other, MsgCodec)
    assert other is _codec._def_msgspec_codec
    assert other.pld_spec is Any
    assert other.decode(other.encode(Yield('c', [1]))).pld == [1]


def test_apply_codec(codec):
    """Inside, the codec is the current one; afterwards the previous one is."""
    with apply_codec(codec) as applied:
        assert applied is codec is current_codec() is _ctxvar_MsgCodec.get()
        inner = mk_codec(int)
        with apply_codec(inner):
            assert current_codec() is inner
        assert current_codec() is codec
    assert current_codec() is _def_tractor_codec


def test_apply_codec_resets_after_an_error(codec):
    """An error inside leaves the previous codec current."""
    with pytest.raises(KeyError), apply_codec(codec):
        raise KeyError
    assert current_codec() is _def_tractor_codec


def test_apply_codec_twice(codec):
    """Applying the current codec again is a mistake, and changes nothing."""
    with apply_codec(codec):
        with pytest.raises(AssertionError, match='already applied'):
            with apply_codec(codec):
                pass
        assert current_codec() is codec


def test_apply_codec_to_a_context(codec):
    """A codec per context does not exist."""
    with pytest.raises(TypeError, match='ctx'):
        with apply_codec(codec, ctx=object()):
            pass


def test_tasks_inherit_the_codec(codec):
    """Tasks started inside have the codec; one that already runs keeps its own."""
    seen = {}

    async def report(key, go):
        await go.wait()
        seen[key] = current_codec()

    async def main():
        go = trio.Event()
        with trio.fail_after(10):
            async with trio.open_nursery() as tn:
                tn.start_soon(report, 'before', go)
                with apply_codec(codec):
                    tn.start_soon(report, 'inside', go)
                    seen['self'] = current_codec()
                go.set()

    trio.run(main)
    assert seen == {'before': _def_tractor_codec, 'inside': codec, 'self': codec}


def test_limit_msg_spec():
    """A codec for one payload type is made and applied."""
    with limit_msg_spec(PldMsg) as codec:
        assert current_codec() is codec
        assert codec.pld_spec is PldMsg
    assert current_codec() is _def_tractor_codec
    with limit_msg_spec(Raw, enc_hook=enc_nsp, ext_types=[NamespacePath]) as codec:
        assert codec.enc.enc_hook is enc_nsp


# introspection


def test_unpack_spec_types():
    """A union gives its members, anything else itself."""
    assert unpack_spec_types(SPEC) == {PldMsg, type(None)}
    assert unpack_spec_types(Union[int, str]) == {int, str}  # noqa: UP007
    assert unpack_spec_types(int) == {int}
    assert unpack_spec_types(list[int]) == {list[int]}


def test_msgspec_table(codec):
    """Each type a decoder takes is listed with its name; or just one message's."""
    table = mk_msgspec_table(codec.dec)
    assert len(table) == 10
    assert set(_runtime_msgs) <= set(table)
    assert mk_msgspec_table(codec.dec, Stop('c')) == {Stop: 'Stop'}
    assert list(mk_msgspec_table(codec.dec, Started('c', 1)).values()) == ['Started']
    assert mk_msgspec_table(codec.dec, 'no message') == {}
    assert mk_msgspec_table(mk_dec(SPEC).dec) == {
        PldMsg: 'PldMsg',
        type(None): 'NoneType',
    }


def test_pformat_msgspec(codec):
    """The names are joined, for a codec or a payload decoder."""
    assert pformat_msgspec(mk_dec(SPEC), join_char=', ') == 'PldMsg, NoneType'
    assert pformat_msgspec(codec).count('\n') == 9
    assert pformat_msgspec(codec, Stop('c')) == 'Stop'


def test_reserved_names():
    """The reserved names exist and do nothing."""
    assert issubclass(_codec.MsgpackTypeCodec, _codec.TypeCodec)
    assert _codec.mk_codec_hooks() is None
    with pytest.raises(AttributeError, match='has no attribute'):
        _ = _codec.nope


def test_decode_any():
    """Structs come back as dicts; what is no msgpack raises."""
    assert decode_any(_def_tractor_codec.encode(Stop('c'))) == {
        'msg_type': 'Stop',
        'cid': 'c',
    }
    with pytest.raises(msgspec.DecodeError):
        decode_any(b'\x92\x01')


def test_plain_data():
    """A message becomes what its frame holds, and that the message again."""
    codec = _def_tractor_codec
    plain = codec.to_builtins(Yield('c', (1, {'a': None})))
    assert plain == {'msg_type': 'Yield', 'cid': 'c', 'pld': [1, {'a': None}]}
    msg = codec.from_builtins(plain)
    assert type(msg) is Yield
    assert decode_any(msg.pld) == decode_any(codec.raw((1, {'a': None})))
    assert codec.round_trip(Stop('c')) == Stop('c')
    with pytest.raises(ValidationError):
        codec.from_builtins({'msg_type': 'Nope'})
    for bad in (..., 2**64, {1j: 1}):
        with pytest.raises(DecodeError, match='no plain data'):
            codec.from_builtins(bad)


def test_one_decoder_at_import():
    """Importing builds the default message decoder and no other typed one."""
    code = (
        'import logging, msgspec, sys\n'
        'before = set(sys.modules)\n'
        'made = []\n'
        'Real = msgspec.msgpack.Decoder\n'
        'class Counting:\n'
        '    def __class_getitem__(cls, item): return Real\n'
        '    def __new__(cls, *args, **kwargs):\n'
        '        made.append(args)\n'
        '        return Real(*args, **kwargs)\n'
        'msgspec.msgpack.Decoder = Counting\n'
        'import tractor.msg._codec\n'
        'assert len([args for args in made if args]) == 1, made\n'
        "assert '_def_msgspec_codec' not in vars(tractor.msg._codec)\n"
        "late = {'pkgutil', 'pprint', 'dataclasses', 'colorlog', 'trio', 'asyncio'}\n"
        'late -= before\n'
        'assert not late & set(sys.modules), late & set(sys.modules)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=20)


def test_the_envelope_of_a_broken_message():
    """Type and `cid` are found, whatever the rest; what has none of them is refused."""
    key = b'\x83\xa3cid\xa1c\xa3pld\x81\x80\x01\xa8msg_type\xa5Yield'
    with pytest.raises(DecodeError):
        decode_any(key)
    assert decode_envelope(key) == {'msg_type': 'Yield', 'cid': 'c'}
    for bad in (b'\xc1', b'\x01', key[:-1]):
        with pytest.raises(DecodeError):
            decode_envelope(bad)
    with pytest.raises(KeyError):
        decode_envelope(b'\x81\xa3cid\xa1c')
