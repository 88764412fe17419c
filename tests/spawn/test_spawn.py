"""The table of backends."""

from __future__ import annotations

import inspect
from functools import partial
from typing import get_args

import pytest
import trio

from tractor.runtime._runtime import Actor
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


@pytest.mark.parametrize('given', [{}, {'proc_kwargs': None}])
def test_a_backend_owns_the_arguments_it_is_given(monkeypatch, given):
    """Without any they are empty, whatever the backend did to those before."""
    seen = []

    async def backend(*args, proc_kwargs, **options):
        seen.append(dict(proc_kwargs))
        proc_kwargs['cwd'] = '/'

    monkeypatch.setitem(_spawn._methods, 'trio', backend)
    child = Actor('child', 'uuid', spawn_method='trio')
    run = partial(_spawn.new_proc, 'child', None, child, {}, [], None, {}, **given)
    for _ in range(2):
        trio.run(run)
    assert seen == [{}, {}]
    assert inspect.signature(_spawn.new_proc).parameters['proc_kwargs'].default == {}
