"""
The import rules, read from the module table of `docs/architecture.md`, and file sizes.

Nothing here runs the modules: their imports are parsed, so that a step upward is found
even on a path no test takes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / 'tractor'
ARCHITECTURE: Final = (ROOT / 'docs/architecture.md').read_text(encoding='utf-8')

# Our modules that are imported inside functions, beside those loaded on demand: the
# importer and the imported, and why not at the top.  All of these point down.
DEFERRED: Final = {
    ('_exceptions', 'msg/_codec'): 'only for a payload of the wrong type',
    ('_exceptions', 'msg/pretty_struct'): 'only to render the message of an error',
    ('_exceptions', 'msg/types'): 'only to make a message of a dict again',
    ('_context', '_ctx_repr'): 'only to show a context',
    ('_root', 'discovery/_registry'): 'one actor of a tree is the registrar',
    ('discovery/_dial', 'runtime/_local_portal'): 'one actor of a tree needs it',
    (
        'runtime/_runtime',
        'spawn/_mp_fixup_main',
    ): 'only where a parent has a main',
    (
        'spawn/_entry',
        'spawn/_forkserver_override',
    ): 'only with that backend',
    ('spawn/_entry', 'spawn/_reap'): 'only in a child that lost its parent',
    ('spawn/_reap', 'discovery/_addr'): 'only for a child that was killed',
    ('spawn/_subint', 'ipc/_link'): 'only where there are sub-interpreters',
    ('spawn/_subint', 'spawn/_interp'): 'only where there are sub-interpreters',
    ('spawn/_mp', 'spawn/_entry'): 'in the child, which is not here',
    ('spawn/_mp', 'spawn/_forkserver_override'): 'only with that backend',
    ('spawn/_spawn', 'spawn/_forkserver_override'): 'only with that backend',
}
# And those that point up.  A name that a lower module has to offer from above stands in
# its `__getattr__`, which needs no entry here.
FROM_ABOVE: Final = {
    ('runtime/_supervise', '_root'): 'a nursery outside of any actor opens the root',
    (
        'spawn/_entry',
        'spawn/_spawn',
    ): 'only for a child that has children',
}
# From anywhere inside a function: it drags in a large library and few actors need it.
DEFERRED_FROM_ANYWHERE: Final = ('discovery/_multiaddr',)

# Imports inside functions beside those above say why on their line or just above it.
# Where they do not, it is for this.
UNEXPLAINED: Final = {
    ('_testing/pytest', 'tractor._testing.addr'): 'a collection loads no runtime',
    ('_testing/pytest', 'tractor.log'): 'a collection loads no runtime',
    ('spawn/_lifeline', 'fcntl'): 'not every system has it',
    ('spawn/_lifeline', 'select'): 'only for a child that has a lifeline',
}

# The ceiling of a file, and of those that may be longer, with the reason.
LINES: Final = 600
LINES_LONG: Final = 660
LONG: Final = {
    'tractor/_context.py': 'a context is one class',
    'tractor/_exceptions.py': 'all error classes are in one module, for their users',
    'tractor/ipc/_transport.py': 'reading and writing share the state of one stream',
    'tractor/msg/_fallback.py': 'all that makes a struct is in one place',
    'tractor/runtime/_runtime.py': 'the runtime of an actor is one class',
    'tractor/runtime/_supervise.py': 'a nursery is one class',
    'tests/_protocol/test_supervise.py': 'one table of rules',
}

# Libraries by layer; what is not named may be used from layer 3 on.
LIBRARIES: Final = {0: set(), 1: {'msgspec'}, 2: set()}
# Rules are decided without a clock and without a word.
NOT_IN_RULES: Final = {'time', 'datetime', 'logging', 'tractor.log'}


class Import(NamedTuple):
    """One import, by absolute module name, and where it stands."""

    target: str
    line: int
    inside_function: bool
    in_lazy_table: bool
    for_types_only: bool


def expand(name: str) -> list[str]:
    """Spell out `a/{b,c}` as `a/b` and `a/c`."""
    head, brace, tail = name.partition('{')
    if not brace:
        return [name]
    return [f'{head}{part}' for part in tail.rstrip('}').split(',')]


@cache
def table() -> dict[str, tuple[int, int]]:
    """Return each listed module's layer and its place in the table."""
    ranks: dict[str, tuple[int, int]] = {}
    layer = -1
    for row in re.findall(r'^\|(.*?)\|(.*?)\|.*\|$', ARCHITECTURE, re.MULTILINE):
        number = re.match(r'\s*(\d+)', row[0])
        layer = int(number[1]) if number else layer
        for name in re.findall(r'`(.*?)`', row[1]):
            for module in expand(name):
                assert module not in ranks, f'{module} is listed twice'
                ranks[module] = layer, len(ranks)
    assert len(ranks) > 40, 'the module table was not found'
    return ranks


