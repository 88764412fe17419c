"""
One sub-interpreter that runs one actor: its start, its end, and what if it has none.

A thread of the parent drives it: creates the interpreter, runs `_interp_main` in it,
destroys it.  `Interp` is the handle, with what a process handle has: `poll()`,
`wait()`, `terminate()`, `kill()`.  Nothing can interrupt a running interpreter from
outside, so the last two send an order over the control line, a socketpair, to a thread
inside of it, which breaks into its Python code.  Code that is stuck in C cannot be
reached: such an interpreter is *quarantined*.  It is cut off, everybody who waits for
it is woken, and it is counted until its thread comes back after all.

An interpreter that has threads in others, which it has started itself, cannot be
destroyed before them.  One that ends and leaves such behind is quarantined as well,
and its thread stays with it until they are gone.  Since everything here has to work
while the rest of an interpreter is torn apart, its control thread leaves every `Driver`
alone.

The thread is a daemon, since the process has to be able to end without it.  While an
interpreter lives, `os.fork()` is refused: the child would crash (cpython#139759).
Needs CPython 3.14 and its private `_interpreters`, since the public
`concurrent.interpreters` has no way to allow daemon threads, which trio needs.
"""

from __future__ import annotations

import _thread
import atexit
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

import _interpreters  # type: ignore[import-not-found]
import trio

from .._exceptions import RuntimeFailure
from ..log import get_logger

log = get_logger()

Gil = Literal['own', 'shared']

BREAK: Final = b'b'  # order: break into whatever Python code runs
REPORT: Final = b'r'  # order: give up, tell the stack and close what can be closed
MAX_LEFT: Final = 2000  # characters of each stack, where there may be several
MAX_MESSAGE: Final = 64 * 1024  # bytes on the control line

BOOT_TIME: Final = 15.0  # seconds until there is somebody inside who takes orders
BREAK_TIME: Final = 1.5  # seconds to get out, from when the order has arrived
DEAF_TIME: Final = 5.0  # seconds for it to arrive; longer is a GIL that C code holds
CLOSE_TIME: Final = 10.0  # seconds to be finalized; many at once take a while
LEFT_TIME: Final = 2.0  # seconds for those that an interpreter left behind
REPORT_TIME: Final = 0.5  # seconds for the inside to tell where it is stuck

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
_STUCK: Final = (
    'it is stuck in C code until that returns, or swallows all that is raised in it'
)
_STARTING: Final = f'it was still starting, {BOOT_TIME:g} s after that had begun'
_CLOSING: Final = 'it has ended, but its interpreter cannot be finalized'
_ABOVE: Final = 'it has ended, but actors below it cannot be stopped'
_NO_STACK: Final = {
    _STUCK: 'not told: the code it is stuck in does not let go of the GIL',
    _STARTING: 'not told: none of its own code runs yet',
    _CLOSING: 'not told: an exit handler, or a thread that has to be joined',
}

# How an interpreter is asked about those that it has started, and waits for them.
_SETTLE: Final = """\
import sys
interps = sys.modules.get('tractor.spawn._interp')
if interps is not None:
    interps.{call}
"""

_creating: Final = threading.Lock()  # one at a time, 7 ms each
_live: Final[set[Interp]] = set()
_quarantined: Final[set[Interp]] = set()
_guards: Final[list[Any]] = []
_fork_exec: Final = subprocess._fork_exec  # type: ignore[attr-defined]


class Driver(threading.Thread):
    """A thread that no control thread breaks into: another interpreter is at stake."""

    def __init__(self, target: Callable[[], None], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)


