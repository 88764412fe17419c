"""
A program that offers a service under a name; see `client_program.py`.

    python registry_program.py [HOST PORT]

What to see: it starts an actor called `clock`, says that it is ready, and serves other
programs until standard input ends (Ctrl-D).  They need to know only the registry's
address, not where the clock listens.
"""

from __future__ import annotations

import sys
import time

import trio

import tractor

DEFAULT_REGISTRY = ('127.0.0.1', 16160)


def registry_address() -> tuple[str, int]:
    """Return the address both programs agree on: the command line's or the default."""
    if len(sys.argv) > 2:
        return sys.argv[1], int(sys.argv[2])
    return DEFAULT_REGISTRY


async def tell_time(zone: str) -> str:
    """Return the time; runs in the actor `clock`."""
    return f'{time.strftime("%H:%M:%S", time.gmtime())} {zone}'


async def main() -> None:
    """Serve until standard input ends."""
    async with tractor.open_nursery(registry_addrs=[registry_address()]) as an:
        clock = await an.start_actor('clock', enable_modules=['registry_program'])
        async with tractor.wait_for_actor('clock'):
            print('registry: ready', flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        await clock.cancel_actor()
    print('registry: closed')


if __name__ == '__main__':
    trio.run(main)
