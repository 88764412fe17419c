"""`tractor_test`: an async test as the main task of a root actor."""

from __future__ import annotations

import inspect
import time

import pytest
import trio

import tractor
from tractor._testing import _root_test, tractor_test

# -- decoration ------------------------------------------------------------------------


def test_sync_function_is_refused():
    """A function that is not async is a mistake, caught when it is decorated."""
    with pytest.raises(TypeError, match='needs an async test function'):

        @tractor_test
        def test_sync():
            raise AssertionError('never called')


def test_sync_function_is_refused_with_options():
    """The same holds for the form with options."""
    with pytest.raises(TypeError, match='write it as `async def`'):
        tractor_test(timeout=1)(len)


@pytest.mark.parametrize('decorate', [tractor_test, tractor_test(timeout=5)])
def test_result_is_a_plain_function_of_the_same_signature(decorate):
    """Pytest injects by the signature and must not take the result for async."""

    async def test_something(reg_addr, *, count: int = 3):
        """What it tests."""

    decorated = decorate(test_something)
    assert not inspect.iscoroutinefunction(decorated)
    assert inspect.signature(decorated) == inspect.signature(test_something)
    assert decorated.__name__ == 'test_something'
    assert decorated.__doc__ == 'What it tests.'


def test_missing_fixture_fails_before_the_runtime_starts():
    """A call without a declared argument is the usual `TypeError`."""

    @tractor_test
    async def test_something(reg_addr):
        raise AssertionError('never run')

    with pytest.raises(TypeError, match="'reg_addr'"):
        test_something()


# -- which options reach the runtime ---------------------------------------------------


def test_declared_fixtures_become_options():
    """The four fixtures configure the runtime, any other argument does not."""
    given = {
        'reg_addr': ('127.0.0.1', 1),
        'loglevel': 'info',
        'start_method': 'trio',
        'debug_mode': False,
        'tpt_proto': 'tcp',
        'timeout': 3,
    }
    assert _root_test._runtime_options(given) == {
        'registry_addrs': [('127.0.0.1', 1)],
        'loglevel': 'info',
        'start_method': 'trio',
        'debug_mode': False,
    }


def test_undeclared_fixtures_leave_the_defaults():
    """Nothing is passed that the test did not ask for."""
    assert _root_test._runtime_options({}) == {}
    assert _root_test._runtime_options({'reg_addr': None}) == {}


def test_windows_has_one_start_method(monkeypatch):
    """Elsewhere all, on Windows only `'trio'`."""
    monkeypatch.setattr(_root_test.sys, 'platform', 'win32')
    assert _root_test._runtime_options({'start_method': 'trio'})
    with pytest.raises(ValueError, match="'mp_spawn' cannot run on Windows"):
        _root_test._runtime_options({'start_method': 'mp_spawn'})


# -- in a runtime ----------------------------------------------------------------------


@tractor_test
async def test_body_runs_in_the_registrar(reg_addr):
    """With an address of its own the root is the registrar, and the main task ours."""
    actor = tractor.current_actor()
    assert tractor.is_root_process()
    assert actor.is_registrar
    assert actor.accept_addr == reg_addr
    assert trio.lowlevel.current_task().parent_nursery.parent_task is (
        trio.lowlevel.current_root_task()
    )


@tractor_test(timeout=10)
async def test_body_gets_what_it_declares(reg_addr, tpt_proto, set_fork_aware_capture):
    """Fixtures which do not configure the runtime are passed like any other."""
    assert tpt_proto in ('tcp', 'uds')
    assert set_fork_aware_capture


@tractor_test
@pytest.mark.parametrize('number', [1, 2])
async def test_parametrized_below(number, reg_addr):
    """The decorator may stand above parametrization."""
    assert number in (1, 2)


@pytest.mark.parametrize('number', [1, 2])
@tractor_test
async def test_parametrized_above(number, reg_addr):
    """The decorator may stand below parametrization."""
    assert number in (1, 2)


class TestMethods:
    @tractor_test
    async def test_method(self, reg_addr):
        """The decorator works on methods."""
        assert isinstance(self, TestMethods)


def test_errors_of_the_body_are_raised_as_they_are(reg_addr):
    """Neither a group nor a wrapper is put around an error."""

    @tractor_test
    async def test_something(reg_addr):
        raise ValueError('of the body')

    with pytest.raises(ValueError, match='of the body'):
        test_something(reg_addr=reg_addr)


def test_deadline_ends_the_body(reg_addr):
    """A body that hangs is cancelled and reported as too slow."""

    entered = []

    @tractor_test(timeout=1)
    async def test_something(reg_addr):
        entered.append(True)
        await trio.sleep_forever()

    began = time.monotonic()
    with pytest.raises(trio.TooSlowError):
        test_something(reg_addr=reg_addr)
    assert entered
    assert time.monotonic() - began < 5


def test_runtime_is_gone_afterwards(reg_addr):
    """Any number of such tests run in one process."""

    @tractor_test
    async def test_something(reg_addr):
        await trio.lowlevel.checkpoint()

    test_something(reg_addr=reg_addr)
    assert tractor.current_actor(err_on_no_runtime=False) is None
    test_something(reg_addr=reg_addr)
