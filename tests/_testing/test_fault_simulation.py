"""How a connection is broken on purpose."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from tractor._testing import break_ipc


class Aid:
    """Just enough identity for the banner."""

    def reprol(self):
        return 'peer@1'


class Stream:
    """A message stream over one end of an in-memory stream pair."""

    def __init__(self, raw):
        self.closed = False
        self._raw = raw
        transport = SimpleNamespace(stream=raw) if raw else None
        channel = SimpleNamespace(aid=Aid(), transport=transport)
        self._ctx = SimpleNamespace(chan=channel)

    async def aclose(self):
        # Raises if the socket below is gone already.
        await self._raw.send_all(b'stop')
        self.closed = True
        await trio.lowlevel.checkpoint()


def run(method=None, **options):
    """Break one end of a stream pair; return the stream and what the ends then see."""

    async def main():
        raw, peer = trio.testing.memory_stream_pair()
        stream = Stream(raw)
        with trio.fail_after(5):
            await break_ipc(stream, method, **options)
            received = [data async for data in peer]
        assert received == ([b'stop'] if stream.closed else [])
        try:
            await peer.send_all(b'x')
        except trio.BrokenResourceError:
            return stream, 'closed'
        return stream, 'half closed'

    return trio.run(main)


def test_default_is_to_close_the_socket(capsys):
    """Both directions end, the stream above is not told, and a banner says so."""
    stream, ends = run()
    assert ends == 'closed'
    assert not stream.closed
    assert 'Simulating broken IPC: socket_close' in capsys.readouterr().out


def test_half_close_leaves_the_receiving_side_open():
    """`'socket_eof'` only ends what we send."""
    assert run('socket_eof')[1] == 'half closed'


def test_default_method_can_be_chosen():
    """`def_method` counts when no method is named."""
    assert run(def_method='socket_eof')[1] == 'half closed'


def test_stream_can_be_closed_first():
    """`pre_close` ends the stream above before the socket."""
    assert run(pre_close=True)[0].closed


def test_unknown_method_touches_nothing():
    """The stream is still open after the refusal."""
    stream = Stream(None)

    async def main():
        await break_ipc(stream, 'axe', pre_close=True)

    with pytest.raises(RuntimeError, match="cannot break IPC by 'axe'"):
        trio.run(main)
    assert not stream.closed


def test_channel_without_transport_is_refused():
    """There is nothing to break."""

    async def main():
        await break_ipc(Stream(None))

    with pytest.raises(RuntimeError, match='peer@1: it has no transport'):
        trio.run(main)
