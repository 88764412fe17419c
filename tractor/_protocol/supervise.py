"""
What a nursery does when a child ends, and what it raises in the end.

Two kinds of children: a *daemon* serves until somebody cancels it, a *run-once* child
ends with its main task.  After a body that ended well, every run-once child is waited
for before any failure of one counts (all errors are collected); a child that dies, or
a body that fails, cancels the rest at once.  `runtime/_supervise` feeds the events and
carries out the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from tractor._protocol.verdict import leaves

Uid = tuple[str, str]

GROUP_MESSAGE: Final = 'tractor.ActorNursery errored with'


class Join(Enum):
    """What a nursery whose body is over does next."""

    WAIT = auto()  # until something changes
    CANCEL = auto()  # ask every child to end, once
    DONE = auto()


class ChildState:
    """What is known of one child."""

    __slots__ = (
        'asked',
        'ended',
        'failed_unasked',
        'farewell',
        'left_error',
        'lost',
        'pending',
        'run_once',
        'taken',
        'uid',
    )

    def __init__(self, uid: Uid) -> None:
        self.uid = uid
        self.run_once = False
        self.asked = False  # somebody asked it to end, or it said farewell
        self.farewell = False  # it said so
        self.lost = False  # its connection was gone before anybody could ask
        self.pending = False  # run-once: its result is still awaited
        self.failed_unasked = False  # run-once: its error came before any request
        self.taken = False  # run-once: the user has seen its error already
        self.left_error = False  # run-once: its error was found when it was gone
        self.ended = False


class Supervision:
    """
    The state of one nursery's children and errors.

    Attributes:
        children: Every child ever added, by uid.
        errors: Child errors by uid, in order of completion.
        starting: Children on their way up, which no join may leave behind.
        own_error: What the body raised.
        body_over: The join phase has begun.
        cancelling: All children were asked to end.
    """

    __slots__ = (
        '_dead',
        '_must_cancel',
        'body_over',
        'cancelling',
        'children',
        'errors',
        'own_error',
        'starting',
    )

    def __init__(self) -> None:
        self.children: dict[Uid, ChildState] = {}
        self.errors: dict[Uid, BaseException] = {}
        self.starting: set[Uid] = set()
        self.own_error: BaseException | None = None
        self.body_over = False
        self.cancelling = False
        self._must_cancel = False
        self._dead: set[Uid] = set()

    # -- events ---------------------------------------------------------------

    def start_begun(self, uid: Uid) -> None:
        """Somebody starts a child, maybe from outside the block."""
        self.starting.add(uid)

    def start_over(self, uid: Uid) -> None:
        """It came up, and was `added()`, or it failed to."""
        self.starting.discard(uid)

    def added(self, uid: Uid) -> ChildState:
        """A child came up."""
        state = self.children[uid] = ChildState(uid)
        return state

    def runs_once(self, uid: Uid) -> None:
        """It has a main task, whose result will be waited for."""
        state = self.children[uid]
        state.run_once = state.pending = True

    def asked(self, uid: Uid, reachable: bool = True) -> None:
        """It was asked to end, or found out of reach when it should have been."""
        state = self.children.get(uid)
        if state is None or state.ended or state.asked or state.lost:
            return
        if reachable:
            state.asked = True
        else:
            state.lost = True

    def delivered(self, uid: Uid) -> None:
        """Its main task's error is here; to be told before it is asked to end."""
        state = self.children.get(uid)
        if state is not None and not state.asked:
            state.failed_unasked = True

    def farewell(self, uid: Uid) -> None:
        """It announced its own orderly end: somebody had asked for it."""
        state = self.children.get(uid)
        if state is not None and not state.ended:
            state.asked = state.farewell = True

    def result_taken(self, uid: Uid) -> None:
        """The user received its main task's result or error."""
        state = self.children.get(uid)
        if state is None:
            return
        state.taken = True
        if state.left_error and not self.body_over:
            self.errors.pop(uid, None)

    def finished(self, uid: Uid, error: BaseException | None = None) -> None:
        """Its main task is over; an error the user has not seen is collected."""
        state = self.children[uid]
        state.pending = False
        if error is not None and not state.taken and not self.cancelling:
            self.errors.setdefault(uid, error)

    def collected(self, uid: Uid, error: BaseException) -> None:
        """It had failed, unseen, before the body did and before it was asked to end."""
        state = self.children[uid]
        if not state.taken and (state.failed_unasked or not state.asked):
            self.errors.setdefault(uid, error)

    def left(self, uid: Uid, error: BaseException, only_cancelled: bool) -> None:
        """
        It is gone in order, and its main task's error has come but was not collected.

        Args:
            only_cancelled: The error says no more than that the task was cancelled.
        """
        state = self.children[uid]
        if state.taken or uid in self.errors:
            return
        if state.asked and only_cancelled:
            return
        if state.failed_unasked or not self.cancelling:
            self.errors[uid] = error
            state.left_error = True

    def failed(self, uid: Uid, error: BaseException) -> None:
        """It reported that its runtime failed: cancel the rest at once."""
        self.children[uid].asked = True  # its end is accounted for
        if not self.cancelling:
            self.errors.setdefault(uid, error)
            self._must_cancel = True

    def ended(self, uid: Uid, orderly: bool) -> bool:
        """
        Its process is gone.

        Args:
            orderly: It said farewell, or this nursery killed it on purpose.
        Returns:
            Whether it *died*: nobody had asked it to end.  The caller then has to
            report it through `died()`.
        """
        state = self.children[uid]
        state.ended, state.pending = True, False
        if orderly or state.asked or uid in self.errors:
            return False
        if not self.cancelling:
            return True
        # Found dead by the teardown: worth telling only if it is why all this ends.
        own = self.own_error
        return state.lost and own is not None and _is_only(own, _is_symptom_of(uid))

    def died(self, uid: Uid, error: BaseException) -> None:
        """Record the death that `ended()` found; the rest is cancelled at once."""
        self._dead.add(uid)
        self.errors.setdefault(uid, error)
        self._must_cancel = True

    def body_ended(self, error: BaseException | None) -> None:
        """The body is over; an error of its own cancels all children."""
        self.body_over = True
        if error is not None:
            self.own_error = error
            self._must_cancel = True

    def join_cancelled(self, error: BaseException, is_cancelled: type) -> None:
        """
        The wait for the children was interrupted; an interrupt beats what it found.

        Args:
            error: A cancellation, or something like `KeyboardInterrupt`.
            is_cancelled: The class of a cancellation.
        """
        if self.own_error is None or not isinstance(error, is_cancelled):
            self.own_error = error
        self._must_cancel = True

    def cancel_started(self) -> None:
        """All children are being asked to end."""
        self.cancelling = True

    # -- answers --------------------------------------------------------------

    @property
    def must_cancel(self) -> bool:
        """Whether something happened that ends the nursery."""
        return self._must_cancel and not self.cancelling

    def next_step(self) -> Join:
        """Return what the join phase does now."""
        alive = [s for s in self.children.values() if not s.ended]
        if not alive and not self.starting:
            return Join.DONE
        if self.must_cancel:
            return Join.CANCEL
        if self.cancelling or self.starting or any(s.pending for s in alive):
            return Join.WAIT
        return Join.CANCEL if self.errors else Join.WAIT

    def outcome(self, is_cancelled: type[BaseException]) -> BaseException | None:
        """
        Return what the nursery raises, or `None`.

        Args:
            is_cancelled: The class of a cancellation, which yields to any error.
        """
        own = self.own_error
        children = self.errors
        if own is not None:
            own = self._without_symptoms(own)
        if own is not None and any(map(_is_interrupt, leaves(own))):
            own = _without(own, lambda exc: self._is_echo(exc)) or own
            children = {
                uid: exc for uid, exc in children.items() if not self._is_echo(exc)
            }
        told = set() if own is None else {id(leaf) for leaf in leaves(own)}
        found = [exc for exc in children.values() if id(exc) not in told]
        if own is not None and not (
            found and _is_only(own, lambda exc: isinstance(exc, is_cancelled))
        ):
            found.insert(0, own)
        if len(found) < 2:
            return found[0] if found else None
        return BaseExceptionGroup(GROUP_MESSAGE, found)

    def _without_symptoms(self, own: BaseException) -> BaseException | None:
        """Drop what only says that the connection to a dead child is gone."""
        is_symptom = _is_symptom_of(*self._dead)
        if not self._dead:
            return own
        for leaf in leaves(own):
            if is_symptom(leaf):
                death = self.errors[leaf.peer]  # type: ignore[attr-defined]
                if death.__cause__ is None:
                    death.__cause__ = leaf
        return _without(own, is_symptom)

    def _is_echo(self, exc: BaseException) -> bool:
        """Whether a child tells of a Ctrl-C, which every process of a terminal gets."""
        peer = self.children.get(getattr(exc, 'peer', None))  # type: ignore[arg-type]
        if peer is not None:
            return peer.farewell  # it ended in order before it could answer
        uid = getattr(exc, 'src_uid', None)
        return uid in self.children and (
            getattr(exc, 'canceller', None) == uid
            or getattr(exc, 'boxed_type_str', None) == 'KeyboardInterrupt'
        )


def _without(
    exc: BaseException, rule: Callable[[BaseException], bool]
) -> BaseException | None:
    """Return what is left of a possible group without the leaves that a rule names."""
    if not isinstance(exc, BaseExceptionGroup):
        return None if rule(exc) else exc
    rest: BaseException | None = exc.split(
        lambda inner: not isinstance(inner, BaseExceptionGroup) and rule(inner)
    )[1]
    while isinstance(rest, BaseExceptionGroup) and len(rest.exceptions) == 1:
        rest = rest.exceptions[0]
    return rest


def _is_interrupt(exc: BaseException) -> bool:
    return isinstance(exc, KeyboardInterrupt)


def _is_symptom_of(*uids: Uid) -> Callable[[BaseException], bool]:
    """Return what tells errors that only say one of these peers cannot be reached."""
    return lambda exc: getattr(exc, 'peer', None) in uids


def _is_only(exc: BaseException, rule: Callable[[BaseException], bool]) -> bool:
    """Whether the rule holds for every leaf of a possible group."""
    if isinstance(exc, BaseExceptionGroup):
        return all(_is_only(inner, rule) for inner in exc.exceptions)
    return rule(exc)
