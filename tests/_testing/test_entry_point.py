"""
The plugin as an entry point: installed with the package, and felt by nobody else.

Each run has a folder on its path that holds no code but the metadata of an installed
package, so that these tests say the same in a checkout and in an installation.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tractor._testing import repodir

PLUGIN = 'tractor._testing.pytest'
OFF = ('-p', f'no:{PLUGIN}')

type Run = Callable[..., subprocess.CompletedProcess[str]]

# A suite without actors that uses, by accident, many of the plugin's names.
UNRELATED = {
    'conftest.py': """
        import sys
        import pytest

        def pytest_addoption(parser):
            parser.addoption('--loglevel', default='quiet')
            parser.getgroup('mine').addoption('--tl', type=int, default=3)

        def pytest_configure(config):
            config.addinivalue_line('markers', 'trio: as another plugin has it')

        def pytest_unconfigure(config):
            roots = 'tractor', 'trio', 'msgspec', 'psutil'
            print('LOADED', *(m for m in sys.modules if m.split('.')[0] in roots))

        @pytest.fixture(autouse=True)
        def debug_mode(): ...

        @pytest.fixture
        def loglevel(request):
            return request.config.getoption('--loglevel')
    """,
    'test_inner.py': """
        import unittest
        import pytest

        @pytest.fixture(scope='module', params=['a', 'b'])
        def spawn_backend(request):
            return request.param

        @pytest.mark.parametrize('start_method', ['spawn', 'fork'])
        def test_parameter(start_method):
            assert start_method in ('spawn', 'fork')

        def test_fixture(loglevel, spawn_backend, pytestconfig):
            assert loglevel == pytestconfig.option.loglevel
            assert pytestconfig.getoption('--tl') == 3

        @pytest.mark.trio
        def test_mark(): ...

        class TestUnit(unittest.TestCase):
            def test_method(self): ...

        def test_doc():
            assert f.__doc__

        def f():
            '''
            >>> 1 + 1
            2
            '''
    """,
}

# Says in the summary whether the plugin had its effects.
TELL = f"""
    import pytest

    def pytest_terminal_summary(terminalreporter, config):
        plugins = config.pluginmanager.list_name_plugin()
        found = [n for n, p in plugins if getattr(p, '__name__', 0) == '{PLUGIN}']
        terminalreporter.line(f'REGISTERED {{found}}')

    @pytest.fixture(autouse=True)
    def tell(request):
        yield
        active = '_reset_runtime_vars' in request.node.fixturenames
        print('SURROUNDED' if active else 'ALONE')
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run pytest on files of these texts, with the entry point installed."""
    metadata = tmp_path / 'site' / 'tractor_here-0.dist-info'
    metadata.mkdir(parents=True)
    (metadata / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: tractor-here\nVersion: 0\n'
    )
    (metadata / 'entry_points.txt').write_text(f'[pytest11]\n{PLUGIN} = {PLUGIN}\n')
    suite = tmp_path / 'suite'
    suite.mkdir()

    def run(
        files: dict[str, str], *arguments: str, **env: str
    ) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            (suite / name).write_text(textwrap.dedent(text))
        for name in ('CI', 'PYTEST_ADDOPTS', 'PYTEST_PLUGINS'):
            env.setdefault(name, '')
        path = f'{repodir()}{os.pathsep}{metadata.parent}'
        # One of the other plugins would load trio by itself.
        others = ('-p', 'no:hypothesispytest', '-p', 'no:cacheprovider')
        options = (*others, '--rootdir=.', '-W', 'error')
        return subprocess.run(
            [sys.executable, '-m', 'pytest', *options, *arguments],
            cwd=suite,
            env=os.environ | {'PYTHONPATH': path} | env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def told(test: str) -> dict[str, str]:
    """A suite of one module that tells what the plugin did."""
    return {'conftest.py': TELL, 'test_inner.py': test}


def test_project_declares_the_entry_point():
    """Its name is the module's, which is what `-p` looks for."""
    project = tomllib.loads((repodir() / 'pyproject.toml').read_text())['project']
    assert project['entry-points']['pytest11'] == {PLUGIN: PLUGIN}
    assert EntryPoint(PLUGIN, PLUGIN, 'pytest11').load().__name__ == PLUGIN


# -- in a suite without actors ---------------------------------------------------------


