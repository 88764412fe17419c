"""The leak check of the suite: what it catches and what it allows."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# An inner suite has the same conftest; its leaks need not be waited for as long.
CONFTEST = (Path(__file__).parent / 'conftest.py').read_text(encoding='utf-8')
QUICK = CONFTEST.replace('GRACE_SECONDS: Final = 2.0', 'GRACE_SECONDS: Final = 0.2')

LEAKS = '''
    import os, signal, subprocess, sys, threading
    from multiprocessing import resource_tracker, shared_memory

    kept = []
    released = threading.Event()
    stop, stopper = os.pipe()
    made, maker = os.pipe()

    ANOTHER_PROGRAM = """if True:
        import sys
        from multiprocessing import shared_memory
        segment = shared_memory.SharedMemory(create=True, size=1)
        print('.', flush=True)
        sys.stdin.read()
        segment.close()
        segment.unlink()
    """

    def test_process():
        kept.append(subprocess.Popen(['sleep', '60']))

    def test_orphan():
        subprocess.run(['sh', '-c', 'sleep 61 & exit'])

    def test_zombie():
        kept.append(subprocess.Popen(['true']))

    def test_thread():
        threading.Thread(target=released.wait, name='stray').start()

    def test_actor_thread():
        name = 'tractor-subint worker'
        threading.Thread(target=released.wait, name=name, daemon=True).start()

    def test_daemon():
        threading.Thread(target=released.wait, daemon=True).start()

    def test_interpreter():
        if sys.version_info >= (3, 14):
            import _interpreters
            kept.append(_interpreters.create())

    def test_descriptor():
        os.pipe()

    def test_lone_descriptor():
        os.open(os.devnull, os.O_RDONLY)

    def test_segment():
        segment = shared_memory.SharedMemory(create=True, size=1)
        resource_tracker.unregister(segment._name, 'shared_memory')
        os.close(segment._fd)  # another one belongs to the mapping
        segment._fd = -1
        kept.append(segment)  # a suite beside this one sees by the mapping whose it is

    def test_segment_of_another_program():
        program = [sys.executable, '-c', ANOTHER_PROGRAM]
        command = ['setsid', '--fork', *program]
        subprocess.run(command, stdin=stop, stdout=maker, check=True)
        assert os.read(made, 1) == b'.'

    def test_after_them():
        released.set()
        os.close(stopper)

    def test_slow_but_clean():
        threading.Thread(target=threading.Event().wait, args=(0.02,)).start()

    def test_helpers_of_multiprocessing():
        resource_tracker.ensure_running()

    def test_cycle_with_a_descriptor():
        cycle = [open(os.devnull)]
        cycle.append(cycle)
'''


@pytest.fixture(scope='module')
def outcome(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an inner run says about one test of each kind."""
    folder = tmp_path_factory.mktemp('leaks')
    (folder / 'conftest.py').write_text(QUICK, encoding='utf-8')
    (folder / 'test_inner.py').write_text(textwrap.dedent(LEAKS), encoding='utf-8')
    command = [sys.executable, '-m', 'pytest', '-rA', '-p', 'no:cacheprovider']
    done = subprocess.run(
        [*command, '-W', 'ignore', '--rootdir=.', 'test_inner.py'],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ('test', 'named'),
    [
        ('process', r'process \d+ (sleep 60)'),
        ('orphan', r'process \d+ (sleep 61)'),
        ('zombie', r'process \d+ (a zombie: nobody waited for it)'),
        ('thread', r"thread 'stray'"),
        ('actor_thread', r"thread 'tractor-subint worker'"),
        pytest.param(
            *('interpreter', r'sub-interpreter \d+'),
            marks=pytest.mark.skipif(
                sys.version_info < (3, 14), reason='no actor lives in one before 3.14'
            ),
        ),
        ('descriptor', r'file descriptor \d+ (pipe:*'),
        ('lone_descriptor', r'file descriptor \d+ (/dev/null)'),
        (
            'segment',
            r'file descriptor \d+ (/dev/shm/psm_*); shared memory /dev/shm/psm_*',
        ),
    ],
)
def test_leak_fails_its_test_by_name(outcome: str, test: str, named: str) -> None:
    """Each kind of leak fails the test that made it, and the message names it."""
    pattern = named.replace(r'\d+', '[0-9]*')
    for mark in '()':
        pattern = pattern.replace(mark, f'[{mark}]')
    matcher = pytest.LineMatcher(outcome.splitlines())
    matcher.fnmatch_lines([f'ERROR *test_{test} - Failed: the test left behind: *'])
    matcher.fnmatch_lines([f'*left behind: {pattern}*'])


@pytest.mark.parametrize(
    'test',
    [
        'segment_of_another_program',
        'after_them',
        'daemon',
        'slow_but_clean',
        'helpers_of_multiprocessing',
        'cycle_with_a_descriptor',
    ],
)
def test_what_is_no_leak_passes(outcome: str, test: str) -> None:
    """Nor are what others hold, later tests, daemons, a slow end and garbage."""
    assert f'ERROR test_inner.py::test_{test}' not in outcome
    assert f'PASSED test_inner.py::test_{test}' in outcome
