"""
What makes the fixtures that surround every test `autouse`.

Loaded by a session that uses the plugin, and by no other.  pytest settles before it
collects which fixtures each test gets, so this has its effect only where the session
asked for the plugin; for one that was found to use it later, `_usage.surround()` does
what can still be done.
"""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _surround_each_test(
    _reap_orphaned_subactors: None,
    alert_on_finish: None,
    loglevel: str | None,
    tpt_proto: str,
    _reset_runtime_vars: None,
) -> None:
    """
    Ask for the fixtures of `_usage.AROUND`, by name, in each test.

    So a project's own ones in their place count, with their scope and parameters.  Each
    may have any scope, since this one has the narrowest.
    """
