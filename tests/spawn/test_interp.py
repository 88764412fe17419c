"""How an actor in a sub-interpreter is stopped, and what if it cannot be."""

from __future__ import annotations

import importlib
import os
import select
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT

import tractor
from tractor._context import Unresolved
from tractor._exceptions import ActorUnkillable
from tractor.spawn import _spawn, _subint

DEADLINE: Final = 20.0

if _subint.unavailable() is not None:
    pytest.skip(str(_subint.unavailable()), allow_module_level=True)

from tractor.spawn import _interp  # noqa: E402


def loop() -> None:
    """Never leave Python code."""
    while True:
        pass


def sleep() -> None:
    """Sleep as a whole, or so it seems."""
    time.sleep(60)


def swallow() -> None:
    """Go on whatever happens, as careless code does."""
    while True:
        try:
            while True:
                len('x')
        except Exception:
            continue


@tractor.context
async def stay(ctx: tractor.Context, how: str) -> None:
    """Block the event loop."""
    await ctx.started()
    globals()[how]()


@tractor.context
async def shielded(ctx: tractor.Context) -> None:
    """Do not listen to a cancellation."""
    await ctx.started()
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


@tractor.context
async def deaf(ctx: tractor.Context) -> None:
    """Do not listen, nor does the task any more that other threads can wake."""
    token = trio.lowlevel.current_trio_token()
    epoll = GLOBAL_RUN_CONTEXT.runner.io_manager._epoll
    epoll.unregister(token._reentry_queue.wakeup.wakeup_sock)
    await ctx.started()
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


@tractor.context
async def block_on(ctx: tractor.Context, fd: int) -> None:
    """Wait in C code, without the GIL, until something can be read."""
    await ctx.started()
    select.select([fd], [], [])


@tractor.context
async def above(ctx: tractor.Context, what: str, kwargs: dict[str, Any]) -> None:
    """Have an actor below this one do something, and stay."""
    async with tractor.open_nursery() as an:
        portal = await an.start_actor(
            'below', enable_modules=[__name__], start_method='subint'
        )
        async with portal.open_context(globals()[what], **kwargs):
            await ctx.started()
            await trio.sleep_forever()


@pytest.fixture
def subint_root(reg_addr: Any) -> Iterator[dict[str, Any]]:
    """Give the arguments of a root whose children live in sub-interpreters."""
    before = _spawn._ctx, _spawn._spawn_method
    yield {'registry_addrs': [reg_addr], 'start_method': 'subint'}
    _spawn._restore(*before)


async def start_and_leave(
    root: dict[str, Any], gil: str, task: Callable[..., Any], **kwargs: Any
) -> tractor.Context:
    """Have an actor do something, then cancel it; return the context of that."""
    with trio.fail_after(DEADLINE):
        async with tractor.open_nursery(**root) as an:
            portal = await an.start_actor('kid', enable_modules=[__name__], gil=gil)
            async with portal.open_context(task, **kwargs) as (ctx, _):
                await an.cancel()
    return ctx


@pytest.mark.parametrize('gil', ['own', 'shared'])
@pytest.mark.parametrize('how', ['loop', 'sleep', 'swallow'])
def test_code_that_does_not_listen_is_broken_into(
    subint_root: Any, gil: str, how: str
) -> None:
    """It ends, its interpreter is destroyed, and nobody calls that an error."""

    async def main() -> None:
        with pytest.raises(tractor.RemoteActorError, match=r'broken into|Stopped'):
            await start_and_leave(subint_root, gil, stay, how=how)

    trio.run(main)
    assert not _interp._live
    assert not _interp.quarantined()


@pytest.mark.parametrize('task', [shielded, deaf])
def test_an_idle_loop_is_woken(subint_root: Any, task: Callable[..., Any]) -> None:
    """A task that shields itself keeps the runtime from ending in order."""

    async def main() -> None:
        ctx = await start_and_leave(subint_root, 'own', task)
        assert ctx.outcome is Unresolved

    trio.run(main)
    assert not _interp._live


def release(read: int, write: int) -> None:
    """Let what waits for a pipe go on, and see it end after all."""
    os.write(write, b'x')
    assert not _interp.end_all(DEADLINE)
    assert not _interp.quarantined()
    os.close(read)
    os.close(write)


