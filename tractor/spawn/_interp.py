"""
One sub-interpreter that runs one actor: its start and its end.

A thread of the parent drives it: creates the interpreter, runs `_interp_main` in it,
destroys it.  `Interp` is the handle, with what a process handle has.  What the inside
has to say at its end comes over the control line, a socketpair.

The thread is a daemon, since the process has to be able to end without it.  While an
interpreter lives, `os.fork()` is refused: the child would crash (cpython#139759).
Needs CPython 3.14 and its private `_interpreters`, since the public
`concurrent.interpreters` has no way to allow daemon threads, which trio needs.
"""

from __future__ import annotations

import marshal
import os
import socket
import sys
import threading
import time
from typing import Any, Final, Literal

import _interpreters  # type: ignore[import-not-found]
import trio

from .._exceptions import RuntimeFailure
from ..log import get_logger

log = get_logger()

Gil = Literal['own', 'shared']

MAX_MESSAGE: Final = 64 * 1024  # bytes on the control line

# The order is written into it: an object that one interpreter shares with another has
# to be freed by the one, while the other runs.
_BOOT: Final = """\
import gc, sys
gc.disable()
order = {order!r}
sys.path[:], sys.argv[:] = order['path'], order['argv']
{hide}
from tractor.spawn import _interp_main
{show}
_interp_main.main(order)
"""
# Before CPython refuses a C extension it runs the first steps of it in the main
# interpreter: not beside a main thread that uses it.
_HIDE: Final = "sys.modules['msgspec'] = None"
_SHOW: Final = "del sys.modules['msgspec']"

_creating: Final = threading.Lock()  # one at a time, 7 ms each
_live: Final[set[Interp]] = set()
_guard_state: Final[set[str]] = set()


class Interp:
    """
    The handle of one interpreter, for the parent that started it.

    Args:
        name: The actor's.
        order: What `_interp_main` is told; anything that Python can write as a literal.
        gil: Whether it has a GIL of its own.
        childs: The child's end, which the interpreter owns from its start.

    Attributes:
        pid: That of this process.
        id: Number of the interpreter, never used twice; `None` before it exists.
        refusal: `(module served, module that refused, for any interpreter)` if a
            module cannot be loaded in it.
    """

    def __init__(
        self,
        name: str,
        order: dict[str, Any],
        gil: Gil,
        childs: socket.socket,
    ) -> None:
        self.pid = os.getpid()
        self.id: int | None = None
        self.name = name
        self.gil = gil
        self.refusal: tuple[str, str, bool] | None = None
        self._order = order
        self._line, self._childs_line = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        # The inside closes both; what it could not close is found by its inode.
        self._given = [childs, self._childs_line]
        self._inodes = [os.fstat(s.fileno()).st_ino for s in self._given]
        self._status: int | None = None
        self._told: int | None = None
        self._undestroyable = False
        self._lock = threading.RLock()
        self._done = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(
            target=self._drive, name=f'tractor-subint {name}', daemon=True
        )

    def __repr__(self) -> str:
        state = 'running' if self._status is None else f'status {self._status}'
        return f'<Interp {self.id} of {self.name!r}, {self.gil} GIL, {state}>'

    def start(self) -> None:
        """Create the interpreter and run the actor, in a thread of its own."""
        _refuse_forks()
        order = self._order
        order['link'], order['control'] = (s.detach() for s in self._given)
        self._given_fds = [order['link'], order['control']]
        _live.add(self)
        self._thread.start()

    def poll(self) -> int | None:
        """Return the exit status as a process would have it; `None` while it runs."""
        return self._status

    async def wait(self) -> int | None:
        """Wait until the interpreter is destroyed."""
        await self._done.wait()
        self._thread.join()
        return self._status

    def join(self, seconds: float) -> bool:
        """Block until it is destroyed; return whether it was in time."""
        self._thread.join(seconds)
        return not self._thread.is_alive() and not self._undestroyable

    # -- its thread -------------------------------------------------------------------

    def _drive(self) -> None:
        status = 1
        try:
            self.id = _create(self.gil)
            own = self.gil == 'own'
            source = _BOOT.format(
                order=self._order, hide=_HIDE if own else '', show=_SHOW if own else ''
            )
            crash = _interpreters.exec(self.id, source)
            if crash is not None:
                sys.stderr.write(f'{crash.errdisplay}\n')
            self._read_line()
            if crash is None and self._told is not None:
                status = self._told
        except _interpreters.InterpreterError as err:
            log.error('cannot run an interpreter for actor %r: %s', self.name, err)
        finally:
            self._end(status)

    def _end(self, status: int) -> None:
        if self.id is not None and not self._undestroyable:
            try:
                _interpreters.destroy(self.id)
            except _interpreters.InterpreterError as err:
                log.error('%r cannot be destroyed: %s', self, err)
                self._undestroyable = True
        for fd, inode in zip(self._given_fds, self._inodes, strict=True):
            _close_if_still(fd, inode)
        with self._lock:
            _live.discard(self)
            self._line.close()
            self._finish(status)

    def _finish(self, status: int) -> None:
        self._status = status
        try:
            self._token.run_sync_soon(self._done.set)
        except trio.RunFinishedError:
            log.runtime('%r outlived the trio run that had started it', self)

    # -- the control line -------------------------------------------------------------

    def _read_line(self) -> None:
        """Take what the inside has told so far."""
        with self._lock:
            while self._line.fileno() != -1:
                try:
                    data = self._line.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
                except OSError:  # nothing more for now
                    return
                if not data:
                    return
                self._take(*marshal.loads(data))

    def _take(self, what: str, *told: Any) -> None:
        match what:
            case 'ended':
                self._told, self._undestroyable = told
            case 'refused':
                served, refused, by_any = told
                self.refusal = served, refused, by_any


def _create(gil: Gil) -> int:
    """Return a new interpreter in which trio can run."""
    if gil == 'own':
        config = _interpreters.new_config('isolated', allow_daemon_threads=True)
    else:
        config = _interpreters.new_config('legacy', allow_fork=False)
    with _creating:
        interp: int = _interpreters.create(config, reqrefs=False)
    return interp


def _close_if_still(fd: int, inode: int) -> None:
    """Close a descriptor unless its number is somebody else's by now."""
    try:
        if os.fstat(fd).st_ino == inode:
            os.close(fd)
    except OSError:  # closed, as it should be
        return


def end_all(seconds: float) -> bool:
    """
    Wait for the interpreters that this one has started; blocks.

    Args:
        seconds: For all of them together.
    Returns:
        Whether all are destroyed.
    """
    end = time.monotonic() + seconds
    left = [i for i in list(_live) if not i.join(max(end - time.monotonic(), 0))]
    return not left


def _refuse_forks() -> None:
    """From now on `os.fork()` is an error while an interpreter lives."""
    if 'fork' not in _guard_state:
        _guard_state.add('fork')
        sys.addaudithook(_audit)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in ('os.fork', 'os.forkpty') and _live:
        names = ', '.join(sorted(repr(interp.name) for interp in _live))
        raise RuntimeFailure(
            f'{event}() is refused while actors live in sub-interpreters ({names}): '
            'the forked process would crash; use subprocess, or the process backends'
        )
