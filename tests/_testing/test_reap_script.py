"""`scripts/tractor-reap`: what each option cleans."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys

import pytest

from tractor._testing import _reap, repodir

SCRIPT = repodir() / 'scripts/tractor-reap'
ORPHAN, CHILD, NO_ACTOR = 101, 102, 103

PROCESSES = [('processes', [ORPHAN], 3.0)]
SOCKETS = [('uds', ['a@1.sock'])]
SEGMENTS = [('shm', ['psm_1'])]


@pytest.fixture
def cleaned(monkeypatch):
    """What would be cleaned on this machine, recorded instead."""
    done = []

    def reap(pids, *, grace):
        done.append(('processes', pids, grace))
        return pids, []

    def unlink(kind):
        return lambda paths: done.append((kind, paths)) or (paths, [])

    children = {7: [CHILD, NO_ACTOR]}
    for name, stand_in in {
        'find_orphans': lambda root: [ORPHAN],
        'find_descendants': children.__getitem__,
        'find_orphaned_uds': lambda: ['a@1.sock'],
        'find_orphaned_shm': lambda: ['psm_1'],
        'reap': reap,
        'reap_uds': unlink('uds'),
        'reap_shm': unlink('shm'),
        '_is_tractor_subactor': lambda pid: pid != NO_ACTOR,
        '_read_cmdline': lambda pid: f'line of {pid}',
        '_is_alive': lambda pid: True,
    }.items():
        monkeypatch.setattr(_reap, name, stand_in)
    return done


@pytest.fixture
def main():
    """The script's entry, its options as arguments; it returns the exit status."""
    entry = runpy.run_path(str(SCRIPT))['main']
    return lambda *options: entry(list(options))


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ([], PROCESSES),
        (['-g', '0.5'], [('processes', [ORPHAN], 0.5)]),
        (['--parent', '7'], [('processes', [CHILD], 3.0)]),
        (['--uds'], PROCESSES + SOCKETS),
        (['--shm'], PROCESSES + SEGMENTS),
        (['--uds', '--shm'], PROCESSES + SOCKETS + SEGMENTS),
        (['--uds-only'], SOCKETS),
        (['--shm-only'], SEGMENTS),
        (['--uds-only', '--shm-only'], SOCKETS + SEGMENTS),
        (['--uds-only', '--shm'], SOCKETS + SEGMENTS),
    ],
)
def test_options_choose_what_is_cleaned(main, cleaned, options, expected):
    """Orphans or one's children, then sockets, then shared memory."""
    assert main(*options) == 0
    assert cleaned == expected


def test_dry_run_only_tells(main, cleaned, capsys):
    """One line for each thing that would be cleaned."""
    assert main('-n', '-p', '7', '--uds', '--shm') == 0
    assert cleaned == []
    assert capsys.readouterr().out.splitlines() == [
        f'would end {CHILD}: line of {CHILD}',
        'would unlink a@1.sock',
        'would unlink psm_1',
    ]


@pytest.mark.parametrize(
    ('name', 'stand_in', 'options'),
    [
        ('reap', lambda pids, grace: ([], []), []),
        ('reap_uds', lambda paths: ([], [(paths[0], OSError())]), ['--uds-only']),
        ('reap_shm', lambda paths: ([], [(paths[0], OSError())]), ['--shm-only']),
    ],
)
def test_what_could_not_be_cleaned_fails(
    main, cleaned, monkeypatch, name, stand_in, options
):
    """The exit status tells that something is left."""
    monkeypatch.setattr(_reap, name, stand_in)
    assert main(*options) == 1


def test_shared_memory_of_another_platform(main, cleaned, monkeypatch, capsys):
    """Where it cannot be listed, that is told."""

    def refuse():
        raise NotImplementedError('not here')

    monkeypatch.setattr(_reap, 'find_orphaned_shm', refuse)
    assert main('--shm') == 1
    assert 'not here' in capsys.readouterr().err
    assert cleaned == PROCESSES


def test_a_child_is_ended():
    """The program as people run it, on an actor that is a child of this process."""
    code = 'print("up", flush=True); import time; time.sleep(60)'
    with subprocess.Popen(
        [sys.executable, '-c', code, '_subactor[worker@1]'],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as actor:
        try:
            actor.stdout.readline()
            script = subprocess.run(
                [sys.executable, SCRIPT, '-p', str(os.getpid()), '-g', '1'],
                env=os.environ | {'PYTHONPATH': str(repodir())},
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            ended = actor.wait(timeout=10)
        finally:
            actor.kill()
    assert f'sent SIGINT to {actor.pid}' in script.stdout
    assert ended in (-signal.SIGINT, -signal.SIGKILL)
