"""Rules of `tractor.trionics._taskc`: masked errors, and starts under cancellation."""

from __future__ import annotations

import gc
import os
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor.trionics import (
    _taskc,
    collapse_eg,
    gather_contexts,
    maybe_raise_from_masking_exc,
    start_or_cancel,
)
from tractor.trionics._taskc import BoxedMaybeException, find_masked_exc


class Masker(Exception):
    """Stands for whatever type is to be unmasked from."""


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The warnings logged by the module."""
    records: list[tuple[Any, ...]] = []
    monkeypatch.setattr(_taskc.log, 'warning', lambda *args: records.append(args))
    return records


def masker(masked: BaseException | None) -> Masker:
    """Return a masker that hides `masked`."""
    exc = Masker()
    exc.__context__ = masked
    return exc


def run_block(exc: BaseException, **kwargs) -> tuple[BaseException, Any]:
    """Return what leaves the block whose body raises `exc`, and its box."""
    box = None

    async def main():
        nonlocal box
        async with maybe_raise_from_masking_exc(**kwargs) as box:
            assert box.value is None
            raise exc

    with pytest.raises(BaseException) as info:  # noqa: PT011
        trio.run(main)
    return info.value, box


# -- the rule ------------------------------------------------------------------


def test_context_of_a_masker_is_masked():
    """Only an exact type in `unmask_from` masks, and only with a context."""

    class Other(Masker):
        pass

    error, other = ValueError(1), Other()
    other.__context__ = error
    assert find_masked_exc(masker(error), (Masker,)) is error
    assert find_masked_exc(masker(None), (Masker,)) is None
    assert find_masked_exc(masker(error), ()) is None
    assert find_masked_exc(other, (Masker,)) is None
    assert find_masked_exc(error, (Masker,)) is None


def test_rule_looks_past_a_chain_of_maskers():
    """An error which was masked twice is found."""
    error = ValueError(1)
    assert find_masked_exc(masker(masker(error)), (Masker,)) is error
    group = ExceptionGroup('', [masker(None)])
    group.__context__ = error
    assert find_masked_exc(masker(group), (Masker,)) is error


@pytest.mark.parametrize('signal', [GeneratorExit, StopIteration, StopAsyncIteration])
def test_control_flow_is_no_masked_error(signal: type[BaseException]):
    """What ends a generator is not raised in another place."""
    flow = signal()
    assert find_masked_exc(masker(flow), (Masker,)) is None
    flow.__context__ = error = ValueError(1)
    assert find_masked_exc(masker(flow), (Masker,)) is error


def test_circular_contexts_end_the_search():
    """A circle of contexts, which user code can make, is no endless loop."""
    a, b = masker(None), masker(None)
    a.__context__, b.__context__ = b, a
    assert find_masked_exc(a, (Masker,)) is None
    a.__context__ = b.__context__ = None


def test_masked_member_of_a_group_is_returned_bare():
    """A group of maskers of which one hides an error gives that error."""
    error = ValueError(1)
    group = ExceptionGroup('', [masker(None), ExceptionGroup('', [masker(error)])])
    assert find_masked_exc(group, (Masker,)) is error


def test_group_loses_no_error_when_unmasked():
    """Other errors of the group, and every hidden one, are kept."""
    hidden, second, other = ValueError(1), KeyError(2), OSError(3)
    group = ExceptionGroup('g', [masker(hidden), other, masker(second)])
    found = find_masked_exc(group, (Masker,))
    assert isinstance(found, ExceptionGroup)
    assert found.message == 'g'
    assert found.exceptions == (other, hidden, second)


def test_error_that_is_in_the_group_anyway_is_not_masked():
    """A masker whose context is raised beside it hides nothing."""
    error = ValueError(1)
    group = ExceptionGroup('', [error, masker(error)])
    assert find_masked_exc(group, (Masker,)) is None
    two = ExceptionGroup('', [masker(error), masker(error)])
    assert find_masked_exc(two, (Masker,)) is error


# -- the block -----------------------------------------------------------------


def test_masked_error_is_raised_from_its_masker(warnings):
    """The identical object, caused by the masker; its own context stays."""
    error, own_context = ValueError(1), KeyError(2)
    error.__context__ = own_context
    hiding = masker(error)
    raised, box = run_block(hiding, unmask_from=(Masker,))
    assert raised is error
    assert raised.__cause__ is hiding
    assert raised.__context__ is own_context
    assert hiding.__context__ is None
    assert box.value is hiding


def test_cause_of_a_masked_error_is_kept():
    """An error raised `from` another one goes on saying so."""
    error, cause = ValueError(1), KeyError(2)
    error.__cause__ = cause
    raised, _ = run_block(masker(error), unmask_from=(Masker,))
    assert raised is error
    assert raised.__cause__ is cause


def test_without_raise_unmasked_the_masker_propagates(warnings):
    """Then there are only the note, the warning and the box."""
    error = ValueError(1)
    hiding = masker(error)
    raised, box = run_block(
        hiding, unmask_from=(Masker,), raise_unmasked=False, always_warn_on=(Masker,)
    )
    assert raised is hiding
    assert box.value is hiding
    assert hiding.__context__ is error
    assert len(error.__notes__) == len(warnings) == 1


def test_note_names_both_and_ends_with_the_extra_note(warnings):
    """The masked error says by what it was masked."""
    error = ValueError(1)
    run_block(masker(error), unmask_from=(Masker,), extra_note='look here')
    (note,) = error.__notes__
    assert 'ValueError was masked by a Masker' in note
    assert note.endswith('look here')
    assert warnings == []  # not in `always_warn_on`


def test_never_warn_on_pairs_are_silent(warnings):
    """Such a pair is unmasked all the same, without note and warning."""
    error = ValueError(1)
    raised, _ = run_block(
        masker(error),
        unmask_from=(Masker,),
        always_warn_on=(Masker,),
        never_warn_on={ValueError: Masker},
    )
    assert raised is error
    assert not hasattr(error, '__notes__')
    assert warnings == []


def test_unmask_from_must_be_a_tuple():
    """A set or a single type is refused."""
    error, _ = run_block(KeyError(), unmask_from={trio.Cancelled})
    assert isinstance(error, ValueError)
    assert 'must be a tuple' in str(error)


def test_empty_unmask_from_disables_the_block():
    """Nothing is unmasked, nothing is noted."""
    error = ValueError(1)
    hiding = masker(error)
    raised, box = run_block(hiding, unmask_from=())
    assert raised is hiding
    assert box.value is None
    assert not hasattr(error, '__notes__')


def test_unrelated_errors_pass_unchanged():
    """An error that masks nothing leaves as it is, and so does no error."""
    error = ValueError(1)
    error.__context__ = context = KeyError(2)
    raised, box = run_block(error)
    assert raised is error
    assert raised.__context__ is context
    assert box.value is None

    async def quiet():
        async with maybe_raise_from_masking_exc() as box:
            pass
        assert box.value is None

    trio.run(quiet)


def test_box_shows_its_fields():
    """`repr()` and `pformat()` tell what was boxed."""
    box = BoxedMaybeException()
    assert box.value is None
    assert box.raise_on_exit is True
    box = BoxedMaybeException(ValueError('x'), raise_on_exit=False)
    assert "value=ValueError('x')" in repr(box)
    assert 'raise_on_exit=False' in box.pformat()


# -- scenarios -----------------------------------------------------------------


@asynccontextmanager
async def nursery_that_always_cancels(unmask_from):
    """A nursery whose `finally:` cancels it and then hits a checkpoint."""
    async with (
        trio.open_nursery() as tn,
        maybe_raise_from_masking_exc(unmask_from=unmask_from),
    ):
        try:
            yield tn
        finally:
            tn.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()


def test_error_of_the_body_survives_a_cancelled_teardown():
    """Unmasking brings the `AssertionError` out; without, it is lost."""
    entered = []

    async def main(unmask_from):
        async with nursery_that_always_cancels(unmask_from):
            entered.append(1)
            raise AssertionError('body')

    with pytest.raises(ExceptionGroup) as info:
        trio.run(main, (trio.Cancelled,))
    assert info.group_contains(AssertionError, match='body', depth=1)
    trio.run(main, ())
    assert len(entered) == 2


@pytest.mark.parametrize('where', ['iteration', 'teardown'])
@pytest.mark.parametrize('more_checkpoints', [0, 1])
def test_memory_channel_exit_hides_no_error(where: str, more_checkpoints: int):
    """`async with send_channel` is a checkpoint; cancelled, it hides no error."""

    async def body(tn: trio.Nursery):
        send, receive = trio.open_memory_channel(1)
        async with receive, send:
            await send.send(1)
            try:
                async for _ in receive:
                    if where == 'teardown':
                        break
                    tn.cancel_scope.cancel()
                    raise RuntimeError('mine')
            finally:
                if where == 'teardown':
                    tn.cancel_scope.cancel()
                    raise RuntimeError('mine')

    async def main():
        async with (
            collapse_eg(),
            trio.open_nursery() as tn,
            maybe_raise_from_masking_exc(),
            AsyncExitStack() as stack,
        ):
            # One more checkpoint on the way out masks the first one.
            for _ in range(more_checkpoints):
                stack.push_async_callback(trio.lowlevel.checkpoint)
            await body(tn)

    with pytest.raises(RuntimeError, match='mine'):
        trio.run(main)


def test_keyboard_interrupt_leaves_gathered_channels_bare():
    """Interrupted between open channels, only the interrupt comes out."""

    @asynccontextmanager
    async def channel():
        send, receive = trio.open_memory_channel(1)
        async with send:
            yield receive

    async def main():
        async with (
            collapse_eg(),
            trio.open_nursery(),
            gather_contexts([channel(), channel()]) as receivers,
        ):
            assert len(receivers) == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


@pytest.fixture
def own_mask_cases(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The table of benign sites, to be changed freely."""
    cases = dict(_taskc._mask_cases)
    monkeypatch.setattr(_taskc, '_mask_cases', cases)
    return cases


