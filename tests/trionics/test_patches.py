"""The corrections applied to trio: applied once, and effective."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import trio
from trio._core._wakeup_socketpair import WakeupSocketpair

from tractor.trionics import patches
from tractor.trionics.patches import _wakeup_socketpair

_KEY = 'trio_wakeup_socketpair_drain_eof'


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """trio as it was installed, for this test."""
    monkeypatch.setattr(WakeupSocketpair, 'drain', _wakeup_socketpair._trio_drain)


@pytest.mark.usefixtures('unpatched')
def test_each_patch_is_applied_once():
    """The first call says what it applied, a second one applied nothing."""
    assert patches.apply_all() == {_KEY: _wakeup_socketpair.is_needed()}
    assert patches.apply_all() == {_KEY: False}
    assert not _wakeup_socketpair.apply()


@pytest.mark.usefixtures('unpatched')
def test_repro_returns_once_applied():
    """Draining a pair whose write end is closed comes to an end."""
    _wakeup_socketpair.apply()

    def too_slow(*_):
        raise AssertionError('drain() spins')

    previous = signal.signal(signal.SIGALRM, too_slow)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        _wakeup_socketpair.repro()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.skipif(not _wakeup_socketpair.is_needed(), reason='trio is sound')
def test_repro_spins_without_the_patch():
    """The defect is real: untouched, `repro()` does not return."""
    code = (
        'from tractor.trionics.patches._wakeup_socketpair import repro;'
        'print(flush=True); repro()'
    )
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE) as proc:
        assert proc.stdout is not None
        proc.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            proc.wait(timeout=0.3)
        proc.kill()


@pytest.mark.usefixtures('unpatched')
def test_unread_wakeups_are_still_drained():
    """The corrected `drain()` reads what is there, then stops."""
    _wakeup_socketpair.apply()
    pair = WakeupSocketpair()
    try:
        for _ in range(3):
            pair.wakeup_thread_and_signal_safe()
        pair.drain()
        with pytest.raises(BlockingIOError):
            pair.wakeup_sock.recv(1)
    finally:
        pair.close()


@pytest.mark.usefixtures('unpatched')
def test_trio_runs_with_the_patch():
    """A loop with the patch is still woken from threads."""
    patches.apply_all()

    async def main():
        with trio.fail_after(2):
            assert await trio.to_thread.run_sync(lambda: 7) == 7

    trio.run(main)
