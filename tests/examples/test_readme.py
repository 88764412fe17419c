"""The README's example runs as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / 'README.md'


def test_example_prints_what_the_readme_says(tmp_path):
    """The first Python block, run as a script, prints the block that follows it."""
    text = README.read_text(encoding='utf-8')
    example = re.search(r'```python\n(.*?)```', text, re.DOTALL)
    assert example is not None
    printed = re.search(r'It prints\n\n```\n(.*?)```', text, re.DOTALL)
    assert printed is not None
    script = tmp_path / 'example.py'
    script.write_text(example[1], encoding='utf-8')
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=README.parent,
        env={**os.environ, 'PYTHONPATH': str(README.parent)},
    )
    assert done.stdout == printed[1]