async def _wait_in(primitive: str) -> None:
    """Wait where trio waits inside a handler of its own."""
    if primitive == 'lock':
        lock = trio.Lock()
        async with trio.open_nursery() as tn:
            await tn.start(_hold, lock)
            await lock.acquire()
    elif primitive == 'semaphore':
        await trio.Semaphore(0).acquire()
    elif primitive == 'limiter':
        limiter = trio.CapacityLimiter(1)
        limiter.acquire_on_behalf_of_nowait('another')
        await limiter.acquire()
    else:
        read_end, write_end = os.pipe()
        try:
            async with trio.lowlevel.FdStream(read_end) as pipe:
                await pipe.receive_some()
        finally:
            os.close(write_end)


async def _hold(lock: trio.Lock, task_status=trio.TASK_STATUS_IGNORED) -> None:
    async with lock:
        task_status.started()
        await trio.sleep_forever()


async def _cancel_while_waiting(primitive: str) -> trio.CancelScope:
    async def wait() -> None:
        with scope:
            async with maybe_raise_from_masking_exc():
                await _wait_in(primitive)

    scope = trio.CancelScope()
    with trio.fail_after(2):
        async with trio.open_nursery() as tn:
            tn.start_soon(wait)
            await wait_all_tasks_blocked()
            scope.cancel()
    return scope


