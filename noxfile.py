"""
The project's jobs, started with `./noxw -s NAME`.

The interpreters come from `requires-python` and the backends from `SpawnMethodKey`, so
that neither is listed twice.  Every environment is an editable, byte-compiled install
with the versions of `constraints.txt`; it is kept and used again until those change.

What follows `--` goes to pytest (or to the script, for `demo` and `bench`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Final

import nox

ROOT: Final = Path(__file__).parent
INPUTS: Final = ('pyproject.toml', 'constraints.txt')
WKT_ENV: Final = ROOT / 'wkt.env'
OPEN_WKT: Final = 'ai/skills/open-wkt/open_wkt.py'

# One test may take this many seconds; a hang ends the run with all threads' stacks.
TEST_SECONDS: Final = 120

# Rounds of the long proofs: in full before a release, and with `-- --short`.
PROOF_ROUNDS: Final = {
    'chaos': (200, 5),
    'soak': (500, 25),
    'fuzz': (100_000, 500),
    'subint': (500, 25),
    'interrupts': (200, 10),
}
# The same for the whole suite in a row, where the suite is one round.
SUITE_ROUNDS: Final = (20, 1)  # in full, in short
# No actor of these backends is a process of its own, which `chaos` could kill.
NO_PROCESS: Final = frozenset({'subint'})
# What a change of the spawn layer can break first: `tests -- --quick`.
QUICK: Final = (
    'tests/spawn',
    'tests/_testing',
    'tests/test_layers.py',
    'tests/trees/test_cancellation.py',
    'tests/trees/test_context_outcomes.py',
)
# Prints why the interpreter it runs on lacks a backend, nothing if it has it.
PROBE: Final = """
import sys
from tractor.spawn._spawn import try_set_start_method
try:
    try_set_start_method(sys.argv[1])
except RuntimeError as err:
    print('LACKS', *str(err).split())
"""
# A proof is one long test; its limit is there for a hang only.
PROOF_SECONDS: Final = 3600


def load_pythons() -> list[str]:
    """Return the minor versions of the range, as `./noxw` reads them."""
    spec = importlib.util.spec_from_file_location('pythons', ROOT / '.ci/pythons.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.versions()
    return found


def load_backends() -> list[str]:
    """Return the keys of `SpawnMethodKey`, read from its source without an import."""
    path = ROOT / 'tractor/spawn/_spawn.py'
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        match node:
            case (
                ast.AnnAssign(target=ast.Name(id='SpawnMethodKey'), value=value)
                | ast.Assign(targets=[ast.Name(id='SpawnMethodKey')], value=value)
                | ast.TypeAlias(name=ast.Name(id='SpawnMethodKey'), value=value)
            ):
                assert isinstance(value, ast.Subscript)
                keys = ast.literal_eval(value.slice)
                return [keys] if isinstance(keys, str) else list(keys)
    raise SystemExit(f'{path} defines no SpawnMethodKey')


PYTHONS: Final = load_pythons()
# The first version with what the backend of sub-interpreters needs.
SUBINT_PYTHON: Final = '3.14'
# A job that does more there: the Python that runs nox, and that one.
BOTH_PYTHONS: Final = list(
    dict.fromkeys(('{}.{}'.format(*sys.version_info), SUBINT_PYTHON))
)

nox.options.default_venv_backend = 'uv'
nox.options.download_python = 'never'
nox.options.error_on_missing_interpreters = os.environ.get('CI') == 'true'
nox.options.reuse_venv = 'yes'
nox.options.sessions = ['lint', 'types', 'tests']


def prepare(session: nox.Session, *packages: str) -> None:
    """
    Install into the session's environment, unless it already holds just this.

    Bytecode is written for what is installed and, by Python itself, for the project: a
    child process that compiles what it imports is several times slower to start.
    """
    digest = hashlib.sha256('\0'.join(packages).encode())
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    stamp = session.env_dir / 'installed'
    if not stamp.is_file() or stamp.read_text(encoding='utf-8') != digest.hexdigest():
        session.install(
            '--quiet',
            '--compile-bytecode',
            '--constraints=constraints.txt',
            '--build-constraints=constraints.txt',
            *packages,
        )
        stamp.write_text(digest.hexdigest(), encoding='utf-8')
    session.env['PYTHONDONTWRITEBYTECODE'] = None
    # In a worktree that `open_wkt` made: a socket directory of its own.
    if WKT_ENV.is_file():
        name, _, value = WKT_ENV.read_text(encoding='utf-8').strip().partition('=')
        Path(value).mkdir(mode=0o700, exist_ok=True)  # what cleans /tmp may take it
        found = Path(value).lstat()
        if found.st_uid != os.getuid() or stat.filemode(found.st_mode) != 'drwx------':
            session.error(
                f'{value} is not yours alone: close this worktree, and reopen'
            )
        session.env[name] = value


def prepare_tests(session: nox.Session) -> None:
    """Install the project, editable, and what its tests need."""
    prepare(session, '--editable=.', '--group=test')


def names_a_path(argument: str) -> bool:
    """Tell whether an argument says what to run, as against an option of pytest."""
    return (ROOT / argument.partition('::')[0]).exists()


def run_pytest(
    session: nox.Session, *arguments: str, seconds: float = TEST_SECONDS
) -> bool:
    """Run pytest once and tell whether it passed; no test at all is a failure."""
    selection = () if any(map(names_a_path, arguments)) else ('tests',)
    # The other method takes SIGALRM, which is for the tests themselves to use.
    limit = (f'--timeout={seconds:g}', '--timeout-method=thread')
    command = ('pytest', *limit, *arguments, *selection)
    try:
        session.run('python', '-m', *command)
    except nox.command.CommandFailed:
        return False
    return True


def why_lacking(session: nox.Session, backend: str) -> str | None:
    """Ask the session's own interpreter why it lacks a backend; `None`: it has it."""
    command = ('python', '-c', PROBE, backend)
    said = str(session.run(*command, silent=True, log=False))
    for line in said.splitlines():
        if line.startswith('LACKS '):
            return line.removeprefix('LACKS ')
    return None


