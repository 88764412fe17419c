"""The inbox: its bound, its spill and what is never lost; then against a plain list."""

from __future__ import annotations

from typing import Final

import pytest
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

from tractor._protocol.inbox import SPILL_SIZE, Fate, Inbox

EXAMPLES: Final = 150  # of the state machine; --proof-rounds raises it


def filled(size: int, *, spilled: int = 0, allow_overruns: bool = False) -> Inbox[int]:
    """Return an inbox with a full queue, numbered from 0, and so many in the spill."""
    inbox: Inbox[int] = Inbox(size, allow_overruns or spilled > 0)
    for number in range(size + spilled):
        inbox.put(number)
    inbox.allow_overruns = allow_overruns
    return inbox


def take_all(inbox: Inbox[int]) -> list[int]:
    """Take until a reader would find nothing."""
    taken = []
    while inbox.data:
        taken.append(inbox.take())
    return taken


def test_messages_leave_in_the_order_they_came():
    """First in, first out, results among stream messages included."""
    inbox: Inbox[int] = Inbox(3)
    assert inbox.put(0) is Fate.QUEUED
    assert inbox.put_final(1) is Fate.QUEUED
    assert inbox.put(2) is Fate.QUEUED
    assert take_all(inbox) == [0, 1, 2]


@pytest.mark.parametrize('size', [1, 2, 64])
def test_one_message_beyond_the_size_is_an_overrun(size):
    """Exactly `max_buffer_size` fit; the next is refused and leaves no trace."""
    inbox: Inbox[int] = Inbox(size)
    fates = [inbox.put(number) for number in range(size + 1)]
    assert fates == [Fate.QUEUED] * size + [Fate.OVERRUN]
    assert len(inbox) == size
    assert take_all(inbox) == list(range(size))


def test_an_overrun_is_no_end():
    """Once there is room again messages are taken again."""
    inbox = filled(1)
    assert inbox.put(1) is Fate.OVERRUN
    inbox.take()
    assert inbox.put(2) is Fate.QUEUED
    assert take_all(inbox) == [2]


def test_a_final_message_finds_room_in_a_full_queue():
    """A result is behind what came before, and the bound does not refuse it."""
    inbox = filled(2)
    assert inbox.put_final(99) is Fate.QUEUED
    assert take_all(inbox) == [0, 1, 99]


def test_final_messages_do_not_count_against_the_bound():
    """First value and end of stream leave all the room to the stream."""
    inbox: Inbox[int] = Inbox(2)
    for number in range(5):
        inbox.put_final(number)
    assert inbox.put(5) is Fate.QUEUED
    assert inbox.put(6) is Fate.QUEUED
    assert inbox.put(7) is Fate.OVERRUN


def test_taking_a_final_message_makes_no_room():
    """Only a stream message that is taken lets the next one in."""
    inbox: Inbox[int] = Inbox(1)
    inbox.put_final(0)
    inbox.put(1)
    assert inbox.take() == 0
    assert inbox.put(2) is Fate.OVERRUN
    assert inbox.take() == 1
    assert inbox.put(3) is Fate.QUEUED


def test_allowed_overruns_are_kept_in_order():
    """What the spill holds follows the queue, one for each that is taken."""
    inbox: Inbox[int] = Inbox(2, allow_overruns=True)
    fates = [inbox.put(number) for number in range(5)]
    assert fates == [Fate.QUEUED] * 2 + [Fate.SPILLED] * 3
    assert len(inbox) == 5
    assert take_all(inbox) == [0, 1, 2, 3, 4]


def test_a_message_does_not_overtake_the_spill():
    """One that comes while the spill still drains queues up behind it."""
    inbox = filled(2, spilled=3, allow_overruns=True)
    assert inbox.take() == 0
    assert inbox.put(5) is Fate.SPILLED
    assert take_all(inbox) == [1, 2, 3, 4, 5]


def test_what_the_spill_gave_back_counts_against_the_bound():
    """A message that moved up takes the room of the one that was taken."""
    inbox = filled(1, spilled=1)
    assert inbox.take() == 0
    assert inbox.put(2) is Fate.OVERRUN
    assert inbox.take() == 1
    assert inbox.put(3) is Fate.QUEUED


