"""Type unions as lists of names."""

from __future__ import annotations

import types
from typing import Any, Union

import pytest

import tractor.msg
from tractor.msg import NamespacePath
from tractor.msg._exts import dec_type_union, enc_type_union


@pytest.mark.parametrize(
    ('spec', 'names'),
    [
        (Any, ['Any']),
        (int, ['int']),
        (None, ['NoneType']),
        (NamespacePath | None, ['NamespacePath', 'NoneType']),
        (Union[str, int, None], ['str', 'int', 'NoneType']),  # noqa: UP007
    ],
)
def test_encode(spec, names):
    """Each member gives its qualified name, in order."""
    assert enc_type_union(spec) == names


def test_decode():
    """Names are looked up in `typing`, then in each module given."""
    assert dec_type_union(['Any']) is Any
    assert dec_type_union(['NamespacePath'], mods=[tractor.msg]) is NamespacePath
    spec = dec_type_union(['NamespacePath', 'NoneType'], mods=[tractor.msg, types])
    assert spec == NamespacePath | None


def test_unknown_names_are_dropped():
    """What is found nowhere is left out."""
    found = dec_type_union(['Nope', 'NamespacePath'], mods=[tractor.msg])
    assert found is NamespacePath


def test_nothing_found():
    """A union of nothing is an error that names the types and the remedy."""
    with pytest.raises(TypeError, match=r'Nope.*mods'):
        dec_type_union(['Nope'])
