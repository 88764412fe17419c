"""Rules of `tractor.trionics._broadcast`, by example."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tractor.trionics import (
    AsyncReceiver,
    BroadcastReceiver,
    Lagged,
    _broadcast,
    broadcast_receiver,
    collapse_eg,
)


def run(main, *args):
    """Run an async test under a deadline."""

    async def bounded():
        with trio.fail_after(5):
            return await main(*args)

    return trio.run(bounded)


def make(values=(), window: int = 3, source_size: float = float('inf'), **kwargs):
    """Return the send end of a source that holds `values`, and the first receiver."""
    send, receive = trio.open_memory_channel(source_size)
    for value in values:
        send.send_nowait(value)
    return send, broadcast_receiver(receive, window, **kwargs)


def test_every_subscriber_gets_every_value():
    """Each sees all values produced after it subscribed, in order."""

    async def main():
        send, first = make()
        async with first.subscribe() as second:
            send.send_nowait(1)
            assert await first.receive() == 1
            async with first.subscribe() as late:
                send.send_nowait(2)
                assert await late.receive() == 2
            assert [await second.receive(), await second.receive()] == [1, 2]
        assert await first.receive() == 2

    run(main)


def test_ends_reach_every_subscriber_after_its_values():
    """End of channel comes after what is buffered, and comes again."""

    async def main():
        send, first = make([1, 2])
        async with first.subscribe() as other:
            send.close()
            assert [value async for value in other] == [1, 2]
            assert first._state.eoc
            assert [await first.receive(), first.receive_nowait()] == [1, 2]
            for receiver in (first, other):
                with pytest.raises(trio.EndOfChannel):
                    receiver.receive_nowait()
                with pytest.raises(trio.EndOfChannel):
                    await receiver.receive()

    run(main)


def test_receive_nowait_takes_only_what_is_buffered():
    """It never touches the source."""

    async def main():
        _, first = make([1])
        async with first.subscribe() as other:
            with pytest.raises(trio.WouldBlock):
                other.receive_nowait()
            assert await first.receive() == 1
            assert other.receive_nowait() == 1

    run(main)


def test_one_task_pulls_and_the_others_wait_for_it():
    """`recv_ready` names who pulls; the source sees one reader."""
    readers, most = 0, 0

    async def main():
        send, receive = trio.open_memory_channel(1)

        async def pull():
            nonlocal readers, most
            readers += 1
            most = max(most, readers)
            try:
                return await receive.receive()
            finally:
                readers -= 1

        first = broadcast_receiver(receive, 3, receive_afunc=pull)
        got = []

        async def consume(task_status):
            async with first.subscribe() as receiver:
                assert receiver._recv is first._recv is pull
                task_status.started()
                got.append([value async for value in receiver])

        async with trio.open_nursery() as tn:
            for _ in range(5):
                await tn.start(consume)
            await wait_all_tasks_blocked()
            key, event = first._state.recv_ready
            assert key in first._state.subs
            stats = first._state.statistics()
            assert stats['next_value_receiver_id'] == key
            assert stats['tasks_waiting'] == event.statistics().tasks_waiting == 4
            assert stats['open_consumers'] == 6
            async with send:
                for value in range(3):
                    await send.send(value)
                    await wait_all_tasks_blocked()
        assert got == [[0, 1, 2]] * 5
        assert first._state.recv_ready is None

    run(main)
    assert most == 1


def test_statistics_count_what_each_can_still_take():
    """The length is bounded by the buffer, whatever was lost."""

    async def main():
        _, first = make(range(10), window=3)
        async with first.subscribe() as slow, first.subscribe() as fast:
            await first.receive()
            for _ in range(2):
                assert await fast.receive() in {0, 1}
            assert first._state.statistics() == {
                'open_consumers': 3,
                'queued_len_by_task': {first.key: 1, slow.key: 2, fast.key: 0},
                'max_buffer_size': 3,
                'tasks_waiting': 0,
                'tasks_cancelled': {},
                'next_value_receiver_id': None,
            }
            for _ in range(8):
                await fast.receive()
            lengths = first._state.statistics()['queued_len_by_task']
            assert lengths == {first.key: 3, slow.key: 3, fast.key: 0}

    run(main)


# -- lag -----------------------------------------------------------------------


def test_lagging_raises_once_and_goes_on_with_the_oldest():
    """One `Lagged`, the position is the oldest retained value, then it continues."""

    async def main():
        _, first = make(range(10), window=3)
        async with first.subscribe() as slow:
            assert [await first.receive() for _ in range(10)] == list(range(10))
            with pytest.raises(Lagged) as info:
                await slow.receive()
            assert (info.value.missed, info.value.window) == (7, 3)
            assert first._state.subs[slow.key] == first._state.maxlen - 1
            assert [await slow.receive() for _ in range(3)] == [7, 8, 9]
            assert first._state.subs[slow.key] == -1

    run(main)


def test_exactly_the_window_behind_is_no_lag():
    """A subscriber may be `maxlen` values behind."""

    async def main():
        _, first = make(range(3), window=3)
        async with first.subscribe() as slow:
            for _ in range(3):
                await first.receive()
            assert [slow.receive_nowait() for _ in range(3)] == [0, 1, 2]

    run(main)


def test_never_read_first_receiver_lags():
    """The implicit receiver subscribes when it is made, and lags like any other."""

    async def main():
        send, first = make(range(5), window=2)
        async with first.subscribe() as other:
            send.close()
            assert [value async for value in other] == list(range(5))
        with pytest.raises(Lagged):
            await first.receive()
        assert [value async for value in first] == [3, 4]
        assert list(first._state.queue) == [4, 3]

    run(main)


def test_without_raise_on_lag_a_warning_is_logged(monkeypatch: pytest.MonkeyPatch):
    """Then the receiver goes on at once with the oldest value retained."""
    warnings = []
    monkeypatch.setattr(_broadcast.log, 'warning', lambda *args: warnings.append(args))

    async def main():
        _, first = make(range(10), window=3)
        async with first.subscribe(raise_on_lag=False) as slow:
            for _ in range(10):
                await first.receive()
            assert await slow.receive() == 7
        assert len(warnings) == 1

    run(main)


def test_without_a_window_only_who_pulls_gets_the_value():
    """A window of zero keeps nothing: the others lag, and then catch up."""

    async def main():
        _, first = make(range(2), window=0)
        async with (
            first.subscribe() as strict,
            first.subscribe(raise_on_lag=False) as lax,
        ):
            assert await first.receive() == 0
            with pytest.raises(Lagged):
                strict.receive_nowait()
            for receiver in (strict, lax):
                with pytest.raises(trio.WouldBlock):
                    receiver.receive_nowait()
            assert await lax.receive() == 1

    run(main)


def test_lagged_is_a_too_slow_error_that_pickles():
    """Handlers of `trio.TooSlowError` see it; it crosses processes."""
    error = pickle.loads(pickle.dumps(Lagged(7, 3)))
    assert isinstance(error, trio.TooSlowError)
    assert (error.missed, error.window) == (7, 3)
    assert 'lost 7 values' in str(error)


@pytest.mark.parametrize('laggers', [1, 3])
def test_slow_consumers_lag_and_the_fast_one_gets_everything(laggers: int):
    """Four lags each, then they leave; the fast one is served to the end."""
    size = 100
    retries: dict[int, int] = {}
    all_seen: list[int] = []

    async def slow(first: BroadcastReceiver[int], number: int, gate) -> None:
        retries[number] = 0
        async with first.subscribe() as receiver:
            while retries[number] < 4:
                # Wait until the fast one has left it behind.
                async with gate:
                    await gate.wait()
                try:
                    await receiver.receive()
                except Lagged:
                    retries[number] += 1
                    key = receiver.key
                    assert receiver._state.subs[key] == receiver._state.maxlen - 1

    async def fast(receiver: BroadcastReceiver[int], gate) -> None:
        async for value in receiver:
            all_seen.append(value)
            if value % 10 == 9:
                async with gate:
                    gate.notify_all()
                await wait_all_tasks_blocked()

    async def main():
        send, first = make(window=3, source_size=1)
        gate = trio.Condition()
        async with first.subscribe() as quick, trio.open_nursery() as tn:
            for number in range(laggers):
                tn.start_soon(slow, first, number, gate)
            await wait_all_tasks_blocked()
            tn.start_soon(fast, quick, gate)
            async with send:
                for value in range(size):
                    await send.send(value)
        assert all_seen == list(range(size))
        assert set(retries.values()) == {4}
        assert list(first._state.subs) == [first.key]
        with pytest.raises(Lagged):
            await first.receive()
        assert [value async for value in first] == list(range(size))[-3:]

    run(main)


def test_lax_subscriber_never_raises_over_many_values(monkeypatch: pytest.MonkeyPatch):
    """1000 values, a lax reader that lags, and the interrupt comes out bare."""
    lags = []
    monkeypatch.setattr(_broadcast.log, 'warning', lambda *args: lags.append(args))

    async def lax(first: BroadcastReceiver[int], ended: trio.Event) -> None:
        async with first.subscribe(raise_on_lag=False) as receiver:
            seen = []
            async for value in receiver:
                seen.append(value)
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
        assert lags
        assert len(seen) < 1000
        assert seen == sorted(set(seen))
        assert seen[-3:] == [997, 998, 999]
        ended.set()

    async def main():
        send, first = make(window=3, source_size=1)
        ended = trio.Event()
        async with collapse_eg(), trio.open_nursery() as tn:
            tn.start_soon(lax, first, ended)
            async with first.subscribe() as fast:

                async def produce():
                    async with send:
                        for value in range(1000):
                            await send.send(value)

                tn.start_soon(produce)
                assert [value async for value in fast] == list(range(1000))
            await ended.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(main)


# -- cancellation --------------------------------------------------------------


def test_cancelling_who_pulls_lets_another_take_over():
    """No value is lost, `recv_ready` is reset, the waiting one gets the next value."""

    async def main():
        send, first = make()
        scope = trio.CancelScope()
        left = trio.Event()
        pulling_key = None

        async def pull_until_cancelled():
            nonlocal pulling_key
            async with first.subscribe() as receiver:
                pulling_key = receiver.key
                with scope:
                    await receiver.receive()
                assert pulling_key in first._state.statistics()['tasks_cancelled']
                await left.wait()

        async with trio.open_nursery() as tn:
            tn.start_soon(pull_until_cancelled)
            await wait_all_tasks_blocked()
            assert first._state.recv_ready[0] == pulling_key

            async def cancel_then_send():
                await wait_all_tasks_blocked()
                scope.cancel()
                await wait_all_tasks_blocked()
                assert first._state.recv_ready[0] == first.key
                await send.send(1)

            tn.start_soon(cancel_then_send)
            assert await first.receive() == 1
            left.set()
        assert first._state.recv_ready is None
        assert pulling_key not in first._state.statistics()['tasks_cancelled']

    run(main)


def test_cancelling_who_waits_leaves_the_puller_alone():
    """A waiting subscriber that leaves changes nothing for the others."""

    async def main():
        send, first = make()
        scope = trio.CancelScope()

        async def wait():
            with scope:
                async with first.subscribe() as receiver:
                    await receiver.receive()

        async with trio.open_nursery() as tn:

            async def pull():
                assert await first.receive() == 1

            tn.start_soon(pull)
            await wait_all_tasks_blocked()
            tn.start_soon(wait)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            await send.send(1)
        assert list(first._state.subs) == [first.key]

    run(main)


def test_receiving_in_a_cancelled_scope_takes_nothing():
    """A cancelled receive leaves the buffered value where it is."""

    async def main():
        _, first = make([1])
        async with first.subscribe() as other:
            await first.receive()
            with trio.CancelScope() as scope:
                scope.cancel()
                await other.receive()
            assert scope.cancelled_caught
            assert other.receive_nowait() == 1

    run(main)


def test_error_of_the_source_reaches_each_as_it_pulls():
    """Whoever pulls gets the source's own error; the next one tries for itself."""

    async def main():
        send, receive = trio.open_memory_channel(1)
        first = broadcast_receiver(receive, 3)
        failures = []

        async def consume():
            async with first.subscribe() as receiver:
                with pytest.raises(trio.ClosedResourceError):
                    await receiver.receive()
                failures.append(1)

        async with send, trio.open_nursery() as tn:
            for _ in range(3):
                tn.start_soon(consume)
            await wait_all_tasks_blocked()
            receive.close()
        assert len(failures) == 3
        assert first._state.recv_ready is None

    run(main)


