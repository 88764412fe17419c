"""Connections between actors: transports, channels and the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tractor._lazy import lazy_exports

if TYPE_CHECKING:
    from tractor.ipc._chan import Channel as Channel
    from tractor.ipc._chan import _connect_chan as _connect_chan

_MODULES = '_server _chan _types _auth _tcp _uds _transport _outbox'

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        'Channel': f'{__name__}._chan:Channel',
        '_connect_chan': f'{__name__}._chan:_connect_chan',
        **{name: f'{__name__}.{name}' for name in _MODULES.split()},
    },
)
