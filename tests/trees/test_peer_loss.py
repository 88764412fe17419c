"""
What a lost connection or a dead process does to those who wait for it.

A peer that vanishes wakes everybody who waits on it, and a child that ends unasked is
an error of its nursery.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

import tractor
from tractor import ContextCancelled, TransportClosed
from tractor._exceptions import ActorDied
from tractor._testing import break_ipc, repodir
from tractor._testing._reap import find_orphaned_uds, reap_uds
from tractor.msg.types import Start


@tractor.context
async def serve(ctx: tractor.Context) -> None:
    await ctx.started()
    await trio.sleep_forever()


async def stop_serving() -> bool:
    return tractor.current_actor().ipc_server.cancel()


@tractor.context
async def never_start(ctx: tractor.Context) -> None:
    await trio.sleep_forever()


@tractor.context
async def stream_forever(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        await stream.send('up')
        await trio.sleep_forever()


@tractor.context
async def echo_then_break(ctx: tractor.Context, method: str) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        await stream.send(await stream.receive())
        await break_ipc(stream, method)
        await trio.sleep_forever()


@tractor.context
async def echo(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        async for message in stream:
            await stream.send(message)


async def sleep_forever() -> None:
    await trio.sleep_forever()


async def own_pid() -> int:
    return os.getpid()


async def exit_with(code: int) -> None:
    os._exit(code)


async def lose_a_child() -> None:
    with suppress(ActorDied):
        async with tractor.open_nursery() as an:
            child = await start(an, 'grandchild')
            os.kill(await child.run(own_pid), signal.SIGKILL)
            await trio.sleep_forever()


async def start(an: tractor.ActorNursery, name: str = 'child') -> tractor.Portal:
    return await an.start_actor(name, enable_modules=[__name__])


# -- a peer that is not our child ------------------------------------------------------


@pytest.fixture
def open_peer(reg_addr, tpt_proto):
    """An actor of another program, known to our registry, and a way to kill it."""
    script = f"""
        import tractor
        tractor.run_daemon(
            [{__name__!r}],
            name='peer',
            registry_addrs=[{reg_addr!r}],
            enable_transports=[{tpt_proto!r}],
        )
    """

    def start_program() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, '-c', textwrap.dedent(script)], cwd=repodir()
        )

    @asynccontextmanager
    async def open_it() -> AsyncIterator[
        tuple[tractor.Portal, subprocess.Popen[bytes]]
    ]:
        with start_program() as program:
            try:
                async with tractor.wait_for_actor('peer') as portal:
                    yield portal, program
            finally:
                program.kill()
                program.wait()
                # Nobody cleans up after a killed program that no actor here started.
                left = f'@{program.pid}.sock'
                reap_uds(p for p in find_orphaned_uds() if p.endswith(left))

    return open_it


async def kill_when_blocked(program):
    """Kill the peer once everybody here waits for it."""
    await trio.testing.wait_all_tasks_blocked(0.05)
    program.kill()


def test_lost_peer_wakes_a_call(run_tree, open_peer):
    """A pending `Portal.run()` raises at once and names the peer."""

    async def body(an):
        async with open_peer() as (portal, program), trio.open_nursery() as tn:
            tn.start_soon(kill_when_blocked, program)
            with pytest.raises(TransportClosed, match='peer'):
                await portal.run(sleep_forever)

    run_tree(body)


def test_lost_peer_wakes_an_entry(run_tree, open_peer):
    """Waiting for the first value of a context ends the same way."""

    async def body(an):
        async with open_peer() as (portal, program), trio.open_nursery() as tn:
            tn.start_soon(kill_when_blocked, program)
            with pytest.raises(TransportClosed, match='peer'):
                await enter(portal, never_start)

    run_tree(body)


async def enter(portal, function):
    """Open a context whose block must not be reached."""
    async with portal.open_context(function):
        raise AssertionError('the block was entered')


def test_lost_peer_wakes_a_wait_for_the_result(run_tree, open_peer):
    """So does waiting for the result, inside the block."""

    async def body(an):
        async with open_peer() as (portal, program), trio.open_nursery() as tn:
            with pytest.raises(TransportClosed, match='peer'):
                await wait_in_context(portal, tn, program)

    run_tree(body)


async def wait_in_context(portal, tn, program):
    async with portal.open_context(serve) as (ctx, _):
        tn.start_soon(kill_when_blocked, program)
        await ctx.wait_for_result()


def test_lost_peer_wakes_the_end_of_a_context(run_tree, open_peer):
    """And so does leaving the block, which waits for the result as well."""

    async def body(an):
        async with open_peer() as (portal, program), trio.open_nursery() as tn:
            with pytest.raises(TransportClosed, match='peer'):
                await leave_context(portal, tn, program)

    run_tree(body)


async def leave_context(portal, tn, program):
    async with portal.open_context(serve):
        tn.start_soon(kill_when_blocked, program)


def test_lost_peer_wakes_a_stream(run_tree, open_peer):
    """A reader blocked in `receive()` raises at once and names the peer."""
    woken = []

    async def body(an):
        async with (
            open_peer() as (portal, program),
            trio.open_nursery() as tn,
            portal.open_context(stream_forever) as (ctx, _),
            ctx.open_stream() as stream,
        ):
            assert await stream.receive() == 'up'
            tn.start_soon(kill_when_blocked, program)
            try:
                await stream.receive()
            except TransportClosed as error:
                woken.append(error)
                raise

    with pytest.raises(TransportClosed, match='peer'):
        run_tree(body)
    assert len(woken) == 1


def test_lost_peer_refuses_what_is_sent(run_tree, open_peer):
    """After the loss a send raises `TransportClosed`, not an error of trio."""
    refused = []

    async def body(an):
        async with (
            open_peer() as (portal, program),
            portal.open_context(stream_forever) as (ctx, _),
            ctx.open_stream() as stream,
        ):
            assert await stream.receive() == 'up'
            program.kill()
            try:
                await stream.receive()
            except TransportClosed:
                with pytest.raises(TransportClosed) as caught:
                    await stream.send('anybody there?')
                refused.append(caught.value)
                raise

    with pytest.raises(TransportClosed):
        run_tree(body)
    assert len(refused) == 1


# -- a child that dies -----------------------------------------------------------------


@pytest.mark.skipon_spawn_backend('subint', reason='it kills a process by its pid')
def test_killed_child_is_an_error_at_once(run_tree):
    """The nursery raises while its body still runs, and tells which signal it was."""
    uids = []

    async def body(an):
        await start(an, 'sibling')
        portal = await start(an)
        uids.append(portal.chan.aid.uid)
        os.kill(await portal.run(own_pid), signal.SIGKILL)
        await trio.sleep_forever()

    with pytest.raises(ActorDied) as caught:
        run_tree(body)
    assert caught.value.uid == uids[0]
    assert caught.value.signal == signal.SIGKILL
    assert 'child' in str(caught.value)


@pytest.mark.skipon_spawn_backend('subint', reason='`os._exit()` ends a process')
def test_child_that_exits_is_an_error(run_tree):
    """An exit nobody asked for tells its status, even if that is 0."""

    async def body(an):
        portal = await start(an)
        async with trio.open_nursery() as tn:
            tn.start_soon(call_until_lost, portal)
            await trio.sleep_forever()

    async def call_until_lost(portal):
        with pytest.raises(TransportClosed):
            await portal.run(exit_with, code=3)

    with pytest.raises(ActorDied) as caught:
        run_tree(body)
    assert caught.value.exitcode == 3
    assert caught.value.signal is None


@pytest.mark.skipon_spawn_backend('subint', reason='`os._exit()` ends a process')
def test_death_of_a_run_once_child_is_an_error(run_tree):
    """A result that will never come does not hang the nursery."""

    async def body(an):
        await an.run_in_actor(exit_with, name='child', code=4)

    with pytest.raises(ActorDied) as caught:
        run_tree(body)
    assert caught.value.exitcode == 4


def test_child_that_was_asked_has_not_died(run_tree):
    """Neither `cancel_actor()` nor `cancel()` makes an exit an error."""

    async def body(an):
        first, _ = await start(an), await start(an, 'second')
        await first.cancel_actor()
        await an.cancel()

    run_tree(body)


# -- a connection that is cut ----------------------------------------------------------


def test_own_side_cut_is_loud(run_tree):
    """Closing our transport under a stream fails this actor's runtime."""

    async def body(an):
        portal = await start(an)
        async with (
            portal.open_context(echo) as (ctx, _),
            ctx.open_stream() as stream,
        ):
            await stream.send(1)
            assert await stream.receive() == 1
            await break_ipc(stream)
            await stream.receive()

    with pytest.raises((TransportClosed, ExceptionGroup)) as caught:
        run_tree(body)
    errors = getattr(caught.value, 'exceptions', [caught.value])
    assert 1 <= len(errors) <= 2
    assert {type(error) for error in errors} == {TransportClosed}
    assert {type(error.__cause__) for error in errors} == {trio.ClosedResourceError}