class Interp:
    """
    The handle of one interpreter, for the parent that started it.

    Args:
        name: The actor's.
        order: What `_interp_main` is told; anything that Python can write as a literal.
        gil: Whether it has a GIL of its own.
        link: The parent's end of the link; cut when the interpreter is given up.
        childs: The child's end, which the interpreter owns from its start.

    Attributes:
        pid: That of this process.
        id: Number of the interpreter, never used twice; `None` before it exists.
        refusal: `(module served, module that refused, for any interpreter)` if a
            module cannot be loaded in it.
        stuck: `(stack of its thread, why it was not stopped)`, if it was given up.
    """

    def __init__(
        self,
        name: str,
        order: dict[str, Any],
        gil: Gil,
        link: socket.socket,
        childs: socket.socket,
    ) -> None:
        self.pid = os.getpid()
        self.id: int | None = None
        self.name = name
        self.gil = gil
        self.refusal: tuple[str, str, bool] | None = None
        self.stuck: tuple[str, str] | None = None
        self._order = order
        self._link = link
        self._line, self._childs_line = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET
        )
        # The inside closes both; what it could not close is found by its inode.
        self._given = [childs, self._childs_line]
        self._inodes = [_inode(sock.fileno()) for sock in self._given]
        self._status: int | None = None
        self._told: int | None = None
        self._told_stack: str | None = None
        # Where those are stuck that it leaves behind; `None`: it has not told yet.
        self._left: bytes | None = None
        self._exists = False
        # When what happened; the inside has the same clock.
        self._born = time.monotonic()
        self._ready: float | None = None
        self._first_order: float | None = None
        self._arrived: float | None = None
        self._closed: float | None = None
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._done = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = Driver(self._drive, f'tractor-subint {name}')

    def __repr__(self) -> str:
        state = 'running' if self._status is None else f'status {self._status}'
        return f'<Interp {self.id} of {self.name!r}, {self.gil} GIL, {state}>'

    def start(self) -> None:
        """Create the interpreter and run the actor, in a thread of its own."""
        _guard_process()
        order = self._order
        order['link'], order['control'] = (s.fileno() for s in self._given)
        self._given_fds = [order['link'], order['control']]
        _live.add(self)
        try:
            self._thread.start()
        except Exception:  # the system has no more threads
            _live.discard(self)
            self._over.set()
            for sock in (*self._given, self._line):
                sock.close()
            raise

    def poll(self) -> int | None:
        """Return the exit status as a process would have it; `None` while it runs."""
        return self._status

    async def wait(self) -> int | None:
        """Wait until the interpreter is destroyed, or given up."""
        await self._done.wait()
        if self.stuck is None:
            self._thread.join()
        return self._status

    def terminate(self) -> None:
        """Break into its Python code until it is out; returns at once."""
        if self._first_order is None:
            self._first_order = time.monotonic()
        self._send(BREAK)

    def kill(self) -> None:
        """Give it up unless it gets out in time; returns at once."""
        self.terminate()
        Driver(self._give_up, f'tractor-subint-stop {self.name}').start()

    def join(self, seconds: float) -> bool:
        """Block until it is destroyed; return whether it was in time."""
        end = time.monotonic() + seconds
        if self._over.wait(max(seconds, 0)):
            # What is left to do may wait for a lock that a torn thread has kept.
            self._thread.join(max(end - time.monotonic(), 0))
        return self._over.is_set() and not self._exists

    # -- its thread -------------------------------------------------------------------

    def _drive(self) -> None:
        status = 1
        for sock in self._given:  # the inside has them from here on
            sock.detach()
        try:
            self.id = _create(self.gil)
            self._exists = True
            status = self._run(self.id)
        except _interpreters.InterpreterError as err:
            log.error('cannot run an interpreter for actor %r: %s', self.name, err)
        finally:
            self._end(status)

    def _run(self, number: int) -> int:
        own = self.gil == 'own'
        source = _BOOT.format(
            order=self._order, hide=_HIDE if own else '', show=_SHOW if own else ''
        )
        crash = _interpreters.exec(number, source)
        self._read_line()
        if crash is None and self._told is not None:
            return self._told
        if crash is not None and sys.stderr is not None:
            sys.stderr.write(f'{crash.errdisplay}\n')
        return 1

    def _settle(self) -> None:
        """See to it that no interpreter is left that this one has started."""
        left = self._left
        if left is None:  # it broke off before it could tell
            call = f'check_all({LEFT_TIME})'
            crash = _interpreters.exec(self.id, _SETTLE.format(call=call))
            left = b'' if crash is None else str(crash.errdisplay).encode()
        if not left:
            return
        self._cut_off(_ABOVE, left.decode(errors='ignore'))
        crash = _interpreters.exec(self.id, _SETTLE.format(call='outlast_all()'))
        if crash is not None:
            raise _interpreters.InterpreterError('another one below it is there')

    def _end(self, status: int) -> None:
        try:
            if self._exists:
                self._settle()
                _interpreters.destroy(self.id)
                self._exists = False
        except _interpreters.InterpreterError as err:
            log.error('%r cannot be destroyed: %s', self, err)
            self._cut_off(_CLOSING, str(err))
        finally:
            for fd, inode in zip(self._given_fds, self._inodes, strict=True):
                _close_if_still(fd, inode)
            with self._lock:
                if self._exists:
                    _quarantined.add(self)
                else:
                    _quarantined.discard(self)
                _live.discard(self)
                self._line.close()
                self._over.set()
                if self.stuck is None:
                    self._finish(status)

    def _finish(self, status: int) -> None:
        self._status = status
        try:
            self._token.run_sync_soon(self._done.set)
        except (trio.RunFinishedError, OSError):  # or it has been torn apart
            log.runtime('%r outlived the trio run that had started it', self)

    # -- the control line -------------------------------------------------------------

    def _send(self, order: bytes) -> None:
        with self._lock:
            if self._line.fileno() == -1:
                return
            try:
                self._line.send(order, socket.MSG_DONTWAIT)
            except OSError as err:  # its end is closed: it is on its way out
                log.runtime('%r takes no more orders: %s', self, err)

    def _read_line(self) -> None:
        """Take what the inside has told so far."""
        while True:
            with self._lock:
                try:
                    data = self._line.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
                except BlockingIOError:  # nothing more for now
                    return
                except OSError:  # this end is closed, too
                    data = b''
            if not data:
                self._closed = self._closed or time.monotonic()
                return
            try:
                self._take(*marshal.loads(data))
            except (EOFError, TypeError, ValueError) as err:
                log.error('%r told what cannot be understood: %r', self, err)

    def _take(self, what: str, *told: Any) -> None:
        match what:
            case 'ready':
                (self._ready,) = told
            case 'ended':
                self._told, self._left = told
            case 'refused':
                served, refused, by_any = told
                self.refusal = served, refused, by_any
            case 'breaking':
                (self._arrived,) = told
            case 'stuck':
                self._told_stack = told[0].decode(errors='ignore')

    # -- giving it up -----------------------------------------------------------------

    def _give_up(self) -> None:
        """Wait for the orders to help; if they do not, cut the interpreter off."""
        try:
            self._read_line()
            while not self._over.is_set():
                left = self._deadline() - time.monotonic()
                if left <= 0:
                    self.ask_where()
                    return
                self._hear(left)
        finally:  # somebody waits for it, whatever has failed here
            self._cut_off(self._why(), self.where())

    def _deadline(self) -> float:
        """Return until when it may still get out by itself."""
        ordered = self._first_order or 0
        if self._closed is not None:
            return max(self._closed, ordered) + CLOSE_TIME
        if self._arrived is not None:
            return self._arrived + BREAK_TIME
        if self._ready is not None:
            return max(self._ready, ordered) + DEAF_TIME
        return self._born + BOOT_TIME

    def ask_where(self) -> None:
        """Have it tell its stack and close what it can; blocks for a short time."""
        self._read_line()
        if self._ready is None or self._closed is not None:
            return
        self._send(REPORT)
        end = time.monotonic() + REPORT_TIME
        while self._told_stack is None and not self._over.is_set():
            left = end - time.monotonic()
            if left <= 0:
                return
            self._hear(left)

    def where(self) -> str:
        """Return where it is stuck, as far as that was told."""
        if self.stuck is not None:
            return self.stuck[0]
        return self._told_stack or _NO_STACK[self._why()]

    def _why(self) -> str:
        if self._closed is not None:
            return _CLOSING
        return _STUCK if self._ready is not None else _STARTING

    def _cut_off(self, why: str, stack: str) -> None:
        """Wake who waits for it, unless that was done."""
        with self._lock:
            if self._over.is_set() or self.stuck is not None:
                return
            self.stuck = stack, why
            _quarantined.add(self)
            try:
                self._link.shutdown(socket.SHUT_RDWR)
            except OSError as err:
                log.runtime('the link to %r is closed already: %s', self, err)
            self._finish(-signal.SIGKILL)

    def _hear(self, seconds: float) -> None:
        """Wait until something is told, or it is over, or the time has passed."""
        with self._lock:
            fd = self._line.fileno()
        if self._closed is not None or fd == -1:
            self._over.wait(seconds)
            return
        line = select.poll()  # `select()` has a limit of 1024 descriptors
        line.register(fd, select.POLLIN)
        line.poll(seconds * 1000)
        self._read_line()


