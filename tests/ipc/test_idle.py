"""What a loop does before it sleeps: when it is called, and looking for answers."""

from __future__ import annotations

import queue
from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor._protocol.polling import MAX_MISSES
from tractor.ipc import _idle
from tractor.ipc._idle import (
    CONTENDED,
    MAX_EXPECTED,
    MAX_HELD_PASSES,
    UNUSED_PASSES,
    IdleHook,
)
from tractor.ipc._outbox import Outbox
from tractor.ipc._transport import READ_SIZE
from tractor.msg._codec import _def_tractor_codec
from tractor.msg.types import StartAck, Stop

WINDOW = 200e-6  # seconds


@pytest.fixture(autouse=True)
def default_window(monkeypatch):
    """What the user of this machine chose does not matter."""
    monkeypatch.delenv('TRACTOR_BUSY_POLL', raising=False)


@pytest.fixture
def calls(monkeypatch):
    """The timeouts with which the loop called the instrument."""
    seen = []
    monkeypatch.setattr(
        IdleHook,
        'before_io_wait',
        lambda hook, timeout, real=IdleHook.before_io_wait: (
            seen.append(timeout),
            real(hook, timeout),
        ),
    )
    return seen


@pytest.fixture
def looking(monkeypatch):
    """
    Looks on a clock that takes `step` seconds from one poll to the next.

    `meanwhile` is called each time the core is offered to others, with how often.
    """
    state = SimpleNamespace(now=0.0, step=1e-6, offers=0, meanwhile=lambda offers: None)

    def perf_counter():
        return state.now

    def sched_yield():
        state.offers += 1
        state.now += state.step
        state.meanwhile(state.offers)

    monkeypatch.setattr(_idle, 'perf_counter', perf_counter)
    monkeypatch.setattr(_idle, 'os', SimpleNamespace(sched_yield=sched_yield))
    return state


# Being called


def test_one_instrument_per_run(run):
    """`install()` twice gives one instrument; `remove()` flushes and takes it out."""

    async def main(transport, peer):
        hook = IdleHook.install()
        assert IdleHook.install() is hook is IdleHook.current()
        await transport.send(StartAck('c', 'context'))
        IdleHook.remove()
        IdleHook.remove()
        assert IdleHook.current() is None
        assert peer.recv(1000)

    run(main)
    assert_fresh = []

    async def later():
        assert_fresh.append(IdleHook.current())

    trio.run(later)
    assert assert_fresh == [None]


def test_a_run_with_nothing_to_do_is_not_instrumented(run, monkeypatch, calls):
    """The loop calls the instrument from the first held frame on, until unused."""
    monkeypatch.setenv('TRACTOR_BUSY_POLL', '0')

    async def main(transport, peer):
        IdleHook.install()
        await transport.send(Stop('c'))
        await trio.lowlevel.checkpoint()
        assert calls == []
        for _ in range(2):
            await transport.send(StartAck('c', 'context'))
            for _ in range(UNUSED_PASSES + MAX_HELD_PASSES):
                await trio.lowlevel.checkpoint()
            assert len(calls) > UNUSED_PASSES
            calls.clear()
            await trio.lowlevel.checkpoint()
            assert calls == []
        IdleHook.remove()

    run(main)


def test_a_peer_that_is_rarely_looked_for_costs_nothing_between(run, looking, calls):
    """Sending to who never answers in time ends in a loop without the instrument."""
    looking.step = WINDOW

    async def main(transport, peer):
        hook, outbox = await ask(transport)
        while outbox.polling.left < 2**MAX_MISSES:
            await transport.send(Stop('c'))
            if hook._expected:
                hook.before_io_wait(10)
            peer.recv(1000)
        for _ in range(UNUSED_PASSES):
            await trio.lowlevel.checkpoint()
        calls.clear()
        for _ in range(10):
            await transport.send(Stop('c'))
            await wait_all_tasks_blocked()
        assert calls == []
        IdleHook.remove()

    run(main)


def test_a_use_now_and_then_keeps_the_instrument(run, monkeypatch):
    """It is taken out after so many passes in a row without any."""
    monkeypatch.setenv('TRACTOR_BUSY_POLL', '0')

    async def main(transport, peer):
        hook = IdleHook.install()
        for _ in range(3):
            await transport.send(StartAck('c', 'context'))
            hook.before_io_wait(10)
            for _ in range(UNUSED_PASSES - 1):
                hook.before_io_wait(0)
            assert hook._is_called
        hook.before_io_wait(0)
        assert not hook._is_called
        IdleHook.remove()

    run(main)


