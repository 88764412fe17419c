"""Rules of `tractor.experimental.msgpub`, with contexts that are memory channels."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import tractor.experimental
from tractor._exceptions import TransportClosed
from tractor.experimental import _pubsub, msgpub
from tractor.runtime._endpoint import bind, kind_of


class FakeContext:
    """Takes what an endpoint sends to its subscriber."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.is_lost = False
        # Replaced by an unset one while it takes nothing.
        self.takes = trio.Event()
        self.takes.set()

    def stop(self) -> None:
        """Take nothing until `takes` is set."""
        self.takes = trio.Event()

    async def _send_yield(self, data: Any) -> None:
        await self.takes.wait()
        if self.is_lost:
            raise TransportClosed('the peer is gone')
        self.got.append(data)


class Publisher:
    """An endpoint over values that a test hands to it, and a record of its runs."""

    def __init__(self, tasks: tuple[str, ...] = ()) -> None:
        self.runs: list[dict[str, Any]] = []
        self.ended = 0
        self.get_topics: Callable[[], tuple[str, ...]] = tuple

        async def values(get_topics, **kwargs):
            self.get_topics = get_topics
            self.runs.append(kwargs)
            self.send, receive = trio.open_memory_channel(10)
            try:
                async for value in receive:
                    if isinstance(value, Exception):
                        raise value
                    yield value
            finally:
                self.ended += 1

        self.endpoint = msgpub(tasks=tasks)(values)

    async def publish(self, value: Any) -> None:
        """Have it yielded, and wait until it was taken."""
        await self.send.send(value)
        await wait_all_tasks_blocked()


class Subscriber:
    """One call of an endpoint, in a task that can be cancelled."""

    def __init__(self, publisher: Publisher, topics: list[str], **kwargs: Any) -> None:
        self.ctx = FakeContext()
        self.scope = trio.CancelScope()
        self.is_done = False
        self.error: Exception | None = None
        self._publisher = publisher
        self._kwargs = {'topics': topics, **kwargs}

    @property
    def got(self) -> list[Any]:
        return self.ctx.got

    async def run(self) -> None:
        with self.scope:
            try:
                await self._publisher.endpoint(ctx=self.ctx, **self._kwargs)
            except (ValueError, trio.TooSlowError) as exc:
                self.error = exc
            else:
                self.is_done = True

    async def leave(self) -> None:
        self.scope.cancel()
        await wait_all_tasks_blocked()


async def subscribe(
    tn: trio.Nursery, publisher: Publisher, topics: list[str], **kwargs: Any
) -> Subscriber:
    """Start a subscriber and wait until it is settled."""
    subscriber = Subscriber(publisher, topics, **kwargs)
    tn.start_soon(subscriber.run)
    await wait_all_tasks_blocked()
    return subscriber


def run(main, *args, clock: trio.abc.Clock | None = None):
    """Run an async test, end what still runs, under a deadline."""

    async def bounded():
        with trio.fail_after(5):
            async with trio.open_nursery() as tn:
                await main(tn, *args)
                tn.cancel_scope.cancel()

    trio.run(bounded, clock=clock)


# -- decoration ----------------------------------------------------------------


async def generator(get_topics):
    yield {}


def test_only_async_generator_functions_are_decorated():
    """Anything else is refused, with its name."""

    async def coroutine(get_topics): ...

    def plain(get_topics):
        yield {}

    for wrong in (coroutine, plain):
        with pytest.raises(TypeError, match='must be an async generator function'):
            msgpub(wrong)


def test_get_topics_parameter_is_required():
    """A publisher that cannot ask for the topics is refused."""

    async def deaf():
        yield {}

    with pytest.raises(TypeError, match='must define a `get_topics` '):
        msgpub(tasks={'one'})(deaf)


@pytest.mark.parametrize('decorator', [msgpub, msgpub(), msgpub(tasks=['a'])])
def test_decorated_function_is_a_streaming_endpoint(decorator):
    """A coroutine function with the legacy mark, which shows its own parameters."""
    endpoint = decorator(generator)
    assert inspect.iscoroutinefunction(endpoint)
    assert not inspect.isasyncgenfunction(endpoint)
    assert endpoint._tractor_stream_function is True
    assert (endpoint.__module__, endpoint.__name__) == (__name__, 'generator')
    parameters = inspect.signature(endpoint).parameters
    assert list(parameters) == ['ctx', 'topics', 'task_name', 'packetizer', 'kwargs']


def test_runtime_does_not_warn_of_the_endpoint():
    """Its author did not choose the parameters, and could not change them."""
    endpoint = msgpub(generator)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        call = bind(endpoint, kind_of(endpoint), {'topics': ['a']}, None)
    assert call.cr_frame.f_locals['topics'] == ['a']
    call.close()


