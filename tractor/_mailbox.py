"""
Waiting on the inbox of one context.

A `Mailbox` is an `Inbox` with readers.  Delivering never waits; a reader parks until
there is a message or until its context wakes everybody because something changed.
It stands where a trio memory channel would, and has the same few methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.lowlevel import Abort, Task, enable_ki_protection

from ._protocol.inbox import Inbox

if TYPE_CHECKING:
    from .msg.types import MsgType


class Mailbox:
    """
    The inbound queue of one context.

    Attributes:
        _state: The queue itself; its `max_buffer_size` may change at any time.
        overran: Whether a sender was told that the queue was full for too long.
    """

    __slots__ = ('_parked', '_state', '_waking', 'overran')

    def __init__(self, size: int, allow_overruns: bool) -> None:
        self._state: Inbox[MsgType] = Inbox(size, allow_overruns)
        self._parked: dict[Task, None] = {}
        self._waking: set[Task] = set()
        self.overran = False

    def listens(self, task: Task | None) -> bool:
        """Whether that task waits here, or was woken and has not run yet."""
        return task in self._parked or task in self._waking

    @property
    def has_waking_reader(self) -> bool:
        """Whether a reader was woken and is about to take something."""
        return bool(self._waking)

    def wake_one(self) -> None:
        """Let the reader that waits longest look again."""
        for task in self._parked:
            del self._parked[task]
            self._waking.add(task)
            trio.lowlevel.reschedule(task)
            return

    def wake_all(self) -> None:
        """Let every reader look again: something other than a message changed."""
        if not self._parked:
            return
        parked, self._parked = self._parked, {}
        self._waking.update(parked)
        for task in parked:
            trio.lowlevel.reschedule(task)

    @enable_ki_protection
    async def park(self) -> None:
        """Wait until woken; the caller then looks again."""
        task = trio.lowlevel.current_task()
        self._parked[task] = None

        def abort(_raise_cancel: object) -> Abort:
            del self._parked[task]
            return Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._waking.discard(task)

    def send_nowait(self, msg: MsgType) -> None:
        """
        Add a stream message.

        Raises:
            trio.WouldBlock: The queue is full and overruns are not allowed.
            trio.ClosedResourceError: Nobody will read again.
        """
        fate = self._state.put(msg)
        if fate is fate.CLOSED:
            raise trio.ClosedResourceError
        if fate is fate.OVERRUN:
            raise trio.WouldBlock
        self.wake_one()

    def receive_nowait(self) -> MsgType:
        """
        Take the oldest message.

        Raises:
            trio.WouldBlock: There is none.
            trio.ClosedResourceError: There will never be one.
        """
        state = self._state
        if state.is_closed:
            raise trio.ClosedResourceError
        if not state.data:
            raise trio.WouldBlock
        return state.take()

    async def receive(self) -> MsgType:
        """Take the oldest message, waiting for one if need be; loses none."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self.receive_nowait()
            except trio.WouldBlock:
                await self.park()

    def close(self) -> int:
        """Forget what is queued and refuse more; return how many messages it was."""
        left = self._state.close()
        if self._parked:
            self.wake_all()
        return left

    async def aclose(self) -> None:
        """Do what `close()` does; a checkpoint."""
        self.close()
        await trio.lowlevel.checkpoint()

    def __len__(self) -> int:
        return len(self._state)
