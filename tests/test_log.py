"""Levels, logger names and records."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import trio

from tractor import log as tlog
from tractor._code_load import load_module_from_path
from tractor.log import (
    BOLD_PALETTE,
    CUSTOM_LEVELS,
    STD_PALETTE,
    StackLevelAdapter,
    add_log_level,
    at_least_level,
    get_logger,
    get_loglevel,
)

PKG = 'logpkg'
MAKE = 'from tractor.log import get_logger\n'
IMPLICIT = f'{MAKE}log = get_logger(pkg_name={PKG!r})\n'


class Records(logging.Handler):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.list: list[logging.LogRecord] = []

    def emit(self, record):
        self.list.append(record)


@pytest.fixture(autouse=True)
def _restore_logging():
    """Loggers, levels and modules that a test makes end with it."""
    modules = set(sys.modules)
    provider = tlog._context_provider
    yield
    tlog._context_provider = provider
    for name in [n for n in logging.Logger.manager.loggerDict if n.startswith(PKG)]:
        del logging.Logger.manager.loggerDict[name]
    for name in set(sys.modules) - modules:
        if name.split('.')[0] == PKG:
            del sys.modules[name]


@pytest.fixture
def records():
    """A logger of package `PKG` at the lowest level, and what it recorded."""
    handler = Records()
    adapter = get_logger(pkg_name=PKG, mk_sublog=False)
    adapter.logger.setLevel(1)
    adapter.logger.propagate = False
    adapter.logger.addHandler(handler)
    return adapter, handler.list


# levels


@pytest.mark.parametrize(
    ('name', 'number'),
    [
        ('TRANSPORT', 5),
        ('RUNTIME', 15),
        ('DEVX', 17),
        ('IO', 21),
        ('CANCEL', 22),
        ('PDB', 500),
    ],
)
def test_custom_level(records, name, number):
    """Each level is known to `logging`, has colors, and a method of its name."""
    adapter, made = records
    assert CUSTOM_LEVELS[name] == number
    assert logging.getLevelName(number) == name
    assert BOLD_PALETTE['bold'][name] == f'bold_{STD_PALETTE[name]}'
    getattr(adapter, name.lower())('text %s', 1)
    assert [(r.levelname, r.levelno, r.getMessage()) for r in made] == [
        (name, number, 'text 1')
    ]


def test_standard_levels_have_colors():
    """The palettes cover the levels of `logging` too."""
    for name in ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL'):
        assert BOLD_PALETTE['bold'][name] == f'bold_{STD_PALETTE[name]}'


def test_default_level_is_a_module_global(monkeypatch):
    """`get_loglevel()` returns what `_default_loglevel` holds now."""
    assert get_loglevel() == 'ERROR'
    monkeypatch.setattr(tlog, '_default_loglevel', 'cancel')
    assert get_loglevel() == 'cancel'


@pytest.fixture
def new_level():
    """The name of a level that is taken away again."""
    yield 'SHOUT'
    for table in (CUSTOM_LEVELS, STD_PALETTE, BOLD_PALETTE['bold']):
        table.pop('SHOUT', None)
    del StackLevelAdapter.shout


def test_add_log_level(records, new_level):
    """A new level has a number, colors and a method; adding it again is harmless."""
    adapter, made = records
    for _ in range(2):
        add_log_level(new_level.lower(), 33, 'red')
    assert CUSTOM_LEVELS['SHOUT'] == 33
    assert (STD_PALETTE['SHOUT'], BOLD_PALETTE['bold']['SHOUT']) == ('red', 'bold_red')
    adapter.shout('hey')
    assert made[0].levelname == 'SHOUT'


def test_level_number_is_read_at_call_time(records, new_level):
    """Changing the number changes what the existing method emits."""
    adapter, made = records
    add_log_level(new_level, 33)
    emit = adapter.shout
    add_log_level(new_level, 34)
    emit('hey')
    assert made[0].levelno == 34


@pytest.mark.parametrize('name', ['error', 'LOGGER', 'name', 'at_least_level'])
def test_level_must_not_hide_the_adapter(name):
    """A level whose method would replace another attribute is refused."""
    with pytest.raises(ValueError, match='would hide'):
        add_log_level(name, 33)
    assert name.upper() not in CUSTOM_LEVELS


def test_at_least_level(records):
    """It tells whether a record of that level would be made, disabled or not."""
    adapter, _ = records
    adapter.logger.setLevel('CANCEL')
    assert adapter.level == 'cancel'
    for log in (adapter, adapter.logger):
        assert at_least_level(log, 'cancel')
        assert at_least_level(log, 'ERROR')
        assert at_least_level(log, 22)
        assert not at_least_level(log, 'io')
    assert adapter.at_least_level('Cancel')
    assert not adapter.at_least_level('runtime')

    adapter.logger.disabled = True
    assert not adapter.at_least_level('error')
    adapter.logger.disabled = False
    logging.disable(logging.ERROR)
    try:
        assert not adapter.at_least_level('error')
        assert adapter.at_least_level('pdb')
    finally:
        logging.disable(logging.NOTSET)


def test_unknown_level_names_the_known_ones(records):
    """A level that does not exist is a `ValueError` that lists the others."""
    adapter, _ = records
    # Other libraries, such as nox, add levels of their own between these.
    with pytest.raises(ValueError, match=r"'loud'.*transport,.* debug, runtime"):
        adapter.at_least_level('loud')


# records


@pytest.mark.parametrize(
    'call',
    [
        lambda log: log.runtime('x'),
        lambda log: log.info('x'),
        lambda log: log.log(22, 'x'),
        lambda log: log.exception('x', exc_info=False),
    ],
)
def test_record_names_the_caller(records, call):
    """File, line and function are those of the logging statement."""
    adapter, made = records
    call(adapter)
    assert made[0].pathname == __file__
    assert made[0].lineno == call.__code__.co_firstlineno
    assert made[0].funcName == '<lambda>'


def test_stacklevel_goes_on_from_the_caller(records):
    """`stacklevel=2` names the caller's caller."""
    adapter, made = records

    def helper():
        adapter.cancel('x', stacklevel=2)

    helper()
    assert made[0].funcName == 'test_stacklevel_goes_on_from_the_caller'


