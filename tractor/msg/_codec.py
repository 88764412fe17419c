"""
Message codecs, payload decoders, and which codec is current.

Decoding has two layers.  The channel codec (`MsgCodec`) decodes whole messages
and by default leaves every payload as `Raw`; a context decodes its own payloads
with a `MsgDec`, so that a wrong type concerns one dialog and never the channel.
Which codec a task sends and receives with is a context variable: child tasks
inherit it, running ones keep theirs.  Only the default decoder is built at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from tractor.msg.pretty_struct import HAS_MSGSPEC, msgpack, msgspec
from tractor.msg.types import mk_msg_spec

__all__ = [
    'DecodeError',
    'MsgCodec',
    'MsgDec',
    'MsgspecError',
    'Raw',
    'ValidationError',
    '_ctxvar_MsgCodec',
    '_def_msgspec_codec',
    '_def_tractor_codec',
    'apply_codec',
    'current_codec',
    'decode_any',
    'limit_msg_spec',
    'mk_codec',
    'mk_dec',
]

DecodeError = msgspec.DecodeError
MsgspecError = msgspec.MsgspecError
Raw = msgspec.Raw
Struct = msgspec.Struct
ValidationError = msgspec.ValidationError

EncHook = Callable[[Any], Any]
DecHook = Callable[[type, Any], Any]

# The msgpack extension code of `MsgCodec.encode(as_ext_type=True)`.
_EXT_CODE: Final = 0

_any_decoder: Final = msgpack.Decoder()


def decode_any(data: bytes | memoryview | Raw) -> Any:
    """
    Decode without a type: structs come back as dicts, tuples as lists.

    Raises:
        DecodeError: Not msgpack, or cut short.
    """
    return _any_decoder.decode(data)


def decode_envelope(data: bytes) -> dict[str, Any]:
    """
    Return type and `cid` of a message, also if the rest of it cannot be decoded.

    Raises:
        DecodeError, KeyError: They cannot be, either; without msgspec also others.
    """
    names = ('msg_type', 'cid')
    if HAS_MSGSPEC:
        parts = msgpack.Decoder(dict[str, Raw]).decode(data)
        return {name: decode_any(parts[name]) for name in names}
    # What stands for msgspec has loaded it, to read this very frame.
    from msgpack import Unpacker

    unpacker = Unpacker(strict_map_key=False, max_buffer_size=len(data))
    unpacker.feed(data)
    found = {}
    for _ in range(unpacker.read_map_header()):
        name = unpacker.unpack()
        if name in names:
            found[name] = unpacker.unpack()
        else:
            unpacker.skip()
    return {name: found[name] for name in names}


def _is_union(spec: Any) -> bool:
    return get_origin(spec) in (Union, UnionType)


def _members(spec: Any) -> tuple[Any, ...]:
    """Return a union's members in order; any other type is its only one."""
    return get_args(spec) if _is_union(spec) else (spec,)


def _name(spec: Any) -> str:
    if spec is None:
        return 'NoneType'
    return str(getattr(spec, '__name__', spec))


def _names(spec: Any) -> str:
    return '|'.join(map(_name, _members(spec)))


def unpack_spec_types(spec: Any) -> set[Any]:
    """Return a union's members, or the one type, as a set."""
    return set(_members(spec))


class MsgDec(Struct):
    """A payload decoder: one type, and the hook for what msgpack does not know."""

    _dec: msgpack.Decoder[Any]

    @property
    def dec(self) -> msgpack.Decoder[Any]:
        """The `msgspec` decoder."""
        return self._dec

    @property
    def hook(self) -> DecHook | None:
        """What turns plain data into an extension type."""
        return self._dec.dec_hook

    @property
    def spec(self) -> Any:
        """The type, the very object the decoder was made with."""
        return self._dec.type

    @property
    def pld_spec(self) -> Any:
        """The same as `spec`."""
        return self._dec.type

    @property
    def spec_str(self) -> str:
        """Names of the union's members in order, joined by `|`."""
        return _names(self.spec)

    @property
    def pld_spec_str(self) -> str:
        """The same as `spec_str`."""
        return self.spec_str

    def decode(self, raw: Raw | bytes | memoryview) -> Any:
        """
        Decode a payload.

        Raises:
            ValidationError: Not of this type.
            DecodeError: Not msgpack.
        """
        return self._dec.decode(raw)

    def __repr__(self) -> str:
        return f'MsgDec(\n  dec_hook: {self.hook!r},\n  spec: {self.spec_str},\n)'


