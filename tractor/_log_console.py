"""
What is shown on the console: the stderr handler, and the log specs of command lines.

Loaded by `log` when a level is given, since it brings colorlog.  A record reaches
a stream once, however many loggers on its way have a handler, be it one of ours or
one that the application has installed for everything it logs.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import TextIO

import colorlog

from tractor.log import (
    BOLD_PALETTE,
    DATE_FORMAT,
    LOG_FORMAT,
    PKG_NAME,
    STD_PALETTE,
    StackLevelAdapter,
    get_console_log,
    level_number,
    record_context,
)


class ConsoleFormatter(colorlog.ColoredFormatter):
    """Render `LOG_FORMAT`, coloured only where `stream` is a terminal."""

    def __init__(self) -> None:
        super().__init__(
            LOG_FORMAT,
            datefmt=DATE_FORMAT,
            style='{',
            log_colors=STD_PALETTE,
            secondary_log_colors=BOLD_PALETTE,
        )

    def format(self, record: logging.LogRecord) -> str:
        """Render a record, also one made by a plain `logging.Logger`."""
        if not hasattr(record, 'actor_name'):
            vars(record).update(record_context())
        self.stream = sys.stderr
        return super().format(record)


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """
    Write to whatever `sys.stderr` is now.

    A test runner swaps and closes that stream; a handler that keeps the old one
    would fail on every later record.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self._fixed: TextIO | None = None
        self.setFormatter(ConsoleFormatter())

    @property
    def stream(self) -> TextIO:
        """The current stream."""
        return self._fixed or sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        self._fixed = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless another handler on its way writes it there."""
        stream = self.stream
        if getattr(record, 'console_stream', None) == id(stream):
            return
        if any(_shows(handler, record, stream) for handler in _passed_by(record)):
            return
        record.console_stream = id(stream)
        super().emit(record)


def _passed_by(record: logging.LogRecord) -> Iterator[logging.Handler]:
    """Yield the handlers that a record gets to, whenever they were installed."""
    # Not by `getLogger()`: its lock may be held by one who waits for this handler's.
    known = logging.Logger.manager.loggerDict.get(record.name)
    logger: logging.Logger | None = logging.root
    if isinstance(known, logging.Logger):
        logger = known
    while logger is not None:
        yield from logger.handlers
        logger = logger.parent if logger.propagate else None


def _shows(handler: logging.Handler, record: logging.LogRecord, stream: TextIO) -> bool:
    """Return whether a handler of the application writes a record to a stream."""
    return (
        not isinstance(handler, ConsoleHandler)
        and getattr(handler, 'stream', None) is stream
        and record.levelno >= handler.level
        and bool(handler.filter(record))
    )


def parse_logspec(
    spec: bool | str, default_level: str | None = None, pkg_name: str = PKG_NAME
) -> dict[str | None, str]:
    """
    Return the levels a command line asks for, by sub-logger.

    Args:
        spec: `False`: none.  `True`: the package at `default_level`.  `'info'`: the
            package at that level.  `'a.b:runtime,c:cancel'`: sub-packages.
        default_level: The level that `True` stands for; `None` means `'cancel'`.
        pkg_name: The package the spec is for; its sub-loggers are named without it.
    Returns:
        Level names by dotted path below the package; `None` is the package itself.
    Raises:
        ValueError: Anything else, including an unknown level.
    """
    if spec is False:
        return {}
    if spec is True:
        return {None: default_level or 'cancel'}
    if not isinstance(spec, str):
        raise ValueError(f'log spec must be a bool or text, not {spec!r}')
    levels: dict[str | None, str] = {}
    for part in spec.split(','):
        path, colon, level = (piece.strip() for piece in part.rpartition(':'))
        level_number(level)
        key = path if colon else None
        if key in levels or key == '':
            raise ValueError(f'log spec {spec!r}: cannot read {part.strip()!r}')
        if key is not None and pkg_name in key.split('.'):
            raise ValueError(
                f'log spec {spec!r}: name sub-loggers without the package {pkg_name!r}'
            )
        levels[key] = level
    if None in levels and len(levels) > 1:
        raise ValueError(
            f'log spec {spec!r} mixes a level for all with levels of sub-loggers'
        )
    return levels


def apply_logspec(
    spec: bool | str, default_level: str | None = None, pkg_name: str = PKG_NAME
) -> tuple[str | None, dict[str, StackLevelAdapter]]:
    """
    Show on stderr what `parse_logspec()` reads out of `spec`.

    A sub-logger so enabled no longer hands its records to the package's logger.

    Returns:
        The package's own level, if the spec gives one, and the adapters by full
        logger name.
    """
    levels = parse_logspec(spec, default_level, pkg_name)
    logs: dict[str, StackLevelAdapter] = {}
    for path, level in levels.items():
        log = get_console_log(level, pkg_name=pkg_name, subsys_spec=path or '')
        if path is not None:
            log.logger.propagate = False
        logs[log.name] = log
    return levels.get(None), logs
