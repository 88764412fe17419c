"""Function references as text."""

from __future__ import annotations

import os.path
import pickle
import textwrap
from pathlib import Path

import pytest

from tractor.msg.ptr import NamespacePath


def some_function():
    """A target."""


class Some:
    """A class with methods to refer to."""

    def method(self):
        """A target."""

    @classmethod
    def make(cls):
        """A target."""

    class Nested:
        """A target."""


@pytest.mark.parametrize(
    ('ref', 'name'),
    [
        (some_function, 'some_function'),
        (Some().method, 'Some.method'),
        (Some.make, 'Some.make'),
        (Some, 'Some'),
        (Some.Nested, 'Some.Nested'),
        (Some(), 'Some'),
    ],
)
def test_from_ref(ref, name):
    """The text is the module and the name the object is found under."""
    path = NamespacePath.from_ref(ref)
    assert type(path) is NamespacePath
    assert path == f'{__name__}:{name}'


def test_builtin():
    """A builtin function has a path too."""
    assert NamespacePath.from_ref(len) == 'builtins:len'


def test_load_ref_is_kept():
    """Loading gives the object itself, and looks it up once."""
    path = NamespacePath('os.path:join')
    assert path.load_ref() is os.path.join
    assert path._ref is os.path.join
    assert path.load_ref() is os.path.join


@pytest.mark.parametrize(
    'ref', [textwrap.dedent, pickle.Pickler, Path.cwd, len], ids=repr
)
def test_round_trip(ref):
    """What was referred to is what loads."""
    text = str(NamespacePath.from_ref(ref))
    assert NamespacePath(text).load_ref() == ref


def test_to_tuple():
    """The pair is rebuilt from the loaded object: where it really lives."""
    assert NamespacePath('json:dumps').to_tuple() == ('json', 'dumps')
    assert NamespacePath('os.path:join').to_tuple() == (os.path.join.__module__, 'join')


@pytest.mark.parametrize(
    ('text', 'error'),
    [
        ('not a path', ValueError),
        ('no_such_module_at_all:x', ImportError),
        ('json:no_such_name', AttributeError),
    ],
)
def test_load_errors(text, error):
    """Text that leads nowhere raises what the import system does."""
    with pytest.raises(error):
        NamespacePath(text).load_ref()


def test_is_a_plain_str_otherwise():
    """Equality, hash and pickling are those of the text."""
    path = NamespacePath('json:dumps')
    assert path == 'json:dumps'
    assert hash(path) == hash('json:dumps')
    path.load_ref()
    assert pickle.loads(pickle.dumps(path)) == path
    assert not hasattr(path, '__dict__')
