"""`maybe_open_context()` in an actor, and shared streams between actors."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import tractor
from tractor.trionics import (
    BroadcastReceiver,
    gather_contexts,
    maybe_open_context,
    maybe_open_nursery,
)

COUNT = 50


def run(main) -> None:
    """Run an async test under a deadline."""

    async def bounded():
        with trio.fail_after(10):
            await main()

    trio.run(bounded)


@tractor.context
async def count_up(ctx: tractor.Context) -> None:
    """Send numbers as soon as the other side says so."""
    await ctx.started()
    async with ctx.open_stream() as stream:
        await stream.receive()
        for number in range(COUNT):
            await stream.send(number)


@asynccontextmanager
async def open_counter():
    """A stream from an actor which lives as long as the block."""
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('counter', enable_modules=[__name__])
        async with (
            portal.open_context(count_up) as (ctx, _),
            ctx.open_stream() as stream,
        ):
            yield stream
        await portal.cancel_actor()


def test_ten_tasks_share_one_cached_stream(reg_addr):
    """The first gets the stream, the others subscribe; all see the same, and leave."""
    kinds: list[type] = []
    totals: list[int] = []
    streams: set[tractor.MsgStream] = set()

    async def consume(source, ready: trio.Event, stream: tractor.MsgStream) -> None:
        kinds.append(type(source))
        streams.add(stream)
        if len(kinds) == 10:
            await stream.send('go')
            ready.set()
        await ready.wait()
        totals.append(len([number async for number in source]))

    async def user(ready: trio.Event) -> None:
        async with maybe_open_context(open_counter) as (is_hit, stream):
            if not is_hit:
                # Others subscribe, so the handle itself is one of the subscribers.
                await consume(stream, ready, stream)
                return
            async with stream.subscribe() as receiver:
                assert receiver.send == stream.send
                await consume(receiver, ready, stream)

    async def main():
        async with tractor.open_root_actor(registry_addrs=[reg_addr]):
            ready = trio.Event()
            async with trio.open_nursery() as tn:
                for _ in range(10):
                    tn.start_soon(user, ready)

    run(main)
    assert kinds.count(tractor.MsgStream) == 1
    assert kinds.count(BroadcastReceiver) == 9
    assert totals == [COUNT] * 10
    (stream,) = streams
    assert len(stream._broadcaster._state.subs) <= 1


def test_many_subscribers_see_the_same_number_of_values(reg_addr):
    """22 subscribers of one stream, none of which is the handle."""
    totals: list[int] = []

    async def subscriber(stream, ready) -> None:
        async with stream.subscribe() as receiver:
            ready()
            totals.append(len([number async for number in receiver]))

    async def main():
        async with (
            tractor.open_root_actor(registry_addrs=[reg_addr]),
            open_counter() as stream,
        ):
            waiting = 22
            all_here = trio.Event()

            def ready() -> None:
                nonlocal waiting
                waiting -= 1
                if not waiting:
                    all_here.set()

            async with trio.open_nursery() as tn:
                for _ in range(waiting):
                    tn.start_soon(subscriber, stream, ready)
                await all_here.wait()
                await stream.send('go')
            assert list(stream._broadcaster._state.subs) == [stream._broadcaster.key]

    run(main)
    assert totals == [COUNT] * 22


@asynccontextmanager
async def recorded(events: list[str], gate: trio.Event | None = None):
    """Tell when it is entered and exited."""
    events.append('enter')
    try:
        yield 1
    finally:
        if gate is not None:
            with trio.CancelScope(shield=True):
                await gate.wait()
        events.append('exit')


def test_service_nursery_holds_the_context_open(reg_addr):
    """Without `tn` it lives in the actor, not in the task of its first user."""
    events: list[str] = []

    async def main():
        async with tractor.open_root_actor(registry_addrs=[reg_addr]) as actor:
            before = set(actor._service_tn.child_tasks)
            async with maybe_open_context(recorded, {'events': events}, key=1):
                (holder,) = set(actor._service_tn.child_tasks) - before
                assert 'hold' in holder.name
            assert set(actor._service_tn.child_tasks) == before
            assert events == ['enter', 'exit']

    run(main)


def test_cancelled_service_nursery_exits_the_context_and_blocks_no_user(reg_addr):
    """A user outside that nursery leaves as usual, without waiting for anything."""
    events: list[str] = []

    async def main():
        async with tractor.open_root_actor(registry_addrs=[reg_addr]) as actor:
            async with maybe_open_context(recorded, {'events': events}, key=1) as got:
                assert got == (False, 1)
                actor._service_tn.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await wait_all_tasks_blocked()
                assert events == ['enter', 'exit']

    run(main)


def test_error_on_exit_spares_the_actor(reg_addr):
    """It is raised where the last user leaves, and the actor goes on."""

    @asynccontextmanager
    async def fails():
        yield 1
        raise ValueError('exit')

    async def use() -> None:
        async with maybe_open_context(fails):
            pass

    async def main():
        async with tractor.open_root_actor(registry_addrs=[reg_addr]) as actor:
            with pytest.raises(ValueError, match='exit'):
                await use()
            assert not actor._service_tn.cancel_scope.cancel_called

    run(main)


def test_actor_nursery_can_be_opened_by_library(reg_addr):
    """`lib=tractor` gives an actor nursery, closed at the end of the block."""

    async def main():
        async with maybe_open_nursery(lib=tractor, registry_addrs=[reg_addr]) as an:
            assert isinstance(an, tractor.ActorNursery)

    run(main)


def test_contexts_of_several_actors_are_gathered(reg_addr):
    """Dialogs are opened concurrently, each in its own task."""

    async def main():
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            portals = [
                await an.start_actor(f'counter_{n}', enable_modules=[__name__])
                for n in range(2)
            ]
            async with gather_contexts(
                [portal.open_context(count_up) for portal in portals]
            ) as opened:
                for ctx, _ in opened:
                    async with ctx.open_stream() as stream:
                        await stream.send('go')
                        assert [n async for n in stream] == list(range(COUNT))
            await an.cancel()

    run(main)
