"""
The backends of a session: which were asked for, and which of them are there.

Owns the meaning of `--spawn-backend` and which tests run once for each of its keys.
One key is the backend of the whole session.  With several, a test that uses a backend
runs under each of them, and the keys this interpreter lacks are skipped with the reason
that the backend gives; a test that uses none runs once.  `config.option.spawn_backend`
is always one key: that of the running test, or else the first that can run.

A test uses a backend if it asks, itself or through its fixtures, for one of
`start_method`, `spawn_backend`, `is_forking_spawner` or `reg_addr`, is marked
`skipon_spawn_backend` or `has_nested_actors`, or is a `@tractor_test`.  Any other says
so with `usefixtures('spawn_backend')`, and a fixture of wide scope which starts actors
depends on `spawn_backend`, so that each backend gets its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, get_args

import pytest

from tractor._testing import _usage

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

DEFAULT: Final = 'trio'
ALL: Final = 'all'

# Names a test may be marked for although not every release offers them.
RESERVED: Final = ('subint', 'subint_forkserver', 'main_thread_forkserver')

# Backends whose actors live in sub-interpreters, with their own GIL or a shared one.
_SUBINT: Final = frozenset({'subint', 'subint_forkserver'})
GIL_MODES: Final = ('auto', 'own', 'shared')

# The fixture that selects the backend of a test.
SELECTOR: Final = '_select_backend'

_USERS: Final = frozenset({SELECTOR, 'start_method', 'spawn_backend', 'reg_addr'})
_MARKS: Final = ('skipon_spawn_backend', 'has_nested_actors')


class AddKeys(argparse.Action):
    """Collect the keys of all occurrences of the option, each a comma list."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add the keys to those given before."""
        given = [*(given_keys(namespace) or ()), *str(values).split(',')]
        namespace.tractor_spawn_backends = given
        namespace.spawn_backend = ','.join(given)


def given_keys(option: argparse.Namespace) -> list[str] | None:
    """Return the keys as they were given; `None` if the option was not."""
    given: list[str] | None = getattr(option, 'tractor_spawn_backends', None)
    return given


def known() -> tuple[str, ...]:
    """Return the keys of all backends."""
    # Importing the plugin must not load the runtime, and trio with it.
    from tractor.spawn._spawn import SpawnMethodKey

    return get_args(SpawnMethodKey)


def known_or_reserved() -> tuple[str, ...]:
    """Return every key that a test may be marked for."""
    return tuple(dict.fromkeys((*known(), *RESERVED)))


class Backends:
    """The keys of one session, without doubles, and why some cannot run."""

    __slots__ = ('keys', 'lacking')

    def __init__(self, keys: Sequence[str], lacking: dict[str, str]) -> None:
        self.keys = tuple(keys)
        self.lacking = lacking

    @property
    def several(self) -> bool:
        """Whether tests run once for each key, even if some are skipped."""
        return len(self.keys) > 1

    @property
    def in_interpreters(self) -> bool:
        """Whether some of the actors live in sub-interpreters."""
        return not _SUBINT.isdisjoint(self.keys)

    @property
    def first(self) -> str:
        """The key in force where no test has one of its own."""
        return next(key for key in self.keys if key not in self.lacking)

    def parameters(self) -> list[ParameterSet]:
        """Return a parameter for each key; those that cannot run are skipped."""
        return [
            pytest.param(key, marks=pytest.mark.skip(reason=self.lacking[key]))
            if key in self.lacking
            else pytest.param(key)
            for key in self.keys
        ]


KEY: Final = pytest.StashKey[Backends]()


def of(config: pytest.Config) -> Backends:
    """Return the session's backends; the default one until `select()` was called."""
    return config.stash.setdefault(KEY, Backends((DEFAULT,), {}))