def backends_of(
    session: nox.Session, without: frozenset[str] = frozenset()
) -> list[str]:
    """Return the backends that the session's interpreter has; name what it lacks."""
    found = []
    for backend in load_backends():
        if backend in without:
            continue
        reason = why_lacking(session, backend)
        if reason is None:
            found.append(backend)
        else:
            session.log(f'{session.name} {backend:<16} SKIPPED  {reason}')
    if not found:
        session.error('this interpreter has no backend at all; see above')
    return found


def finish(session: nox.Session, results: dict[str, tuple[bool, float]]) -> None:
    """Print one line for each run, and fail the session if one of them failed."""
    for name, (passed, seconds) in results.items():
        verdict = 'passed' if passed else 'FAILED'
        session.log(f'{session.name} {name:<16} {verdict}  {seconds:6.1f} s')
    failed = [name for name, (passed, _) in results.items() if not passed]
    if failed:
        session.error(f'failed: {", ".join(failed)}')


def run_backends(
    session: nox.Session,
    *arguments: str,
    seconds: float = TEST_SECONDS,
    without: frozenset[str] = frozenset(),
) -> None:
    """Run pytest once for each backend, or as `--spawn-backend` says."""
    asked = any(argument.startswith('--spawn-backend') for argument in arguments)
    backends = [] if asked else backends_of(session, without)
    results = {}
    for backend in backends or ['as asked']:
        option = [f'--spawn-backend={backend}'] if backends else []
        start = time.monotonic()
        passed = run_pytest(session, *option, *arguments, seconds=seconds)
        results[backend] = passed, time.monotonic() - start
    finish(session, results)


def split(session: nox.Session, flag: str = '--short') -> tuple[bool, list[str]]:
    """Return whether a flag of our own was given, and the other arguments."""
    others = [argument for argument in session.posargs if argument != flag]
    return len(others) < len(session.posargs), others


