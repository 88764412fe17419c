"""
Start one actor, call a function in it, and take the result.

What to see: two process ids.  The function runs in another process, yet the call looks
like any other `await`, and the nursery does not end before the actor's process has.
"""

from __future__ import annotations

import os

import trio

import tractor


async def greet(who: str) -> str:
    """Say hello from whichever process this runs in."""
    me = tractor.current_actor()
    return f'hello {who}, I am {me.name!r} in process {os.getpid()}'


async def main() -> None:
    """Ask one actor for a greeting."""
    print(f'the root runs in process {os.getpid()}')
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('greeter', enable_modules=[__name__])
        print(await portal.run(greet, who='world'))
        await portal.cancel_actor()
    print('the greeter is gone')


if __name__ == '__main__':
    trio.run(main)
