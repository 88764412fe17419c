"""The pytest plugin: options, marks, fixtures and reports, in sessions of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tractor._testing import pytest as plugin
from tractor._testing import repodir

MARKED = """
import pytest

@pytest.mark.skipon_spawn_backend('trio', 'subint', reason='too slow')
def test_function(): ...

@pytest.mark.skipon_spawn_backend('trio')
class TestClass:
    def test_method(self): ...

@pytest.mark.skipon_spawn_backend('mp_spawn', 'main_thread_forkserver')
def test_other_backend(): ...

@pytest.mark.no_tpt('uds')
@pytest.mark.has_nested_actors
@pytest.mark.trio
def test_registered_marks(): ...
"""

MODULE_MARK = """
import pytest
pytestmark = pytest.mark.skipon_spawn_backend('trio')

def test_module(): ...
"""

FIXTURES = """
import os
from tractor import log
from tractor.runtime import _state

def test_environment():
    assert "TRACTOR_ENABLE_STACKSCOPE" not in os.environ

def test_backend(start_method, spawn_backend, is_forking_spawner):
    assert (start_method, spawn_backend, is_forking_spawner) == ('trio', 'trio', False)

def test_flags(debug_mode, testing_pkg_name, set_fork_aware_capture):
    assert debug_mode is False
    assert testing_pkg_name == 'tractor'
    assert set_fork_aware_capture == 'fd'

def test_transport(tpt_protos, tpt_proto, reg_addr):
    assert (tpt_protos, tpt_proto) == (['tcp'], 'tcp')
    assert reg_addr[0] == '127.0.0.1'

def test_level(loglevel):
    assert loglevel is None
    assert log._default_loglevel == 'ERROR'

def test_logger(test_log):
    assert isinstance(test_log, log.StackLevelAdapter)
    assert test_log.name.startswith('tractor')

def test_vars_change():
    _state._runtime_vars['_is_root'] = 'changed'
    _state._runtime_vars['_root_addrs'].append('changed')
    _state._runtime_vars['added'] = 1

def test_vars_are_back():
    assert _state._runtime_vars['_is_root'] is False
    assert _state._runtime_vars['_root_addrs'] == []
    assert 'added' not in _state._runtime_vars
"""

OTHER_SETTINGS = """
from tractor import log
from tractor.runtime import _state

def test_backend(start_method, is_forking_spawner):
    from tractor.spawn import _spawn
    assert start_method == _spawn._spawn_method == 'mp_forkserver'
    assert is_forking_spawner

def test_flags(debug_mode):
    assert debug_mode is True

def test_transport(tpt_proto, reg_addr):
    assert tpt_proto == _state._def_tpt_proto == 'uds'
    assert _state._runtime_vars['_enable_tpts'] == ['uds']
    assert reg_addr[1].endswith('.sock')

def test_level(loglevel):
    assert loglevel.upper() == log._default_loglevel.upper() == 'CANCEL'

def test_capture(set_fork_aware_capture, capsys):
    assert set_fork_aware_capture is capsys
"""


def outcomes(run: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The outcome of each test by its name with parameters."""
    found = re.findall(r'^test_inner\.py::(\S+) (PASSED|SKIPPED)', run.stdout, re.M)
    return {name.rpartition('::')[2]: outcome for name, outcome in found}


# -- markers ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def marked_run(run_pytest):
    return run_pytest(MARKED, '--strict-markers')


def test_function_marked_for_the_backend_is_skipped(marked_run):
    """The mark works on a function, and its reason is shown."""
    assert outcomes(marked_run)['test_function'] == 'SKIPPED'
    assert "not under 'trio': too slow" in marked_run.stdout


def test_class_marked_for_the_backend_is_skipped(marked_run):
    """The mark works on a class."""
    assert outcomes(marked_run)['test_method'] == 'SKIPPED'


def test_module_marked_for_the_backend_is_skipped(run_pytest):
    """The mark works for a whole module."""
    assert outcomes(run_pytest(MODULE_MARK)) == {'test_module': 'SKIPPED'}


def test_mark_for_other_backends_runs(marked_run):
    """Known and reserved names of other backends change nothing."""
    assert outcomes(marked_run)['test_other_backend'] == 'PASSED'


def test_all_marks_are_registered(marked_run):
    """Strict marker checking accepts every mark of the plugin."""
    assert outcomes(marked_run)['test_registered_marks'] == 'PASSED'
    assert marked_run.returncode == 0


def test_mark_with_an_unknown_backend_is_a_usage_error(run_pytest):
    """A misspelled name would skip nothing, so it stops the session."""
    run = run_pytest(MARKED.replace("'subint'", "'subprocess'"))
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "test_function: skipon_spawn_backend names an unknown backend 'subp" in (
        run.stderr
    )


