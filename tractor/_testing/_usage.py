"""
Who uses the plugin: a session that asked for it, or a test that needs it.

The plugin comes with the package, so it is there in suites that never heard of actors.
Owns the two questions that keep it out of those, and the fixtures that surround every
test of a session which does use it.  Looks only at what pytest has collected; nothing
here loads the runtime.

A fixture counts by its definition, not by its name: a project's own `loglevel` or
parameter `start_method` means nothing here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import pytest

PLUGIN: Final = 'tractor._testing.pytest'

# Their fixtures are part of the plugin, but only a session that uses it loads them.
LATE_MODULES: Final = (
    'tractor._testing._around',
    'tractor._testing._reap',
    'tractor._testing.trace',
)
_LATE_FIXTURES: Final = frozenset(
    {
        'reap_subactors_per_test',
        'track_orphaned_uds_per_test',
        'detect_runaway_subactors_per_test',
        'fail_after_w_trace',
        'afk_alarm_w_trace',
    }
)

# Around each test of a session that uses the plugin, whether it asks for them or not,
# in this order.  `_around` is what asks for them.
AROUND: Final = (
    '_reap_orphaned_subactors',
    'alert_on_finish',
    'loglevel',
    'tpt_proto',
    '_reset_runtime_vars',
)
_SCOPES: Final = ('function', 'class', 'module', 'package', 'session')

# Not `trio`: other plugins use that mark for tests without actors.
_MARKS: Final = ('skipon_spawn_backend', 'has_nested_actors', 'no_tpt')


def is_named(config: pytest.Config) -> bool:
    """Tell whether the plugin was asked for by `-p`, `pytest_plugins` or variable."""
    return (
        PLUGIN in (config.option.plugins or ())
        or PLUGIN in os.environ.get('PYTEST_PLUGINS', '').split(',')
        or is_named_by_a_plugin(config.pluginmanager)
    )


def is_named_by_a_plugin(manager: pytest.PytestPluginManager) -> bool:
    """Tell whether a conftest or a plugin lists this one in its `pytest_plugins`."""
    for plugin in manager.get_plugins():
        if isinstance(plugin, ModuleType):
            names = vars(plugin).get('pytest_plugins') or ()
            if PLUGIN in (names.split(',') if isinstance(names, str) else names):
                return True
    return False


def load_late_modules(manager: pytest.PytestPluginManager) -> None:
    """Make the fixtures of `LATE_MODULES` known, once."""
    for name in LATE_MODULES:
        if not manager.has_plugin(name):
            # Not through pytest's own import, which wants to be a module's first one.
            manager.register(import_module(name), name)


def own_fixtures(node: pytest.Item) -> set[str]:
    """Return those of a test's fixtures that this plugin defines."""
    found = set()
    definitions = _definitions(node)
    for name in getattr(node, 'fixturenames', ()):
        if name in definitions:
            func = getattr(definitions[name][-1], 'func', None)
            module = str(getattr(func, '__module__', None))
            if module.startswith('tractor._testing.'):
                found.add(name)
        elif name in _LATE_FIXTURES:
            found.add(name)
    return found


def _definitions(node: pytest.Item) -> dict[str, Any]:
    """Return a test's fixtures by name; pytest has no public way to ask for them."""
    info = getattr(node, '_fixtureinfo', None)
    return {} if info is None else info.name2fixturedefs


def is_tractor_test(node: pytest.Item) -> bool:
    """Tell whether a test is the main task of a root actor."""
    test = getattr(node, 'obj', None)
    # An object that answers to every name must not pass for one.
    return getattr(test, '_is_tractor_test', None) is True


def is_marked(node: pytest.Item) -> bool:
    """Tell whether a test has a mark that only tests with actors have."""
    return any(node.get_closest_marker(name) for name in _MARKS)


def uses_plugin(item: pytest.Item) -> bool:
    """Tell whether a test needs the plugin by its fixtures, its marks or decorator."""
    return is_tractor_test(item) or is_marked(item) or bool(own_fixtures(item))


def surround(item: pytest.Item) -> None:
    """
    Set up the fixtures of `AROUND` ahead of all others of their scope.

    So what another fixture of that scope has started is ended before they look for what
    is left, and what a wider one has set up is not for the end of one test to undo.

    A test that was collected before the session was found to use the plugin lacks them,
    and gets them now.  It cannot be multiplied any more, so it goes without those for
    which a project has parameters.
    """
    names: list[str] | None = getattr(item, 'fixturenames', None)
    if names is None:
        return
    known = _definitions(item)
    for name in reversed(AROUND):
        if name in names:
            names.remove(name)
            width = _width(known.get(name))
        else:
            visible = item.session._fixturemanager.getfixturedefs(name, item)
            if not visible or visible[-1].params is not None:
                continue
            width = _width(visible)
        widths = [_width(known.get(other)) for other in names]
        place = (number for number, other in enumerate(widths) if other <= width)
        names.insert(next(place, len(names)), name)


def _width(definitions: Sequence[Any] | None) -> int:
    """Return how wide the scope of a fixture is; a parameter has none."""
    return _SCOPES.index(definitions[-1].scope) if definitions else 0
