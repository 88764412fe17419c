"""The table of running requests, and the event that tells when it is empty."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import trio

from tractor._context import Context
from tractor._exceptions import TransportClosed
from tractor.msg.types import Aid, Return, Start, StartAck
from tractor.runtime import _rpc
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


class BareChannel:
    """No more of a channel than a served task needs."""

    aid = Aid('peer', 'uuid')

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def connected(self) -> bool:
        return True

    async def send(self, msg: Any) -> None:
        self.sent.append(msg)


@pytest.mark.parametrize('kind', [SimpleNamespace, MagicMock])
@pytest.mark.parametrize('fails', [False, True])
def test_a_task_is_served_outside_of_any_runtime(kind, fails, monkeypatch):
    """With stand-ins for actor, context and channel, through the public surface."""
    chan = BareChannel()
    ctx = SimpleNamespace(cid='c', chan=chan, _scope=None, _remote_error=None)
    actor = kind(
        get_context=lambda **kwargs: ctx,
        _rpc_tasks={},
        _ongoing_rpc_tasks=trio.Event(),
    )
    seen: list[Any] = []
    monkeypatch.setattr(_rpc, 'pack_error', lambda err, **kwargs: (err, kwargs))

    class Status:
        def started(self, value: Any) -> None:
            assert list(actor._rpc_tasks) == [(chan, 'c')]
            assert isinstance(ctx._scope, trio.CancelScope)
            seen.append(value)

    error = ValueError('told')

    async def function() -> int:
        if fails:
            raise error
        return 7

    trio.run(
        partial(_rpc._invoke, task_status=Status()), actor, 'c', chan, function, {}
    )
    assert seen == [ctx]
    last = (error, {'cid': 'c'}) if fails else Return('c', 7)
    assert chan.sent == [StartAck('c', 'asyncfunc'), last]
    assert not actor._rpc_tasks
    assert actor._ongoing_rpc_tasks.is_set()


def test_an_error_is_shipped_over_a_bare_channel():
    """To who has only `send()`, and does not matter if that fails."""

    class Broken(BareChannel):
        async def send(self, msg: Any) -> None:
            await super().send(msg)
            raise TransportClosed('gone')

    chan: Any = Broken()
    trio.run(_rpc.try_ship_error_to_remote, chan, ValueError('told'))
    assert len(chan.sent) == 1