@pytest.mark.parametrize('name', ['flush', 'fileno'])
def test_what_a_signal_handler_raises_is_not_lost(run, monkeypatch, name):
    """Amid a flush or a look, too, it ends the run, as anywhere else in the loop."""
    raising = [SystemExit(7)]
    real = getattr(Outbox, name)

    def interrupted(outbox):
        if raising:
            raise raising.pop()
        return real(outbox)

    async def main(transport, peer):
        hook = IdleHook.install()
        try:
            await transport.send(StartAck('1', 'context'))
            if name == 'fileno':
                await transport.send(Stop('1'))
            monkeypatch.setattr(Outbox, name, interrupted)
            hook.before_io_wait(10)
            assert not raising
            await trio.sleep_forever()
        finally:
            IdleHook.remove()

    with pytest.raises(trio.TrioInternalError) as caught:
        run(main)
    assert caught.value.__cause__.subgroup(SystemExit) is not None


# Looking for an answer


async def ask(transport):
    """Send something to be answered; return the hook and the socket's outbox."""
    hook = IdleHook.install()
    await transport.send(Stop('c'))
    return hook, transport._outbox


def test_an_answer_is_looked_for_until_it_comes(run, looking):
    """The loop does not sleep while it may come, and next time neither."""

    async def main(transport, peer):
        hook, outbox = await ask(transport)
        looking.meanwhile = lambda offers: offers == 7 and peer.send(b'answer')
        hook.before_io_wait(10)
        assert looking.offers == 7
        assert outbox.polling.left == 1
        IdleHook.remove()

    run(main)


def test_a_look_ends_with_its_time(run, looking):
    """An answer that does not come in time makes the next look a rarer one."""
    looking.step = WINDOW / 20

    async def main(transport, peer):
        hook, outbox = await ask(transport)
        hook.before_io_wait(10)
        assert looking.offers == pytest.approx(20, abs=1)
        assert outbox.polling.left == 2
        hook.before_io_wait(10)
        await transport.send(Stop('c'))
        hook.before_io_wait(10)
        assert looking.offers < 22  # not for this one
        await transport.send(Stop('c'))
        hook.before_io_wait(10)
        assert looking.offers > 35
        IdleHook.remove()

    run(main)


def test_a_look_keeps_no_deadline_waiting(run, looking):
    """It takes no longer than until the next task wants to run, then goes on."""
    looking.step = WINDOW / 20

    async def main(transport, peer):
        hook, outbox = await ask(transport)
        hook.before_io_wait(WINDOW / 4)
        assert looking.offers == pytest.approx(5, abs=1)
        assert outbox.expects
        hook.before_io_wait(10)
        assert looking.offers == pytest.approx(20, abs=2)
        assert not outbox.expects
        assert outbox.polling.left == 2
        IdleHook.remove()

    run(main)


def test_a_core_that_others_want_is_left_to_them(run, looking):
    """Who gets its turn late was in somebody's way, and sleeps at once."""
    looking.step = CONTENDED * 1.5

    async def main(transport, peer):
        hook, outbox = await ask(transport)
        looking.meanwhile = lambda offers: peer.send(b'answer')
        hook.before_io_wait(10)
        assert looking.offers == 1
        assert outbox.polling.left == 2
        IdleHook.remove()

    run(main)


def test_an_answer_that_is_there_already_needs_no_look(run, looking):
    """It tells nothing about how soon the next one comes."""

    async def main(transport, peer):
        hook, outbox = await ask(transport)
        outbox.polling.missed()
        peer.send(b'answer')
        hook.before_io_wait(10)
        assert looking.offers == 0
        assert outbox.polling.left == 2
        IdleHook.remove()

    run(main)