# -- options ---------------------------------------------------------------------------


def test_unknown_backend_is_a_usage_error(run_pytest):
    """The message names the key and the known ones."""
    run = run_pytest(MARKED, '--spawn-backend=quantum')
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "unknown backend 'quantum'; known are trio, mp_spawn" in run.stderr


def test_backend_that_cannot_run_is_a_usage_error(run_pytest, tmp_path):
    """The reason given by the backend is shown."""
    (tmp_path / 'refuse.py').write_text(
        'from tractor.spawn import _spawn\n'
        'def refuse(key): raise RuntimeError("needs another interpreter")\n'
        '_spawn.try_set_start_method = refuse\n'
    )
    path = f'{repodir()}:{tmp_path}'
    run = run_pytest(MARKED, '-p', 'refuse', env={'PYTHONPATH': path})
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert '--spawn-backend=trio: needs another interpreter' in run.stderr


def test_task_dumps_are_refused(run_pytest):
    """An option without effect would mislead."""
    run = run_pytest(MARKED, '--enable-stackscope')
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert 'no task-tree dumper' in run.stderr


def test_fork_server_with_descriptor_capture_ends_a_ci_session(run_pytest):
    """In CI nothing is collected, since the session would hang."""
    run = run_pytest(MARKED, '--spawn-backend=main_thread_forkserver', env={'CI': '1'})
    assert run.returncode == 2
    assert 'does not work with --capture=fd' in run.stderr


@pytest.mark.parametrize(
    ('backend', 'capture', 'warned'),
    [
        ('main_thread_forkserver', 'fd', 1),
        ('main_thread_forkserver', 'sys', 0),
        ('trio', 'fd', 0),
    ],
)
def test_fork_server_with_descriptor_capture_is_warned_of(
    monkeypatch, backend, capture, warned
):
    """Outside CI a person may know better."""
    monkeypatch.delenv('CI', raising=False)
    warnings = []
    config = SimpleNamespace(
        known_args_namespace=SimpleNamespace(spawn_backend=backend, capture=capture),
        issue_config_time_warning=lambda warning, stacklevel: warnings.append(warning),
    )
    plugin.pytest_load_initial_conftests(config)
    assert len(warnings) == warned


def test_several_transports_are_refused(run_pytest):
    """One session tests one transport."""
    run = run_pytest(FIXTURES, '--tpt-proto', 'tcp', 'uds', '--')
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert 'takes one transport per session' in run.stdout


def test_unknown_transport_is_refused(run_pytest):
    """The message names the key and the known ones."""
    run = run_pytest(FIXTURES, '--tpt-proto=pigeon')
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "unknown transport 'pigeon'; known are tcp" in run.stdout


# -- fixtures --------------------------------------------------------------------------


@pytest.fixture(scope='module')
def default_run(run_pytest):
    run = run_pytest(FIXTURES, env={'TRACTOR_ENABLE_STACKSCOPE': '1'})
    assert run.returncode == 0, run.stdout + run.stderr
    return outcomes(run)


def test_fixtures_of_a_default_session(default_run):
    """Every fixture has its documented default value."""
    assert set(default_run.values()) == {'PASSED'}
    assert 'test_flags' in default_run


def test_variables_are_restored_after_each_test(default_run):
    """What one test changes the next one does not see."""
    assert default_run['test_vars_are_back'] == 'PASSED'


def test_task_dump_variable_is_dropped(default_run):
    """A variable left over from another session does not reach the actors."""
    assert default_run['test_environment'] == 'PASSED'


def test_start_method_shows_in_the_id(default_run):
    """The backend is part of the test's id."""
    assert 'test_backend[start_method=trio]' in default_run


