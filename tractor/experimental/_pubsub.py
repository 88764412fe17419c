"""
Publish topics of one async generator to many remote subscribers.

`pub()` turns an async generator function into a streaming endpoint.  Each call is one
subscriber and one task of the publishing actor; all calls with one task name share a
`_Feed`, and one of them runs the generator for all while the others wait in line for
its lock.  So the generator starts with the first subscriber, and if the one that runs
it is cancelled, the next one in line starts it anew.

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
from typing import Any, Protocol, cast, overload
from weakref import WeakValueDictionary

import trio

from tractor._exceptions import TransportClosed
from tractor.log import get_logger

log = get_logger(__name__)

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
    """One call of an endpoint: what it wants and where it goes."""

    __slots__ = ('_ctx', '_packetizer', 'topics')

    def __init__(
        self, ctx: Any, topics: Iterable[Hashable], packetizer: Packetizer | None
    ) -> None:
        if isinstance(topics, str | bytes):
            raise TypeError(f'`topics` must be several: pass [{topics!r}]')
        self._ctx = ctx
        # In the caller's order, without duplicates.
        self.topics = dict.fromkeys(topics)
        self._packetizer = packetizer

    async def send(self, topic: Hashable, data: Any) -> None:
        make = self._packetizer
        packet = {topic: data} if make is None else make(topic, data)
        # A context's own public way warns that it is deprecated.
        send = getattr(self._ctx, '_send_yield', None) or self._ctx.send_yield
        await send(packet)


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
        self.subscribers[subscriber] = None
        try:
            async with self.lock:
                # The run of another may have ended, or found the channel lost.
                if subscriber in self.subscribers:
                    await self._run(publisher(get_topics=self.get_topics, **kwargs))
        finally:
            self.subscribers.pop(subscriber, None)

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
        for topic, data in value.items():
            for subscriber in tuple(self.subscribers):
                # Asked for each one: it may have left during the last send.
                if topic not in subscriber.topics or (
                    subscriber not in self.subscribers
                ):
                    continue
                try:
                    await subscriber.send(topic, data)
                except (
                    TransportClosed,
                    trio.BrokenResourceError,
                    trio.ClosedResourceError,
                ) as exc:
                    log.cancel('subscriber of %r lost: %s', topic, exc)
                    self.subscribers.pop(subscriber, None)


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
    that runs it is cancelled, another one starts it anew.

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
    return cast('Endpoint', marked)
