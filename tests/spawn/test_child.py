"""The process of a `trio` child, before there is a runtime in it."""

from __future__ import annotations

import os

import pytest
import trio

import tractor
from tractor._exceptions import ActorFailure
from tractor.spawn import _lifeline

# Imported by every child, to name its process, before its runtime starts.
INTERRUPTER = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
def setproctitle(title): pass
"""


@pytest.mark.skipon_spawn_backend(
    'mp_spawn',
    'mp_forkserver',
    'subint',
    reason='only a `trio` child takes an environment',
)
def test_interrupt_of_a_booting_child_is_no_traceback(reg_addr, tmp_path, capfd):
    """Ctrl-C before the runtime is up waits for it, and ends the child in order."""
    (tmp_path / 'setproctitle.py').write_text(INTERRUPTER, encoding='utf-8')
    path = f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                env = {**os.environ, 'PYTHONPATH': path}
                await an.start_actor('booting', proc_kwargs={'env': env})

    with pytest.raises(ActorFailure, match='status 0 before it connected back'):
        trio.run(main)
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize('env', [{}, {'NAME': 'value'}, None])
def test_environment_is_the_given_one_also_if_it_is_empty(reg_addr, monkeypatch, env):
    """Only where none is given it is the parent's."""
    seen = {}

    async def look(command, *, env, **kwargs):
        seen.update(env)
        raise OSError('not started')

    monkeypatch.setattr(trio.lowlevel, 'open_process', look)

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                with pytest.raises(OSError, match='not started'):
                    await an.start_actor(
                        'child', start_method='trio', proc_kwargs={'env': env}
                    )

    trio.run(main)
    assert seen.pop(_lifeline.ENV)
    seen.pop('PYTHONBREAKPOINT', None)  # which a root sets while it is open
    inherited = {**os.environ}
    inherited.pop('PYTHONBREAKPOINT', None)
    assert seen == (inherited if env is None else env)
