"""
The command line of a session with actors.

Owns the plugin's options.  Those with names of our own are there from the start.  The
short and common ones a project may well have defined for itself, and in a suite that
has nothing to do with actors it must not even notice: they are added after all other
plugins and the first conftests were loaded, and only where the name is still free.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final

import pytest

from tractor._testing import _backends

DEFAULT_TRANSPORTS: Final = ('tcp',)


class _ProjectLevel(argparse.Action):
    """Store a level, and that it came through our option and not a project's own."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Keep the level under the option's own name and under ours."""
        namespace.loglevel = namespace.tractor_project_loglevel = values


def add_options(parser: pytest.Parser) -> None:
    """Add the options whose names are our own."""
    group = parser.getgroup('tractor', 'actor runtime')
    group.addoption(
        '--spawn-backend',
        dest='spawn_backend',
        metavar='KEY[,KEY...]',
        action=_backends.AddKeys,
        default=_backends.DEFAULT,
        help='how actors are started (default: %(default)s); with several keys, or '
        "'all', each test that uses a backend runs under each",
    )
    group.addoption(
        '--subint-gil',
        dest='subint_gil',
        choices=_backends.GIL_MODES,
        default=_backends.GIL_MODES[0],
        help='whose GIL actors in sub-interpreters have where a test names none '
        '(default: %(default)s); without effect on other backends',
    )
    group.addoption(
        '--tpdb',
        dest='tractor_debug_mode',
        action='store_true',
        default=False,
        help='value of the debug_mode fixture',
    )
    group.addoption(
        '--enable-stackscope',
        dest='enable_stackscope',
        action='store_true',
        default=False,
        help='dump task trees on SIGUSR1, here and in all actors',
    )
    group.addoption(
        '--tpt-proto',
        dest='tpt_protos',
        metavar='KEY',
        nargs='+',
        default=list(DEFAULT_TRANSPORTS),
        help='IPC transport of the session; exactly one (default: tcp)',
    )
    group.addoption(
        '--tractor-loglevel',
        dest='tractor_loglevel',
        metavar='SPEC',
        default=None,
        help='console level of the runtime, or levels per sub-package',
    )


def add_common_options(parser: pytest.Parser) -> None:
    """Add the options with names that others may have, where they are free."""
    group = parser.getgroup('tractor', 'actor runtime')
    common: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (
            ('--debug-mode',),
            {
                'dest': 'tractor_debug_mode',
                'action': 'store_true',
                'default': False,
                'help': 'the same as --tpdb',
            },
        ),
        (
            ('--tl',),
            {
                'dest': 'tractor_loglevel',
                'metavar': 'SPEC',
                'default': None,
                'help': 'the same as --tractor-loglevel',
            },
        ),
        (
            ('--ll', '--loglevel'),
            {
                'dest': 'loglevel',
                'metavar': 'LEVEL',
                'action': _ProjectLevel,
                'default': None,
                'help': 'console level of the tested project, and of the runtime '
                'without --tractor-loglevel',
            },
        ),
    ]
    for names, details in common:
        try:
            group.addoption(*names, **details)
        except (ValueError, argparse.ArgumentError):
            continue  # the project's own option keeps its name and its meaning


def project_level(option: argparse.Namespace) -> str | None:
    """Return the level asked for the project by our option, not by one of its own."""
    level: str | None = getattr(option, 'tractor_project_loglevel', None)
    return level


def runtime_level(option: argparse.Namespace) -> str | None:
    """Return the level asked for the runtime, or for the project, or `None`."""
    level: str | None = option.tractor_loglevel
    return level or project_level(option)


def any_given(option: argparse.Namespace) -> bool:
    """Tell whether a backend was named, or an option has not its default."""
    return bool(
        _backends.given_keys(option)
        or option.subint_gil != _backends.GIL_MODES[0]
        or option.tractor_debug_mode
        or option.enable_stackscope
        or tuple(option.tpt_protos) != DEFAULT_TRANSPORTS
        or runtime_level(option)
    )
