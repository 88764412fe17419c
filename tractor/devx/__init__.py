"""
Development aids, none of which a running actor needs.

Everything here loads on demand: no module of the runtime imports it at import.
"""

from __future__ import annotations

from tractor._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {'_proctitle': '._proctitle'},
)