def test_runtime_warns_of_other_endpoints():
    """A function that takes `ctx` itself can heed it."""

    async def streams(ctx):
        return ctx

    streams._tractor_stream_function = True
    with pytest.warns(DeprecationWarning, match='should declare a `stream` arg'):
        call = bind(streams, kind_of(streams), {}, None)
    call.close()


def test_package_exports_msgpub_alone():
    """It is an alias of the decorator's short name."""
    assert tractor.experimental.__all__ == ['msgpub']
    assert msgpub is _pubsub.pub


# -- calls ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ('tasks', 'kwargs'),
    [
        ((), {}),
        ((), {'ctx': None}),
        ((), {'topics': ['a']}),
        (('one', 'two'), {'ctx': None, 'topics': ['a']}),
        (['one'], {'ctx': None, 'topics': ['a'], 'task_name': 'three'}),
        ({'one'}, {'ctx': None, 'topics': ['a'], 'task_name': None}),
        ((), {'ctx': None, 'topics': 'a'}),
    ],
)
def test_wrong_calls_are_type_errors(tasks, kwargs):
    """`ctx` and `topics` are required, and `task_name` where names are declared."""
    with pytest.raises(TypeError):
        trio.run(lambda: msgpub(tasks=tasks)(generator)(**kwargs))


def test_declared_task_names_have_runs_of_their_own():
    """One run for each name; the subscribers of one do not see the other's values."""

    async def main(tn):
        publisher = Publisher(tasks=('one', 'two'))
        one = await subscribe(tn, publisher, ['t'], task_name='one')
        send_one = publisher.send
        two = await subscribe(tn, publisher, ['t'], task_name='two')
        assert len(publisher.runs) == 2
        await publisher.publish({'t': 2})
        await send_one.send({'t': 1})
        await wait_all_tasks_blocked()
        assert (one.got, two.got) == ([{'t': 1}], [{'t': 2}])

    run(main)


def test_remaining_kwargs_go_to_the_generator():
    """Those of the subscriber that starts it."""

    async def main(tn):
        publisher = Publisher()
        await subscribe(tn, publisher, ['t'], seed=1)
        await subscribe(tn, publisher, ['t'], seed=2)
        assert publisher.runs == [{'seed': 1}]

    run(main)


# -- publishing ----------------------------------------------------------------


def test_each_gets_the_topics_it_subscribed_to():
    """One packet `{topic: data}` for each topic, shared from a single run."""

    async def main(tn):
        publisher = Publisher()
        a = await subscribe(tn, publisher, ['a'])
        b = await subscribe(tn, publisher, ['b'])
        both = await subscribe(tn, publisher, ['b', 'a', 'a'])
        assert publisher.get_topics() == ('a', 'b')
        await publisher.publish({'a': 1, 'b': 2, 'nobody': 3})
        assert a.got == [{'a': 1}]
        assert b.got == [{'b': 2}]
        assert both.got == [{'a': 1}, {'b': 2}]
        assert len(publisher.runs) == 1

    run(main)


def test_all_that_is_asked_of_a_context():
    """It takes what is sent; without anything to send not even that."""
    got = []

    async def send_yield(data):
        got.append(data)

    async def main(tn):
        @msgpub
        async def one_value(get_topics):
            yield {'a': 1}

        await one_value(ctx=SimpleNamespace(send_yield=send_yield), topics=['a'])
        await one_value(ctx=None, topics=['b'])

    run(main)
    assert got == [{'a': 1}]


def test_packetizer_makes_the_packets():
    """It is called with topic and data, for its own subscriber only."""

    async def main(tn):
        publisher = Publisher()
        plain = await subscribe(tn, publisher, ['a'])
        packed = await subscribe(
            tn, publisher, ['a'], packetizer=lambda topic, data: [topic, data]
        )
        await publisher.publish({'a': 1})
        assert plain.got == [{'a': 1}]
        assert packed.got == [['a', 1]]

    run(main)


def test_topics_appear_and_disappear_with_their_subscribers():
    """Leaving, also by cancellation, removes a subscriber from every topic at once."""

    async def main(tn):
        publisher = Publisher()
        first = await subscribe(tn, publisher, ['a', 'b'])
        second = await subscribe(tn, publisher, ['b', 'c'])
        assert publisher.get_topics() == ('a', 'b', 'c')
        await second.leave()
        assert publisher.get_topics() == ('a', 'b')
        await first.leave()
        assert publisher.get_topics() == ()
        assert publisher.ended == 1

    run(main)


