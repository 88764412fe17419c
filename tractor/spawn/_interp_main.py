"""The inside of a sub-interpreter that runs an actor, and its line to the parent."""

from __future__ import annotations

import gc
import importlib
import logging
import marshal
import re
import socket
import sys
import threading
import time
import traceback
from functools import partial
from typing import Any, Final

import _interpreters  # type: ignore[import-not-found]
import trio

from .. import log as _log
from ..discovery._addr import wrap_address
from ..ipc._chan import Channel
from ..ipc._link import LinkStream
from ..runtime import _state
from ..runtime._boot import async_main
from ..runtime._runtime import Actor
from ..trionics.patches import apply_all

log = _log.get_logger()

CHILDREN: Final = 2.0  # seconds for interpreters that this one has started
WORKERS: Final = 0.5  # seconds for idle worker threads to notice that they are
IDLE_WORKER: Final = 0.05  # seconds after which they do

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


class Control:
    """
    The line to the parent.

    Args:
        fd: This end of it, owned from now on.
    """

    def __init__(self, fd: int) -> None:
        self._line = socket.socket(fileno=fd)

    def tell(self, *message: Any) -> None:
        """Send a message to the parent; one that nobody reads any more is dropped."""
        try:
            self._line.send(marshal.dumps(message))
        except OSError as err:
            log.runtime('the parent takes no more messages: %s', err)

    def close(self) -> None:
        """Close the line; nothing is told afterwards."""
        self._line.close()


class Run:
    """
    One actor in this interpreter.

    Args:
        order: As `_subint` has put it together.
        control: Its line to the parent.

    Attributes:
        status: The exit status that a process would have had.
    """

    def __init__(self, order: dict[str, Any], control: Control) -> None:
        self.status = 1
        self._order = order
        self._control = control
        self._link = socket.socket(fileno=order['link'])
        self._undestroyable = False

    def actor(self) -> None:
        """Be the actor to its end."""
        try:
            self._serve()
        except SystemExit as err:
            code = err.code
            self.status = code if isinstance(code, int) else int(code is not None)
            if isinstance(code, str):
                sys.stderr.write(f'{code}\n')
        except BaseException:
            traceback.print_exc()

    def _serve(self) -> None:
        order = self._order
        name, uuid = order['uid']
        _state.adopt_interpreter(_interpreters.get_current()[0])
        apply_all()
        actor = Actor(name=name, uuid=uuid, loglevel=order['loglevel'])
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
            if not by_any and not _REFUSED_HERE.search(text):
                log.runtime('importing failed, the parent will be told: %r', err)
                return False
            missing = (name for name in actor.enable_modules if name not in sys.modules)
            served = next(missing, '__main__')
            self._control.tell('refused', served, _importer(err) or text, by_any)
            return True
        except Exception as err:
            log.runtime('importing failed, the parent will be told: %r', err)
        return False

    def settle(self) -> None:
        """Wait for what has to be gone before the interpreter can be destroyed."""
        interps = sys.modules.get('tractor.spawn._interp')
        if interps is not None:
            self._undestroyable = not interps.end_all(CHILDREN)
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
        self._link.close()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        logging.shutdown()
        gc.unfreeze()  # else the end of the interpreter would free nothing
        self._control.tell('ended', self.status, self._undestroyable)
        self._control.close()


def _importer(err: ImportError) -> str | None:
    """Return the package whose import of its own extension failed."""
    found = None
    trace = err.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_globals.get('__name__', '')
        if not name.startswith('importlib.'):
            found = name.partition('.')[0]
        trace = trace.tb_next
    return found


def main(order: dict[str, Any]) -> None:
    """Run the actor that `order` describes, then leave nothing behind."""
    control = Control(order['control'])
    run = Run(order, control)
    cache: Any = importlib.import_module('trio._core._thread_cache')
    cache.IDLE_TIMEOUT = IDLE_WORKER  # an interpreter with threads is not destroyed
    run.actor()
    run.settle()
    run.close()
