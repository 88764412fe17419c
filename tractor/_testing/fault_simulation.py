"""
Breaking a connection on purpose.

Owns the ways in which a test cuts the transport below a live stream, as a crashed
network or peer would, behind the back of the runtime.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tractor._streaming import MsgStream

_METHODS: Final = ('socket_close', 'socket_eof')


async def break_ipc(
    stream: MsgStream,
    method: str | None = None,
    pre_close: bool = False,
    def_method: str = 'socket_close',
) -> None:
    """
    Cut the transport under `stream` without telling the runtime.

    Returns once this side has closed its socket; what the peer notices is not awaited.

    Args:
        stream: Any stream over the channel to cut; the whole channel is affected.
        method: `'socket_close'` closes the raw socket, `'socket_eof'` ends only its
            sending half; `None` means `def_method`.
        pre_close: First end the stream in an orderly way with `stream.aclose()`.
        def_method: The method when none is named.
    Raises:
        RuntimeError: Unknown method; nothing was touched.
    """
    method = method or def_method
    if method not in _METHODS:
        raise RuntimeError(
            f'cannot break IPC by {method!r}; known methods: {", ".join(_METHODS)}'
        )

    channel = stream._ctx.chan
    peer = '<unknown>' if channel.aid is None else channel.aid.reprol()
    sys.stdout.write(
        '#################################\n'
        f'Simulating broken IPC: {method}, stream closed first: {pre_close}\n'
        f'peer: {peer}\n'
        '#################################\n'
    )
    if pre_close:
        await stream.aclose()

    transport = channel.transport
    if transport is None:
        raise RuntimeError(f'cannot break IPC with {peer}: it has no transport left')
    if method == 'socket_close':
        await transport.stream.aclose()
    else:
        await transport.stream.send_eof()
