"""
A child that cannot outlive its parent.

Losing the parent's channel ends a child's runtime, but only if its event loop still
runs.  For a child that is stuck, in C code even, the kernel has to act: the child holds
the read end of a pipe whose write end only the parent has, and asks for `SIGHUP` when
it hangs up (`O_ASYNC`, fcntl(2)).  The handler is libc's `alarm()` itself: called with
the signal's number, 1, it lets `SIGALRM` end the process one second later, without any
help of the interpreter.  A child that is alive gives itself `ORDERLY` seconds instead
(`parent_is_lost()`).

Where `SIGHUP` is taken, by the program or by nohup(1), `SIGTRAP` does the same, and its
number makes that five seconds.

`PR_SET_PDEATHSIG` would not do: it follows the thread that forked, and trio forks from
worker threads, which end when idle.  A program that handles both signals, or `SIGALRM`,
by itself keeps its handlers, and loses only the kernel's help.  Linux only.

A program that forks by itself would hand the parent's ends on to a process that may
outlive it, so they are closed there (`keep_from_forks()`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import weakref
from collections.abc import Iterator
from typing import Any, Final

ENV: Final = '_TRACTOR_LIFELINE'  # number of the descriptor; nothing secret
ORDERLY: Final = 5  # seconds that an orphan may take to end in order

# Their numbers, 1 and 5, are the seconds that are left.
_CANDIDATES: Final = (signal.SIGHUP, signal.SIGTRAP) if os.name == 'posix' else ()

_tied: signal.Signals | None = None  # what the kernel sends
_orphan = False
_kept: Final[set[int]] = set()
_kept_sockets: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_watches_forks = False


@contextlib.contextmanager
def open_lifeline() -> Iterator[tuple[int, int]]:
    """
    Give the two ends of a new lifeline, `(child's, parent's)`.

    The child's end is closed here when the block ends; the parent's lasts, and whoever
    asked calls `cut()` when the child is gone.
    """
    read, write = os.pipe()
    keep_from_forks(write)
    try:
        yield read, write
    except BaseException:
        cut(write)
        raise
    finally:
        os.close(read)


def cut(write: int) -> None:
    """Close the parent's end; in a process forked from the parent it is closed."""
    if write in _kept:
        forget(write)
        os.close(write)


def keep_from_forks(*fds: int) -> None:
    """Close these descriptors in every process that is forked from this one."""
    global _watches_forks
    if not _watches_forks and hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=_close_kept)
        _watches_forks = True
    _kept.update(fds)


def forget(*fds: int) -> None:
    """Leave these descriptors alone again; they are about to be closed."""
    _kept.difference_update(fds)


def keep_socket_from_forks(sock: Any) -> None:
    """Do the same for a socket, for as long as it exists."""
    _kept_sockets.add(sock)


def _close_kept() -> None:
    """In a forked process: hold nothing that tells a child that its parent lives."""
    fds = [*_kept, *(sock.detach() for sock in _kept_sockets)]
    _kept.clear()
    _kept_sockets.clear()
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def take_from_env() -> int | None:
    """Return the descriptor that the parent passed, and hide it from our children."""
    text = os.environ.pop(ENV, None)
    if text is None:
        return None
    fd = int(text)
    os.set_inheritable(fd, False)
    return fd


def tie(fd: int) -> None:
    """Have the kernel end this process soon after the other end of `fd` closes."""
    global _tied
    if sys.platform != 'linux':
        return
    import ctypes  # trio has loaded it already
    import fcntl

    free = [s for s in _CANDIDATES if signal.getsignal(s) is signal.SIG_DFL]
    if not free:
        return
    _tied = free[0]
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(_tied, ctypes.cast(libc.alarm, ctypes.c_void_p))
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETSIG, _tied)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if _has_hung_up(fd):  # before anybody asked to be told
        signal.alarm(_tied)


def _has_hung_up(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    return bool(poll.poll(0))


def is_orphan() -> bool:
    """Whether this process noticed that its parent is gone."""
    return _orphan


def parent_is_lost() -> None:
    """This process noticed it by itself: let it end in order, within `ORDERLY`."""
    global _orphan
    _orphan = True
    if _tied is not None:
        signal.signal(_tied, signal.SIG_IGN)  # it may come late
        signal.alarm(ORDERLY)
