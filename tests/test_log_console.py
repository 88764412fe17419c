"""The console handler and log specs."""

from __future__ import annotations

import io
import logging
import re
import sys

import pytest
import trio

from tractor import log as tlog
from tractor.log import (
    StackLevelAdapter,
    apply_logspec,
    get_console_log,
    parse_logspec,
)

PKG = 'logpkg'


@pytest.fixture(autouse=True)
def _restore_logging():
    """Loggers and levels that a test makes end with it."""
    provider = tlog._context_provider
    yield
    tlog._context_provider = provider
    for name in [n for n in logging.Logger.manager.loggerDict if n.startswith(PKG)]:
        del logging.Logger.manager.loggerDict[name]


def fake_stderr(monkeypatch):
    """
    Put a text stream in the place of stderr.

    No fixture, since pytest's own capture swaps the stream after the set-up.
    """
    stream = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', stream)
    return stream


# console


def test_console_line(monkeypatch):
    """A record is one line: time, actor, level, logger, place, text."""
    stderr = fake_stderr(monkeypatch)
    log = get_console_log('runtime', name='sub', pkg_name=PKG)
    tlog.set_context_provider(lambda: {'actor_name': 'bob', 'actor_uid': 'abc123'})

    async def main():
        log.runtime('peer %s gone', 3)

    trio.run(main)
    line = re.sub(r'\x1b\[[\d;]*m', '', stderr.getvalue())
    assert re.fullmatch(
        r'[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d'
        r' \(bob\[abc123\], \d+, \S+main\[\d{6}\]\)'
        r' \[RUNTIME\] logpkg\.sub test_log_console\.py:\d+ peer 3 gone\n',
        line,
    )


def test_console_shows_its_level_and_above(monkeypatch):
    """The level may be a name in any case, or a number."""
    stderr = fake_stderr(monkeypatch)
    log = get_console_log('Cancel', name='a', pkg_name=PKG)
    log.io('below')
    log.cancel('at')
    assert stderr.getvalue().count('\n') == 1
    assert get_console_log(15, logger=log).level == 'runtime'
    with pytest.raises(ValueError, match='unknown log level'):
        get_console_log('loud', logger=log)


@pytest.mark.parametrize('level', [None, ''])
def test_no_level_changes_nothing(level):
    """Without a level the adapter is returned, and no handler is added."""
    log = get_console_log(level, name='a', pkg_name=PKG)
    assert isinstance(log, StackLevelAdapter)
    assert not log.logger.handlers
    assert log.logger.level == logging.NOTSET


def test_one_handler_per_stream(monkeypatch):
    """Asking twice, or beside another handler of that stream, adds none."""
    stderr = fake_stderr(monkeypatch)
    log = get_console_log('info', name='a', pkg_name=PKG)
    assert get_console_log('error', logger=log) is log
    assert len(log.logger.handlers) == 1
    other = logging.getLogger(f'{PKG}.own')
    other.addHandler(logging.StreamHandler(stderr))
    assert get_console_log('info', logger=other).logger.handlers == other.handlers
    assert len(other.handlers) == 1


def test_record_is_shown_once(monkeypatch):
    """A record that passes two console handlers is one line."""
    stderr = fake_stderr(monkeypatch)
    root = get_console_log('info', pkg_name=PKG, mk_sublog=False)
    log = get_console_log('info', name='a', pkg_name=PKG)
    assert root.logger.handlers
    assert log.logger.handlers
    log.info('once')
    assert stderr.getvalue().count('once') == 1


@pytest.fixture
def root_handler():
    """Install a handler for everything, as `logging.basicConfig()` does."""
    installed = []

    def install(handler):
        handler.setFormatter(logging.Formatter('APP %(message)s'))
        logging.root.addHandler(handler)
        installed.append(handler)
        return handler

    yield install
    for handler in installed:
        logging.root.removeHandler(handler)


@pytest.mark.parametrize('is_first', [True, False])
def test_the_application_shows_a_record_its_own_way(
    monkeypatch, root_handler, is_first
):
    """Where its handler writes to stderr ours is silent, whichever came first."""
    stderr = fake_stderr(monkeypatch)
    if is_first:
        root_handler(logging.StreamHandler())
    log = get_console_log('info', name='a', pkg_name=PKG)
    if not is_first:
        root_handler(logging.StreamHandler())
    log.info('once')
    assert stderr.getvalue() == 'APP once\n'


def test_what_the_application_does_not_show_is_shown(monkeypatch, root_handler):
    """Its handler writes elsewhere, or takes only higher levels, or is not reached."""
    stderr = fake_stderr(monkeypatch)
    root_handler(logging.StreamHandler(io.StringIO()))
    root_handler(logging.StreamHandler()).setLevel('ERROR')
    log = get_console_log('info', name='a', pkg_name=PKG)
    log.info('low')
    log.error('high')
    _, logs = apply_logspec('b:info', pkg_name=PKG)
    logs[f'{PKG}.b'].error('unreached')
    first, second, third = stderr.getvalue().splitlines()
    assert first.endswith(' low')
    assert second == 'APP high'
    assert third.endswith(' unreached')
    assert not third.startswith('APP')