@pytest.mark.parametrize('primitive', ['lock', 'semaphore', 'limiter', 'pipe'])
def test_waits_of_trio_itself_are_exempt(primitive: str):
    """Cancelled where trio handles its own `WouldBlock`, nothing is unmasked."""
    assert trio.run(_cancel_while_waiting, primitive).cancelled_caught


@pytest.mark.parametrize(
    ('primitive', 'masked'), [('lock', trio.WouldBlock), ('pipe', BlockingIOError)]
)
def test_cleared_table_unmasks_them(own_mask_cases: dict, primitive: str, masked: type):
    """The exemptions are those of `_mask_cases`, and no others."""
    own_mask_cases.clear()
    with pytest.raises(ExceptionGroup) as info:
        trio.run(_cancel_while_waiting, primitive)
    assert info.group_contains(masked)


def test_error_before_a_benign_wait_is_still_found():
    """A teardown that waits for a lock hides the error all the same."""

    async def main():
        lock = trio.Lock()
        with trio.fail_after(2):
            async with collapse_eg(), trio.open_nursery() as tn:
                await tn.start(_hold, lock)
                async with maybe_raise_from_masking_exc():
                    try:
                        raise RuntimeError('mine')
                    finally:
                        tn.cancel_scope.deadline = trio.current_time()
                        await lock.acquire()

    with pytest.raises(RuntimeError, match='mine'):
        trio.run(main)


