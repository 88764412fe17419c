"""The check of the prompt log."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
ENTRY: Final = """\
---
model: some-model-1
service: somewhere
session: none
timestamp: 2026-01-31T12:00:00Z
git_ref: 0123abc
scope: code, tests
substantive: true
raw_file: none
---
## Prompt
Do it.
## Response summary
It was done.
## Files changed
- one.py
## Human edits
None.
"""


def check(home: Path) -> tuple[int, str]:
    """Run the check on a folder; return its exit status and what it said."""
    done = subprocess.run(
        [sys.executable, str(ROOT / 'ai/prompt-io/check.py'), str(home)],
        capture_output=True,
        text=True,
        timeout=20,
    )
    return done.returncode, done.stderr


def write(home: Path, text: str, name: str = '2026-01-31_entry.md') -> Path:
    """Put one entry into a log."""
    (home / 'log').mkdir()
    (home / 'log' / name).write_text(text, encoding='utf-8')
    return home


def test_own_log_is_in_order():
    """What this project has logged, if anything."""
    assert check(ROOT / 'ai/prompt-io') == (0, '')


def test_good_entry(tmp_path):
    """All keys and all sections, and nothing else."""
    assert check(write(tmp_path, ENTRY)) == (0, '')


@pytest.mark.parametrize(
    ('pattern', 'replacement', 'fault'),
    [
        (r'model: .*\n', '', 'model is missing'),
        ('2026-01-31T12:00:00Z', 'today', "timestamp cannot be 'today'"),
        ('0123abc', 'main', "git_ref cannot be 'main'"),
        ('substantive: true', 'substantive: yes', "substantive cannot be 'yes'"),
        ('scope: code', 'scope: magic', "'magic' is no scope"),
        ('raw_file: none', 'raw_file: log/raw/x.md', 'log/raw/x.md does not exist'),
        ('session: none', 'session: none\nmood: good', 'mood is no key'),
        ('## Human edits\nNone.\n', '', 'the sections are not Prompt,'),
        (r'It was done\.\n', '', "section 'Response summary' is empty"),
        (r'\A---\n', '', 'no front matter'),
    ],
)
def test_fault_is_named(tmp_path, pattern, replacement, fault):
    """One line with the file and what is wrong."""
    status, text = check(write(tmp_path, re.sub(pattern, replacement, ENTRY)))
    assert status == 1
    assert text.startswith('log/2026-01-31_entry.md: ')
    assert fault in text


def test_file_name_has_a_date(tmp_path):
    """Entries sort by time."""
    status, text = check(write(tmp_path, ENTRY, 'entry.md'))
    assert status == 1
    assert 'the name is not YYYY-MM-DD_NAME.md' in text