def mk_dec(
    spec: Any,
    dec_hook: DecHook | None = None,
    ext_types: Sequence[Any] | None = None,
) -> MsgDec:
    """
    Return a payload decoder.

    Args:
        spec: The type to decode to; `None` accepts only nil.  Not looked at with a
            `dec_hook`.
        dec_hook: Makes an extension type from plain data: `hook(type, data)`.
        ext_types: The types, or unions of them, that the hook makes.
    Raises:
        TypeError: A hook without `ext_types`, or no type at all.
    """
    if ext_types is None:
        if dec_hook is not None:
            raise TypeError('a `dec_hook` needs `ext_types`: the types it makes')
        if spec is None:
            raise TypeError(
                'pass a `spec` or `ext_types`; for nil only, `spec=None, ext_types=[]`'
            )
    if dec_hook is None:
        return MsgDec(msgpack.Decoder(spec))
    union: Any = Union[(Raw, *(ext_types or ()))]
    return MsgDec(msgpack.Decoder(union, dec_hook=dec_hook))


class MsgCodec(Struct):
    """An encoder and a decoder of whole messages, and the payload type between."""

    _enc: msgpack.Encoder
    _dec: msgpack.Decoder[Any]
    _pld_spec: Any
    lib: ModuleType = msgspec
    _buf: bytearray = msgspec.field(default_factory=bytearray)

    @property
    def enc(self) -> msgpack.Encoder:
        """The `msgspec` encoder."""
        return self._enc

    @property
    def dec(self) -> msgpack.Decoder[Any]:
        """The `msgspec` decoder."""
        return self._dec

    @property
    def pld_spec(self) -> Any:
        """What `Started`, `Yield` and `Return` may carry."""
        return self._pld_spec

    @property
    def pld_spec_str(self) -> str:
        """The payload type as text."""
        spec = self._pld_spec
        return str(spec) if get_args(spec) else _name(spec)

    @property
    def msg_spec(self) -> Any:
        """The union of all messages this codec decodes."""
        return self._dec.type

    @property
    def msg_spec_str(self) -> str:
        """Names of all messages, one per line."""
        return pformat_msgspec(self)

    def encode(
        self,
        py_obj: Any,
        use_buf: bool = False,
        as_ext_type: bool = False,
        hide_tb: bool = True,
    ) -> bytes:
        """
        Return an object's encoding.

        Args:
            use_buf: Write into this codec's buffer first, which then keeps its size.
            as_ext_type: Wrap the encoding into a msgpack extension value.
            hide_tb: Accepted for callers that pass it on.
        Raises:
            TypeError: No way to encode this type; the remedy is an `enc_hook`.
        """
        if use_buf:
            self._enc.encode_into(py_obj, self._buf)
            encoded = bytes(self._buf)
        else:
            encoded = self._enc.encode(py_obj)
        if as_ext_type:
            return self._enc.encode(msgpack.Ext(_EXT_CODE, encoded))
        return encoded

    def decode(self, msg: bytes | memoryview) -> Any:
        """
        Return the message in one frame.

        Raises:
            ValidationError: Not one of the messages.
            DecodeError: Not msgpack.
        """
        return self._dec.decode(msg)

    def raw(self, value: Any) -> Raw:
        """
        Return a payload ready to be sent, as a snapshot of a value.

        Raises:
            TypeError: No way to encode this type; the remedy is an `enc_hook`.
        """
        return Raw(self._enc.encode(value) if HAS_MSGSPEC else self.to_builtins(value))

    def to_builtins(self, msg: Any) -> Any:
        """
        Return a message as plain data: what its frame holds to who knows no type.

        Without msgspec, data that is plain already is not copied.

        Raises:
            TypeError: No way to encode this type; the remedy is an `enc_hook`.
        """
        if HAS_MSGSPEC:
            return _any_decoder.decode(self._enc.encode(msg))
        enc: Any = self._enc
        return enc.to_builtins(msg)

    def from_builtins(self, obj: Any) -> Any:
        """
        Return the message that plain data stands for, as from a frame.

        Raises:
            ValidationError: Not one of the messages.
            DecodeError: No plain data.
        """
        if not HAS_MSGSPEC:
            dec: Any = self._dec
            return dec.from_builtins(obj)
        try:
            frame = msgpack.encode(obj)
        except (TypeError, ValueError, OverflowError) as err:
            raise DecodeError(f'no plain data: {err}') from err
        return self._dec.decode(frame)

    def round_trip(self, msg: Any) -> Any:
        """
        Return the message as the peer will get it.

        Raises:
            TypeError: No way to encode this type; the remedy is an `enc_hook`.
        """
        if HAS_MSGSPEC:
            return self._dec.decode(self._enc.encode(msg))
        return self.from_builtins(self.to_builtins(msg))

    def __repr__(self) -> str:
        names = self.msg_spec_str.replace('\n', '\n    ')
        return (
            f'MsgCodec(\n'
            f'  lib: {self.lib.__name__},\n'
            f'  enc_hook: {self._enc.enc_hook!r},\n'
            f'  dec_hook: {self._dec.dec_hook!r},\n'
            f'  pld_spec: {self.pld_spec_str},\n'
            f'  msgs:\n'
            f'    {names}\n'
            f')'
        )


