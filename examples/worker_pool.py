"""
Map a function over a pool of actors and take results as they complete.

What to see: jobs of different length finish out of order, every actor is busy while
there is work, and a slow job holds up nobody else.
"""

from __future__ import annotations

import os

import trio

import tractor

WORKERS = 2
JOBS = [250_000, 1_000, 150_000, 2_000, 100_000, 3_000]


async def count_primes(below: int) -> tuple[int, int]:
    """Count the primes below a limit, the plain way; also return the process id."""
    sieve = bytearray([1]) * below
    for number in range(2, int(below**0.5) + 1):
        if sieve[number]:
            sieve[number * number :: number] = bytes(
                len(range(number * number, below, number))
            )
    return sum(sieve[2:]), os.getpid()


async def work(
    portal: tractor.Portal,
    jobs: trio.MemoryReceiveChannel[int],
    results: trio.MemorySendChannel[tuple[int, int, int]],
) -> None:
    """Give one actor a job after the other."""
    async with results:
        async for below in jobs:
            primes, pid = await portal.run(count_primes, below=below)
            await results.send((below, primes, pid))


async def main() -> None:
    """Fan the jobs out and print results in the order they arrive."""
    to_do, jobs = trio.open_memory_channel[int](len(JOBS))
    done, results = trio.open_memory_channel[tuple[int, int, int]](0)
    for below in JOBS:
        to_do.send_nowait(below)
    to_do.close()
    async with tractor.open_actor_cluster(modules=[__name__], count=WORKERS) as pool:
        async with trio.open_nursery() as tn, done:
            for portal in pool.values():
                tn.start_soon(work, portal, jobs, done.clone())
            await done.aclose()
            async for below, primes, pid in results:
                print(f'{primes:6} primes below {below:7,} (process {pid})')


if __name__ == '__main__':
    trio.run(main)
