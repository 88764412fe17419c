"""The inbound side of a context: what is queued, for whom, and what is made for it."""

from __future__ import annotations

from typing import Any

import pytest

from tractor._context import Context
from tractor._protocol.dialog import Stage
from tractor.msg.types import Return, StartAck


def make(stage: Stage = Stage.CALLED) -> Context:
    """Return a context without a channel and an actor, which nothing here needs."""
    nobody: Any = None
    return Context(nobody, 'c', nobody, 'module:function', stage=stage)


def test_a_task_that_takes_no_messages_has_no_mailbox():
    """One is made when somebody looks, and closed already if the context is over."""
    ctx = make(Stage.SERVING)
    ctx._end()
    assert ctx._box is None
    assert ctx._rx_chan._state.is_closed
    assert ctx._rx_chan is ctx._send_chan is ctx._box


@pytest.mark.parametrize('functype', ['asyncfunc', 'context'])
def test_who_waits_for_the_result_is_not_woken_for_the_ack(functype):
    """The ack of a call that ends by `Return` moves the dialog on and is not queued."""
    ctx = make()
    ctx._deliver(StartAck('c', functype))
    assert ctx._dialog.stage is not Stage.CALLED
    assert len(ctx._rx_chan) == 0
    answer: Return[Any] = Return('c', b'')
    ctx._deliver(answer)
    assert ctx._rx_chan.receive_nowait() is answer


def test_the_ack_is_queued_for_who_asked_for_it():
    """`start_remote_task()` waits for the ack of a function of any kind."""
    ctx = make()
    ctx._awaits_ack = True
    ack = StartAck('c', 'asyncfunc')
    ctx._deliver(ack)
    assert ctx._rx_chan.receive_nowait() is ack


def test_the_ack_of_a_generator_is_always_queued():
    """A plain call of one has to be told that it streams."""
    ctx = make()
    ack = StartAck('c', 'asyncgen')
    ctx._deliver(ack)
    assert ctx._rx_chan.receive_nowait() is ack
