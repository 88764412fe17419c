"""
Sub-interpreters come, go and crash, and the process is as it was before.

Each proof warms up, takes the measure of the process, starts and ends actors on a GIL
of their own, one after the other or many at once, and takes it again.  Every count has
to be what it was; memory may grow by what CPython itself loses with each interpreter.
Where actors crash, it is every fifth one, and each crash has to be told as what it was.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._exceptions import ActorDied, RemoteActorError, TransportClosed
from tractor.spawn import _subint

if (reason := _subint.unavailable()) is not None:
    pytest.skip(reason, allow_module_level=True)

import _interpreters  # type: ignore[import-not-found]

from tractor.spawn import _interp

WARM_UP: Final = 5  # of each kind, before the first measure
CRASH_EACH: Final = 5
AT_ONCE: Final = 50
LEFT_STATUS: Final = 7  # with which an actor leaves

SECONDS_PER_ACTOR: Final = 30.0  # a hang, not a speed
JOIN_SECONDS: Final = 5.0

LOST_EACH: Final = 8 * 1024  # bytes that CPython loses with an interpreter, at most
# Bytes that the allocator keeps, in an arena for each thread that there was at once; an
# interpreter that is not freed is four times as much.
MEMORY_SLACK: Final = 4 * 2**20
PAGE: Final = os.sysconf('SC_PAGE_SIZE')

pytestmark = [
    pytest.mark.long_proof,
    pytest.mark.skipif(sys.platform != 'linux', reason='the process is read in /proc'),
]


# -- what an actor does ----------------------------------------------------------------


async def echo(value: int) -> int:
    """Answer a call."""
    return value


async def leave() -> None:
    """End the actor from inside of a call, as `sys.exit()` does."""
    raise SystemExit(LEFT_STATUS)


async def hang_up() -> None:
    """Break the link to the parent, which ends the actor."""
    channel: Any = tractor.current_actor()._parent_chan
    channel.transport.stream.socket.shutdown(2)
    await trio.sleep_forever()


async def spin(fd: int) -> None:
    """Say so on a descriptor, which actors of one process share; never come back."""
    os.write(fd, b'!')
    while True:
        pass


# -- how it ends -----------------------------------------------------------------------


class Gate:
    """Lets nobody through until all are there."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._open = trio.Event()

    async def arrive(self) -> None:
        """Wait for the others."""
        self._missing -= 1
        if not self._missing:
            self._open.set()
        await self._open.wait()


async def serve(an: tractor.ActorNursery, portal: tractor.Portal) -> None:
    """Have it end in order."""
    await portal.cancel_actor()


async def see_it_leave(an: tractor.ActorNursery, portal: tractor.Portal) -> None:
    """The call tells what was raised; the nursery that the actor is gone."""
    with pytest.raises(RemoteActorError) as caught:
        await portal.run(leave)
    assert caught.value.src_type is SystemExit
    await trio.sleep_forever()


async def see_it_hang_up(an: tractor.ActorNursery, portal: tractor.Portal) -> None:
    """The call tells that the link is gone; the nursery that the actor is."""
    with pytest.raises(TransportClosed) as caught:
        await portal.run(hang_up)
    assert caught.value.peer == portal.chan.aid.uid
    await trio.sleep_forever()


async def stop_it(an: tractor.ActorNursery, portal: tractor.Portal) -> None:
    """Stop it while it spins, which is no error: it was asked to end."""
    read, write = os.pipe()
    try:
        async with trio.open_nursery() as tn:
            tn.start_soon(lambda: portal.run(spin, fd=write))
            await trio.lowlevel.wait_readable(read)
            tn.cancel_scope.cancel()
        await an.cancel()
    finally:
        os.close(read)
        os.close(write)


# What happens to an actor, and the status with which it died unasked.
ORDERLY: Final = (serve, None)
CRASHES: Final = ((see_it_leave, LEFT_STATUS), (see_it_hang_up, 0), (stop_it, None))


def fate_of(index: int, crashing: bool) -> Any:
    """Return what becomes of the actor with this number."""
    number, rest = divmod(index, CRASH_EACH)
    return CRASHES[number % len(CRASHES)] if crashing and not rest else ORDERLY


