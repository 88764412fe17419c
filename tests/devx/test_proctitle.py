"""The title by which an actor is seen in process listings."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import SimpleNamespace

from tractor._testing import repodir
from tractor.devx._proctitle import _def_prefix, set_actor_proctitle

SCRIPT = """
    import sys
    from types import SimpleNamespace
    from tractor.devx._proctitle import set_actor_proctitle

    actor = SimpleNamespace(aid=SimpleNamespace(reprol=lambda: 'worker@42'))
    print(repr(set_actor_proctitle(actor, *sys.argv[1:])))
    print(open('/proc/self/cmdline').read().rstrip('\\0'))
    print(open('/proc/self/comm').read().strip())
"""


def run_script(*args):
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(SCRIPT), *args],
        cwd=repodir(),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.splitlines()


def test_title_names_the_actor():
    """The title is returned and becomes the process' command line."""
    returned, cmdline, _ = run_script()
    assert returned == repr(cmdline) == "'_subactor[worker@42]'"


def test_kernel_name_starts_with_the_prefix():
    """The kernel keeps the first 15 bytes, enough to recognize an actor."""
    assert run_script()[2] == '_subactor[worker@42]'[:15]


def test_prefix_can_be_chosen():
    """Another prefix replaces the default one."""
    assert run_script('helper')[1] == 'helper[worker@42]'


def test_without_the_library_nothing_happens(monkeypatch):
    """`setproctitle` is optional: without it the result is `None`."""
    monkeypatch.setitem(sys.modules, 'setproctitle', None)
    actor = SimpleNamespace(aid=SimpleNamespace(reprol=lambda: 'worker@42'))
    assert set_actor_proctitle(actor) is None
    assert _def_prefix == '_subactor'
