"""
The inside of a sub-interpreter that runs an actor: its main, and how it is stopped.

`Control` is a thread parked on the control line.  On the order to break in it raises
`Stopped` in every thread of this interpreter, again and again, since code may swallow
it, until the actor has ended.  The first time it leaves the actor some time to unwind
in order.  From then on the actor's thread is left alone, like those that drive other
interpreters at any time: what they have begun has to be done whole.  What sits in a
blocking C call is not reached: then the control thread tells the stack, and closes
every socket of this interpreter, which wakes many such calls.
"""

from __future__ import annotations

import _thread
import ctypes
import gc
import importlib
import linecache
import logging
import marshal
import os
import re
import select
import socket
import ssl
import stat
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, Final

import _interpreters  # type: ignore[import-not-found]
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

from .. import log as _log
from ..discovery._addr import wrap_address
from ..ipc._chan import Channel
from ..ipc._link import LinkStream
from ..runtime import _state
from ..runtime._boot import async_main
from ..runtime._runtime import Actor
from ..trionics._beg import strip
from ..trionics.patches import apply_all

log = _log.get_logger()

UNWIND: Final = 150  # milliseconds that the first `Stopped` has before there are more
REPEAT: Final = 10  # milliseconds between those
POLL: Final = 0.0005  # seconds between two looks at whether the control thread is over
SLICE: Final = 0.02  # seconds that a `time.sleep()` cannot be broken into
CHILDREN: Final = 2.0  # seconds for interpreters that this one has started
BROKEN: Final = 1.0  # the same, if this one is broken into, and so has less itself
WORKERS: Final = 0.5  # seconds for idle worker threads to notice that they are
IDLE_WORKER: Final = 0.05  # seconds after which they do
MAX_STACK: Final = 16 * 1024  # bytes of a stack that are told

# The processes that `multiprocessing` keeps for each interpreter that uses it.
_MP_HELPERS: Final = (
    ('multiprocessing.forkserver', '_forkserver'),
    ('multiprocessing.resource_tracker', '_resource_tracker'),
)

# How C extensions say that they cannot be loaded: in interpreters with their own GIL,
# and in any but the first one (CPython; numpy, Cython, PyO3).
_REFUSED_HERE: Final = re.compile(r'does not support loading in subinterpreters')
_REFUSED_ANYWHERE: Final = re.compile(
    r'more than once per process|Interpreter change detected|'
    r'do(es)? not (yet )?support subinterpreters',
    re.IGNORECASE,
)
_NAMED: Final = re.compile(r'module (\S+) does not support loading in subinterpreters')
_IMPORT: Final = re.compile(r'\s*(?:import|from)\s+(\w+)')

_nap: Final = time.sleep  # before it is cut into slices
_SOCKETS: Final = (socket.socket, ssl.SSLSocket)


class Stopped(BaseException):
    """Raised by the control thread wherever this interpreter's code is."""