@nox.session(python=BOTH_PYTHONS)
def demo(session: nox.Session) -> None:
    """Run the main example, a census of Python source, once: on 3.14 if it is there."""
    backends = []
    if session.python == SUBINT_PYTHON:
        if not any(argument.startswith('--backend') for argument in session.posargs):
            backends = ['--backend=trio,subint']
    elif shutil.which(f'python{SUBINT_PYTHON}'):
        session.skip(f'it runs on Python {SUBINT_PYTHON}, where it has more to show')
    else:
        session.log(f'without subint: Python {SUBINT_PYTHON} is missing')
    prepare(session, '--editable=.')
    session.run('python', 'examples/census.py', *backends, *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suite on every backend; `--spawn-backend KEY`, `--quick` for a part."""
    prepare_tests(session)
    quick, arguments = split(session, '--quick')
    if quick:
        arguments += QUICK
    run_backends(session, *arguments)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the source with ruff, that it is formatted, and the prompt log."""
    prepare(session, '--group=lint')
    failed = []
    for check in (('check',), ('format', '--check')):
        try:
            session.run('ruff', *check, *(session.posargs or ['.']))
        except nox.command.CommandFailed:
            failed.append(f'ruff {check[0]}')
    try:
        session.run('python', 'ai/prompt-io/check.py')
    except nox.command.CommandFailed:
        failed.append('prompt log')
    if failed:
        session.error(f'failed: {", ".join(failed)}')


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package with mypy, in strict mode."""
    prepare(session, '--editable=.', '--group=test', '--group=lint')
    # One of our libraries brings stubs of an old trio, which hide trio's own types.
    session.run('uv', 'pip', 'uninstall', '--quiet', 'trio-typing', external=True)
    session.run('mypy', '--strict', *(session.posargs or ['tractor']))


@nox.session(python=BOTH_PYTHONS)
def bench(session: nox.Session) -> None:
    """Measure, and compare with the budgets; on 3.14 what sub-interpreters cost."""
    prepare_tests(session)
    # The base rows stay on one interpreter, so that they compare with earlier ones.
    rows = 'all' if session.python == BOTH_PYTHONS[0] else 'subint'
    session.run('python', 'bench/run.py', f'--rows={rows}', *session.posargs)


def proof(name: str, short: bool) -> tuple[str, str]:
    """Return what of a proof pytest has to run, and how often."""
    path = (
        'tests/ipc/test_fuzz.py' if name == 'fuzz' else f'tests/proofs/test_{name}.py'
    )
    return path, f'--proof-rounds={PROOF_ROUNDS[name][short]}'


def prove(session: nox.Session, name: str) -> None:
    """Run one long proof, in full or in its short form."""
    prepare_tests(session)
    short, arguments = split(session)
    what = proof(name, short)
    if not run_pytest(session, *what, *arguments, seconds=PROOF_SECONDS):
        session.error(f'{name} failed within {PROOF_ROUNDS[name][short]} rounds')


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill random actors on each process backend; `-- --short` for a short form."""
    prepare_tests(session)
    short, arguments = split(session)
    run_backends(
        session,
        *proof('chaos', short),
        *arguments,
        seconds=PROOF_SECONDS,
        without=NO_PROCESS,
    )


@nox.session
def soak(session: nox.Session) -> None:
    """Run one tree for long and count what it holds; `-- --short` for a short form."""
    prove(session, 'soak')


@nox.session
def fuzz(session: nox.Session) -> None:
    """Feed the protocol what no peer should send; `-- --short` for a short form."""
    prove(session, 'fuzz')


@nox.session(python=SUBINT_PYTHON)
def subint(session: nox.Session) -> None:
    """Start, reap and crash sub-interpreters; `-- --short` for a short form."""
    prove(session, 'subint')


@nox.session(python=SUBINT_PYTHON)
def interrupts(session: nox.Session) -> None:
    """Press Ctrl-C at any moment of a program; `-- --short` for a short form."""
    prove(session, 'interrupts')


@nox.session(python=PYTHONS)
def twenty(session: nox.Session) -> None:
    """Run the suite twenty times in a row; `-- --short` for once."""
    prepare_tests(session)
    short, arguments = split(session)
    results = {}
    for number in range(1, SUITE_ROUNDS[short] + 1):
        start = time.monotonic()
        passed = run_pytest(session, *arguments)
        results[f'run {number}'] = passed, time.monotonic() - start
    finish(session, results)


def run_phases(session: nox.Session, *arguments: str) -> None:
    """Run the queue's own tool with the Python that runs nox."""
    if not (ROOT / 'patches/queue.toml').is_file():
        session.error('there is no patches/queue.toml in this tree')
    session.run(
        *(sys.executable, '.ci/phases.py', *arguments),
        external=True,
        interrupt_timeout=60,  # seconds, to end the tests and remove the worktree
        terminate_timeout=30,
    )


def verify_phase(session: nox.Session) -> None:
    """Check one phase on its own interpreters; `-- --quick`, `-- --python X.Y`."""
    run_phases(session, 'verify', session.name, *session.posargs)


for _phase in ('phase_a', 'phase_b', 'phase_c'):
    nox.session(verify_phase, name=_phase, python=False)


@nox.session(python=PYTHONS[-1])  # some modules cannot be imported on an older one
def queue(session: nox.Session) -> None:
    """Check the patch queue: each patch applies and passes, and is what landed."""
    prepare_tests(session)  # what the modules of `_testing` import is in there
    session.run('python', '.ci/phases.py', 'queue', *session.posargs)


@nox.session(python=False)
def export(session: nox.Session) -> None:
    """Write a phase's branch into `patches/`: `-- phase_x [--cover FILE]`."""
    run_phases(session, 'export', *session.posargs)


@nox.session(python=False)
def land(session: nox.Session) -> None:
    """Verify a phase and merge it: `-- phase_x [--quick]`."""
    run_phases(session, 'land', *session.posargs)


@nox.session(python=False)
def open_wkt(session: nox.Session) -> None:
    """Make or re-enter a worktree: `-- NAME`, `-- --list`."""
    session.run(sys.executable, OPEN_WKT, *session.posargs, external=True)


@nox.session(python=False)
def close_wkt(session: nox.Session) -> None:
    """Remove a worktree unless it holds work: `-- NAME [--force]`."""
    session.run(sys.executable, OPEN_WKT, '--close', *session.posargs, external=True)
