"""The runtime of one actor: its state, requests, portals, supervision and life."""

from __future__ import annotations

from tractor._lazy import lazy_exports

_MODULES = '_state _portal _runtime _rpc _supervise _boot _endpoint _msgloop _hooks'

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {name: f'{__name__}.{name}' for name in _MODULES.split()}
)
