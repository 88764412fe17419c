"""
Opens and closes the worktrees in which phases and other changes are made.

`.claude/wkts/NAME` is on branch `wkt/NAME`: a phase's with its patches on its base, any
other at `HEAD`.  `wkt.env` in it, which nox reads, gives its suite a socket directory.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / '.ci'))
import phases

WKTS: Final = phases.ROOT / '.claude/wkts'


def phase_of(branch: str) -> phases.Phase | None:
    """Return the phase whose branch this is."""
    return next((p for p in phases.load().values() if p.branch == branch), None)


def open_wkt(name: str) -> Path:
    """Make a worktree, or return the one that is there."""
    if not re.fullmatch('[a-z][a-z0-9_]*', name):
        raise phases.Trouble(f'{name!r} is no name: lower case, digits and _ are')
    folder: Path = WKTS / name
    branch, phase = f'wkt/{name}', phase_of(f'wkt/{name}')
    if (folder / '.git').exists():
        return folder
    if not phases.succeeds('rev-parse', '--verify', '-q', branch):
        start = phases.applied(phases.load(), phase.name)[1] if phase else 'HEAD'
        phases.git('branch', branch, start)
    phases.git('worktree', 'add', '--quiet', str(folder), branch)
    sockets = tempfile.mkdtemp(prefix='tractor-', dir='/tmp')  # paths must be short
    (folder / 'wkt.env').write_text(f'XDG_RUNTIME_DIR={sockets}\n')
    return folder


def close_wkt(name: str, force: bool) -> None:
    """Remove a worktree; refuse while it holds work that is nowhere else."""
    folder: Path = WKTS / name
    if not (folder / '.git').exists():
        raise phases.Trouble(f'there is no worktree {name}: --list shows what there is')
    branch, phase = f'wkt/{name}', phase_of(f'wkt/{name}')
    changes = phases.git('status', '--short', cwd=folder)
    held = phase is None or phases.unexported(phases.load(), phase)
    commits = phases.git('log', '--oneline', f'HEAD..{branch}') if held else ''
    if (changes or commits) and not force:
        phases.say('uncommitted:', changes, 'nowhere else:', commits, sep='\n')
        raise phases.Trouble(f'{name} holds work: merge or export it, or pass --force')
    for env in folder.glob('wkt.env'):
        for sockets in re.findall(r'=(/tmp/tractor-[\w-]+)\n', env.read_text()):
            shutil.rmtree(sockets, ignore_errors=True)
    phases.git('worktree', 'remove', '--force', str(folder))
    phases.git('branch', '-D', branch)


def main(arguments: list[str]) -> None:
    """Carry out one command line."""
    parser = argparse.ArgumentParser(prog='open_wkt.py', description=__doc__)
    parser.add_argument('name', nargs='?')
    for flag in ('--list', '--close', '--force'):
        parser.add_argument(flag, action='store_true')
    args = parser.parse_args(arguments)
    if args.list or args.name is None:
        lines = (f'{path.parent}\n' for path in sorted(WKTS.glob('*/.git')))
        phases.say(*lines, sep='', end='')
    elif args.close:
        close_wkt(args.name, args.force)
    else:
        phases.say(str(open_wkt(args.name)))


if __name__ == '__main__':
    sys.exit(phases.guarded('open_wkt', main))
