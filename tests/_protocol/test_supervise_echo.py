"""Supervision when every process of a terminal gets the same Ctrl-C."""

from __future__ import annotations

import pytest

from tractor._protocol.supervise import Supervision

A, B = ('a', 'u1'), ('b', 'u2')
STRANGER = ('c', 'u3')


class Cancelled(BaseException):
    """Stands for `trio.Cancelled`."""


class Remote(Exception):
    """Stands for a `RemoteActorError`."""

    def __init__(self, src_uid, canceller=None, boxed_type_str='ValueError') -> None:
        super().__init__(src_uid)
        self.src_uid, self.canceller = src_uid, canceller
        self.boxed_type_str = boxed_type_str


class Lost(Exception):
    """Stands for a `TransportClosed` that names its peer."""

    def __init__(self, peer) -> None:
        super().__init__(peer)
        self.peer = peer


ECHOES = [
    Remote(A, canceller=A),
    Remote(A, boxed_type_str='KeyboardInterrupt'),
]
OTHERS = [
    Lost(A),
    Lost(STRANGER),
    Lost(None),
    Remote(A),
    Remote(A, canceller=B),
    Remote(STRANGER, canceller=STRANGER),
    ValueError(),
]


@pytest.fixture
def sup() -> Supervision:
    """A supervision of two run-once children, its body still running."""
    sup = Supervision()
    for uid in (A, B):
        sup.added(uid)
        sup.runs_once(uid)
    return sup


@pytest.mark.parametrize('echo', ECHOES)
def test_child_that_was_interrupted_too_tells_nothing(sup, echo):
    """The interrupt is raised bare, whichever came first."""
    interrupt = KeyboardInterrupt()
    sup.body_ended(None)
    sup.finished(A, echo)
    sup.join_cancelled(interrupt, Cancelled)
    assert sup.outcome(Cancelled) is interrupt


@pytest.mark.parametrize('error', OTHERS)
def test_other_errors_are_raised_with_the_interrupt(sup, error):
    """They have another reason."""
    interrupt = KeyboardInterrupt()
    sup.body_ended(None)
    sup.finished(A, error)
    sup.join_cancelled(interrupt, Cancelled)
    outcome = sup.outcome(Cancelled)
    assert isinstance(outcome, BaseExceptionGroup)
    assert set(outcome.exceptions) == {interrupt, error}


@pytest.mark.parametrize('echo', ECHOES)
def test_echo_in_a_group_of_the_body_is_left_out(sup, echo):
    """A nursery of the user held the calls to the children."""
    interrupt = KeyboardInterrupt()
    sup.body_ended(BaseExceptionGroup('g', [echo, interrupt]))
    assert sup.outcome(Cancelled) is interrupt


@pytest.mark.parametrize('ends_first', [True, False])
def test_a_call_that_met_the_end_of_an_interrupted_child_is_an_echo(sup, ends_first):
    """It said farewell and closed the connection before it could answer."""
    interrupt = KeyboardInterrupt()
    sup.farewell(A)
    if ends_first:
        sup.ended(A, orderly=True)
    sup.body_ended(BaseExceptionGroup('g', [Lost(A), interrupt]))
    sup.cancel_started()
    sup.ended(A, orderly=True)
    assert sup.outcome(Cancelled) is interrupt


def test_a_connection_lost_without_a_farewell_is_told(sup):
    """The child may have crashed on the way: an interrupt does not hide that."""
    group = BaseExceptionGroup('g', [Lost(A), KeyboardInterrupt()])
    sup.body_ended(group)
    sup.asked(A, reachable=False)
    sup.cancel_started()
    sup.ended(A, orderly=False)
    outcome = sup.outcome(Cancelled)
    assert isinstance(outcome, BaseExceptionGroup)
    assert outcome.exceptions == group.exceptions


@pytest.mark.parametrize('error', OTHERS)
def test_group_of_the_body_keeps_other_errors(sup, error):
    """As it is."""
    group = BaseExceptionGroup('g', [error, KeyboardInterrupt()])
    sup.body_ended(group)
    outcome = sup.outcome(Cancelled)
    assert isinstance(outcome, BaseExceptionGroup)
    assert outcome.exceptions == group.exceptions


@pytest.mark.parametrize('echo', ECHOES)
def test_without_an_interrupt_here_it_is_an_error(sup, echo):
    """Somebody interrupted the child alone."""
    sup.body_ended(None)
    sup.finished(A, echo)
    assert sup.outcome(Cancelled) is echo
