"""What a cold import loads: `import tractor` next to nothing, a child little."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Final

# Loaded at first use only: whoever does not need one does not pay for it.
HEAVY: Final = (
    'argparse',
    'asyncio',
    'bidict',
    'colorlog',
    'dataclasses',
    'msgspec',
    'multiaddr',
    'multiprocessing',
    'pdb',
    'platformdirs',
    'setproctitle',
    'wrapt',
)
CHILD: Final = 'import tractor._child'
# What a child may load besides the standard library and what these load themselves.
LIBRARIES: Final = 'import trio, msgspec'
MAX_OWN_MODULES: Final = 55


@cache
def loaded_by(statement: str) -> frozenset[str]:
    """Return the names of the modules in a fresh interpreter after a statement."""
    script = f'import sys; {statement}; import json; print(json.dumps([*sys.modules]))'
    done = subprocess.run(
        [sys.executable, '-c', script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stdout))


def top_level(modules: frozenset[str]) -> set[str]:
    """Return the packages that the modules belong to."""
    return {name.partition('.')[0] for name in modules}


def test_importing_the_package_loads_nothing_heavy():
    """`import tractor` loads no library beyond what any interpreter has loaded."""
    loaded = loaded_by('import tractor') - loaded_by('pass')
    assert {*HEAVY} & loaded == set()


def test_importing_the_package_loads_only_its_table():
    """`import tractor` loads itself and the lazy tables, no other module of ours."""
    own = {name for name in loaded_by('import tractor') if name.startswith('tractor')}
    assert own == {'tractor', 'tractor._lazy'}


def test_a_child_loads_nothing_heavy():
    """A child loads none of them, unless trio or msgspec already do."""
    loaded = loaded_by(CHILD) - loaded_by(LIBRARIES)
    assert {*HEAVY} & loaded == set()


def test_a_child_loads_two_libraries():
    """Beside the standard library, a child loads trio, msgspec and what these load."""
    foreign = top_level(loaded_by(CHILD)) - top_level(loaded_by(LIBRARIES))
    assert foreign - sys.stdlib_module_names == {'tractor'}


def test_a_child_loads_few_of_our_modules():
    """A child's import set stays within its number of modules."""
    own = sorted(name for name in loaded_by(CHILD) if name.startswith('tractor'))
    assert len(own) <= MAX_OWN_MODULES, '\n'.join(own)
