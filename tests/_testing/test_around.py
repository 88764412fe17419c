"""The fixtures around every test, where a project has its own in their place."""

from __future__ import annotations

import re
import subprocess

import pytest

OWN = """
import pytest

@pytest.fixture(scope='{scope}'{params})
def {name}(request):
    return getattr(request, 'param', 'own')
"""

PLAIN = """
def test_plain():
    pass
"""

ASKS = """
def test_asks({name}, request):
    assert {name} == request.node.callspec.params['{name}']
"""


def passed(run: subprocess.CompletedProcess[str]) -> list[str]:
    """The names of the tests that passed, in a run without failures."""
    assert run.returncode == 0, run.stdout + run.stderr
    return re.findall(r'^test_inner\.py::(\S+) PASSED', run.stdout, re.M)


@pytest.mark.parametrize(
    ('name', 'scope'),
    [
        ('tpt_proto', 'session'),
        ('loglevel', 'module'),
        ('loglevel', 'function'),
        ('_reset_runtime_vars', 'function'),
    ],
)
def test_parameters_count_for_tests_that_do_not_ask(run_pytest, name: str, scope: str):
    """As with any `autouse` fixture, each test runs once for each parameter."""
    own = OWN.format(name=name, scope=scope, params=", params=['one', 'two']")
    run = run_pytest(own + PLAIN + ASKS.format(name=name))
    assert sorted(passed(run)) == [
        'test_asks[one]',
        'test_asks[two]',
        'test_plain[one]',
        'test_plain[two]',
    ]


@pytest.mark.parametrize('scope', ['session', 'class', 'function'])
def test_own_fixture_may_have_another_scope(run_pytest, scope: str):
    """It is set up for a test that does not ask for it, whatever its scope."""
    own = OWN.format(name='loglevel', scope=scope, params='')
    test = "def test_plain(request): assert request.node.funcargs['loglevel'] == 'own'"
    assert passed(run_pytest(f'{own}\n{test}\n')) == ['test_plain']


def test_parameter_of_a_test_may_have_the_name(run_pytest):
    """A test's own parameter takes the place of the fixture, in that test."""
    source = """
import pytest

@pytest.mark.parametrize('loglevel', ['one', 'two'])
def test_parameter(loglevel, request):
    assert loglevel == request.node.callspec.params['loglevel']
"""
    run = run_pytest(source + PLAIN)
    assert sorted(passed(run)) == [
        'test_parameter[one]',
        'test_parameter[two]',
        'test_plain',
    ]


ORDER = """
import pytest
from tractor.runtime import _state

order = []

def fixture(name, **options):
    def note():
        order.append(name)
        yield
        order.append(f'end of {name}')
    return pytest.fixture(name=name, **options)(note)

tpt_proto = fixture('tpt_proto', scope='session')
_reset_runtime_vars = fixture('_reset_runtime_vars')
first = fixture('first', scope='session', autouse=True)
second = fixture('second', autouse=True)
third = fixture('third', scope='session')
fourth = fixture('fourth')

@pytest.mark.usefixtures('third', 'fourth')
def test_order(tpt_proto):
    assert order[:3] == ['tpt_proto', 'first', 'third']
    assert order[3:] == ['_reset_runtime_vars', 'second', 'fourth']

def test_order_of_the_end():
    assert order[6:9] == [f'end of {name}' for name in reversed(order[3:6])]

def test_end_of_the_session(pytestconfig):
    pytestconfig.add_cleanup(lambda: print(order[-3:]))
"""


def test_they_are_the_first_of_their_scope(run_pytest):
    """What another fixture starts is ended before they look for what is left."""
    run = run_pytest(ORDER, '-s')
    assert run.returncode == 0, run.stdout + run.stderr
    assert str(['end of third', 'end of first', 'end of tpt_proto']) in run.stdout
