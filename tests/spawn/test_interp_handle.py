"""The handle of an interpreter: what it makes of what it is told, and of silence."""

from __future__ import annotations

import marshal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import trio

from tractor.spawn import _subint

DEADLINE: Final = 10.0

if _subint.unavailable() is not None:
    pytest.skip(str(_subint.unavailable()), allow_module_level=True)

import _interpreters  # noqa: E402

from tractor.spawn import _interp, _interp_main  # noqa: E402

type Make = Callable[[], _interp.Interp]


@pytest.fixture
def handle() -> Iterator[Make]:
    """Make a handle of an interpreter that does not run, inside a trio run."""
    made: list[tuple[_interp.Interp, list[socket.socket]]] = []

    def make() -> _interp.Interp:
        ours, childs = socket.socketpair()
        interp = _interp.Interp('kid', {}, 'own', ours, childs)
        made.append((interp, [ours, childs, interp._line, interp._childs_line]))
        return interp

    yield make
    for interp, sockets in made:
        _interp._quarantined.discard(interp)
        for sock in sockets:
            sock.close()


async def killed(interp: _interp.Interp) -> str:
    """Kill it, wait until it is given up, and return why."""
    with trio.fail_after(DEADLINE):
        interp.kill()
        await interp.wait()
    assert _interp.quarantined() == ['kid']
    assert interp.stuck is not None
    return interp.stuck[1]


def test_what_cannot_be_understood_is_left_out(handle: Make) -> None:
    """A message that was cut does not keep the next one from being read."""

    async def main() -> None:
        interp = handle()
        whole = marshal.dumps(('ready', 7.0))
        for data in (whole[:-1], marshal.dumps(7), marshal.dumps(('ready',)), whole):
            interp._childs_line.send(data)
        interp._read_line()
        assert interp._ready == 7.0

    trio.run(main)


def test_the_time_it_gets_depends_on_how_far_it_is(handle: Make) -> None:
    """Nothing inside hears an order before it is ready; a late start is no deafness."""

    async def main() -> None:
        interp = handle()
        interp._first_order = interp._born + 1
        assert interp._deadline() == interp._born + _interp.BOOT_TIME
        interp._ready = interp._born + 3
        assert interp._deadline() == interp._ready + _interp.DEAF_TIME
        interp._ready = interp._born
        assert interp._deadline() == interp._first_order + _interp.DEAF_TIME
        interp._arrived = interp._born + 2
        assert interp._deadline() == interp._arrived + _interp.BREAK_TIME
        interp._closed = interp._born + 3
        assert interp._deadline() == interp._closed + _interp.CLOSE_TIME

    trio.run(main)


def test_one_that_never_was_ready_is_still_starting(
    handle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text does not blame code that had no chance to run."""
    monkeypatch.setattr(_interp, 'BOOT_TIME', 0.01)

    async def main() -> None:
        assert 'still starting' in await killed(handle())

    trio.run(main)


def test_one_that_is_closing_is_waited_for_without_looking_again(
    handle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the end of its line there is nothing to read, only an end to wait for."""
    monkeypatch.setattr(_interp, 'CLOSE_TIME', 0.1)
    heard: list[float] = []
    hear = _interp.Interp._hear

    def count(self: Any, seconds: float) -> None:
        heard.append(seconds)
        hear(self, seconds)

    monkeypatch.setattr(_interp.Interp, '_hear', count)

    async def main() -> None:
        interp = handle()
        interp._childs_line.send(marshal.dumps(('ready', time.monotonic())))
        interp._childs_line.close()
        assert 'cannot be finalized' in await killed(interp)

    trio.run(main)
    assert len(heard) <= 2


def test_a_failure_while_it_is_given_up_wakes_who_waits(
    handle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop thread dies of it, the nursery does not wait for ever."""
    monkeypatch.setattr(_interp, 'DEAF_TIME', 0.0)
    monkeypatch.setattr(_interp, 'REPORT', 'no bytes')
    raised: list[Any] = []
    monkeypatch.setattr('threading.excepthook', raised.append)

    async def main() -> None:
        interp = handle()
        interp._childs_line.send(marshal.dumps(('ready', time.monotonic())))
        assert 'stuck in C code' in await killed(interp)

    trio.run(main)
    for thread in threading.enumerate():
        if thread.name.startswith('tractor-subint-stop'):
            thread.join(DEADLINE)
    assert [args.exc_type for args in raised] == [TypeError]


def test_a_thread_that_cannot_be_started_leaves_nothing(
    handle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor, and nothing that forbids a fork for ever."""

    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, 'start', start)

    async def main() -> None:
        interp = handle()
        with pytest.raises(RuntimeError, match='new thread'):
            interp.start()
        assert not _interp._live
        for sock in (*interp._given, interp._line):
            assert sock.fileno() == -1

    trio.run(main)


def test_what_broke_off_is_not_destroyed_over_what_it_left(
    handle: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not tell that it had settled: it is asked, and stays if it fails."""
    boot = """
import sys, types
def check_all(seconds):
    raise LookupError('somebody is left')
sys.modules['tractor.spawn._interp'] = types.SimpleNamespace(
    check_all=check_all, outlast_all={outlast}
)
raise SystemExit('broken off')
"""

    async def main(outlast: str) -> _interp.Interp:
        monkeypatch.setattr(_interp, '_BOOT', boot.format(outlast=outlast))
        interp = handle()
        interp.start()
        with trio.fail_after(DEADLINE):
            await interp.wait()
        assert interp.stuck is not None
        assert 'actors below it' in interp.stuck[1]
        assert 'somebody is left' in interp.stuck[0]
        interp._thread.join(DEADLINE)
        return interp

    assert not trio.run(main, 'lambda: None')._exists
    stays = trio.run(main, 'lambda: 1 / 0')
    assert stays._exists
    assert not stays.join(0)
    assert _interp.end_all(0).keys() == {'kid'}
    _interpreters.destroy(stays.id)
    assert 'broken off' in capfd.readouterr().err


def test_threads_that_drive_interpreters_are_no_victims() -> None:
    """The control thread tells them by where they began."""
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control = _interp_main.Control(childs.detach())
    leave = threading.Event()
    plain = threading.Thread(target=leave.wait)
    driver = _interp.Driver(leave.wait, 'driver')
    try:
        for thread in (plain, driver):
            thread.start()
        victims = control._victims()
        assert plain.ident in victims
        assert threading.get_ident() in victims
        assert driver.ident not in victims
    finally:
        leave.set()
        for thread in (plain, driver):
            thread.join(DEADLINE)
        control.close()
        ours.close()