def test_whatever_wakes_the_loop_ends_the_look(run, looking):
    """A Ctrl-C, or a call from a thread, is not kept waiting; then the look goes on."""

    async def main(transport, peer):
        await wait_all_tasks_blocked()  # trio's own, which takes such calls, too
        hook, outbox = await ask(transport)
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        called = []
        looking.meanwhile = lambda offers: offers == 3 and call_soon(called.append, 1)
        hook.before_io_wait(10)
        assert looking.offers == 3
        looking.offers = 0
        hook.before_io_wait(10)  # what came is still to be taken
        assert looking.offers == 0
        await wait_all_tasks_blocked()
        assert called == [1]
        looking.meanwhile = lambda offers: offers == 3 and peer.send(b'answer')
        hook.before_io_wait(10)
        assert looking.offers == 3
        assert outbox.polling.left == 1
        IdleHook.remove()

    run(main)


def test_an_answer_that_was_read_is_not_looked_for(run, looking):
    """It came while other tasks kept the loop busy."""

    async def main(transport, peer):
        hook, outbox = await ask(transport)
        peer.send(peer.recv(1000))

        async def be_busy():
            while True:
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as tn:
            tn.start_soon(be_busy)
            assert await transport.recv() == Stop('c')
            assert outbox in hook._expected
            hook.before_io_wait(10)
            assert looking.offers == 0
            tn.cancel_scope.cancel()
        looking.step = WINDOW
        await transport.send(Stop('c'))
        hook.before_io_wait(10)
        assert looking.offers == 1
        assert outbox.polling.left == 2
        IdleHook.remove()

    run(main)


def test_what_is_sent_meanwhile_does_not_prolong_the_look(run, looking):
    """One who does not answer is not looked for all the time since it is sent more."""
    looking.step = WINDOW / 20

    async def main(transport, peer):
        await wait_all_tasks_blocked()
        hook, outbox = await ask(transport)
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        looking.meanwhile = lambda offers: offers % 8 or call_soon(len, '')
        while outbox.polling.left < 2:
            await transport.send(Stop('c'))
            hook.before_io_wait(10)
            await wait_all_tasks_blocked()
        assert looking.offers == pytest.approx(20, abs=1)
        IdleHook.remove()

    run(main)


def test_each_peer_has_its_own_time(run, looking, raw_pair, make_transport):
    """Who is asked later is looked for longer."""
    looking.step = WINDOW / 20

    async def main(transport, peer):
        await wait_all_tasks_blocked()
        other = make_transport(raw_pair()[0])
        hook, outbox = await ask(transport)
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        looking.meanwhile = lambda offers: offers % 15 or call_soon(len, '')
        hook.before_io_wait(10)
        await wait_all_tasks_blocked()
        await other.send(Stop('c'))
        hook.before_io_wait(10)
        await wait_all_tasks_blocked()
        assert looking.offers == 30
        assert not outbox.expects
        assert other._outbox.expects
        hook.before_io_wait(10)
        assert looking.offers == pytest.approx(35, abs=1)
        assert not other._outbox.expects
        IdleHook.remove()

    run(main)


def test_who_was_asked_without_a_hook_is_looked_for_later(run, looking):
    """Messages before it was there do not count."""

    async def main(transport, peer):
        for _ in range(5):
            await transport.send(Stop('c'))
        hook, outbox = await ask(transport)
        assert outbox.expects
        hook.before_io_wait(10)
        assert looking.offers > 0
        IdleHook.remove()

    run(main)


def test_no_look_below_another_loop():
    """In guest mode the host's tasks would wait for the end of the look."""
    steps = queue.SimpleQueue()
    windows = []

    async def main():
        windows.append(IdleHook.install()._window)
        IdleHook.remove()

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=steps.put, done_callback=steps.put
    )
    while callable(step := steps.get(timeout=5)):
        step()
    step.unwrap()
    assert windows == [0]


def test_other_events_do_not_prolong_the_look(run, looking):
    """A loop that is woken all the time does not look all the time between."""
    looking.step = WINDOW / 20

    async def main(transport, peer):
        await wait_all_tasks_blocked()
        hook, outbox = await ask(transport)
        call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        looking.meanwhile = lambda offers: offers % 8 or call_soon(len, '')
        for _ in range(5):
            hook.before_io_wait(10)
            await wait_all_tasks_blocked()
        assert looking.offers == pytest.approx(20, abs=1)
        assert outbox.polling.left == 2
        IdleHook.remove()

    run(main)


