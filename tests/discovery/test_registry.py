"""The registrar's methods, called in process."""

from __future__ import annotations

from uuid import uuid4

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor.discovery._registry import Arbiter, Registrar
from tractor.runtime import _state
from tractor.runtime._runtime import Actor

X, Y = ('127.0.0.1', 1001), ('127.0.0.1', 1002)


@pytest.fixture
def registrar(monkeypatch) -> Registrar:
    monkeypatch.setattr(_state, '_runtime_vars', dict(_state._runtime_vars))
    return Registrar(name='root', uuid=str(uuid4()))


def test_only_a_registrar_is_one(registrar):
    """The class attribute tells; the old spellings agree."""
    assert Actor.is_registrar is False
    assert registrar.is_registrar is True
    assert registrar.is_registry() is True
    assert Arbiter is Registrar


def test_wire_forms_are_accepted(registrar):
    """Lists come in, tuples are kept, string keys go out."""

    async def main():
        await registrar.register_actor(uid=['a', 'u1'], addr=['127.0.0.1', 1001])
        assert registrar._registry == {('a', 'u1'): [X]}
        assert await registrar.find_actor(name='a') == [X]
        assert await registrar.find_actor(name='b') is None
        assert await registrar.get_registry() == {'a.u1': [X]}
        assert await registrar.delete_addr(addr=['127.0.0.1', 1001]) == ('a', 'u1')
        assert await registrar.delete_addr(addr=X) is None
        await registrar.unregister_actor(uid=['a', 'u1'])  # unknown: a warning only

    trio.run(main)


def test_waiting_for_a_registered_name_returns_at_once(registrar):
    """All addresses of that name, oldest actor first."""

    async def main():
        await registrar.register_actor(('a', 'u1'), X)
        await registrar.register_actor(('a', 'u2'), Y)
        assert await registrar.wait_for_actor('a') == [X, Y]
        assert registrar._waiters == {}

    trio.run(main)


def test_registration_wakes_everybody_who_waits(registrar):
    """Each waiter gets the addresses, and none stays in the table."""
    found = []

    async def wait():
        found.append(await registrar.wait_for_actor('a'))

    async def main():
        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                tn.start_soon(wait)
                tn.start_soon(wait)
                await wait_all_tasks_blocked()
                assert len(registrar._waiters['a']) == 2
                await registrar.register_actor(('b', 'u0'), Y)
                await wait_all_tasks_blocked()
                assert found == []
                await registrar.register_actor(('a', 'u1'), X)
        assert found == [[X], [X]]
        assert registrar._waiters == {}

    trio.run(main)


def test_whoever_waits_sees_all_addresses(registrar):
    """They come with one request, so that the best of them can be chosen."""
    found = []

    async def wait():
        found.append(await registrar.wait_for_actor('a'))

    async def main():
        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                tn.start_soon(wait)
                await wait_all_tasks_blocked()
                await registrar.register_actor(['a', 'u1'], [*X], others=[[*Y]])
        assert found == [[X, Y]]
        assert await registrar.find_actors('a') == [(('a', 'u1'), [X, Y])]

    trio.run(main)


def test_a_cancelled_wait_leaves_nothing(registrar):
    """Neither an event nor an empty list stays behind."""

    async def main():
        async with trio.open_nursery() as tn:
            tn.start_soon(registrar.wait_for_actor, 'a')
            await wait_all_tasks_blocked()
            assert list(registrar._waiters) == ['a']
            tn.cancel_scope.cancel()
        assert registrar._waiters == {}

    trio.run(main)


def test_an_actor_that_left_at_once_is_waited_for_again(registrar):
    """A waiter never returns without an address."""

    async def main():
        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                tn.start_soon(registrar.wait_for_actor, 'a')
                await wait_all_tasks_blocked()
                await registrar.register_actor(('a', 'u1'), X)
                await registrar.unregister_actor(('a', 'u1'))
                await wait_all_tasks_blocked()
                assert list(registrar._waiters) == ['a']
                await registrar.register_actor(('a', 'u2'), Y)
        assert registrar._waiters == {}

    trio.run(main)
