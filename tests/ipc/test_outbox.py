"""Outgoing bytes: order, one call for many, cancelled senders, frames held back."""

from __future__ import annotations

import os
import socket
import sys

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tractor._exceptions import TransportClosed
from tractor._protocol.framing import FrameReader, FrameTooLong
from tractor.ipc import _outbox
from tractor.ipc._idle import MAX_HELD_PASSES, IdleHook
from tractor.ipc._outbox import Outbox
from tractor.msg._codec import _def_tractor_codec, decode_any
from tractor.msg.types import StartAck, Stop

SMALL = 4096  # bytes of a send buffer; the kernel doubles it
BIG = 300_000  # bytes of a message that fills it many times over


@pytest.fixture
def writes(monkeypatch):
    """The system calls of outboxes, each as the bytes that were taken."""
    calls = []
    real_write, real_writev = os.write, os.writev

    class Counting:
        @staticmethod
        def write(fd, data):
            written = real_write(fd, data)
            calls.append(bytes(data[:written]))
            return written

        @staticmethod
        def writev(fd, parts):
            written = real_writev(fd, parts)
            calls.append(b''.join(parts)[:written])
            return written

    monkeypatch.setattr(_outbox, 'os', Counting)
    return calls


async def receive(peer, count):
    """Return the next `count` messages from a bare socket."""
    reader, frames = FrameReader(), []
    while len(frames) < count:
        try:
            data = peer.recv(65536)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(peer)
            continue
        assert data, 'the stream ended'
        frames += reader.feed(data)
    assert not reader.mid_frame
    return [_def_tractor_codec.decode(frame) for frame in frames]


def fill(transport, peer):
    """Fill the socket with plain bytes; return how many."""
    filled = 0
    while True:
        try:
            filled += transport.stream.socket.fileno() and os.write(
                transport.stream.socket.fileno(), b'\0' * 1000
            )
        except BlockingIOError:
            return filled


async def unfill(peer, count):
    """Take the plain bytes out again."""
    while count:
        try:
            count -= len(peer.recv(count))
        except BlockingIOError:
            await trio.lowlevel.wait_readable(peer)


def test_one_message_is_one_write(run, writes):
    """A send on an idle socket is one system call."""

    async def main(transport, peer):
        await transport.send(Stop('1'))
        await transport.send(Stop('2'))
        assert len(writes) == 2
        assert await receive(peer, 2) == [Stop('1'), Stop('2')]

    run(main)


def test_senders_that_waited_share_one_write(run, writes):
    """What queued up behind a full socket goes out together, in order."""

    async def main(transport, peer):
        filled = fill(transport, peer)
        async with trio.open_nursery() as tn:
            for number in range(20):
                tn.start_soon(transport.send, Stop(f'{number}'))
                await wait_all_tasks_blocked()
            assert writes == []
            await unfill(peer, filled)
            got = await receive(peer, 20)
        assert [msg.cid for msg in got] == [f'{n}' for n in range(20)]
        assert len(writes) == 1

    run(main)


def test_many_senders_of_large_messages(run, make_yield):
    """Concurrent senders over a small buffer: all arrives, whole and in order."""

    async def main(transport, peer):
        async with trio.open_nursery() as tn:
            for number in range(10):
                tn.start_soon(transport.send, make_yield(number, 50_000))
                await trio.lowlevel.cancel_shielded_checkpoint()
            got = await receive(peer, 10)
        assert [msg.cid for msg in got] == [f'{n}' for n in range(10)]
        assert all(decode_any(msg.pld) == b'x' * 50_000 for msg in got)

    run(main)


def test_a_cancelled_sender_takes_its_frame_back(run):
    """A sender that is cancelled before its frame was begun has sent nothing."""

    async def main(transport, peer):
        filled = fill(transport, peer)
        with trio.move_on_after(0.01) as scope:
            await transport.send(Stop('withdrawn'))
        assert scope.cancelled_caught
        await unfill(peer, filled)
        await transport.send(Stop('next'))
        assert await receive(peer, 1) == [Stop('next')]

    run(main)


def test_a_sender_cancelled_amid_its_frame_tears_nothing(run, make_yield):
    """The next sender completes a frame whose sender was cancelled in the middle."""

    async def main(transport, peer):
        with trio.move_on_after(0.01) as scope:
            await transport.send(make_yield('cut', BIG))
        assert scope.cancelled_caught
        async with trio.open_nursery() as tn:
            tn.start_soon(transport.send, Stop('next'))
            got = await receive(peer, 2)
        assert [msg.cid for msg in got] == ['cut', 'next']

    run(main)


