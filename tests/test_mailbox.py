"""The mailbox: who is woken, what a cancelled reader loses (nothing), how it closes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tractor._mailbox import Mailbox

TIMEOUT: Final = 5.0
EXAMPLES: Final = 60


def run(main: Callable[[Mailbox], Awaitable[None]], size: int = 4, **kwargs: Any):
    """Run a test's body with a new mailbox, under a time limit."""

    async def bounded():
        with trio.fail_after(TIMEOUT):
            await main(Mailbox(size, kwargs.get('allow_overruns', False)))

    trio.run(bounded)


class Reader:
    """A task that receives into a list until it is cancelled or the mailbox closes."""

    def __init__(self, box: Mailbox, limit: int | None = None) -> None:
        self.box = box
        self.limit = limit
        self.scope = trio.CancelScope()
        self.got: list[Any] = []
        self.task: trio.lowlevel.Task | None = None
        self.closed = False

    async def run(self) -> None:
        self.task = trio.lowlevel.current_task()
        with self.scope:
            while self.limit is None or len(self.got) < self.limit:
                try:
                    self.got.append(await self.box.receive())
                except trio.ClosedResourceError:
                    self.closed = True
                    return


async def park(tn: trio.Nursery, *readers: Reader) -> None:
    """Start readers one after the other and wait until each is parked."""
    for reader in readers:
        tn.start_soon(reader.run)
        await wait_all_tasks_blocked()


def test_messages_are_received_in_order():
    """What is queued comes out first in, first out."""

    async def main(box):
        for number in range(3):
            box.send_nowait(number)
        assert len(box) == 3
        assert [await box.receive() for _ in range(3)] == [0, 1, 2]
        assert len(box) == 0

    run(main)


def test_a_parked_reader_is_woken_by_a_message():
    """It gets that message, and those that came before it ran."""

    async def main(box):
        reader = Reader(box, limit=2)
        async with trio.open_nursery() as tn:
            await park(tn, reader)
            box.send_nowait('a')
            box.send_nowait('b')
        assert reader.got == ['a', 'b']

    run(main)


def test_the_longest_waiting_reader_is_served_first():
    """One message wakes one reader, in the order in which they came."""

    async def main(box):
        first, second = Reader(box, limit=1), Reader(box, limit=1)
        async with trio.open_nursery() as tn:
            await park(tn, first, second)
            box.send_nowait('a')
            await wait_all_tasks_blocked()
            assert (first.got, second.got) == (['a'], [])
            box.send_nowait('b')
        assert second.got == ['b']

    run(main)


def test_one_message_wakes_one_reader():
    """The others do not even look."""

    async def main(box):
        looked = []

        async def look(name):
            await box.park()
            looked.append(name)

        async with trio.open_nursery() as tn:
            for name in 'ab':
                tn.start_soon(look, name)
                await wait_all_tasks_blocked()
            box.send_nowait('x')
            await wait_all_tasks_blocked()
            assert looked == ['a']
            tn.cancel_scope.cancel()

    run(main)


def test_two_messages_wake_two_readers():
    """A reader that was woken is passed over; which runs first is the scheduler's."""

    async def main(box):
        first, second = Reader(box, limit=1), Reader(box, limit=1)
        async with trio.open_nursery() as tn:
            await park(tn, first, second)
            box.send_nowait('a')
            box.send_nowait('b')
        assert sorted(first.got + second.got) == ['a', 'b']
        assert len(first.got) == len(second.got) == 1

    run(main)


def test_a_cancelled_parked_reader_loses_nothing():
    """It is forgotten, and the next message goes to another reader."""

    async def main(box):
        gone, there = Reader(box), Reader(box, limit=1)
        async with trio.open_nursery() as tn:
            await park(tn, gone, there)
            gone.scope.cancel()
            await wait_all_tasks_blocked()
            assert not box.listens(gone.task)
            box.send_nowait('a')
        assert (gone.got, there.got) == ([], ['a'])
        assert not box.has_waking_reader

    run(main)


def test_a_cancel_after_the_wake_up_loses_nothing():
    """A reader cancelled between its wake-up and its run still gets the message."""

    async def main(box):
        reader = Reader(box)
        async with trio.open_nursery() as tn:
            await park(tn, reader)
            box.send_nowait('a')
            reader.scope.cancel()
        assert reader.scope.cancelled_caught
        assert reader.got == ['a']
        assert len(box) == 0
        assert not box.has_waking_reader

    run(main)