def select(config: pytest.Config) -> Backends:
    """
    Find out which of the asked backends are there, and make the first of those active.

    The GIL mode of the session becomes that of the process, if a backend has one or the
    command line says so, for tests which start an actor on another backend themselves.
    Both are set back at the end of the session.  Afterwards
    `config.option.spawn_backend` is its key.

    Raises:
        pytest.UsageError: A key is unknown, or this interpreter lacks all of them.
    """
    # Importing the plugin must not load the runtime, and trio with it.
    from tractor.spawn import _spawn

    try_set_start_method = _spawn.try_set_start_method
    active = _spawn._spawn_method

    def set_back() -> None:
        if _spawn._spawn_method != active:
            try_set_start_method(active)

    config.add_cleanup(set_back)
    backends = Backends(_expand(given_keys(config.option) or [DEFAULT]), {})
    for key in backends.keys:
        try:
            try_set_start_method(key)  # type: ignore[arg-type]
        except RuntimeError as err:
            backends.lacking[key] = str(err)
    if len(backends.lacking) == len(backends.keys):
        raise pytest.UsageError(
            '; '.join(
                f'--spawn-backend={key}: {reason}'
                for key, reason in backends.lacking.items()
            )
        )
    if backends.several:
        try_set_start_method(backends.first)  # type: ignore[arg-type]
    if shows_gil(config, backends) and 'subint' in known():
        # By name: a runtime without such a backend has no such functions either.
        state = import_module('tractor.runtime._state')
        config.add_cleanup(partial(state.set_subint_gil, state.subint_gil()))
        state.set_subint_gil(config.option.subint_gil)
    config.option.spawn_backend = backends.first
    config.stash[KEY] = backends
    return backends


def shows_gil(config: pytest.Config, backends: Backends) -> bool:
    """Tell whether it matters to the session whose GIL sub-interpreters have."""
    return backends.in_interpreters or config.option.subint_gil != GIL_MODES[0]


def _expand(given: list[str]) -> list[str]:
    """Return the asked keys once each, in their order."""
    keys: dict[str, None] = {}
    for key in given:
        if key != ALL and key not in known():
            raise pytest.UsageError(
                f'--spawn-backend: unknown backend {key!r}; '
                f'known are {", ".join(known())}, and {ALL!r}'
            )
        keys.update(dict.fromkeys(known() if key == ALL else (key,)))
    return list(keys)


def uses_backend(test: pytest.Item) -> bool:
    """Tell whether a test uses a backend; the module's docstring has the rule."""
    return (
        not _USERS.isdisjoint(getattr(test, 'fixturenames', ()))
        or any(test.get_closest_marker(name) for name in _MARKS)
        or _usage.is_tractor_test(test)
    )


def parametrize(metafunc: pytest.Metafunc) -> None:
    """
    Run a test that uses a backend once for each of the session.

    With one backend only `start_method` becomes a parameter, where a test asks for it.
    """
    backends = of(metafunc.config)
    if backends.several:
        if not uses_backend(metafunc.definition):
            return
        name = SELECTOR
        # Where it is in the list of fixtures does not matter yet; see `put_first()`.
        metafunc.fixturenames.append(SELECTOR)
    elif 'start_method' in _usage.own_fixtures(metafunc.definition):
        name = 'start_method'
    else:
        return
    metafunc.parametrize(
        name,
        backends.parameters(),
        indirect=backends.several,
        scope='session',
        ids=[f'start_method={key}' for key in backends.keys],
    )


def of_test(item: pytest.Item) -> str:
    """Return the key of the backend that a test runs under."""
    key: str = _parameters(item).get(SELECTOR, item.config.option.spawn_backend)
    return key


def put_first(item: pytest.Item) -> None:
    """Select a test's backend before any other of its fixtures can start an actor."""
    if SELECTOR in _parameters(item):
        names: list[str] = item.fixturenames  # type: ignore[attr-defined]
        # pytest has dropped it if nothing depends on it.
        names[:] = [SELECTOR, *(name for name in names if name != SELECTOR)]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return getattr(getattr(item, 'callspec', None), 'params', {})