async def run_one(index: int, crashing: bool, gate: Gate) -> None:
    """See one actor through, and that its end is told as what it was."""
    end, status = fate_of(index, crashing)
    name = f'kid_{index}'
    died: ActorDied | None = None
    try:
        async with tractor.open_nursery() as an:
            portal = await an.start_actor(
                name,
                enable_modules=[__name__],
                inherit_parent_main=False,
                start_method='subint',
                gil='own',
            )
            assert await portal.run(echo, value=index) == index
            await gate.arrive()
            await end(an, portal)
    except ActorDied as err:
        died = err
    if status is None:
        assert died is None, f'{name} was to end in order: {died}'
    else:
        assert died is not None, f'nobody told that {name} died'
        assert died.uid == portal.chan.aid.uid
        assert (died.exitcode, died.signal) == (status, None)


# -- what the process holds ------------------------------------------------------------


def footprint() -> dict[str, int]:
    """Return what this process holds, in numbers."""
    for thread in threading.enumerate():
        # Whoever was waited for is gone; a thread that stopped it may be on its way.
        if thread.name.startswith('tractor-subint'):
            thread.join(JOIN_SECONDS)
    gc.collect()
    # Each thread has a heap of its own, of which the C library keeps what it had.
    ctypes.CDLL(None).malloc_trim(0)
    actor = tractor.current_actor()
    server = actor.ipc_server
    assert server is not None
    # trio keeps idle workers for a while, for the next one who needs one.
    workers = sum(t.name.startswith('Trio thread') for t in threading.enumerate())
    return {
        'memory': int(Path('/proc/self/statm').read_text().split()[1]) * PAGE,
        'interpreters': len(_interpreters.list_all()),
        'alive': len(_interp._live),
        'quarantined': len(_interp.quarantined()),
        'threads': len(os.listdir('/proc/self/task')) - workers,
        'descriptors': len(os.listdir('/proc/self/fd')),
        'children': len(actor._actoruid2nursery),
        'loops': len(actor._loops),
        'peers': len(server._peers),
        'waiters': len(server._peer_connected) + len(server._arrived),
    }


def check(
    title: str, actors: int, before: dict[str, int], after: dict[str, int]
) -> None:
    """Print two measures side by side, and compare them."""
    print(f'\n{title:<24}{"before":>14}{"after":>14}{"growth":>12}')
    for name, value in before.items():
        print(f'{name:<24}{value:>14,}{after[name]:>14,}{after[name] - value:>+12,}')
    slack = {'memory': MEMORY_SLACK + actors * LOST_EACH}
    grown = {
        name: after[name] - value
        for name, value in before.items()
        if after[name] - value > slack.get(name, 0)
    }
    assert not grown, f'{title} left behind: {grown}'


# -- the proofs ------------------------------------------------------------------------


async def one_after_the_other(count: int, crashing: bool) -> None:
    """Start each actor when the one before it is gone."""
    for index in range(count):
        with trio.fail_after(SECONDS_PER_ACTOR):
            await run_one(index, crashing, Gate(1))


async def all_at_once(count: int, crashing: bool) -> None:
    """End the first actor when the last one is up."""
    gate = Gate(count)
    with trio.fail_after(SECONDS_PER_ACTOR + count):
        async with trio.open_nursery() as tn:
            for index in range(count):
                tn.start_soon(run_one, index, crashing, gate)


@pytest.mark.parametrize('crashing', [False, True], ids=['orderly', 'crashing'])
def test_interpreters_come_and_go(
    proof_rounds: int, crashing: bool, reg_addr: Any
) -> None:
    """Five hundred actors, one after the other."""

    async def main() -> tuple[dict[str, int], dict[str, int]]:
        async with tractor.open_root_actor(registry_addrs=[reg_addr]):
            await one_after_the_other(WARM_UP * len(CRASHES), crashing)
            before = footprint()
            await one_after_the_other(proof_rounds, crashing)
            return before, footprint()

    check(f'{proof_rounds} in a row', proof_rounds, *trio.run(main))


@pytest.mark.parametrize('crashing', [False, True], ids=['orderly', 'crashing'])
def test_many_interpreters_at_once(
    proof_rounds: int, crashing: bool, reg_addr: Any
) -> None:
    """Fifty actors that are alive at the same time."""
    count = min(AT_ONCE, proof_rounds)

    async def main() -> tuple[dict[str, int], dict[str, int]]:
        async with tractor.open_root_actor(registry_addrs=[reg_addr]):
            await all_at_once(count, crashing)
            before = footprint()
            await all_at_once(count, crashing)
            return before, footprint()

    check(f'{count} at once', count, *trio.run(main))