def test_own_side_cut_is_loud_while_nobody_reads(run_tree):
    """Both what the loop raises and what wakes the block name the closing as cause."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(echo) as (ctx, _):
            await ctx.chan.transport.stream.aclose()
            await trio.sleep_forever()

    with pytest.raises((TransportClosed, ExceptionGroup)) as caught:
        run_tree(body)
    errors = getattr(caught.value, 'exceptions', [caught.value])
    assert 1 <= len(errors) <= 2
    assert {type(error) for error in errors} == {TransportClosed}
    assert {type(error.__cause__) for error in errors} == {trio.ClosedResourceError}


@pytest.mark.parametrize('method', ['socket_close', 'socket_eof'])
def test_peer_side_cut_wakes_the_reader(run_tree, method):
    """The reader learns of it, and what the application makes of that is raised."""
    woken = []

    async def body(an):
        portal = await start(an)
        async with (
            portal.open_context(echo_then_break, method=method) as (ctx, _),
            ctx.open_stream() as stream,
        ):
            await stream.send(1)
            assert await stream.receive() == 1
            try:
                await stream.receive()
            except TransportClosed as error:
                woken.append(error)
                raise KeyboardInterrupt from error

    with pytest.raises(KeyboardInterrupt):
        run_tree(body)
    assert 'child' in str(woken[0])


def test_a_child_that_stops_serving(run_tree):
    """Who waits for a call hears of it; for look-ups it does not exist any more."""

    async def body(an):
        registry = tractor.current_actor()._registry
        portal = await an.start_actor('child', enable_modules=[__name__])
        uid = portal.chan.aid.uid
        with pytest.raises(ContextCancelled) as caught:
            await portal.run(stop_serving)
        assert caught.value.canceller == uid
        assert uid in registry
        # It answers before its listener is closed: a look-up then only finds nobody.
        while uid in registry:
            async with tractor.find_actor('child') as found:
                assert found is None
        assert await portal.cancel_actor()

    run_tree(body)


@pytest.mark.skipon_spawn_backend('subint', reason='it kills a process by its pid')
def test_a_killed_grandchild_is_forgotten(run_tree, monkeypatch):
    """Its parent sees the death, and tells the registry, which does not."""

    async def body(an):
        registrar = tractor.current_actor()
        unregister, left = registrar.unregister_actor, trio.Event()

        async def observed(uid):
            await unregister(uid)
            if uid[0] == 'grandchild':
                left.set()

        monkeypatch.setattr(registrar, 'unregister_actor', observed)
        portal = await start(an)
        await portal.run(lose_a_child)
        await left.wait()
        assert [name for name, _ in registrar._registry] == ['root', 'child']
        await an.cancel()

    run_tree(body)


async def break_the_protocol() -> None:
    """Send the parent a request in somebody else's name."""
    chan = tractor.current_actor()._parent_chan
    await chan.send(Start('cid', __name__, 'nothing', {}, ('somebody', 'else')))
    await trio.sleep_forever()


def test_child_that_breaks_the_protocol_has_died(run_tree):
    """Its connection is dropped for that, which nobody had asked for."""

    async def body(an):
        await an.run_in_actor(break_the_protocol, name='breaker')
        await trio.sleep_forever()

    with pytest.raises(ActorDied) as caught:
        run_tree(body)
    assert caught.value.uid[0] == 'breaker'
    assert 'broke the protocol' in str(caught.value.__cause__)
