"""Supervision: who is waited for, who is cancelled, what is raised; rule by rule."""

from __future__ import annotations

import pytest

from tractor._protocol.supervise import GROUP_MESSAGE, Join, Supervision

A, B, C = ('a', 'u1'), ('b', 'u2'), ('c', 'u3')


class Cancelled(BaseException):
    """Stands for `trio.Cancelled`."""


class Died(Exception):
    """Stands for `ActorDied`."""


class Lost(Exception):
    """Stands for a `TransportClosed` that names its peer."""

    def __init__(self, peer) -> None:
        super().__init__(peer)
        self.peer = peer


def supervision(*, daemons=(), run_once=()) -> Supervision:
    """Return a supervision of such children, its body still running."""
    sup = Supervision()
    for uid in (*daemons, *run_once):
        sup.added(uid)
    for uid in run_once:
        sup.runs_once(uid)
    return sup


def die(sup: Supervision, uid) -> Died:
    """End a child unasked, and report its death."""
    death = Died(uid)
    assert sup.ended(uid, orderly=False)
    sup.died(uid, death)
    return death


def end(sup: Supervision, *uids) -> None:
    """Let children end as they were asked to."""
    for uid in uids:
        assert not sup.ended(uid, orderly=True)


def outcome(sup: Supervision) -> BaseException | None:
    """Return what is raised when nothing is left to do."""
    assert sup.next_step() is Join.DONE
    return sup.outcome(Cancelled)


# -- the join phase -----------------------------------------------------------


def test_a_nursery_without_children_is_done():
    """A clean body, and nothing is raised."""
    sup = supervision()
    sup.body_ended(None)
    assert outcome(sup) is None


def test_a_start_under_way_is_waited_for():
    """An empty nursery is not done while a child is on its way."""
    sup = supervision()
    sup.start_begun(A)
    sup.body_ended(None)
    assert sup.next_step() is Join.WAIT
    sup.added(A)
    sup.start_over(A)
    assert sup.next_step() is Join.WAIT
    end(sup, A)
    assert outcome(sup) is None


def test_a_start_under_way_is_cancelled_with_the_rest():
    """The request comes first, so that the child is ended as soon as it is up."""
    sup = supervision()
    sup.start_begun(A)
    error = ValueError()
    sup.body_ended(error)
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    assert sup.next_step() is Join.WAIT
    sup.start_over(A)
    assert outcome(sup) is error


def test_daemons_are_waited_for():
    """A clean body does not cancel them; the last one's end is the nursery's."""
    sup = supervision(daemons=[A, B])
    sup.body_ended(None)
    assert sup.next_step() is Join.WAIT
    sup.asked(A)
    assert not sup.ended(A, orderly=False)
    assert sup.next_step() is Join.WAIT
    end(sup, B)
    assert outcome(sup) is None


def test_all_run_once_children_are_waited_for_before_an_error_counts():
    """25 that fail are 25 errors: none of them cancels another."""
    uids = [(f'n{number}', f'u{number}') for number in range(25)]
    sup = supervision(run_once=uids, daemons=[A])
    sup.body_ended(None)
    errors = [ValueError(number) for number in range(25)]
    for uid, error in zip(uids, errors, strict=True):
        assert sup.next_step() is Join.WAIT
        sup.finished(uid, error)
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    assert sup.next_step() is Join.WAIT
    end(sup, *uids, A)
    group = outcome(sup)
    assert type(group) is ExceptionGroup
    assert group.message == GROUP_MESSAGE == 'tractor.ActorNursery errored with'
    assert list(group.exceptions) == errors


def test_one_failed_run_once_child_ends_idle_daemons():
    """Its error is raised bare."""
    sup = supervision(run_once=[A], daemons=[B])
    sup.body_ended(None)
    error = ValueError()
    sup.finished(A, error)
    end(sup, A)
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    end(sup, B)
    assert outcome(sup) is error


