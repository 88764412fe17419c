"""
Whatever bytes a peer sends, only documented errors come out of a transport.

The long version is a proof: `--proof-rounds N` runs `N` mutated streams.
"""

from __future__ import annotations

import random
from typing import Final

import pytest
import trio

from tractor._exceptions import MsgTypeError, TransportClosed
from tractor._protocol.framing import frame
from tractor.ipc import _transport
from tractor.ipc._chan import Channel
from tractor.msg._codec import _def_tractor_codec
from tractor.msg.types import (
    MSG_TYPES,
    Aid,
    CancelAck,
    Error,
    Return,
    SpawnSpec,
    Start,
    StartAck,
    Started,
    Stop,
    Yield,
)

ROUNDS: Final = 3000

VALUE: Final = {'a': [1, 2.5, None, True, 'text', b'bytes'], 'b': {'c': -(2**40)}}
SAMPLES: Final = [
    Aid('name', 'u' * 32, 5, True),
    SpawnSpec({'m': 1}, VALUE, {'mod': '/path'}, [('127.0.0.1', 5)], [('/d', 'f')]),
    Start('cid', 'ns', 'func', VALUE, ('name', 'uuid')),
    StartAck('cid', 'context'),
    Started('cid', pld=VALUE),
    Yield('cid', pld=VALUE),
    Stop('cid'),
    Return('cid', pld=VALUE),
    CancelAck('cid', pld=True),
    Error(
        ('a', 'b'),
        'ValueError',
        'ValueError',
        [('a', 'b')],
        tb_str='text',
        cid='cid',
        _bad_msg=Started('cid', pld=VALUE),
        _bad_msg_as_dict=VALUE,
    ),
]
PAYLOADS: Final = [_def_tractor_codec.encode(msg) for msg in SAMPLES]
# Heads of msgpack values that announce much: maps, arrays, texts, extensions.
HEADS: Final = [
    b'\xdf',
    b'\xdd',
    b'\xdb',
    b'\xc6',
    b'\xc9',
    b'\xd6\xff',
    b'\xc7\x0c\xff',
]
NESTED: Final = b'\x91' * 5000


def mutated_payload(rng: random.Random) -> bytes:
    data = bytearray(rng.choice(PAYLOADS))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:  # change a bit
                if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
            case 1:  # cut
                del data[at:]
            case 2:  # leave out
                del data[at : at + rng.randint(1, 8)]
            case 3:  # put in
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:  # announce much
                data[at:at] = rng.choice(HEADS) + rng.randbytes(4)
            case 5:  # nest
                data[at:at] = NESTED if rng.random() < 0.05 else b'\x91\x81'
    return bytes(data)


def mutated_stream(rng: random.Random) -> bytes:
    """Some frames, most of them bad, and sometimes a bad prefix."""
    stream = bytearray()
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.3:
            stream += frame(rng.choice(PAYLOADS))
        else:
            stream += frame(mutated_payload(rng))
    if rng.random() < 0.2:
        stream[rng.randrange(min(4, len(stream)))] ^= 1 << rng.randrange(8)
    return bytes(stream)


class Bytes:
    """A stream that brings the given bytes in pieces, then ends."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        self._data, self._rng = data, rng

    async def receive_some(self, size: int) -> bytes:
        size = min(size, self._rng.choice([1, 7, 100, 65536]))
        piece, self._data = self._data[:size], self._data[size:]
        return piece


class BytesTransport(_transport.MsgpackTransport):
    @classmethod
    def get_stream_addrs(cls, stream):
        return 'here', 'there'


async def read_to_the_end(data: bytes, rng: random.Random) -> None:
    """Read everything through a channel, as a message loop does."""
    chan = Channel(BytesTransport(Bytes(data, rng)))
    chan.aid = SAMPLES[0]
    raw = rng.random() < 0.5
    while True:
        try:
            got = [await chan.recv()] if raw else await chan.recv_batch()
        except TransportClosed:
            return
        for msg in got:
            if raw and type(msg) is MsgTypeError:
                assert isinstance(msg.msgdata['cid'], str)
            else:
                assert type(msg) in MSG_TYPES


def fuzz(rounds: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Records of skipped frames would only cost time here.
    monkeypatch.setattr(_transport.log.logger, 'disabled', True)
    rng = random.Random(seed)

    async def main() -> None:
        for _ in range(rounds):
            data = mutated_stream(rng)
            try:
                await read_to_the_end(data, rng)
            except BaseException as err:
                err.add_note(f'input: {data!r}')
                raise

    trio.run(main)


def test_mutated_frames(monkeypatch):
    """Every mutated stream ends in messages and one `TransportClosed`."""
    fuzz(ROUNDS, 1, monkeypatch)


@pytest.mark.long_proof
def test_many_mutated_frames(monkeypatch, proof_rounds):
    """The same for as many streams as was asked for, from a new seed each time."""
    seed = random.randrange(2**32)
    print(f'seed {seed}')
    fuzz(proof_rounds, seed, monkeypatch)


def test_random_bytes(monkeypatch):
    """Noise ends in one `TransportClosed`, too."""
    monkeypatch.setattr(_transport.log.logger, 'disabled', True)
    rng = random.Random(2)

    async def main():
        for _ in range(500):
            await read_to_the_end(rng.randbytes(rng.randrange(300)), rng)

    trio.run(main)
