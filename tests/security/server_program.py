"""
A root actor as a program, for the tests to attack from outside.

Run as `server_program.py TRANSPORT HANDSHAKE_TIMEOUT`, it prints its address as one
JSON line, serves this module, and ends with its standard input.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
from pathlib import Path

import trio

import tractor
from tractor.ipc import _server


async def ping(value: int) -> int:
    """Answer a call."""
    return value


async def footprint() -> dict[str, int]:
    """Return what this process holds, in numbers."""
    gc.collect()
    # What is freed but kept for the next allocation depends on timing; it is no leak.
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(read_statm().split()[1])
    server = tractor.current_actor().ipc_server
    assert server is not None
    return {
        'memory': pages * os.sysconf('SC_PAGE_SIZE'),
        'descriptors': len(os.listdir('/proc/self/fd')),
        'threads': threading.active_count(),
        'peers': server.len_peers(),
        'strangers': len(_server._strangers),
    }


def read_statm() -> str:
    """Return the kernel's account of this process's memory."""
    return Path('/proc/self/statm').read_text()


async def main(transport: str) -> None:
    """Serve until nobody holds the other end of our standard input."""
    from tractor._testing.addr import get_rando_addr

    async with tractor.open_root_actor(
        name='server',
        registry_addrs=[get_rando_addr(transport)],
        enable_transports=[transport],
        enable_modules=['server_program'],
    ) as actor:
        print(json.dumps(actor.accept_addrs[0]), flush=True)
        await trio.lowlevel.wait_readable(sys.stdin.fileno())


if __name__ == '__main__':
    _server._PRE_REG_HANDSHAKE_TIMEOUT = float(sys.argv[2])
    trio.run(main, sys.argv[1])
