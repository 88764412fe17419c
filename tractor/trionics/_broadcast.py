"""
One receive channel, many subscribers, each of which gets every value.

A group of `BroadcastReceiver`s shares one source and one `BroadcastState`: a ring of
the newest values and, for each subscriber, how far behind it is.  Nobody copies in
the background: whichever subscriber finds nothing buffered pulls from the source and
puts the value into the ring for the others, who wait on its event meanwhile.

Invariant: `subs[key]` is the ring index of the subscriber's next value, `-1` when it
is caught up, and at or beyond `maxlen` when its next value was already dropped; the
subscriber then gets `Lagged` once and continues with the oldest value retained.
Used by `MsgStream.subscribe()`, by the channels to asyncio and by applications.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import trio
from trio.abc import ReceiveChannel

from tractor.log import get_logger

log = get_logger(__name__)


@runtime_checkable
class AsyncReceiver[T_co](Protocol):
    """What a source of values looks like; a trio receive channel is one."""

    async def receive(self) -> T_co: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> T_co: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...

    async def aclose(self) -> None: ...


class Lagged(trio.TooSlowError):
    """A subscriber was too slow, and lost values; its next receive goes on."""

    def __init__(self, missed: int, window: int) -> None:
        super().__init__(missed, window)
        self.missed, self.window = missed, window

    def __str__(self) -> str:
        return (
            f'subscriber lost {self.missed} values: it was more than'
            f' {self.window} behind; receive faster, widen the buffer, or subscribe'
            ' with raise_on_lag=False'
        )


class BroadcastState[T]:
    """What the receivers of one group share, and the only code that changes it."""

    __slots__ = ('cancelled', 'eoc', 'maxlen', 'queue', 'recv_ready', 'subs')

    def __init__(self, maxlen: int) -> None:
        self.maxlen = maxlen
        # The newest value is at index 0.
        self.queue: deque[T] = deque(maxlen=maxlen)
        self.subs: dict[int, int] = {}
        # Who pulls from the source now, and what the others wait on.
        self.recv_ready: tuple[int, trio.Event] | None = None
        # The source has ended.
        self.eoc = False
        # The task last cancelled while it pulled for a subscriber.
        self.cancelled: dict[int, trio.lowlevel.Task] = {}

    def publish(self, value: T, puller: int) -> None:
        """Buffer a value for every subscriber but the one that pulled it."""
        subs = self.subs
        self.queue.appendleft(value)
        for key in subs:
            if key != puller:
                subs[key] += 1

    def begin_pull(self, key: int) -> None:
        """Note who pulls; the others wait until `end_pull()`."""
        self.recv_ready = (key, trio.Event())

    def end_pull(self) -> None:
        """Wake all who wait: a value is there, or one of them has to pull."""
        if self.recv_ready is not None:
            event = self.recv_ready[1]
            self.recv_ready = None
            event.set()

    def wake_waiters(self) -> None:
        """Make all who wait look again, while the pull goes on."""
        if self.recv_ready is not None:
            key, event = self.recv_ready
            self.recv_ready = (key, trio.Event())
            event.set()

    def statistics(self) -> dict[str, Any]:
        """
        Return figures for debugging.

        Returns:
            `open_consumers`: how many; `queued_len_by_task`: key to the number of
            values it can still take from the buffer; `max_buffer_size`;
            `tasks_waiting`: how many wait for the one that pulls;
            `tasks_cancelled`: key to the task last cancelled during a pull;
            `next_value_receiver_id`: the key of who pulls, or `None`.
        """
        key, waiting = None, 0
        if self.recv_ready is not None:
            key, event = self.recv_ready
            waiting = event.statistics().tasks_waiting
        buffered = len(self.queue)
        return {
            'open_consumers': len(self.subs),
            'queued_len_by_task': {
                sub: min(index + 1, buffered) for sub, index in self.subs.items()
            },
            'max_buffer_size': self.maxlen,
            'tasks_waiting': waiting,
            'tasks_cancelled': dict(self.cancelled),
            'next_value_receiver_id': key,
        }


class BroadcastReceiver[T](ReceiveChannel[T]):
    """
    One subscriber of a group; made by `broadcast_receiver()` and `subscribe()`.

    Closing it leaves the source and the other subscribers alone.
    """

    # Only there where the source is a stream that also sends.
    send: Callable[[Any], Awaitable[None]]

    def __init__(
        self,
        rx_chan: AsyncReceiver[T],
        state: BroadcastState[T],
        receive_afunc: Callable[[], Awaitable[T]] | None = None,
        raise_on_lag: bool = True,
    ) -> None:
        self._rx = rx_chan
        self._state = state
        self._recv = rx_chan.receive if receive_afunc is None else receive_afunc
        self._raise_on_lag = raise_on_lag
        self._closed = False
        # Around the pulls which tasks of this receiver make; `aclose()` ends them.
        self._pulls: set[trio.CancelScope] = set()
        state.subs[self.key] = -1

    @property
    def key(self) -> int:
        """What this subscriber is called in the shared state."""
        return id(self)

    def receive_nowait(self) -> T:
        """
        Return the next value if it is buffered.

        Raises:
            Lagged: Values were lost, unless subscribed with `raise_on_lag=False`.
            trio.WouldBlock: Nothing is buffered for this subscriber.
            trio.EndOfChannel: Nothing is buffered, and the source has ended.
            trio.ClosedResourceError: This receiver is closed.
        """
        state, key = self._state, self.key
        index = state.subs.get(key)
        if index is None:
            raise trio.ClosedResourceError(f'{self!r} is closed')
        if index < 0:
            if state.eoc:
                raise trio.EndOfChannel
            raise trio.WouldBlock
        missed = index - (state.maxlen - 1)
        if missed > 0:
            index = state.subs[key] = state.maxlen - 1
            lagged = Lagged(missed, state.maxlen)
            if self._raise_on_lag:
                raise lagged
            log.warning('%s', lagged)
            if index < 0:
                # No window at all: with the lost value gone, it is caught up.
                return self.receive_nowait()
        state.subs[key] = index - 1
        return state.queue[index]

    async def receive(self) -> T:
        """
        Return this subscriber's next value.

        Waits for the source, or for another subscriber that waits for it.  When
        cancelled no value is lost: another subscriber goes on pulling.

        Raises:
            Lagged: As `receive_nowait()`.
            trio.EndOfChannel: The source has ended and nothing is buffered.
            trio.ClosedResourceError: This receiver is closed, or was while it waited.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        waited = False
        while True:
            try:
                value = self.receive_nowait()
            except trio.WouldBlock:
                pass
            else:
                if not waited:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return value
            ready = self._state.recv_ready
            if ready is None:
                return await self._pull()
            await ready[1].wait()
            waited = True

    async def _pull(self) -> T:
        """Receive from the source, and share the value with the others."""
        state, key = self._state, self.key
        state.begin_pull(key)
        try:
            with trio.CancelScope() as scope:
                self._pulls.add(scope)
                if len(state.subs) > 1:
                    # A source that has values ready need not yield: the others get a
                    # turn for each value, or they would all lag behind a burst.
                    await trio.lowlevel.checkpoint()
                value = await self._recv()
                state.publish(value, key)
        except trio.EndOfChannel:
            state.eoc = True
            raise
        except trio.Cancelled:
            state.cancelled[key] = trio.lowlevel.current_task()
            raise
        finally:
            self._pulls.discard(scope)
            state.end_pull()
        if self._closed:
            raise trio.ClosedResourceError(f'{self!r} was closed while it received')
        return value

    @asynccontextmanager
    async def subscribe(
        self, raise_on_lag: bool = True
    ) -> AsyncGenerator[BroadcastReceiver[T]]:
        """
        Join another subscriber to the group, until the block ends.

        Waits for nothing.

        Args:
            raise_on_lag: Raise `Lagged` when values were lost; else log a warning
                and go on with the oldest value retained.
        Yields:
            A receiver which gets every value pulled from now on.
        Raises:
            trio.ClosedResourceError: This receiver is closed.
        """
        if self._closed:
            raise trio.ClosedResourceError(f'{self!r} is closed')
        receiver = BroadcastReceiver(self._rx, self._state, self._recv, raise_on_lag)
        try:
            yield receiver
        finally:
            await receiver.aclose()

    async def aclose(self) -> None:
        """
        Leave the group; idempotent.

        Tasks that wait in this receiver get `trio.ClosedResourceError`, the other
        subscribers go on.  Never waits, not even for a checkpoint, so that closing
        in a cancelled scope hides no error.
        """
        if self._closed:
            return
        self._closed = True
        self._state.subs.pop(self.key, None)
        self._state.cancelled.pop(self.key, None)
        for scope in self._pulls:
            scope.cancel()
        self._state.wake_waiters()

    def __repr__(self) -> str:
        return (
            f'<{type(self).__name__} {self.key:#x} of {len(self._state.subs)}'
            f'{" closed" if self._closed else ""}>'
        )


def broadcast_receiver[T](
    recv_chan: AsyncReceiver[T],
    max_buffer_size: int,
    receive_afunc: Callable[[], Awaitable[T]] | None = None,
    raise_on_lag: bool = True,
) -> BroadcastReceiver[T]:
    """
    Let many tasks receive every value of one channel.

    Args:
        recv_chan: The source; from now on only the receivers may read it.
        max_buffer_size: How many values a subscriber may fall behind.
        receive_afunc: Pulls a value from the source; `None` means
            `recv_chan.receive`.
        raise_on_lag: As in `BroadcastReceiver.subscribe()`, for the first receiver.
    Returns:
        The first receiver of the group.  It counts as a subscriber at once, and lags
        like any other when it is never read.
    """
    return BroadcastReceiver(
        recv_chan, BroadcastState(max_buffer_size), receive_afunc, raise_on_lag
    )
