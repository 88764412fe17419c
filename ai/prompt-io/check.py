"""
Checks the entries of the prompt log against the format in `README.md` beside it.

Prints one line for each fault and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SCOPES: Final = {'code', 'docs', 'tests', 'review', 'plan'}
SECTIONS: Final = ('Prompt', 'Response summary', 'Files changed', 'Human edits')
KEYS: Final = {
    'model': r'\S.*',
    'service': r'\S.*',
    'session': r'\S.*',
    'timestamp': r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ',
    'git_ref': r'[0-9a-f]{7,40}',
    'scope': r'\w+(, *\w+)*',
    'substantive': r'true|false',
    'raw_file': r'[\w./-]+',
}
FILE_NAME: Final = re.compile(r'\d{4}-\d\d-\d\d_[\w-]+\.md')


def faults(path: Path, home: Path) -> Iterator[str]:
    """Say what is wrong with one entry."""
    if not FILE_NAME.fullmatch(path.name):
        yield 'the name is not YYYY-MM-DD_NAME.md'
    parts = path.read_text(encoding='utf-8').split('---\n', 2)
    if len(parts) != 3 or parts[0]:
        yield 'no front matter between two lines of ---'
        return
    found = dict(re.findall(r'^(\w+): *(.*?) *$', parts[1], flags=re.MULTILINE))
    for key, pattern in KEYS.items():
        if key not in found:
            yield f'{key} is missing'
        elif not re.fullmatch(pattern, found[key]):
            yield f'{key} cannot be {found[key]!r}'
    for key in found.keys() - KEYS:
        yield f'{key} is no key of the front matter'
    for scope in set(re.findall(r'\w+', found.get('scope', ''))) - SCOPES:
        yield f'{scope!r} is no scope: {", ".join(sorted(SCOPES))}'
    raw = found.get('raw_file', 'none')
    if raw != 'none' and not (home / raw).is_file():
        yield f'raw_file {raw} does not exist'
    sections = re.split(r'^## (.+)$', parts[2], flags=re.MULTILINE)
    if tuple(sections[1::2]) != SECTIONS:
        yield f'the sections are not {", ".join(SECTIONS)}'
    for name, text in zip(sections[1::2], sections[2::2], strict=True):
        if not text.strip():
            yield f'section {name!r} is empty'


def main(home: Path) -> int:
    """Check every entry below a folder."""
    found = [
        f'{path.relative_to(home)}: {fault}'
        for path in sorted((home / 'log').glob('*.md'))
        for fault in faults(path, home)
    ]
    for line in found:
        sys.stderr.write(f'{line}\n')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main(Path(*sys.argv[1:2]) if sys.argv[1:] else Path(__file__).parent))