# -- closing -------------------------------------------------------------------


def test_closed_receiver_refuses_everything():
    """After its block it is out of `subs`, and neither receives nor subscribes."""

    async def main():
        _, first = make([1])
        async with first as same:
            assert same is first
        await first.aclose()
        assert first.key not in first._state.subs
        with pytest.raises(trio.ClosedResourceError):
            await first.receive()
        with pytest.raises(trio.ClosedResourceError):
            first.receive_nowait()
        with pytest.raises(trio.ClosedResourceError):
            async with first.subscribe():
                raise AssertionError('entered')

    run(main)


def test_closing_one_leaves_the_others_and_the_source_alone():
    """Only the closed one is gone."""

    async def main():
        send, first = make([1])
        async with first.subscribe() as other:
            await first.aclose()
            assert await other.receive() == 1
            await send.send(2)
            assert await other.receive() == 2

    run(main)


def test_closing_hides_no_error_in_a_cancelled_scope():
    """`aclose()` is no checkpoint: the error of the block stays what it was."""

    async def main():
        _, first = make()
        with trio.CancelScope() as scope:
            async with first.subscribe():
                scope.cancel()
                raise KeyError('mine')

    with pytest.raises(KeyError, match='mine'):
        run(main)


@pytest.mark.parametrize('is_puller', [True, False])
def test_closing_wakes_the_tasks_that_wait_in_it(is_puller: bool):
    """They get `ClosedResourceError`; the other subscriber gets the next value."""

    async def main():
        send, first = make()
        closed = []

        async def wait_closed(receiver):
            with pytest.raises(trio.ClosedResourceError):
                await receiver.receive()
            closed.append(1)

        async def wait_value(receiver):
            assert await receiver.receive() == 1

        async with first.subscribe() as doomed, trio.open_nursery() as tn:
            waits = [partial(wait_closed, doomed), partial(wait_value, first)]
            for wait in waits if is_puller else reversed(waits):
                tn.start_soon(wait)
                await wait_all_tasks_blocked()
            assert (first._state.recv_ready[0] == doomed.key) is is_puller
            await doomed.aclose()
            await wait_all_tasks_blocked()
            assert closed == [1]
            assert first._state.recv_ready[0] == first.key
            await send.send(1)

    run(main)


