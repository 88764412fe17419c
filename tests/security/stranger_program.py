"""
A process that wants to talk to an actor it has no business with.

Run as `stranger_program.py ADDRESS UID`: it becomes that user, unless UID is 0, tries
to connect and to shake hands, and prints as one JSON line which error that ended with.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import trio

# Loaded as long as this process may read the files.
import tractor.ipc._chan
import tractor.ipc._server
from tractor.msg.types import Aid


def become(uid: int) -> None:
    """Give up everything that makes this process another user's."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


async def knock(addr: Any) -> dict[str, str] | None:
    """Return the error of an attempt to become a peer, `None` if it worked."""
    try:
        chan = await tractor.ipc._chan.Channel.from_addr(addr)
        try:
            await chan._do_handshake(Aid(name='stranger', uuid='0', pid=os.getpid()))
            # The other side may take our introduction and then think better of it.
            await chan.recv()
        finally:
            await chan.aclose()
    except Exception as err:
        return {'type': type(err).__name__, 'text': str(err)}
    return None


if __name__ == '__main__':
    address, uid = json.loads(sys.argv[1]), int(sys.argv[2])
    if uid:
        become(uid)
    print(json.dumps(trio.run(knock, tuple(address))))