def test_next_in_line_restarts_a_cancelled_run():
    """With its own arguments; who waits behind it goes on being served."""

    async def main(tn):
        publisher = Publisher()
        first = await subscribe(tn, publisher, ['t'], seed=1)
        second = await subscribe(tn, publisher, ['t'], seed=2)
        third = await subscribe(tn, publisher, ['t'], seed=3)
        await first.leave()
        assert publisher.runs == [{'seed': 1}, {'seed': 2}]
        assert publisher.ended == 1
        await publisher.publish({'t': 1})
        assert (first.got, second.got, third.got) == ([], [{'t': 1}], [{'t': 1}])

    run(main)


def test_end_of_the_generator_ends_every_subscription():
    """Nobody in line starts it again; who comes later does."""

    async def main(tn):
        publisher = Publisher()
        subscribers = [await subscribe(tn, publisher, ['t']) for _ in range(3)]
        await publisher.publish({'t': 1})
        publisher.send.close()
        await wait_all_tasks_blocked()
        assert [s.is_done for s in subscribers] == [True] * 3
        assert [s.got for s in subscribers] == [[{'t': 1}]] * 3
        assert publisher.get_topics() == ()
        assert len(publisher.runs) == 1
        late = await subscribe(tn, publisher, ['t'])
        assert len(publisher.runs) == 2
        assert not late.is_done

    run(main)


def test_error_of_the_generator_is_raised_in_the_run_that_had_it():
    """The next in line starts anew, with its own chance to fail."""

    async def main(tn):
        publisher = Publisher()
        first = await subscribe(tn, publisher, ['t'])
        second = await subscribe(tn, publisher, ['t'])
        error = ValueError('mine')
        await publisher.publish(error)
        assert first.error is error
        assert len(publisher.runs) == 2
        await publisher.publish({'t': 1})
        assert second.got == [{'t': 1}]

    run(main)


@pytest.mark.parametrize('lost', [0, 1])
def test_lost_channel_removes_its_subscriber_alone(lost: int):
    """Whether it runs the generator or waits in line, the others go on."""

    async def main(tn):
        publisher = Publisher()
        subscribers = [await subscribe(tn, publisher, [t]) for t in ('a', 'b')]
        gone, other = subscribers[lost], subscribers[1 - lost]
        gone.ctx.is_lost = True
        await publisher.publish({'a': 1, 'b': 1})
        await publisher.publish({'a': 2, 'b': 2})
        topic = 'ba'[lost]
        assert publisher.get_topics() == (topic,)
        assert other.got == [{topic: 1}, {topic: 2}]
        assert gone.got == []
        assert len(publisher.runs) == 1

    run(main)


def test_run_without_topics_ends():
    """When the last channel is lost the generator is closed, not run on for nobody."""

    async def main(tn):
        publisher = Publisher()
        only = await subscribe(tn, publisher, ['t'])
        only.ctx.is_lost = True
        await publisher.publish({'t': 1})
        assert publisher.ended == 1
        assert only.is_done
        await subscribe(tn, publisher, ['t'])
        assert len(publisher.runs) == 2

    run(main)


def test_lost_subscriber_in_line_does_not_restart_the_run():
    """Once its channel is known to be lost, it only leaves."""

    async def main(tn):
        publisher = Publisher()
        first = await subscribe(tn, publisher, ['t'])
        second = await subscribe(tn, publisher, ['t'])
        second.ctx.is_lost = True
        await publisher.publish({'t': 1})
        await first.leave()
        assert second.is_done
        assert len(publisher.runs) == 1

    run(main)


# -- slow subscribers ----------------------------------------------------------


def test_stopped_subscriber_is_dropped(caplog):
    """The others wait for it once and then go on; it learns what happened."""

    async def main(tn):
        publisher = Publisher()
        good = await subscribe(tn, publisher, ['a'])
        stopped = await subscribe(tn, publisher, ['a', 'b'])
        stopped.ctx.stop()
        await publisher.publish({'a': 1, 'b': 1})
        await publisher.publish({'a': 2, 'b': 2})
        assert good.got == [{'a': 1}]
        await trio.sleep(1.1 * _pubsub._PATIENCE)
        await wait_all_tasks_blocked()
        assert good.got == [{'a': 1}, {'a': 2}]
        assert publisher.get_topics() == ('a',)
        assert [r.levelname for r in caplog.records] == ['WARNING']
        assert caplog.records[0].args == (['a', 'b'], _pubsub._PATIENCE)

        assert stopped.error is None
        stopped.ctx.takes.set()
        await wait_all_tasks_blocked()
        assert stopped.got == [{'a': 1}, {'b': 1}]
        assert isinstance(stopped.error, trio.TooSlowError)
        assert len(publisher.runs) == 1

    run(main, clock=MockClock(autojump_threshold=0.01))


