"""
A context as text: its state in a word, its outcome on a line, all of it in a block.

Reads a `Context` and never changes it; nothing here looks anything up or can raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ._exceptions import ContextCancelled, RemoteActorError
from ._protocol.dialog import Stage

if TYPE_CHECKING:
    from ._context import Context

_BY_STAGE: Final = {
    Stage.CALLED: 'pre-started',
    Stage.ACKED: 'syncing-to-child',
    Stage.OPEN: 'started',
    Stage.STOPPED: 'started',
}


def state(ctx: Context) -> str:
    """Return one word or two for where it stands."""
    error = ctx._remote_error
    if isinstance(error, ContextCancelled):
        if ctx._is_own_ack(error):
            return 'self-cancelled'
        peer = ctx.chan.aid
        by_peer = peer is not None and error._shown('canceller') == peer.uid
        return 'peer-cancelled' if by_peer else 'actor-cancelled'
    if ctx.maybe_error is not None:
        return 'errored'
    if ctx._final_result_is_set() or ctx._return_msg is not None:
        return 'result-returned'
    if ctx._stream is not None:
        return 'streaming-finished' if ctx._stream.closed else 'streaming'
    if ctx._portal is None:
        return 'started' if ctx._started_called else 'pre-started'
    return _BY_STAGE.get(ctx._dialog.stage, '??unknown??')


def outcome(ctx: Context) -> str:
    """Return the known outcome on one line."""
    error = ctx.maybe_error
    if error is None:
        return repr(ctx._result)
    if isinstance(error, RemoteActorError):
        return error.reprol()
    return f'{type(error).__name__}({error})'


def block(ctx: Context) -> str:
    """Return several lines for a report."""
    peer = ctx.chan.aid
    return (
        f'<Context(\n'
        f' |_side: {ctx.side}\n'
        f' |_state: {ctx.repr_state}\n'
        f' |_cid: {ctx.cid}\n'
        f' |_peer: {peer.reprol() if peer is not None else "<unknown>"}\n'
        f' |_rpc: {ctx.repr_rpc}\n'
        f' |_outcome: {ctx.repr_outcome()}\n'
        f')>'
    )
