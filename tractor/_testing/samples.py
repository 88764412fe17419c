"""
Sample data for throughput and ordering tests.

Owns the numbered messages which streaming and shared memory tests send; a receiver can
tell from the leading index alone whether something was lost or swapped.
"""

from __future__ import annotations

import random
import sys


def generate_sample_messages(
    amount: int,
    rand_min: int = 0,
    rand_max: int = 0,
    silent: bool = False,
) -> tuple[list[bytes], int]:
    """
    Make `amount` messages, each starting with its index as `[00000000]`.

    Args:
        amount: How many messages.
        rand_min: Least number of random bytes behind the index.
        rand_max: Greatest number of random bytes; 0 appends none at all.
        silent: Print no summary line.
    Returns:
        The messages, and the sum of their lengths in bytes.
    """
    messages: list[bytes] = []
    for index in range(amount):
        tail = random.randbytes(random.randint(rand_min, rand_max)) if rand_max else b''
        messages.append(b'[%08d]' % index + tail)

    total = sum(map(len, messages))
    if not silent:
        sys.stdout.write(f'{amount} sample messages, {total} bytes in total\n')
    return messages, total