def test_lock_acquire_in_a_cancelled_start_is_not_unmasked():
    """A child which waits for a lock when its start is cancelled just ends."""

    async def child(lock: trio.Lock, task_status=trio.TASK_STATUS_IGNORED):
        async with maybe_raise_from_masking_exc(), lock:
            task_status.started()

    async def main():
        lock = trio.Lock()
        async with lock:
            with trio.fail_after(2), trio.CancelScope() as scope:
                async with trio.open_nursery() as outer:

                    async def start() -> None:
                        await outer.start(child, lock)

                    outer.start_soon(start)
                    await wait_all_tasks_blocked()
                    scope.cancel()
        assert scope.cancelled_caught

    trio.run(main)


# -- start_or_cancel -----------------------------------------------------------


async def never_starts(task_status=trio.TASK_STATUS_IGNORED) -> None:
    """Swallow a cancellation and return without `started()`."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await trio.lowlevel.checkpoint()


async def waits_then_never_starts(task_status=trio.TASK_STATUS_IGNORED) -> None:
    """Return without `started()` once cancelled from outside."""
    with pytest.raises(trio.Cancelled):
        await trio.sleep_forever()


def test_start_passes_everything_through():
    """Arguments, name and the started value are those of `nursery.start()`."""

    async def child(a, b, task_status):
        task_status.started((a, b, trio.lowlevel.current_task().name))

    async def main():
        async with trio.open_nursery() as tn:
            assert await start_or_cancel(tn, child, 1, 2, name='its name') == (
                1,
                2,
                'its name',
            )

    trio.run(main)


def test_start_without_cancellation_keeps_trios_error():
    """If nobody cancelled, not to start is the child's own fault."""

    async def main():
        async with collapse_eg(), trio.open_nursery() as tn:
            await start_or_cancel(tn, never_starts)

    with pytest.raises(RuntimeError, match='without calling task_status'):
        trio.run(main)


def test_cancelled_start_leaves_the_scope_without_error():
    """A cancel from an ancestor is all that is reported."""

    async def main():
        with trio.fail_after(2), trio.CancelScope() as scope:
            async with trio.open_nursery() as tn:
                tn.start_soon(start_or_cancel, tn, waits_then_never_starts)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught

    trio.run(main)


def test_cancelled_start_does_not_seem_to_mask_an_error():
    """The cancellation has no context which unmasking would bring out."""

    async def main():
        with trio.fail_after(2), trio.CancelScope() as scope:
            async with trio.open_nursery() as tn:

                async def start():
                    async with maybe_raise_from_masking_exc():
                        await start_or_cancel(tn, waits_then_never_starts)

                tn.start_soon(start)
                await wait_all_tasks_blocked()
                scope.cancel()
        assert scope.cancelled_caught

    trio.run(main)


def test_only_the_error_of_a_sibling_remains():
    """A sibling's error cancels the start, and is the only thing in the group."""

    async def sibling():
        await wait_all_tasks_blocked()
        raise KeyError('sibling')

    async def main():
        with trio.fail_after(2):
            async with trio.open_nursery() as tn:
                tn.start_soon(sibling)
                await start_or_cancel(tn, waits_then_never_starts)

    with pytest.raises(ExceptionGroup) as info:
        trio.run(main)
    (error,) = info.value.exceptions
    assert isinstance(error, KeyError)


@pytest.mark.parametrize(
    'error',
    [RuntimeError('other text'), RuntimeError(17), RuntimeError(), RuntimeError('', 1)],
    ids=repr,
)
@pytest.mark.parametrize('is_cancelled', [False, True])
def test_error_of_the_child_is_never_demoted(error: RuntimeError, is_cancelled: bool):
    """A child's own `RuntimeError` surfaces as the same object, cancelled or not."""

    async def child(task_status=trio.TASK_STATUS_IGNORED):
        if is_cancelled:
            scope.cancel()
        raise error

    scope = trio.CancelScope()

    async def main():
        with scope:
            async with trio.open_nursery() as tn:
                await start_or_cancel(tn, child)

    with pytest.raises(ExceptionGroup) as info:
        trio.run(main)
    assert info.value.exceptions == (error,)
    gc.collect()