def test_run_once_children_that_return_end_nothing():
    """Results cancel no daemon."""
    sup = supervision(run_once=[A], daemons=[B])
    sup.body_ended(None)
    sup.finished(A)
    assert sup.next_step() is Join.WAIT
    end(sup, A)
    assert sup.next_step() is Join.WAIT


def test_errors_are_in_order_of_completion():
    """Not in the order in which the children were started."""
    sup = supervision(run_once=[A, B])
    sup.body_ended(None)
    first, second = ValueError('b'), ValueError('a')
    sup.finished(B, first)
    sup.finished(A, second)
    end(sup, A, B)
    assert outcome(sup).exceptions == (first, second)


def test_a_child_is_cancelled_for_only_once():
    """After `cancel_started()` there is only waiting, whatever else happens."""
    sup = supervision(daemons=[A, B, C])
    sup.body_ended(Lost(A))
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    assert sup.next_step() is Join.WAIT
    sup.asked(A, reachable=False)
    die(sup, A)
    assert not sup.must_cancel
    assert sup.next_step() is Join.WAIT


def test_a_user_cancel_in_the_body_ends_cleanly():
    """Children that were asked to end are no deaths, and nothing is raised."""
    sup = supervision(daemons=[A], run_once=[B])
    sup.cancel_started()
    sup.asked(A)
    sup.asked(B)
    assert not sup.ended(A, orderly=False)
    sup.body_ended(None)
    assert sup.next_step() is Join.WAIT
    sup.finished(B, RuntimeError('cancelled by the teardown'))
    assert not sup.ended(B, orderly=False)
    assert outcome(sup) is None


# -- the body fails -----------------------------------------------------------


@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt, Cancelled])
def test_a_body_error_cancels_the_children_and_is_raised_bare(kind):
    """Anything that leaves the body does, a cancellation included."""
    sup = supervision(daemons=[A], run_once=[B])
    error = kind()
    sup.body_ended(error)
    assert sup.must_cancel
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    end(sup, A, B)
    assert outcome(sup) is error


def test_a_body_error_without_children_is_done_at_once():
    """There is nobody to cancel."""
    sup = supervision()
    error = ValueError()
    sup.body_ended(error)
    assert outcome(sup) is error


def test_a_child_that_the_teardown_cancels_contributes_nothing():
    """What a run-once child raises because of the teardown is no error of its own."""
    sup = supervision(run_once=[A])
    error = ValueError()
    sup.body_ended(error)
    sup.cancel_started()
    sup.finished(A, RuntimeError('cancelled'))
    end(sup, A)
    assert outcome(sup) is error


def test_an_error_that_had_come_before_the_body_failed_is_collected():
    """The body's own error comes first in the group."""
    sup = supervision(run_once=[A])
    own, childs = ValueError(), RuntimeError()
    sup.collected(A, childs)
    sup.body_ended(own)
    sup.cancel_started()
    sup.finished(A, childs)
    end(sup, A)
    assert outcome(sup).exceptions == (own, childs)


def test_an_error_that_the_user_received_is_not_raised_again():
    """Not by the end of the task, nor from what had come before the body failed."""
    sup = supervision(run_once=[A, B])
    error = RuntimeError()
    for uid in (A, B):
        sup.result_taken(uid)
    sup.collected(A, error)
    sup.finished(A, error)
    sup.finished(B, error)
    end(sup, A, B)
    sup.body_ended(None)
    assert outcome(sup) is None


def test_a_child_error_that_the_body_raises_again_is_one_error():
    """The same instance is reported once, whoever it came through."""
    sup = supervision(run_once=[A])
    error = RuntimeError()
    sup.finished(A, error)
    sup.body_ended(error)
    end(sup, A)
    assert outcome(sup) is error


def test_a_group_with_an_interrupt_is_a_base_group():
    """Only a group of `Exception`s is an `ExceptionGroup`."""
    sup = supervision(run_once=[A])
    own, childs = KeyboardInterrupt(), RuntimeError()
    sup.collected(A, childs)
    sup.body_ended(own)
    end(sup, A)
    group = outcome(sup)
    assert type(group) is BaseExceptionGroup
    assert group.exceptions == (own, childs)