class Control:
    """
    The thread that can stop this interpreter, and its line to the parent.

    It takes no lock that the threads it breaks into take, those of `threading` and of
    `logging` included: one that `Stopped` leaves locked stays so.

    Args:
        fd: This end of the control line, owned from now on.

    Attributes:
        broken: It was told to break in.
        wake: Wakes the trio loop, once there is one.
    """

    def __init__(self, fd: int) -> None:
        self.broken = False
        self._ident = 0
        self._over = True
        self._raises = False
        self._spares_actor = False
        self.wake: Callable[[], None] | None = None
        self._line = socket.socket(fileno=fd)
        self._disarmed = False
        self._actor_thread = _thread.get_ident()
        self._raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def start(self) -> None:
        """Start the thread."""
        self._over = False
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # there is none, and nobody need wait for it
            self._over = True
            raise

    def _run(self) -> None:
        self._ident = _thread.get_ident()
        self.tell('ready', time.monotonic())
        try:
            self._take_orders()
        finally:
            self._over = True

    def _take_orders(self) -> None:
        line = select.poll()  # `select()` has a limit of 1024 descriptors
        line.register(self._line, select.POLLIN)
        pause: float | None = None  # in milliseconds
        while True:
            if line.poll(pause):
                order = self._line.recv(16)
                if not order or self._disarmed:
                    return
                if order == b'r':
                    self._report()
                    pause = REPEAT
                else:
                    pause = UNWIND
            else:
                pause = REPEAT
            self._break_in()

    def guard(self, act: Callable[[], None], settle: Callable[[], None]) -> None:
        """
        Start the thread, run the actor, and settle what it leaves.

        `Stopped` ends the actor, not what comes then: at worst that begins again.
        """
        left = [self.start, act]
        while True:
            # It may arrive where the handler of another one just ends, hence two.
            try:
                self._pass_through(left)
                self._spare_actor()
                settle()
                return
            except Stopped:
                continue

    def _pass_through(self, stages: list[Callable[[], None]]) -> None:
        while True:
            try:
                while stages:
                    stages.pop(0)()
                return
            except Stopped:
                continue

    def _spare_actor(self) -> None:
        """Raise nothing more in the actor's thread; may itself be broken into."""
        self._spares_actor = True
        while self._raises:
            _nap(POLL)
        self._raise_in(ctypes.c_ulong(self._actor_thread), None)  # one on its way

    def disarm(self) -> None:
        """End the thread, and with it what it raises elsewhere."""
        self._disarmed = True
        self._line.shutdown(socket.SHUT_RD)
        while not self._over:
            _nap(POLL)

    def _break_in(self) -> None:
        if not self.broken:
            self.broken = True
            self.tell('breaking', time.monotonic())
            self._silence()
        self._raises = True
        for ident in self._victims():
            spared = self._spares_actor and ident == self._actor_thread
            if not (spared or self._disarmed):
                self._raise_in(ctypes.c_ulong(ident), ctypes.py_object(Stopped))
        self._raises = False
        if self.wake is not None:
            with suppress(OSError):  # there is no loop any more
                self.wake()

    def _silence(self) -> None:
        """What is torn apart from here on has nothing more to say."""
        # The functions for all this take locks.
        logging.Logger.isEnabledFor = _say_no  # type: ignore[assignment,method-assign]
        warnings._showwarnmsg = _say_nothing  # type: ignore[attr-defined]
        threading.excepthook = sys.unraisablehook = _say_nothing

    def _victims(self) -> list[int]:
        """Return the threads of this interpreter that may be broken into."""
        # Only the very first frame tells for sure, from the first moment on.
        driver = getattr(sys.modules.get('tractor.spawn._interp'), 'Driver', ())
        return [
            ident
            for ident, frame in sys._current_frames().items()
            if ident != self._ident and not isinstance(_thread_of(frame), driver)
        ]

    def _report(self) -> None:
        frame = sys._current_frames().get(self._actor_thread)
        try:
            lines = [] if frame is None else traceback.format_stack(frame)
        except Exception as err:  # it reads sources, with anybody's loader
            lines = [repr(err)]
        stack = ''.join(lines).encode(errors='backslashreplace')
        self.tell('stuck', stack[-MAX_STACK:])
        # Not what wakes the trio loop: it may get to wait there once more.
        close_sockets(lambda sock: sock is self._line or is_pair(sock))

    def tell(self, *message: Any) -> None:
        """Send a message to the parent; one that nobody reads any more is dropped."""
        with suppress(OSError):  # its end is closed
            self._line.send(marshal.dumps(message))

    def close(self) -> None:
        """Close the line; nothing is told afterwards."""
        self._line.close()


def _say_nothing(unraisable: object) -> None:
    """Drop what finalizers of abandoned frames complain about."""


def _say_no(logger: logging.Logger, level: int) -> bool:
    """Enable no record."""
    return False