def test_a_cancel_just_before_the_message_leaves_it_queued():
    """A reader that is on its way out takes nothing with it."""

    async def main(box):
        reader = Reader(box)
        async with trio.open_nursery() as tn:
            await park(tn, reader)
            reader.scope.cancel()
            box.send_nowait('a')
        assert reader.got == []
        assert await box.receive() == 'a'

    run(main)


def test_a_cancelled_receive_takes_nothing():
    """`receive()` looks for a cancellation before it takes a message."""

    async def main(box):
        box.send_nowait('a')
        with trio.CancelScope() as scope:
            scope.cancel()
            await box.receive()
        assert scope.cancelled_caught
        assert len(box) == 1

    run(main)


def test_a_reader_whose_message_was_taken_parks_again():
    """Waking is a hint to look: whoever runs first gets the message."""

    async def main(box):
        reader = Reader(box, limit=1)
        async with trio.open_nursery() as tn:
            await park(tn, reader)
            box.send_nowait('a')
            assert box.receive_nowait() == 'a'
            await wait_all_tasks_blocked()
            assert box.listens(reader.task)
            assert not box.has_waking_reader
            box.send_nowait('b')
        assert reader.got == ['b']

    run(main)


def test_wake_all_lets_every_reader_look():
    """Every parked task runs once."""

    async def main(box):
        looked = []

        async def look(name):
            await box.park()
            looked.append(name)

        async with trio.open_nursery() as tn:
            for name in 'abc':
                tn.start_soon(look, name)
                await wait_all_tasks_blocked()
            box.wake_all()
        assert sorted(looked) == ['a', 'b', 'c']
        assert not box.has_waking_reader

    run(main)


def test_wake_one_lets_one_reader_look():
    """The others stay parked."""

    async def main(box):
        looked = []

        async def look(name):
            await box.park()
            looked.append(name)

        async with trio.open_nursery() as tn:
            for name in 'ab':
                tn.start_soon(look, name)
                await wait_all_tasks_blocked()
            box.wake_one()
            await wait_all_tasks_blocked()
            assert looked == ['a']
            box.wake_one()
        assert looked == ['a', 'b']

    run(main)


def test_waking_nobody_is_harmless():
    """Nothing is remembered for a reader that comes later."""

    async def main(box):
        box.wake_one()
        box.wake_all()
        reader = Reader(box)
        async with trio.open_nursery() as tn:
            await park(tn, reader)
            assert box.listens(reader.task)
            tn.cancel_scope.cancel()
        assert reader.got == []

    run(main)


def test_a_reader_that_finds_nothing_parks_again():
    """`receive()` survives a wake-up without a message."""

    async def main(box):
        reader = Reader(box, limit=1)
        async with trio.open_nursery() as tn:
            await park(tn, reader)
            for _ in range(3):
                box.wake_all()
                await wait_all_tasks_blocked()
                assert box.listens(reader.task)
            box.send_nowait('a')
        assert reader.got == ['a']

    run(main)


def test_who_listens():
    """A task listens from when it parks until it runs again, and nobody else does."""

    async def main(box):
        reader = Reader(box, limit=1)
        assert not box.listens(None)
        async with trio.open_nursery() as tn:
            await park(tn, reader)
            assert box.listens(reader.task)
            assert not box.listens(trio.lowlevel.current_task())
            box.send_nowait('a')
            assert box.listens(reader.task)  # woken, has not run yet
            await wait_all_tasks_blocked()
            assert not box.listens(reader.task)

    run(main)


def test_a_waking_reader_is_known_between_wake_up_and_run():
    """Neither a parked reader counts nor one that has run."""

    async def main(box):
        reader = Reader(box, limit=1)
        async with trio.open_nursery() as tn:
            assert not box.has_waking_reader
            await park(tn, reader)
            assert not box.has_waking_reader
            box.send_nowait('a')
            assert box.has_waking_reader
            await wait_all_tasks_blocked()
            assert not box.has_waking_reader

    run(main)


def test_a_full_mailbox_refuses():
    """`WouldBlock`; nothing was added and nobody is woken."""

    async def main(box):
        box.send_nowait('a')
        with pytest.raises(trio.WouldBlock):
            box.send_nowait('b')
        assert len(box) == 1
        assert await box.receive() == 'a'
        box.send_nowait('c')
        assert await box.receive() == 'c'

    run(main, size=1)


