"""A portal over a channel that no server handles, whose opening is broken off."""

from __future__ import annotations

import signal

import pytest
import trio

import tractor
from tractor.ipc._chan import _connect_chan
from tractor.runtime import _portal
from tractor.runtime._portal import open_portal


async def where_it_listens() -> list[object]:
    return list(tractor.current_actor().accept_addr)


@pytest.mark.parametrize('own_nursery', [True, False])
@pytest.mark.parametrize('shield', [True, False])
def test_a_cancelled_opening_leaves_nobody_who_reads(run_tree, shield, own_nursery):
    """`nursery.start()` waits for a task that it did not hand over, shielded or not."""

    async def body(an):
        portal = await an.start_actor('child', enable_modules=[__name__])
        addr = tuple(await portal.run(where_it_listens))
        async with _connect_chan(addr) as chan, trio.open_nursery() as tn:
            await chan._do_handshake(aid=tractor.current_actor().aid)
            with trio.CancelScope() as scope:
                scope.cancel()
                nursery = None if own_nursery else tn
                async with open_portal(chan, nursery, shield=shield):
                    raise AssertionError('it was opened')
            assert scope.cancelled_caught
            assert not tn.child_tasks
        await an.cancel()

    run_tree(body)


@pytest.mark.parametrize('own_nursery', [True, False])
def test_an_interrupted_opening_leaves_nobody_who_reads(
    run_tree, monkeypatch, own_nursery
):
    """Ctrl-C as the reading begins, so that `start()` may raise and hand over."""
    real = _portal.process_messages
    left = []

    async def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        await real(*args)

    async def body(an):
        portal = await an.start_actor('child', enable_modules=[__name__])
        addr = tuple(await portal.run(where_it_listens))
        monkeypatch.setattr(
            _portal, 'process_messages', trio.lowlevel.enable_ki_protection(interrupted)
        )
        async with _connect_chan(addr) as chan, trio.open_nursery() as tn:
            await chan._do_handshake(aid=tractor.current_actor().aid)
            try:
                async with open_portal(chan, None if own_nursery else tn, shield=True):
                    await trio.sleep_forever()
            finally:
                left.append('block')

    with pytest.raises(KeyboardInterrupt):
        run_tree(body)
    assert left == ['block']
