"""Supervision of a run-once child that is gone before its error was collected."""

from __future__ import annotations

import pytest

from tractor._protocol.supervise import Join, Supervision

A = ('a', 'u1')


class Cancelled(BaseException):
    """Stands for `trio.Cancelled`."""


@pytest.fixture
def sup() -> Supervision:
    """A supervision of one run-once child, its body still running."""
    sup = Supervision()
    sup.added(A)
    sup.runs_once(A)
    return sup


def test_error_left_by_an_orderly_end_is_raised(sup):
    """Whoever asked it to end did not ask for that."""
    error = ValueError()
    sup.asked(A)
    assert not sup.ended(A, orderly=False)
    sup.left(A, error, only_cancelled=False)
    sup.body_ended(None)
    assert sup.next_step() is Join.DONE
    assert sup.outcome(Cancelled) is error


def test_cancellation_that_was_asked_for_is_no_error(sup):
    """It is what was to come of the request."""
    sup.asked(A)
    sup.ended(A, orderly=False)
    sup.left(A, ValueError(), only_cancelled=True)
    sup.body_ended(None)
    assert sup.outcome(Cancelled) is None


@pytest.mark.parametrize('before', [True, False])
def test_error_that_the_user_has_seen_is_no_error(sup, before):
    """It may be taken before or after the end of the process."""
    sup.asked(A)
    if before:
        sup.result_taken(A)
    sup.ended(A, orderly=False)
    sup.left(A, ValueError(), only_cancelled=False)
    if not before:
        sup.result_taken(A)
    sup.body_ended(None)
    assert sup.outcome(Cancelled) is None


@pytest.mark.parametrize('came_before', [True, False])
def test_error_of_the_teardown_is_no_error(sup, came_before):
    """An error that had come before it is."""
    error = ValueError()
    if came_before:
        sup.delivered(A)
    sup.cancel_started()
    sup.asked(A)
    sup.ended(A, orderly=True)
    sup.left(A, error, only_cancelled=False)
    sup.body_ended(None)
    assert sup.outcome(Cancelled) is (error if came_before else None)


def test_error_that_is_known_already_is_kept(sup):
    """The first one counts."""
    error = ValueError()
    sup.failed(A, error)
    sup.ended(A, orderly=True)
    sup.left(A, KeyError(), only_cancelled=False)
    sup.result_taken(A)
    sup.body_ended(None)
    assert sup.outcome(Cancelled) is error