@cache
def on_demand() -> list[str]:
    """Return what is loaded on demand; a folder ends with a slash."""
    text = re.search(r'^Loaded on demand(.*?)(?:\n\n|\Z)', ARCHITECTURE, re.M | re.S)
    assert text is not None, 'the modules loaded on demand were not found'
    return [
        module for name in re.findall(r'`(.*?)`', text[1]) for module in expand(name)
    ]


def within(module: str, name: str) -> bool:
    """Tell whether a name of the table means a module: itself or a folder above it."""
    return module == name or module.startswith(name.rstrip('/') + '/')


def is_on_demand(module: str) -> bool:
    """Tell whether the layers may load a module only inside a function."""
    return any(within(module, name) for name in on_demand())


def rank(module: str) -> tuple[int, int] | None:
    """Return layer and place of a module, `None` if it is not in the table."""
    listed = [name for name in table() if within(module, name) and name != '__init__']
    return table()[max(listed, key=len)] if listed else table().get(module)


@cache
def modules() -> dict[str, Path]:
    """Return every module of the package by its name in the table."""
    return {
        path.relative_to(PACKAGE).with_suffix('').as_posix(): path
        for path in sorted(PACKAGE.rglob('*.py'))
    }


def is_lazy_package(module: str) -> bool:
    """Tell whether a module is an `__init__` that may hold nothing but its table."""
    folder, _, name = module.rpartition('/')
    return name == '__init__' and (not folder or rank(folder) is None)


def dotted(module: str) -> str:
    """Return the import name of a module of the package."""
    name = f'tractor/{module}'.removesuffix('/__init__')
    return name.replace('/', '.')


@cache
def import_names() -> dict[str, str]:
    """Return the module for each import name of the package."""
    return {dotted(module): module for module in modules()}


@cache
def exports(package: str) -> dict[str, str]:
    """Return what a package's lazy table offers: name to the module it loads."""
    loader = vars(importlib.import_module(package)).get('__getattr__')
    if loader is None:
        return {}
    entries = inspect.getclosurevars(loader).nonlocals['table']
    return {
        name: importlib.util.resolve_name(target.partition(':')[0], package)
        for name, target in entries.items()
    }


