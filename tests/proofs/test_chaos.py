"""
Random actors of a busy tree of 40 are killed; nothing of the tree may be left.

Each round runs `chaos_tree.py` as a program in a session of its own, kills some of its
processes with `SIGKILL`, and holds it to two promises: within 2 s no process and no
socket file of it is left, and whoever survived saw the right error.  A round is one
test; its number seeds the choice, so that `-k 'round_17'` repeats it.
"""

from __future__ import annotations

import json
import os
import random
import re
import selectors
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tractor._testing import _procfs, repodir

PROGRAM: Final = Path(__file__).with_name('chaos_tree.py')
GONE_WITHIN: Final = 2.0  # seconds from the first kill
BUSY_WITHIN: Final = 60.0  # seconds for all 40 actors to come up
LOOK_AGAIN: Final = 0.02  # seconds; a foreign session's end sends no event
MAX_DELAY: Final = 0.2  # seconds of load before the kill

pytestmark = [
    pytest.mark.long_proof,
    pytest.mark.skipon_spawn_backend('subint', reason='it kills processes by pid'),
    pytest.mark.skipif(
        sys.platform != 'linux', reason='processes are found through /proc'
    ),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of each round."""
    if 'number' in metafunc.fixturenames:
        rounds = metafunc.config.getoption('--proof-rounds') or 1
        metafunc.parametrize(
            'number', range(rounds), ids=[f'round_{n}' for n in range(rounds)]
        )


class Tree:
    """
    The program while it runs.

    Attributes:
        actors: `(uid, pid)` of every actor, by name.
    """

    def __init__(self, proc: subprocess.Popen[str], base: Path) -> None:
        self.proc, self.base = proc, base
        self.actors: dict[str, tuple[tuple[str, str], int]] = {}
        self.killed: list[str] = []

    def wait_until_busy(self) -> None:
        """Return when every actor calls and streams."""
        facts = self._hear(BUSY_WITHIN)
        assert 'busy' in facts, f'the tree did not come up: {facts}'
        self.actors = {
            name: ((uid[0], uid[1]), pid) for name, (uid, pid) in facts['busy'].items()
        }
        assert len(self.actors) == 40

    def kill(self, names: list[str]) -> None:
        """
        Kill several actors, in that order and as fast as possible.

        One that its parent ended after the death of an earlier one is a survivor.
        """
        for name in names:
            with suppress(ProcessLookupError):
                os.kill(self.actors[name][1], signal.SIGKILL)
                self.killed.append(name)

    def leftovers(self) -> list[str]:
        """Return what is left of the tree, in words."""
        alive = [
            f'process {pid} ({_procfs.read_text(pid, "cmdline")!r})'
            for pid in _procfs.all_pids()
            if self._is_ours(pid)
        ]
        sockets = [
            f'socket {path}' for path in self.base.rglob('*') if _is_socket(path)
        ]
        return alive + sockets

    def _is_ours(self, pid: int) -> bool:
        # A zombie is gone but for its parent's noticing.
        if pid == self.proc.pid:
            return self.proc.poll() is None
        fields = _procfs.stat_fields(pid)
        return len(fields) > 3 and fields[0] != 'Z' and fields[3] == str(self.proc.pid)

    def error(self) -> Any:
        """Return the error that the root reported before it ended."""
        return self._hear(GONE_WITHIN)['error']

    def reports(self) -> dict[str, dict[str, Any]]:
        """Return what each survivor saw, by its name."""
        return {
            path.stem: json.loads(path.read_text())
            for path in (self.base / 'reports').glob('*.json')
        }

    def terminated(self) -> set[str]:
        """Return who was sent `SIGTERM`, by name: the parents log that."""
        log = (self.base / 'log').read_text(errors='replace')
        return set(re.findall(r"actor '(\w+)' did not confirm within", log))

    def uid(self, name: str) -> list[str]:
        """Return an actor's uid as JSON has it."""
        return list(self.actors[name][0])

    def remove(self) -> None:
        """Kill what is left, so that a failed round harms no other."""
        for pid in _procfs.all_pids():
            if self._is_ours(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.proc.wait()
        assert self.proc.stdout is not None
        self.proc.stdout.close()

    def _hear(self, seconds: float) -> dict[str, Any]:
        """Return the next line of the program."""
        assert self.proc.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.proc.stdout, selectors.EVENT_READ)
            assert selector.select(seconds), f'the tree said nothing for {seconds:g} s'
        line = self.proc.stdout.readline()
        assert line, 'the root ended without a word'
        facts: dict[str, Any] = json.loads(line)
        return facts


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


@contextmanager
def open_tree(backend: str, transport: str) -> Iterator[Tree]:
    """Run a tree whose sockets, cookie, temporary files and log are its own."""
    with tempfile.TemporaryDirectory(prefix='chaos-') as folder:
        base = Path(folder)
        for name in ('run', 'tmp', 'reports'):
            (base / name).mkdir(mode=0o700)
        with (base / 'log').open('w') as log:
            proc = subprocess.Popen(
                [sys.executable, str(PROGRAM), backend, transport, f'{base}/reports'],
                cwd=base,
                env=_clean_environment()
                | {
                    'PYTHONPATH': str(repodir()),
                    'XDG_RUNTIME_DIR': f'{base}/run',
                    'TMPDIR': f'{base}/tmp',
                    'TRACTOR_COOKIE_FILE': f'{base}/cookie',
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        tree = Tree(proc, base)
        try:
            yield tree
        except BaseException:
            print(f'killed: {tree.killed}')
            print((base / 'log').read_text(errors='replace'))
            raise
        finally:
            tree.remove()


def _clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith('TRACTOR_')}


# -- who is killed, and what that must lead to -----------------------------------------


def leaves_of(middle: str) -> list[str]:
    """Return the names of the leaves below a middle actor."""
    index = middle.removeprefix('middle_')
    return [f'leaf_{index}_{leaf}' for leaf in range(12)]


def middle_of(leaf: str) -> str:
    """Return the name of the parent of a leaf."""
    return f'middle_{leaf.split("_")[1]}'


def choose_victims(choice: random.Random, kind: str) -> list[str]:
    """Return the names of those to kill in this round."""
    first, second = choice.sample(['middle_0', 'middle_1', 'middle_2'], 2)
    match kind:
        case 'leaf':
            return choice.sample(leaves_of(first), 1)
        case 'middle':
            return [first]
        case 'root':
            return ['root']
        case 'siblings':
            return choice.sample(leaves_of(first), 2)
        case 'cousins':
            return [choice.choice(leaves_of(first)), choice.choice(leaves_of(second))]
        case 'middles':
            return [first, second]
        case 'line':
            line = [first, choice.choice(leaves_of(first))]
            choice.shuffle(line)
            return line
        case 'all-leaves':
            return leaves_of(first)
        case 'top':
            top = ['root', first]
            choice.shuffle(top)
            return top
    raise AssertionError(kind)


KINDS: Final = (
    *('leaf', 'middle', 'root', 'line', 'siblings'),
    *('middles', 'cousins', 'all-leaves', 'top'),
)


def flat(error: Any) -> list[dict[str, Any]]:
    """Return the leaves of a possible group of errors."""
    if error is None:
        return []
    members = error.get('members')
    if members is None:
        return [error]
    return [leaf for member in members for leaf in flat(member)]


def is_death_of(tree: Tree, name: str, error: dict[str, Any]) -> bool:
    """Whether the error says that this child was killed."""
    return (
        error['type'] == 'ActorDied'
        and error['uid'] == tree.uid(name)
        and error['signal'] == signal.SIGKILL
    )


def is_relayed_death(tree: Tree, leaves: list[str], error: dict[str, Any]) -> bool:
    """Whether the error is a middle actor's report that leaves of its own died."""
    if error['type'] != 'RemoteActorError':
        return False
    [middle] = {middle_of(leaf) for leaf in leaves}
    # More than one death is a group to the actor that relays them.
    kinds = {'ActorDied'} | ({'ExceptionGroup'} if len(leaves) > 1 else set())
    return (
        error['src_uid'] == tree.uid(middle)
        and error['src_type'] in kinds
        and any(f"'{leaf}'" in error['text'] for leaf in leaves)
        and 'SIGKILL' in error['text']
    )


def check_root(tree: Tree, error: Any) -> None:
    """The root got the death of a direct child, or its child's report of one."""
    middles = [name for name in tree.killed if name.startswith('middle')]
    leaves = [name for name in tree.killed if name.startswith('leaf')]
    errors = flat(error)
    assert errors, 'the root ended as if nothing had happened'
    for single in errors:
        assert any(is_death_of(tree, name, single) for name in middles) or any(
            is_relayed_death(
                tree, [leaf for leaf in leaves if middle_of(leaf) == middle], single
            )
            for middle in {middle_of(leaf) for leaf in leaves}
        ), f'no error that the kill of {tree.killed} explains: {single}'


def check_survivors(tree: Tree) -> None:
    """
    Everybody who was not killed reported, and only what the deaths explain.

    On a busy machine a parent may lose patience with its child, as the log then says:
    that one is terminated, and may end without a report.
    """
    reports = tree.reports()
    terminated = tree.terminated()
    survivors = set(tree.actors) - {'root', *tree.killed}
    silent = survivors - set(reports)
    assert silent <= terminated, f'no report of {sorted(silent - terminated)}'
    if terminated:
        print(f'terminated, since they did not confirm in time: {sorted(terminated)}')
    for name in survivors - silent:
        report = reports[name]
        assert report['uid'] == tree.uid(name)
        check_survivor(tree, name, report, {*tree.killed, *terminated})


def check_survivor(
    tree: Tree, name: str, report: dict[str, Any], ended: set[str]
) -> None:
    """
    One survivor was told what had happened, and by the right one.

    Its own dead child is an error of its own; a dead parent is a lost connection;
    anything else reaches it as a cancellation by its parent.  What came first counts
    only where it is known: of several victims, somebody may have acted on the first
    before another one was dead.
    """
    parent = middle_of(name) if name.startswith('leaf') else 'root'
    dead = own_dead(tree, name)
    own = leaves_of(name) if name.startswith('middle') else []
    gone = list(ended.intersection([parent, *own]))
    errors = flat(report.get('ended_by'))
    for single in errors:
        assert (
            (single['type'] == 'Cancelled' and report['canceller'] == tree.uid(parent))
            or any(is_death_of(tree, leaf, single) for leaf in dead)
            or is_loss_of(tree, gone, single)
            or is_end_of_callee(report, single)
        ), f'{name}, cancelled by {report["canceller"]}: {single}'
    calls = flat(report.get('calls_ended_by'))
    for single in calls:
        assert is_end_of_callee(report, single), f'{name}: {single}'
    # A leaf is done when its stream was closed and the leaf that it calls is gone; its
    # parent may do the first and be killed then, unless it was the first victim.
    assert errors or (calls and parent != tree.killed[0]), f'{name} saw nothing'
    if dead == tree.killed:
        deaths = [is_death_of(tree, leaf, single) for leaf in dead for single in errors]
        assert any(deaths), f'{name}: {errors}'
    if parent == tree.killed[0]:
        assert any(is_loss_of(tree, [parent], single) for single in errors), (
            f'{name}: {errors}'
        )


def own_dead(tree: Tree, name: str) -> list[str]:
    """Return the killed among an actor's own children."""
    if not name.startswith('middle'):
        return []
    return [leaf for leaf in tree.killed if leaf in leaves_of(name)]


def is_loss_of(tree: Tree, names: list[str], error: dict[str, Any]) -> bool:
    """Whether the error says that the connection to one of these is gone."""
    return error['type'] == 'TransportClosed' and error['uid'] in [
        tree.uid(name) for name in names
    ]


def is_end_of_callee(report: dict[str, Any], error: dict[str, Any]) -> bool:
    """Whether the error says that the leaf which this one called is gone or going."""
    where = {'TransportClosed': 'uid', 'ContextCancelled': 'src_uid'}.get(error['type'])
    return where is not None and error[where] == report.get('calls_to')


def wait_until_gone(tree: Tree, since: float) -> float:
    """Return the seconds from the kill to the end of the last of the tree."""
    while left := tree.leftovers():
        took = time.monotonic() - since
        assert took < GONE_WITHIN, f'{took:.2f} s after the kill: {"; ".join(left)}'
        time.sleep(LOOK_AGAIN)
    return time.monotonic() - since


def test_nothing_outlives_a_kill(number: int, start_method: str) -> None:
    """Within 2 s the tree is gone, and its survivors saw the right error."""
    choice = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    transport = ('tcp', 'uds')[number // 2 % 2]
    with open_tree(start_method, transport) as tree:
        tree.wait_until_busy()
        victims = choose_victims(choice, kind)
        print(f'seed {number}: {kind} over {transport}, killing {victims}')
        # Anywhere in the load, not just behind its first messages.
        time.sleep(choice.uniform(0, MAX_DELAY))
        since = time.monotonic()
        tree.kill(victims)
        took = wait_until_gone(tree, since)
        print(f'gone after {took:.2f} s')
        if 'root' not in victims:
            check_root(tree, tree.error())
        check_survivors(tree)
