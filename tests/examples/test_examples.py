"""Every example as a user runs it: a program of its own that leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / 'examples'
LIMIT = 16  # seconds that an example may take
needs_subint = pytest.mark.skipif(
    sys.version_info < (3, 14), reason='sub-interpreters need Python 3.14'
)

# What each small example must say, as patterns that match in this order.
SAID = {
    'hello_actor.py': [
        r'the root runs in process (\d+)',
        r"hello world, I am 'greeter' in process (?!\1\b)\d+",
        r'the greeter is gone',
    ],
    'two_way_stream.py': [
        r'averaging in km',
        r'3 -> 3\.0 km\s+4 -> 3\.5 km\s+8 -> 5\.0 km',
        r'3 numbers were averaged',
    ],
    'discovery/client_program.py': [
        r'registry: ready',
        r'client: I am the registrar: False',
        r'client: the clock says \d\d:\d\d:\d\d UTC',
        r'client: nobody is called sundial',
        r'registry: closed',
    ],
    'errors_three_levels.py': [
        r'raised: ZeroDivisionError',
        r'by: leaf',
        r'came through: leaf -> middle',
        r'the third level divided by zero',
    ],
    'restarting_supervisor.py': [
        r"attempt 1: ActorDied: .*'worker'",
        r"attempt 2: ActorDied: .*'worker'",
        r'done in attempt 3',
    ],
    'worker_pool.py': [r'(?:\d+ primes below +[\d,]+ \(process \d+\)\s*){6}'],
}


class Program:
    """One example in a session of its own; kills what is left of it at the end."""

    def __init__(self, example: str, *args: str, paths: Sequence[Path] = ()) -> None:
        path = os.pathsep.join(map(str, [*paths, ROOT]))
        env = {**os.environ, 'PYTHONPATH': path}
        for name in ('TRACTOR_SPAWN_METHOD', 'TRACTOR_LOGLEVEL'):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / example), *args],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *args: object) -> None:
        for left in self.alive():
            left.kill()
        self.process.communicate()

    def alive(self) -> list[psutil.Process]:
        """Return the living processes that this program started, itself included."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if os.getsid(process.pid) == self.process.pid:
                    found.append(process)
            except (psutil.Error, ProcessLookupError):
                continue
        return found

    def left(self) -> list[psutil.Process]:
        """Return who does not end with the program; a server takes a moment."""
        alive: list[psutil.Process] = psutil.wait_procs(self.alive(), timeout=5)[1]
        return alive

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end; return status, standard output and standard error."""
        out, err = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, out, err


def check_stderr(err: str) -> None:
    """No example ends with an error that it was to handle."""
    assert 'Error' not in (err.splitlines() or [''])[-1], err


@pytest.mark.parametrize('example', SAID)
def test_small_example(example):
    """It says what its docstring promises, ends well, and no process is left."""
    with Program(example) as program:
        status, out, err = program.finish()
        assert status == 0, err
        assert re.search('[^\0]*?'.join(SAID[example]), out), out + err
        check_stderr(err)
        assert program.left() == []


def test_client_without_a_clock():
    """Where nobody offers the service, the client says so and ends well."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        host, port = free.getsockname()
    with Program('discovery/client_program.py', host, str(port)) as program:
        status, out, err = program.finish()
    assert status == 0, err
    assert 'client: nobody is called clock' in out


def test_every_example_is_tested():
    """A new example needs a row in the table, or tests of its own."""
    found = {p.relative_to(EXAMPLES).as_posix() for p in EXAMPLES.rglob('*.py')}
    assert found == {*SAID, 'discovery/registry_program.py', 'census.py'}


