"""
Exceptions to `Error` messages and back.

An error crosses an actor boundary as text and type names, never as a pickle.  The
rule of what each hop keeps is `_protocol.relay`; here are only the conversions.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._exceptions import (
    ContextCancelled,
    MsgTypeError,
    RemoteActorError,
    TransportClosed,
    Uid,
)
from ._protocol.relay import Hop, hop
from .msg._codec import MsgCodec, ValidationError, decode_any
from .msg.types import Error
from .runtime._state import current_actor

if TYPE_CHECKING:
    from .ipc._chan import Channel

_rebuilt: dict[str, type[RemoteActorError]] = {
    'ContextCancelled': ContextCancelled,
    'MsgTypeError': MsgTypeError,
}


def _here() -> Uid:
    actor = current_actor(err_on_no_runtime=False)
    return ('<no-runtime>', '') if actor is None else actor.aid.uid


def _format(exc: BaseException, tb: TracebackType | None) -> str:
    trace = tb if tb is not None else exc.__traceback__
    return ''.join(traceback.format_exception(type(exc), exc, trace))


def pack_error(
    exc: BaseException,
    cid: str | None = None,
    src_uid: Uid | None = None,
    tb: TracebackType | None = None,
    tb_str: str = '',
    message: str = '',
) -> Error:
    """
    Return the wire form of an exception.

    Args:
        exc: The error; one that arrived boxed keeps what `_protocol.relay` says.
        cid: The context it ends; `None` means the whole runtime failed.
        src_uid: Uid of the shipping actor; this process's actor by default.
        tb: The traceback to render; that of `exc` by default.
        tb_str: The rendered traceback, if the caller has it already.
        message: What happened; by default the receiver makes a text of its own.
    """
    fields: dict[str, Any] = {}
    came: Hop | None = None
    if isinstance(exc, RemoteActorError):
        if exc.src_uid is not None:
            came = Hop(
                exc.src_uid, exc.src_type_str, exc.boxed_type_str, exc.relay_path
            )
        for name in ('canceller', 'sender', '_bad_msg', '_bad_msg_as_dict'):
            fields[name] = exc._field(name)
        if fields['_bad_msg_as_dict']:
            fields['_bad_msg'] = None
            fields['_bad_msg_as_dict'] = _plain(fields['_bad_msg_as_dict'])
        message = message or (exc.message if type(exc) is not RemoteActorError else '')
    step = hop(type(exc).__name__, src_uid or _here(), came)
    return Error(
        src_uid=step.src_uid,
        src_type_str=step.src_type_str,
        boxed_type_str=step.boxed_type_str,
        relay_path=step.relay_path,
        message=_sendable(message) or None,
        tb_str=_sendable(tb_str or _format(exc, tb)),
        cid=cid,
        **fields,
    )


def _sendable(text: str) -> str:
    """Escape what has no UTF-8, such as an undecodable part of a file name."""
    if text.isascii():
        return text
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """Replace what may not encode by its text: a report must always get through."""
    return {
        key: value
        if isinstance(value, str | int | float | bool | None)
        else repr(value)
        for key, value in data.items()
    }


def pack_from_raise(
    local_err: BaseException,
    cid: str | None,
    hide_tb: bool = True,
    **fields: Any,
) -> Error:
    """Return the wire form of an error as if a peer had raised it; `fields` win."""
    try:
        raise local_err
    except BaseException as err:
        if err is not local_err:  # a Ctrl-C that came in between
            raise
        msg = pack_error(err, cid=cid)
    for name, value in fields.items():
        setattr(msg, name, value)
    return msg


def unpack_error(
    msg: Any,
    chan: Channel | None = None,
    box_type: type[RemoteActorError] = RemoteActorError,
) -> RemoteActorError | None:
    """
    Return the exception for an `Error` message; `None` for any other message.

    `ContextCancelled` and `MsgTypeError` come back as what they are, everything else
    as `box_type`.
    """
    if not isinstance(msg, Error):
        return None
    kind = _rebuilt.get(msg.boxed_type_str, box_type)
    text = msg.message or f'remote task raised a {msg.boxed_type_str!r}'
    if kind is RemoteActorError:
        text = f'remote task raised a {msg.boxed_type_str!r}'
        if msg.message:
            text += f'\n{msg.message}'
    return kind(text, ipc_msg=msg)


def lost_peer(
    uid: Uid | None, where: object, cause: BaseException | None = None
) -> TransportClosed:
    """
    Return the error for everyone who waits on a peer whose connection is gone.

    Args:
        uid: The peer's `(name, uuid)`, if it ever told.
        where: The peer's address.
        cause: What the transport reported.
    """
    who = f'{uid[0]!r} ({uid[1]})' if uid else 'an unknown peer'
    lost = TransportClosed(
        f'the connection to actor {who} at {where} is gone, '
        'nothing more will come from it'
    )
    lost.__cause__ = cause
    lost.peer = uid
    return lost


def _mk_send_mte(
    msg: Any,
    codec: MsgCodec,
    message: str | None = None,
    src_type_error: BaseException | None = None,
    is_invalid_payload: bool = False,
) -> MsgTypeError:
    """Return the error for a message that may not, or cannot, be sent."""
    if message is None:
        message = f'invalid msg -> {msg}: {type(msg)}\n'
        if src_type_error is not None:
            message = f'IPC-msg-spec violation in\n{msg}\n\n{src_type_error}\n'
            if codec.enc.enc_hook is None:
                message += (
                    '\nThe codec has no `enc_hook` for that type: '
                    'see `tractor.msg.mk_codec(enc_hook=, ext_types=)`.\n'
                )
        else:
            message += f'\nValid IPC msgs are:\n{codec.msg_spec_str}\n'
    mte = MsgTypeError(message=message, _bad_msg=None)
    mte.__cause__ = src_type_error
    return mte


def _mk_recv_mte(
    frame: bytes,
    codec: MsgCodec,
    src_validation_error: ValidationError,
    decode: Callable[[bytes], Any] = decode_any,
) -> MsgTypeError:
    """Return the error for a received frame that is none of the known messages."""
    as_dict = decode(frame)
    if not isinstance(as_dict, dict):
        as_dict = {'frame': as_dict}
    mte = MsgTypeError(
        message=(
            f'invalid msg from the peer: {src_validation_error}\n'
            f'{as_dict}\n\nValid IPC msgs are:\n{codec.msg_spec_str}\n'
        ),
        boxed_type=ValidationError,
        _bad_msg_as_dict=as_dict,
        cid=as_dict.get('cid'),
    )
    mte.__cause__ = src_validation_error
    return mte
