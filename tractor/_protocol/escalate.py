"""
Ask, terminate, kill: how a child is ended, and how long each step may take.

`Escalation` is fed with what happened and answers with the next step.  All times are
seconds.  `spawn/_spawn` and `runtime/_supervise` carry the steps out.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

ASK_TIMEOUT: Final = 0.5  # for the ack of a cancel request
NURSERY_TIMEOUT: Final = 3.0  # for the acks of all children of one nursery
BOOT_GRACE: Final = 0.5  # for a child that has not connected back yet
LOST_GRACE: Final = 0.5  # for a child whose connection broke: it may be ending
KILL_AFTER: Final = 1.6  # between SIGTERM and SIGKILL
# After its ack an actor may still wait 3 s for its peers to leave.
EXIT_AFTER_ACK: Final = 3.0 + KILL_AFTER


class Step(Enum):
    """What to do with a child next."""

    ASK = auto()  # send a cancel request
    WAIT = auto()  # let it end by itself
    TERMINATE = auto()  # SIGTERM
    KILL = auto()  # SIGKILL
    DONE = auto()


class Escalation:
    """
    The steps for one child, in order, each at most once.

    Args:
        reachable: Whether a request can be sent at all.
        patient: Never go beyond asking (somebody debugs the child).
    """

    __slots__ = ('_patient', 'step')

    def __init__(self, reachable: bool, patient: bool = False) -> None:
        self._patient = patient
        self.step = Step.ASK if reachable else Step.WAIT

    @property
    def deadline(self) -> float:
        """Seconds that the present step may take."""
        if self._patient and self.step is not Step.ASK:
            return float('inf')
        return {
            Step.ASK: ASK_TIMEOUT,
            Step.WAIT: LOST_GRACE,
            Step.TERMINATE: KILL_AFTER,
            Step.KILL: float('inf'),
            Step.DONE: 0.0,
        }[self.step]

    def acked(self) -> float:
        """The child confirmed; return how long it may take to end."""
        if self.step is Step.ASK:
            self.step = Step.WAIT
        return float('inf') if self._patient else EXIT_AFTER_ACK

    def overdue(self) -> Step:
        """The present step's time is over; return the next one."""
        if self.step is Step.DONE:
            return self.step
        if self._patient:
            self.step = Step.WAIT
        elif self.step in (Step.ASK, Step.WAIT):
            self.step = Step.TERMINATE
        elif self.step is Step.TERMINATE:
            self.step = Step.KILL
        return self.step

    def ended(self) -> None:
        """The process is gone."""
        self.step = Step.DONE