def _create(gil: Gil) -> int:
    """Return a new interpreter in which trio can run."""
    if gil == 'own':
        config = _interpreters.new_config('isolated', allow_daemon_threads=True)
    else:
        config = _interpreters.new_config('legacy', allow_fork=False)
    with _creating:
        interp: int = _interpreters.create(config, reqrefs=False)
    return interp


def _inode(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _close_if_still(fd: int, inode: tuple[int, int]) -> None:
    """Close a descriptor unless its number is somebody else's by now."""
    try:
        if _inode(fd) == inode:
            os.close(fd)
    except OSError:  # closed, as it should be
        return


def quarantined() -> list[str]:
    """Return the names of actors whose interpreters were given up and still run."""
    return sorted(interp.name for interp in list(_quarantined))


def is_main_interpreter() -> bool:
    """Tell whether this code runs in the interpreter that the process began with."""
    return bool(_interpreters.get_current()[0] == _interpreters.get_main()[0])


def _leave_with_report() -> None:
    """
    End the process although a thread is stuck; finalization could wait for it.

    The last of what finalization calls before it joins threads.  Does the rest of what
    a program can rely on: threads are joined, and exit handlers run, once.
    """
    if not _quarantined:
        return
    main = threading.main_thread()
    main._os_thread_handle._set_done()  # type: ignore[attr-defined]  # some join it
    _thread._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if not _quarantined:  # meanwhile it came back
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the other end is closed, or this one
            if stream is not None:
                stream.flush()
    names = ', '.join(map(repr, quarantined()))
    with suppress(OSError):
        os.write(2, f'tractor: actors that could not be stopped: {names}\n'.encode())
    os._exit(1)


def end_all(seconds: float) -> dict[str, str]:
    """
    End the interpreters that this one has started; blocks.

    Args:
        seconds: For all of them together; those that are left get some more to tell.
    Returns:
        Where those are stuck that are not destroyed, by their names.
    """
    end = time.monotonic() + seconds
    for interp in list(_live):
        interp.terminate()
    left = [i for i in list(_live) if not i.join(end - time.monotonic())]
    for interp in left:
        interp.ask_where()
    # It closes their sockets, too, which may have helped.
    left += [interp for interp in list(_quarantined) if interp not in left]
    return {i.name: i.where() for i in left if not i.join(0)}


def check_all(seconds: float) -> None:
    """
    End the interpreters that this one has started; blocks.

    Raises:
        RuntimeFailure: Some are left; the text tells where they are stuck.
    """
    if left := end_all(seconds):
        raise RuntimeFailure(tell_left(left))


def tell_left(left: dict[str, str]) -> str:
    """Return the names and the stacks of actors, as `end_all()` has them."""
    parts = (f'actor {name!r}:\n{where[-MAX_LEFT:]}' for name, where in left.items())
    return '\n'.join(parts)


def outlast_all() -> None:
    """Wait, for ever if need be, until all that this one has started are destroyed."""
    for interp in {*_live, *_quarantined}:
        while not interp.join(threading.TIMEOUT_MAX):
            if interp._over.is_set():
                raise RuntimeFailure(f'{interp!r} is there for good')


def _guard_process() -> None:
    """From now on it forks only, and ends as usual only, without an interpreter."""
    if _guards:
        return
    _guards.append(_audit)
    sys.addaudithook(_audit)
    # Forks as well, for a function to run in the new process, and tells nobody.
    subprocess._fork_exec = _guarded_fork_exec  # type: ignore[attr-defined]
    if is_main_interpreter():
        # What is first here is called last.
        threading._threading_atexits.insert(0, _leave_with_report)  # type: ignore[attr-defined]


def _alive() -> list[str]:
    """Return the names of actors whose interpreters are there; threads change them."""
    there = {*list(_live), *list(_quarantined)}
    return sorted(repr(interp.name) for interp in there)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in ('os.fork', 'os.forkpty'):
        _refuse_fork(f'{event}()')


def _guarded_fork_exec(*args: Any) -> int:
    if args[-1] is not None:
        _refuse_fork('subprocess with a `preexec_fn`')
    pid: int = _fork_exec(*args)
    return pid


def _refuse_fork(what: str) -> None:
    if names := ', '.join(_alive()):
        raise RuntimeFailure(
            f'{what} is refused while actors live in sub-interpreters ({names}): the '
            'forked process would crash; use subprocess without a `preexec_fn`, or the '
            'process backends'
        )
