"""
`python -m tractor._child`: the process of an actor of the `trio` backend.

Started by `tractor.spawn._trio.trio_proc()` only.
"""

from __future__ import annotations

import gc
import signal

gc.disable()  # until everything is imported: nothing of it will ever be garbage
# A Ctrl-C waits until there is a runtime that ends in order.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

import ast  # noqa: E402
import atexit  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from contextlib import suppress  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from .runtime._runtime import Actor  # noqa: E402
from .spawn import _lifeline  # noqa: E402
from .spawn._entry import _title, _trio_main  # noqa: E402
from .trionics.patches import apply_all  # noqa: E402


def _literal(text: str) -> Any:
    """Read a Python literal; anything else is taken as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _read_args(args: list[str]) -> dict[str, Any]:
    """Read `--name value` pairs and the flag `--asyncio`."""
    found: dict[str, Any] = {'infect_asyncio': False, 'loglevel': None}
    rest = iter(args)
    for arg in rest:
        if arg == '--asyncio':
            found['infect_asyncio'] = True
        elif arg in ('--uid', '--parent_addr', '--loglevel'):
            found[arg[2:]] = next(rest, '')
        else:
            raise SystemExit(f'unknown argument {arg!r}: only tractor starts this')
    return found


def main(argv: list[str]) -> None:
    """Be the actor that the arguments describe."""
    args = _read_args(argv)
    fd = _lifeline.take_from_env()
    if fd is not None:
        _lifeline.tie(fd)
    name, uuid = _literal(args['uid'])
    apply_all()
    actor = Actor(name=str(name), uuid=str(uuid), loglevel=args['loglevel'])
    _title(actor)
    _trio_main(
        actor,
        parent_addr=_literal(args['parent_addr']),
        infect_asyncio=args['infect_asyncio'],
    )


def leave() -> NoReturn:
    """
    End this process as `multiprocessing` ends its own: all that was promised, no more.

    Threads are joined, exit handlers run, output is flushed.  What is left out, taking
    apart every module and object, takes longer than the whole orderly end of an actor.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its other end is closed, or it is
            if stream is not None:
                stream.flush()
    os._exit(0)


if __name__ == '__main__':
    # A script's directory is what `sys.path[0]` is for; ours is the parent's cwd.
    main(sys.argv[1:])
    leave()
