"""Functions that a peer can find, and those it would mistake for others."""

from __future__ import annotations

import functools
import importlib
import sys

import pytest
import trio

from tractor.runtime._endpoint import check_name


async def served() -> None:
    """One that can be found."""


class Thing:
    async def served(self) -> None:
        """Named like the function, and another one."""

    async def only_a_method(self) -> None:
        """Named like nothing in this module."""


def named_alike():
    async def served() -> None:
        """A local one."""

    return served


def decorate(func):
    @functools.wraps(func)
    async def wrapper() -> None:
        await func()

    return wrapper


def plain() -> None:
    """Its `__wrapped__` is what was passed."""


decorated = decorate(plain)
decorated.__name__ = 'decorated'
bound = Thing().served


@pytest.mark.parametrize('func', [served, decorated, trio.sleep_forever])
def test_function_of_a_module_is_found(func):
    """By its module and name."""
    check_name(func, absent_is_wrong=True)


@pytest.mark.parametrize('func', [Thing().served, named_alike(), decorate(served)])
def test_namesake_is_refused(func):
    """The other one would be run in its place."""
    with pytest.raises(TypeError, match='cannot be run in another actor'):
        check_name(func)


@pytest.mark.parametrize(
    'func',
    [Thing().only_a_method, functools.partial(served)],
    ids=['method', 'partial'],
)
def test_what_the_module_does_not_have_is_refused_on_request(func):
    """Otherwise the peer tells that it has no such function."""
    check_name(func)
    with pytest.raises(TypeError, match='by which that would find it'):
        check_name(func, absent_is_wrong=True)


def test_what_is_decorated_in_place_is_still_the_same(monkeypatch):
    """As a test does that looks at calls."""
    original = served
    monkeypatch.setattr(sys.modules[__name__], 'served', decorate(served))
    check_name(original)


def test_reloaded_module_has_the_same_functions(tmp_path, monkeypatch):
    """An old reference is as good as the new one."""
    (tmp_path / 'reloaded_module.py').write_text('async def func(): pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = importlib.import_module('reloaded_module')
    old = module.func
    assert importlib.reload(module).func is not old
    check_name(old)
    del sys.modules['reloaded_module']
