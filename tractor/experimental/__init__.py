"""Parts of the API that may still change without notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tractor._lazy import lazy_exports

if TYPE_CHECKING:
    from tractor.experimental import _pubsub

    msgpub = _pubsub.pub

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {'msgpub': 'tractor.experimental._pubsub:pub'}
)