def test_a_group_that_the_body_raises_is_not_wrapped():
    """As the only error it surfaces as the same object."""
    sup = supervision()
    group = ExceptionGroup('users', [ValueError(), TypeError()])
    sup.body_ended(group)
    assert outcome(sup) is group


# -- cancellation yields ------------------------------------------------------


@pytest.mark.parametrize(
    'cancelled',
    [
        Cancelled(),
        BaseExceptionGroup('g', [Cancelled(), Cancelled()]),
        BaseExceptionGroup('g', [Cancelled(), BaseExceptionGroup('h', [Cancelled()])]),
    ],
    ids=['one', 'group', 'nested'],
)
def test_a_cancellation_yields_to_a_child_error(cancelled):
    """Collected errors win over what is only a cancellation, however grouped."""
    sup = supervision(run_once=[A])
    error = RuntimeError()
    sup.collected(A, error)
    sup.body_ended(cancelled)
    end(sup, A)
    assert outcome(sup) is error


def test_a_group_that_holds_an_error_does_not_yield():
    """A cancellation beside an error of the body hides nothing."""
    sup = supervision(run_once=[A])
    own = BaseExceptionGroup('g', [Cancelled(), ValueError()])
    error = RuntimeError()
    sup.collected(A, error)
    sup.body_ended(own)
    end(sup, A)
    assert outcome(sup).exceptions == (own, error)


def test_a_cancelled_join_asks_the_children_to_end():
    """Without other errors the cancellation is what is raised."""
    sup = supervision(daemons=[A], run_once=[B])
    sup.body_ended(None)
    cancelled = Cancelled()
    sup.join_cancelled(cancelled, Cancelled)
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    sup.finished(B, RuntimeError('cancelled by the teardown'))
    end(sup, A, B)
    assert outcome(sup) is cancelled


def test_a_cancelled_join_yields_to_what_was_collected():
    """An error that was there already wins."""
    sup = supervision(run_once=[A, B])
    sup.body_ended(None)
    error = RuntimeError()
    sup.finished(A, error)
    sup.join_cancelled(Cancelled(), Cancelled)
    sup.cancel_started()
    end(sup, A, B)
    assert outcome(sup) is error


def test_a_cancelled_join_does_not_replace_the_bodys_error():
    """The body had failed first."""
    sup = supervision(daemons=[A])
    error = ValueError()
    sup.body_ended(error)
    sup.join_cancelled(Cancelled(), Cancelled)
    sup.cancel_started()
    end(sup, A)
    assert outcome(sup) is error


# -- deaths -------------------------------------------------------------------


def test_a_death_cancels_the_rest_while_the_body_runs():
    """One cancels all, and at once."""
    sup = supervision(daemons=[A, B])
    death = die(sup, A)
    assert sup.must_cancel
    assert not sup.body_over
    sup.body_ended(None)
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    end(sup, B)
    assert outcome(sup) is death


def test_a_death_does_not_wait_for_run_once_siblings():
    """Unlike the error of a task, the end of an actor ends the nursery."""
    sup = supervision(daemons=[A], run_once=[B])
    sup.body_ended(None)
    assert sup.next_step() is Join.WAIT
    die(sup, A)
    assert sup.next_step() is Join.CANCEL


OWN_ERRORS = {
    'a clean body': None,
    'its symptom': Lost(A),
    'its symptoms': ExceptionGroup('g', [Lost(A), Lost(A)]),
    'the symptom of another': Lost(B),
    'its symptom and an error': ExceptionGroup('g', [Lost(A), ValueError()]),
    'an interrupt': KeyboardInterrupt(),
    'a cancellation': Cancelled(),
}


@pytest.mark.parametrize('orderly', [False, True])
@pytest.mark.parametrize('asked', [False, True])
@pytest.mark.parametrize('failed', [False, True])
@pytest.mark.parametrize('own', OWN_ERRORS.values(), ids=OWN_ERRORS)
def test_what_counts_as_a_death(orderly, asked, failed, own):
    """An end that nobody asked for and nothing else explains, before the teardown."""
    sup = supervision(run_once=[A])
    if failed:
        sup.finished(A, ValueError())
    if asked:
        sup.asked(A)
    sup.body_ended(own)
    assert sup.ended(A, orderly) is not (orderly or asked or failed)


