"""What a root settles before it comes up, and what it logs."""

from __future__ import annotations

import logging

import pytest
import trio

import tractor


async def open_root(reg_addr, error=None, **kwargs) -> None:
    with trio.fail_after(5):
        async with tractor.open_root_actor(registry_addrs=[reg_addr], **kwargs):
            if error is not None:
                raise error


def test_crash_is_logged_whatever_the_filter_of_the_debugger_says(reg_addr, caplog):
    """That only tells what a debugger is for."""
    with pytest.raises(ValueError, match='on purpose'):
        trio.run(
            lambda: open_root(
                reg_addr, ValueError('on purpose'), debug_filter=lambda err: False
            )
        )
    assert 'Root actor crashed: ValueError' in caplog.text


def test_bad_log_level_is_told_before_a_bad_backend(reg_addr):
    """What decides how things are told is settled first."""
    with pytest.raises(ValueError, match="unknown log level 'NONSENSE'"):
        trio.run(lambda: open_root(reg_addr, loglevel='nonsense', start_method='nope'))


def test_bad_backend_is_told_before_a_bad_registry(tmp_path):
    """In the order of the documentation."""
    address = (str(tmp_path), 'r.sock')
    with pytest.raises(ValueError, match='spawn method'):
        trio.run(
            lambda: open_root(address, start_method='nope', enable_transports=['tcp'])
        )


def test_choice_of_the_environment_is_told_at_the_level_asked_for(
    reg_addr, caplog, monkeypatch
):
    """A warning, which `error` leaves out."""
    caplog.set_level(logging.NOTSET)
    monkeypatch.setenv('TRACTOR_SPAWN_METHOD', 'mp_spawn')
    trio.run(lambda: open_root(reg_addr, start_method='trio', loglevel='error'))
    assert 'wins over' not in caplog.text
    trio.run(lambda: open_root(reg_addr, start_method='trio', loglevel='warning'))
    assert 'TRACTOR_SPAWN_METHOD=mp_spawn wins over' in caplog.text


def test_variable_that_cannot_have_its_effect_is_told(reg_addr, caplog, monkeypatch):
    """Whoever set it waits for a dump that nobody makes."""
    monkeypatch.setenv('TRACTOR_ENABLE_STACKSCOPE', '1')
    trio.run(lambda: open_root(reg_addr, loglevel='warning'))
    assert 'TRACTOR_ENABLE_STACKSCOPE' in caplog.text
