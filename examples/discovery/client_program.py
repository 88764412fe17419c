"""
A program that finds an actor of another program by name and calls it.

    python client_program.py [HOST PORT]

What to see: started without arguments it also starts `registry_program.py`, on a free
port.  It joins that program's registry, asks for `clock`, calls a function there, and
asks for a name that nobody has, which gives `None` and no error.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import trio
from registry_program import registry_address, tell_time

import tractor


@contextmanager
def registry_program() -> Generator[tuple[str, int]]:
    """Run the other program for the length of a block, on a port that is free now."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        host, port = free.getsockname()
    program = str(Path(__file__).with_name('registry_program.py'))
    command = [sys.executable, program, host, str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        print(process.stdout.readline().strip(), flush=True)
        yield host, port
        process.stdin.close()
        print(process.stdout.read().strip())


async def main(registry: tuple[str, int]) -> None:
    """Call the clock of the other program."""
    async with tractor.open_root_actor(registry_addrs=[registry]) as actor:
        print(f'client: I am the registrar: {actor.is_registrar}')
        for name in ('clock', 'sundial'):
            async with tractor.find_actor(name) as found:
                if found is None:
                    print(f'client: nobody is called {name}')
                    continue
                said = await found.run(tell_time, zone='UTC')
                print(f'client: the {name} says {said}')


if __name__ == '__main__':
    if len(sys.argv) > 2:
        trio.run(main, registry_address())
    else:
        with registry_program() as address:
            trio.run(main, address)
