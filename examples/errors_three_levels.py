"""
An error crosses two process boundaries and can be read at the top.

What to see: the root catches one plain exception.  It names the type that was raised
two levels down, the actor that raised it, and every actor it came through; and when
the nursery is left all three processes have ended.
"""

from __future__ import annotations

import trio

import tractor


async def leaf() -> None:
    """Fail."""
    raise ZeroDivisionError('the third level divided by zero')


async def middle() -> None:
    """Let an actor of its own fail."""
    async with tractor.open_nursery() as an:
        portal = await an.start_actor('leaf', enable_modules=[__name__])
        await portal.run(leaf)


async def main() -> None:
    """Let the middle fail and look at what arrives."""
    try:
        async with tractor.open_nursery() as an:
            portal = await an.start_actor('middle', enable_modules=[__name__])
            await portal.run(middle)
    except tractor.RemoteActorError as err:
        print(f'raised: {err.src_type_str}')
        print(f'by: {err.src_uid[0]}')
        print('came through:', ' -> '.join(name for name, _ in err.relay_path))
        print('last lines of the remote traceback:')
        lines = [line for line in err.tb_str.splitlines() if 'third level' in line]
        print('\n'.join(lines[-2:]))


if __name__ == '__main__':
    trio.run(main)