def test_settings_reach_the_runtime(run_pytest):
    """Backend, transport, level and debug mode of the command line are in force."""
    run = run_pytest(
        OTHER_SETTINGS,
        *('--spawn-backend=mp_forkserver', '--tpt-proto=uds', '--tpdb', '--tl=cancel'),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (
        'tractor: spawn_backend=mp_forkserver tpt_protos=uds debug_mode=True '
        'loglevel=cancel' in run.stdout
    )


def test_level_of_the_project_is_the_fallback(run_pytest):
    """`--ll` counts for the runtime as well when `--tl` is not given."""
    run = run_pytest(
        'def test_level(loglevel): assert loglevel == "info"\n', '--ll=info'
    )
    assert run.returncode == 0, run.stdout + run.stderr


PROJECT = """
import logging
import pytest

@pytest.fixture(scope='session')
def testing_pkg_name():
    return 'mypkg'

def test_log_of_the_project(test_log, loglevel, pytestconfig):
    logger = logging.getLogger('mypkg')
    pytestconfig.add_cleanup(lambda: print('LEFT', logger.level, logger.handlers))
    test_log.info('said at %s', loglevel)
    test_log.debug('not said')
"""


@pytest.mark.parametrize(
    ('options', 'shown'),
    [
        (['--ll=info'], ['said at info']),
        (['--ll=info', '--tl=error'], ['said at error']),
        (['--ll=error', '--tl=info'], []),
        (['--tl=info'], []),
    ],
    ids=' '.join,
)
def test_level_of_the_project_is_for_its_own_log(run_pytest, options, shown):
    """`--ll` shows what the tested package logs, whatever `--tl` says, till the end."""
    run = run_pytest(PROJECT, '-s', *options)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.findall('said at .*', run.stderr) == shown
    assert 'not said' not in run.stderr
    assert 'LEFT 0 []' in run.stdout


def test_name_of_the_project_may_be_one_of_each_test(run_pytest):
    """Without a level nothing of the session depends on it."""
    run = run_pytest(PROJECT.replace("(scope='session')", ''))
    assert run.returncode == 0, run.stdout + run.stderr


# -- what is left over -----------------------------------------------------------------

LEAKY = """
import os, subprocess, sys
from pathlib import Path
from tractor._testing import _reap, trace

leaked = []

# Until stdin ends, in small steps: CPython 3.14 does not look for a signal that came
# just before a call that blocks.
WAIT = 'import select; any(iter(lambda: select.select([0], [], [], .01)[0], [0]))'

def start(code, *args):
    command = [sys.executable, '-c', 'print(1, flush=True);' + code, *args]
    pipe = subprocess.PIPE
    proc = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    proc.stdout.readline()
    leaked.append(proc)
    return proc

def test_hang():
    trace._SNAPSHOT_INDEX.append(('hang', Path('there')))

def test_child(reap_subactors_per_test):
    assert reap_subactors_per_test == os.getpid()
    start(WAIT, 'child')

def test_child_is_gone():
    assert leaked[-1].wait(5) == -2

def test_socket(monkeypatch, tmp_path, track_orphaned_uds_per_test):
    monkeypatch.setattr(_reap, 'get_uds_dir', lambda: str(tmp_path))
    proc = start('')
    proc.wait()
    leaked.append(tmp_path / f'worker@{proc.pid}.sock')
    leaked[-1].touch()

def test_socket_is_gone():
    assert not leaked[-1].exists()

def test_runaway(monkeypatch, detect_runaway_subactors_per_test):
    found = [(7, 99.6, 'tractor._child')]
    monkeypatch.setattr(_reap, 'find_runaway_subactors', lambda pid: found)

def test_session():
    start(WAIT, 'tractor._child')
    start(WAIT, 'something-else')
"""


@pytest.fixture(scope='module')
def leaky_run(run_pytest):
    run = run_pytest(LEAKY, '-W', 'ignore', '-W', 'default:the test l')
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def test_snapshots_are_listed_at_the_end(leaky_run):
    """The summary tells where the snapshots of hung tests are."""
    assert 'hang snapshots' in leaky_run.stdout
    assert '\nhang: there\n' in leaky_run.stdout


def test_children_of_a_test_are_ended(leaky_run):
    """A test that asked for it leaves no child behind."""
    assert outcomes(leaky_run)['test_child_is_gone'] == 'PASSED'


def test_sockets_of_a_test_are_removed(leaky_run):
    """A test that asked for it leaves no dead socket, and is warned of one."""
    assert outcomes(leaky_run)['test_socket_is_gone'] == 'PASSED'
    assert 'the test leaked sockets: ' in leaky_run.stdout


def test_spinning_children_of_a_test_are_warned_of(leaky_run):
    """The warning tells pid, load and command line."""
    assert 'the test left subactor 7 at 100% CPU: tractor._child' in leaky_run.stdout


def test_leftover_subactor_is_reaped_after_the_session(leaky_run):
    """A process that looks like an actor does not outlive the run, others do."""
    sent = re.findall(r'^sent (\w+) to \d+: .*\)\) (\S+)$', leaky_run.stdout, re.M)
    # The first one is that of `test_child`.
    assert sent == [('SIGINT', 'child'), ('SIGINT', 'tractor._child')]


# -- cost ------------------------------------------------------------------------------


def test_importing_the_plugin_loads_no_runtime():
    """A suite pays for the runtime when it uses it."""
    done = subprocess.run(
        [
            sys.executable,
            '-c',
            'import sys, tractor._testing.pytest\n'
            'print(*sorted({"trio", "msgspec", "tractor.log"} & sys.modules.keys()))',
        ],
        cwd=repodir(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.split() == []