def test_disabled_call_formats_and_asks_nothing(records):
    """Below the level neither the arguments nor the context are looked at."""
    adapter, made = records
    adapter.logger.setLevel('ERROR')
    asked = []
    tlog.set_context_provider(lambda: asked.append(1) or {})

    class Loud:
        def __str__(self):
            raise AssertionError

    adapter.transport('%s', Loud())
    adapter.debug('%s', Loud())
    adapter.log(15, '%s', Loud())
    assert not made
    assert not asked


def test_record_carries_the_actor(records):
    """What the provider says is on the record; the caller's own `extra` wins."""
    adapter, made = records
    tlog.set_context_provider(lambda: {'actor_name': 'bob', 'actor_uid': 'abc123'})
    adapter.info('x', extra={'actor_name': 'eve', 'more': 1})
    record = made[0]
    assert (record.actor_name, record.actor_uid) == ('eve', 'abc123')
    assert record.more == 1


def test_missing_context_says_so(records):
    """Without actor and task each key says that it is missing."""
    adapter, made = records
    tlog.set_context_provider(dict)
    adapter.info('x')
    for key in ('actor_name', 'actor_uid', 'task'):
        assert getattr(made[0], key) == f'no {key} context'


def test_record_carries_the_trio_task(records):
    """The task is its name and the last six digits of its id."""
    adapter, made = records

    async def main():
        adapter.info('x')
        return trio.lowlevel.current_task()

    task = trio.run(main)
    assert made[0].task == f'{task.name}[{str(id(task))[-6:]}]'


def test_import_loads_no_colorlog():
    """Importing the module and logging nothing brings no other module of ours."""
    code = (
        'import sys, tractor.log\n'
        "tractor.log.get_logger().runtime('x')\n"
        "ours = {n for n in sys.modules if n.startswith('tractor.')}\n"
        "assert ours <= {'tractor.log', 'tractor._lazy'}, ours\n"
        "assert 'colorlog' not in sys.modules\n"
        "assert 'trio' not in sys.modules\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=20)


# names


def write_package(tmp_path, monkeypatch):
    """A package whose modules each make an implicitly named logger."""
    sub = tmp_path / PKG / 'sub'
    sub.mkdir(parents=True)
    for path in (
        sub.parent / '__init__.py',
        sub.parent / 'top.py',
        sub / '__init__.py',
        sub / 'mod.py',
        sub / 'other.py',
    ):
        path.write_text(IMPLICIT)
    monkeypatch.syspath_prepend(tmp_path)
    return sub


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        (PKG, PKG),
        (f'{PKG}.top', PKG),
        (f'{PKG}.sub', f'{PKG}.sub'),
        (f'{PKG}.sub.mod', f'{PKG}.sub'),
        (f'{PKG}.sub.other', f'{PKG}.sub'),
    ],
)
def test_implicit_name_is_the_package(tmp_path, monkeypatch, module, name):
    """A logger without a name has that of the caller's package, never of a module."""
    write_package(tmp_path, monkeypatch)
    __import__(module)
    assert sys.modules[module].log.name == name


def test_one_child_logger_per_package(tmp_path, monkeypatch):
    """All modules of a sub-package share one logger below the root."""
    write_package(tmp_path, monkeypatch)
    for module in ('top', 'sub.mod', 'sub.other'):
        __import__(f'{PKG}.{module}')
    root = get_logger(pkg_name=PKG, mk_sublog=False).logger
    assert [child.name for child in root.getChildren()] == [f'{PKG}.sub']


