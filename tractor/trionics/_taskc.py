"""
Find the error that a cancellation hides, and start tasks under cancellation.

A checkpoint inside `finally:`, `except:` or `__aexit__()` raises `trio.Cancelled`
when its scope was cancelled meanwhile; the error which was on its way out is left
behind as the cancellation's `__context__`, the scope absorbs the cancellation, and
the error is lost.  `find_masked_exc()` holds the rule which tells such an error; it
follows the contexts past other cancellations, control-flow signals and the sites in
`_mask_cases`, where trio itself waits inside a handler and nothing went wrong.
Used by the RPC engine, by the blocks of `_mngrs` and by applications.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from tractor._protocol.verdict import leaves
from tractor.log import get_logger
from tractor.trionics._beg import raise_as_is

log = get_logger(__name__)

type ExcTypes = tuple[type[BaseException], ...]

# Where trio waits while it handles an exception of its own, and thus a cancelled
# wait has a context that is no error: the exception's exact type, then the modules
# and functions that handle it.  Tests and applications may change the table.
_mask_cases: dict[type[BaseException], tuple[tuple[str, str], ...]] = {
    trio.WouldBlock: (
        ('trio._sync', 'acquire'),
        ('trio._sync', 'acquire_on_behalf_of'),
    ),
    BlockingIOError: (
        ('trio._unix_pipes', 'receive_some'),
        ('trio._unix_pipes', 'send_all'),
    ),
}

# These end a generator or an iteration; nobody wants them raised in another place.
_CONTROL_FLOW: Final = (GeneratorExit, StopIteration, StopAsyncIteration)

_NEVER_WARN_ON: Final[Mapping[type[BaseException], type[BaseException]]] = {
    KeyboardInterrupt: trio.Cancelled,
    trio.Cancelled: trio.Cancelled,
}

_EXTRA_NOTE: Final = (
    'An `await` in a `finally:`, an `except:` or an `__aexit__()` ran into the'
    ' cancellation while this error was on its way out; shield it, or do not'
    ' await there.'
)

_NEVER_STARTED: Final = 'child exited without calling task_status.started()'


class BoxedMaybeException:
    """What a block raised, if anything; handed out before it is known."""

    __slots__ = ('raise_on_exit', 'value')

    def __init__(
        self, value: BaseException | None = None, raise_on_exit: Any = True
    ) -> None:
        self.value = value
        self.raise_on_exit = raise_on_exit

    def pformat(self) -> str:
        """Return the box as text, one line for each field."""
        return (
            f'{type(self).__name__}(\n'
            f'  value={self.value!r},\n'
            f'  raise_on_exit={self.raise_on_exit!r},\n'
            ')'
        )

    __repr__ = pformat


def find_masked_exc(
    exc: BaseException, unmask_from: ExcTypes = (trio.Cancelled,)
) -> BaseException | None:
    """
    Return the error that is hidden behind a cancellation.

    Args:
        exc: What a task raised; a group is searched as well.
        unmask_from: Exact types which may hide an error; empty: nothing does.
    Returns:
        The masked error; `None` if nothing is masked.  When several leaves of a
        group hide different errors, or the group holds errors of its own too, a
        derived group of all of these: no error is traded for another.
    """
    found = _find(exc, unmask_from)
    return found[1] if found else None


def _find(
    exc: BaseException, unmask_from: ExcTypes
) -> tuple[BaseException, BaseException] | None:
    """Return the first masker and what is to be raised in place of `exc`."""
    if not isinstance(exc, BaseExceptionGroup):
        if type(exc) in unmask_from and (masked := _masked_by(exc, unmask_from)):
            return exc, masked
        return None
    maskers, others = exc.split(lambda leaf: type(leaf) in unmask_from)
    if maskers is None:
        return None
    known = {id(leaf) for leaf in leaves(others)} if others else set()
    first: BaseException | None = None
    hidden: list[BaseException] = []
    for masker in leaves(maskers):
        masked = _masked_by(masker, unmask_from)
        if masked is None or all(id(leaf) in known for leaf in leaves(masked)):
            continue
        known.update(id(leaf) for leaf in leaves(masked))
        first = first or masker
        hidden.append(masked)
    if first is None:
        return None
    if others is None and len(hidden) == 1:
        return first, hidden[0]
    rest = list(others.exceptions) if others else []
    return first, exc.derive([*rest, *hidden])


def _masked_by(masker: BaseException, unmask_from: ExcTypes) -> BaseException | None:
    seen = {id(masker)}
    error = masker.__context__
    while error is not None and id(error) not in seen:
        if not _is_benign(error, unmask_from):
            return error
        seen.add(id(error))
        error = error.__context__
    return None


def _is_benign(error: BaseException, unmask_from: ExcTypes) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(type(leaf) in unmask_from for leaf in leaves(error))
    if type(error) in unmask_from or isinstance(error, _CONTROL_FLOW):
        return True
    sites = _mask_cases.get(type(error))
    if not sites or error.__traceback__ is None:
        return False
    # The outermost entry of a traceback is the frame that handles the exception.
    frame = error.__traceback__.tb_frame
    return (frame.f_globals.get('__name__'), frame.f_code.co_name) in sites


@asynccontextmanager
async def maybe_raise_from_masking_exc(
    unmask_from: ExcTypes = (trio.Cancelled,),
    raise_unmasked: bool = True,
    extra_note: str = _EXTRA_NOTE,
    always_warn_on: ExcTypes = (trio.Cancelled,),
    never_warn_on: Mapping[type[BaseException], type[BaseException]] = _NEVER_WARN_ON,
) -> AsyncGenerator[BoxedMaybeException]:
    """
    Raise the error which the body's cancellation hides, instead of the latter.

    Waits for nothing.  `find_masked_exc()` tells what is hidden; whatever else the
    body raises passes unchanged.

    Args:
        unmask_from: Exact types that may hide an error; empty disables the block.
        raise_unmasked: Raise the masked error; else only note and warn.
        extra_note: Appended to the note on the masked error; empty for none.
        always_warn_on: Masker types whose finds are also logged as a warning.
        never_warn_on: Masked type to masker type: pairs without note and warning.
    Yields:
        A box whose `.value` becomes the exception that masked another.
    Raises:
        ValueError: `unmask_from` is not a tuple.
        BaseException: The masked error, caused by its masker unless it had a cause.
    """
    if not isinstance(unmask_from, tuple):
        raise ValueError(
            f'unmask_from must be a tuple of exception types, got {unmask_from!r}'
        )
    box = BoxedMaybeException(raise_on_exit=raise_unmasked)
    try:
        yield box
    except BaseException as exc:
        found = _find(exc, unmask_from) if unmask_from else None
        if found is None:
            raise
        masker, masked = found
        box.value = masker
        if never_warn_on.get(type(masked)) is not type(masker):
            _report(masked, masker, extra_note, type(masker) in always_warn_on)
        if not raise_unmasked:
            raise
        if masked.__cause__ is None:
            masked.__cause__ = masker
            _unlink(masker, masked)
        raise_as_is(masked)


def _report(
    masked: BaseException, masker: BaseException, extra_note: str, warn: bool
) -> None:
    note = f'the above {type(masked).__name__} was masked by a {type(masker).__name__}'
    if extra_note:
        note = f'{note}: {extra_note}'
    if note not in getattr(masked, '__notes__', ()):
        masked.add_note(note)
    if warn:
        log.warning('%r: %s', masked, note)


def _unlink(masker: BaseException, masked: BaseException) -> None:
    """Take `masked` out of the contexts of its cause: a chain is no circle."""
    link: BaseException | None = masker
    while link is not None:
        if link.__context__ is masked:
            link.__context__ = None
        link = link.__context__


async def start_or_cancel(
    nursery: trio.Nursery,
    async_fn: Callable[..., Awaitable[object]],
    *args: object,
    name: object = None,
) -> Any:
    """
    Like `nursery.start()`, but a cancelled start reports the cancellation.

    A task that swallows its cancellation and returns before `started()` makes trio
    raise a `RuntimeError`, which then hides why it did not start.  Waits as
    `nursery.start()` does.

    Args:
        nursery: Where the task is to live.
        async_fn: Called with `args` and `task_status`.
        args: Positional arguments of `async_fn`.
        name: The task's name; `None` means the function's.
    Returns:
        The value passed to `task_status.started()`.
    Raises:
        trio.Cancelled: The task did not report a start, and the caller is cancelled.
        RuntimeError: The task did not report a start, for another reason.
    """
    try:
        return await nursery.start(async_fn, *args, name=name)
    except RuntimeError as exc:
        if not _is_never_started(exc):
            raise
        error = exc
    # Outside the handler, or the cancellation would seem to hide this very error.
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
        raise error
    finally:
        # The traceback refers to this frame; do not refer back.
        del error


def _is_never_started(exc: RuntimeError) -> bool:
    text = exc.args[0] if len(exc.args) == 1 else None
    return isinstance(text, str) and text == _NEVER_STARTED
