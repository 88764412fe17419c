"""Addresses, the registrar, and how actors find each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tractor._lazy import lazy_exports

if TYPE_CHECKING:
    from tractor.discovery._multiaddr import mk_maddr as mk_maddr
    from tractor.discovery._multiaddr import parse_endpoints as parse_endpoints
    from tractor.discovery._multiaddr import parse_maddr as parse_maddr

_MODULES = '_addr _api _dial _multiaddr _rank _register _registry'

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        'parse_endpoints': f'{__name__}._multiaddr:parse_endpoints',
        'parse_maddr': f'{__name__}._multiaddr:parse_maddr',
        'mk_maddr': f'{__name__}._multiaddr:mk_maddr',
        **{name: f'{__name__}.{name}' for name in _MODULES.split()},
    },
)
