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
        runner = GLOBAL_RUN_CONTEXT.runner
        # Readable as soon as anything happens, a signal or a thread's call included.
        epoll = getattr(runner.io_manager, '_epoll', None)
        self._loop_fd: int = -1 if epoll is None else epoll.fileno()
        # Others would pay for it where the core cannot be offered to them, and where
        # another loop is the host of this one.
        is_fair = hasattr(os, 'sched_yield') and not runner.is_guest
        self._window = window if is_fair and epoll is not None else 0.0
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
            hook._forget()
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
            outbox.expects = True

    def _be_called(self) -> None:
        trio.lowlevel.add_instrument(self)
        self._is_called = True

    def before_io_wait(self, timeout: float) -> None:
        """Flush and look if nothing can run, or flush if that takes too long."""
        try:
            if self._held:
                self._passes += 1
                self._flush_if_idle(timeout)
            elif not self._expected:
                self._unused += 1
                if self._unused >= UNUSED_PASSES:
                    trio.lowlevel.remove_instrument(self)
                    self._is_called = False
                return
            self._unused = 0
            if self._expected and timeout > 0:
                self._look(timeout)
        except BaseException as err:
            # A signal's handler, for one: out of here the loop would log it and go on.
            self._forget()
            self._token.run_sync_soon(_raise, err)

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
        if len(self._expected) > MAX_EXPECTED:
            self._forget()
            return
        poll = select.poll()
        poll.register(self._loop_fd, select.POLLIN)
        awaited = {}
        now = last = perf_counter()
        for outbox, end in self._expected.items():
            fd = outbox.fileno()
            # Who has not read everything has nothing to answer.
            if fd == -1 or outbox.is_queued or not outbox.expects:
                continue
            poll.register(fd, select.POLLIN)
            awaited[fd] = outbox, end or now + self._window
            last = max(last, awaited[fd][1])
        if not awaited:
            self._forget()
            return
        came: list[tuple[int, int]] | None = poll.poll(0)
        is_late = not came
        if is_late:
            came = self._poll_until(poll, min(last, now + timeout))
            now = perf_counter()
        for fd, _ in came or ():
            if fd in awaited:
                outbox, _ = awaited.pop(fd)
                if is_late:
                    outbox.polling.hit()
                else:
                    outbox.polling.unknown()
        # Those for whom there is time left: it was a deadline, or somebody else.
        still = {}
        for outbox, end in awaited.values():
            if came is not None and end > now:
                still[outbox] = end
            else:
                outbox.polling.missed()
        for outbox in self._expected.keys() - still.keys():
            outbox.expects = False
        self._expected = still

    def _forget(self) -> None:
        """Look for nothing more until it is asked for again."""
        for outbox in self._expected:
            outbox.expects = False
        self._expected.clear()

    @staticmethod
    def _poll_until(poll: select.poll, end: float) -> list[tuple[int, int]] | None:
        """Return what came in time; `None` if that would be at others' expense."""
        now = perf_counter()
        while True:
            os.sched_yield()
            before = now
            came = poll.poll(0)
            now = perf_counter()
            if now - before > CONTENDED:
                return None
            if came or now >= end:
                return came


def _raise(err: BaseException) -> None:
    raise err
