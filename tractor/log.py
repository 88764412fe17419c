"""
Log levels, logger names, and the adapter through which the project logs.

There is one logger per (sub-)package, named after it.  A call below the enabled
level costs two lookups and nothing is formatted.  The record's actor and task
are asked for only when a record is made: the runtime installs a provider with
`set_context_provider()`, so this module imports nothing of the project.  The
console handler and its colours live in `_log_console`, loaded when a level is
given to `get_console_log()`.  Every module of the project uses this one.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from tractor._log_console import apply_logspec as apply_logspec
    from tractor._log_console import parse_logspec as parse_logspec

LOG_FORMAT: Final = (
    '{log_color}{asctime}{reset}'
    ' ({actor_name}[{actor_uid}], {process}, {task})'
    ' [{bold_log_color}{levelname}{reset}]'
    ' {name} {filename}:{lineno}'
    ' {log_color}{message}{reset}'
)
DATE_FORMAT: Final = '%b %d %H:%M:%S'

CUSTOM_LEVELS: dict[str, int] = {}
STD_PALETTE: dict[str, str] = {
    'DEBUG': 'white',
    'INFO': 'green',
    'WARNING': 'yellow',
    'ERROR': 'red',
    'CRITICAL': 'red',
}
BOLD_PALETTE: dict[str, dict[str, str]] = {
    'bold': {name: f'bold_{color}' for name, color in STD_PALETTE.items()}
}

_default_loglevel: str = 'ERROR'
PKG_NAME: Final = 'tractor'

# What a record says of its origin; `_log_console` fills them in where absent.
CONTEXT_KEYS: Final = ('actor_name', 'actor_uid', 'task')

# Below this module's own frames: the level method and `_emit()`.
_OWN_FRAMES: Final = 2


_context_provider: Callable[[], Mapping[str, str]] = dict


def set_context_provider(provider: Callable[[], Mapping[str, str]]) -> None:
    """
    Install what tells the actor of a log record.

    Args:
        provider: Returns any of `actor_name`, `actor_uid` (the first characters of
            the uuid) and `task`; a key it leaves out renders as
            `no <key> context`, a missing `task` as the current trio or asyncio
            task.  Called once per record that is made; must not raise.
    """
    global _context_provider
    _context_provider = provider


def record_context() -> dict[str, str]:
    """Return the `CONTEXT_KEYS` of the calling task, each as text."""
    context = dict(_context_provider())
    if 'task' not in context and (task := _current_task()) is not None:
        name = getattr(task, 'name', None) or task.get_name()
        context['task'] = f'{name}[{str(id(task))[-6:]}]'
    for key in CONTEXT_KEYS:
        if key not in context:
            context[key] = f'no {key} context'
    return context


def _current_task() -> Any:
    """Return the running trio or asyncio task, else `None`; imports neither."""
    for library, where in (('trio', 'lowlevel'), ('asyncio', 'tasks')):
        module = getattr(sys.modules.get(library), where, None)
        if module is None:
            continue
        try:
            task = module.current_task()
        except (RuntimeError, AttributeError):
            continue
        if task is not None:
            return task
    return None


class Emit(Protocol):
    """A level method, such as `log.runtime('peer %s gone', uid)`."""

    def __call__(self, msg: object, *args: object, **kwargs: Any) -> None: ...


if TYPE_CHECKING:
    _AdapterBase = logging.LoggerAdapter[logging.Logger]
else:
    _AdapterBase = logging.LoggerAdapter


class StackLevelAdapter(_AdapterBase):
    """
    A logger with the custom levels as methods.

    Records name the caller's file and line, and carry `CONTEXT_KEYS`.
    """

    transport: Emit
    runtime: Emit
    devx: Emit
    io: Emit
    cancel: Emit
    pdb: Emit

    @property
    def level(self) -> str:
        """The effective level's name, in lower case."""
        return logging.getLevelName(self.logger.getEffectiveLevel()).lower()

    def at_least_level(self, level: str | int) -> bool:
        """Return whether a record of `level` would be made."""
        return self.logger.isEnabledFor(level_number(level))

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Make a record of the level with this number, if enabled."""
        if self.logger.isEnabledFor(level):
            self._emit(level, msg, args, kwargs)

    def _emit(
        self,
        level: int,
        msg: object,
        args: tuple[object, ...],
        kwargs: dict[str, Any],
    ) -> None:
        kwargs['stacklevel'] = kwargs.get('stacklevel', 1) + _OWN_FRAMES
        kwargs['extra'] = record_context() | (kwargs.get('extra') or {})
        self.logger.log(level, msg, *args, **kwargs)


def add_log_level(name: str, value: int, color: str = 'white') -> None:
    """
    Register a level with `logging`, the palettes and `StackLevelAdapter`.

    Idempotent; a second call with another value or color replaces these.

    Args:
        name: Level name; its lower-case form becomes the adapter's method.
        value: Level number.
        color: A `colorlog` color.
    Raises:
        ValueError: The method would hide another attribute of the adapter.
    """
    name, method = name.upper(), name.lower()
    adapter = StackLevelAdapter(logging.root)
    if name not in CUSTOM_LEVELS and hasattr(adapter, method):
        raise ValueError(
            f'log level {name!r} would hide StackLevelAdapter.{method};'
            ' choose another name'
        )
    CUSTOM_LEVELS[name] = value
    STD_PALETTE[name] = color
    BOLD_PALETTE['bold'][name] = f'bold_{color}'
    logging.addLevelName(value, name)

    def emit(
        self: StackLevelAdapter, msg: object, *args: object, **kwargs: Any
    ) -> None:
        level = CUSTOM_LEVELS[name]
        if self.logger.isEnabledFor(level):
            self._emit(level, msg, args, kwargs)

    emit.__name__ = method
    emit.__qualname__ = f'{StackLevelAdapter.__name__}.{method}'
    emit.__doc__ = f'Make a record of level {name}, if enabled.'
    setattr(StackLevelAdapter, method, emit)


for _level in (
    ('TRANSPORT', 5, 'cyan'),
    ('RUNTIME', 15, 'white'),
    ('DEVX', 17, 'purple'),
    ('IO', 21, 'cyan'),
    ('CANCEL', 22, 'yellow'),
    ('PDB', 500, 'blue'),
):
    add_log_level(*_level)


def at_least_level(log: logging.Logger | StackLevelAdapter, level: str | int) -> bool:
    """Return whether `log` would make a record of `level`."""
    return log.isEnabledFor(level_number(level))


def level_number(level: str | int) -> int:
    """Return a level's number; the name's case does not matter."""
    if isinstance(level, int):
        return level
    # Asked for each message, while the other mapping is a copy each time.
    number = CUSTOM_LEVELS.get(level.upper())
    if number is not None:
        return number
    numbers = logging.getLevelNamesMapping()
    number = numbers.get(level.upper())
    if number is None:
        known = ', '.join(sorted(numbers, key=numbers.__getitem__)).lower()
        raise ValueError(f'unknown log level {level!r}; known levels: {known}')
    return number


def get_loglevel() -> str:
    """Return the name of the level used where none was asked for."""
    return _default_loglevel


def get_logger(
    name: str | None = None,
    pkg_name: str = PKG_NAME,
    logger: logging.Logger | StackLevelAdapter | None = None,
    subsys_spec: str | None = None,
    mk_sublog: bool = True,
    _strict_debug: bool = False,
    *,
    _root_name: str | None = None,
) -> StackLevelAdapter:
    """
    Return the adapter of a package's logger; no actor needs to run.

    Args:
        name: `None` means the caller's package.  A given name is taken as it is
            below `pkg_name`, a repeated leading `pkg_name.` removed; its last part
            is dropped only if that is the calling module itself (the
            `get_logger(__name__)` idiom).
        pkg_name: The top package, whose logger is the root of all names.
        logger: Wrap this one; the names are not looked at.
        subsys_spec: A dotted path below `pkg_name`, taken without any rule.
        mk_sublog: `False` returns the logger of `pkg_name`.
        _strict_debug: A repeated `pkg_name.` is an error instead of a warning.
        _root_name: Deprecated alias of `pkg_name`.
    Raises:
        ValueError: `_strict_debug` and the name repeats the package.
    """
    if _root_name is not None:
        warnings.warn(
            '`_root_name` is deprecated, use `pkg_name`',
            DeprecationWarning,
            stacklevel=2,
        )
        pkg_name = _root_name
    if isinstance(logger, StackLevelAdapter):
        return logger
    if logger is not None:
        return StackLevelAdapter(logger)
    if not mk_sublog:
        path = ''
    elif subsys_spec is not None:
        path = subsys_spec
    elif name is None:
        path = _relative(_package_of(_caller()), pkg_name) or ''
    else:
        path = _explicit_path(name, pkg_name, _strict_debug)
    full_name = f'{pkg_name}.{path}' if path else pkg_name
    return StackLevelAdapter(logging.getLogger(full_name))


def _relative(name: str, pkg_name: str) -> str | None:
    """Return `name` without its leading `pkg_name`, `None` if it has none."""
    if name == pkg_name:
        return ''
    head = f'{pkg_name}.'
    return name[len(head) :] if name.startswith(head) else None


def _explicit_path(name: str, pkg_name: str, strict: bool) -> str:
    """Return the part below `pkg_name` that an explicit name stands for."""
    caller = _caller()
    module: str = caller.f_globals.get('__name__') or ''
    below = _relative(name, pkg_name)
    path = name if below is None else below
    if below and name != module:
        text = f'logger name {name!r} repeats its package; pass {below!r}'
        if strict:
            raise ValueError(text)
        StackLevelAdapter(logging.getLogger(pkg_name)).warning(text)
    parent, _, leaf = path.rpartition('.')
    is_package = '__path__' in caller.f_globals
    if leaf and not is_package and leaf == module.rpartition('.')[2]:
        return parent
    return path


def _caller() -> FrameType:
    """Return the nearest frame outside this module."""
    frame = sys._getframe(1)
    while frame.f_globals is globals() and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _package_of(frame: FrameType) -> str:
    """Return the package of the module a frame runs in, `''` if it has none."""
    scope = frame.f_globals
    name: str = scope.get('__name__') or ''
    module: object = sys.modules.get(name)
    if module is None:
        if package := scope.get('__package__'):
            return str(package)
        module = _module_at(frame.f_code.co_filename)
        if module is None:
            return name.rpartition('.')[0]
    package = getattr(module, '__package__', None)
    if package is None:  # executed as a script
        package = name.rpartition('.')[0]
    return str(package)


def _module_at(file: str) -> object:
    """
    Return the loaded module of a source file, or the package whose directory
    holds that file; `None` if neither is loaded.
    """
    folder = os.path.dirname(file)
    package: object = None
    for module in tuple(sys.modules.values()):
        if getattr(module, '__file__', None) == file:
            return module
        if package is None and folder in (getattr(module, '__path__', None) or ()):
            package = module
    return package


def get_console_log(
    level: str | int | None = None,
    logger: logging.Logger | StackLevelAdapter | None = None,
    **get_logger_kw: Any,
) -> StackLevelAdapter:
    """
    Return a logger's adapter and, with a level, show its records on stderr.

    Args:
        level: Level name in any case, or number; `None` or `''` changes nothing.
        logger: Use this one instead of looking one up.
        **get_logger_kw: See `get_logger()`.
    Raises:
        ValueError: No such level.
    """
    log = get_logger(logger=logger, **get_logger_kw)
    if level is None or level == '':
        return log
    log.logger.setLevel(level_number(level))
    shown = (getattr(h, 'stream', None) is sys.stderr for h in log.logger.handlers)
    if not any(shown):
        # Here, since it brings colorlog, which a silent actor does not need.
        from tractor._log_console import ConsoleHandler

        log.logger.addHandler(ConsoleHandler())
    return log


def __getattr__(name: str) -> Any:
    # Only a command line asks for these; they live beside the console handler.
    if name not in ('parse_logspec', 'apply_logspec'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from tractor import _log_console

    return getattr(_log_console, name)