def _thread_of(frame: FrameType) -> object:
    """Return the `Thread` that began with the first of a thread's frames."""
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_locals.get('self')


def is_pair(sock: socket.socket) -> bool:
    """Tell whether a socket is one end of a pair, which nobody else can reach."""
    try:
        return sock.family == socket.AF_UNIX and not (
            sock.getsockname() or sock.getpeername()
        )
    except OSError:  # it is not connected, or closed
        return False


def close_sockets(keeps: Callable[[socket.socket], bool]) -> None:
    """Shut down and close the sockets of this interpreter, and remove their files."""
    # By their type: a weak proxy would rather have itself asked.
    sockets = [found for found in gc.get_objects() if type(found) in _SOCKETS]
    for found in sockets:
        if keeps(found):
            continue
        with suppress(OSError):  # not connected, or closed, or its file is gone
            name = found.getsockname()
            listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            named = found.family == socket.AF_UNIX and name and listens
            if named and stat.S_ISSOCK(os.stat(name).st_mode):
                os.unlink(name)
            found.shutdown(socket.SHUT_RDWR)
        found.close()


class Run:
    """
    One actor in this interpreter.

    Args:
        order: As `_subint` has put it together.
        control: The thread that can stop it.

    Attributes:
        status: The exit status that a process would have had.
    """

    def __init__(self, order: dict[str, Any], control: Control) -> None:
        self.status = 1
        self._order = order
        self._control = control
        self._link = socket.socket(fileno=order['link'])
        self._left: bytes | None = None

    def actor(self) -> None:
        """Be the actor to its end."""
        try:
            self._serve()
        except Stopped:
            raise
        except SystemExit as err:
            code = err.code
            self.status = code if isinstance(code, int) else int(code is not None)
            if isinstance(code, str):
                sys.stderr.write(f'{code}\n')
        except BaseException as err:
            if self._control.broken:  # trio's own words for what `Stopped` did to it
                raise Stopped from None
            if isinstance(strip(err), KeyboardInterrupt):  # as in a process
                self.status = 0
                log.cancel('interrupted')
                return
            traceback.print_exc()

    def _serve(self) -> None:
        order = self._order
        name, uuid = order['uid']
        _state.adopt_interpreter(_interpreters.get_current()[0])
        apply_all()
        actor = _OnceLoaded(name=name, uuid=uuid, loglevel=order['loglevel'])
        actor.enable_modules = order['modules']
        actor._parent_main_data = order['main']
        if self._is_refused(actor):
            return
        _state._current_actor = actor
        if actor.loglevel is not None:
            _log.get_console_log(actor.loglevel, name='tractor')
        gc.freeze()
        gc.enable()
        try:
            trio.run(partial(self._main, actor))
            self.status = 0
        finally:
            _state._last_actor_terminated = actor
            _state._current_actor = None

    async def _main(self, actor: Actor) -> None:
        # Not with the token: its loop takes the lock that it takes, too, and the task
        # that listens to it may itself have been broken into.
        self._control.wake = GLOBAL_RUN_CONTEXT.runner.io_manager.force_wakeup
        parent = wrap_address(tuple(self._order['parent_addr']))
        chan = Channel(LinkStream(self._link, raddr=parent))
        await async_main(actor, parent_addr=chan)

    def _is_refused(self, actor: Actor) -> bool:
        """
        Load what is served; tell the parent if that cannot be loaded here.

        Any other error is left to the actor's own attempt, when the parent listens.
        """
        try:
            actor.load_modules()
        except ImportError as err:
            text = str(err)
            by_any = bool(_REFUSED_ANYWHERE.search(text))
            if by_any or _REFUSED_HERE.search(text):
                served = _served(err, actor)
                self._control.tell('refused', served, _refusing(err), by_any)
                return True
            log.runtime('importing failed, the parent will be told: %r', err)
        except Exception as err:
            log.runtime('importing failed, the parent will be told: %r', err)
        return False

    def settle(self) -> None:
        """Wait for what has to be gone before the interpreter can be destroyed."""
        interps = sys.modules.get('tractor.spawn._interp')
        if interps is not None:
            limit = BROKEN if self._control.broken else CHILDREN
            left = interps.tell_left(interps.end_all(limit))
            self._left = left.encode(errors='backslashreplace')[:MAX_STACK]
        else:
            self._left = b''
        for module, helper in _MP_HELPERS:
            # A process would leave them to init; here they would stay as zombies.
            found = getattr(sys.modules.get(module), helper, None)
            if found is not None:
                found._stop()
        threading._shutdown()  # type: ignore[attr-defined]
        end = time.monotonic() + WORKERS
        for thread in threading.enumerate():
            if thread.name.startswith('Trio thread'):
                thread.join(max(end - time.monotonic(), 0))

    def close(self) -> None:
        """Leave nothing open, and tell the parent how it went."""
        try:
            if self._control.broken:
                self.status = -15  # as a process that SIGTERM ended
                close_sockets(lambda sock: sock is self._control._line)
            self._link.close()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # its other end is closed, or it is
                    if stream is not None:
                        stream.flush()
            logging.shutdown()
        finally:
            gc.unfreeze()  # else the end of the interpreter would free nothing
            self._control.tell('ended', self.status, self._left)
            self._control.close()


