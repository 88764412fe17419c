"""
Enter many contexts at once, or one context for many tasks.

`maybe_open_context()` keeps a table of open contexts, one `_Slot` for each function
and arguments.  The first user's context is entered by a task of a background nursery,
so that it does not end with that user; the last user to leave has it exited, waits
for that, and gets the error if there is one.

Invariant: entering a context and exiting it happen under the slot's FIFO lock, and a
user enters and leaves the count only while nobody does either; so at most one context
of a slot is open, and who arrives while it closes opens the next.  Nothing here runs
in the background but the task which holds a context open.  Used by applications.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FunctionType, MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any, Final

import trio

from tractor.trionics._beg import raise_as_is

if TYPE_CHECKING:
    from types import ModuleType

type Opener[T] = Callable[..., AbstractAsyncContextManager[T]]

_NO_KWARGS: Final[Mapping[str, Any]] = MappingProxyType({})


@asynccontextmanager
async def maybe_open_nursery(
    nursery: Any = None,
    shield: bool = False,
    lib: ModuleType | Any = trio,
    **kwargs: Any,
) -> AsyncGenerator[Any]:
    """
    Use the caller's nursery, or open one.

    A given nursery is yielded untouched and stays open; an own one is closed as
    nurseries are, by waiting for its children.

    Args:
        nursery: What to yield; `None` means a new one.
        shield: Shield a new trio nursery from outer cancellation.
        lib: Module with `open_nursery()`; `tractor` gives an actor nursery.
        kwargs: Arguments of `lib.open_nursery()`.
    """
    if nursery is not None:
        yield nursery
        return
    async with lib.open_nursery(**kwargs) as opened:
        if lib is trio:
            opened.cancel_scope.shield = shield
        yield opened


class _Member[T]:
    """One of the contexts which `gather_contexts()` holds open, in its own task."""

    __slots__ = ('exited', 'mngr', 'scope', 'settled', 'value')

    def __init__(self, mngr: AbstractAsyncContextManager[T]) -> None:
        self.mngr = mngr
        self.scope = trio.CancelScope()
        # Entered, or never going to be.
        self.settled = trio.Event()
        self.exited = trio.Event()
        self.value: tuple[T] | None = None

    async def hold(self, leave: trio.Event) -> None:
        """Enter the context, stay inside until `leave` is set, exit it."""
        try:
            with self.scope:
                async with self.mngr as value:
                    self.value = (value,)
                    self.settled.set()
                    await leave.wait()
        finally:
            self.settled.set()
            self.exited.set()


@asynccontextmanager
async def gather_contexts[T](
    mngrs: Iterable[AbstractAsyncContextManager[T]],
    tn: trio.Nursery | None = None,
) -> AsyncGenerator[tuple[T, ...]]:
    """
    Enter contexts concurrently, each in its own task, and exit them together.

    Waits until all are entered, and at the end until all are exited, in no
    particular order.  An error in one of them or in the body cancels the others; it
    leaves in a group, as from any nursery.

    Args:
        mngrs: The contexts; a generator is used up.
        tn: Where their tasks run; `None` means a nursery of this block.
    Yields:
        Their values, in the order of `mngrs`.
    Raises:
        ValueError: There are none.
        RuntimeError: One failed to enter in a `tn` whose cancellation does not reach
            the caller; the error itself is raised in `tn`.
    """
    members = tuple(_Member(mngr) for mngr in mngrs)
    if not members:
        raise ValueError(
            'gather_contexts() got no contexts: pass at least one, as a sequence; a'
            ' generator that was iterated before is empty'
        )
    leave = trio.Event()
    async with maybe_open_nursery(tn) as nursery:
        for member in members:
            nursery.start_soon(member.hold, leave)
        try:
            yield await _entered(members)
            leave.set()
            await _exited(members)
        except BaseException:
            # What a nursery of our own does anyhow; a given one goes on living.
            for member in members:
                member.scope.cancel()
            raise
        finally:
            with trio.CancelScope(shield=True):
                leave.set()
                await _exited(members)


async def _entered[T](members: Iterable[_Member[T]]) -> tuple[T, ...]:
    values: list[T] = []
    for member in members:
        await member.settled.wait()
        if member.value is None:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise RuntimeError(
                f'{member.mngr!r} was not entered; its nursery has the reason'
            )
        values.append(member.value[0])
    return tuple(values)


async def _exited(members: Iterable[_Member[Any]]) -> None:
    for member in members:
        await member.exited.wait()


class _Resource:
    """One open context: who uses it, and how it ends."""

    __slots__ = ('bodies', 'closed', 'exit_error', 'unused', 'users', 'value')

    def __init__(self) -> None:
        self.users = 0
        self.value: Any = None
        # One around the body of each user.
        self.bodies: set[trio.CancelScope] = set()
        # Set by the last user.
        self.unused = trio.Event()
        # Set when the context was exited, in whatever way.
        self.closed = trio.Event()
        self.exit_error: Exception | None = None

    async def hold(
        self,
        acm_func: Opener[Any],
        kwargs: Mapping[str, Any],
        task_status: trio.TaskStatus[None],
    ) -> None:
        """
        Enter the context and stay inside until it is unused.

        An error on entry is raised, to whom waits for the start.  One that comes
        later is kept for the last user, and interrupts all users if they are still
        there.  Cancellation and interrupts belong to this task.
        """
        is_entered = False
        try:
            async with acm_func(**kwargs) as self.value:
                is_entered = True
                task_status.started()
                await self.unused.wait()
        except BaseException as exc:
            if not is_entered:
                raise
            self.exit_error, rest = _split_errors(exc)
            if self.exit_error is not None:
                for body in self.bodies:
                    body.cancel()
            if rest is not None:
                raise_as_is(rest)
        finally:
            self.closed.set()


def _split_errors(
    exc: BaseException,
) -> tuple[Exception | None, BaseException | None]:
    """Return the regular errors of `exc`, and what else there is."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(Exception)
    return (exc, None) if isinstance(exc, Exception) else (None, exc)


