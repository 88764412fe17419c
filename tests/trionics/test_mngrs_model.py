"""`maybe_open_context()` under random schedules: users come, stay and are cancelled."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import NamedTuple

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tractor.trionics import _mngrs, maybe_open_context

steps = st.integers(0, 6)


class User(NamedTuple):
    """How many checkpoints pass until it arrives, while it stays, before its cancel."""

    arrives: int
    stays: int
    cancelled_after: int | None


class Fault(Exception):
    """Raised by the context."""


async def pause(count: int) -> None:
    for _ in range(count):
        await trio.lowlevel.checkpoint()


@settings(max_examples=150, deadline=None)
@given(
    users=st.lists(
        st.builds(User, steps, steps, st.none() | st.integers(0, 15)),
        min_size=1,
        max_size=5,
    ),
    entry=steps,
    leaving=steps,
    # Which of the attempts to open the context fail as they enter, or as they exit.
    failing_entries=st.sets(st.integers(0, 4)),
    failing_exits=st.sets(st.integers(0, 4)),
)
def test_users_only_ever_see_an_open_context(
    users: list[User],
    entry: int,
    leaving: int,
    failing_entries: set[int],
    failing_exits: set[int],
):
    """
    Whoever is cancelled when, the life of the context stays whole.

    At most one is open at a time; everybody inside has the one that is open; each is
    opened by one miss and exited before its last user is gone; each error reaches one
    user; and at the end nothing is left.
    """
    attempts = 0
    opened: list[int] = []  # those open now
    entered: list[int] = []
    misses: list[int] = []
    inside: dict[int, int] = {}
    leaving_or_inside: dict[int, int] = {}
    failures: list[int] = []
    raised: list[int] = []

    @asynccontextmanager
    async def opener():
        nonlocal attempts
        number = attempts
        attempts += 1
        await pause(entry)
        if number in failing_entries:
            raised.append(number)
            raise Fault(number)
        assert not opened
        opened.append(number)
        entered.append(number)
        try:
            yield number
        finally:
            with trio.CancelScope(shield=True):
                await pause(leaving)
            assert number not in inside.values()
            opened.remove(number)
            if number in failing_exits:
                raised.append(number)
                raise Fault(number)

    async def use(tn: trio.Nursery, index: int, user: User) -> None:
        try:
            async with maybe_open_context(opener, tn=tn) as (is_hit, number):
                assert opened == [number]
                if not is_hit:
                    misses.append(number)
                inside[index] = leaving_or_inside[index] = number
                try:
                    await pause(user.stays)
                    assert opened == [number]
                finally:
                    del inside[index]
        except Fault as fault:
            failures.append(fault.args[0])
        finally:
            number = leaving_or_inside.pop(index, -1)
            # If it was the last one, the context is gone.
            assert number not in opened or number in leaving_or_inside.values()

    async def come(tn: trio.Nursery, index: int, user: User) -> None:
        async with trio.open_nursery() as own:

            async def cancel(after: int) -> None:
                await pause(after)
                own.cancel_scope.cancel()

            if user.cancelled_after is not None:
                own.start_soon(cancel, user.cancelled_after)
            await pause(user.arrives)
            await use(tn, index, user)
            own.cancel_scope.cancel()

    async def main():
        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                async with trio.open_nursery() as all_users:
                    for index, user in enumerate(users):
                        all_users.start_soon(come, tn, index, user)
                assert not tn.child_tasks

    trio.run(main)
    assert opened == []
    assert inside == {}
    assert _mngrs._slots == {}
    assert set(misses) <= set(entered)
    assert len(misses) == len(set(misses))
    assert sorted(failures) == sorted(raised)