def test_a_larger_size_lets_no_message_overtake_the_spill():
    """New room is for what came first."""
    inbox = filled(1, spilled=2, allow_overruns=True)
    inbox.max_buffer_size = 10
    inbox.put(3)
    assert take_all(inbox) == [0, 1, 2, 3]


def test_a_full_spill_sheds_its_oldest():
    """616 fit; then the oldest of the spill goes, never one of the queue."""
    assert SPILL_SIZE == 616
    inbox = filled(2, spilled=SPILL_SIZE, allow_overruns=True)
    assert inbox.shed == 0
    assert inbox.put(1000) is Fate.SHED
    assert inbox.shed == 1
    assert len(inbox) == 2 + SPILL_SIZE
    assert take_all(inbox) == [0, 1, *range(3, 2 + SPILL_SIZE), 1000]


def test_a_final_message_follows_the_spill():
    """What was spilled before the result is still read before it."""
    inbox = filled(1, spilled=2, allow_overruns=True)
    assert inbox.put_final(99) is Fate.QUEUED
    assert take_all(inbox) == [0, 1, 2, 99]


def test_a_final_message_survives_any_flood():
    """Shedding never reaches a result, however much comes behind it."""
    inbox = filled(1, spilled=1, allow_overruns=True)
    inbox.put_final(-1)
    for number in range(3 * SPILL_SIZE):
        inbox.put(number)
    assert take_all(inbox)[:3] == [0, 1, -1]


def test_the_bound_holds_again_after_a_final_message():
    """The spill that a result pushed into the queue counts until it is taken."""
    inbox = filled(1, spilled=2)
    inbox.put_final(99)
    inbox.take()
    inbox.take()
    assert inbox.put(3) is Fate.OVERRUN
    inbox.take()
    assert inbox.put(4) is Fate.QUEUED
    assert take_all(inbox) == [99, 4]


def test_overruns_switched_off_refuse_but_keep_what_was_spilled():
    """The policy is for messages to come; none that was accepted is lost."""
    inbox = filled(1, spilled=2)
    assert inbox.put(3) is Fate.OVERRUN
    assert take_all(inbox) == [0, 1, 2]


def test_a_larger_size_makes_room_at_once():
    """The bound may be raised in place."""
    inbox = filled(1)
    inbox.max_buffer_size = 3
    assert inbox.put(1) is Fate.QUEUED
    assert inbox.put(2) is Fate.QUEUED
    assert inbox.put(3) is Fate.OVERRUN


def test_a_smaller_size_drops_nothing():
    """The bound may be lowered; what is queued is read, then the new bound holds."""
    inbox = filled(3)
    inbox.max_buffer_size = 1
    assert inbox.put(3) is Fate.OVERRUN
    assert take_all(inbox) == [0, 1, 2]
    assert inbox.put(4) is Fate.QUEUED
    assert inbox.put(5) is Fate.OVERRUN


def test_taking_from_an_empty_inbox_is_an_error():
    """A reader has to look first."""
    with pytest.raises(IndexError):
        Inbox(1).take()


def test_closing_forgets_and_counts_everything():
    """Queue, spill and results alike."""
    inbox = filled(2, spilled=3)
    inbox.put_final(99)
    assert inbox.close() == 6
    assert inbox.is_closed
    assert len(inbox) == 0


def test_a_closed_inbox_takes_nothing():
    """Stream messages and results are refused; closing again counts none."""
    inbox: Inbox[int] = Inbox(1, allow_overruns=True)
    inbox.close()
    assert inbox.put(0) is Fate.CLOSED
    assert inbox.put_final(1) is Fate.CLOSED
    assert len(inbox) == 0
    assert inbox.close() == 0
    with pytest.raises(IndexError):
        inbox.take()


