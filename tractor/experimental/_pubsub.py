"""
Publish topics of one async generator to many remote subscribers.

`pub()` turns an async generator function into a streaming endpoint.  Each call is one
subscriber and one task of the publishing actor; all calls with one task name share a
`_Feed`, and one of them runs the generator for all while the others wait in line for
its lock.  So the generator starts with the first subscriber, and if the one that runs
it is cancelled, the next one in line starts it anew.

A value goes to all subscribers at once, and the generator goes on when each has taken
it: so it is as fast as the slowest, and may reuse what it has yielded.  One that takes
nothing for a second is dropped, lest a stopped process stop all the others.  Its call
stays where it is, in the middle of a send, and fails when the channel gets free.

Invariant: a subscriber is in the feed exactly as long as its call runs and its channel
takes messages, and `get_topics()` tells the topics of those who are.  Used by
applications, as `tractor.experimental.msgpub`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
)
from contextlib import aclosing
from typing import Any, Final, Protocol, cast, overload
from weakref import WeakValueDictionary

import trio

from tractor._exceptions import TransportClosed
from tractor.log import get_logger
from tractor.trionics._beg import collapse_eg, raise_as_is

log = get_logger(__name__)

# Seconds for which one subscriber may hold up all the others of its feed.
_PATIENCE: Final = 1.0

type Topics = tuple[Hashable, ...]
type Publisher = Callable[..., AsyncGenerator[Mapping[Any, Any], None]]
type Packetizer = Callable[[Any, Any], Any]


class Endpoint(Protocol):
    """What `pub()` makes of a publisher."""

    def __call__(
        self,
        *,
        ctx: Any,
        topics: Iterable[Hashable],
        task_name: str | None = None,
        packetizer: Packetizer | None = None,
        **kwargs: Any,
    ) -> Any: ...


class _Subscriber:
    """
    One call of an endpoint: what it wants and where it goes.

    What is published to it is sent by a task of that call, so that it can be slow, or
    be cancelled in the middle of a send, without a share in it for anybody else.
    """

    __slots__ = (
        '_ctx',
        '_inbox',
        '_packetizer',
        '_packets',
        'is_late',
        'sent',
        'topics',
    )

    def __init__(
        self, ctx: Any, topics: Iterable[Hashable], packetizer: Packetizer | None
    ) -> None:
        if isinstance(topics, str | bytes):
            raise TypeError(f'`topics` must be several: pass [{topics!r}]')
        self._ctx = ctx
        # In the caller's order, without duplicates.
        self.topics = dict.fromkeys(topics)
        self._packetizer = packetizer
        # One value at most: the next comes when `sent` is set, or never.
        self._inbox: trio.MemorySendChannel[list[Any]]
        self._packets: trio.MemoryReceiveChannel[list[Any]]
        self._inbox, self._packets = trio.open_memory_channel(1)
        # Set when nothing is under way, or nothing ever will be.
        self.sent = trio.Event()
        # It was dropped while a packet was under way.
        self.is_late = False

    def publish(self, value: Mapping[Any, Any]) -> bool:
        """Hand over what it subscribed to, and return whether there is any."""
        make = self._packetizer
        packets = [
            {topic: data} if make is None else make(topic, data)
            for topic, data in value.items()
            if topic in self.topics
        ]
        if packets:
            self.sent = trio.Event()
            self._inbox.send_nowait(packets)
        return bool(packets)

    def close(self) -> None:
        """Publish nothing more; what was published is still sent."""
        self._inbox.close()
        self.sent.set()

    async def deliver(self) -> None:
        """
        Send what is published to it, in order, until it is closed.

        Raises:
            TooSlowError: It was dropped, and took its last packet in the end.
        """
        with self._packets:
            async for packets in self._packets:
                # A context's own public way warns that it is deprecated.
                send = getattr(self._ctx, '_send_yield', None) or self._ctx.send_yield
                for packet in packets:
                    await send(packet)
                self.sent.set()
        if self.is_late:
            raise trio.TooSlowError(
                f'a subscriber of {list(self.topics)!r} was dropped: it did not take a'
                f' packet for {_PATIENCE:g} s; receive faster, or buffer more'
            )


class _Feed:
    """The subscribers of one task name, and the run of the generator for them."""

    __slots__ = ('__weakref__', 'lock', 'subscribers')

    def __init__(self) -> None:
        # Held by the call that runs the generator.
        self.lock = trio.StrictFIFOLock()
        # In the order in which they came.
        self.subscribers: dict[_Subscriber, None] = {}

    def get_topics(self) -> Topics:
        """Return the topics that have subscribers now."""
        return tuple(dict.fromkeys(t for s in self.subscribers for t in s.topics))

    async def serve(
        self, subscriber: _Subscriber, publisher: Publisher, kwargs: dict[str, Any]
    ) -> None:
        """Run the generator, or wait for its end; take over when its run is cut."""
        error: Exception | None = None
        self.subscribers[subscriber] = None
        async with collapse_eg(add_notes=False), trio.open_nursery() as tn:
            tn.start_soon(self._deliver, subscriber)
            try:
                async with self.lock:
                    # The run of another may have ended, or found the channel lost.
                    if subscriber in self.subscribers:
                        await self._run(publisher(get_topics=self.get_topics, **kwargs))
            except Exception as exc:
                # Raised when all that was published before has been sent, and
                # more to the point than that this took long.
                error = exc
                subscriber.is_late = False
            finally:
                self._remove(subscriber)
        if error is not None:
            raise_as_is(error)

    async def _deliver(self, subscriber: _Subscriber) -> None:
        try:
            await subscriber.deliver()
        except (
            TransportClosed,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ) as exc:
            log.cancel('subscriber of %r lost: %s', list(subscriber.topics), exc)
        finally:
            self._remove(subscriber)

    def _remove(self, subscriber: _Subscriber) -> None:
        self.subscribers.pop(subscriber, None)
        subscriber.close()

    async def _run(self, values: AsyncGenerator[Mapping[Any, Any], None]) -> None:
        async with aclosing(values):
            async for value in values:
                await self._publish(value)
                if not self.get_topics():
                    break
            else:
                # It ended by itself, and with it all subscriptions.
                self.subscribers.clear()

    async def _publish(self, value: Mapping[Any, Any]) -> None:
        """Send to all at once; the generator goes on when they have taken it."""
        addressed = [s for s in tuple(self.subscribers) if s.publish(value)]
        # In two halves, so that a pause of this very process, which uses up one
        # of them, does not count as theirs.
        for _ in range(2):
            with trio.move_on_after(_PATIENCE / 2):
                for subscriber in addressed:
                    await subscriber.sent.wait()
                return
        for subscriber in addressed:
            if not subscriber.sent.is_set():
                log.warning(
                    'subscriber of %r dropped: it did not take a packet for %g s',
                    list(subscriber.topics),
                    _PATIENCE,
                )
                subscriber.is_late = True
                self._remove(subscriber)


@overload
def pub(wrapped: Publisher, *, tasks: Collection[str] = ...) -> Endpoint: ...


@overload
def pub(
    wrapped: None = None, *, tasks: Collection[str] = ...
) -> Callable[[Publisher], Endpoint]: ...


def pub(
    wrapped: Publisher | None = None, *, tasks: Collection[str] = ()
) -> Endpoint | Callable[[Publisher], Endpoint]:
    """
    Make an async generator function a publisher, shared by all its subscribers.

    The generator takes `get_topics`, a function that returns the tuple of topics
    subscribed to now, and yields `{topic: data}`.  Subscribe with
    `portal.open_stream_from(fn, topics=[...])`; each subscriber of a topic gets
    `{topic: data}`.  The generator starts with the first subscriber and is ended when
    no topic is left; when it returns, all subscriptions end.  If the subscription
    that runs it is cancelled, another one starts it anew.  A subscriber that does not
    take a packet for a second is dropped, and gets a `trio.TooSlowError`.

    The endpoint takes, by keyword:
        ctx: Where to send, by its `send_yield()`; implicit for remote callers.
        topics: What to subscribe to.
        task_name: Which of several concurrent runs to share.
        packetizer: Called with `(topic, data)`; what it returns is sent instead.
        kwargs: Arguments of the generator, those of whoever starts it.

    Args:
        wrapped: The generator function; `None` when used with arguments.
        tasks: The task names that may be asked for; empty: none is required.
    Returns:
        A streaming endpoint (a coroutine function), or the decorator itself.
    Raises:
        TypeError: `wrapped` is no async generator function, or has no parameter
            `get_topics`; on calls, `topics` or `task_name` is missing or unknown.
    """
    if wrapped is None:
        return functools.partial(_decorate, tasks=frozenset(tasks))
    return _decorate(wrapped, tasks=frozenset(tasks))


def _decorate(wrapped: Publisher, *, tasks: frozenset[str]) -> Endpoint:
    name = getattr(wrapped, '__qualname__', repr(wrapped))
    if not inspect.isasyncgenfunction(wrapped):
        raise TypeError(f'{name} must be an async generator function')
    if 'get_topics' not in inspect.signature(wrapped).parameters:
        raise TypeError(f'{name} must define a `get_topics` parameter')
    # A feed lives as long as there are calls, or somebody keeps its `get_topics`.
    feeds: WeakValueDictionary[str | None, _Feed] = WeakValueDictionary()

    @functools.wraps(wrapped)
    async def endpoint(
        *,
        ctx: Any,
        topics: Iterable[Hashable],
        task_name: str | None = None,
        packetizer: Packetizer | None = None,
        **kwargs: Any,
    ) -> None:
        if tasks and task_name not in tasks:
            raise TypeError(
                f'{name} must be called with a `task_name` out of {sorted(tasks)}, got'
                f' {task_name!r}'
            )
        subscriber = _Subscriber(ctx, topics, packetizer)
        feed = feeds.setdefault(task_name, _Feed())
        await feed.serve(subscriber, wrapped, kwargs)

    # Callers are to see the endpoint's own parameters.
    del endpoint.__wrapped__
    marked: Any = endpoint
    marked._tractor_stream_function = True
    # `ctx` is the wrapper's: the publisher's author cannot take `stream` instead.
    marked._tractor_has_own_ctx = True
    return cast('Endpoint', marked)
