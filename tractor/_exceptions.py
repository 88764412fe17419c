"""
All error classes of the runtime.

A distinct class exists where a caller should act differently.  Errors carry data as
attributes and build their text from them; rendering does no I/O, looks nothing up
and cannot raise.  Boxing errors for the wire is the business of `_boxing`, whose
entry points are reachable from here too.
"""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from ._pformat import pformat_boxed_tb, pformat_exc
from .log import get_logger

if TYPE_CHECKING:
    from .msg.types import Error, MsgType

log = get_logger()

Uid = tuple[str, str]


class RuntimeFailure(RuntimeError):
    """The runtime was used in a way, or in an environment, in which it cannot work."""


class ActorFailure(RuntimeFailure):
    """A child could not be brought up."""


class ActorDied(RuntimeFailure):
    """
    A child's process ended although nobody had asked it to.

    Attributes:
        uid: `(name, uuid)` of the child.
        exitcode: Its exit status, or `None` when a signal ended it.
        signal: Number of the signal that ended it, or `None`.
    """

    def __init__(
        self, uid: Uid, exitcode: int | None = None, signal: int | None = None
    ) -> None:
        super().__init__(uid, exitcode, signal)
        name, uuid = uid
        self.uid: Uid = (name, uuid)
        self.exitcode = exitcode
        self.signal = signal

    def __str__(self) -> str:
        if self.signal is not None:
            # Number 9 cannot be caught, so the process itself had nothing to tell.
            hint = 'its own stderr tells more'
            if self.signal == 9:
                hint = 'the kernel log tells whether memory ran out'
            name = _signal_name(self.signal)
            how = f'was ended by signal {self.signal}{name}, not by its nursery; {hint}'
        elif self.exitcode is not None:
            how = (
                f'exited with status {self.exitcode} without having been asked to; '
                'its own stderr tells more'
            )
        else:
            how = 'ended in an unknown way without having been asked to'
        return f'actor {self.uid[0]!r} ({self.uid[1]}) {how}'


class ActorUnkillable(RuntimeFailure):
    """A sub-interpreter child that nothing ends; `.stack`, also a note, tells where."""

    def __init__(
        self, uid: Uid, stack: str, why: str = 'it is stuck in C code'
    ) -> None:
        super().__init__(uid, stack, why)
        self.uid: Uid = (uid[0], uid[1])
        self.stack = stack
        self.why = why
        self.add_note(f'it is stuck here:\n{stack}')

    def __str__(self) -> str:
        return (
            f'actor {self.uid[0]!r} ({self.uid[1]}) was cut off: {self.why}; start it '
            'with a process backend'
        )


class ActorTooSlowError(RuntimeFailure):
    """
    A cancel request was not acknowledged in time.

    No `trio.TooSlowError`: a user's own deadline handler must not hide it.
    """

    def __init__(self, uid: Uid | str, waited: float = 0) -> None:
        super().__init__(uid, waited)
        self.uid = uid
        self.waited = waited

    def __str__(self) -> str:
        if isinstance(self.uid, str):
            return self.uid
        return f'no cancel ack from {self.uid[0]!r} within {self.waited:g} s'


class InternalError(RuntimeError):
    """A state that the runtime's own rules exclude."""


class AsyncioCancelled(Exception):
    """The asyncio task linked to this trio task was cancelled by somebody else."""


class AsyncioTaskExited(Exception):
    """The asyncio task linked to this trio task ended while still in use."""


class TrioCancelled(Exception):
    """The trio task linked to this asyncio task was cancelled or failed."""


class TrioTaskExited(Exception):
    """The trio task linked to this asyncio task left the link."""


class DebugRequestError(RuntimeError):
    """The terminal could not be locked for a debugger."""


class NoResult(RuntimeError):
    """Sentinel: the actor has no main task, so there is no result to wait for."""


class ModuleNotExposed(ModuleNotFoundError):
    """The requested module is not among those the actor serves."""


class NoRuntime(RuntimeError):
    """No actor runtime is open in this process."""


class MessagingError(Exception):
    """A message came that the dialog does not allow at this point."""