def test_a_busy_loop_does_not_look(run, looking):
    """While tasks can run they do, and the look comes when none can."""

    async def main(transport, peer):
        hook, _ = await ask(transport)
        looking.meanwhile = lambda offers: peer.send(b'answer')
        hook.before_io_wait(0)
        assert looking.offers == 0
        hook.before_io_wait(10)
        assert looking.offers == 1
        IdleHook.remove()

    run(main)


def test_who_has_not_answered_is_looked_for_again(
    run, looking, raw_pair, make_transport
):
    """An answer of one peer ends the look, but says nothing about another peer."""

    async def main(transport, peer):
        end, other_peer = raw_pair()
        other = make_transport(end)
        hook, outbox = await ask(transport)
        await ask(other)
        looking.meanwhile = lambda offers: offers == 1 and peer.send(b'answer')
        hook.before_io_wait(10)
        assert outbox.polling.left == 1
        looking.meanwhile = lambda offers: offers == 4 and other_peer.send(b'answer')
        hook.before_io_wait(10)
        assert looking.offers == 4
        assert other._outbox.polling.left == 1
        IdleHook.remove()

    run(main)


def test_many_peers_at_once_are_not_looked_for(run, looking, raw_pair, make_transport):
    """Looking at all of them would take longer than waking up."""

    async def main(transport, peer):
        hook, _ = await ask(transport)
        for _ in range(MAX_EXPECTED):
            end, _ = raw_pair()
            await make_transport(end).send(Stop('c'))
        hook.before_io_wait(10)
        assert looking.offers == 0
        await transport.send(Stop('c'))
        looking.step = WINDOW
        hook.before_io_wait(10)
        assert looking.offers == 1
        IdleHook.remove()

    run(main)


def test_a_closed_socket_is_not_looked_at(run, looking):
    """Its number may be another file's by now."""

    async def main(transport, peer):
        hook, _ = await ask(transport)
        await transport.aclose()
        hook.before_io_wait(10)
        assert looking.offers == 0
        IdleHook.remove()

    run(main)


def test_a_full_socket_is_not_looked_at(run, looking, make_yield):
    """Who has not read everything has nothing to answer yet."""

    async def main(transport, peer):
        hook, _ = await ask(transport)
        async with trio.open_nursery() as tn:
            tn.start_soon(transport.send, make_yield('big', 300_000))
            await wait_all_tasks_blocked()
            looking.offers = 0
            hook.look_for(transport._outbox)
            hook.before_io_wait(10)
            assert looking.offers == 0
            tn.cancel_scope.cancel()
        IdleHook.remove()

    run(main)


@pytest.mark.parametrize(('size', 'looks'), [(READ_SIZE, 5), (READ_SIZE - 1, 0)])
def test_the_rest_of_a_frame_is_looked_for(
    run, looking, raw_pair, make_transport, make_yield, size, looks
):
    """A large piece of a message has the next one close behind, a small one not."""

    async def main(unused, unused_peer):
        end, peer = raw_pair()
        transport = make_transport(end)
        hook = IdleHook.install()
        message = make_yield('big', READ_SIZE)
        frame = bytes(transport._encode(message, _def_tractor_codec, bytearray(4)))
        got = []

        async def receive():
            got.append(await transport.recv())

        async with trio.open_nursery() as tn:
            tn.start_soon(receive)
            peer.send(frame[:size])
            await wait_all_tasks_blocked()
            looking.meanwhile = lambda offers: offers == 5 and peer.send(frame[size:])
            hook.before_io_wait(10)
            assert looking.offers == looks
            if not looks:
                peer.send(frame[size:])
        assert [msg.cid for msg in got] == ['big']
        IdleHook.remove()

    run(main)


def test_looking_can_be_switched_off(run, looking, monkeypatch, calls):
    """With `TRACTOR_BUSY_POLL=0` the loop sleeps at once."""
    monkeypatch.setenv('TRACTOR_BUSY_POLL', '0')

    async def main(transport, peer):
        await ask(transport)
        await wait_all_tasks_blocked()
        assert calls == []
        IdleHook.remove()

    run(main)
    assert looking.offers == 0


def test_no_look_where_the_core_cannot_be_offered(run, monkeypatch):
    """Without `sched_yield()` it would take the core from the peer itself."""
    monkeypatch.setattr(_idle, 'os', SimpleNamespace())

    async def main(transport, peer):
        hook, _ = await ask(transport)
        hook.before_io_wait(10)
        assert not hook._is_called
        IdleHook.remove()

    run(main)
