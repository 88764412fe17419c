"""
Applies, checks, exports and lands the phases of the patch queue.

A phase is a table of `patches/queue.toml` and a folder of `git format-patch` files; its
base is a commit, or the phase below it.  All is done with git's commands in worktrees
that are removed again, also after an interrupt.  The noxfile's sessions of the same
names call it; it needs Python 3.12 and git.
"""

from __future__ import annotations

import argparse
import ast
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
COMMITTER: Final = ('-c', 'user.name=patch queue', '-c', 'user.email=queue@localhost')
# The same commits each time, so that a phase below is one commit for all above it.
AM: Final = ('am', '--quiet', '--committer-date-is-author-date')
COLUMNS: Final = ('phase', 'interpreter', 'patches', 'passed', 'skipped', 'seconds')
IMPORT_ALL: Final = """
import pkgutil, tractor
for _, name, _ in pkgutil.walk_packages(tractor.__path__, 'tractor.'):
    name.endswith('.__main__') or __import__(name)
"""
CLOSING: Final = re.compile(r'^(?:=+ )?(\d+ [a-z]+,? ?.*) in [\d.]+s')
SKIPPED: Final = re.compile(r'^SKIPPED \[(\d+)\] [^:]+(?::\d+)?: (.*)$')
say = partial(print, flush=True)  # at once: a run takes minutes


class Trouble(Exception):
    """What is wrong and what to do about it, on one line."""


def run(*command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, keeping what it prints."""
    env = {**os.environ, **env}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def git(*arguments: str, cwd: Path = ROOT) -> str:
    """Run git and return what it printed; `Trouble` if it failed."""
    done = run('git', *arguments, cwd=cwd)
    if done.returncode:
        what = ' '.join((done.stderr or done.stdout).split()[:60])
        raise Trouble(f'git {" ".join(" ".join(arguments).split()[:9])}: {what}')
    return done.stdout.strip()


def succeeds(*arguments: str, cwd: Path = ROOT) -> bool:
    """Tell whether a git command exits with 0."""
    return run('git', *arguments, cwd=cwd).returncode == 0


class Phase:
    """One table of `queue.toml`."""

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        self.name = name
        self.branch: str = table['branch']
        self.base: str = table['base']  # a commit, or the phase below
        self.pythons: list[str] = table['pythons']
        self.landed: str | None = table.get('landed')  # the merge
        self.moves: str | None = table.get('move')  # the folder it only moves code in
        self.mends: list[str] = table.get('mends', [])  # commits since it has landed
        self.folder = ROOT / 'patches' / name
        self.cover = self.folder / '0000-cover-letter.patch'
        self.series = self.folder / 'series'

    def patches(self) -> list[Path]:
        """Return the files of `series`, in order; `Trouble` if it lists others."""
        if not self.series.is_file():
            raise Trouble(f'run nox -s export -- {self.name}: it has no series yet')
        names = self.series.read_text(encoding='utf-8').split()
        there = sorted(p.name for p in self.folder.glob('*.patch') if p != self.cover)
        if names != there:
            odd = ', '.join(sorted(set(names) ^ set(there)) or names)
            raise Trouble(f'{self.name}/series and the folder differ in {odd}')
        return [self.folder / name for name in names]


def load() -> dict[str, Phase]:
    """Return the phases in the order of the queue."""
    text = (ROOT / 'patches/queue.toml').read_text(encoding='utf-8')
    return {name: Phase(name, table) for name, table in tomllib.loads(text).items()}


def stack(phases: dict[str, Phase], name: str) -> list[Phase]:
    """Return a phase and, before it, those below; `Trouble` names those that exist."""
    if name not in phases:
        raise Trouble(f'there is no phase {name!r}: the queue has {", ".join(phases)}')
    found = [phases[name]]
    while found[0].base in phases:
        found.insert(0, phases[found[0].base])
    return found


def base_commit(phases: dict[str, Phase], name: str) -> str:
    """Return the commit below the whole stack; `Trouble` if the clone lacks it."""
    base = stack(phases, name)[0].base
    if not succeeds('cat-file', '-e', f'{base}^{{commit}}'):
        shallow = git('rev-parse', '--is-shallow-repository') == 'true'
        how = 'it is shallow, run: git fetch --unshallow' if shallow else 'fetch it'
        raise Trouble(f'the base {base[:12]} of {name} is not in this clone: {how}')
    return base


@contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """Give a worktree of its own at a commit, and remove it whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix='tractor-phase-')).resolve()
    try:
        git('worktree', 'add', '--quiet', '--detach', str(folder), commit)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        git('worktree', 'prune')