class InboxMachine(RuleBasedStateMachine):
    """
    Any sequence of operations, compared with one plain list.

    The list holds everything in the order it has to be read; the last `spilled` of it
    are beyond the bound.
    """

    @initialize(size=st.integers(1, 4), allow=st.booleans())
    def open(self, size, allow):
        self.inbox: Inbox[int] = Inbox(size, allow)
        self.size = size
        self.allow = allow
        self.queue: list[tuple[int, bool]] = []  # number, whether it is final
        self.spilled = 0
        self.shed = 0
        self.finals: list[int] = []  # every final message not yet taken
        self.number = 0
        self.closed = False

    def has_room(self) -> bool:
        in_line = self.queue[: len(self.queue) - self.spilled]
        return sum(not final for _, final in in_line) < self.size

    def refill(self) -> None:
        while self.spilled and self.has_room():
            self.spilled -= 1

    def expect(self, entry: tuple[int, bool]) -> Fate:
        """Put into the list, and return what has to become of it."""
        if self.closed:
            return Fate.CLOSED
        if entry[1]:
            self.spilled = 0
            self.queue.append(entry)
            self.finals.append(entry[0])
            return Fate.QUEUED
        self.refill()
        if not self.spilled and self.has_room():
            self.queue.append(entry)
            return Fate.QUEUED
        if not self.allow:
            return Fate.OVERRUN
        self.queue.append(entry)
        self.spilled += 1
        if self.spilled <= 616:
            return Fate.SPILLED
        del self.queue[len(self.queue) - self.spilled]
        self.spilled -= 1
        self.shed += 1
        return Fate.SHED

    def put_one(self) -> None:
        self.number += 1
        fate = self.inbox.put(self.number)
        assert fate is self.expect((self.number, False))

    @rule(count=st.integers(1, 4))
    def put(self, count):
        for _ in range(count):
            self.put_one()

    @precondition(lambda self: self.allow and not self.closed)
    @rule(count=st.integers(610, 630))
    def flood(self, count):
        for _ in range(count):
            self.put_one()

    @rule()
    def put_final(self):
        self.number += 1
        fate = self.inbox.put_final(self.number)
        assert fate is self.expect((self.number, True))

    @rule(count=st.integers(1, 4))
    def take(self, count):
        for _ in range(count):
            if not self.queue:
                with pytest.raises(IndexError):
                    self.inbox.take()
                return
            number, final = self.queue.pop(0)
            assert self.inbox.take() == number
            if final:
                assert self.finals.pop(0) == number
            self.refill()

    @rule(allow=st.booleans())
    def set_policy(self, allow):
        self.allow = self.inbox.allow_overruns = allow

    # While the spill holds something, resizing has a test of its own above.
    @precondition(lambda self: not self.spilled)
    @rule(size=st.integers(1, 6))
    def resize(self, size):
        self.size = self.inbox.max_buffer_size = size

    @precondition(lambda self: self.number > 8)
    @rule()
    def close(self):
        assert self.inbox.close() == len(self.queue)
        self.queue, self.finals, self.spilled = [], [], 0
        self.closed = True

    @invariant()
    def the_inbox_is_the_list(self):
        if not hasattr(self, 'inbox'):
            return
        assert len(self.inbox) == len(self.queue)
        assert self.inbox.shed == self.shed
        assert self.inbox.is_closed is self.closed
        # Readers look at `data`: what is in the spill alone would never be read.
        assert bool(self.inbox.data) is bool(self.queue)

    @invariant()
    def nothing_final_is_lost(self):
        if hasattr(self, 'inbox'):
            assert [n for n, final in self.queue if final] == self.finals

    def teardown(self):
        if hasattr(self, 'inbox') and not self.closed:
            assert take_all(self.inbox) == [number for number, _ in self.queue]


def test_any_sequence_of_operations(pytestconfig):
    """The inbox and the list agree on every sequence, and on what is left."""
    rounds = pytestconfig.getoption('--proof-rounds', default=None) or 0
    run_state_machine_as_test(
        InboxMachine,
        settings=settings(
            max_examples=max(EXAMPLES, rounds),
            stateful_step_count=25,
            deadline=None,
            database=None,
        ),
    )


def test_a_larger_bound_takes_back_what_was_spilled():
    """After the bound has grown nothing is refused while there is room."""
    inbox = Inbox(1, allow_overruns=True)
    inbox.put(0)
    inbox.put(1)
    inbox.max_buffer_size, inbox.allow_overruns = 10, False
    assert inbox.put(2) is Fate.QUEUED
    assert [inbox.take() for _ in range(3)] == [0, 1, 2]