def test_the_size_can_be_changed_in_place():
    """`_state.max_buffer_size` is the bound, as of a trio channel."""

    async def main(box):
        assert box._state.max_buffer_size == 1
        box.send_nowait('a')
        box._state.max_buffer_size = 2
        box.send_nowait('b')
        with pytest.raises(trio.WouldBlock):
            box.send_nowait('c')

    run(main, size=1)


def test_allowed_overruns_are_received_in_order():
    """Sending never blocks, and the reader does not see where the bound was."""

    async def main(box):
        for number in range(10):
            box.send_nowait(number)
        assert len(box) == 10
        assert [await box.receive() for _ in range(10)] == list(range(10))

    run(main, size=1, allow_overruns=True)


def test_receive_nowait_finds_nothing():
    """`WouldBlock`, also after everything was taken."""

    async def main(box):
        with pytest.raises(trio.WouldBlock):
            box.receive_nowait()
        box.send_nowait('a')
        assert box.receive_nowait() == 'a'
        with pytest.raises(trio.WouldBlock):
            box.receive_nowait()

    run(main)


def test_a_closed_mailbox():
    """Its messages are forgotten and counted; nothing goes in or out any more."""

    async def main(box):
        for number in range(3):
            box.send_nowait(number)
        assert box.close() == 3
        assert box.close() == 0
        assert len(box) == 0
        with pytest.raises(trio.ClosedResourceError):
            box.send_nowait('a')
        with pytest.raises(trio.ClosedResourceError):
            box.receive_nowait()
        with pytest.raises(trio.ClosedResourceError):
            await box.receive()

    run(main, size=1, allow_overruns=True)


def test_closing_wakes_every_reader():
    """All of them raise; none is left parked."""

    async def main(box):
        readers = [Reader(box), Reader(box)]
        async with trio.open_nursery() as tn:
            await park(tn, *readers)
            box.close()
        assert all(reader.closed for reader in readers)
        assert not any(box.listens(reader.task) for reader in readers)
        assert not box.has_waking_reader

    run(main)


def test_aclose_closes_even_if_cancelled():
    """It is a checkpoint, and the mailbox is closed before that."""

    async def main(box):
        box.send_nowait('a')
        with trio.CancelScope() as scope:
            scope.cancel()
            await box.aclose()
        assert scope.cancelled_caught
        assert box._state.is_closed
        with trio.testing.assert_checkpoints():
            await box.aclose()

    run(main)


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(
    size=st.integers(1, 3),
    overruns=st.booleans(),
    # What happens between two rests of the scheduler: `None` sends, a number cancels
    # that reader, and starts another one in its place.
    rounds=st.lists(st.lists(st.none() | st.integers(0, 2), max_size=5), max_size=8),
)
def test_every_accepted_message_is_received_once(size, overruns, rounds):
    """Whatever is cancelled when, nothing is lost, doubled or overtaken."""

    async def main(box):
        accepted = []
        received = []

        class Noting(Reader):
            async def run(self) -> None:
                self.got = received
                await super().run()

        async with trio.open_nursery() as tn:
            readers = [Noting(box) for _ in range(3)]
            await park(tn, *readers)
            for events in rounds:
                for event in events:
                    if event is not None:
                        readers[event].scope.cancel()
                        readers[event] = Noting(box)
                        tn.start_soon(readers[event].run)
                        continue
                    try:
                        box.send_nowait(len(accepted))
                    except trio.WouldBlock:
                        assert not overruns
                    else:
                        accepted.append(len(accepted))
                await wait_all_tasks_blocked()
                assert received == accepted
            tn.cancel_scope.cancel()
        assert len(box) == 0

    run(main, size=size, allow_overruns=overruns)


def test_an_interrupt_while_parking_leaves_no_reader_behind(interrupt_at):
    """The reader that Ctrl-C ended is woken by nothing, and the next one works."""

    async def main(box):
        interrupt_at(Mailbox.park, 'await trio.lowlevel')
        with pytest.raises(KeyboardInterrupt):
            await box.receive()
        box.wake_all()
        box.send_nowait('message')
        assert await box.receive() == 'message'

    run(main)
