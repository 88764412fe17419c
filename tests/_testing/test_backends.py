"""Sessions that were asked for more than one backend."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tractor._testing import repodir

# A runtime with three backends, of which this interpreter lacks one; loaded with `-p`.
FAKE = """
from typing import Literal
from tractor.runtime import _state
from tractor.spawn import _spawn

_state.set_subint_gil = lambda mode: setattr(_state, 'subint_gil_here', mode)

real = _spawn.try_set_start_method
_spawn.SpawnMethodKey = Literal['trio', 'mp_spawn', 'subint']

def fake(key):
    if key == 'subint':
        raise RuntimeError('subint needs Python 3.14, this is 3.12.1')
    return real(key)

_spawn.try_set_start_method = fake
"""

SUITE = """
import pytest
from tractor._testing import tractor_test
from tractor.spawn import _spawn

active = []

@pytest.fixture(scope='module')
def tree(spawn_backend):
    return [spawn_backend]

@pytest.fixture(scope='session', autouse=True)
def eager():
    return _spawn._spawn_method

@pytest.fixture(autouse=True)
def record(request):
    params = getattr(getattr(request.node, 'callspec', None), 'params', {})
    key = params.get('_select_backend')
    option = request.config.option.spawn_backend
    assert key in (None, option)
    assert option == _spawn._spawn_method

def test_none(): ...

@pytest.mark.parametrize('number', [1, 2])
def test_start_method(start_method, number, request):
    assert start_method == request.config.option.spawn_backend

def test_wide_fixture(tree, spawn_backend):
    assert tree == [spawn_backend]

def test_address(reg_addr): ...

def test_capture(set_fork_aware_capture): ...

@tractor_test
async def test_root():
    active.append(_spawn._spawn_method)

@pytest.mark.has_nested_actors
def test_mark(): ...

@pytest.mark.skipon_spawn_backend('mp_spawn', 'subint', reason='too slow')
def test_skipped(): ...

@pytest.mark.usefixtures('spawn_backend')
class TestClass:
    def test_method(self): ...

def test_changes_it(start_method):
    _spawn.try_set_start_method('mp_spawn' if start_method == 'trio' else 'trio')

def test_last(start_method):
    assert _spawn._spawn_method == start_method
    assert active[-1] == start_method
"""

# All of them that run under each backend, without their parameters.
USERS = {
    'test_start_method',
    'test_wide_fixture',
    'test_address',
    'test_capture',
    'test_root',
    'test_mark',
    'test_skipped',
    'test_method',
    'test_changes_it',
    'test_last',
}


def outcomes(run: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The outcome of each test by its name with parameters."""
    found = re.findall(r'^test_inner\.py::(\S+) ([A-Z]+)', run.stdout, re.M)
    return {name.rpartition('::')[2]: outcome for name, outcome in found}


