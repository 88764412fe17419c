"""The inside of a sub-interpreter: what it loads, what refuses, how it ends."""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._exceptions import ActorFailure
from tractor.runtime._runtime import Actor
from tractor.spawn import _mp_fixup_main, _spawn, _subint

DEADLINE: Final = 20.0

if _subint.unavailable() is not None:
    pytest.skip(str(_subint.unavailable()), allow_module_level=True)

from tractor.spawn import _interp, _interp_main  # noqa: E402

Run = Callable[..., None]
METHODS: Final = pytest.mark.parametrize('method', ['trio', 'subint'])


async def interrupt() -> None:
    """End as with Ctrl-C."""
    raise KeyboardInterrupt


async def close_stdout() -> None:
    """Close what is flushed at the end."""
    sys.stdout.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder for modules, on the path of this process and of its actors."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def run(reg_addr: Any) -> Iterator[Run]:
    """Run something with an actor: `run(use, **arguments of start_actor)`."""
    before = _spawn._ctx, _spawn._spawn_method

    def run(use: Callable[..., Any], **kwargs: Any) -> None:
        async def main() -> None:
            with trio.fail_after(DEADLINE):
                async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                    portal = await an.start_actor('kid', **kwargs)
                    await use(portal)

        trio.run(main)

    yield run
    _spawn._restore(*before)


async def leave(portal: tractor.Portal) -> None:
    """End the actor."""
    await portal.cancel_actor()


@pytest.mark.parametrize('seconds', [1e20, float('inf'), 10**400, float('nan'), -1])
def test_a_sleep_in_slices_refuses_what_sleep_refuses(seconds: float) -> None:
    """An endless one cannot be had that way."""
    with pytest.raises((OverflowError, ValueError)) as expected:
        time.sleep(seconds)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        _interp_main._sliced(time.sleep)(seconds)


def test_a_descriptor_of_another_device_stays_open(tmp_path: Path) -> None:
    """Each file system counts its inodes for itself."""
    fd = os.open(tmp_path, os.O_RDONLY)
    device, inode = _interp._inode(fd)
    _interp._close_if_still(fd, (device + 1, inode))
    os.fstat(fd)
    _interp._close_if_still(fd, (device, inode))
    with pytest.raises(OSError, match='Bad file'):
        os.fstat(fd)


def test_the_refusing_module_is_the_one_that_is_imported(folder: Path) -> None:
    """An error without a name comes from the import in the innermost frame."""
    (folder / 'importing.py').write_text(
        'import sys\n'
        'def load():\n'
        '    sys.modules["extension"] = None\n'
        '    from extension.part import (\n'
        '        name,\n'
        '    )\n'
    )
    with pytest.raises(ImportError) as caught:
        importlib.import_module('importing').load()
    del sys.modules['extension']
    caught.value.name = None
    assert _interp_main._refusing(caught.value) == 'extension'


@pytest.mark.parametrize(
    ('err', 'name'),
    [
        (ImportError('module a._b does not support loading in subinterpreters'), 'a'),
        (ImportError('only once per process', name='c.d'), 'c'),
        (ImportError('only once per process'), 'only once per process'),
    ],
)
def test_the_refusing_module_is_the_one_named(err: ImportError, name: str) -> None:
    """By the text, or by the error; with neither, the text has to do."""
    assert _interp_main._refusing(err) == name


def test_a_refusal_of_the_parents_main_is_no_fault_of_a_module(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text tells how to leave it out, and that works."""
    main = folder / 'main_script.py'
    main.write_text('import readline\n')
    told = {'init_main_from_path': str(main)}
    monkeypatch.setattr(_mp_fixup_main, 'describe', lambda: told)
    kwargs = {'enable_modules': ['string'], 'start_method': 'subint', 'gil': 'own'}
    way_out = "its parent's '__main__' .* 'readline' .* use inherit_parent_main=False,"
    with pytest.raises(ActorFailure, match=way_out):
        run(leave, **kwargs)
    run(leave, **kwargs, inherit_parent_main=False)


def test_a_module_that_fails_is_not_run_again(folder: Path) -> None:
    """The second attempt raises what the first one did."""
    log = folder / 'log'
    text = f'with open({str(log)!r}, "a") as log: log.write("x")\n1 / 0\n'
    (folder / 'failing.py').write_text(text)
    actor: Actor = _interp_main._OnceLoaded(name='kid', uuid='0')
    actor.enable_modules = {'failing': ''}
    raised = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError) as caught:
            actor.load_modules()
        raised.append(caught.value)
    assert raised[0] is raised[1]
    assert log.read_text() == 'x'


def test_arguments_need_not_be_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may have put a path into `sys.argv`."""
    monkeypatch.setattr(sys, 'argv', ['program', Path('somewhere')])
    run(leave, start_method='subint')


@METHODS
def test_a_closed_stdout_does_not_disturb_the_end(
    run: Run, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    """There is nothing to flush then."""

    async def use(portal: tractor.Portal) -> None:
        await portal.run(close_stdout)
        await portal.cancel_actor()

    run(use, start_method=method, enable_modules=[__name__])
    assert 'Traceback' not in capfd.readouterr().err


@METHODS
def test_an_interrupt_in_a_task_is_a_quiet_end(
    run: Run, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    """As if somebody had pressed Ctrl-C: its requester is told, nobody else."""

    async def use(portal: tractor.Portal) -> None:
        with pytest.raises(tractor.RemoteActorError):
            await portal.run(interrupt)

    run(use, start_method=method, enable_modules=[__name__])
    assert 'exec(' not in capfd.readouterr().err
