"""
A program that finds an actor of another program by name and calls it.

    python client_program.py [HOST PORT]

What to see: started without arguments it also starts `registry_program.py`.  It joins
that program's registry, asks for `clock`, calls a function there, and asks for a name
that nobody has, which gives `None` and no error.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trio
from registry_program import DEFAULT_REGISTRY, registry_address, tell_time

import tractor


@contextmanager
def registry_program() -> Generator[None]:
    """Run the other program for the length of a block."""
    program = Path(__file__).with_name('registry_program.py')
    command = [sys.executable, str(program), *map(str, DEFAULT_REGISTRY)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        print(process.stdout.readline().strip(), flush=True)
        yield
        process.stdin.close()
        print(process.stdout.read().strip())


async def main() -> None:
    """Call the clock of the other program."""
    async with tractor.open_root_actor(registry_addrs=[registry_address()]) as actor:
        print(f'client: I am the registrar: {actor.is_registrar}')
        async with tractor.find_actor('clock') as clock:
            print(f'client: the clock says {await clock.run(tell_time, zone="UTC")}')
        async with tractor.find_actor('sundial') as sundial:
            print(f'client: the sundial is {sundial}')


if __name__ == '__main__':
    if len(sys.argv) > 2:
        trio.run(main)
    else:
        with registry_program():
            trio.run(main)
