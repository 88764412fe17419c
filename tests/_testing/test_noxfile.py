"""How sessions choose the backends that they run on one interpreter."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from tractor._testing import repodir
from tractor._testing._backends import known

REFUSE_ONE = """try:
    if sys.argv[1] == 'mp_spawn':
        raise RuntimeError('mp_spawn needs another interpreter,\\nnot this')"""
REFUSE_ALL = REFUSE_ONE.replace("if sys.argv[1] == 'mp_spawn'", 'if True')


class Session:
    """What the choice needs of a nox session: its interpreter, its log, its end."""

    name = 'tests-3.x'

    def __init__(self) -> None:
        self.logged: list[str] = []
        self.posargs: list[str] = []

    def run(self, program: str, *arguments: str, **how: bool) -> str:
        """Run this interpreter, as the session would run its own."""
        assert program == 'python'
        assert how['silent']
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=repodir(),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout

    def log(self, text: str) -> None:
        """Keep a line."""
        self.logged.append(text)

    def error(self, text: str) -> None:
        """End the session."""
        raise SystemExit(text)


@pytest.fixture(scope='module')
def noxfile() -> ModuleType:
    """The project's jobs."""
    spec = importlib.util.spec_from_file_location('noxfile', repodir() / 'noxfile.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_backend_of_the_literal_is_run_or_named(noxfile):
    """Those the interpreter lacks are logged with the reason, the others are run."""
    session = Session()
    found = noxfile.backends_of(session)
    assert 'trio' in found
    assert len(found) + len(session.logged) == len(known())


def test_backend_that_is_lacking_is_logged_with_its_reason(noxfile, monkeypatch):
    """The reason is the backend's own, on one line, and the others still run."""
    monkeypatch.setattr(noxfile, 'PROBE', noxfile.PROBE.replace('try:', REFUSE_ONE, 1))
    session = Session()
    found = noxfile.backends_of(session)
    assert 'mp_spawn' not in found
    assert found[0] == 'trio'
    [line] = [line for line in session.logged if ' mp_spawn ' in line]
    assert line.endswith('SKIPPED  mp_spawn needs another interpreter, not this')


def test_interpreter_without_any_backend_is_an_error(noxfile, monkeypatch):
    """No test at all must not look like success."""
    monkeypatch.setattr(noxfile, 'PROBE', noxfile.PROBE.replace('try:', REFUSE_ALL, 1))
    with pytest.raises(SystemExit, match='no backend at all'):
        noxfile.backends_of(Session())


@pytest.mark.parametrize(('posargs', 'rounds'), [([], 200), (['--short'], 5)])
def test_chaos_runs_on_each_process_backend(noxfile, monkeypatch, posargs, rounds):
    """In full and in short: one run for each, and none where a pid is no actor's."""
    runs = []
    monkeypatch.setattr(noxfile, 'prepare_tests', lambda _: None)
    monkeypatch.setattr(noxfile, 'why_lacking', lambda *_: None)
    monkeypatch.setattr(
        noxfile, 'run_pytest', lambda _, *a, seconds: not runs.append(a)
    )
    session = Session()
    session.posargs = posargs
    noxfile.chaos.func(session)
    what = ('tests/proofs/test_chaos.py', f'--proof-rounds={rounds}')
    backends = [key for key in known() if key != 'subint']
    assert runs == [(f'--spawn-backend={key}', *what) for key in backends]
    runs.clear()
    session.posargs = [*posargs, '--spawn-backend=trio']
    noxfile.chaos.func(session)
    assert runs == [(*what, '--spawn-backend=trio')]


def test_socket_directory_of_a_worktree_must_be_its_own(noxfile, monkeypatch, tmp_path):
    """It is made again if it is gone, and refused if others can look into it."""
    sockets = tmp_path / 'sockets'
    (tmp_path / 'wkt.env').write_text(f'XDG_RUNTIME_DIR={sockets}\n')
    (tmp_path / 'installed').touch()
    monkeypatch.setattr(noxfile, 'WKT_ENV', tmp_path / 'wkt.env')
    session = Session()
    session.env, session.env_dir = {}, tmp_path
    session.install = lambda *_: None
    noxfile.prepare(session)
    assert session.env['XDG_RUNTIME_DIR'] == str(sockets)
    sockets.chmod(0o755)
    with pytest.raises(SystemExit, match='is not yours alone'):
        noxfile.prepare(session)
    sockets.rename(tmp_path / 'elsewhere')
    sockets.symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(SystemExit, match='is not yours alone'):
        noxfile.prepare(session)
