"""
Patterns for trio programs: contexts, broadcast, exception groups, processes.

Only the default mode of `maybe_open_context()` needs a running actor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tractor._lazy import lazy_exports

if TYPE_CHECKING:
    from tractor.trionics._beg import collapse_eg as collapse_eg
    from tractor.trionics._beg import get_collapsed_eg as get_collapsed_eg
    from tractor.trionics._beg import is_multi_cancelled as is_multi_cancelled
    from tractor.trionics._broadcast import AsyncReceiver as AsyncReceiver
    from tractor.trionics._broadcast import BroadcastReceiver as BroadcastReceiver
    from tractor.trionics._broadcast import Lagged as Lagged
    from tractor.trionics._broadcast import broadcast_receiver as broadcast_receiver
    from tractor.trionics._mngrs import gather_contexts as gather_contexts
    from tractor.trionics._mngrs import maybe_open_context as maybe_open_context
    from tractor.trionics._mngrs import maybe_open_nursery as maybe_open_nursery
    from tractor.trionics._subproc import (
        supervise_run_process as supervise_run_process,
    )
    from tractor.trionics._taskc import (
        maybe_raise_from_masking_exc as maybe_raise_from_masking_exc,
    )
    from tractor.trionics._taskc import start_or_cancel as start_or_cancel

# Each module's public names.
_NAMES = {
    '_mngrs': 'gather_contexts maybe_open_context maybe_open_nursery',
    '_broadcast': 'AsyncReceiver broadcast_receiver BroadcastReceiver Lagged',
    '_beg': 'collapse_eg get_collapsed_eg is_multi_cancelled',
    '_taskc': 'maybe_raise_from_masking_exc start_or_cancel',
    '_subproc': 'supervise_run_process',
}

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        name: f'{__name__}.{module}:{name}'
        for module, names in _NAMES.items()
        for name in names.split()
    }
    | {module: f'{__name__}.{module}' for module in (*_NAMES, 'patches')},
)