def test_value_that_arrives_as_the_puller_closes_is_not_lost():
    """It goes to the others, though the closed one cannot return it."""

    async def main():
        send, first = make()

        async def pull(receiver):
            with pytest.raises(trio.ClosedResourceError):
                await receiver.receive()

        async with first.subscribe() as doomed, trio.open_nursery() as tn:
            tn.start_soon(pull, doomed)
            await wait_all_tasks_blocked()
            send.send_nowait(1)
            await doomed.aclose()
        assert await first.receive() == 1

    run(main)


def test_two_tasks_of_one_receiver_share_its_values():
    """One subscriber is one reader: each value goes to one of its tasks."""

    async def main():
        send, first = make()
        got = []

        async def read():
            got.append(await first.receive())

        async with trio.open_nursery() as tn:
            tn.start_soon(read)
            tn.start_soon(read)
            await wait_all_tasks_blocked()
            await send.send(1)
            await wait_all_tasks_blocked()
            assert got == [1]
            await send.send(2)
        assert got == [1, 2]

    run(main)


def test_receivers_are_sources_themselves():
    """Both a trio channel and a receiver satisfy the protocol of sources."""

    async def main():
        send, receive = trio.open_memory_channel(1)
        first = broadcast_receiver(receive, 3)
        assert isinstance(receive, AsyncReceiver)
        assert isinstance(first, AsyncReceiver)
        again = broadcast_receiver(first, 3)
        await send.send(1)
        assert await again.receive() == 1
        assert first.key == id(first)

    run(main)
