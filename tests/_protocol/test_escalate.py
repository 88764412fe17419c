"""Ask, terminate, kill: the steps, their deadlines, and their order."""

from __future__ import annotations

from math import inf
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tractor._protocol import escalate
from tractor._protocol.escalate import Escalation, Step

EXAMPLES: Final = 200

# What follows when a step's time is over.
NEXT: Final = {
    Step.ASK: Step.TERMINATE,
    Step.WAIT: Step.TERMINATE,
    Step.TERMINATE: Step.KILL,
    Step.KILL: Step.KILL,
    Step.DONE: Step.DONE,
}


def at(step: Step, *, patient: bool = False) -> Escalation:
    """Return an escalation that has come to a step."""
    steps = Escalation(reachable=True, patient=patient)
    steps.step = step
    return steps


def test_the_timing_constants():
    """The limits of the contract, and the two that follow from them."""
    assert escalate.ASK_TIMEOUT == 0.5
    assert escalate.NURSERY_TIMEOUT == 3.0
    assert escalate.BOOT_GRACE == 0.5
    assert escalate.LOST_GRACE == 0.5
    assert escalate.KILL_AFTER == 1.6
    # A child that confirmed may wait 3 s for its peers and kill a child of its own.
    assert escalate.EXIT_AFTER_ACK == 3.0 + escalate.KILL_AFTER


@pytest.mark.parametrize(('reachable', 'first'), [(True, Step.ASK), (False, Step.WAIT)])
@pytest.mark.parametrize('patient', [False, True])
def test_the_first_step(reachable, first, patient):
    """A child that cannot be asked is waited for: it may be ending by itself."""
    assert Escalation(reachable, patient).step is first


@pytest.mark.parametrize('step', Step)
def test_each_step_overdue(step):
    """Silence leads on to the next step, in one order, and no further than a kill."""
    steps = at(step)
    assert steps.overdue() is NEXT[step]
    assert steps.step is NEXT[step]


@pytest.mark.parametrize(
    ('step', 'seconds'),
    [
        (Step.ASK, 0.5),
        (Step.WAIT, 0.5),
        (Step.TERMINATE, 1.6),
        (Step.KILL, inf),
        (Step.DONE, 0.0),
    ],
)
def test_each_steps_deadline(step, seconds):
    """Every step is bounded but the kill, which cannot be refused."""
    assert at(step).deadline == seconds


def test_a_silent_child():
    """Asked, terminated, killed: every step once."""
    steps = Escalation(reachable=True)
    seen = [steps.step]
    while steps.overdue() is not seen[-1]:
        seen.append(steps.step)
    assert seen == [Step.ASK, Step.TERMINATE, Step.KILL]


def test_a_child_that_confirms_but_stays():
    """It may take its time to leave, then the steps go on."""
    steps = Escalation(reachable=True)
    assert steps.acked() == escalate.EXIT_AFTER_ACK
    assert steps.step is Step.WAIT
    assert steps.overdue() is Step.TERMINATE
    assert steps.overdue() is Step.KILL


@pytest.mark.parametrize('step', Step)
def test_an_end_is_the_end(step):
    """A process that is gone is done with at once."""
    steps = at(step)
    steps.ended()
    assert steps.step is Step.DONE
    assert steps.deadline == 0.0
    assert steps.overdue() is Step.DONE


@pytest.mark.parametrize('reachable', [True, False])
@pytest.mark.parametrize('acks', [True, False])
def test_a_patient_escalation_never_goes_beyond_asking(reachable, acks):
    """Whoever debugs the child has all the time; the request itself is bounded."""
    steps = Escalation(reachable, patient=True)
    if reachable:
        assert steps.deadline == escalate.ASK_TIMEOUT
    if acks:
        assert steps.acked() == inf
    for _ in range(4):
        assert steps.overdue() is Step.WAIT
        assert steps.deadline == inf


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(
    reachable=st.booleans(),
    patient=st.booleans(),
    acks=st.booleans(),
    events=st.lists(st.sampled_from(['overdue', 'overdue', 'ended']), max_size=8),
)
def test_the_steps_only_go_forward(reachable, patient, acks, events):
    """After at most one ack no step comes twice, and none is left out on the way."""
    steps = Escalation(reachable, patient)
    order = list(Step)
    if acks and reachable:
        steps.acked()
    for event in events:
        before = steps.step
        if event == 'ended':
            steps.ended()
            break
        after = steps.overdue()
        assert order.index(after) >= order.index(before)
        if patient:
            assert after is Step.WAIT
        else:
            assert after is NEXT[before]
