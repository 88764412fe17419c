"""
Typed messages: the wire set, codecs, payload specs and function references.

Only this package imports `msgspec`; other layers take from here what they need
of it.  Names load at first use, none needs a running runtime.  `_ops`, which
depends on contexts and errors, is listed for attribute access only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tractor._lazy import lazy_exports

if TYPE_CHECKING:
    from tractor.msg._codec import *  # noqa: F403
    from tractor.msg.pretty_struct import Struct as Struct
    from tractor.msg.ptr import NamespacePath as NamespacePath
    from tractor.msg.types import *  # noqa: F403

# Each module's names, as in its `__all__`.
_NAMES = {
    'types': 'Aid CancelAck Error MSG_TYPES Msg MsgType PayloadMsg PayloadT Return'
    ' SpawnSpec Start StartAck Started Stop Yield __msg_spec__ __msg_types__',
    '_codec': 'DecodeError MsgCodec MsgDec MsgspecError Raw ValidationError'
    ' _ctxvar_MsgCodec _def_msgspec_codec _def_tractor_codec apply_codec'
    ' current_codec decode_any limit_msg_spec mk_codec mk_dec',
    'pretty_struct': 'Struct',
    'ptr': 'NamespacePath',
    '_exts': '',
    '_ops': '',
}

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {module: f'{__name__}.{module}' for module in _NAMES}
    | {
        name: f'{__name__}.{module}:{name}'
        for module, names in _NAMES.items()
        for name in names.split()
    },
)
