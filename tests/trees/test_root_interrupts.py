"""Ctrl-C in a root at bad moments: it may come twice, and never hangs the tree."""

from __future__ import annotations

import subprocess

import pytest

no_signals = pytest.mark.skipon_spawn_backend(
    'subint', reason='every child is a process that gets the signal'
)


def check(done: subprocess.CompletedProcess[str]) -> None:
    """The program ended by itself, and as one that was interrupted."""
    assert done.stdout == 'KeyboardInterrupt\n', done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


RUN = """
if __name__ == '__main__':
    try:
        trio.run(main)
    except BaseException as err:
        print(type(err).__name__)
"""


def test_second_interrupt_ends_the_wait_for_the_runtime(run_program):
    """The first one ends the body; the second finds the runtime being cancelled."""
    done = run_program(
        """
import signal
from tractor.runtime import _hooks

async def interrupt_again():
    signal.raise_signal(signal.SIGINT)
    await trio.sleep_forever()

async def main():
    async with tractor.open_root_actor(registry_addrs=[REG_ADDR]):
        _hooks.install(interrupt_again, None)
        raise KeyboardInterrupt
"""
        + RUN
    )
    check(done)


def test_interrupt_between_body_and_join(run_program):
    """It waits for the next checkpoint; the children are cancelled as ever."""
    done = run_program(
        """
import signal
from tractor._protocol.supervise import Supervision

body_ended = Supervision.body_ended

def interrupt_first(self, error):
    signal.raise_signal(signal.SIGINT)
    body_ended(self, error)

async def main():
    Supervision.body_ended = interrupt_first
    async with tractor.open_nursery(registry_addrs=[REG_ADDR]) as an:
        await an.start_actor('child')
"""
        + RUN
    )
    check(done)


def test_interrupt_while_the_children_are_cancelled(run_program):
    """They are still waited for, and the nursery tells that it is over."""
    done = run_program(
        """
import signal

async def main():
    async with tractor.open_root_actor(registry_addrs=[REG_ADDR]):
        try:
            async with tractor.open_nursery() as an:
                await an.start_actor('child')
                end_child = an._end_child

                @trio.lowlevel.enable_ki_protection
                async def interrupt_first(uid):
                    signal.raise_signal(signal.SIGINT)
                    await end_child(uid)

                an._end_child = interrupt_first
                raise ValueError('of the body')
        finally:
            assert an.exited.is_set()
            assert not an._children
"""
        + RUN
    )
    check(done)


WATCH = """
import os
import sys

def watch(event, args):
    run = sys.modules.get('trio._core._run')
    context = getattr(run, 'GLOBAL_RUN_CONTEXT', None)
    if event != 'import' or not hasattr(context, 'runner'):
        return
    frame = sys._getframe(1)
    package = sys.modules['tractor'].__path__[0]
    while frame and not (path := frame.f_code.co_filename).startswith(package):
        if path.endswith(('/program.py', '/pytest/__init__.py')):
            return  # a user's own import
        frame = frame.f_back
    protected = sys.modules['trio.lowlevel'].currently_ki_protected()
    with open(os.environ['WATCHED'], 'a') as file:
        file.write(f'{protected} {args[0]} for {frame and frame.f_code.co_qualname}\\n')

sys.addaudithook(watch)
"""


def test_modules_load_under_protection(run_program, tmp_path, monkeypatch):
    """What the runtime has loaded in a run cannot be where a Ctrl-C is lost."""
    (tmp_path / 'sitecustomize.py').write_text(WATCH)
    monkeypatch.setenv('WATCHED', str(tmp_path / 'watched'))
    done = run_program(
        """
async def main():
    async with tractor.open_nursery(
        registry_addrs=[REG_ADDR], loglevel='error', enable_transports=['tcp', 'uds']
    ) as an:
        portal = await an.start_actor('child', enable_modules=[__name__])
        await portal.cancel_actor()
"""
        + RUN
    )
    assert done.returncode == 0, done.stderr
    watched = (tmp_path / 'watched').read_text().splitlines()
    assert any('True tractor._root ' in line for line in watched)
    assert [line for line in watched if not line.startswith('True ')] == []


@no_signals
@pytest.mark.parametrize('where', ['join', 'body', 'calls'])
def test_interrupt_of_all_processes_is_one_interrupt(run_program, where):
    """What the children make of theirs is not raised beside it."""
    done = run_program(
        """
import os
import signal
import sys

os.setpgrp()

async def be_busy():
    while True:
        sum(range(20_000))
        await trio.lowlevel.checkpoint()

async def main():
    where = sys.argv[1]
    async with tractor.open_nursery(registry_addrs=[REG_ADDR]) as an:
        for number in range(3):
            task = be_busy if number else trio.sleep_forever
            await an.run_in_actor(task, name=f'child_{number}')
        daemon = await an.start_actor('daemon', enable_modules=[__name__])

        async def interrupt():
            if where != 'join':
                os.killpg(0, signal.SIGINT)
                return
            await an._join_procs.wait()
            for _, proc, _ in an._children.values():
                os.kill(proc.pid, signal.SIGINT)
            with trio.fail_after(5):
                while not an._sup.errors:
                    await trio.lowlevel.checkpoint()
            signal.raise_signal(signal.SIGINT)

        trio.lowlevel.spawn_system_task(interrupt)
        if where == 'calls':
            async with trio.open_nursery() as tn:
                tn.start_soon(daemon.run, be_busy)
                tn.start_soon(daemon.run, be_busy)
                await trio.sleep_forever()
        if where == 'body':
            await trio.sleep_forever()
"""
        + RUN,
        where,
    )
    check(done)