class RemoteActorError(Exception):
    """
    An error raised in another actor, boxed with what is known about it.

    Args:
        message: What happened, for people.
        ipc_msg: The wire form it came in; `None` if it was made in this actor.
        boxed_type: The type it stands for, when `ipc_msg` does not say.
        **extra_msgdata: Further fields, as the wire form names them.
    """

    _type_warned: bool = False

    def __init__(
        self,
        message: str,
        ipc_msg: Error | None = None,
        boxed_type: type[BaseException] | None = None,
        **extra_msgdata: Any,
    ) -> None:
        super().__init__(message)
        self._message = message
        self._ipc_msg = ipc_msg
        self._boxed_type = boxed_type
        self._extra_msgdata = extra_msgdata

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            _rebuild_rae,
            (
                type(self),
                self._message,
                self._ipc_msg,
                self._boxed_type,
                self._extra_msgdata,
            ),
        )

    def _field(self, name: str) -> Any:
        """Return one datum, the wire form first, else `None`."""
        if self._ipc_msg is not None:
            value = getattr(self._ipc_msg, name, None)
            if value is not None:
                return value
        return self._extra_msgdata.get(name)

    @property
    def message(self) -> str:
        """What happened; the first line names the type that was raised."""
        return self._message

    @property
    def ipc_msg(self) -> Any:
        """A copy of the wire form for rendering: a new object of a new type."""
        if self._ipc_msg is None:
            return None
        from .msg.pretty_struct import rendering_copy

        return rendering_copy(self._ipc_msg)

    @property
    def msgdata(self) -> dict[str, Any]:
        """All wire fields, merged over the extra ones."""
        if self._ipc_msg is None:
            return dict(self._extra_msgdata)
        fields = self._ipc_msg.__struct_fields__
        return self._extra_msgdata | {
            name: getattr(self._ipc_msg, name) for name in fields
        }

    @property
    def tb_str(self) -> str:
        """The traceback as the sending actor rendered it; `''` if raised here."""
        return self._field('tb_str') or ''

    @property
    def cid(self) -> str | None:
        """Id of the context the error belongs to."""
        cid: str | None = self._field('cid')
        return cid

    @property
    def src_type_str(self) -> str:
        """Name of the type that the source actor raised; `''` if unknown."""
        return self._field('src_type_str') or ''

    @property
    def src_type(self) -> type[BaseException] | None:
        """The type that the source actor raised, if this process knows it."""
        name = self.src_type_str
        found = get_err_type(name) if name else None
        if name and found is None and not self._type_warned:
            self._type_warned = True
            log.warning(
                'error type %r is unknown here; make it known with '
                '`tractor._exceptions.reg_err_types()`',
                name,
            )
        return found

    @property
    def boxed_type_str(self) -> str:
        """Name of the type boxed at the last hop."""
        boxed = self.boxed_type
        if boxed is not None:
            return boxed.__name__
        return self._field('boxed_type_str') or '<unknown>'

    @property
    def boxed_type(self) -> type[BaseException] | None:
        """The type boxed at the last hop, if this process knows it."""
        if self._boxed_type is None and self._ipc_msg is not None:
            self._boxed_type = get_err_type(self._ipc_msg.boxed_type_str)
        return self._boxed_type

    @property
    def relay_path(self) -> list[Uid]:
        """Uids of the actors it came through, the source first."""
        return [(uid[0], uid[1]) for uid in self._field('relay_path') or ()]

    @property
    def relay_uid(self) -> Uid | None:
        """Uid of the actor that sent it to us."""
        path = self.relay_path
        return path[-1] if path else self.src_uid

    @property
    def src_uid(self) -> Uid | None:
        """Uid of the actor where it was raised."""
        return _as_uid(self._field('src_uid'))

    @property
    def sender(self) -> Uid | None:
        """For overruns: uid of the actor whose message did not fit."""
        return _as_uid(self._field('sender'))

    def is_inception(self) -> bool:
        """Whether it boxes a boxed error, having come over more than one hop."""
        return self.boxed_type is not self.src_type

    def _fields_str(self) -> str:
        """One `name=value` line for each known fact."""
        lines = []
        if self._ipc_msg is not None or self._boxed_type is not None:
            lines.append(f'boxed_type={self.boxed_type_str}')
        src, relay = self.src_uid, self.relay_uid
        if src is not None:
            lines.append(f'src_uid={src}')
        if relay is not None and relay != src:
            lines.append(f'relay_uid={relay}')
            lines.append(f'src_type={self.src_type_str}')
        for name in self._extra_fields:
            value = self._shown(name)
            if value not in (None, type(None)):
                lines.append(f'{name}={value}')
        return '\n'.join(lines)

    _extra_fields: tuple[str, ...] = ('sender',)

    def _shown(self, name: str) -> Any:
        """Return the value of an extra field for the text."""
        return getattr(self, name, None)

    def pformat(self, with_type_header: bool = True) -> str:
        """Return the text with its fields and, if any, the remote traceback."""
        body = ''
        if self.tb_str:
            body = pformat_boxed_tb(
                self.tb_str,
                fields_str=self._fields_str() + '\n',
                boxer_header=str(self.relay_uid),
            )
        elif fields := self._fields_str():
            body = fields + '\n'
        message = self._message
        text = pformat_exc(self, message=message, body=body, with_type_header=False)
        # An error text is often the only thing left: it holds the message verbatim.
        if message and message.rstrip('\n') not in text:
            text = f'{message}\n{text}'
        return f'<{type(self).__name__}(\n{text})>' if with_type_header else text

    def __repr__(self) -> str:
        return self.pformat()

    def __str__(self) -> str:
        return self.pformat(with_type_header=False)

    def reprol(self) -> str:
        """Return one line: class, boxed type and the key fields."""
        lines = self._fields_str().splitlines()
        fields = ', '.join(line for line in lines if not line.startswith('boxed_type='))
        return f'{type(self).__name__}[{self.boxed_type_str}]({fields})'

    def unwrap(self) -> BaseException:
        """
        Return a new exception of the source type whose text is the remote traceback.

        The message stands in for an empty traceback.  A group has one member, which
        only repeats the text.  A type that is unknown here, or that cannot be made
        from one string, gives a `RuntimeError` with the same text.
        """
        name, text = self.src_type_str, self.tb_str or self._message
        kind = self.src_type
        if kind is not None:
            try:
                return _made_from(kind, text)
            except Exception:
                log.debug('%r cannot be made from a text', kind)
        return RuntimeError(f'{name}: {text}' if name else text)


