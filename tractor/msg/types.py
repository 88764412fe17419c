"""
The ten wire messages.

Each is a struct tagged with its class name under `msg_type` and travels as a
msgpack map, so that one union decoder yields the right class.  Grammar per
`cid`: `Start`, `StartAck`, then `Started` for contexts, `Yield` in both
directions, each direction ended by at most one `Stop`, and last exactly one
`Return` or `Error`.  `CancelAck` replaces `Return` at the runtime's cancel
endpoints.  A payload stays undecoded until its context asks for it.
"""

# The generic messages share one exported `TypeVar`, which `class X[T]` cannot.
# ruff: noqa: UP046

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, Union

from tractor.log import get_logger
from tractor.msg import pretty_struct
from tractor.msg.pretty_struct import msgspec

__all__ = [
    'MSG_TYPES',
    'Aid',
    'CancelAck',
    'Error',
    'Msg',
    'MsgType',
    'PayloadMsg',
    'PayloadT',
    'Return',
    'SpawnSpec',
    'Start',
    'StartAck',
    'Started',
    'Stop',
    'Yield',
    '__msg_spec__',
    '__msg_types__',
]

log = get_logger()

Raw = msgspec.Raw
Struct = msgspec.Struct

_TAG_FIELD: Final = 'msg_type'

PayloadT = TypeVar('PayloadT')


class PayloadMsg(Struct, Generic[PayloadT], tag_field=_TAG_FIELD, tag=True):
    """Base of the messages that carry a payload."""

    cid: str
    pld: Raw


Msg = PayloadMsg


class Aid(pretty_struct.Struct, tag_field=_TAG_FIELD, tag=True):
    """
    An actor's identity, and the first message both ways on every channel.

    Two are equal if their `uuid` is.
    """

    name: str
    uuid: str
    pid: int | None = None
    is_registrar: bool | None = None  # `None`: unknown, a probe assumes yes
    is_probe: bool = False  # a short-lived registry election probe

    @property
    def uid(self) -> tuple[str, str]:
        """`(name, uuid)`."""
        return self.name, self.uuid

    def reprol(self, sin_uuid: bool = True) -> str:
        """
        Return `'<name>@<pid>'`.

        Args:
            sin_uuid: Leave out the uuid; `False` gives `'<name>[<uuid[:6]>]@<pid>'`.
        """
        uuid = '' if sin_uuid else f'[{self.uuid[:6]}]'
        return f'{self.name}{uuid}@{self.pid!r}'

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Aid):
            return self.uuid == other.uuid
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.uuid)


class SpawnSpec(pretty_struct.Struct, tag_field=_TAG_FIELD, tag=True):
    """What a parent tells its child, right after the exchange of `Aid`s."""

    _parent_main_data: dict[Any, Any]
    _runtime_vars: dict[str, Any]
    enable_modules: dict[str, str]  # module path -> file path
    reg_addrs: list[tuple[str, str | int]]
    bind_addrs: list[tuple[str, str | int]] | None


class Start(Struct, tag_field=_TAG_FIELD, tag=True):
    """A request to run a function as a task; answered by `StartAck` or `Error`."""

    cid: str
    ns: str  # module path; 'self' for methods of the runtime
    func: str
    kwargs: dict[str, Any]
    uid: tuple[str, str]  # the caller's
    pld_spec: str = str(Any)


class StartAck(Struct, tag_field=_TAG_FIELD, tag=True):
    """The requested task is scheduled."""

    cid: str
    functype: Literal['asyncfunc', 'asyncgen', 'context']


class Started(PayloadMsg[PayloadT], Generic[PayloadT], tag_field=_TAG_FIELD, tag=True):
    """The first value of a context, from its child side."""

    pld: PayloadT | Raw  # type: ignore[assignment]


class Yield(PayloadMsg[PayloadT], Generic[PayloadT], tag_field=_TAG_FIELD, tag=True):
    """One value of a stream, in either direction."""

    pld: PayloadT | Raw  # type: ignore[assignment]


