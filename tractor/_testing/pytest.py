"""
The pytest plugin: which backend and transport a session uses, and its fixtures.

Owns the process-wide settings that follow from the command line of such a session;
everything it changes is restored per test or at the end of the session.

It comes with the package and so is loaded into each suite of the environment, where it
has no effect until it is used: by name (`-p tractor._testing.pytest`, or as one of
`pytest_plugins`), by an option of it, or by a collected test that asks for one of its
fixtures, bears one of its marks (`trio` excepted) or is a `@tractor_test`.  In a
session that uses it, `loglevel`, `tpt_proto`, `alert_on_finish`, `_reset_runtime_vars`
and `_reap_orphaned_subactors` surround every test, and the runtime is loaded.  They are
`autouse` if a name or an option asked for the plugin, before tests were collected.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from tractor._testing import _backends, _options, _usage

if TYPE_CHECKING:
    from tractor.log import StackLevelAdapter
    from tractor.runtime._state import TransportProtocolKey

_FORKING_SPAWNERS: Final = frozenset({'mp_forkserver', 'main_thread_forkserver'})

# Their children inherit pytest's descriptors and would write to its capture file.
_CAPSYS_REQUIRED_SPAWNERS: Final = frozenset({'main_thread_forkserver'})

# The package whose log levels are the runtime's, and not a project's.
_RUNTIME: Final = 'tractor'

_STACKSCOPE_ENV: Final = 'TRACTOR_ENABLE_STACKSCOPE'

_ACTIVE: Final = pytest.StashKey[bool]()

_MARKERS: Final = (
    'no_tpt(proto_key): the test does not support this transport',
    'skipon_spawn_backend(*start_methods, reason=None): skip under these backends',
    'has_nested_actors: the test starts actors from actors',
    'trio: the test runs on trio',
)


# -- command line ------------------------------------------------------------


def pytest_addoption(
    parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager
) -> None:
    """Add the options of a session with actors."""
    _options.add_options(parser)
    if _usage.is_named_by_a_plugin(pluginmanager):
        # The hook below is over: a conftest has just loaded this plugin.
        _options.add_common_options(parser)


@pytest.hookimpl(hookwrapper=True, specname='pytest_load_initial_conftests')
def pytest_add_common_options(parser: pytest.Parser) -> Iterator[None]:
    """Add the options with common names when all who may have them are loaded."""
    yield
    _options.add_common_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Refuse, or warn of, a capture mode that hangs with a forking backend."""
    options = early_config.known_args_namespace
    asked = options.spawn_backend.split(',')
    if options.capture != 'fd' or _CAPSYS_REQUIRED_SPAWNERS.isdisjoint(asked):
        return

    problem = (
        f'--spawn-backend={options.spawn_backend} does not work with --capture=fd, '
        'which its children inherit; use --capture=sys'
    )
    if os.environ.get('CI'):
        sys.stderr.write(f'ERROR: {problem}\n')
        raise SystemExit(2)
    early_config.issue_config_time_warning(
        pytest.PytestConfigWarning(problem), stacklevel=2
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; if the session asked for actors, make it ready for them."""
    for marker in _MARKERS:
        config.addinivalue_line('markers', marker)
    if _usage.is_named(config) or _options.any_given(config.option):
        _activate(config)
        _backends.select(config)


def _activate(config: pytest.Config) -> None:
    """Let the plugin have its effects in this session."""
    if config.option.enable_stackscope:
        raise pytest.UsageError(
            '--enable-stackscope: this release has no task-tree dumper; '
            'run without the option'
        )
    inherited = os.environ.pop(_STACKSCOPE_ENV, None)
    if inherited is not None:
        config.add_cleanup(partial(os.environ.__setitem__, _STACKSCOPE_ENV, inherited))
    _usage.load_late_modules(config.pluginmanager)
    config.stash[_ACTIVE] = True


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Show the options of a session that asked for actors, and what it cannot run."""
    if not config.stash.get(_ACTIVE, False):
        return []
    option = config.option
    backends = _backends.of(config)
    options = (
        f'tractor: spawn_backend={",".join(backends.keys)} '
        f'tpt_protos={",".join(option.tpt_protos)} '
        f'debug_mode={option.tractor_debug_mode} '
        f'loglevel={_options.runtime_level(option)}'
    )
    if _backends.shows_gil(config, backends):
        options += f' subint_gil={option.subint_gil}'
    lacking = [
        f'tractor: skips backend {key}: {reason}'
        for key, reason in backends.lacking.items()
    ]
    return [options, *lacking]


# -- collection and summary --------------------------------------------------


# Last: a test that was deselected uses nothing.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Surround the tests of a session with actors; skip what its backend excludes."""
    if not config.stash.get(_ACTIVE, False):
        if not any(map(_usage.uses_plugin, items)):
            return
        _activate(config)
    for item in items:
        _usage.surround(item)
        _backends.put_first(item)
        if marks := list(item.iter_markers('skipon_spawn_backend')):
            _skip_if_excluded(item, marks)


def _skip_if_excluded(item: pytest.Item, marks: list[pytest.Mark]) -> None:
    """Skip a test that one of its marks excludes from the backend it runs under."""
    backend = _backends.of_test(item)
    known = _backends.known_or_reserved()
    for mark in marks:
        for name in mark.args:
            if name not in known:
                raise pytest.UsageError(
                    f'{item.nodeid}: skipon_spawn_backend names an unknown '
                    f'backend {name!r}; known are {", ".join(known)}'
                )
        if backend in mark.args:
            reason = mark.kwargs.get('reason') or 'marked in the test'
            item.add_marker(pytest.mark.skip(reason=f'not under {backend!r}: {reason}'))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test under each backend of the session, shown in the test's id."""
    _backends.parametrize(metafunc)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the snapshots of hung tests."""
    trace = sys.modules.get('tractor._testing.trace')
    if trace is not None and trace._SNAPSHOT_INDEX:
        terminalreporter.section('hang snapshots')
        for label, directory in trace._SNAPSHOT_INDEX:
            terminalreporter.line(f'{label}: {directory}')


# -- session fixtures --------------------------------------------------------


@pytest.fixture(scope='session')
def debug_mode(request: pytest.FixtureRequest) -> bool:
    """Whether `--tpdb` was given."""
    return bool(request.config.option.tractor_debug_mode)


@pytest.fixture(scope='session')
def _select_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The key of the active backend; one that is a parameter becomes the active one."""
    option = request.config.option
    if not hasattr(request, 'param'):
        yield option.spawn_backend
        return
    # The runtime is loaded by a session that uses it, not by the plugin.
    from tractor.spawn import _spawn

    before = _spawn._spawn_method, option.spawn_backend
    _spawn.try_set_start_method(request.param)
    option.spawn_backend = request.param
    yield request.param
    _spawn.try_set_start_method(before[0])
    option.spawn_backend = before[1]


@pytest.fixture(scope='session')
def spawn_backend(_select_backend: str) -> str:
    """The key of the active backend."""
    return _select_backend


@pytest.fixture(scope='session')
def start_method(_select_backend: str) -> str:
    """The key of the active backend, shown in the test's id."""
    return _select_backend


@pytest.fixture(scope='session')
def subint_gil(request: pytest.FixtureRequest) -> str:
    """The GIL mode of actors in sub-interpreters: `'auto'`, `'own'` or `'shared'`."""
    return str(request.config.option.subint_gil)


@pytest.fixture(scope='session')
def is_forking_spawner(spawn_backend: str) -> bool:
    """Whether children of the active backend are forked."""
    return spawn_backend in _FORKING_SPAWNERS


@pytest.fixture(scope='session')
def testing_pkg_name() -> str:
    """Name of the package under test; other projects override it."""
    return _RUNTIME


@pytest.fixture(scope='session')
def loglevel(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """
    The runtime's console level of this session, `None` for the default.

    The package under test gets its own, if that was asked for.
    """
    # The runtime is loaded by the first test, not by the plugin.
    from tractor import log

    option = request.config.option
    specs = {_RUNTIME: _options.runtime_level(option)}
    if project_level := _options.project_level(option):
        # Only now, so that one of another scope does no harm without a level.
        specs.setdefault(request.getfixturevalue('testing_pkg_name'), project_level)
    default = log._default_loglevel
    loggers = [
        log.get_logger(pkg_name=package, subsys_spec=path or '').logger
        for package, spec in specs.items()
        for path in log.parse_logspec(spec or False, pkg_name=package)
    ]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    levels = {
        package: log.apply_logspec(spec or False, pkg_name=package)[0]
        for package, spec in specs.items()
    }
    level = levels[_RUNTIME]
    if level:
        log._default_loglevel = level
    yield level
    log._default_loglevel = default
    for logger, state in zip(loggers, before, strict=True):
        logger.setLevel(state[0])
        logger.propagate, logger.handlers[:] = state[1:]


@pytest.fixture(scope='session')
def tpt_protos(request: pytest.FixtureRequest) -> list[TransportProtocolKey]:
    """The transport of the session, as a list of one key."""
    # The address types load trio.
    from tractor.discovery._addr import _address_types

    keys: list[TransportProtocolKey] = request.config.option.tpt_protos
    for key in keys:
        if key not in _address_types:
            raise pytest.UsageError(
                f'--tpt-proto: unknown transport {key!r}; '
                f'known are {", ".join(_address_types)}'
            )
    if len(keys) != 1:
        pytest.fail(f'--tpt-proto takes one transport per session, not {keys}')
    return keys


@pytest.fixture(scope='session')
def tpt_proto(
    tpt_protos: list[TransportProtocolKey],
) -> Iterator[TransportProtocolKey]:
    """The transport of the session, made the default of the runtime."""
    # The runtime is loaded by the first test, not by the plugin.
    from tractor.runtime import _state

    [key] = tpt_protos
    default = _state._def_tpt_proto
    enabled = _state._runtime_vars['_enable_tpts']
    if key != default:
        _state._def_tpt_proto = key
        _state._runtime_vars['_enable_tpts'] = [key]
    yield key
    _state._def_tpt_proto = default
    _state._runtime_vars['_enable_tpts'] = enabled


@pytest.fixture(scope='session')
def reg_addr(tpt_proto: str) -> tuple[str, int] | tuple[str, str]:
    """A registry address that no other session on this host uses."""
    from tractor._testing.addr import get_rando_addr

    return get_rando_addr(tpt_proto)


@pytest.fixture(scope='session')
def alert_on_finish(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ring the bell of the terminal, if there is one, when all tests are done."""
    yield
    reporter = request.config.pluginmanager.get_plugin('terminalreporter')
    if reporter is not None and reporter.isatty:
        reporter.write('\a')


# -- fixtures of one test ----------------------------------------------------


@pytest.fixture
def _reset_runtime_vars() -> Iterator[None]:
    """Undo what the test changed in the process-wide runtime variables and backend."""
    # The runtime is loaded by the first test, not by the plugin.
    from tractor.runtime import _state
    from tractor.spawn import _spawn

    backend = _spawn._spawn_method
    live = _state._runtime_vars
    before: dict[str, Any] = {
        key: list(value) if isinstance(value, list) else value
        for key, value in live.items()
    }
    yield
    # In place: the runtime's modules share the one dict.
    live.clear()
    live.update(before)
    if _spawn._spawn_method != backend:
        _spawn.try_set_start_method(backend)


@pytest.fixture
def test_log(
    request: pytest.FixtureRequest, testing_pkg_name: str
) -> StackLevelAdapter:
    """A logger named after the test's module, below the package under test."""
    from tractor.log import get_logger

    return get_logger(name=request.module.__name__, pkg_name=testing_pkg_name)


@pytest.fixture
def set_fork_aware_capture(
    request: pytest.FixtureRequest, is_forking_spawner: bool
) -> object:
    """
    Make the test's output safe to inherit: `capsys` under a forking backend.

    Under any other backend nothing changes and the value is the capture mode.
    """
    if is_forking_spawner:
        return request.getfixturevalue('capsys')
    return request.config.option.capture
