"""What a server endures from peers that misbehave, over either transport."""

from __future__ import annotations

import random
import struct
from typing import Final

import pytest
import trio

from tractor._exceptions import TransportClosed
from tractor.ipc import Channel
from tractor.msg.types import Start
from tractor.runtime._state import MAX_FRAME_DEFAULT

TIMES: Final = 30  # repetitions, so that what one leaves behind adds up
SILENT: Final = 200  # connections that never introduce themselves
IMPATIENT: Final = 1.0  # seconds the server waits for an introduction


@pytest.fixture(params=['tcp', 'uds'])
def transport(request: pytest.FixtureRequest) -> str:
    """Each of the transports."""
    return str(request.param)


@pytest.fixture
def server(start_server, transport):
    """A server with the usual patience."""
    return start_server(transport)


@pytest.fixture
def impatient(start_server, transport):
    """A server that waits a second for an introduction."""
    return start_server(transport, IMPATIENT)


def prefix(length: int) -> bytes:
    """Return what announces a frame of so many bytes."""
    return struct.pack('<I', length)


# -- before the handshake is over ------------------------------------------------------


def test_random_bytes(impatient, endure):
    """Whatever they are, the server hangs up."""

    async def attack(server, friend):
        async with trio.open_nursery() as tn:
            for seed in range(TIMES):
                stream = await server.dial()
                await stream.send_all(random.Random(seed).randbytes(64))
                tn.start_soon(server.wait_until_hung_up, stream)

    endure(impatient, attack)


def test_hanging_up_amid_the_handshake(server, endure):
    """A peer that leaves after some bytes is forgotten."""

    async def attack(server, friend):
        for size in range(TIMES):
            stream = await server.dial()
            await stream.send_all(prefix(100) + bytes(size))
            await stream.aclose()

    endure(server, attack)


def test_introduction_of_4_gib(impatient, endure):
    """A stranger can make the server allocate nothing."""

    async def attack(server, friend):
        async with trio.open_nursery() as tn:
            for _ in range(TIMES):
                stream = await server.dial()
                await stream.send_all(prefix(2**32 - 1))
                tn.start_soon(server.wait_until_hung_up, stream)

    endure(impatient, attack)


def test_peers_that_never_introduce_themselves(impatient, endure):
    """200 at once hinder no call, and the server hangs up on each of them."""

    async def attack(server, friend):
        streams = [await server.dial() for _ in range(SILENT)]
        await friend.go_on(100)
        async with trio.open_nursery() as tn:
            for stream in streams:
                tn.start_soon(server.wait_until_hung_up, stream)

    endure(impatient, attack)


# -- after the handshake ---------------------------------------------------------------


def test_half_a_frame(server, endure):
    """A peer that dies while it sends is gone, and what it sent is freed."""

    async def attack(server, friend):
        for _ in range(TIMES):
            chan = await server.introduce()
            await chan.stream.send_all(prefix(2**20) + bytes(2**19))
            await chan.aclose()

    endure(server, attack)


def test_frame_of_4_gib(server, endure):
    """The server closes the connection, and says why and what the limit is."""

    async def attack(server, friend):
        for _ in range(TIMES):
            chan = await server.introduce()
            await chan.stream.send_all(prefix(2**32 - 1))
            with pytest.raises(TransportClosed, match=r'closed'):
                await chan.recv()
            await chan.aclose()

    endure(server, attack)
    assert str(2**32 - 1) in server.log
    assert str(MAX_FRAME_DEFAULT) in server.log
    assert 'TRACTOR_MAX_FRAME' in server.log


def test_nothing_is_allocated_for_an_announced_frame(server, endure):
    """Memory is taken as the bytes arrive: a promise of 255 MiB costs nothing."""

    async def attack(server, friend):
        before = await friend.footprint()
        chans = [await server.introduce() for _ in range(TIMES)]
        for chan in chans:
            await chan.stream.send_all(prefix(MAX_FRAME_DEFAULT - 1) + bytes(100))
        await friend.go_on()
        after = await friend.footprint()
        assert after['memory'] - before['memory'] < 8 * 2**20
        for chan in chans:
            await chan.aclose()

    endure(server, attack)


def test_frames_that_are_no_messages(server, endure):
    """After too many of them the server hangs up."""

    async def attack(server, friend):
        for seed in range(TIMES):
            garbage = random.Random(seed)
            chan = await server.introduce()
            async with trio.open_nursery() as tn:
                tn.start_soon(server.wait_until_hung_up, chan.stream)
                try:
                    while True:
                        await chan.stream.send_all(prefix(40) + garbage.randbytes(40))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    continue

    endure(server, attack)


def test_request_in_another_actors_name(server, endure):
    """It is refused, which ends the liar's channel and no other."""

    async def attack(server, friend):
        honest = await server.introduce('honest')
        for number in range(TIMES):
            liar = await server.introduce('liar')
            await liar.send(
                Start(
                    cid=str(number),
                    ns='server_program',
                    func='ping',
                    kwargs={'value': 1},
                    uid=('friend', 'somebody else'),
                )
            )
            with pytest.raises(TransportClosed, match=r'closed'):
                await liar.recv()
            await liar.aclose()
        assert honest.connected()
        await honest.aclose()

    endure(server, attack)


def test_request_instead_of_an_introduction(server, endure):
    """Who does not say who he is gets no answer, and nothing is run for him."""

    async def attack(server, friend):
        for number in range(TIMES):
            chan = await prove(server)
            await chan.send(
                Start(
                    cid=str(number),
                    ns='server_program',
                    func='ping',
                    kwargs={'value': 1},
                    uid=('stranger', '0'),
                )
            )
            assert await names_of_answers(chan) in ([], ['Aid'])
            await chan.aclose()

    endure(server, attack)


async def prove(server):
    """Connect and prove who we are, as far as the transport asks for it."""
    chan = await Channel.from_addr(server.addr)
    await chan.transport.authenticate()
    return chan


async def names_of_answers(chan):
    """Read until the server hangs up; return the types of what it sent."""
    names = []
    while True:
        try:
            names.append(type(await chan.recv()).__name__)
        except TransportClosed:
            return names
