"""
The outgoing bytes of one socket.

What is to be written stands in one queue, in order, and whoever writes starts at its
head, so a frame is never torn, whoever gives up in the middle.  In the common case the
queue is empty: the frame is written by one non-blocking system call, and no scheduler
pass is taken.  When the socket is full, senders queue up; the first of them waits for
it and writes all that is queued in one call.  A cancelled sender takes its frame back
unless a part of it is out; then the rest stays, and a system task sees it through if no
other sender does.

A frame may be held back, to go out in one call with the next or, by an `IdleHook`, when
the loop has nothing else to do.  A write that fails with nobody to tell is told to the
next sender.  The hook also learns what was written and may be answered soon.

The socket is used by its file descriptor, which is fetched again after every wait:
another task may have closed it, and the number may be somebody else's.  Errors are
those of a `trio.SocketStream`.  Filled by `_transport`, looked after by `_idle`.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from errno import EBADF, EPIPE
from itertools import islice
from typing import Final

import trio
from trio.lowlevel import enable_ki_protection, wait_writable

from tractor._protocol.framing import PREFIX_SIZE
from tractor._protocol.polling import Polling
from tractor.ipc._idle import IdleHook

MAX_KEPT_BUFFER: Final = 64 * 1024  # bytes

_IOV_MAX: Final = 1024
# A few small frames are copied into one: that is cheaper than a gathered write.
_FEW: Final = 4
_SMALL: Final = 1024  # bytes of the first

# What trio says; told apart since they mean different things to a message loop.
CLOSED_BY_TASK: Final = 'another task closed this fd'
CLOSED_BEFORE: Final = 'this socket was already closed'

StreamError = trio.BrokenResourceError | trio.ClosedResourceError


def open_fd(sock: trio.socket.SocketType, why_closed: str) -> int:
    """Return the file descriptor; raise `trio.ClosedResourceError` if there is none."""
    fd = sock.fileno()
    if fd == -1:
        raise trio.ClosedResourceError(why_closed)
    return fd


def translated(err: OSError, sock: trio.socket.SocketType) -> StreamError:
    """Return what a `trio.SocketStream` raises for a failed system call."""
    if err.errno == EBADF:
        return trio.ClosedResourceError(CLOSED_BEFORE)
    if err.errno == EPIPE and sock.did_shutdown_SHUT_WR:
        return trio.ClosedResourceError("can't send data after sending EOF")
    return trio.BrokenResourceError(f'socket connection broken: {err}')


class Queued:
    """A frame on its way: what is left of it, and how far it is."""

    __slots__ = ('done', 'left', 'started')

    def __init__(self, frame: bytes | bytearray, written: int = 0) -> None:
        self.left = memoryview(frame)[written:]
        self.started = written > 0
        self.done = False


class Outbox:
    """
    The queue of one socket.

    Attributes:
        buffer: A sender puts its whole frame here, prefix included, then calls `post()`
            or `hold()` without a checkpoint in between.
        expects: Something may come soon, and is to be looked for.  Who reads from the
            socket resets it.
        polling: When that pays.
    """

    __slots__ = (
        '__weakref__',
        '_broken',
        '_finishing',
        '_held',
        '_lock',
        '_queue',
        '_sock',
        '_waiting',
        'buffer',
        'expects',
        'polling',
    )

    def __init__(self, sock: trio.socket.SocketType, lock: trio.StrictFIFOLock) -> None:
        self.buffer = bytearray(PREFIX_SIZE)
        self.expects = False
        self.polling = Polling()
        self._sock = sock
        self._lock = lock  # held by who waits for the socket
        self._held = b''  # written before `buffer`, behind the queue
        self._queue: deque[Queued] = deque()
        self._waiting = 0  # senders in line for the lock
        self._finishing = False  # a system task is
        self._broken: OSError | None = None

    @enable_ki_protection
    def post(self) -> Queued | None:
        """Write the frame in `buffer`; return what is left, to be waited for."""
        own = frame = self.buffer
        held = self._held
        if held:
            self._held = b''
            if self._queue:
                self._queue.append(Queued(held))
                held = b''
            else:
                frame = bytearray(held) + own
        if self._queue:
            queued = self._enqueue(frame)
            if not self._waiting:
                self._write()
            return None if queued.done else queued
        if (fd := self._sock.fileno()) == -1 or self._broken is not None:
            fd = self._fd(CLOSED_BEFORE)  # which raises
        try:
            written = os.write(fd, frame)
        except BlockingIOError:
            written = 0
        except OSError as err:
            raise self._failed(err) from err
        if written < len(held):
            # It is another task's, which this frame's sender cannot take back.
            self._queue.append(Queued(held, written))
            return self._enqueue(own)
        written -= len(held)
        if written < len(own):
            return self._enqueue(own, written)
        if written > MAX_KEPT_BUFFER:
            self.buffer = bytearray(PREFIX_SIZE)
        self.expect()
        return None

    def expect(self) -> None:
        """Something may come soon: have it looked for, if that pays."""
        polling = self.polling
        polling.left -= 1
        if polling.left <= 0 and not self.expects and (hook := IdleHook.current()):
            hook.look_for(self)

    def hold(self, idle: IdleHook) -> None:
        """Keep the frame in `buffer` for the next write, or for an idle loop."""
        self._held += self.buffer
        idle.hold(self)

    def fileno(self) -> int:
        """Return the socket's file descriptor; -1 if it is closed."""
        return self._sock.fileno()

    @property
    def is_queued(self) -> bool:
        """Whether something waits for the socket to take it."""
        return bool(self._queue)

    def _enqueue(self, frame: bytes | bytearray, written: int = 0) -> Queued:
        if frame is self.buffer:
            if len(frame) > MAX_KEPT_BUFFER:
                self.buffer = bytearray(PREFIX_SIZE)
            else:
                frame = bytes(frame)
        queued = Queued(frame, written)
        self._queue.append(queued)
        return queued

    @enable_ki_protection
    def _write(self, why_closed: str = CLOSED_BEFORE) -> bool:
        """Write from the head of the queue; return whether the socket took it all."""
        queue = self._queue
        fd = self._fd(why_closed)
        while queue:
            try:
                if len(queue) == 1:
                    written = os.write(fd, queue[0].left)
                elif len(queue) <= _FEW and len(queue[0].left) <= _SMALL:
                    written = os.write(fd, b''.join([q.left for q in queue]))
                else:
                    written = os.writev(fd, [q.left for q in islice(queue, _IOV_MAX)])
            except BlockingIOError:
                return False
            except OSError as err:
                raise self._failed(err) from err
            while queue and written >= len(queue[0].left):
                queued = queue.popleft()
                written -= len(queued.left)
                queued.done = True
            if written:
                queue[0].left = queue[0].left[written:]
                queue[0].started = True
                return False
        return True

    @enable_ki_protection
    async def wait_written(self, queued: Queued) -> None:
        """
        Wait until a frame is out, writing whatever stands before and behind it.

        If cancelled the frame is sent either not at all or, later, completely.
        """
        self._waiting += 1
        try:
            async with self._lock:
                while not queued.done and not self._write(CLOSED_BY_TASK):
                    await wait_writable(open_fd(self._sock, CLOSED_BY_TASK))
        finally:
            self._waiting -= 1
            if not queued.done and not queued.started:
                with suppress(ValueError):  # a failure has emptied the queue
                    self._queue.remove(queued)
            self.start_finishing()

    async def wait_drained(self) -> None:
        """Wait until all who wait for the socket now have written."""
        while self._queue and (self._waiting or self._finishing):
            async with self._lock:  # it is served in order
                pass

    def start_finishing(self) -> None:
        """Have the queue written if there is one and no sender waits for it."""
        if self._queue and not self._waiting and not self._finishing:
            with suppress(RuntimeError):  # this trio run is over
                trio.lowlevel.spawn_system_task(self._finish)
                self._finishing = True

    async def _finish(self) -> None:
        try:
            # A failure has emptied the queue and is told to the next sender.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with self._lock:
                    while not self._write(CLOSED_BY_TASK):
                        await wait_writable(open_fd(self._sock, CLOSED_BY_TASK))
        finally:
            self._finishing = False

    def flush(self) -> bool:
        """
        Write what is queued, without waiting and without raising.

        Returns:
            `False` if something is left that nobody is about to write.
        """
        if self._held:
            self._queue.append(Queued(self._held))
            self._held = b''
        if not self._queue or self._waiting or self._finishing:
            return True
        try:
            return self._write()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._queue.clear()  # the next sender meets the same
            return True

    def close(self) -> None:
        """Flush, and forget the rest: the socket is about to be closed."""
        self.flush()
        self._queue.clear()

    def _fd(self, why_closed: str) -> int:
        if self._broken is not None:
            raise translated(self._broken, self._sock) from self._broken
        return open_fd(self._sock, why_closed)

    def _failed(self, err: OSError) -> StreamError:
        self._broken = err
        self._held = b''
        self._queue.clear()
        return translated(err, self._sock)