@pytest.mark.parametrize('example', [*SAID, 'discovery/registry_program.py'])
def test_small_examples_are_small(example):
    """What takes more than a page explains nothing at a glance."""
    lines = (EXAMPLES / example).read_text().splitlines()
    assert len(lines) <= 60
    assert 'What to see:' in '\n'.join(lines)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree of source; one file of it does not parse."""
    package = tmp_path / 'boxes'
    package.mkdir()
    (tmp_path / 'loose.py').write_text('import os\nfrom sys import path\n')
    (package / '__init__.py').write_text('')
    (package / 'box.py').write_text(
        'import os\n\n\nclass Box:\n    def open(self):\n        if os:\n'
        '            return 1\n\n    async def close(self):\n        def inner():\n'
        '            return 2\n'
    )
    (package / 'broken.py').write_text('def open(:\n')
    (package / 'bytes.py').write_bytes(b'\xff\xfe')
    (package / 'notes.txt').write_text('no source')
    return tmp_path


@pytest.mark.parametrize(
    ('backend', 'transport', 'actors'),
    [
        ('trio', 'uds', 1),
        ('trio', 'uds', 2),
        ('trio', 'tcp', 2),
        ('mp_spawn', 'uds', 2),
        ('mp_forkserver', 'uds', 2),
        pytest.param('subint', 'uds', 2, marks=needs_subint),
    ],
)
def test_census_of_a_small_tree(tree, backend, transport, actors):
    """The counts are right for every backend; broken files are only reported."""
    options = ['--backend', backend, '--transport', transport, '--actors', str(actors)]
    with Program('census.py', *options, str(tree)) as program:
        status, out, err = program.finish()
        assert status == 0, err
        check_stderr(err)
        lines = [line.split() for line in out.splitlines()]
        assert ['package', 'files', 'lines', 'functions', 'classes', 'imports'] in lines
        assert ['boxes', '4', '13', '3', '1', '1'] in lines
        assert ['(modules)', '1', '2', '0', '0', '2'] in lines
        assert ['total', '5', '15', '3', '1', '3'] in lines
        assert '3 lines  Box.open  boxes/box.py:5' in out
        assert '2 lines  Box.close.inner  boxes/box.py:10' in out
        assert '2 files do not parse' in out
        assert re.search(r'boxes/broken\.py: SyntaxError: ', out)
        assert re.search(r'boxes/bytes\.py: \w+Error: ', out)
        assert ('speed-up' in out) == (actors > 1)
        assert program.left() == []


@pytest.mark.parametrize(
    'backends', ['trio,mp_spawn', pytest.param('trio,subint', marks=needs_subint)]
)
def test_census_compares_backends(tree, backends):
    """Both count the same tree; one report, and a line that compares them."""
    first, second = backends.split(',')
    with Program(
        'census.py', '--backend', backends, '--actors', '2', str(tree)
    ) as program:
        status, out, err = program.finish()
        assert status == 0, err
        check_stderr(err)
        assert len(re.findall(r'^total +5 +15 ', out, re.MULTILINE)) == 1
        for backend in (first, second):
            assert f'2 actors ({backend}, uds): started in' in out
            assert re.search(rf'^{backend} .*MB/s +\d+\.\d\d$', out, re.MULTILINE)
        assert re.search(
            rf'^{second} against {first}: started in [\d.]+ x the time, '
            r'counted in [\d.]+ x the time$',
            out,
            re.MULTILINE,
        )
        assert program.left() == []


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['loose.py'], 'not a directory: .*loose.py'),
        (['empty'], 'no Python files below .*empty'),
        (['--backend', 'nope'], "--backend nope: there is no spawn method 'nope'"),
        (['--backend', 'trio,'], "--backend : there is no spawn method ''"),
        pytest.param(
            ['--backend', 'trio,subint'],
            '--backend subint: .*3.14',
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 14), reason='sub-interpreters are there'
            ),
        ),
    ],
)
def test_census_refuses_wrong_use(tree, arguments, told):
    """What cannot be counted, or by whom, is told as such before any actor starts."""
    (tree / 'empty').mkdir()
    arguments = [
        str(tree / name) if (tree / name).exists() else name for name in arguments
    ]
    with Program('census.py', *arguments) as program:
        status, out, err = program.finish()
    assert status == 2
    assert out == ''
    assert re.search(f'^census.py: error: {told}', err, re.MULTILINE), err


def test_census_is_interrupted_at_once(tmp_path):
    """Ctrl-C while it still loads its imports: status 130, and no traceback."""
    slow = tmp_path / 'trio.py'
    slow.write_text("print('loading', flush=True)\nwhile True:\n    pass\n")
    with Program('census.py', paths=[tmp_path]) as program:
        assert program.process.stdout is not None
        assert program.process.stdout.readline() == 'loading\n'
        program.process.send_signal(signal.SIGINT)
        status, out, err = program.finish()
    assert (status, out, err) == (130, '', '')


def wait_until_interrupts_are_ignored(program: Program, actors: int) -> None:
    """Wait for the actors to leave them to the program, as their first task does."""
    end = time.monotonic() + LIMIT
    while sum(map(ignores_interrupts, program.alive())) < actors:
        assert time.monotonic() < end, program.alive()
        time.sleep(0.01)  # another process's signal handlers send no event


def ignores_interrupts(process: psutil.Process) -> bool:
    status = Path(f'/proc/{process.pid}/status').read_text(encoding='ascii')
    mask = int(re.findall('^SigIgn:\t(.*)$', status, re.MULTILINE)[0], 16)
    return bool(mask & 1 << signal.SIGINT - 1)


@pytest.mark.parametrize(
    'backend', ['trio', pytest.param('subint', marks=needs_subint)]
)
@pytest.mark.parametrize('whom', ['program', 'terminal'])
def test_census_is_interrupted(tmp_path, whom, backend):
    """Ctrl-C, to the program or to all its processes: partial counts, no process."""
    source = 'def function():\n    return [x for x in range(9) if x % 2]\n' * 600
    for number in range(300):
        (tmp_path / f'f{number}.py').write_text(source)
    options = ['--backend', backend, '--actors', '2']
    with Program('census.py', *options, str(tmp_path)) as program:
        process = program.process
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first.startswith('counting [')
        if whom == 'terminal':
            if backend == 'trio' and sys.platform == 'linux':
                wait_until_interrupts_are_ignored(program, 2)
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGINT)
        status, out, err = program.finish()
        assert status == 130, err
        assert 'Traceback' not in err
        assert program.left() == []
    assert 'interrupted' in out
    counted = re.search(r'^total +(\d+) ', out, re.MULTILINE)
    assert counted is not None
    assert 0 < int(counted[1]) < 300
