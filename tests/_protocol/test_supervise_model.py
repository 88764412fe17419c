"""
Supervision: any legal sequence of events against a model.

The model keeps what the contract says about every child and every error; it shares no
code and no shortcut with what it judges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tractor._protocol.supervise import GROUP_MESSAGE, Join, Supervision

EXAMPLES: Final = 150  # of the state machine; --proof-rounds raises it


class Cancelled(BaseException):
    """Stands for `trio.Cancelled`."""


class Died(Exception):
    """Stands for `ActorDied`."""


class Lost(Exception):
    """Stands for a `TransportClosed` that names its peer."""

    def __init__(self, peer) -> None:
        super().__init__(peer)
        self.peer = peer


class Child:
    """What the model knows of one child."""

    def __init__(self, uid, run_once: bool) -> None:
        self.uid = uid
        self.run_once = run_once
        self.alive = True
        self.asked = False
        self.lost = False
        self.taken = False
        self.waited_for = run_once
        self.by_itself = False  # and it came before anybody asked it to end
        self.delivered = False  # its main task's end has come over the wire
        self.error: BaseException | None = None


def leaves(exc: BaseException | None) -> list[BaseException]:
    """Return the errors in a possible group, one level for each group."""
    if exc is None:
        return []
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in leaves(inner)]
    return [exc]


class SupervisionMachine(RuleBasedStateMachine):
    """Events in any order in which a nursery can send them."""

    @initialize()
    def open(self):
        self.sup = Supervision()
        self.all: list[Child] = []
        self.collected: dict[tuple[str, str], BaseException] = {}
        self.own: BaseException | None = None
        self.dead: list[tuple[str, str]] = []
        self.body_over = False
        self.cancelling = False
        self.ends_all = False  # a death, or an error that ends the nursery

    # -- who can be meant

    def living(self) -> list[Child]:
        return [child for child in self.all if child.alive]

    def pending(self) -> list[Child]:
        return [child for child in self.living() if child.waited_for]

    def choose(self, pick: int, wanted: Callable[[Child], object]) -> Child | None:
        found = [child for child in self.all if wanted(child)]
        return found[pick % len(found)] if found else None

    def is_open(self) -> bool:
        """Whether the nursery's block is still being executed."""
        return not self.body_over or bool(self.living())

    def collect(self, child: Child, error: BaseException) -> None:
        self.collected.setdefault(child.uid, error)

    def tell_delivered(self, child: Child) -> None:
        """What the nursery knows it tells before the child counts as asked."""
        if child.delivered and child.error is not None:
            self.sup.delivered(child.uid)

    # -- events

    @precondition(lambda self: not self.body_over and not self.cancelling)
    @rule(run_once=st.booleans())
    def child_comes_up(self, run_once):
        uid = (f'n{len(self.all)}', f'u{len(self.all)}')
        self.sup.added(uid)
        if run_once:
            self.sup.runs_once(uid)
        self.all.append(Child(uid, run_once))

    @rule(pick=st.integers(0, 9))
    def main_task_answers(self, pick):
        """Its result or error arrives; nobody has looked at it yet."""
        child = self.choose(pick, lambda c: c.waited_for and not c.delivered)
        if child is not None and child.alive:
            child.delivered = True
            child.error = RuntimeError(child.uid) if pick % 3 else None
            child.by_itself = not child.asked

    @precondition(lambda self: not self.body_over)
    @rule(pick=st.integers(0, 9))
    def user_takes_a_result(self, pick):
        child = self.choose(pick, lambda c: c.delivered)
        if child is not None:
            child.taken = True
            self.sup.result_taken(child.uid)

    # Results are pulled once the join phase has begun.
    @precondition(lambda self: self.body_over or self.cancelling)
    @rule(pick=st.integers(0, 9))
    def main_task_is_over(self, pick):
        child = self.choose(pick, lambda c: c.alive and c.waited_for and c.delivered)
        if child is None:
            return
        child.waited_for = False
        self.sup.finished(child.uid, child.error)
        if child.error is not None and not child.taken and not self.cancelling:
            self.collect(child, child.error)
        self.sup.asked(child.uid)
        child.asked = child.asked or not child.lost

    @rule(pick=st.integers(0, 9))
    def somebody_asks_a_child(self, pick):
        """The user, or another actor; one that was out of reach was not asked."""
        child = self.choose(pick, lambda c: c.alive)
        if child is not None:
            self.tell_delivered(child)
            self.sup.asked(child.uid)
            child.asked = child.asked or not child.lost

    @rule(pick=st.integers(0, 9))
    def child_says_farewell(self, pick):
        """Somebody had asked it, also one that then was out of reach."""
        child = self.choose(pick, lambda c: c.alive)
        if child is not None:
            self.tell_delivered(child)
            self.sup.farewell(child.uid)
            child.asked = True

    @precondition(lambda self: self.cancelling)
    @rule(pick=st.integers(0, 9))
    def teardown_cannot_reach_a_child(self, pick):
        child = self.choose(pick, lambda c: c.alive and not c.asked)
        if child is not None:
            self.sup.asked(child.uid, reachable=False)
            child.lost = True

    @rule(pick=st.integers(0, 9))
    def runtime_of_a_child_fails(self, pick):
        child = self.choose(pick, lambda c: c.alive)
        if child is None:
            return
        error = OSError(child.uid)
        self.tell_delivered(child)
        self.sup.failed(child.uid, error)
        child.asked = True
        if not self.cancelling:
            self.collect(child, error)
            self.ends_all = True

    @rule(pick=st.integers(0, 9), orderly=st.booleans())
    def process_ends(self, pick, orderly):
        child = self.choose(pick, lambda c: c.alive)
        if child is None:
            return
        accounted = orderly or child.asked or child.uid in self.collected
        died = self.sup.ended(child.uid, orderly)
        # A teardown finds only the death that made the body fail worth telling.
        trouble = leaves(self.own)
        is_why = bool(trouble) and all(
            getattr(leaf, 'peer', None) == child.uid for leaf in trouble
        )
        expected = not self.cancelling or (child.lost and is_why)
        assert died is (expected and not accounted)
        child.alive = child.waited_for = False
        if died:
            death = Died(child.uid)
            self.sup.died(child.uid, death)
            self.collect(child, death)
            self.dead.append(child.uid)
            self.ends_all = True

    @precondition(lambda self: not self.cancelling and self.living())
    @rule()
    def user_cancels_the_nursery(self):
        self.sup.cancel_started()
        self.cancelling = True

    def body_error(self, kind: str, pick: int) -> BaseException | None:
        uids = [child.uid for child in self.all] or [None]
        lost = Lost(uids[pick % len(uids)])
        taken = [c.error for c in self.all if c.taken and c.error is not None]
        return {
            'none': None,
            'error': ValueError('body'),
            'interrupt': KeyboardInterrupt(),
            'cancelled': Cancelled(),
            'all cancelled': BaseExceptionGroup('g', [Cancelled(), Cancelled()]),
            'lost': lost,
            'lost and more': BaseExceptionGroup(
                'g', [lost, ValueError('1'), TypeError('2')]
            ),
            'received': taken[pick % len(taken)] if taken else None,
        }[kind]

    @precondition(lambda self: not self.body_over and len(self.all) > 1)
    @rule(
        kind=st.sampled_from(
            [
                'none',
                'none',
                'error',
                'interrupt',
                'cancelled',
                'all cancelled',
                'lost',
                'lost and more',
                'received',
            ]
        ),
        pick=st.integers(0, 9),
    )
    def body_ends(self, kind, pick):
        self.own = self.body_error(kind, pick)
        if self.own is not None:
            for child in self.all:
                if child.waited_for and child.error is not None and child.alive:
                    self.sup.collected(child.uid, child.error)
                    if child.by_itself and not child.taken:
                        self.collect(child, child.error)
            self.ends_all = True
        self.sup.body_ended(self.own)
        self.body_over = True

    @precondition(lambda self: self.body_over and self.living())
    @rule()
    def the_join_is_cancelled(self):
        cancelled = Cancelled()
        self.sup.join_cancelled(cancelled, Cancelled)
        if self.own is None:
            self.own = cancelled
        self.ends_all = True

    @precondition(lambda self: self.body_over)
    @rule()
    def the_next_step_is_taken(self):
        if self.sup.next_step() is Join.CANCEL:
            self.sup.cancel_started()
            self.cancelling = True

    # -- what holds at any time

    @invariant()
    def done_means_that_no_child_is_left(self):
        if hasattr(self, 'sup'):
            assert (self.sup.next_step() is Join.DONE) is (not self.living())

    @invariant()
    def what_ends_all_cancels_before_done(self):
        if not hasattr(self, 'sup') or self.cancelling:
            return
        assert self.sup.must_cancel is self.ends_all
        if self.ends_all and self.living():
            assert self.sup.next_step() is Join.CANCEL

    @invariant()
    def task_errors_wait_for_their_run_once_siblings(self):
        if hasattr(self, 'sup') and not self.ends_all and self.pending():
            assert self.sup.next_step() is Join.WAIT

    @invariant()
    def task_errors_then_end_the_daemons(self):
        if not hasattr(self, 'sup') or self.ends_all or self.cancelling:
            return
        if self.living() and not self.pending():
            step = Join.CANCEL if self.collected else Join.WAIT
            assert self.sup.next_step() is step

    @invariant()
    def nobody_is_asked_twice(self):
        if hasattr(self, 'sup') and self.cancelling and self.living():
            assert self.sup.next_step() is Join.WAIT

    @invariant()
    def every_error_is_raised_once(self):
        if not hasattr(self, 'sup'):
            return
        children = list(self.collected.values())
        own = [
            leaf
            for leaf in leaves(self.own)
            if getattr(leaf, 'peer', None) not in self.dead
        ]
        if children and all(isinstance(leaf, Cancelled) for leaf in own):
            own = []
        expected = own + [error for error in children if error not in own]
        raised = self.sup.outcome(Cancelled)
        assert leaves(raised) == expected
        if len(children) > 1 or (children and own):
            assert isinstance(raised, BaseExceptionGroup)
            assert raised.message == GROUP_MESSAGE

    @invariant()
    def a_symptom_is_the_cause_of_its_death(self):
        if hasattr(self, 'sup') and isinstance(self.own, Lost):
            death = self.collected.get(self.own.peer)
            if self.own.peer in self.dead:
                assert self.sup.outcome(Cancelled) is not None
                assert death.__cause__ is self.own

    @invariant()
    def an_error_that_was_received_is_not_collected(self):
        if hasattr(self, 'sup'):
            known = list(self.sup.errors.values())
            for child in self.all:
                if child.taken and child.error is not None:
                    assert child.error not in known


def test_any_sequence_of_events(pytestconfig):
    """Supervision and the model agree after every event."""
    rounds = pytestconfig.getoption('--proof-rounds', default=None) or 0
    run_state_machine_as_test(
        SupervisionMachine,
        settings=settings(
            max_examples=max(EXAMPLES, rounds),
            stateful_step_count=30,
            deadline=None,
            database=None,
        ),
    )
