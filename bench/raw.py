"""
The limit: what trio and msgspec alone can do between two processes.

Length-prefixed msgpack frames over a socketpair, read through a buffer, one
`send_all()` per message; no runtime, no supervision, no addresses.  `run.py` compares
the runtime with it.  Prints one JSON object: seconds for `rtt`, `import_trio` and the
end of one and of 16 processes that imported trio (`exit_one`, `exit_flock`); messages
per second for `oneway_32`, bytes per second for `oneway_1m`.  With `--one-core` only
what goes on between the two processes, both on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from statistics import median
from time import perf_counter
from typing import Any

import msgspec
import trio

PREFIX = 4
READ_SIZE = 1 << 16
SMALL = b'x' * 32
LARGE = b'x' * (1 << 20)
BATCH = 200  # round trips per sample
FLOCK = 16  # processes ended at once

EXIT_WHEN_TOLD = """\
import os, trio
os.write(1, b'up')
os.read(0, 1)
os._exit(0)
"""


class Frames:
    """Messages over a stream: 4 bytes of little-endian length, then msgpack."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.encoder = msgspec.msgpack.Encoder()
        self.decode = msgspec.msgpack.Decoder().decode
        self.out = bytearray(PREFIX)
        self.view = memoryview(bytearray(READ_SIZE))
        self.start = self.end = 0  # what is read and not yet decoded

    async def send(self, msg: Any) -> None:
        """Write one message."""
        out = self.out
        self.encoder.encode_into(msg, out, PREFIX)
        out[:PREFIX] = (len(out) - PREFIX).to_bytes(PREFIX, 'little')
        await self.stream.send_all(out)

    async def recv(self) -> Any:
        """Return the next message."""
        await self.fill(PREFIX)
        head = self.view[self.start : self.start + PREFIX]
        size = PREFIX + int.from_bytes(head, 'little')
        await self.fill(size)
        msg = self.decode(self.view[self.start + PREFIX : self.start + size])
        self.start += size
        return msg

    async def fill(self, needed: int) -> None:
        """Read until `needed` bytes are there, taking whatever the socket has."""
        held = self.end - self.start
        if held >= needed:
            return
        if self.start + needed > len(self.view) or not held:
            room = self.view
            if needed > len(room):
                room = memoryview(bytearray(needed + READ_SIZE))
            room[:held] = self.view[self.start : self.end]
            self.view, self.start, self.end = room, 0, held
        while self.end - self.start < needed:
            got = await self.stream.socket.recv_into(self.view[self.end :])
            if not got:
                raise EOFError('peer closed the connection')
            self.end += got


async def serve(fd: int) -> None:
    """Answer the parent: echo each message, or count a stream and say so."""
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))
    frames = Frames(stream)
    while (order := await frames.recv()) is not None:
        kind, count = order
        if kind == 'echo':
            for _ in range(count):
                await frames.send(await frames.recv())
        else:
            for _ in range(count):
                await frames.recv()
            await frames.send('done')


async def measure(frames: Frames, quick: bool) -> dict[str, float]:
    """Run the three message measurements against a serving process."""
    batches = 5 if quick else 15
    await frames.send(['echo', BATCH * (batches + 1)])
    rtts = []
    for batch in range(batches + 1):
        start = perf_counter()
        for _ in range(BATCH):
            await frames.send(SMALL)
            await frames.recv()
        if batch:  # the first one warms up
            rtts.append((perf_counter() - start) / BATCH)

    async def one_way(payload: bytes, count: int) -> float:
        await frames.send(['sink', count])
        start = perf_counter()
        for _ in range(count):
            await frames.send(payload)
        await frames.recv()
        return count / (perf_counter() - start)

    small = 5_000 if quick else 20_000
    large = 50 if quick else 150
    await one_way(SMALL, small // 10)
    await one_way(LARGE, large // 10)
    return {
        'rtt': median(rtts),
        'oneway_32': await one_way(SMALL, small),
        'oneway_1m': await one_way(LARGE, large) * len(LARGE),
    }


async def between_processes(quick: bool) -> dict[str, float]:
    """Start the serving process on one end of a socketpair and measure."""
    ours, theirs = trio.socket.socketpair()
    with theirs:
        peer = await trio.lowlevel.open_process(
            [sys.executable, __file__, '--serve', str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
        )
    frames = Frames(trio.SocketStream(ours))
    try:
        results = await measure(frames, quick)
        await frames.send(None)
        await peer.wait()
    finally:
        if peer.returncode is None:
            peer.kill()
    return results


def import_trio(repeats: int) -> float:
    """Return the median time of `python -c 'import trio'`, with bytecode on disk."""
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    times = []
    for turn in range(repeats + 1):
        start = perf_counter()
        subprocess.run([sys.executable, '-c', 'import trio'], check=True, env=env)
        if turn:  # the first one writes the bytecode and fills the page cache
            times.append(perf_counter() - start)
    return median(times)


def exit_processes(count: int, repeats: int) -> float:
    """Return the median time from telling idle processes to end to their reaping."""
    command = [sys.executable, '-c', EXIT_WHEN_TOLD]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'bufsize': 0}
    times = []
    for _ in range(repeats):
        procs = [subprocess.Popen(command, **pipes) for _ in range(count)]  # type: ignore[call-overload]
        for proc in procs:
            proc.stdout.read(2)
        start = perf_counter()
        for proc in procs:
            proc.stdin.close()
        for proc in procs:
            proc.wait()
        times.append(perf_counter() - start)
        for proc in procs:
            proc.stdout.close()
    return median(times)


def main() -> None:
    """Measure everything, or serve a measuring parent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='fewer repetitions')
    parser.add_argument('--one-core', action='store_true', help='on one core')
    parser.add_argument('--serve', type=int, metavar='FD', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        trio.run(serve, args.serve)
        return
    if args.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(trio.run(between_processes, args.quick)))
        return
    results = trio.run(between_processes, args.quick)
    results['import_trio'] = import_trio(3 if args.quick else 7)
    results['exit_one'] = exit_processes(1, 2 if args.quick else 5)
    results['exit_flock'] = exit_processes(FLOCK, 1 if args.quick else 3)
    print(json.dumps(results))


if __name__ == '__main__':
    main()
