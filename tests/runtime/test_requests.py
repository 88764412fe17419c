"""The table of running requests, and the event that tells when it is empty."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from tractor._context import Context
from tractor._exceptions import TransportClosed
from tractor.msg.types import Start
from tractor.runtime._msgloop import _start
from tractor.runtime._rpc import name_of, register, unregister
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


def test_a_request_of_a_lost_peer_is_not_started():
    """It may have waited while the actor registered; nothing would ever cancel it."""
    actor: Any = SimpleNamespace(_early_requests=None)  # where nothing can be started
    chan: Any = SimpleNamespace(_lost=TransportClosed('gone'), aid=None)
    _start(actor, chan, Start('c', 'module', 'function', {}, ('a', 'uuid')))


@pytest.mark.parametrize('wrapped', [len, partial(partial(len, []), 1)])
def test_a_partial_goes_by_the_name_of_its_function(wrapped):
    """Errors and logs name it."""
    assert name_of(wrapped) == 'len'


def test_a_callable_object_goes_by_its_class():
    """It has no name of its own."""
    assert name_of(SimpleNamespace()) == 'SimpleNamespace'