def test_module_loaded_from_a_path(tmp_path, monkeypatch):
    """A module registered under its full name is named by its package."""
    sub = write_package(tmp_path, monkeypatch)
    module = load_module_from_path(sub / 'mod.py', f'{PKG}.sub.mod')
    assert module.log.name == f'{PKG}.sub'


def test_module_of_a_loader_that_registers_nothing(tmp_path, monkeypatch):
    """A module that is not in `sys.modules` still knows its package."""
    sub = write_package(tmp_path, monkeypatch)
    spec = spec_from_file_location(f'{PKG}.sub.mod', sub / 'mod.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert spec.name not in sys.modules
    assert module.log.name == f'{PKG}.sub'


def test_executed_code_is_located_by_its_file(tmp_path, monkeypatch):
    """Code under a made-up module name gets the package that holds its file."""
    sub = write_package(tmp_path, monkeypatch)
    __import__(f'{PKG}.sub')
    for path in (sub / 'mod.py', sub / '__init__.py'):
        scope = {'__name__': 'made_up'}
        exec(compile(IMPLICIT, str(path), 'exec'), scope)
        assert scope['log'].name == f'{PKG}.sub'


def test_executed_code_from_nowhere():
    """Code of no file falls back on the dots of its module name."""
    scope = {'__name__': f'{PKG}.deep.mod'}
    exec(compile(IMPLICIT, '<nowhere>', 'exec'), scope)
    assert scope['log'].name == f'{PKG}.deep'


def test_caller_outside_the_package_gets_the_root():
    """A script or another project gets the package's own logger."""
    assert get_logger(pkg_name=PKG).name == PKG
    scope = {'__name__': '__main__'}
    exec(IMPLICIT, scope)
    assert scope['log'].name == PKG


def test_our_own_modules():
    """The project's loggers are named by sub-package."""
    from tractor.msg import types

    assert types.log.name == 'tractor.msg'


def test_without_sublog():
    """`mk_sublog=False` and the package's own name give the root logger."""
    assert get_logger('a.b', pkg_name=PKG, mk_sublog=False).name == PKG
    assert get_logger(PKG, pkg_name=PKG).name == PKG


def test_explicit_name_is_taken_literally():
    """A name is put below the package as it is."""
    assert get_logger('a.b.c', pkg_name=PKG).name == f'{PKG}.a.b.c'
    assert get_logger(f'{PKG}ish.a', pkg_name=PKG).name == f'{PKG}.{PKG}ish.a'


def test_repeated_package_is_removed_with_a_warning(records):
    """A name that starts with its package is shortened, and that is said."""
    _, made = records
    assert get_logger(f'{PKG}.sub.mod', pkg_name=PKG).name == f'{PKG}.sub.mod'
    assert [r.levelname for r in made] == ['WARNING']
    assert f"'{PKG}.sub.mod'" in made[0].getMessage()


def test_repeated_package_is_an_error_when_strict():
    """With `_strict_debug` the same is refused."""
    with pytest.raises(ValueError, match='repeats its package'):
        get_logger(f'{PKG}.sub', pkg_name=PKG, _strict_debug=True)


@pytest.mark.parametrize(
    ('module', 'name'),
    [
        (f'{PKG}.top', PKG),
        (f'{PKG}.sub', f'{PKG}.sub'),
        (f'{PKG}.sub.mod', f'{PKG}.sub'),
    ],
)
def test_dunder_name_idiom(tmp_path, monkeypatch, records, module, name):
    """`get_logger(__name__)` drops only the calling module's own leaf, silently."""
    sub = write_package(tmp_path, monkeypatch)
    code = f'{MAKE}log = get_logger(__name__, pkg_name={PKG!r})\n'
    for path in (sub.parent / 'top.py', sub / '__init__.py', sub / 'mod.py'):
        path.write_text(code)
    __import__(module)
    assert sys.modules[module].log.name == name
    assert not records[1]


def test_given_logger_is_wrapped():
    """A given logger is used whatever its name; an adapter is returned as it is."""
    adapter = get_logger(logger=logging.getLogger(f'{PKG}.given'))
    assert adapter.name == f'{PKG}.given'
    assert get_logger(logger=adapter) is adapter


def test_deprecated_alias():
    """`_root_name` still names the package, with a warning."""
    with pytest.warns(DeprecationWarning, match='pkg_name'):
        adapter = get_logger('a', _root_name=PKG)
    assert adapter.name == f'{PKG}.a'


def test_unknown_attribute_of_the_module():
    """Loading the spec functions late changes no other attribute error."""
    with pytest.raises(AttributeError, match=r"'tractor\.log' has no attribute 'nope'"):
        _ = tlog.nope
