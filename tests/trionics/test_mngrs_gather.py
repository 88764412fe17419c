"""Rules of `maybe_open_nursery()` and `gather_contexts()`."""

from __future__ import annotations

import types
from contextlib import asynccontextmanager

import pytest
import trio

from tractor.trionics import (
    collapse_eg,
    gather_contexts,
    maybe_open_nursery,
)

# -- maybe_open_nursery --------------------------------------------------------


@pytest.mark.parametrize('given', [True, object(), 0])
def test_given_nursery_is_yielded_untouched(kit, given: object):
    """Whatever is not `None` is passed through, without a look at its type."""

    async def main():
        async with maybe_open_nursery(given) as nursery:
            assert nursery is given

    kit.run(main)


def test_given_nursery_stays_open(kit):
    """Leaving the block waits for nothing in a nursery of the caller's."""

    async def main():
        async with trio.open_nursery() as tn:
            async with maybe_open_nursery(tn, shield=True) as same:
                same.start_soon(trio.sleep_forever)
            assert not tn.cancel_scope.shield
            tn.cancel_scope.cancel()

    kit.run(main)


@pytest.mark.parametrize('shield', [False, True])
def test_own_nursery_is_shielded_on_demand(kit, shield: bool):
    """A new trio nursery gets `shield` and keyword arguments."""

    async def main():
        async with maybe_open_nursery(
            shield=shield, strict_exception_groups=True
        ) as nursery:
            assert isinstance(nursery, trio.Nursery)
            assert nursery.cancel_scope.shield is shield

    kit.run(main)


def test_other_library_opens_its_own_nursery(kit):
    """`lib` gives the nursery and gets the keyword arguments, but no `shield`."""

    @asynccontextmanager
    async def open_nursery(**kwargs):
        yield kwargs

    async def main():
        lib = types.SimpleNamespace(open_nursery=open_nursery)
        async with maybe_open_nursery(shield=True, lib=lib, name='x') as nursery:
            assert nursery == {'name': 'x'}

    kit.run(main)


# -- gather_contexts -----------------------------------------------------------


@pytest.mark.parametrize('is_given', [False, True])
def test_gathers_concurrently_in_input_order(kit, is_given: bool):
    """All are inside at once, their values come as a tuple in the order given."""
    inside: set[int] = set()

    @asynccontextmanager
    async def member(number: int, all_here: list[trio.Event]):
        all_here[number].set()
        for event in all_here:
            await event.wait()
        inside.add(number)
        yield number
        inside.remove(number)

    async def main():
        async with trio.open_nursery() as tn:
            here = [trio.Event() for _ in range(3)]
            members = (member(number, here) for number in range(3))
            async with gather_contexts(members, tn=tn if is_given else None) as values:
                assert values == (0, 1, 2)
                assert inside == {0, 1, 2}
            assert inside == set()

    kit.run(main)


def test_gathering_nothing_is_an_error_at_entry(kit):
    """No contexts, also from a used-up generator: `ValueError`, and a prompt unwind."""
    used_up = (kit.Recorder()() for _ in range(1))
    list(used_up)

    async def main(mngrs):
        with trio.fail_after(1):
            async with (
                collapse_eg(),
                trio.open_nursery() as tn,
                gather_contexts(mngrs),
            ):
                tn.start_soon(trio.sleep_forever)
                raise AssertionError('entered')

    for mngrs in ((), [], used_up):
        with pytest.raises(ValueError, match='no contexts'):
            kit.run(main, mngrs)


@pytest.mark.parametrize('is_given', [False, True])
def test_error_of_the_body_exits_all_members(kit, is_given: bool):
    """They are cancelled, exited, and the error leaves."""
    recorders = [kit.Recorder(), kit.Recorder()]

    async def main():
        async with collapse_eg(), trio.open_nursery() as tn:
            try:
                async with gather_contexts(
                    [r() for r in recorders], tn=tn if is_given else None
                ):
                    raise KeyError('body')
            finally:
                assert [r.events for r in recorders] == [['enter', 'exit']] * 2

    with pytest.raises(KeyError, match='body'):
        kit.run(main)


@pytest.mark.parametrize('is_given', [False, True])
def test_error_on_entry_cancels_the_others(kit, is_given: bool):
    """One that fails to enter takes those with it which still enter or have entered."""
    error = KeyError('entry')
    entered, entering = kit.Recorder(), kit.Recorder(entry_gate=trio.Event())

    async def main():
        async with collapse_eg(), trio.open_nursery() as tn:
            async with gather_contexts(
                [entering(), entered(), kit.Recorder(entry_error=error)()],
                tn=tn if is_given else None,
            ):
                raise AssertionError('entered')

    with pytest.raises(KeyError) as info:
        kit.run(main)
    assert info.value is error
    assert entered.events in (['enter', 'exit'], [])
    assert entering.events == []


def test_error_on_exit_leaves_the_block(kit):
    """A member that fails while it is exited is an error of the whole."""
    other = kit.Recorder()

    async def main():
        async with gather_contexts(
            [kit.Recorder(exit_error=KeyError('exit'))(), other()]
        ):
            pass

    with pytest.raises(ExceptionGroup) as info:
        kit.run(main)
    assert info.group_contains(KeyError, match='exit')
    assert other.events == ['enter', 'exit']


def test_cancelled_body_waits_for_members_in_a_given_nursery(kit):
    """Though the nursery goes on living, nothing of the block is left in it."""
    recorder = kit.Recorder()

    async def main():
        async with trio.open_nursery() as tn:
            with trio.CancelScope() as scope:
                async with gather_contexts([recorder()], tn=tn):
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught
            assert recorder.events == ['enter', 'exit']
            assert not tn.child_tasks
            assert not tn.cancel_scope.cancel_called

    kit.run(main)


def test_failed_entry_in_an_unrelated_nursery_does_not_hang(kit):
    """The error belongs to that nursery; the caller is told where to look."""

    async def main():
        async with trio.open_nursery() as host:

            async def open_own(task_status):
                async with trio.open_nursery() as tn:
                    task_status.started(tn)
                    await trio.sleep_forever()

            async def own_nursery(task_status):
                with pytest.raises(ExceptionGroup) as info:
                    await open_own(task_status)
                assert info.group_contains(KeyError)

            unrelated = await host.start(own_nursery)
            failing = kit.Recorder(entry_error=KeyError('entry'))
            with pytest.raises(RuntimeError, match='was not entered'):
                async with gather_contexts([failing()], tn=unrelated):
                    raise AssertionError('entered')

    kit.run(main)
