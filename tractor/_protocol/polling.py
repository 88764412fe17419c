"""
When looking for an answer pays, and when sleeping is better.

An answer that comes soon is met earlier by who looks for it than by who has to be
woken; looking for one that does not come takes a core's time for nothing.  So a look in
vain makes the next ones rarer, and one that was not makes them frequent again.  Counted
in occasions, such as a message sent; there is no clock here.  `ipc/_idle` looks.
"""

from __future__ import annotations

from typing import Final

MAX_MISSES: Final = 10  # at the worst one look on 1024 occasions


class Polling:
    """
    Whether to look for what may come, by how it went before.

    Attributes:
        left: Occasions until the next look.  At each it is counted down by one; a look
            is due at 0 and below.
    """

    __slots__ = ('_misses', 'left')

    def __init__(self) -> None:
        self.left = 1
        self._misses = 0

    def hit(self) -> None:
        """The answer came while it was looked for."""
        self._misses //= 2
        self.left = 1

    def missed(self) -> None:
        """It did not."""
        self._misses = min(self._misses + 1, MAX_MISSES)
        self.left = 1 << self._misses

    def unknown(self) -> None:
        """There was no look after all."""
        self.left = 1 << self._misses