def test_what_is_stuck_in_c_is_reported(subint_root: Any) -> None:
    """The nursery raises, with the stack; the thread is counted until it is back."""
    read, write = os.pipe()

    async def main() -> None:
        await start_and_leave(subint_root, 'own', block_on, fd=read)

    try:
        with pytest.raises(ActorUnkillable, match=r"actor 'kid' .* was cut off") as got:
            trio.run(main)
        assert got.value.uid[0] == 'kid'
        assert 'select.select([fd], [], [])' in got.value.stack
        assert 'select.select' in '\n'.join(got.value.__notes__)
        assert _interp.quarantined() == ['kid']
    finally:
        release(read, write)


@pytest.mark.parametrize('how', ['loop', 'sleep'])
def test_what_drives_others_is_not_broken_into(
    subint_root: Any, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    """An actor that is stopped sees the ends of those below it, in its own threads."""

    async def main() -> None:
        kwargs = {'what': 'stay', 'kwargs': {'how': how}}
        await start_and_leave(subint_root, 'own', above, **kwargs)

    trio.run(main)
    assert 'Traceback' not in capfd.readouterr().err
    assert not _interp._live
    assert not _interp.quarantined()


def test_what_is_stuck_below_is_reported_above(subint_root: Any) -> None:
    """Who has started it ended; its interpreter stays until the other one is gone."""
    read, write = os.pipe()

    async def main() -> None:
        kwargs = {'what': 'block_on', 'kwargs': {'fd': read}}
        await start_and_leave(subint_root, 'own', above, **kwargs)

    try:
        with pytest.raises(ActorUnkillable, match='actors below it cannot be') as got:
            trio.run(main)
        assert got.value.uid[0] == 'kid'
        assert "actor 'below':" in got.value.stack
        assert 'select.select([fd], [], [])' in got.value.stack
        assert _interp.quarantined() == ['kid']
    finally:
        release(read, write)


WIDE: Final = """
import select, tractor

@tractor.context
async def block_on(ctx: tractor.Context, fd: int) -> None:
    await ctx.started()
    select.select([fd], [], [])  # %s
"""


def test_a_stack_that_is_too_long_to_be_told_is_cut(
    subint_root: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its bytes, of which a character may have four."""
    (tmp_path / 'wide.py').write_text(WIDE % ('\U0001f600' * 20_000), encoding='utf-8')
    monkeypatch.syspath_prepend(str(tmp_path))
    wide = importlib.import_module('wide')
    read, write = os.pipe()

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                portal = await an.start_actor('kid', enable_modules=['wide'])
                async with portal.open_context(wide.block_on, fd=read):
                    await an.cancel()

    try:
        with pytest.raises(ActorUnkillable) as got:
            trio.run(main)
        assert 1000 < len(got.value.stack) < 20_000
    finally:
        release(read, write)


PROGRAM: Final = """
    import atexit, os, select, sys, threading, trio, tractor

    @tractor.context
    async def block_on(ctx: tractor.Context, fd: int) -> None:
        await ctx.started()
        select.select([fd], [], [])

    async def main():
        read, write = os.pipe()
        async with tractor.open_nursery(
            registry_addrs=[ADDR], start_method='subint'
        ) as an:
            portal = await an.start_actor('stuck', enable_modules=[__name__])
            async with portal.open_context(block_on, fd=read):
                await an.cancel()

    if __name__ == '__main__':
        atexit.register(print, 'handler')
        try:
            trio.run(main)
        except tractor._exceptions.ActorUnkillable:
            print('caught')
        atexit.register(print, 'late handler')
        ended = threading.main_thread().join
        threading.Thread(target=lambda: (ended(), print('thread'))).start()
"""


def test_a_process_with_a_stuck_actor_still_ends(tmp_path: Any, reg_addr: Any) -> None:
    """At its end it tells which actor, and its status is not that of a success."""
    script = tmp_path / 'program.py'
    script.write_text(textwrap.dedent(PROGRAM).replace('ADDR', repr(reg_addr)))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        cwd=os.getcwd(),
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1, done.stderr
    told = ['caught', 'thread', 'late handler', 'handler']
    assert done.stdout.splitlines() == told, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "tractor: actors that could not be stopped: 'stuck'"
