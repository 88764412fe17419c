"""
What an actor's loop does before it sleeps.

It writes what outboxes hold back.  Then, if something was sent that may be answered, or
a frame is incomplete, it looks for more to come for a short time, as the kernel does
with `net.core.busy_poll` and with the halt polling of virtual machines: a core that has
gone to sleep takes its time to wake up, often longer than the peer needs to answer.
While it looks, the core is offered to whoever else wants it, and a peer that does not
answer in time is looked for less and less (`_protocol/polling`).

An `IdleHook` is an instrument of the trio run, called from when there is something to
do until there was nothing for `UNUSED_PASSES`: a run that only listens does not pay
for it.  What it cannot write, since a socket is full and an instrument cannot wait, it
gives to a system task.
"""

from __future__ import annotations

import os
import select
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

from tractor.runtime import _state

if TYPE_CHECKING:
    from ._outbox import Outbox

# A held-back frame waits at most so many passes of a loop that is never idle.
MAX_HELD_PASSES: Final = 8

# Adding an instrument to the loop costs as much as some twenty passes with it.
UNUSED_PASSES: Final = 256

# Whoever waits so long for its turn again is in the way of others, of the peer perhaps.
CONTENDED: Final = 20e-6  # seconds

# Looking at more peers at once takes longer than waking up.
MAX_EXPECTED: Final = 16

_hook: trio.lowlevel.RunVar[IdleHook | None] = trio.lowlevel.RunVar(
    'tractor_idle_hook', None
)


class IdleHook(trio.abc.Instrument):
    """
    Writes what outboxes hold back, and looks for answers, when the loop is idle.

    `install()` offers one to the running trio loop; without it nothing is held back and
    nothing looked for.

    Raises:
        ValueError: `TRACTOR_BUSY_POLL` is not valid.
    """

    def __init__(self) -> None:
        window = _state.env_busy_poll() / 1e6  # seconds that one look may take
        # Readable as soon as anything happens, a signal or a thread's call included.
        epoll = getattr(GLOBAL_RUN_CONTEXT.runner.io_manager, '_epoll', None)
        self._loop_fd: int = -1 if epoll is None else epoll.fileno()
        # Without a way to offer the core to others, others would pay for it.
        can_look = epoll is not None and hasattr(os, 'sched_yield')
        self._window = window if can_look else 0.0
        self._is_called = False
        self._unused = 0  # passes since there was something to do
        self._token = trio.lowlevel.current_trio_token()
        self._held: set[Outbox] = set()
        self._passes = 0
        self._expected: dict[Outbox, float] = {}  # until when, once it is looked for

    @classmethod
    def install(cls) -> IdleHook:
        """Return the instrument of this trio run; the first call makes it."""
        hook = _hook.get()
        if hook is None:
            hook = cls()
            _hook.set(hook)
        return hook

    @classmethod
    def remove(cls) -> None:
        """Write what is held back and take the instrument out of this run."""
        hook = _hook.get()
        if hook is not None:
            _hook.set(None)
            if hook._is_called:
                trio.lowlevel.remove_instrument(hook)
            hook.flush()

    @staticmethod
    def current() -> IdleHook | None:
        """Return the instrument of this trio run, if one is installed."""
        return _hook.get()

    def hold(self, outbox: Outbox) -> None:
        """Have an outbox flushed when the loop is idle."""
        if not self._is_called:
            self._be_called()
        self._held.add(outbox)

    def look_for(self, outbox: Outbox) -> None:
        """When the loop is idle, look for what the outbox's peer may send."""
        if self._window:
            if not self._is_called:
                self._be_called()
            self._expected[outbox] = 0.0

    def _be_called(self) -> None:
        trio.lowlevel.add_instrument(self)
        self._is_called = True
        self._unused = 0

    def before_io_wait(self, timeout: float) -> None:
        """Flush if nothing can run, or if the loop has not been idle for too long."""
        if not (self._held or self._expected):
            self._unused += 1
            if self._unused >= UNUSED_PASSES:
                trio.lowlevel.remove_instrument(self)
                self._is_called = False
            return
        self._unused = 0
        try:
            if self._held:
                self._passes += 1
                self._flush_if_idle(timeout)
            if self._expected and timeout > 0:
                self._look(timeout)
        except BaseException:
            # A signal's handler, for one.  The loop drops an instrument that raises.
            self._is_called = False
            raise

    def _flush_if_idle(self, timeout: float) -> None:
        # A clock that jumps, and `wait_all_tasks_blocked()`, give 0 to an idle loop.
        if (
            timeout > 0
            or self._passes >= MAX_HELD_PASSES
            or not trio.lowlevel.current_statistics().tasks_runnable
        ):
            self.flush()

    def flush(self) -> None:
        """Write what is held back, as far as the sockets take it; never raises."""
        self._passes = 0
        while self._held:
            outbox = self._held.pop()
            if not outbox.flush():
                # An instrument may not start a task, and the loop is about to sleep.
                self._token.run_sync_soon(outbox.start_finishing)

    def _look(self, timeout: float) -> None:
        """Look until something happens, or the time is over."""
        expected, self._expected = self._expected, {}
        poll = select.poll()
        poll.register(self._loop_fd, select.POLLIN)
        awaited = {}
        now = last = perf_counter()
        for outbox, end in expected.items():
            outbox.polling.unknown()  # until there is a verdict
            # Who has not read everything has nothing to answer.
            if (fd := outbox.fileno()) != -1 and not outbox.is_queued:
                poll.register(fd, select.POLLIN)
                awaited[fd] = outbox, end or now + self._window
                last = max(last, awaited[fd][1])
        if not awaited or len(awaited) > MAX_EXPECTED:
            return
        came = poll.poll(0)
        is_late = not came
        if is_late:
            came = self._poll_until(poll, min(last, now + timeout))
            now = perf_counter()
        for fd, _ in came:
            if fd in awaited and is_late:
                awaited[fd][0].polling.hit()
            awaited.pop(fd, None)
        for outbox, end in awaited.values():
            if came and end > now:  # something else did, and it still may
                self._expected[outbox] = end
            else:
                outbox.polling.missed()

    @staticmethod
    def _poll_until(poll: select.poll, end: float) -> list[tuple[int, int]]:
        """Return what came in time; nothing also if it would be at others' expense."""
        now = perf_counter()
        while True:
            os.sched_yield()
            before = now
            came = poll.poll(0)
            now = perf_counter()
            if now >= end or now - before > CONTENDED:
                return []
            if came:
                return came