class _OnceLoaded(Actor):
    """Does not import twice what has failed: a module may have done half its work."""

    _load_error: Exception | None = None

    def load_modules(self) -> None:
        """Import what this actor serves, or raise what that had raised."""
        if self._load_error is not None:
            raise self._load_error
        try:
            super().load_modules()
        except Exception as err:
            self._load_error = err
            raise


def _served(err: ImportError, actor: Actor) -> str:
    """Return which of the modules that it loads an actor has failed to load."""
    fixup: Any = sys.modules.get('tractor.spawn._mp_fixup_main')
    frames = [frame for frame, _ in traceback.walk_tb(err.__traceback__)]
    if fixup and any(frame.f_code is fixup.replay.__code__ for frame in frames):
        return '__main__'
    missing = (name for name in actor.enable_modules if name not in sys.modules)
    return next(missing, '__main__')


def _refusing(err: ImportError) -> str:
    """Return the package with the extension that cannot be loaded, or the text."""
    named = _NAMED.search(str(err))
    name = named[1] if named else err.name or _imported(err)
    return name.partition('.')[0] if name else str(err)


def _imported(err: ImportError) -> str | None:
    """Return what the innermost code was importing, or else to what it belongs."""
    found = None
    for frame, number in traceback.walk_tb(err.__traceback__):
        name = frame.f_globals.get('__name__', '').partition('.')[0]
        if name in ('importlib', 'runpy', 'tractor'):
            continue
        line = linecache.getline(frame.f_code.co_filename, number)
        absolute = _IMPORT.match(line)
        found = absolute[1] if absolute else name
    return found


def _sliced(sleep: Callable[[float], None]) -> Callable[[Any], None]:
    """Return `time.sleep()` in slices, between which it can be stopped."""

    def sliced_sleep(seconds: Any, /) -> None:
        if not isinstance(seconds, int | float) or not (
            SLICE < seconds <= threading.TIMEOUT_MAX
        ):
            sleep(seconds)  # also for what is no number of seconds, and raises
            return
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            sleep(min(left, SLICE))

    return sliced_sleep


def main(order: dict[str, Any]) -> None:
    """Run the actor that `order` describes, then leave nothing behind."""
    control = Control(order['control'])
    run = Run(order, control)
    time.sleep = _sliced(time.sleep)
    cache: Any = importlib.import_module('trio._core._thread_cache')
    cache.IDLE_TIMEOUT = IDLE_WORKER  # an interpreter with threads is not destroyed
    try:
        control.guard(run.actor, run.settle)
    finally:
        control.disarm()
        run.close()
