"""Children of the fork server: their environment, and their main module."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import trio

import tractor

VARIABLE = 'TRACTOR_TEST_OF_THE_ENVIRONMENT'


async def get_variable() -> str | None:
    return os.environ.get(VARIABLE)


@pytest.mark.parametrize('value', ['first', 'second', None])
def test_environment_is_the_parents(reg_addr, monkeypatch, value):
    """A change made after the server was started reaches the child."""
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                portal = await an.start_actor('child', enable_modules=[__name__])
                assert await portal.run(get_variable) == value
                await an.cancel()

    trio.run(main)


PROGRAM = """
import os
import sys

import trio
import tractor

LOADED_BY = os.getpid()
if '{fail}' and __name__ != '__main__':
    raise ValueError('not in a child')


async def get_loader():
    return LOADED_BY, os.getpid()


async def main():
    with trio.fail_after(20):
        async with tractor.open_nursery(
            start_method='mp_forkserver',
            enable_transports=['uds'],
            registry_addrs=[('{dir}', 'registry.sock')]
        ) as an:
            found = []
            for name in ('one', 'two'):
                portal = await an.start_actor(name, enable_modules=[__name__])
                found.append(await portal.run(get_loader))
            if '{kill}':
                os.kill(os.getpid(), 9)
            await an.cancel()
    (one, first), (two, second) = found
    assert one == two and one not in (os.getpid(), first, second), found
    print('loaded once')


if __name__ == '__main__':
    trio.run(main)
"""


def run_program(
    directory, fail: str = '', kill: str = ''
) -> subprocess.CompletedProcess[str]:
    script = directory / 'program.py'
    script.write_text(
        PROGRAM.format(dir=directory, fail=fail, kill=kill), encoding='utf-8'
    )
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, 'TMPDIR': str(directory)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_main_module_is_imported_once():
    """All children are forked from a server that holds the program's main module."""
    with tempfile.TemporaryDirectory() as directory:
        done = run_program(Path(directory))
    assert done.stdout == 'loaded once\n', done.stderr
    assert done.stderr == ''


def test_main_module_that_fails_is_the_childs_error():
    """The server survives it; the child tells, and the program ends."""
    with tempfile.TemporaryDirectory() as directory:
        done = run_program(Path(directory), fail='yes')
    assert done.returncode == 1
    assert 'ValueError: not in a child' in done.stderr
    assert "ActorFailure: actor 'one' ended with status 1" in done.stderr


def test_killed_root_leaves_no_socket_of_its_server():
    """The server, which ends last, removes the file that its parent had made."""
    with tempfile.TemporaryDirectory() as directory:
        done = run_program(Path(directory), kill='yes')
        assert done.returncode == -signal.SIGKILL
        # Standard error is the whole tree's: it closed when the last of them ended.
        assert list(Path(directory).glob('pymp-*')) == []