def test_a_cut_frame_is_completed_without_another_sender(run, make_yield):
    """The rest of a cancelled sender's frame goes out by itself."""

    async def main(transport, peer):
        with trio.move_on_after(0.01):
            await transport.send(make_yield('cut', BIG))
        assert [msg.cid for msg in await receive(peer, 1)] == ['cut']

    run(main)


def test_all_senders_cancelled_at_once(run, make_yield):
    """If everybody in line is cancelled, only the frame that was begun arrives."""

    async def main(transport, peer):
        async with trio.open_nursery() as tn:
            for number in range(5):
                tn.start_soon(transport.send, make_yield(number, BIG))
                await wait_all_tasks_blocked()
            tn.cancel_scope.cancel()
        got = await receive(peer, 1)
        await transport.send(Stop('next'))
        got += await receive(peer, 1)
        assert [msg.cid for msg in got] == ['0', 'next']

    run(main)


def test_a_cancelled_scope_sends_nothing(run):
    """In a cancelled scope a send is a checkpoint that raises before it writes."""

    async def main(transport, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.send(Stop('never'))
        await transport.send(Stop('next'))
        assert await receive(peer, 1) == [Stop('next')]

    run(main)


def test_every_waiting_sender_learns_of_the_end(run, make_yield):
    """When the peer goes away, all senders in line raise."""

    async def main(transport, peer):
        raised = []

        async def send(number):
            with pytest.raises(TransportClosed):
                await transport.send(make_yield(number, BIG))
            raised.append(number)

        async with trio.open_nursery() as tn:
            for number in range(3):
                tn.start_soon(send, number)
                await wait_all_tasks_blocked()
            peer.close()
        assert raised == [0, 1, 2]
        with pytest.raises(TransportClosed):
            await transport.send(Stop('late'))

    run(main)


def test_closing_under_a_waiting_sender(run, make_yield):
    """A sender whose socket another task closes is told that it was closed here."""

    async def main(transport, peer):
        async def send():
            with pytest.raises(TransportClosed, match="already closed 'locally'"):
                await transport.send(make_yield('c', BIG))

        async with trio.open_nursery() as tn:
            tn.start_soon(send)
            await wait_all_tasks_blocked()
            await transport.aclose()

    run(main)


def test_without_an_instrument_nothing_is_held_back(run, writes):
    """A `StartAck` is written at once when there is nobody to flush it."""

    async def main(transport, peer):
        await transport.send(StartAck('c', 'context'))
        assert len(writes) == 1

    run(main)


def test_a_start_ack_goes_with_the_next_message(run, writes):
    """A held-back `StartAck` and the message after it are one write."""

    async def main(transport, peer):
        IdleHook.install()
        await transport.send(StartAck('c', 'context'))
        assert writes == []
        await transport.send(Stop('c'))
        assert len(writes) == 1
        assert await receive(peer, 2) == [StartAck('c', 'context'), Stop('c')]

    run(main)


def test_held_back_frames_keep_their_place(run, make_yield):
    """Behind what waits for the socket, before what is sent later, large or small."""

    async def main(transport, peer):
        IdleHook.install()
        async with trio.open_nursery() as tn:
            tn.start_soon(transport.send, make_yield('waits', BIG))
            await wait_all_tasks_blocked()
            await transport.send(StartAck('held', 'context'))
            tn.start_soon(transport.send, Stop('sent'))
            await wait_all_tasks_blocked()
            got = await receive(peer, 3)
        await transport.send(StartAck('held', 'context'))
        async with trio.open_nursery() as tn:
            tn.start_soon(transport.send, make_yield('sent', BIG))
            got += await receive(peer, 2)
        cids = [msg.cid for msg in got]
        assert cids == ['waits', 'held', 'sent', 'held', 'sent']

    run(main)


def test_an_idle_loop_writes_what_is_held_back(run, writes):
    """A `StartAck` that nothing follows goes out when every task waits."""

    async def main(transport, peer):
        IdleHook.install()
        await transport.send(StartAck('1', 'context'))
        await transport.send(StartAck('2', 'context'))
        assert [msg.cid for msg in await receive(peer, 2)] == ['1', '2']
        assert len(writes) == 1

    run(main)


def test_a_busy_loop_writes_it_after_some_passes(run, writes):
    """A loop that always has something to run does not hold a frame back for ever."""

    async def main(transport, peer):
        IdleHook.install()
        await transport.send(StartAck('c', 'context'))
        for _ in range(MAX_HELD_PASSES + 1):
            await trio.lowlevel.cancel_shielded_checkpoint()
        assert len(writes) == 1

    run(main)


def test_a_jumping_clock_does_not_outrun_it(run, writes):
    """Under a clock that jumps when all tasks wait, the frame goes out first."""

    async def main(transport, peer):
        IdleHook.install()
        await transport.send(StartAck('c', 'context'))
        await trio.sleep(1)
        assert len(writes) == 1

    run(main, clock=MockClock(autojump_threshold=0))


def test_a_full_socket_at_idle_time_is_waited_for(run):
    """What the idle flush cannot write is written once the peer reads."""

    async def main(transport, peer):
        IdleHook.install()
        filled = fill(transport, peer)
        await transport.send(StartAck('c', 'context'))
        await wait_all_tasks_blocked()
        await unfill(peer, filled)
        assert await receive(peer, 1) == [StartAck('c', 'context')]

    run(main)


def test_a_failed_idle_flush_is_told_to_the_next_sender(run):
    """The instrument raises nothing; the next send reports the broken connection."""

    async def main(transport, peer):
        IdleHook.install()
        await transport.send(StartAck('c', 'context'))
        peer.close()
        await wait_all_tasks_blocked()
        assert IdleHook.current() is not None
        with pytest.raises(TransportClosed, match='already closed by peer'):
            await transport.send(Stop('c'))

    run(main)


def test_closing_writes_what_is_held_back(run):
    """`aclose()` gives a held-back frame a last chance."""

    async def main(transport, peer):
        IdleHook.install()
        await transport.send(StartAck('c', 'context'))
        await transport.aclose()
        assert await receive(peer, 1) == [StartAck('c', 'context')]
        assert peer.recv(10) == b''

    run(main)


def test_a_run_may_end_with_a_full_socket(run, make_yield):
    """Bytes that nobody ever reads do not keep the program alive."""

    async def main(transport, peer):
        IdleHook.install()
        with trio.move_on_after(0.01):
            await transport.send(make_yield('cut', BIG))
        await transport.send(StartAck('c', 'context'))

    run(main)


def test_the_descriptor_is_not_used_after_closing(run, monkeypatch):
    """A sender that waited never writes into a descriptor that was reused."""

    async def main(transport, peer):
        filled = fill(transport, peer)
        number = transport.stream.socket.fileno()
        reused = []

        async def wait_and_lose_it(fd):
            await trio.lowlevel.wait_writable(fd)
            transport.stream.socket.close()  # by another task, in the same pass
            reused.extend(socket.socketpair())

        monkeypatch.setattr(_outbox, 'wait_writable', wait_and_lose_it)

        async def send():
            with pytest.raises(TransportClosed, match="already closed 'locally'"):
                await transport.send(Stop('c'))

        async with trio.open_nursery() as tn:
            tn.start_soon(send)
            await wait_all_tasks_blocked()
            await unfill(peer, filled)
        assert number in [sock.fileno() for sock in reused]
        for sock in reused:
            sock.setblocking(False)
        for sock in reused:
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        for sock in reused:
            sock.close()

    run(main)


def test_cancelled_sender_leaves_what_another_had_held_back(run):
    """It takes its own frame back, and nothing else."""

    async def main(transport, peer):
        idle = IdleHook.install()
        try:
            written = fill(transport, peer)
            outbox = transport._outbox
            outbox.buffer[:] = b'held'
            outbox.hold(idle)
            async with trio.open_nursery() as tn:
                tn.start_soon(transport.send, Stop(cid='taken back'))
                await wait_all_tasks_blocked()
                tn.cancel_scope.cancel()
            await unfill(peer, written)
            await wait_all_tasks_blocked()
            assert peer.recv(65_536) == b'held'
        finally:
            IdleHook.remove()

    run(main)


def test_an_interrupt_amid_a_frame_does_not_stop_the_queue(
    run, make_yield, interrupt_at
):
    """The rest goes out by itself, and so does what is sent afterwards."""

    async def main(transport, peer):
        interrupt_at(Outbox.wait_written, 'async with self._lock')
        with pytest.raises(KeyboardInterrupt):
            await transport.send(make_yield('cut', BIG))
        await transport.send_last(Stop('last'))
        assert [msg.cid for msg in await receive(peer, 2)] == ['cut', 'last']

    run(main)


def test_what_was_not_sent_is_not_kept(run, make_yield, monkeypatch):
    """An idle channel holds no large buffer for a cancelled or refused message."""

    async def main(transport, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.send(make_yield('cancelled', BIG))
        assert sys.getsizeof(transport._outbox.buffer) < SMALL
        transport._max_frame = BIG
        with pytest.raises(FrameTooLong):
            await transport.send(make_yield('long', BIG))
        assert sys.getsizeof(transport._outbox.buffer) < SMALL

    run(main)
