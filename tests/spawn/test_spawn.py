"""The table of backends."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from tractor.spawn import _spawn


@pytest.mark.parametrize('key', get_args(_spawn.SpawnMethodKey))
def test_every_backend_has_a_main(key):
    """However it is looked up, it is loaded then and is a coroutine function."""
    main = _spawn._methods[key]
    assert inspect.iscoroutinefunction(main)
    assert _spawn._methods.get(key) is main
    assert (key, main) in _spawn._methods.items()
    assert main in _spawn._methods.values()


def test_another_key_has_none():
    """As in any dict."""
    assert _spawn._methods.get('thread') is None
    with pytest.raises(KeyError):
        _spawn._methods['thread']
