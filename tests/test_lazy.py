"""Export tables: what loads when, and what an unknown name says."""

from __future__ import annotations

import signal
import sys
from types import ModuleType

import pytest
import trio

from tractor._lazy import lazy_exports

NAME = 'lazy_pkg_under_test'


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package on disk whose `__init__` is a lazy table."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / '__init__.py').write_text(
        'from tractor._lazy import lazy_exports\n'
        '__getattr__, __dir__, __all__ = lazy_exports(__name__, {\n'
        f"    'thing': '{NAME}._impl:Thing',\n"
        "    'other': '._impl:other',\n"
        f"    'sub': '{NAME}.sub',\n"
        f"    '_private': '{NAME}._impl:_private',\n"
        f"    'gone': '{NAME}._impl:gone',\n"
        f"    'interrupted': '{NAME}.interrupted:end',\n"
        '})\n'
    )
    (folder / '_impl.py').write_text('class Thing: pass\nother = 2\n_private = 3\n')
    (folder / 'sub.py').write_text('here = True\n')
    (folder / 'interrupted.py').write_text(
        'import signal\nsignal.raise_signal(signal.SIGINT)\nend = True\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    pkg = __import__(NAME)
    yield pkg
    for name in [n for n in sys.modules if n.split('.')[0] == NAME]:
        del sys.modules[name]


def test_nothing_loads_before_first_use(package):
    """Importing the package imports none of the table's modules."""
    assert [n for n in sys.modules if n.startswith(NAME)] == [NAME]


def test_attribute_loads_its_module_and_is_kept(package):
    """The first access imports and stores the object; the next finds it there."""
    assert 'thing' not in vars(package)
    thing = package.thing
    assert thing is sys.modules[f'{NAME}._impl'].Thing
    assert vars(package)['thing'] is thing


def test_relative_target(package):
    """A target with a leading dot is relative to the package."""
    assert package.other == 2


def test_submodule(package):
    """A target without attribute is the module itself."""
    assert isinstance(package.sub, ModuleType)
    assert package.sub.here


def test_from_import_of_submodule_and_attribute(package):
    """`from package import name` goes through the table."""
    scope: dict[str, object] = {}
    exec(f'from {NAME} import sub, thing, _private', scope)
    assert scope['sub'] is package.sub
    assert scope['_private'] == 3


def test_unknown_name_has_the_usual_text(package):
    """An unknown name raises what a plain module would."""
    with pytest.raises(AttributeError) as info:
        _ = package.nope
    assert str(info.value) == f"module '{NAME}' has no attribute 'nope'"
    assert not hasattr(package, '__wrapped__')


def test_stale_entry_names_the_module_it_expects(package):
    """A table entry without its object is an `AttributeError` of that module."""
    with pytest.raises(AttributeError, match=r"_impl' has no attribute 'gone'"):
        _ = package.gone


def test_dir_and_all(package):
    """`dir()` lists all names, `__all__` the public ones in order."""
    assert {'thing', 'sub', '_private', '__name__'} <= set(dir(package))
    assert package.__all__ == ['thing', 'other', 'sub', 'gone', 'interrupted']


def test_star_import_binds_public_names(monkeypatch):
    """`from package import *` resolves every name of `__all__`."""
    module = ModuleType('lazy_star')
    table = {'sqrt': 'math:sqrt', 'path': 'os.path', '_hidden': 'math:pi'}
    getattr_fn, dir_fn, names = lazy_exports('lazy_star', table)
    vars(module).update(__getattr__=getattr_fn, __dir__=dir_fn, __all__=names)
    monkeypatch.setitem(sys.modules, 'lazy_star', module)
    scope: dict[str, object] = {}
    exec('from lazy_star import *', scope)
    assert {'sqrt', 'path'} <= set(scope)
    assert '_hidden' not in scope


def test_interrupt_in_a_trio_run_waits_until_a_module_is_loaded(package):
    """Then it comes at the next checkpoint, and the module is whole."""

    async def main():
        assert package.interrupted
        with pytest.raises(KeyboardInterrupt):
            await trio.lowlevel.checkpoint()

    trio.run(main)


def test_interrupt_outside_of_a_run_is_raised_at_once(package):
    """Python's own handler knows no protection."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        _ = package.interrupted
    assert package.thing