def test_dropped_subscriber_that_runs_the_generator():
    """The run goes on as long as it is stuck, and is then taken over by the next."""

    async def main(tn):
        publisher = Publisher()
        stopped = await subscribe(tn, publisher, ['a'])
        good = await subscribe(tn, publisher, ['a'])
        stopped.ctx.stop()
        await publisher.publish({'a': 1})
        await trio.sleep(1.1 * _pubsub._PATIENCE)
        await publisher.publish({'a': 2})
        assert len(publisher.runs) == 1
        stopped.ctx.takes.set()
        await wait_all_tasks_blocked()
        assert isinstance(stopped.error, trio.TooSlowError)
        assert len(publisher.runs) == 2
        await publisher.publish({'a': 3})
        assert good.got == [{'a': 1}, {'a': 2}, {'a': 3}]

    run(main, clock=MockClock(autojump_threshold=0.01))


def test_several_stopped_subscribers_cost_the_time_of_one():
    """They are waited for at once, not in turn."""

    async def main(tn):
        publisher = Publisher()
        good = await subscribe(tn, publisher, ['a'])
        for _ in range(10):
            (await subscribe(tn, publisher, ['a'])).ctx.stop()
        await publisher.publish({'a': 1})
        await publisher.publish({'a': 2})
        assert good.got == [{'a': 1}]
        await trio.sleep(1.1 * _pubsub._PATIENCE)
        assert good.got == [{'a': 1}, {'a': 2}]

    run(main, clock=MockClock(autojump_threshold=0.01))


def test_slow_subscriber_is_waited_for():
    """One that takes a packet now and then gets each, in order, and sets the pace."""

    async def main(tn):
        publisher = Publisher()
        good = await subscribe(tn, publisher, ['a'])
        slow = await subscribe(tn, publisher, ['a'])
        for number in range(5):
            slow.ctx.stop()
            await publisher.publish({'a': number})
            await publisher.publish({'a': -number})
            await trio.sleep(0.9 * _pubsub._PATIENCE)
            assert good.got[-1] == {'a': number}
            slow.ctx.takes.set()
            await wait_all_tasks_blocked()
        assert good.got == slow.got
        assert slow.got == [{'a': s * n} for n in range(5) for s in (1, -1)]

    run(main, clock=MockClock(autojump_threshold=0.01))


def test_pause_of_the_publisher_drops_nobody():
    """Of the time in which this process did not run only a half is counted."""

    async def main(tn):
        clock = trio.lowlevel.current_clock()
        publisher = Publisher()
        only = await subscribe(tn, publisher, ['a'])
        only.ctx.stop()
        await publisher.publish({'a': 1})
        clock.jump(2 * _pubsub._PATIENCE)
        await wait_all_tasks_blocked()
        only.ctx.takes.set()
        await publisher.publish({'a': 2})
        assert only.got == [{'a': 1}, {'a': 2}]

    run(main, clock=MockClock())


def test_leaver_is_not_waited_for():
    """When a stuck subscriber is cancelled the next value goes out at once."""

    async def main(tn):
        publisher = Publisher()
        stuck = await subscribe(tn, publisher, ['a'])
        good = await subscribe(tn, publisher, ['a'])
        stuck.ctx.stop()
        await publisher.publish({'a': 1})
        await publisher.publish({'a': 2})
        await stuck.leave()
        assert len(publisher.runs) == 2
        await publisher.publish({'a': 3})
        assert good.got == [{'a': 1}, {'a': 3}]

    run(main, clock=MockClock())


@pytest.mark.parametrize('fails', [False, True])
def test_last_value_is_sent_before_the_end(fails: bool):
    """Also to a dropped subscriber; then it gets the generator's error, or its own."""

    async def main(tn):
        publisher = Publisher()
        slow = await subscribe(tn, publisher, ['a', 'b'])
        other = await subscribe(tn, publisher, ['a'])
        slow.ctx.stop()
        await publisher.publish({'a': 1, 'b': 1})
        await trio.sleep(1.1 * _pubsub._PATIENCE)
        error = ValueError('mine')
        if fails:
            await publisher.publish(error)
        else:
            publisher.send.close()
            await wait_all_tasks_blocked()
        assert other.is_done is not fails
        assert slow.error is None
        slow.ctx.takes.set()
        await wait_all_tasks_blocked()
        assert slow.got == [{'a': 1}, {'b': 1}]
        assert slow.error is error if fails else type(slow.error) is trio.TooSlowError

    run(main, clock=MockClock(autojump_threshold=0.01))