class ContextCancelled(RemoteActorError):
    """The task at the other end of a context was cancelled, by whoever is named."""

    _extra_fields = ('canceller',)

    @property
    def canceller(self) -> Uid | None:
        """Uid of the actor that asked for it."""
        value = _as_uid(self._field('canceller'))
        if value is None:
            log.warning('a `ContextCancelled` does not tell who asked for it')
        return value

    def _shown(self, name: str) -> Any:
        return _as_uid(self._field(name))  # without the warning to who reads it


class MsgTypeError(RemoteActorError):
    """A message or its payload does not have the type its receiver expects."""

    _extra_fields = ('expected_msg_type',)

    @property
    def bad_msg(self) -> Any:
        """The offending message, rebuilt if need be; `None` if there is none."""
        msg = self._field('_bad_msg')
        if msg is not None:
            return msg
        as_dict = self.bad_msg_as_dict
        if not as_dict or 'msg_type' not in as_dict:
            return None
        from .msg.types import from_dict_msg

        try:
            return from_dict_msg(dict(as_dict))
        except (TypeError, KeyError):  # what came is not even a message
            return None

    @property
    def bad_msg_as_dict(self) -> dict[str, Any] | None:
        """The offending message as plain data, or `None`."""
        value: dict[str, Any] | None = self._field('_bad_msg_as_dict')
        return value

    @property
    def expected_msg_type(self) -> type[MsgType] | type[None]:
        """The type of `bad_msg`."""
        return type(self.bad_msg)

    @property
    def cid(self) -> str | None:
        """Id of the context; `None` if neither message nor data tell it."""
        cid = getattr(self.bad_msg, 'cid', None) or self._field('cid')
        return None if cid is None else str(cid)

    @classmethod
    def from_decode(
        cls,
        message: str,
        bad_msg: Any = None,
        bad_msg_as_dict: dict[str, Any] | None = None,
        **extra: Any,
    ) -> Self:
        """
        Return an error for a payload that failed to decode.

        Raises:
            TypeError: `bad_msg` is a message without a payload.
        """
        from .msg._codec import ValidationError

        if bad_msg is not None and not hasattr(bad_msg, 'pld'):
            raise TypeError(f'{type(bad_msg).__name__} is not a payload message')
        if bad_msg_as_dict is None and bad_msg is not None:
            bad_msg_as_dict = {
                name: getattr(bad_msg, name) for name in bad_msg.__struct_fields__
            }
        return cls(
            message=message,
            boxed_type=extra.pop('boxed_type', ValidationError),
            _bad_msg=bad_msg,
            _bad_msg_as_dict=bad_msg_as_dict,
            **extra,
        )


class StreamOverrun(RemoteActorError, trio.TooSlowError):
    """The receiver's inbound queue was full when a message arrived."""


