"""
trio's wakeup socketpair spins once its write end is closed.

`WakeupSocketpair.drain()` reads until the socket has nothing more to give.  At
end of file a read gives an empty result at once, forever, so that the loop never
ends and the thread never yields.  It happens to a child whose copy of the write
end was closed underneath trio, for example by closing inherited descriptors.
The corrected `drain()` returns at end of file.  Used by `apply_all()`.
"""

from __future__ import annotations

from typing import Any, Final

from trio._core._wakeup_socketpair import WakeupSocketpair

_READ_SIZE: Final = 2**16

# What trio brought along, whatever is installed now.
_trio_drain: Final = WakeupSocketpair.drain


class _ReadPastEnd(Exception):
    """`drain()` went on reading after end of file."""


class _SocketAtEnd:
    """Is at end of file, and refuses to be read a second time."""

    def __init__(self) -> None:
        self.asked = False

    def recv(self, _size: int) -> bytes:
        if self.asked:
            raise _ReadPastEnd
        self.asked = True
        return b''


class _PairAtEnd:
    """As much of a `WakeupSocketpair` as `drain()` looks at."""

    def __init__(self) -> None:
        self.wakeup_sock = _SocketAtEnd()


def _drain(self: WakeupSocketpair) -> None:
    try:
        while self.wakeup_sock.recv(_READ_SIZE):
            pass
    except BlockingIOError:
        pass


def is_needed() -> bool:
    """Return whether the installed trio has the defect, corrected or not."""
    pair: Any = _PairAtEnd()
    try:
        _trio_drain(pair)
    except _ReadPastEnd:
        return True
    return False


def apply() -> bool:
    """
    Correct `drain()` for this process.

    Returns:
        `True` if this call did so; `False` if it was done before or trio is sound.
    """
    if WakeupSocketpair.drain is not _trio_drain or not is_needed():
        return False
    # A method of a class of trio's, which no type checker lets one replace.
    WakeupSocketpair.drain = _drain  # type: ignore[method-assign]
    return True


def repro() -> None:
    """Drain a socketpair whose write end is closed: returns only once corrected."""
    pair = WakeupSocketpair()
    try:
        pair.write_sock.close()
        pair.drain()
    finally:
        pair.close()
