"""
Opens and closes the worktrees in which phases and other changes are made.

    open_wkt.py NAME            make or re-enter .claude/wkts/NAME on branch wkt/NAME
    open_wkt.py --list
    open_wkt.py --close NAME [--force]

A phase's worktree starts with that phase's patches on its base, any other at `HEAD`.
`wkt.env` in it, which nox reads, gives its suite a socket directory of its own.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / '.ci'))
import phases
from phases import Trouble

ENV_FILE: Final = 'wkt.env'
NAME: Final = re.compile(r'[a-z][a-z0-9_]*')


WKTS: Final = phases.ROOT / '.claude/wkts'


def phase_of(name: str) -> str | None:
    """Return the phase whose branch this is."""
    if not (phases.ROOT / 'patches/queue.toml').is_file():
        return None
    found = [p.name for p in phases.load().values() if p.branch == f'wkt/{name}']
    return found[0] if found else None


def open_wkt(name: str) -> Path:
    """Make a worktree, or return the one that is there."""
    if not NAME.fullmatch(name):
        raise Trouble(f'{name!r} is no name: lower case letters, digits and _ are')
    folder: Path = WKTS / name
    branch, phase = f'wkt/{name}', phase_of(name)
    if (folder / '.git').exists():
        return folder
    known = phases.succeeds('rev-parse', '--verify', '-q', branch)
    if known:
        phases.git('worktree', 'add', '--quiet', str(folder), branch)
    else:
        queue = phases.load() if phase else {}
        start = phases.base_commit(queue, phase) if phase else 'HEAD'
        phases.git('worktree', 'add', '--quiet', '-b', branch, str(folder), start)
        for below in phases.stack(queue, phase) if phase else []:
            for _ in phases.apply(below, folder, **phases.COMMITTER):
                pass
    isolate(name, folder)
    return folder


def isolate(name: str, folder: Path) -> None:
    """Give the suite a socket directory, and so a registry, of this worktree's own."""
    (folder / ENV_FILE).write_text(f'XDG_RUNTIME_DIR=/tmp/tractor-wkt-{name}\n')
    common = phases.git('rev-parse', '--git-common-dir', cwd=folder)
    exclude = folder / common / 'info/exclude'
    text = exclude.read_text(encoding='utf-8') if exclude.is_file() else ''
    if ENV_FILE not in text.split():
        exclude.parent.mkdir(exist_ok=True)
        exclude.write_text(f'{text}{ENV_FILE}\n', encoding='utf-8')


def close_wkt(name: str, force: bool) -> None:
    """Remove a worktree; refuse while it holds work that is nowhere else."""
    folder: Path = WKTS / name
    if not (folder / '.git').exists():
        raise Trouble(f'there is no worktree {name}: --list shows what there is')
    branch, phase = f'wkt/{name}', phase_of(name)
    held = []
    if changes := phases.git('status', '--short', cwd=folder):
        held.append(f'uncommitted:\n{changes}')
    commits = phases.git('log', '--oneline', f'HEAD..{branch}')
    exported = False
    if phase is not None:
        queue = phases.load()
        exported = phases.is_exported(queue, queue[phase])
    if commits and not exported:
        what = 'unexported' if phase else 'unmerged'
        held.append(f'{what}:\n{commits}')
    for text in held:
        phases.say(text)
    if held and not force:
        raise Trouble(f'{name} holds work: merge or export it, or pass --force')
    phases.git('worktree', 'remove', '--force', str(folder))
    if force or exported or not commits:
        phases.git('branch', '-D', branch)


def main(arguments: list[str]) -> int:
    """Carry out one command line; return the exit status."""
    parser = argparse.ArgumentParser(prog='open_wkt.py', description=__doc__)
    parser.add_argument('name', nargs='?')
    parser.add_argument('--list', action='store_true')
    parser.add_argument('--close', action='store_true')
    parser.add_argument('--force', action='store_true')
    args = parser.parse_args(arguments)
    try:
        if args.list or args.name is None:
            for folder in sorted(WKTS.glob('*/.git')):
                phases.say(str(folder.parent))
        elif args.close:
            close_wkt(args.name, args.force)
        else:
            phases.say(str(open_wkt(args.name)))
    except Trouble as error:
        sys.stderr.write(f'open_wkt: {error}\n')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
