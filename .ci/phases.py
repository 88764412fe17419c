"""
Applies, checks, exports and lands the phases of the patch queue.

A phase is a table of `patches/queue.toml` and a folder of `git format-patch` files.
Its base is a commit, or the phase below it.  Everything is done with git's own commands
in worktrees that are removed again, also after an interrupt.  `noxfile.py` calls this
file and `ai/skills/open-wkt/open_wkt.py` uses it; it needs Python 3.12 and git.

Usage:
    phases.py verify PHASE [--quick] [--python X.Y ...]   its own checks and tests
    phases.py queue                 every patch applies, passes and is what has landed
    phases.py export PHASE [--cover FILE]                 branch -> patches/PHASE/
    phases.py land PHASE [--quick]  verify, then merge with the cover letter as message
"""

from __future__ import annotations

import argparse
import ast
import email
import email.policy
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
QUICK: Final = (
    'tests/spawn',
    'tests/_testing',
    'tests/test_layers.py',
    'tests/trees/test_cancellation.py',
    'tests/trees/test_context_outcomes.py',
)
# Who applies patches in a worktree that is thrown away.
COMMITTER: Final = {
    'GIT_COMMITTER_NAME': 'patch queue',
    'GIT_COMMITTER_EMAIL': 'queue@localhost',
}
IMPORT_ALL: Final = """
import importlib, pkgutil, tractor
for found in pkgutil.walk_packages(tractor.__path__, 'tractor.'):
    if not found.name.endswith('.__main__'):
        importlib.import_module(found.name)
"""
CLOSING: Final = re.compile(r'^(?:=+ )?(\d+ [a-z]+,? ?.*) in [\d.]+s')
SKIPPED: Final = re.compile(r'^SKIPPED \[(\d+)\] [^:]+(?::\d+)?: (.*)$')


class Trouble(Exception):
    """What is wrong and what to do about it, on one line."""


def git(*arguments: str, cwd: Path = ROOT, **env: str) -> str:
    """Run git and return what it printed; `Trouble` if it failed."""
    done = subprocess.run(
        ['git', *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Trouble(
            f'git {" ".join(arguments)}: {(done.stderr or done.stdout).strip()}'
        )
    return done.stdout.strip()


def succeeds(*arguments: str, cwd: Path = ROOT) -> bool:
    """Tell whether a git command exits with 0."""
    return not subprocess.run(
        ['git', *arguments], cwd=cwd, capture_output=True
    ).returncode


class Phase:
    """One table of `queue.toml`."""

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        self.name = name
        self.title: str = table['title']
        self.branch: str = table['branch']
        self.base: str = table['base']
        self.pythons: list[str] = table['pythons']
        self.landed: str | None = table.get('landed')
        self.is_move: bool = table.get('move', False)
        self.folder = ROOT / 'patches' / name
        self.cover = self.folder / '0000-cover-letter.patch'

    def patches(self) -> list[Path]:
        """Return the files of `series`, in order; `Trouble` if it lists others."""
        series = self.folder / 'series'
        if not series.is_file():
            raise Trouble(
                f'{self.name} has no {series.relative_to(ROOT)}: export it first'
            )
        names = series.read_text(encoding='utf-8').split()
        there = sorted(p.name for p in self.folder.glob('*.patch') if p != self.cover)
        if names != there:
            odd = sorted(set(names) ^ set(there)) or names
            raise Trouble(
                f'{self.name}/series and the folder differ in {", ".join(odd)}'
            )
        return [self.folder / name for name in names]


def load() -> dict[str, Phase]:
    """Return the phases in the order of the queue."""
    text = (ROOT / 'patches/queue.toml').read_text(encoding='utf-8')
    return {name: Phase(name, table) for name, table in tomllib.loads(text).items()}


def named(phases: dict[str, Phase], name: str) -> Phase:
    """Return one phase; `Trouble` names those that exist."""
    if name not in phases:
        raise Trouble(f'there is no phase {name!r}: the queue has {", ".join(phases)}')
    return phases[name]


def stack(phases: dict[str, Phase], name: str) -> list[Phase]:
    """Return a phase and those below it, the lowest first."""
    found = [named(phases, name)]
    while found[0].base in phases:
        found.insert(0, phases[found[0].base])
    return found


def base_commit(phases: dict[str, Phase], name: str) -> str:
    """Return the commit below the whole stack; `Trouble` if the clone lacks it."""
    base = stack(phases, name)[0].base
    if not succeeds('cat-file', '-e', f'{base}^{{commit}}'):
        shallow = git('rev-parse', '--is-shallow-repository') == 'true'
        raise Trouble(
            f'the base {base[:12]} of {name} is not in this clone: '
            + ('it is shallow, run: git fetch --unshallow' if shallow else 'fetch it')
        )
    return base


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Give a worktree of its own at a commit, and remove it whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix='tractor-phase-')).resolve()
    try:
        git('worktree', 'add', '--quiet', '--detach', str(folder), commit)
        yield folder
    finally:
        succeeds('worktree', 'remove', '--force', str(folder))
        shutil.rmtree(folder, ignore_errors=True)
        git('worktree', 'prune')