@pytest.mark.parametrize('orderly', [False, True])
@pytest.mark.parametrize('reachable', [None, False, True])
@pytest.mark.parametrize('failed', [False, True])
@pytest.mark.parametrize('own', OWN_ERRORS)
def test_what_counts_as_a_death_in_a_teardown(orderly, reachable, failed, own):
    """
    Only what had made the body fail: a loss, and it was the body's only trouble.

    A child that is found out of reach after an interrupt, say, is of no interest.
    """
    sup = supervision(run_once=[A])
    if failed:
        sup.finished(A, ValueError())
    sup.body_ended(OWN_ERRORS[own])
    sup.cancel_started()
    if reachable is not None:
        sup.asked(A, reachable)
    is_why = own in ('its symptom', 'its symptoms')
    expected = not orderly and not failed and reachable is False and is_why
    assert sup.ended(A, orderly) is expected


def test_a_farewell_after_a_vain_request_is_no_death():
    """Who says that it ends in order is believed, even if found out of reach."""
    sup = supervision(daemons=[A])
    sup.body_ended(Lost(A))
    sup.cancel_started()
    sup.asked(A, reachable=False)
    sup.farewell(A)
    assert not sup.ended(A, orderly=False)


def test_a_request_after_a_vain_one_changes_nothing():
    """The connection was gone: nothing that was asked later can be why it ended."""
    sup = supervision(daemons=[A])
    sup.body_ended(Lost(A))
    sup.cancel_started()
    sup.asked(A, reachable=False)
    sup.asked(A)
    assert sup.ended(A, orderly=False)


def test_a_request_to_an_unknown_child_is_ignored():
    """Any peer may say farewell."""
    sup = supervision()
    sup.asked(A)
    sup.result_taken(A)
    assert sup.children == {}


def test_a_death_ends_the_wait_for_a_result():
    """A run-once child that died has nothing more to tell."""
    sup = supervision(run_once=[A])
    sup.body_ended(None)
    death = die(sup, A)
    assert not sup.children[A].pending
    assert outcome(sup) is death


def test_a_failed_runtime_cancels_the_rest_and_is_no_death():
    """It told why it ends: that error is raised, and its end adds none."""
    sup = supervision(daemons=[A, B])
    error = RuntimeError()
    sup.failed(A, error)
    assert sup.must_cancel
    assert not sup.ended(A, orderly=False)
    sup.body_ended(None)
    assert sup.next_step() is Join.CANCEL
    sup.cancel_started()
    end(sup, B)
    assert outcome(sup) is error


def test_a_runtime_that_fails_during_the_teardown_adds_nothing():
    """What is torn down may break."""
    sup = supervision(daemons=[A])
    sup.cancel_started()
    sup.failed(A, RuntimeError())
    assert not sup.ended(A, orderly=False)
    sup.body_ended(None)
    assert outcome(sup) is None


def test_a_runtime_that_told_why_it_fails_did_not_die():
    """Also if the teardown could not reach it any more."""
    sup = supervision(daemons=[A])
    sup.body_ended(Lost(A))
    sup.cancel_started()
    sup.asked(A, reachable=False)
    sup.failed(A, RuntimeError())
    assert not sup.ended(A, orderly=False)


# -- symptoms -----------------------------------------------------------------


def test_a_symptom_becomes_the_cause_of_the_death():
    """A body that failed for want of the dead child: the death is the error."""
    sup = supervision(daemons=[A])
    death = die(sup, A)
    symptom = Lost(A)
    sup.body_ended(symptom)
    assert outcome(sup) is death
    assert death.__cause__ is symptom


