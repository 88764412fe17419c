"""
A supervisor that starts a worker again when its process dies.

What to see: the worker kills its own process twice.  The death is no silence: the
nursery that owns the worker raises an error that names it, so that a restart policy is
an ordinary `try`/`except` around an ordinary nursery.
"""

from __future__ import annotations

import os
import signal

import trio

import tractor
from tractor._exceptions import ActorDied

ATTEMPTS = 4


async def fragile(attempt: int) -> str:
    """Die without a word, as a crash in C code would; survive the third attempt."""
    if attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if attempt == 2:
        os._exit(7)
    return f'done in attempt {attempt}'


async def supervise() -> str:
    """Run the worker until it returns."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with tractor.open_nursery() as an:
                portal = await an.start_actor('worker', enable_modules=[__name__])
                result: str = await portal.run(fragile, attempt=attempt)
                await portal.cancel_actor()
                return result
        except* (ActorDied, tractor.TransportClosed) as deaths:
            for death in deaths.exceptions:
                print(f'attempt {attempt}: {type(death).__name__}: {death}')
    raise RuntimeError(f'the worker died {ATTEMPTS} times')


async def main() -> None:
    """Keep one runtime for all attempts."""
    async with tractor.open_root_actor():
        print(await supervise())


if __name__ == '__main__':
    trio.run(main)