def resolve(path: Path, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the absolute names of the modules that an import statement loads."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ''
    if node.level:
        package = path.relative_to(ROOT).parent
        above = package.parts[: len(package.parts) - node.level + 1]
        base = '.'.join((*above, *filter(None, [base])))
    found = []
    for alias in node.names:
        full = f'{base}.{alias.name}'
        if full in import_names():
            found.append(full)
        elif base.partition('.')[0] == 'tractor' and is_lazy_package(
            import_names().get(base, '')
        ):
            found.append(exports(base).get(alias.name, base))
        else:
            found.append(base)
    return found


def is_for_types(node: ast.AST) -> bool:
    """Tell whether a node is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)


def walk(
    path: Path,
    node: ast.AST,
    functions: tuple[str, ...] = (),
    types: bool = False,
) -> Iterator[Import]:
    """Give every import below a node, which the functions named enclose."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        lazy = functions == ('__getattr__',)
        for target in resolve(path, node):
            yield Import(target, node.lineno, bool(functions), lazy, types)
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        functions = (*functions, node.name)
    otherwise = node.orelse if isinstance(node, ast.If) else []
    for child in ast.iter_child_nodes(node):
        guarded = is_for_types(node) and child not in otherwise
        yield from walk(path, child, functions, types or guarded)


@cache
def imports_of(path: Path) -> list[Import]:
    """Return every import of a file."""
    return list(walk(path, ast.parse(path.read_text(encoding='utf-8'))))


def layered_imports() -> Iterator[tuple[str, Import, str]]:
    """Give the imports between our modules: importer, import, imported module."""
    for module, path in modules().items():
        if is_on_demand(module) or is_lazy_package(module):
            continue
        for found in imports_of(path):
            target = import_names().get(found.target)
            if target is None or found.for_types_only or is_lazy_package(target):
                continue
            yield module, found, target


def is_below(importer: str, imported: str) -> bool:
    """Tell whether one module stands below another, or above it within its layer."""
    mine, other = rank(importer), rank(imported)
    return mine is None or other is None or other <= mine  # equal: one folder of it


def lines(found: list[str]) -> str:
    """Return what was found as the message of a failure."""
    return '\n'.join(['', *found])


def test_every_module_is_listed():
    """A module is in the table or loaded on demand, and each listed one exists."""
    unlisted = [
        module
        for module in modules()
        if rank(module) is None and not is_on_demand(module)
        if not is_lazy_package(module)
    ]
    assert not unlisted, lines(unlisted)
    missing = [
        name
        for name in (*table(), *on_demand())
        if not any(within(module, name) for module in modules())
    ]
    assert not missing, lines(missing)


def test_imports_point_down():
    """At module level only lower layers, or the own layer further up in the table."""
    upward = [
        f'{module}:{found.line} imports {target}'
        for module, found, target in layered_imports()
        if not found.inside_function
        if is_on_demand(target) or not is_below(module, target)
    ]
    assert not upward, lines(upward)


def test_imports_inside_functions_are_known():
    """Our modules are imported in functions only on demand or for a listed reason."""
    unknown, used = [], set()
    for module, found, target in layered_imports():
        if not found.inside_function or found.in_lazy_table or is_on_demand(target):
            continue
        pair = module, target
        used.add(pair)
        if target in DEFERRED_FROM_ANYWHERE or pair in FROM_ABOVE:
            continue
        if pair not in DEFERRED:
            unknown.append(f'{module}:{found.line} imports {target}')
        elif not is_below(module, target):
            unknown.append(f'{module}:{found.line} imports {target}, a step upward')
    assert not unknown, lines(unknown)
    stale = [f'{a} imports {b}' for a, b in {*DEFERRED, *FROM_ABOVE} - used]
    assert not stale, lines(['listed, but no longer there:', *stale])


def says_why(text: list[str], number: int) -> bool:
    """Tell whether an import, by line number, has a comment: there or just above it."""
    if '#' in text[number - 1]:
        return True
    for line in map(str.strip, reversed(text[: number - 1])):
        if line.startswith('#'):
            return True
        if line and line != 'try:' and not line.startswith(('import ', 'from ')):
            return False
    return False


def test_imports_inside_functions_say_why():
    """A comment says it, or one of the tables above."""
    silent, used = [], set()
    for module, path in modules().items():
        text = path.read_text(encoding='utf-8').splitlines()
        for found in imports_of(path):
            if not found.inside_function or found.in_lazy_table or found.for_types_only:
                continue
            pair = module, import_names().get(found.target, '')
            if says_why(text, found.line) or pair in {*DEFERRED, *FROM_ABOVE}:
                continue
            used.add((module, found.target))
            if (module, found.target) not in UNEXPLAINED:
                silent.append(f'{module}:{found.line} imports {found.target}')
    assert not silent, lines(silent)
    stale = [f'{a} imports {b}' for a, b in UNEXPLAINED.keys() - used]
    assert not stale, lines(['listed, but explained or no longer there:', *stale])


def test_files_are_small():
    """No file has more lines than the ceiling, but for those that say why."""
    places = ('tractor', 'tests', 'examples', 'bench', 'ai', '.ci')
    files = [path for place in places for path in (ROOT / place).rglob('*.py')]
    found = []
    for path in (*files, ROOT / 'noxfile.py'):
        name = path.relative_to(ROOT).as_posix()
        length = len(path.read_text(encoding='utf-8').splitlines())
        if length > (LINES_LONG if name in LONG else LINES):
            found.append(f'{name} has {length} lines')
    assert not found, lines(found)
    gone = [name for name in LONG if not (ROOT / name).is_file()]
    assert not gone, lines(['listed, but no longer there:', *gone])


def test_only_the_wire_layer_knows_its_serializer():
    """No module outside `tractor/msg/` imports it or its stand-in, even for types."""
    found = [
        f'{module}:{each.line}'
        for module, path in modules().items()
        for each in imports_of(path)
        if each.target.partition('.')[0] in ('msgpack', 'msgspec')
        if not module.startswith('msg/')
    ]
    assert not found, lines(found)


def test_low_layers_use_no_library():
    """Base and protocol need the standard library, the wire `msgspec` besides."""
    foreign = []
    for module, path in modules().items():
        place = rank(module)
        if place is None or place[0] not in LIBRARIES:
            continue
        for found in imports_of(path):
            top = found.target.partition('.')[0]
            own = top in ('tractor', '__future__') or top in sys.stdlib_module_names
            if own or found.for_types_only or found.inside_function:
                continue
            if top not in LIBRARIES[place[0]]:
                foreign.append(f'{module}:{found.line} imports {top}')
    assert not foreign, lines(foreign)


def test_rules_are_decided_without_clock_or_log():
    """Modules of `_protocol/` neither read a clock nor log."""
    found = [
        f'{module}:{each.line} imports {each.target}'
        for module, path in modules().items()
        if module.startswith('_protocol/')
        for each in imports_of(path)
        if each.target in NOT_IN_RULES
    ]
    assert not found, lines(found)


def is_table_statement(node: ast.stmt) -> bool:
    """Tell whether a statement belongs in an `__init__`: text, names and the table."""
    if isinstance(node, ast.ImportFrom):
        return node.module in ('__future__', 'typing', 'tractor._lazy', '_lazy')
    if isinstance(node, ast.Assign | ast.AnnAssign):
        calls = [each for each in ast.walk(node) if isinstance(each, ast.Call)]
        return all(
            ast.unparse(call.func) in ('lazy_exports',)
            or (isinstance(call.func, ast.Attribute) and not call.args)
            for call in calls
        )
    return is_for_types(node) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def test_every_init_is_a_table():
    """An `__init__` holds a docstring and its table of lazy names, nothing else."""
    other = [
        f'{module}:{node.lineno}'
        for module, path in modules().items()
        if is_lazy_package(module) or module == '__init__'
        for node in ast.parse(path.read_text(encoding='utf-8')).body
        if not is_table_statement(node)
    ]
    assert not other, lines(other)
    without = [
        module
        for module, path in modules().items()
        if ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) is None
    ]
    assert not without, lines(without)


@pytest.mark.parametrize('folder', ['tractor', 'tests'])
def test_nothing_depends_on_the_series(folder: str):
    """The code and its tests import nothing that describes or makes its changes."""
    found = [
        f'{path.relative_to(ROOT)}:{each.line} imports {each.target}'
        for path in sorted((ROOT / folder).rglob('*.py'))
        for each in imports_of(path)
        if each.target.partition('.')[0] in ('patches', 'ai')
    ]
    assert not found, lines(found)