def test_a_death_keeps_the_cause_it_has():
    """What is known already is not replaced by a symptom."""
    sup = supervision(daemons=[A])
    death = die(sup, A)
    death.__cause__ = known = OSError()
    sup.body_ended(Lost(A))
    assert outcome(sup) is death
    assert death.__cause__ is known


@pytest.mark.parametrize('peer', [None, B], ids=['nobody', 'a living child'])
def test_a_lost_connection_to_another_peer_is_no_symptom(peer):
    """Only what names a dead child says nothing new."""
    sup = supervision(daemons=[A, B])
    death = die(sup, A)
    own = Lost(peer)
    sup.body_ended(own)
    end(sup, B)
    assert outcome(sup).exceptions == (own, death)


def test_a_symptom_found_before_the_death_counts_as_one():
    """The body may notice first; the process is reaped later."""
    sup = supervision(daemons=[A])
    sup.body_ended(Lost(A))
    sup.cancel_started()
    sup.asked(A, reachable=False)
    death = die(sup, A)
    assert outcome(sup) is death


def test_a_death_that_explains_nothing_is_no_death():
    """The body lost A; that B was dead when the teardown came is not why."""
    sup = supervision(daemons=[A, B])
    sup.body_ended(Lost(A))
    sup.cancel_started()
    sup.asked(B, reachable=False)
    assert not sup.ended(B, orderly=False)


def test_a_lost_connection_without_a_death_is_an_error():
    """A child that left in order, and a body that still wanted it."""
    sup = supervision(daemons=[A])
    own = Lost(A)
    sup.body_ended(own)
    end(sup, A)
    assert outcome(sup) is own


def test_symptoms_are_taken_out_of_a_group():
    """What else the group holds stays, nested groups included."""
    sup = supervision(daemons=[A])
    death = die(sup, A)
    left = ValueError(), TypeError()
    inner = ExceptionGroup('inner', [Lost(A), left[1]])
    sup.body_ended(ExceptionGroup('outer', [Lost(A), left[0], inner]))
    own, last = outcome(sup).exceptions
    assert last is death
    assert own.subgroup(Lost) is None
    assert own.subgroup(ValueError) is not None
    assert own.subgroup(TypeError) is not None


def test_a_group_of_symptoms_is_dropped():
    """Two tasks that lost the same child: there is one death."""
    sup = supervision(daemons=[A])
    death = die(sup, A)
    sup.body_ended(ExceptionGroup('g', [Lost(A), Lost(A)]))
    assert outcome(sup) is death


# -- interrupts and duplicates --------------------------------------------------------


def test_an_interrupt_of_the_join_is_not_lost():
    """Ctrl-C while a cancelled nursery waits for its children is what it raises."""
    sup = supervision(daemons=[A])
    sup.body_ended(Cancelled())
    sup.cancel_started()
    interrupt = KeyboardInterrupt()
    sup.join_cancelled(interrupt, Cancelled)
    end(sup, A)
    assert outcome(sup) is interrupt


def test_an_error_inside_the_bodys_group_is_told_once():
    """A child's error that the body raised within a group is not collected again."""
    sup = supervision(daemons=[A])
    error = RuntimeError()
    sup.failed(A, error)
    group = ExceptionGroup('g', [error, ValueError()])
    sup.body_ended(group)
    sup.cancel_started()
    end(sup, A)
    assert outcome(sup) is group


def test_an_error_from_before_the_request_is_collected():
    """A child that had failed, unseen, before it was asked to end: nothing is lost."""
    sup = supervision(run_once=[A])
    childs, own = RuntimeError(), KeyError()
    sup.delivered(A)
    sup.asked(A)
    sup.collected(A, childs)
    sup.body_ended(own)
    end(sup, A)
    assert outcome(sup).exceptions == (own, childs)


def test_an_answer_to_our_own_cancel_is_not_collected():
    """What a run-once child says after it was asked to end is no failure."""
    sup = supervision(run_once=[A])
    sup.cancel_started()
    sup.asked(A)
    sup.collected(A, RuntimeError('cancelled'))
    own = KeyError()
    sup.body_ended(own)
    end(sup, A)
    assert outcome(sup) is own