@pytest.mark.parametrize(
    'option',
    [
        ('--setup-show', '-v', '--doctest-modules'),
        ('--collect-only', '-q'),
        ('-rA', '--strict-markers', '-m', 'not trio'),
    ],
)
def test_unrelated_suite_runs_as_without_the_plugin(run, option):
    """Ids, fixtures, header and outcomes are the same, line by line."""

    def lines(*arguments: str) -> list[str]:
        done = run(UNRELATED, *option, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return [
            re.sub(r' in [0-9.]+s.*', '', line)  # how long it took
            for line in done.stdout.splitlines()
            # Lists the names of all plugins.
            if not line.startswith(('plugins:', 'LOADED'))
        ]

    assert lines() == lines(*OFF)


def test_unrelated_suite_loads_the_plugin_only(run):
    """Neither trio nor a part of the runtime, nor the modules with more fixtures."""
    done = run(UNRELATED, '-q', '-s')
    [loaded] = [line for line in done.stdout.splitlines() if line[:6] == 'LOADED']
    own = ('pytest', '_backends', '_options', '_usage')
    package = {'tractor', 'tractor._lazy', 'tractor._testing'}
    assert set(loaded.split()[1:]) <= package | {f'tractor._testing.{n}' for n in own}
    assert PLUGIN in loaded


def test_own_option_of_a_project_keeps_its_meaning(run):
    """A level that a project defined is neither taken over nor taken for ours."""
    done = run(UNRELATED, '--loglevel', 'loud', '--setup-show')
    assert done.returncode == 0, done.stdout + done.stderr
    assert '_reset_runtime_vars' not in done.stdout
    assert 'tractor:' not in done.stdout


# -- in a suite with actors ------------------------------------------------------------

PLAIN = 'def test_plain(): ...\n'


@pytest.mark.parametrize(
    ('test', 'arguments', 'env'),
    [
        (PLAIN, ('-p', PLUGIN), {}),
        (PLAIN, (), {'PYTEST_ADDOPTS': f'-p {PLUGIN}'}),
        (PLAIN, (), {'PYTEST_PLUGINS': PLUGIN}),
        (PLAIN, ('--tpdb',), {}),
        (PLAIN, ('--ll=info',), {}),
        (PLAIN, ('--tpt-proto=uds',), {}),
        (PLAIN, ('--spawn-backend=mp_spawn',), {}),
        ('def test_fixture(reg_addr): ...\n', (), {}),
        ('def test_late_fixture(afk_alarm_w_trace): ...\n', (), {}),
        (
            'import pytest\n@pytest.mark.has_nested_actors\ndef test_mark(): ...\n',
            (),
            {},
        ),
        (
            'from tractor._testing import tractor_test\n'
            '@tractor_test\nasync def test_root(): ...\n',
            (),
            {},
        ),
    ],
    ids=lambda value: value.partition('\n')[0] if isinstance(value, str) else None,
)
def test_use_makes_the_plugin_active(run, test, arguments, env):
    """By name, by option or by one test: then all tests of a session are surrounded."""
    test += 'def test_another(): ...\n'
    done = run(told(test), '-rA', *arguments, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count('SURROUNDED') == 2
    assert f"REGISTERED ['{PLUGIN}']" in done.stdout


def test_conftest_names_the_plugin(run):
    """`pytest_plugins` counts, with the entry point and without."""
    files = told(PLAIN)
    files['conftest.py'] += f'    pytest_plugins = {PLUGIN!r}\n'
    for extra in ({}, {'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'}):
        done = run(files, '-rA', '--ll=info', **extra)
        assert done.returncode == 0, done.stdout + done.stderr
        assert 'SURROUNDED' in done.stdout
        assert 'loglevel=info' in done.stdout
        assert f"REGISTERED ['{PLUGIN}']" in done.stdout


def test_parameters_of_a_project_need_the_name(run):
    """A test that does not ask for them runs for each, or else without the fixture."""
    files = {
        'conftest.py': """
            import pytest

            @pytest.fixture(scope='session', params=['tcp', 'uds'])
            def tpt_proto(request):
                return request.param
        """,
        'test_inner.py': PLAIN + 'def test_fixture(reg_addr): ...\n',
    }
    for arguments, expected in (((), 3), (('-p', PLUGIN), 4)):
        done = run(files, '-v', *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f'{expected} passed' in done.stdout
        assert done.stdout.count('test_fixture[') == 2


def test_session_without_use_is_left_alone(run):
    """A test that was deselected is not used."""
    test = PLAIN + 'def test_fixture(reg_addr): ...\n'
    done = run(told(test), '-rA', '-k', 'plain')
    assert 'ALONE' in done.stdout
    assert 'SURROUNDED' not in done.stdout


def test_plugin_can_be_turned_off(run):
    """As any plugin, by its name."""
    done = run(told('def test_fixture(reg_addr): ...\n'), *OFF)
    assert "fixture 'reg_addr' not found" in done.stdout
    assert 'REGISTERED []' in done.stdout


WIDER = """
        import pytest
        from tractor.runtime import _state

        @pytest.fixture(scope='module')
        def changed():
            _state._runtime_vars['added'] = 'by the module'
            yield
            del _state._runtime_vars['added']

        def test_first(changed, request):
            names = request.node.fixturenames
            wide = names.index('tpt_proto'), names.index('changed')
            assert 3 == wide[0] < wide[1] < names.index('_reset_runtime_vars')

        def test_second(changed):
            assert _state._runtime_vars['added'] == 'by the module'
"""


def test_fixtures_of_wider_scope_come_first(run):
    """What a module sets up, the end of its first test does not undo."""
    done = run({'test_inner.py': WIDER}, '-p', PLUGIN)
    assert done.returncode == 0, done.stdout + done.stderr
