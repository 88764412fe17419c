"""
The bounded inbound queue of one context, and what happens when it is full.

Only stream messages count against the bound: a result or an end of stream always
finds room, so that nothing final is ever lost.  With overruns allowed, excess messages
spill into a second queue and are fed back in order.  `_mailbox` adds the waiting.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Final

SPILL_SIZE: Final = 616


class Fate(Enum):
    """What became of a message that was put in."""

    QUEUED = auto()  # it is next in line
    SPILLED = auto()  # overruns are allowed: kept aside, in order
    SHED = auto()  # kept aside at the price of the oldest that was
    OVERRUN = auto()  # refused: the queue is full
    CLOSED = auto()  # refused: nobody will read again


class Inbox[T]:
    """
    A queue with a bound and an overrun policy.

    Attributes:
        max_buffer_size: Stream messages it holds; may change at any time.
        allow_overruns: Whether excess messages are spilled instead of refused.
        is_closed: Whether puts are refused and nothing is left to take.
        shed: Number of messages lost to make room in the spill.
    """

    __slots__ = (
        '_bounded',
        '_spill',
        'allow_overruns',
        'data',
        'is_closed',
        'max_buffer_size',
        'shed',
    )

    def __init__(self, size: int, allow_overruns: bool = False) -> None:
        self.max_buffer_size = size
        self.allow_overruns = allow_overruns
        self.data: deque[tuple[T, bool]] = deque()
        self._spill: deque[T] = deque()
        self._bounded = 0
        self.is_closed = False
        self.shed = 0

    def __len__(self) -> int:
        return len(self.data) + len(self._spill)

    def put(self, item: T) -> Fate:
        """Add a stream message, subject to the bound."""
        if self.is_closed:
            return Fate.CLOSED
        if self._spill:
            self._refill()  # the bound may have grown
        if self._bounded < self.max_buffer_size and not self._spill:
            self._bounded += 1
            self.data.append((item, True))
            return Fate.QUEUED
        if not self.allow_overruns:
            return Fate.OVERRUN
        self._spill.append(item)
        if len(self._spill) <= SPILL_SIZE:
            return Fate.SPILLED
        self._spill.popleft()
        self.shed += 1
        return Fate.SHED

    def put_final(self, item: T) -> Fate:
        """Add a message that must not be lost, behind all that came before it."""
        if self.is_closed:
            return Fate.CLOSED
        while self._spill:
            self.data.append((self._spill.popleft(), True))
            self._bounded += 1
        self.data.append((item, False))
        return Fate.QUEUED

    def take(self) -> T:
        """
        Remove and return the oldest message.

        Raises:
            IndexError: There is none.
        """
        item, bounded = self.data.popleft()
        if bounded:
            self._bounded -= 1
            if self._spill:
                self._refill()
        return item

    def _refill(self) -> None:
        """Move what was spilled into free room, in order."""
        while self._spill and self._bounded < self.max_buffer_size:
            self.data.append((self._spill.popleft(), True))
            self._bounded += 1

    def close(self) -> int:
        """Refuse further messages, forget those inside, return how many they were."""
        left = len(self.data) + len(self._spill)
        self.is_closed = True
        self.data.clear()
        self._spill.clear()
        self._bounded = 0
        return left
