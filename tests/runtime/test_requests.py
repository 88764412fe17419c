"""The table of running requests, and the event that tells when it is empty."""

from __future__ import annotations

from typing import Any

from tractor._context import Context
from tractor.runtime._rpc import register, unregister
from tractor.runtime._runtime import Actor


def test_the_event_is_set_exactly_while_no_request_runs():
    """Also for who asked for it before, and whether or not anybody asks meanwhile."""
    chan: Any = object()
    actor = Actor('a', 'uuid')
    ctx = Context(chan, 'c', actor, 'module:function')
    assert actor._ongoing_rpc_tasks.is_set()
    for _ in range(2):
        register(actor, chan, ctx, print)
        seen = actor._ongoing_rpc_tasks
        assert not seen.is_set()
        assert actor._ongoing_rpc_tasks is seen
        unregister(actor, chan, ctx)
        assert seen.is_set()
        assert actor._ongoing_rpc_tasks.is_set()
    register(actor, chan, ctx, print)
    unregister(actor, chan, ctx)
    assert actor._ongoing_rpc_tasks.is_set()
