"""
One context dialog: which message the peer may send next.

For each stage a table lists the messages that may come and the stage each leads to.
The side that called starts in `CALLED`, the side that was called in `SERVING`.
Nothing here awaits, logs or reads a clock.  A `Context` owns a `Dialog` and obeys it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from ..msg.types import (
    CancelAck,
    Error,
    MsgType,
    Return,
    Start,
    StartAck,
    Started,
    Stop,
    Yield,
)


class Stage(Enum):
    """How far the dialog has come, seen from one side."""

    CALLED = auto()  # Start sent, no answer yet
    ACKED = auto()  # the remote task is scheduled, it has not called started()
    OPEN = auto()  # first value received; streams may flow
    STOPPED = auto()  # the peer ended its stream; the outcome is still to come
    RUNNING = auto()  # a plain function runs
    PULLING = auto()  # a generator yields
    SERVING = auto()  # called side: the caller may stream
    ENDED = auto()  # called side: the caller ended its stream
    FINAL = auto()  # result or error received

    __hash__ = object.__hash__  # that of an enum is a call in Python


Table = dict[type[MsgType], Stage]

ALLOWED: Final[dict[Stage, Table]] = {
    Stage.CALLED: {
        StartAck: Stage.ACKED,
        Error: Stage.FINAL,
    },
    Stage.ACKED: {
        Started: Stage.OPEN,
        Return: Stage.FINAL,
        Error: Stage.FINAL,
    },
    Stage.OPEN: {
        Yield: Stage.OPEN,
        Stop: Stage.STOPPED,
        Return: Stage.FINAL,
        Error: Stage.FINAL,
    },
    Stage.STOPPED: {
        Return: Stage.FINAL,
        Error: Stage.FINAL,
    },
    Stage.RUNNING: {
        Return: Stage.FINAL,
        CancelAck: Stage.FINAL,
        Error: Stage.FINAL,
    },
    Stage.PULLING: {
        Yield: Stage.PULLING,
        Stop: Stage.FINAL,
        Error: Stage.FINAL,
    },
    Stage.SERVING: {
        Yield: Stage.SERVING,
        Stop: Stage.ENDED,
        Error: Stage.FINAL,
    },
    Stage.ENDED: {
        Error: Stage.FINAL,
    },
    Stage.FINAL: {},
}

# What a StartAck leads to depends on the kind of function that was found.
BY_FUNCTYPE: Final[dict[str, Stage]] = {
    'asyncfunc': Stage.RUNNING,
    'asyncgen': Stage.PULLING,
    'context': Stage.ACKED,
}


class Violation(Exception):
    """A message came that the stage does not allow; the dialog stays where it was."""

    def __init__(self, cid: str, stage: Stage, kind: type) -> None:
        super().__init__(cid, stage, kind)
        self.cid, self.stage, self.kind = cid, stage, kind

    def __str__(self) -> str:
        allowed = ', '.join(t.__name__ for t in ALLOWED[self.stage]) or 'nothing'
        return (
            f'{self.kind.__name__} in stage {self.stage.name} of context {self.cid}: '
            f'{allowed} may come there'
        )


class Dialog:
    """The stage of one dialog and the only code that changes it."""

    __slots__ = ('_allowed', 'cid', 'stage')

    def __init__(self, cid: str, stage: Stage = Stage.CALLED) -> None:
        self.cid = cid
        self.stage = stage
        self._allowed = ALLOWED[stage]

    def receive(self, msg: MsgType) -> None:
        """
        Advance on an inbound message.

        Raises:
            Violation: It may not come now; the stage is unchanged.
        """
        stage = self._allowed.get(type(msg))
        if stage is None:
            raise Violation(self.cid, self.stage, type(msg))
        if stage is not self.stage:  # streams repeat one stage
            if type(msg) is StartAck:
                stage = BY_FUNCTYPE[msg.functype]
            self.stage = stage
            self._allowed = ALLOWED[stage]

    @property
    def is_final(self) -> bool:
        """Whether the peer's last word has come."""
        return self.stage is Stage.FINAL

    def end(self) -> None:
        """Take the dialog for ended: the peer is gone, or this side failed."""
        self.stage = Stage.FINAL
        self._allowed = ALLOWED[Stage.FINAL]


# Sent by callers only; never part of a running dialog.
assert Start not in {kind for table in ALLOWED.values() for kind in table}