class Stop(Struct, tag_field=_TAG_FIELD, tag=True):
    """The sender's side of the stream is over."""

    cid: str


class Return(PayloadMsg[PayloadT], Generic[PayloadT], tag_field=_TAG_FIELD, tag=True):
    """The final result of a task."""

    pld: PayloadT | Raw  # type: ignore[assignment]


class CancelAck(PayloadMsg[bool], tag_field=_TAG_FIELD, tag=True):
    """
    The result of a runtime cancel endpoint.

    No payload spec applies to it: a cancel must always be answerable.
    """

    pld: bool  # type: ignore[assignment]


class Error(Struct, tag_field=_TAG_FIELD, tag=True):
    """
    A boxed error.

    With a `cid` it ends that context; without, it is raised in the receiver's
    message loop.
    """

    src_uid: tuple[str, str]
    src_type_str: str
    boxed_type_str: str
    relay_path: list[tuple[str, str]]
    message: str | None = None
    tb_str: str = ''
    canceller: tuple[str, str] | None = None
    sender: tuple[str, str] | None = None  # of a message that overran a stream
    cid: str | None = None
    _bad_msg: Started[Any] | Yield[Any] | Return[Any] | None = None
    _bad_msg_as_dict: dict[Any, Any] | None = None


_runtime_msgs: Final[list[type[Struct]]] = [
    Aid,
    SpawnSpec,
    Start,
    StartAck,
    Stop,
    CancelAck,
    Error,
]
_payload_msgs: Final[list[type[Struct]]] = [Started, Yield, Return]

__msg_types__: Final[list[type[Struct]]] = _runtime_msgs + _payload_msgs

MSG_TYPES: Final[frozenset[type[Struct]]] = frozenset(__msg_types__)
_msg_table: Final[dict[str, type[Struct]]] = {t.__name__: t for t in __msg_types__}

if TYPE_CHECKING:
    MsgType = (
        Aid
        | SpawnSpec
        | Start
        | StartAck
        | Stop
        | CancelAck
        | Error
        | Started[Any]
        | Yield[Any]
        | Return[Any]
    )
else:
    MsgType = Union[tuple(__msg_types__)]  # noqa: UP007
__msg_spec__ = MsgType


def mk_msg_spec(
    payload_type_union: Any = Any,
    spec_build_method: Literal['indexed_generics'] = 'indexed_generics',
) -> tuple[Any, list[Any]]:
    """
    Return the message union for a payload type.

    Args:
        payload_type_union: What `Started`, `Yield` and `Return` may carry.
        spec_build_method: Only `'indexed_generics'`.
    Returns:
        The union, and its ten members: the payload messages, then the others.
    Raises:
        ValueError: Another `spec_build_method`.
    """
    if spec_build_method != 'indexed_generics':
        raise ValueError(
            f'cannot build a message spec by {spec_build_method!r};'
            " use 'indexed_generics'"
        )
    payload_msgs: list[Any] = [Started, Yield, Return]
    members = [msg[payload_type_union] for msg in payload_msgs] + _runtime_msgs
    return Union[tuple(members)], members  # noqa: UP007


def from_dict_msg(
    dict_msg: MutableMapping[str, Any],
    msgT: type[Struct] | None = None,  # noqa: N803
    tag_field: str = _TAG_FIELD,
    use_pretty: bool = False,
) -> Any:
    """
    Return the message a plainly decoded dict stands for.

    Args:
        dict_msg: Fields by name; the tag is taken out of it.
        msgT: The message's class; `None` means the one the tag names.
        tag_field: Key of the tag.
        use_pretty: Return an instance of a new subclass with the readable repr.
    Raises:
        KeyError: No tag, or one that names no message.
    """
    tag = dict_msg.pop(tag_field, None)
    cls = _msg_table[tag] if msgT is None else msgT
    if use_pretty:
        cls = pretty_struct.pretty_subclass(cls)
    return cls(**dict_msg)
