"""
Corrections applied to trio in this process.

Each module of this package holds one patch: `is_needed()` says whether the
installed trio has the defect, `apply()` corrects it once, `repro()` runs into it.
A child applies them all before its trio starts.
"""

from __future__ import annotations

from typing import Final

from tractor.trionics.patches import _wakeup_socketpair

_PATCHES: Final = {'trio_wakeup_socketpair_drain_eof': _wakeup_socketpair}


def apply_all() -> dict[str, bool]:
    """
    Apply every patch which the installed trio needs.

    Returns:
        Per patch, whether this very call applied it: a second call returns all
        `False`.
    """
    return {name: patch.apply() for name, patch in _PATCHES.items()}
