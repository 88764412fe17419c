"""Where the parts of the checkout lie, and how its scripts are run."""

from __future__ import annotations

import os
import shlex

from tractor._testing import examples_dir, mk_cmd, repodir


def test_examples_lie_in_the_checkout():
    """The root holds the package, the tests and the examples."""
    assert (repodir() / 'tractor' / '_testing' / '__init__.py').is_file()
    assert examples_dir() == repodir() / 'examples'
    assert repodir().is_absolute()


def test_command_names_the_script(monkeypatch):
    """The command is `python` and the path of the script."""
    monkeypatch.setenv('PYTHON_COLORS', '1')
    script = str(examples_dir() / 'debugging' / 'some_script.py')
    assert shlex.split(mk_cmd('some_script')) == ['python', script]
    other = str(examples_dir() / 'advanced' / 'x.py')
    assert shlex.split(mk_cmd('x', exs_subpath='advanced'))[1] == other


def test_command_turns_colours_off(monkeypatch):
    """Terminal tests compare plain text."""
    monkeypatch.setenv('PYTHON_COLORS', '1')
    mk_cmd('some_script')
    assert os.environ['PYTHON_COLORS'] == '0'
