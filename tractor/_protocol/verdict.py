"""
What a context raises, absorbs or ships when it ends.

Three questions, each a table or a function over plain facts: whose doing was the
end (`canceller_of`, `is_own_ack`), what leaves the block of the side that opened it
(`AT_EXIT`), and what the side that was called sends (`ship`).  `_context`,
`_open_ctx` and `runtime/_rpc` apply the answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

Uid = tuple[str, str]


class Body(Enum):
    """How the body of an `open_context()` block ended."""

    CLEAN = auto()  # ran to its end, or was interrupted by its own context
    OWN_ACK = auto()  # raised the answer to its own `Context.cancel()`
    CTXC = auto()  # raised any other `ContextCancelled`
    ERROR = auto()  # raised anything else, a cancellation from outside included


class Outcome(Enum):
    """What is known of the remote task at that time."""

    PENDING = auto()
    RESULT = auto()
    OWN_ACK = auto()  # ended by this side's own `Context.cancel()`
    ERROR = auto()  # any other remote error
    LOST = auto()  # the connection is gone, nothing more will come
    LOST_ASKED = auto()  # the same, after this side had asked it to end


class Exit(Enum):
    """What the block does."""

    WAIT = auto()  # wait for the outcome, then ask again
    RETURN = auto()
    RAISE_BODY = auto()
    RAISE_REMOTE = auto()
    CANCEL = auto()  # ask the remote task to end, then raise the body's error


AT_EXIT: Final[dict[Body, dict[Outcome, Exit]]] = {
    Body.CLEAN: {
        Outcome.PENDING: Exit.WAIT,
        Outcome.RESULT: Exit.RETURN,
        Outcome.OWN_ACK: Exit.RETURN,
        Outcome.ERROR: Exit.RAISE_REMOTE,
        Outcome.LOST: Exit.RAISE_REMOTE,
        Outcome.LOST_ASKED: Exit.RETURN,
    },
    # An ack cannot be raised before it arrived; later facts do not undo it.
    Body.OWN_ACK: dict.fromkeys(Outcome, Exit.RETURN),
    # The remote task of this context is none of its business: no cancel is sent.
    Body.CTXC: dict.fromkeys(Outcome, Exit.RAISE_BODY),
    Body.ERROR: {
        Outcome.PENDING: Exit.CANCEL,
        Outcome.RESULT: Exit.CANCEL,
        Outcome.OWN_ACK: Exit.CANCEL,
        Outcome.ERROR: Exit.CANCEL,
        Outcome.LOST: Exit.CANCEL,
        Outcome.LOST_ASKED: Exit.CANCEL,
    },
}


def is_own_ack(
    cancel_called: bool,
    is_ctxc: bool,
    canceller: Uid | None,
    own_uid: Uid,
) -> bool:
    """Whether a remote error only confirms what this side asked for."""
    return cancel_called and is_ctxc and canceller == own_uid


def canceller_of(
    is_ctxc: bool,
    canceller: Uid | None,
    src_uid: Uid | None,
    own_uid: Uid,
) -> Uid | None:
    """
    Return who ended the context, as this side reports it.

    Ourselves if the error names us, else the actor that the error came from.
    """
    if is_ctxc and canceller == own_uid:
        return own_uid
    return src_uid


def interrupts_body(own_ack: bool, owner_listens: bool) -> bool:
    """
    Whether a remote error cancels the scope around the body.

    Args:
        own_ack: It confirms this side's own `Context.cancel()`.
        owner_listens: The owning task waits inside this context's own API, where
            the error reaches it anyway.
    """
    return not (own_ack and owner_listens)


class Ended(Enum):
    """How the function that served a context ended."""

    RETURNED = auto()
    RAISED = auto()
    OWN_SCOPE = auto()  # cancelled through the context's scope
    FOREIGN_SCOPE = auto()  # cancelled by the actor's own shutdown


class Ship(Enum):
    """What the called side sends last."""

    RESULT = auto()
    ERROR = auto()  # the exception it raised
    REMOTE_ERROR = auto()  # the caller's own error that interrupted it, relayed
    CANCELLED = auto()  # a `ContextCancelled`
    NOTHING = auto()


def ship(ended: Ended, has_remote_error: bool) -> Ship:
    """Return what the side that was called sends as its last word."""
    if ended is Ended.RETURNED:
        return Ship.RESULT
    if ended is Ended.RAISED:
        return Ship.ERROR
    if ended is Ended.OWN_SCOPE:
        return Ship.REMOTE_ERROR if has_remote_error else Ship.CANCELLED
    return Ship.NOTHING


def leaves(exc: BaseException) -> Iterator[BaseException]:
    """Give every exception of a possible group that is no group itself."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from leaves(inner)
    else:
        yield exc