def by_backend(run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    """The outcomes by backend (empty for none), then by test without parameters."""
    found: dict[str, dict[str, str]] = {}
    for name, outcome in outcomes(run).items():
        key = re.search(r'start_method=(\w+)', name)
        found.setdefault(key[1] if key else '', {})[name.partition('[')[0]] = outcome
    return found


@pytest.fixture(scope='module')
def run_fake(run_pytest, tmp_path_factory):
    """Run a suite on the runtime that lacks a backend."""
    folder: Path = tmp_path_factory.mktemp('fake')
    (folder / 'fake.py').write_text(FAKE)

    def run(
        *arguments: str, source: str = SUITE, **env: str
    ) -> subprocess.CompletedProcess[str]:
        path = f'{repodir()}:{folder}'
        return run_pytest(
            source, '-p', 'fake', *arguments, env={'PYTHONPATH': path} | env
        )

    return run


@pytest.fixture(scope='module')
def all_run(run_fake):
    run = run_fake('--spawn-backend=all')
    assert run.returncode == 0, run.stdout + run.stderr
    return run


# -- with several backends -------------------------------------------------------------


def test_users_of_a_backend_run_under_each(all_run):
    """Whichever way a test shows that it uses one; the others run once."""
    found = by_backend(all_run)
    assert set(found) == {'', 'trio', 'mp_spawn', 'subint'}
    assert found[''] == {'test_none': 'PASSED'}
    for key in ('trio', 'mp_spawn', 'subint'):
        assert set(found[key]) == USERS


def test_all_that_can_run_pass(all_run):
    """The backend is active before any fixture of the test, and until its end."""
    found = by_backend(all_run)
    assert set(found['trio'].values()) == {'PASSED'}
    passed = {name for name, outcome in found['mp_spawn'].items() if outcome[0] == 'P'}
    assert passed == USERS - {'test_skipped'}


def test_lacking_backend_is_skipped_with_its_reason(all_run):
    """Each of its tests says so in the summary, and the header does at once."""
    assert set(by_backend(all_run)['subint'].values()) == {'SKIPPED'}
    reason = 'subint needs Python 3.14, this is 3.12.1'
    assert f'tractor: skips backend subint: {reason}\n' in all_run.stdout
    skips = re.findall(
        r'^SKIPPED \[(\d+)\] .*' + re.escape(reason), all_run.stdout, re.M
    )
    assert sum(map(int, skips)) >= len(USERS) - 1


def test_mark_skips_under_the_backends_it_names(all_run):
    """A parameter of a test counts, not what else the session runs."""
    found = by_backend(all_run)
    assert found['trio']['test_skipped'] == 'PASSED'
    assert found['mp_spawn']['test_skipped'] == 'SKIPPED'
    assert "not under 'mp_spawn': too slow" in all_run.stdout


def test_backends_take_turns_once(all_run):
    """Tests of one backend run in a row, so that it is selected once."""
    order = re.findall(r'^test_inner\S*start_method=(\w+)', all_run.stdout, re.M)
    turns = [
        key for key, last in zip(order, [None, *order], strict=False) if key != last
    ]
    assert len(turns) == 3


def test_header_names_all_backends(all_run):
    """In the order in which they were asked for."""
    assert 'tractor: spawn_backend=trio,mp_spawn,subint tpt_protos=tcp' in (
        all_run.stdout
    )


@pytest.mark.parametrize(
    'arguments',
    [
        ('--spawn-backend', 'mp_spawn,trio'),
        ('--spawn-backend=mp_spawn', '--spawn-backend=trio'),
        ('--spawn-backend=mp_spawn,trio,mp_spawn', '--spawn-backend', 'trio'),
    ],
)
def test_keys_are_collected(run_fake, arguments):
    """From lists and from several options, once each; a path after them stays one."""
    run = run_fake(*arguments, '--collect-only')
    assert run.returncode == 0, run.stdout + run.stderr
    ids = re.findall(r'<Function test_address\[(.*)\]>', run.stdout, re.M)
    assert ids == ['start_method=mp_spawn', 'start_method=trio']


def test_one_key_given_twice_is_one(run_fake):
    """Only the test that asks for its name has a parameter then."""
    run = run_fake('--spawn-backend=trio', '--spawn-backend=trio', '--collect-only')
    assert 'test_last[start_method=trio]' in run.stdout
    assert '<Function test_address>' in run.stdout


# -- what cannot run -------------------------------------------------------------------


def test_lacking_backend_alone_is_a_usage_error(run_fake):
    """Nothing could run, and the message tells why."""
    run = run_fake('--spawn-backend=subint')
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert '--spawn-backend=subint: subint needs Python 3.14' in run.stderr


def test_nothing_but_lacking_backends_is_a_usage_error(run_pytest, tmp_path):
    """Skipping every test would look like success; each reason is given."""
    (tmp_path / 'fake.py').write_text(
        FAKE.replace("key == 'subint'", 'True').replace(
            "'subint needs", "key + ' needs"
        )
    )
    run = run_pytest(
        *(SUITE, '-p', 'fake', '--spawn-backend=all'),
        env={'PYTHONPATH': f'{repodir()}:{tmp_path}'},
    )
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    for key in ('trio', 'mp_spawn', 'subint'):
        assert f'--spawn-backend={key}: {key} needs Python 3.14' in run.stderr


@pytest.mark.parametrize('keys', ['trio,quantum', 'all,quantum'])
def test_unknown_key_among_several_is_a_usage_error(run_fake, keys):
    """The message names the key, the known ones, and the word for all of them."""
    run = run_fake(f'--spawn-backend={keys}')
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unknown backend 'quantum'; known are trio, mp_spawn, subint, and 'all'" in (
        run.stderr
    )