def mk_codec(
    ipc_pld_spec: Any = Raw,
    libname: Literal['msgspec'] = 'msgspec',
    enc_hook: EncHook | None = None,
    ext_types: Sequence[Any] | None = None,
    ext_dec: MsgDec | None = None,
) -> MsgCodec:
    """
    Return a message codec.

    Args:
        ipc_pld_spec: What payload messages may carry; `Raw` leaves it undecoded.
        libname: Only `'msgspec'`.
        enc_hook: Makes something encodable of an extension type.
        ext_types: The types that `enc_hook` takes.
        ext_dec: Decode extension types within messages with this decoder's hook.
    Raises:
        TypeError: An `enc_hook` without `ext_types`; types no frame tells apart.
        ValueError: Another `libname`.
    """
    if libname != 'msgspec':
        raise ValueError(f'no codec library {libname!r}; the only one is msgspec')
    if enc_hook is not None and ext_types is None:
        raise TypeError('an `enc_hook` needs `ext_types`: the types it takes')
    dec_hook: DecHook | None = None
    if ext_dec is not None:
        dec_hook = ext_dec.hook
        plain_spec = ipc_pld_spec
        ipc_pld_spec = Union[(plain_spec, ext_dec.spec, *(ext_types or ()))]
    msg_spec, _ = mk_msg_spec(ipc_pld_spec)
    try:
        dec = msgpack.Decoder(msg_spec, dec_hook=dec_hook)
    except TypeError as err:
        if ext_dec is None:
            raise
        raise TypeError(
            f'no frame tells a payload of `ipc_pld_spec` {_names(plain_spec)} from '
            f'what `ext_dec` makes, {ext_dec.spec_str}; take `Raw` as `ipc_pld_spec`, '
            'and `limit_plds()` where they are received'
        ) from err
    return MsgCodec(
        _enc=msgpack.Encoder(enc_hook=enc_hook), _dec=dec, _pld_spec=ipc_pld_spec
    )


_def_tractor_codec: Final[MsgCodec] = mk_codec(ipc_pld_spec=Raw)

# Decodes payloads at once, hence of no use on a channel; made when asked for.
_def_msgspec_codec: MsgCodec

_ctxvar_MsgCodec: Final[ContextVar[MsgCodec]] = ContextVar(  # noqa: N816
    'msgspec_codec', default=_def_tractor_codec
)


def __getattr__(name: str) -> Any:
    if name != '_def_msgspec_codec':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    codec = globals()[name] = mk_codec(ipc_pld_spec=Any)
    return codec


def current_codec() -> MsgCodec:
    """Return the codec the calling task sends and receives with."""
    return _ctxvar_MsgCodec.get()


@contextmanager
def apply_codec(codec: MsgCodec, ctx: None = None) -> Iterator[MsgCodec]:
    """
    Make a codec the current one of this task and of tasks it starts inside.

    Tasks which already run, message loops among them, keep theirs.

    Args:
        codec: Yielded again.
        ctx: Reserved; only `None`.
    Raises:
        AssertionError: The codec is already the current one.
        TypeError: A `ctx` was given.
    """
    if ctx is not None:
        raise TypeError('a codec cannot be limited to one context; pass `ctx=None`')
    if codec is _ctxvar_MsgCodec.get():
        raise AssertionError(f'this codec is already applied: {codec!r}')
    token = _ctxvar_MsgCodec.set(codec)
    try:
        yield codec
    finally:
        _ctxvar_MsgCodec.reset(token)


@contextmanager
def limit_msg_spec(
    payload_spec: Any, hide_tb: bool = True, **codec_kwargs: Any
) -> Iterator[MsgCodec]:
    """
    Apply a codec whose messages may carry only this payload type.

    Args:
        payload_spec: See `mk_codec()`.
        hide_tb: Accepted for callers that pass it on.
        **codec_kwargs: See `mk_codec()`.
    """
    with apply_codec(mk_codec(ipc_pld_spec=payload_spec, **codec_kwargs)) as codec:
        yield codec


def mk_msgspec_table(dec: msgpack.Decoder[Any], msg: Any = None) -> dict[Any, str]:
    """
    Return the name of each type a decoder takes.

    Args:
        msg: Only this message's type; nothing if it is none of them.
    """
    members = _members(dec.type)
    if msg is not None:
        members = tuple(m for m in members if (get_origin(m) or m) is type(msg))
    return {member: _name(member) for member in members}


def pformat_msgspec(
    codec: MsgCodec | MsgDec, msg: Any = None, join_char: str = '\n'
) -> str:
    """Return the names of `mk_msgspec_table()`, joined."""
    return join_char.join(mk_msgspec_table(codec.dec, msg).values())


class TypeCodec:
    """Reserved: how one extension type is encoded and decoded."""


class MsgpackTypeCodec(TypeCodec):
    """Reserved: the same, as a msgpack extension value."""


def mk_codec_hooks() -> None:
    """Reserved: an encoder's and a decoder's hook from several `TypeCodec`s."""