def test_filter_of_the_application_is_asked(monkeypatch, root_handler):
    """A record which its handler drops is not shown by it."""
    stderr = fake_stderr(monkeypatch)
    root_handler(logging.StreamHandler()).addFilter(lambda record: False)
    get_console_log('info', name='a', pkg_name=PKG).info('dropped there')
    assert stderr.getvalue().count('dropped there') == 1


def test_console_follows_stderr(monkeypatch):
    """When stderr is replaced, even closed, records go to the new one."""
    stderr = fake_stderr(monkeypatch)
    log = get_console_log('info', name='a', pkg_name=PKG)
    stderr.close()
    newer = io.StringIO()
    monkeypatch.setattr(sys, 'stderr', newer)
    log.info('here')
    assert 'here' in newer.getvalue()
    get_console_log('info', logger=log)
    assert len(log.logger.handlers) == 1


def test_plain_records_are_shown_too(monkeypatch):
    """A record made without the adapter gets its context when it is shown."""
    stderr = fake_stderr(monkeypatch)
    get_console_log('info', pkg_name=PKG, mk_sublog=False)
    logging.getLogger(f'{PKG}.plain').info('from a plain logger')
    assert 'from a plain logger' in stderr.getvalue()
    assert 'context' in stderr.getvalue()


def test_no_colors_off_a_terminal(monkeypatch):
    """A stream that is no terminal gets no escape codes."""
    stderr = fake_stderr(monkeypatch)
    get_console_log('info', name='a', pkg_name=PKG).info('x')
    assert '\x1b' not in stderr.getvalue()


def test_colors_on_a_terminal(monkeypatch):
    """A terminal gets the level's color."""
    stderr = fake_stderr(monkeypatch)
    for var in ('NO_COLOR', 'FORCE_COLOR'):
        monkeypatch.delenv(var, raising=False)
    monkeypatch.setattr(stderr, 'isatty', lambda: True)
    get_console_log('info', name='a', pkg_name=PKG).error('x')
    assert '\x1b[31m' in stderr.getvalue()


# log specs


@pytest.mark.parametrize(
    ('spec', 'levels'),
    [
        (False, {}),
        (True, {None: 'cancel'}),
        ('info', {None: 'info'}),
        ('INFO', {None: 'INFO'}),
        ('a.b:runtime,c:cancel', {'a.b': 'runtime', 'c': 'cancel'}),
        (' a : io , b:pdb', {'a': 'io', 'b': 'pdb'}),
    ],
)
def test_parse_logspec(spec, levels):
    """A spec is nothing, one level for all, or a level per sub-logger."""
    assert parse_logspec(spec) == levels


def test_parse_logspec_default():
    """`True` stands for the default level."""
    assert parse_logspec(True, default_level='info') == {None: 'info'}


@pytest.mark.parametrize(
    'spec',
    [
        'info,a:cancel',
        'a:cancel,info',
        'info,cancel',
        'a:info,a:cancel',
        'tractor:info',
        'tractor.msg:info',
        'msg.tractor:info',
        'loud',
        'a:loud',
        'a:',
        ':info',
        '',
        'a:info,',
        None,
        3,
        ['info'],
    ],
)
def test_parse_logspec_refuses(spec):
    """Mixed, repeated, package-qualified, unknown and other things are refused."""
    with pytest.raises(ValueError, match='log'):
        parse_logspec(spec)


def test_parse_logspec_other_package():
    """The package name that must not appear is the one the spec is for."""
    assert parse_logspec('tractor:info', pkg_name=PKG) == {'tractor': 'info'}
    with pytest.raises(ValueError, match=PKG):
        parse_logspec(f'{PKG}.a:info', pkg_name=PKG)


def test_apply_logspec_for_all(monkeypatch):
    """One level opens the console of the package and is returned."""
    stderr = fake_stderr(monkeypatch)
    level, logs = apply_logspec('info', pkg_name=PKG)
    assert level == 'info'
    assert list(logs) == [PKG]
    logs[PKG].info('shown')
    assert 'shown' in stderr.getvalue()


def test_apply_logspec_per_sublogger(monkeypatch):
    """Each sub-logger gets its own console and stops propagating."""
    stderr = fake_stderr(monkeypatch)
    level, logs = apply_logspec('a.b:runtime,c:error', pkg_name=PKG)
    assert level is None
    assert set(logs) == {f'{PKG}.a.b', f'{PKG}.c'}
    assert not any(log.logger.propagate for log in logs.values())
    logs[f'{PKG}.a.b'].runtime('one')
    logs[f'{PKG}.c'].runtime('two')
    assert 'one' in stderr.getvalue()
    assert 'two' not in stderr.getvalue()


def test_apply_logspec_nothing():
    """`False` opens nothing."""
    assert apply_logspec(False, pkg_name=PKG) == (None, {})
