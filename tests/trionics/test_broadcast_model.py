"""
`tractor.trionics._broadcast` against a model, and under random schedules.

The model: values are numbered in the order in which they were pulled; a subscriber is
the number of its next value, and may be `window` behind the newest.
"""

from __future__ import annotations

from collections import deque

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)
from trio.testing import wait_all_tasks_blocked

from tractor.trionics import BroadcastReceiver, Lagged, broadcast_receiver

END, EMPTY, LAG, CLOSED = 'end', 'empty', 'lag', 'closed'


def outcome(call) -> object:
    """Step a receive without a trio run, and name what came of it."""
    try:
        return call()
    except trio.EndOfChannel:
        return END
    except trio.WouldBlock:
        return EMPTY
    except trio.ClosedResourceError:
        return CLOSED
    except Lagged as exc:
        return LAG, exc.missed


def join(receiver: BroadcastReceiver, strict: bool = True) -> BroadcastReceiver:
    """Subscribe without a block, to be ended by `aclose()`."""
    return BroadcastReceiver(receiver._rx, receiver._state, receiver._recv, strict)


class Broadcast(RuleBasedStateMachine):
    """Every operation on one group, one at a time."""

    receivers = Bundle('receivers')

    @initialize(target=receivers, window=st.integers(0, 4), strict=st.booleans())
    def open(self, window: int, strict: bool):
        self.window = window
        self.send, self.source = trio.open_memory_channel[int](float('inf'))
        self.sent = 0
        self.pulled: list[int] = []
        self.ended = self.closed_source = False
        self.next: dict[int, int] = {}
        self.strict: dict[int, bool] = {}
        first = broadcast_receiver(self.source, window, raise_on_lag=strict)
        self.state = first._state
        return self._note(first, strict)

    def _note(self, receiver, strict: bool):
        self.next[receiver.key] = len(self.pulled)
        self.strict[receiver.key] = strict
        return receiver

    @rule()
    def produce(self):
        if not self.closed_source:
            self.send.send_nowait(self.sent)
            self.sent += 1

    @rule()
    def end_source(self):
        self.closed_source = True
        self.send.close()

    @rule(target=receivers, receiver=receivers, strict=st.booleans())
    def subscribe(self, receiver, strict: bool):
        return self._note(join(receiver, strict), strict)

    @rule(receiver=consumes(receivers))
    def close(self, receiver):
        trio.run(receiver.aclose)
        del self.next[receiver.key]
        assert outcome(receiver.receive_nowait) == CLOSED
        trio.run(receiver.aclose)

    @rule(receiver=receivers)
    def take_buffered(self, receiver):
        expected = self._take(receiver.key)
        assert outcome(receiver.receive_nowait) == expected

    @rule(receiver=receivers)
    def take(self, receiver):
        expected = self._take(receiver.key)
        if expected == EMPTY:
            expected = self._pull(receiver.key)
        if expected == EMPTY:
            # Looking skips what was lost just as a wait without end would.
            assert outcome(receiver.receive_nowait) == EMPTY
        else:
            assert outcome(lambda: trio.run(receiver.receive)) == expected

    def _take(self, key: int) -> object:
        behind = len(self.pulled) - self.next[key]
        missed = behind - self.window
        if missed > 0:
            self.next[key] += missed
            if self.strict[key]:
                return LAG, missed
        if self.next[key] == len(self.pulled):
            return END if self.ended else EMPTY
        value = self.pulled[self.next[key]]
        self.next[key] += 1
        return value

    def _pull(self, key: int) -> object:
        if len(self.pulled) == self.sent:
            self.ended = self.closed_source
            return END if self.ended else EMPTY
        value = len(self.pulled)
        self.pulled.append(value)
        self.next[key] += 1
        return value

    @invariant()
    def state_agrees(self):
        if not hasattr(self, 'state'):
            return
        newest_first = self.pulled[::-1][: self.window]
        assert list(self.state.queue) == newest_first
        assert self.state.recv_ready is None
        assert self.state.eoc == self.ended
        assert self.state.subs == {
            key: len(self.pulled) - following - 1
            for key, following in self.next.items()
        }


Broadcast.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestBroadcastModel = Broadcast.TestCase


@settings(max_examples=40, deadline=None)
@given(
    window=st.integers(1, 4),
    count=st.integers(0, 12),
    # For each consumer: after how many values it is cancelled while it waits.
    consumers=st.lists(st.none() | st.integers(0, 12), min_size=1, max_size=4),
    pauses=st.lists(st.integers(0, 3), min_size=12, max_size=12),
)
def test_consumers_see_every_value_or_a_lag(
    window: int, count: int, consumers: list[int | None], pauses: list[int]
):
    """
    Whatever is cancelled when, nobody loses a value silently.

    Each consumer sees an unbroken sequence from the first value on, gaps being
    announced by a `Lagged` with their exact size; who is not cancelled gets to the
    end.
    """

    async def consume(receiver, limit: int | None, scope: trio.CancelScope):
        following = 0
        with scope:
            while True:
                if following == limit:
                    # Due while the next receive waits, or has its value already.
                    scope.deadline = trio.current_time()
                try:
                    value = await receiver.receive()
                except Lagged as exc:
                    following += exc.missed
                    continue
                except trio.EndOfChannel:
                    break
                assert value == following
                following += 1
                for _ in range(pauses[value % len(pauses)]):
                    await trio.lowlevel.checkpoint()
        if not scope.cancelled_caught:
            assert following == count
        await receiver.aclose()

    async def main():
        send, source = trio.open_memory_channel[int](1)
        first = broadcast_receiver(source, window)

        async def produce():
            async with send:
                for value in range(count):
                    await send.send(value)

        with trio.fail_after(5):
            async with trio.open_nursery() as producer:
                async with trio.open_nursery() as tn:
                    for limit in consumers:
                        tn.start_soon(consume, join(first), limit, trio.CancelScope())
                    await wait_all_tasks_blocked()
                    producer.start_soon(produce)
                # If all were cancelled there is nobody to read what is sent.
                producer.cancel_scope.cancel()
        assert first._state.recv_ready is None
        assert list(first._state.subs) == [first.key]

    trio.run(main)


def test_source_that_never_waits_outruns_nobody():
    """Who pulls lets the others take a value before it pulls the next one."""
    values = deque(range(20))

    async def take() -> int:
        if not values:
            raise trio.EndOfChannel
        return values.popleft()

    received: list[list[int]] = [[] for _ in range(5)]

    async def read(receiver, into):
        async for value in receiver:
            into.append(value)

    async def main():
        _, source = trio.open_memory_channel[int](0)
        first = broadcast_receiver(source, 2, receive_afunc=take)
        readers = [join(first) for _ in received]
        await first.aclose()
        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                for reader, into in zip(readers, received, strict=True):
                    tn.start_soon(read, reader, into)

    trio.run(main)
    assert received == [list(range(20))] * 5