class _Slot:
    """What all callers with one function and key share."""

    __slots__ = ('acm_func', 'claims', 'lock', 'resource')

    def __init__(self, acm_func: Opener[Any]) -> None:
        # Kept, since the key holds only ids.
        self.acm_func = acm_func
        # Callers inside `maybe_open_context()`: waiting, using or leaving.
        self.claims = 0
        self.lock = trio.StrictFIFOLock()
        self.resource: _Resource | None = None

    async def enter(
        self, kwargs: Mapping[str, Any], tn: trio.Nursery
    ) -> tuple[bool, _Resource]:
        """Return whether the context was open, and the open context."""
        async with self.lock:
            resource = self.resource
            if resource is not None and not resource.closed.is_set():
                resource.users += 1
                return True, resource
            resource = _Resource()
            try:
                await tn.start(resource.hold, self.acm_func, kwargs)
                if resource.closed.is_set():
                    # Cancelled just as it started: it was exited here and now.
                    if resource.exit_error is not None:
                        raise resource.exit_error
                    await trio.lowlevel.checkpoint_if_cancelled()
            except BaseException:
                # Interrupted as it started: nobody is going to use it.
                resource.unused.set()
                raise
            resource.users = 1
            self.resource = resource
            return False, resource

    async def leave(self, resource: _Resource, body: trio.CancelScope) -> None:
        """Count a user out; the last one waits for the exit and raises its error."""
        resource.bodies.discard(body)
        if resource.users > 1:
            resource.users -= 1
            if resource.exit_error is not None:
                raise RuntimeError(
                    f'the shared context of {self.acm_func!r} failed while in use;'
                    ' its last user gets the error'
                ) from resource.exit_error
            return
        with trio.CancelScope(shield=True):
            async with self.lock:
                resource.users -= 1
                if resource.users:
                    return
                if self.resource is resource:
                    self.resource = None
                resource.unused.set()
                await resource.closed.wait()
        error = resource.exit_error
        if error is None:
            return
        try:
            if error.__context__ is None:
                raise error
            raise_as_is(error)
        finally:
            # The traceback refers to this frame; do not refer back.
            del error, resource