def apply(phase: Phase, folder: Path) -> Iterator[str]:
    """Apply a phase's patches with `git am`, giving each one's name as it is in."""
    for patch in phase.patches():
        try:
            git(*COMMITTER, *AM, str(patch), cwd=folder)
        except Trouble as err:
            succeeds('am', '--abort', cwd=folder)
            raise Trouble(f'{phase.name}/{patch.name} does not apply: {err}') from err
        yield patch.name


def apply_below(phases: dict[str, Phase], name: str, folder: Path) -> str:
    """Apply all phases below one; return the commit which that one starts at."""
    for below in stack(phases, name)[:-1]:
        list(apply(below, folder))
    return git('rev-parse', 'HEAD', cwd=folder)


def interpreters(wanted: list[str]) -> str:
    """Return a `PATH` on which all these versions are; `Trouble` if one is missing."""
    done = run(sys.executable, '.ci/pythons.py', 'dirs', *wanted, cwd=ROOT)
    path = os.pathsep.join(filter(None, [done.stdout.strip(), os.environ['PATH']]))
    for version in wanted:
        if shutil.which(f'python{version}', path=path) is None:
            raise Trouble(f'Python {version} is missing, run: pyenv install {version}')
    return path


def run_nox(folder: Path, path: str, *arguments: str) -> tuple[bool, Counter[str]]:
    """Run a session of that tree's noxfile; return what pytest counted, and why."""
    session, start = arguments[1], time.monotonic()
    counts: Counter[str] = Counter()
    (sockets := folder / f'run-{session}').mkdir(0o700)
    env = {'PATH': path, 'PYTHONUNBUFFERED': '1', 'XDG_RUNTIME_DIR': str(sockets)}
    with subprocess.Popen(
        [sys.executable, '-m', 'nox', '-f', f'{folder}/noxfile.py', *arguments],
        cwd=folder,
        env=os.environ | env,
        process_group=0,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as nox:
        try:
            for line in nox.stdout or ():
                say(line.rstrip())
                if found := SKIPPED.match(line):
                    counts[f'skipped: {found[2]}'] += int(found[1])
                elif found := CLOSING.match(line):
                    for part in found[1].split(', '):
                        counts[part.split()[1]] += int(part.split()[0])
        except BaseException:
            os.killpg(nox.pid, signal.SIGKILL)  # with all that would write into it
            raise
    counts['seconds'] = round(time.monotonic() - start)
    return nox.returncode == 0, counts


def verify(name: str, quick: bool, pythons: list[str]) -> None:
    """Apply the stack up to a phase and run that tree's own checks and tests."""
    phases = load()
    phase = stack(phases, name)[-1]
    if outside := ', '.join(v for v in pythons if v not in phase.pythons):
        within = ', '.join(phase.pythons)
        raise Trouble(f'{name} is verified on Python {within}, not on {outside}')
    path = interpreters(pythons or phase.pythons)
    rows: list[tuple[Any, ...]] = [COLUMNS]
    failed, reasons = list[str](), Counter[str]()
    with worktree(base_commit(phases, name)) as folder:
        patches = [(b.name, p) for b in stack(phases, name) for p in apply(b, folder)]
        say(*(f'{below}: applied {patch}' for below, patch in patches), sep='\n')
        for commit in (c for below in stack(phases, name) for c in below.mends):
            mend = git('format-patch', '-1', '-o', str(folder), commit)
            git(*COMMITTER, *AM, '--3way', '--include=tractor/*', mend, cwd=folder)
            say(f'{name}: mended by', git('log', '-1', '--format=%h %s', commit))
        say(f'{name}: lint and types')
        if not run_nox(folder, path, '-s', 'lint', 'types')[0]:
            failed.append('lint or types')
        tail = ('--', '-rs', '--quick')[: 2 + quick]
        for version in pythons or phase.pythons:
            say(f'{name}: tests on Python {version}')
            passed, counts = run_nox(folder, path, '-s', f'tests-{version}', *tail)
            if not passed or not counts['passed']:
                failed.append(f'tests-{version}')
            ran = (counts.pop(key, 0) for key in ('passed', 'skipped', 'seconds'))
            rows.append((name, version, len(patches), *ran))
            reasons += counts
    lines = ['  '.join(f'{cell:<12}' for cell in row).rstrip() for row in rows]
    say(*lines, *(f'  {n} {reason}' for reason, n in reasons.most_common()), sep='\n')
    if failed:
        raise Trouble(f'{name} failed: {", ".join(failed)}')


def functions(folder: Path) -> Counter[tuple[str, str]]:
    """Return every function below a folder; a pure move keeps them all as they are."""
    return Counter(
        (node.name, ast.dump(node))
        for path in folder.rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def check_step(patch: str, folder: Path) -> None:
    """One patch leaves a tree that passes ruff and can be imported."""
    for what, *command in (
        ('ruff check', '-m', 'ruff', 'check', '-q', '--output-format=concise', '.'),
        ('ruff format', '-m', 'ruff', 'format', '--quiet', '--check', '.'),
        ('importing all', '-c', IMPORT_ALL),
    ):
        done = run(sys.executable, *command, cwd=folder, PYTHONPATH=str(folder))
        if done.returncode:
            last = ''.join((done.stdout + done.stderr).strip().splitlines()[-1:])
            raise Trouble(f'{patch}: {what} fails: {last}')


def check_base(phase: Phase, start: str) -> None:
    """The cover letter names the base; what it names has the tree we start at."""
    trailers = git('interpret-trailers', '--parse', str(phase.cover))
    if (told := re.search(r'(?m)^base-commit: (\w+)$', trailers)) is None:
        raise Trouble(f'{phase.name}: the cover letter has no base-commit: trailer')
    if not succeeds('diff', '--quiet', told[1], start, '--', '.', ':!patches'):
        raise Trouble(f'{phase.name}: its base-commit {told[1]} is not its base')


def check_landed(phase: Phase, folder: Path) -> None:
    """What was merged is what the queue holds, and the merge is git's own of it."""
    landed = f'{phase.landed}'
    if not succeeds('merge-base', '--is-ancestor', landed, 'HEAD'):
        raise Trouble(f'{phase.name} landed as {landed}, not in this history')
    merged = git('merge-tree', '--write-tree', f'{landed}^1', f'{landed}^2')
    for pair in ((f'{landed}^2', 'HEAD'), (merged, landed)):
        compared = ('diff', '--stat', *pair, '--', '.', ':!patches')
        if differing := git(*compared, cwd=folder):
            raise Trouble(f'{phase.name}: the queue is not what landed:\n{differing}')


def check_queue() -> None:
    """Check every phase: applies, each step is green, is what landed."""
    phases = load()
    for name, phase in phases.items():
        with worktree(base_commit(phases, name)) as folder:
            check_base(phase, apply_below(phases, name, folder))
            code = folder / (phase.moves or 'nothing to compare')
            before = functions(code)
            for patch in apply(phase, folder):
                check_step(patch, folder)
                say(f'{name}: {patch} applies, passes ruff and imports')
            if told := ', '.join({who: 0 for who, _ in before - functions(code)}):
                raise Trouble(f'{name} is to move code only, but changes {told}')
            if phase.moves is not None:
                say(f'{name}: no function body changed in {phase.moves}')
            if phase.landed is not None:
                check_landed(phase, folder)
                say(f'{name}: the tree is that of {phase.landed[:12]}')
        here = succeeds('rev-parse', '--verify', '-q', phase.branch)
        if here and phase.landed is None and (told := unexported(phases, phase)):
            raise Trouble(told)


def unexported(phases: dict[str, Phase], phase: Phase) -> str:
    """Say that a phase's branch holds what the queue does not; empty if it does not."""
    held = phase.series.is_file() and applied(phases, phase.name)[1]
    if held and succeeds('diff', '--quiet', held, phase.branch):
        return ''
    return f'{phase.branch} is not what patches/ has: nox -s export -- {phase.name}'


def cover_text(phase: Phase) -> str:
    """Return subject, blank line and body of the cover letter."""
    text = phase.cover.read_text(encoding='utf-8')
    letter = email.message_from_string(text, policy=email.policy.default)
    subject = re.sub(r'^\[[^]]*\]\s*', '', ' '.join(str(letter['Subject']).split()))
    body = re.split(r'(?m)^\S.* \(\d+\):$', str(letter.get_payload()))[0]
    return f'{subject}\n\n{body.strip()}\n'


def export(name: str, cover: Path | None) -> None:
    """Write a branch back into its folder, and show what that changed."""
    phases = load()
    phase = stack(phases, name)[-1]
    base = phase.base
    if base in phases:
        here = succeeds('rev-parse', '-q', '--verify', phases[base].branch)
        base = phases[base].branch if here else applied(phases, base)[1]
    if cover is None and not phase.cover.is_file():
        raise Trouble(f'{name} has no cover letter: pass --cover FILE (subject, body)')
    text = cover.read_text(encoding='utf-8') if cover else cover_text(phase)
    try:
        before = applied(phases, name) if phase.series.is_file() else None
    except Trouble as error:  # the phase below has changed
        before = say(f'{name}: nothing to compare with: {error}')
    with tempfile.TemporaryDirectory() as made:
        git(
            *('-c', f'branch.{phase.branch}.description={text}', 'format-patch'),
            *('--quiet', '--cover-letter', '--signature=', '-M', f'--base={base}'),
            *('--cover-from-description=subject', '-o', made),
            f'{base}..{phase.branch}',
        )
        shutil.rmtree(phase.folder, ignore_errors=True)
        shutil.copytree(made, phase.folder)
    names = sorted(path.name for path in phase.folder.glob('*.patch'))
    series = ''.join(f'{patch}\n' for patch in names if patch != phase.cover.name)
    phase.series.write_text(series, encoding='utf-8')
    say(f'{name}: wrote {len(names) - 1} patches and the cover letter')
    if before is not None:
        say(git('range-diff', f'{before[0]}..{before[1]}', f'{base}..{phase.branch}'))


def applied(phases: dict[str, Phase], name: str) -> tuple[str, str]:
    """Return base and tip of a phase as the queue has it now."""
    with worktree(base_commit(phases, name)) as folder:
        start = apply_below(phases, name, folder)
        list(apply(phases[name], folder))
        return start, git('rev-parse', 'HEAD', cwd=folder)


def land(name: str, quick: bool) -> None:
    """Verify a phase, then merge it with its cover letter as the message."""
    phases = load()
    phase = stack(phases, name)[-1]
    if phase.landed is not None:
        raise Trouble(f'{name} has landed already, as {phase.landed}')
    first = next(other for other, p in phases.items() if p.landed is None)
    if first != name:
        raise Trouble(f'{name} comes after {first}: land that first')
    if git('status', '--porcelain'):
        raise Trouble('the tree has uncommitted changes: commit or stash them first')
    base = base_commit(phases, name)
    if not succeeds('merge-base', '--is-ancestor', base, 'HEAD'):
        raise Trouble(f'the base {base[:12]} of {name} is not in the current history')
    if not succeeds('rev-parse', '--verify', '-q', phase.branch):
        git('branch', phase.branch, applied(phases, name)[1])
    if told := unexported(phases, phase):
        raise Trouble(told)
    verify(name, quick, [])
    try:
        git('merge', '--no-ff', '--quiet', '-m', cover_text(phase), phase.branch)
    except Trouble:
        succeeds('merge', '--abort')
        raise
    merge = git('rev-parse', 'HEAD')
    path = ROOT / 'patches/queue.toml'
    head, mark, rest = path.read_text(encoding='utf-8').partition(f'[{name}]\n')
    path.write_text(f'{head}{mark}landed = "{merge}"\n{rest}', encoding='utf-8')
    git('commit', '--quiet', '-m', f'Record where {name} landed', 'patches/queue.toml')
    say(f'{name}: landed as {merge}')


def main(arguments: list[str]) -> None:
    """Carry out one command line."""
    parser = argparse.ArgumentParser(prog='phases.py', description=__doc__)
    parser.add_argument('job', choices=['verify', 'queue', 'export', 'land'])
    parser.add_argument('phase', nargs='?', default='')
    parser.add_argument('--quick', action='store_true')
    parser.add_argument('--python', action='append', default=[])
    parser.add_argument('--cover', type=Path)
    args = parser.parse_args(arguments)
    # So that worktrees are removed after a SIGTERM as after a Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    jobs: dict[str, Callable[[], None]] = {
        'verify': partial(verify, args.phase, args.quick, args.python),
        'queue': check_queue,
        'export': partial(export, args.phase, args.cover),
        'land': partial(land, args.phase, args.quick),
    }
    jobs[args.job]()


def guarded(tool: str, job: Callable[[list[str]], None]) -> int:
    """Run a tool's `main()`; what is wrong becomes one line and an exit status."""
    try:
        job(sys.argv[1:])
        return 0
    except Trouble as error:
        sys.stderr.write(f'{tool}: {error}\n')
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f'{tool}: interrupted; temporary worktrees are removed\n')
        return 130


if __name__ == '__main__':
    sys.exit(guarded('phases', main))
