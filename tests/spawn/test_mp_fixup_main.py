"""How a child gets the functions of its parent's `__main__`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from tractor._testing import repodir
from tractor.spawn import _mp_fixup_main

SCRIPT = """
import builtins
builtins.replayed.append(__name__)

def answer():
    return 42

if __name__ == '__main__':
    raise AssertionError('it was run as a program')
"""


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An empty `__main__` in place of the test runner's."""
    module = types.ModuleType('__main__')
    monkeypatch.setitem(sys.modules, '__main__', module)
    # Set and deleted: what the test puts there is removed with the patch.
    monkeypatch.setitem(sys.modules, '__mp_main__', module)
    monkeypatch.delitem(sys.modules, '__mp_main__')
    return module


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names under which `SCRIPT` was run."""
    runs: list[str] = []
    monkeypatch.setattr('builtins.replayed', runs, raising=False)
    return runs


def describe_in(*command: str, cwd: Path, stdin: str = '') -> dict[str, Any]:
    """Return what a fresh interpreter says of its own `__main__`."""
    result = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        input=stdin,
        env={'PYTHONPATH': str(repodir()), 'PATH': ''},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return json.loads(result.stdout)


DESCRIBE = (
    'import json; from tractor.spawn._mp_fixup_main import _describe_main; '
    'print(json.dumps(_describe_main()))'
)


# -- describing ------------------------------------------------------------------------


def test_script_is_described_by_its_path(tmp_path):
    """The path is absolute: a child may have another working directory."""
    script = tmp_path / 'program.py'
    script.write_text(DESCRIBE)
    found = describe_in('program.py', cwd=tmp_path)
    assert found == {'init_main_from_path': str(script)}


def test_module_is_described_by_its_name(tmp_path):
    """`python -m name` is run again by that name."""
    (tmp_path / 'program.py').write_text(DESCRIBE)
    found = describe_in('-m', 'program', cwd=tmp_path)
    assert found == {'init_main_from_name': 'program'}


@pytest.mark.parametrize('command', [('-c', DESCRIBE), ('-',)], ids=['-c', 'stdin'])
def test_what_has_no_file_cannot_be_run_again(tmp_path, command):
    """An interactive session gives its children no `__main__`."""
    found = describe_in(*command, cwd=tmp_path, stdin=DESCRIBE)
    assert found == {'init_main_from_path': ''}


# -- replaying -------------------------------------------------------------------------


def test_script_is_run_under_another_name(tmp_path, main, replayed):
    """Its functions are there, its `if __name__ == '__main__'` block is not run."""
    script = tmp_path / 'program.py'
    script.write_text(SCRIPT)
    _mp_fixup_main.replay({'init_main_from_path': str(script)})
    assert replayed == ['__mp_main__']
    module = sys.modules['__mp_main__']
    assert module is sys.modules['__main__']
    assert module is not main
    assert module.answer() == 42


def test_module_is_run_under_another_name(tmp_path, main, replayed, monkeypatch):
    """The same for a module that is found by its name."""
    (tmp_path / 'named_program.py').write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    _mp_fixup_main.replay({'init_main_from_name': 'named_program'})
    assert replayed == ['__mp_main__']
    assert sys.modules['__mp_main__'] is sys.modules['__main__']
    assert sys.modules['__main__'].answer() == 42
    assert 'named_program' not in sys.modules


def test_second_replay_runs_nothing(tmp_path, main, replayed, monkeypatch):
    """`multiprocessing` may have done it before the runtime does."""
    script = tmp_path / 'named_program.py'
    script.write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for data in (
        {'init_main_from_path': str(script)},
        {'init_main_from_name': 'named_program'},
    ):
        _mp_fixup_main.replay(data)
        first = sys.modules['__main__']
        _mp_fixup_main.replay(data)
        assert sys.modules['__main__'] is first
    assert replayed == ['__mp_main__', '__mp_main__']


@pytest.mark.parametrize(
    'data',
    [
        {},
        {'init_main_from_path': ''},
        {'init_main_from_name': 'package.__main__'},
        {'init_main_from_name': '__main__'},
        {'init_main_from_path': '/usr/bin/ipython'},
    ],
    ids=['nothing', 'no-file', 'package', 'main', 'ipython'],
)
def test_what_must_not_be_run_again_is_left_alone(main, data):
    """The child keeps the `__main__` it has."""
    _mp_fixup_main.replay(data)
    assert sys.modules['__main__'] is main
    assert '__mp_main__' not in sys.modules


def test_path_and_arguments_are_the_parents(main, replayed, tmp_path, monkeypatch):
    """The script may import its neighbours; what is importable here stays so."""
    script = tmp_path / 'program.py'
    script.write_text('import sys, neighbour_of_program\nfound = sys.argv[1:]\n')
    (tmp_path / 'neighbour_of_program.py').touch()
    arguments = ['program.py', 'text', 'caf\udce9']
    monkeypatch.setattr(sys, 'argv', arguments)
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    data = {**_mp_fixup_main.describe(), 'init_main_from_path': str(script)}
    monkeypatch.setattr(sys, 'argv', ['child'])
    monkeypatch.setattr(sys, 'path', [*sys.path[1:], 'of the child'])
    there = sys.path
    _mp_fixup_main.replay(data)
    assert sys.modules['__main__'].found == arguments[1:]
    assert sys.path is there
    assert sys.path[0] == str(tmp_path)
    assert sys.path[-1] == 'of the child'
    sys.modules.pop('neighbour_of_program')


def test_failing_script_fails_the_replay(tmp_path, main):
    """The error is the script's own, and `__main__` is not replaced by half of it."""
    script = tmp_path / 'broken.py'
    script.write_text('raise ValueError("broken on purpose")\n')
    with pytest.raises(ValueError, match='broken on purpose'):
        _mp_fixup_main.replay({'init_main_from_path': str(script)})
    assert sys.modules['__main__'] is main
    assert '__mp_main__' not in sys.modules
