"""Modules from a file path."""

from __future__ import annotations

import sys

import pytest

from tractor._code_load import load_module_from_path


@pytest.fixture(autouse=True)
def _restore_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_default_name_is_the_stem(tmp_path):
    """Without a name the module is named after the file and registered."""
    path = tmp_path / 'some_stem.py'
    path.write_text('value = __name__\n')
    module = load_module_from_path(path)
    assert module.value == 'some_stem'
    assert sys.modules['some_stem'] is module


def test_given_name_is_used(tmp_path):
    """A given dotted name is the module's name and gives it a package."""
    path = tmp_path / 'mod.py'
    path.write_text('')
    module = load_module_from_path(path, 'given_pkg.mod')
    assert sys.modules['given_pkg.mod'] is module
    assert module.__package__ == 'given_pkg'


def test_package_init_is_its_own_package(tmp_path):
    """An `__init__.py` loads as a package."""
    path = tmp_path / '__init__.py'
    path.write_text('')
    assert load_module_from_path(path, 'init_pkg').__package__ == 'init_pkg'


def test_module_sees_itself_registered_while_it_runs(tmp_path):
    """The module is in `sys.modules` during its own execution."""
    path = tmp_path / 'selfish.py'
    path.write_text('import sys\nme = sys.modules[__name__]\n')
    module = load_module_from_path(path)
    assert module.me is module


def test_failure_leaves_no_module(tmp_path):
    """A module whose code raises is not registered."""
    path = tmp_path / 'broken_mod.py'
    path.write_text('1 / 0\n')
    with pytest.raises(ZeroDivisionError):
        load_module_from_path(path)
    assert 'broken_mod' not in sys.modules


def test_failure_restores_the_previous_module(tmp_path):
    """A failed reload leaves the module that was there."""
    path = tmp_path / 'again_mod.py'
    path.write_text('')
    first = load_module_from_path(path)
    path.write_text('raise KeyError\n# longer\n')
    with pytest.raises(KeyError):
        load_module_from_path(path)
    assert sys.modules['again_mod'] is first


def test_unknown_kind_of_file(tmp_path):
    """A file no importer takes is an `ImportError` that tells the remedy."""
    with pytest.raises(ImportError, match=r'pass a \.py file'):
        load_module_from_path(tmp_path / 'data.xyz')


def test_missing_file(tmp_path):
    """A missing file is a `FileNotFoundError`, and nothing is registered."""
    with pytest.raises(FileNotFoundError):
        load_module_from_path(tmp_path / 'missing_mod.py')
    assert 'missing_mod' not in sys.modules