class TransportClosed(Exception):
    """
    The connection to a peer is closed or broken.

    Args:
        message: What was found, and whose connection it is.
        loglevel: Name of the level under which a message loop reports it.
        src_exc: The lower-level error; becomes `__cause__` if none is set yet.
        raise_on_report: Whether reporting it raises it, too.

    Attributes:
        peer: `(name, uuid)` of the actor at the other end, or `None`.
    """

    def __init__(
        self,
        message: str,
        loglevel: str = 'transport',
        src_exc: BaseException | None = None,
        raise_on_report: bool = False,
    ) -> None:
        super().__init__(message)
        self._message = message
        self._loglevel = loglevel
        self._src_exc = src_exc
        self._raise_on_report = raise_on_report
        self.peer: Uid | None = None  # whose connection it was, where known
        if src_exc is not None and self.__cause__ is None:
            self.__cause__ = src_exc

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            type(self),
            (self._message, self._loglevel, None, self._raise_on_report),
        )

    @property
    def message(self) -> str:
        """What was found."""
        return self._message

    @property
    def src_exc(self) -> BaseException | None:
        """The lower-level error that told it."""
        return self.__cause__ or self._src_exc

    def report_n_maybe_raise(
        self, message: str | None = None, hide_tb: bool = True
    ) -> None:
        """Log it at its level; raise it if it was made with `raise_on_report`."""
        emit = getattr(log, self._loglevel, log.warning)
        cause = self.src_exc
        emit(
            '%s%s%s',
            f'{message}\n' if message else '',
            self._message,
            f'\n{self.repr_src_exc(cause)}' if cause is not None else '',
        )
        if self._raise_on_report:
            raise self

    @classmethod
    def repr_src_exc(cls, src_exc: BaseException | None = None) -> str:
        """Return one line for the lower-level error."""
        if src_exc is None:
            return '<unknown>'
        return f'{type(src_exc).__name__}({", ".join(map(repr, src_exc.args))})'

    @classmethod
    def from_src_exc(
        cls,
        src_exc: BaseException | None,
        message: str,
        body: str = '',
        **init_kws: Any,
    ) -> Self:
        """Return an instance whose text includes the lower-level error."""
        return cls(
            f'{message}\n{body}<- {cls.repr_src_exc(src_exc)}',
            src_exc=src_exc,
            **init_kws,
        )

    def pformat(self) -> str:
        """Return the text, with a type header unless it is being handled right now."""
        return pformat_exc(self, message=self._message)

    def __repr__(self) -> str:
        return self.pformat()


_registered: dict[str, type[BaseException]] = {}


def reg_err_types(exc_types: Iterable[type[BaseException]]) -> None:
    """Make exception classes known by name to `get_err_type()` in this process."""
    for kind in exc_types:
        _registered[kind.__name__] = kind


def get_err_type(name: str) -> type[BaseException] | None:
    """
    Return the exception class of that name, or `None`.

    Looked up in: builtins, this module, classes given to `reg_err_types()`, trio,
    and the standard library's `bdb`.
    """
    for space in (vars(builtins), globals(), _registered, vars(trio)):
        found = space.get(name)
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
    if name == 'ValidationError':
        from .msg._codec import ValidationError

        return ValidationError
    if name.startswith('Bdb'):
        # A debugger's module, of no use until somebody debugs.
        import bdb

        found = getattr(bdb, name, None)
        return found if isinstance(found, type) else None
    return None


# Builtin types that want more than one string, and what stands ahead of theirs.
_AHEAD: Final[dict[type[BaseException], tuple[Any, ...]]] = {
    UnicodeDecodeError: ('unknown', b'', 0, 0),
    UnicodeEncodeError: ('unknown', '', 0, 0),
    UnicodeTranslateError: ('', 0, 0),
}


def _made_from(kind: type[BaseException], text: str) -> BaseException:
    """Make an exception of a text; what else its builtin type wants is made up."""
    if issubclass(kind, BaseExceptionGroup):
        # One of plain exceptions alone would be made an `ExceptionGroup`.
        member = Exception if issubclass(kind, Exception) else BaseException
        return kind(text, [member(text)])
    return kind(*_AHEAD.get(kind, ()), text)


def _as_uid(value: Any) -> Uid | None:
    return None if value is None else (str(value[0]), str(value[1]))


def _signal_name(number: int) -> str:
    import signal  # only to render the end of a process

    try:
        return f' ({signal.Signals(number).name})'
    except ValueError:
        return ''


def _rebuild_rae(
    kind: type[RemoteActorError],
    message: str,
    ipc_msg: Error | None,
    boxed_type: type[BaseException] | None,
    extra: dict[str, Any],
) -> RemoteActorError:
    return kind(message, ipc_msg=ipc_msg, boxed_type=boxed_type, **extra)


# Offered from above, at first use: boxing needs the process state.
_from_boxing = frozenset(
    {'pack_error', 'unpack_error', 'pack_from_raise', '_mk_send_mte', '_mk_recv_mte'}
)


def __getattr__(name: str) -> Any:
    if name not in _from_boxing:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module('tractor._boxing'), name)