def apply(phase: Phase, folder: Path, **env: str) -> Iterator[Path]:
    """Apply a phase's patches with `git am`, giving each one as it is in."""
    for patch in phase.patches():
        try:
            git('am', '--quiet', str(patch), cwd=folder, **env)
        except Trouble as error:
            succeeds('am', '--abort', cwd=folder)
            reason = ' '.join(str(error).split()[:60])
            raise Trouble(
                f'{phase.name}/{patch.name} does not apply: {reason}'
            ) from error
        yield patch


# -- verify ------------------------------------------------------------------


def interpreters(wanted: list[str]) -> str:
    """Return a `PATH` on which all these versions are; `Trouble` if one is missing."""
    done = subprocess.run(
        [sys.executable, str(ROOT / '.ci/pythons.py'), 'dirs', *wanted],
        capture_output=True,
        text=True,
    )
    path = os.pathsep.join(filter(None, [done.stdout.strip(), os.environ['PATH']]))
    for version in wanted:
        if shutil.which(f'python{version}', path=path) is None:
            raise Trouble(
                f'Python {version} is missing, run: pyenv install {version}'
                + ''.join(f' ({line})' for line in done.stderr.splitlines()[-1:])
            )
    return path


def run_nox(folder: Path, path: str, *arguments: str) -> tuple[bool, Counter[str]]:
    """Run a session of that tree's noxfile; return what pytest counted, and why."""
    noxfile = str(folder / 'noxfile.py')
    counts: Counter[str] = Counter()
    with subprocess.Popen(
        [sys.executable, '-m', 'nox', '-f', noxfile, *arguments],
        cwd=folder,
        env={**os.environ, 'PATH': path, 'PYTHONUNBUFFERED': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as nox:
        assert nox.stdout is not None
        try:
            for line in nox.stdout:
                say(line.rstrip())
                if found := SKIPPED.match(line):
                    counts[f'skipped: {found[2]}'] += int(found[1])
                elif found := CLOSING.match(line):
                    for part in found[1].split(', '):
                        counts[part.split()[1]] += int(part.split()[0])
        except BaseException:
            nox.terminate()
            raise
    return nox.returncode == 0, counts


def verify(name: str, quick: bool, pythons: list[str]) -> None:
    """Apply the stack up to a phase and run that tree's own checks and tests."""
    phases = load()
    phase = named(phases, name)
    outside = [version for version in pythons if version not in phase.pythons]
    if outside:
        raise Trouble(
            f'{name} is verified on Python {", ".join(phase.pythons)}, '
            f'not on {", ".join(outside)}'
        )
    path = interpreters(pythons or phase.pythons)
    rows: list[tuple[str, ...]] = [
        ('phase', 'interpreter', 'patches', 'passed', 'skipped', 'seconds')
    ]
    failed = []
    with worktree(base_commit(phases, name)) as folder:
        count = 0
        for below in stack(phases, name):
            for patch in apply(below, folder, **COMMITTER):
                count += 1
                say(f'{below.name}: applied {patch.name}')
        say(f'{name}: lint and types')
        if not run_nox(folder, path, '-s', 'lint', 'types')[0]:
            failed.append('lint or types')
        selection = (
            [part for part in QUICK if (folder / part).exists()] if quick else []
        )
        reasons: Counter[str] = Counter()
        for version in pythons or phase.pythons:
            say(f'{name}: tests on Python {version}')
            start = time.monotonic()
            session = f'tests-{version}'
            passed, counts = run_nox(
                folder, path, '-s', session, '--', '-rs', *selection
            )
            if not passed or not counts['passed']:
                failed.append(session)
            seconds = round(time.monotonic() - start)
            row = (count, counts.pop('passed', 0), counts.pop('skipped', 0), seconds)
            rows.append((name, version, *map(str, row)))
            reasons += counts
    say('\n'.join('  '.join(f'{cell:<12}' for cell in row).rstrip() for row in rows))
    for reason, number in reasons.most_common():
        say(f'  {number} {reason}')
    if failed:
        raise Trouble(f'{name} failed: {", ".join(failed)}')


# -- queue -------------------------------------------------------------------


def functions(folder: Path) -> Counter[tuple[str, str]]:
    """Return every function of the package, by qualified name and syntax tree."""
    found: Counter[tuple[str, str]] = Counter()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f'{prefix}{child.name}'
                if not isinstance(child, ast.ClassDef):
                    found[name, ast.dump(child)] += 1
                name += '.'
            visit(child, name)

    for path in sorted((folder / 'tractor').rglob('*.py')):
        visit(ast.parse(path.read_text(encoding='utf-8')), '')
    return found


def check_move(phase: Phase, before: Counter[Any], after: Counter[Any]) -> None:
    """A pure move keeps every function as it was, wherever it is now."""
    changed = sorted({name for name, _ in before - after})
    if changed:
        raise Trouble(
            f'{phase.name} is to move code only, but changes {", ".join(changed)}'
        )


def check_step(patch: Path, folder: Path) -> None:
    """One patch leaves a tree that passes ruff and can be imported."""
    env = {**os.environ, 'PYTHONPATH': str(folder)}
    for command in (
        ['-m', 'ruff', 'check', '-q', '--output-format=concise', '.'],
        ['-m', 'ruff', 'format', '--quiet', '--check', '.'],
        ['-c', IMPORT_ALL],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = (done.stdout + done.stderr).strip().splitlines()[-1:]
            raise Trouble(
                f'{patch.name}: {" ".join(command[1:3])} fails: {"".join(last)}'
            )


def check_landed(phase: Phase, folder: Path) -> None:
    """What was merged is what the queue holds; the queue itself is beside it."""
    assert phase.landed is not None
    if not succeeds('merge-base', '--is-ancestor', phase.landed, 'HEAD'):
        raise Trouble(f'{phase.name} landed as {phase.landed}, not in this history')
    compared = ('diff', '--stat', phase.landed, 'HEAD', '--', '.', ':!patches')
    if differing := git(*compared, cwd=folder):
        raise Trouble(f'{phase.name}: the queue is not what landed:\n{differing}')


def check_queue() -> None:
    """Check every phase: applies, each step is green, is what landed."""
    phases = load()
    for name, phase in phases.items():
        with worktree(base_commit(phases, name)) as folder:
            for below in stack(phases, name)[:-1]:
                for _ in apply(below, folder, **COMMITTER):
                    pass
            before = functions(folder)
            for patch in apply(phase, folder, **COMMITTER):
                check_step(patch, folder)
                say(f'{name}: {patch.name} applies, passes ruff and imports')
            if phase.is_move:
                check_move(phase, before, functions(folder))
                say(f'{name}: no function body changed')
            if phase.landed is not None:
                check_landed(phase, folder)
                say(f'{name}: the tree is that of {phase.landed[:12]}')
        here = succeeds('rev-parse', '--verify', '-q', phase.branch)
        if here and phase.landed is None and not is_exported(phases, phase):
            raise Trouble(stale(phase))


def is_exported(phases: dict[str, Phase], phase: Phase) -> bool:
    """Tell whether the queue holds what the phase's branch does."""
    if not (phase.folder / 'series').is_file():
        return False
    return succeeds('diff', '--quiet', applied(phases, phase.name)[1], phase.branch)


def stale(phase: Phase) -> str:
    """Say that a branch is ahead of its folder."""
    return (
        f'{phase.branch} differs from patches/{phase.name}: '
        f'run nox -s export -- {phase.name}'
    )


# -- export and land ---------------------------------------------------------


def cover_text(phase: Phase) -> str:
    """Return subject, blank line and body of the cover letter."""
    text = phase.cover.read_text(encoding='utf-8')
    letter = email.message_from_string(text, policy=email.policy.default)
    subject = re.sub(r'^\[[^]]*\]\s*', '', ' '.join(str(letter['Subject']).split()))
    body: list[str] = []
    for line in str(letter.get_payload()).splitlines():
        if re.fullmatch(r'\S.* \(\d+\):', line):  # where git's own summary starts
            break
        body.append(line)
    return f'{subject}\n\n' + '\n'.join(body).strip() + '\n'


def export(name: str, cover: Path | None) -> None:
    """Write a branch back into its folder, and show what that changed."""
    phases = load()
    phase = named(phases, name)
    below = phases.get(phase.base)
    base = below.branch if below is not None else phase.base
    if cover is None and not phase.cover.is_file():
        raise Trouble(
            f'{name} has no cover letter yet: pass --cover FILE (subject, body)'
        )
    text = cover.read_text(encoding='utf-8') if cover else cover_text(phase)
    before = applied(phases, name) if (phase.folder / 'series').is_file() else None
    with tempfile.TemporaryDirectory() as folder:
        git(
            *('-c', f'branch.{phase.branch}.description={text}'),
            *('format-patch', '--quiet', '--cover-letter', '--signature='),
            *('--cover-from-description=subject', '-M', f'--base={base}', '-o', folder),
            f'{base}..{phase.branch}',
        )
        phase.folder.mkdir(parents=True, exist_ok=True)
        for old in phase.folder.glob('*.patch'):
            old.unlink()
        names = sorted(path.name for path in Path(folder).iterdir())
        for patch in names:
            shutil.copy(Path(folder, patch), phase.folder / patch)
    series = ''.join(f'{patch}\n' for patch in names if patch != phase.cover.name)
    (phase.folder / 'series').write_text(series, encoding='utf-8')
    say(f'{name}: wrote {len(names) - 1} patches and the cover letter')
    if before is not None:
        say(git('range-diff', f'{before[0]}..{before[1]}', f'{base}..{phase.branch}'))


def applied(phases: dict[str, Phase], name: str) -> tuple[str, str]:
    """Return base and tip of a phase as the queue has it now."""
    with worktree(base_commit(phases, name)) as folder:
        start = ''
        for below in stack(phases, name):
            start = git('rev-parse', 'HEAD', cwd=folder)
            for _ in apply(below, folder, **COMMITTER):
                pass
        return start, git('rev-parse', 'HEAD', cwd=folder)


def land(name: str, quick: bool) -> None:
    """Verify a phase, then merge it with its cover letter as the message."""
    phases = load()
    phase = named(phases, name)
    if phase.landed is not None:
        raise Trouble(f'{name} has landed already, as {phase.landed}')
    order = list(phases)
    waiting = [p for p in order[: order.index(name)] if phases[p].landed is None]
    if waiting:
        raise Trouble(f'{name} comes after {", ".join(waiting)}: land that first')
    if git('status', '--porcelain'):
        raise Trouble('the tree has uncommitted changes: commit or stash them first')
    base = base_commit(phases, name)
    if not succeeds('merge-base', '--is-ancestor', base, 'HEAD'):
        raise Trouble(f'the base {base[:12]} of {name} is not in the current history')
    if not succeeds('rev-parse', '--verify', '-q', phase.branch):
        git('branch', phase.branch, applied(phases, name)[1])
    if not is_exported(phases, phase):
        raise Trouble(stale(phase))
    verify(name, quick, [])
    with tempfile.NamedTemporaryFile('w', suffix='.txt', encoding='utf-8') as message:
        message.write(cover_text(phase))
        message.flush()
        git('merge', '--no-ff', '--quiet', '-F', message.name, phase.branch)
    merge = git('rev-parse', 'HEAD')
    path = ROOT / 'patches/queue.toml'
    head, mark, rest = path.read_text(encoding='utf-8').partition(f'[{name}]\n')
    path.write_text(f'{head}{mark}landed = "{merge}"\n{rest}', encoding='utf-8')
    git('commit', '--quiet', '-m', f'Record where {name} landed', 'patches/queue.toml')
    say(f'{name}: landed as {merge}')


def say(text: str) -> None:
    """Print at once: a run takes minutes."""
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Carry out one command line; return the exit status."""
    parser = argparse.ArgumentParser(prog='phases.py', description=__doc__)
    parser.add_argument('job', choices=['verify', 'queue', 'export', 'land'])
    parser.add_argument('phase', nargs='?', default='')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--python', action='append', default=[])
    parser.add_argument('--cover', type=Path)
    args = parser.parse_args(arguments)
    # So that worktrees are removed after a SIGTERM as after a Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.job == 'verify':
            verify(args.phase, args.quick, args.python)
        elif args.job == 'queue':
            check_queue()
        elif args.job == 'export':
            export(args.phase, args.cover)
        else:
            land(args.phase, args.quick)
    except Trouble as error:
        sys.stderr.write(f'phases: {error}\n')
        return 1
    except KeyboardInterrupt:
        sys.stderr.write('phases: interrupted; the worktree is removed\n')
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