def test_first_that_can_run_is_the_backend_of_the_others(run_fake):
    """Outside of the tests with a parameter the option names one that is there."""
    source = (
        'def test_option(pytestconfig):\n'
        '    from tractor.spawn import _spawn\n'
        '    assert pytestconfig.option.spawn_backend == "mp_spawn"\n'
        '    assert _spawn._spawn_method == "mp_spawn"\n'
    )
    run = run_fake('--spawn-backend=subint,mp_spawn,trio', source=source)
    assert run.returncode == 0, run.stdout + run.stderr


# -- the GIL of sub-interpreters -------------------------------------------------------

GIL = """
from tractor.runtime import _state

def test_mode(subint_gil):
    assert (subint_gil, getattr(_state, 'subint_gil_here', None)) == {expected}
"""


@pytest.mark.parametrize(
    ('arguments', 'expected', 'shown'),
    [
        (('--spawn-backend=all',), ('auto', 'auto'), ' subint_gil=auto'),
        (('--spawn-backend=all', '--subint-gil=own'), ('own', 'own'), '=own'),
        (('--spawn-backend=trio,mp_spawn', '--subint-gil=own'), ('own', 'own'), '=own'),
        (('--subint-gil=shared',), ('shared', 'shared'), ' subint_gil=shared'),
        ((), ('auto', None), ''),
    ],
)
def test_mode_is_set_for_actors_in_interpreters(run_fake, arguments, expected, shown):
    """If one of the asked backends has such actors, or it was given: a test may start
    one on its own account.  The header shows it then only."""
    run = run_fake(*arguments, source=GIL.format(expected=expected))
    assert run.returncode == 0, run.stdout + run.stderr
    [header] = re.findall(r'^tractor: spawn_backend=.*$', run.stdout, re.M)
    assert header.endswith(shown)
    assert ('subint_gil' in header) is bool(shown)


def test_unknown_mode_is_a_usage_error(run_fake):
    """The message lists the three."""
    run = run_fake('--subint-gil=none')
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "invalid choice: 'none'" in run.stderr
    assert 'shared' in run.stderr


# -- the end of a session --------------------------------------------------------------

# A session in the process of another, which was started with settings of its own.
NESTED = """
import logging, os
import pytest
from tractor import log
from tractor.runtime import _state
from tractor.spawn import _spawn

pytest_plugins = 'pytester'

INNER = (
    'import os\\n'
    'def test_it(tpt_proto):\\n'
    '    assert "TRACTOR_ENABLE_STACKSCOPE" not in os.environ\\n'
)

def settings():
    loggers = [logging.getLogger(name) for name in ('tractor', 'tractor.ipc')]
    return (
        _spawn._spawn_method, _spawn._ctx, _state.subint_gil(),
        _state._def_tpt_proto, log._default_loglevel,
        [(one.level, one.propagate, list(one.handlers)) for one in loggers],
        os.environ.get('TRACTOR_ENABLE_STACKSCOPE'),
    )

@pytest.mark.parametrize(
    ('arguments', 'status'),
    [
        (['--spawn-backend=mp_spawn', '--subint-gil=own', '--tpt-proto=uds'], 0),
        (['--spawn-backend=mp_spawn,trio', '--tl=info'], 0),
        (['--tl=ipc:info'], 0),
        (['--spawn-backend=mp_spawn,quantum', '--subint-gil=own'], 4),
    ],
)
def test_session(pytester, monkeypatch, arguments, status):
    monkeypatch.setenv('TRACTOR_ENABLE_STACKSCOPE', '1')
    before = settings()
    pytester.makepyfile(INNER)
    run = pytester.inline_run('-p', 'tractor._testing.pytest', *arguments)
    assert run.ret == status
    assert settings() == before
"""


def test_session_leaves_the_process_as_it_was(run_pytest):
    """Also one that runs inside of another, as a suite's own tests of plugins do."""
    run = run_pytest(NESTED, '--tl=error')
    assert run.returncode == 0, run.stdout + run.stderr
    assert '4 passed' in run.stdout
