"""Rules of `maybe_open_context()`: what is shared, by whom, in which order."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor.trionics import (
    maybe_open_context,
)


@pytest.mark.parametrize('key', [None, 'shared', lambda value: 'made'])
def test_ten_tasks_enter_one_context_once(kit, key):
    """One miss, nine hits, all with the same value, exited once by the last."""
    recorder = kit.Recorder()
    seen: list[tuple[bool, object]] = []

    async def user(tn: trio.Nursery, all_in: trio.Event):
        async with maybe_open_context(recorder, {'value': 1}, key=key, tn=tn) as got:
            seen.append(got)
            if len(seen) == 10:
                all_in.set()
            await all_in.wait()
            assert recorder.events == ['enter']

    async def main():
        all_in = trio.Event()
        async with kit.services() as tn, trio.open_nursery() as users:
            for _ in range(10):
                users.start_soon(user, tn, all_in)

    kit.run(main)
    assert sorted(seen) == [(False, 1)] + [(True, 1)] * 9
    assert recorder.events == ['enter', 'exit']


def test_different_keys_are_different_contexts(kit):
    """By kwargs, by value of `key`, by what a `key` function makes of the kwargs."""
    opened = []

    @asynccontextmanager
    async def opener(**kwargs):
        opened.append(kwargs)
        yield len(opened)

    async def user(tn):
        async with (
            maybe_open_context(opener, {'a': 1}, tn=tn) as first,
            maybe_open_context(opener, {'a': 2}, tn=tn) as second,
            maybe_open_context(opener, {'a': 1}, tn=tn) as again,
            maybe_open_context(opener, {'a': 3}, key='k', tn=tn) as third,
            maybe_open_context(opener, {'a': 4}, key='k', tn=tn) as third_again,
            maybe_open_context(opener, {'a': 5}, key=lambda a: a + 1, tn=tn) as fourth,
            maybe_open_context(opener, {'a': 6}, key=lambda a: a, tn=tn) as same,
            maybe_open_context(opener, tn=tn) as bare,
        ):
            return first, second, again, third, third_again, fourth, same, bare

    async def main():
        async with kit.services() as tn:
            assert await kit.in_task(user, tn) == (
                (False, 1),
                (False, 2),
                (True, 1),
                (False, 3),
                (True, 3),
                (False, 4),
                (True, 4),
                (False, 5),
            )

    kit.run(main)
    assert opened == [{'a': 1}, {'a': 2}, {'a': 3}, {'a': 5}, {}]


def test_same_arguments_of_another_function_are_another_context(kit):
    """The function is part of the key."""
    one, two = kit.Recorder(), kit.Recorder()

    async def user(tn):
        async with (
            maybe_open_context(one, tn=tn) as (hit_one, _),
            maybe_open_context(two, tn=tn) as (hit_two, _),
        ):
            return hit_one, hit_two

    async def main():
        async with kit.services() as tn:
            assert await kit.in_task(user, tn) == (False, False)

    kit.run(main)


def test_method_is_one_function_for_each_object(kit):
    """Each look-up binds it anew, yet it is the object and the method that count."""

    class Pool:
        opened = 0

        @asynccontextmanager
        async def connection(self):
            self.opened += 1
            yield self

        @asynccontextmanager
        async def other(self):
            yield self

        @classmethod
        @asynccontextmanager
        async def shared(cls):
            yield cls

    async def user(tn):
        pool, second = Pool(), Pool()
        async with (
            maybe_open_context(pool.connection, tn=tn) as first,
            maybe_open_context(pool.connection, tn=tn) as again,
            maybe_open_context(second.connection, tn=tn) as of_second,
            maybe_open_context(pool.other, tn=tn) as of_other,
            maybe_open_context(pool.shared, tn=tn) as of_class,
            maybe_open_context(second.shared, tn=tn) as of_class_again,
        ):
            assert (first, again) == ((False, pool), (True, pool))
            assert of_second == (False, second)
            assert of_other == (False, pool)
            assert (of_class, of_class_again) == ((False, Pool), (True, Pool))
        assert pool.opened == 1

    async def main():
        async with kit.services() as tn:
            await kit.in_task(user, tn)

    kit.run(main)


def test_unhashable_arguments_need_a_key(kit):
    """The error names the remedy."""

    async def user(tn):
        async with maybe_open_context(kit.Recorder(), {'value': []}, tn=tn):
            raise AssertionError('entered')

    async def main():
        async with kit.services() as tn:
            with pytest.raises(TypeError, match='pass a hashable `key=`'):
                await user(tn)

    kit.run(main)


def test_context_outlives_its_first_user(kit):
    """It stays open until the last user leaves, whoever opened it."""
    recorder = kit.Recorder()

    async def user(tn, leave, task_status):
        async with maybe_open_context(recorder, tn=tn) as got:
            task_status.started(got)
            await leave.wait()

    async def main():
        async with kit.services() as tn, trio.open_nursery() as users:
            first, second = trio.Event(), trio.Event()
            assert await users.start(user, tn, first) == (False, 1)
            assert await users.start(user, tn, second) == (True, 1)
            first.set()
            await wait_all_tasks_blocked()
            assert len(users.child_tasks) == 1
            assert recorder.events == ['enter']
            second.set()
        assert recorder.events == ['enter', 'exit']

    kit.run(main)


def test_waiting_user_opens_what_the_first_failed_to(kit):
    """Each in line gets its own attempt, in the order of arrival."""
    gate = trio.Event()
    recorder = kit.Recorder(entry_gate=gate, entry_error=ValueError('entry'))
    got = []

    async def first(tn):
        with pytest.raises(ValueError, match='entry'):
            async with maybe_open_context(recorder, tn=tn):
                raise AssertionError('entered')
        recorder.entry_error = None

    async def second(tn):
        async with maybe_open_context(recorder, tn=tn) as result:
            got.append(result)

    async def main():
        async with kit.services() as tn, trio.open_nursery() as users:
            users.start_soon(first, tn)
            await wait_all_tasks_blocked()
            users.start_soon(second, tn)
            await wait_all_tasks_blocked()
            gate.set()
        assert got == [(False, 1)]

    kit.run(main)


def test_entrant_during_teardown_waits_and_misses(kit):
    """Who comes while the context is exited gets a new one, when that is done."""
    gate = trio.Event()
    recorder = kit.Recorder(exit_gate=gate)
    got = []

    async def user(tn):
        async with maybe_open_context(recorder, tn=tn) as result:
            got.append((*result, list(recorder.events)))

    async def main():
        async with kit.services() as tn, trio.open_nursery() as users:
            users.start_soon(user, tn)
            await wait_all_tasks_blocked()
            users.start_soon(user, tn)
            await wait_all_tasks_blocked()
            assert len(got) == 1
            gate.set()
        assert got == [
            (False, 1, ['enter']),
            (False, 1, ['enter', 'exit', 'enter']),
        ]

    kit.run(main)


def test_entrants_are_served_in_order(kit):
    """The lock of a key is FIFO: nobody overtakes."""
    gate = trio.Event()
    recorder = kit.Recorder(entry_gate=gate)
    order = []

    async def user(tn, number, leave):
        async with maybe_open_context(recorder, tn=tn):
            order.append(number)
            await leave.wait()

    async def main():
        leave = trio.Event()
        async with kit.services() as tn, trio.open_nursery() as users:
            for number in range(5):
                users.start_soon(user, tn, number, leave)
                await wait_all_tasks_blocked()
            assert order == []
            gate.set()
            await wait_all_tasks_blocked()
            assert order == [0, 1, 2, 3, 4]
            leave.set()

    kit.run(main)


def test_nursery_has_to_enclose_the_users(kit):
    """A nursery beside or below the caller's own is refused."""

    async def user(tn):
        async with maybe_open_context(kit.Recorder(), tn=tn):
            raise AssertionError('entered')

    async def main():
        async with trio.open_nursery() as users, trio.open_nursery() as tn:

            async def refused():
                with pytest.raises(RuntimeError, match='does not live inside'):
                    await user(tn)

            users.start_soon(refused)
            await wait_all_tasks_blocked()
            await refused()

    kit.run(main)


@pytest.mark.parametrize('levels', [0, 1, 3])
def test_any_enclosing_nursery_will_do(kit, levels: int):
    """The caller may live in `tn` itself, or any number of tasks below it."""

    async def user(tn, level):
        if level:
            async with trio.open_nursery() as own:
                own.start_soon(user, tn, level - 1)
            return
        async with maybe_open_context(kit.Recorder(), tn=tn) as got:
            assert got == (False, 1)

    async def main():
        async with trio.open_nursery() as tn, trio.open_nursery():
            tn.start_soon(user, tn, levels)

    kit.run(main)


def test_without_a_nursery_a_runtime_is_needed(kit):
    """The default is the service nursery of the current actor."""
    from tractor._exceptions import NoRuntime

    async def main():
        async with maybe_open_context(kit.Recorder()):
            raise AssertionError('entered')

    with pytest.raises(NoRuntime):
        kit.run(main)