# The contexts which are open in this process, by function and arguments.
_slots: Final[dict[tuple[Hashable, Hashable], _Slot]] = {}


@asynccontextmanager
async def maybe_open_context[T](
    acm_func: Opener[T],
    kwargs: Mapping[str, Any] = _NO_KWARGS,
    key: Hashable | Callable[..., Hashable] = None,
    tn: trio.Nursery | None = None,
) -> AsyncGenerator[tuple[bool, T]]:
    """
    Use the context which another task of this process has open, or open it.

    The context is entered once and exited when its last user leaves.  Users who come
    or leave while it is entered or exited wait in line.  The last user waits for
    the exit to complete, shielded from cancellation, which is delivered afterwards.
    When `tn` is cancelled the context is exited early; its users keep the value.
    When the context fails while in use, the bodies of its users are cancelled.

    Args:
        acm_func: Returns the context; called with `kwargs` by the first user.  The
            same function, or method of the same object, is what users share.
        kwargs: Its arguments; without `key` their values have to be hashable.
        key: What tells contexts of one function apart: a value, or a function which
            is called with `kwargs` and returns it; falsy means `kwargs` themselves.
        tn: Where the context is held open; `None` means the actor's service nursery.
    Yields:
        `(cache_hit, value)`: whether it was open already, and what it yielded.
    Raises:
        RuntimeError: `tn` does not enclose the caller's own nursery; or the context
            failed while this and other users were inside.
        NoRuntime: `tn` is `None` and no actor runs here.
        BaseException: What the context raised: on entry to its first user, on exit
            to its last, instead of a cancellation that is under way.
    """
    slot_key = _slot_key(acm_func, kwargs, key)
    service_tn = _service_nursery() if tn is None else _checked(tn)
    slot = _slots.setdefault(slot_key, _Slot(acm_func))
    slot.claims += 1
    try:
        is_hit, resource = await slot.enter(kwargs, service_tn)
        with trio.CancelScope() as body:
            resource.bodies.add(body)
            try:
                yield is_hit, resource.value
            finally:
                await slot.leave(resource, body)
        # Deliver what came while the exit was shielded.
        await trio.lowlevel.checkpoint_if_cancelled()
    finally:
        slot.claims -= 1
        if not slot.claims:
            del _slots[slot_key]


def _slot_key(
    acm_func: Opener[Any],
    kwargs: Mapping[str, Any],
    key: Hashable | Callable[..., Hashable],
) -> tuple[Hashable, Hashable]:
    if isinstance(key, FunctionType):
        chosen = key(**kwargs)
    else:
        chosen = key or tuple(kwargs.items())
    try:
        hash(chosen)
    except TypeError as exc:
        raise TypeError(
            f'maybe_open_context({acm_func!r}): {chosen!r} cannot be a key: {exc};'
            ' pass a hashable `key=`, or a function that makes one from the kwargs'
        ) from exc
    return _identity(acm_func), chosen


def _identity(acm_func: Opener[Any]) -> Hashable:
    """Return what tells functions apart as long as this one is kept."""
    if isinstance(acm_func, MethodType):
        # Each look-up of a method binds it anew.
        return id(acm_func.__self__), id(acm_func.__func__)
    return id(acm_func)


def _service_nursery() -> trio.Nursery:
    # The runtime is above this module, and all that is here works without it but
    # this default.
    from tractor.runtime._state import current_actor

    actor: Any = current_actor()
    nursery: trio.Nursery = actor._service_tn
    return nursery


def _checked(tn: trio.Nursery) -> trio.Nursery:
    """Return `tn` if it encloses the nursery which the current task lives in."""
    nursery = trio.lowlevel.current_task().parent_nursery
    while nursery is not None:
        # Of one task's open nurseries, each encloses those opened after it.
        opened = nursery.parent_task.child_nurseries
        if tn in opened[: opened.index(nursery) + 1]:
            return tn
        nursery = nursery.parent_task.parent_nursery
    raise RuntimeError(
        f'task {trio.lowlevel.current_task().name!r} does not live inside {tn!r}: its'
        ' context would be closed, or stay open, regardless of its users; pass a'
        ' nursery that encloses the task'
    )
