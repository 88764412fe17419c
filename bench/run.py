"""
Compare the runtime with the limit: both sides, ratio, budget, verdict.

    python bench/run.py [--quick] [--json FILE] [--rows KEY]

Runs of `raw.py` and of `runtime.py` alternate, so that a change of the machine's mood
hits both; each figure is the median over the rounds.  A ratio is always runtime over
limit; a budget is its upper bound for times, its lower bound for rates.  Exit status 1
if a budget is missed, 2 if a part could not be measured.

On Python 3.14 the rows of `subint.py` follow: sub-interpreters, whose limit is what the
same costs with processes.  `--rows base` or `--rows subint` leaves the others out; the
latter puts `-subint` into the name of FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

HERE = Path(__file__).resolve().parent
ROUNDS = 3
PART_TIMEOUT = 60  # seconds
STOP_TIMEOUT = 180  # seconds; 50 actors are started and stopped one by one
SUBINT_PYTHON = (3, 14)  # the first one that has what the backend needs

# What one round runs, in this order: script arguments and where the result goes.
PLAN: list[tuple[str, list[str]]] = [
    ('raw', ['raw.py']),
    ('uds', ['runtime.py', 'messages', 'uds']),
    ('spawn', ['runtime.py', 'spawn', 'uds']),
    ('raw_one_core', ['raw.py', '--one-core']),
    ('uds_one_core', ['runtime.py', 'messages_one_core', 'uds']),
    ('raw', ['raw.py']),
    ('tcp', ['runtime.py', 'messages', 'tcp']),
    ('forkserver', ['runtime.py', 'forkserver', 'uds']),
    ('import', ['runtime.py', 'import', '-']),
]
SUBINT_PLAN: list[tuple[str, list[str]]] = [
    ('cpu', ['subint.py', 'cpu']),
    ('one_core', ['subint.py', 'messages_one_core']),
    ('messages', ['subint.py', 'messages']),
    ('memory', ['subint.py', 'memory_subint']),
    ('lateness', ['subint.py', 'lateness']),
    ('start', ['subint.py', 'start']),
    ('memory', ['subint.py', 'memory_trio']),
]
# What is so many repetitions by itself that one run is enough.
SUBINT_ONCE: list[tuple[str, list[str]]] = [('stop', ['subint.py', 'stop'])]


class Row:
    """One line of the table: two figures, their ratio and what it may be."""

    def __init__(
        self,
        title: str,
        ours: str,
        limit: str,
        *,
        most: float | None = None,
        least: float | None = None,
    ) -> None:
        self.title, self.ours, self.limit = title, ours, limit
        self.most, self.least = most, least

    def judge(self, figures: dict[str, float]) -> dict[str, Any]:
        """Return the row as data; the verdict is `None` without a budget."""
        ours, limit = figures.get(self.ours), figures.get(self.limit)
        ratio = ours / limit if ours is not None and limit else None
        verdict: str | None = None
        if ratio is None:
            verdict = 'not measured'
        elif self.most is not None:
            verdict = 'ok' if ratio <= self.most else 'MISSED'
        elif self.least is not None:
            verdict = 'ok' if ratio >= self.least else 'MISSED'
        return {
            'measure': self.title,
            'unit': unit_of(self.limit),
            'runtime': ours,
            'limit': limit,
            'ratio': ratio,
            'budget': self.budget(),
            'verdict': verdict,
        }

    def budget(self) -> str:
        """Return the bound as text, empty for a row that is only reported."""
        if self.most is not None:
            return f'<= {self.most:g}'
        return f'>= {self.least:g}' if self.least is not None else ''


ROWS = [
    Row('Portal.run() round trip, uds', 'uds.run', 'raw.rtt', most=2.0),
    Row('  over tcp', 'tcp.run', 'raw.rtt'),
    Row('  both on one core', 'uds_one_core.run', 'raw_one_core.rtt'),
    Row('stream echo round trip, uds', 'uds.stream_echo', 'raw.rtt', most=1.6),
    Row('  over tcp', 'tcp.stream_echo', 'raw.rtt'),
    Row('  both on one core', 'uds_one_core.stream_echo', 'raw_one_core.rtt'),
    Row('context open, started, result, uds', 'uds.context', 'raw.rtt', most=4.0),
    Row('  over tcp', 'tcp.context', 'raw.rtt'),
    Row('  both on one core', 'uds_one_core.context', 'raw_one_core.rtt'),
    Row('one-way 32 B, uds', 'uds.oneway_32', 'raw.oneway_32', least=1.0),
    Row('  over tcp', 'tcp.oneway_32', 'raw.oneway_32'),
    Row('one-way 1 MiB, uds', 'uds.oneway_1m', 'raw.oneway_1m', least=0.5),
    Row('  over tcp', 'tcp.oneway_1m', 'raw.oneway_1m'),
    Row(
        "start_actor(), 'trio' : python -c 'import trio'",
        'spawn.start_actor',
        'raw.import_trio',
        most=1.35,
    ),
    Row(
        "start_actor(), warm 'mp_forkserver' : 'trio'",
        'forkserver.start_forkserver',
        'spawn.start_actor',
        most=0.1,
    ),
    Row(
        'import tractor : import trio',
        'import.import_of_tractor',
        'import.import_of_trio',
        most=0.35,
    ),
    Row(
        '  with all that a root loads at first use',
        'import.import_of_use',
        'import.import_of_trio',
    ),
    Row(
        'cancel and reap 16 idle children : one',
        'spawn.reap_flock',
        'spawn.reap_one',
        most=6.0,
    ),
    Row(
        '  the same of bare processes that imported trio',
        'raw.exit_flock',
        'raw.exit_one',
    ),
]

SUBINT_ROWS = [
    Row(
        'CPU-bound: two own-GIL actors : one',
        'cpu.subint_two_rate',
        'cpu.subint_one_rate',
        least=1.8,
    ),
    Row('  two processes : one', 'cpu.trio_two_rate', 'cpu.trio_one_rate'),
    Row(
        '  two own-GIL actors : two processes',
        'cpu.subint_two_rate',
        'cpu.trio_two_rate',
        least=0.95,
    ),
    Row(
        "parent's lateness, p99, actor busy : idle",
        'lateness.busy',
        'lateness.idle',
        most=2.0,
    ),
    Row(
        "Portal.run() round trip, 'subint' : 'trio' over uds, one core",
        'one_core.subint_run',
        'one_core.trio_run',
        most=1.1,
    ),
    Row(
        '  where the scheduler chooses the cores',
        'messages.subint_run',
        'messages.trio_run',
    ),
    Row(
        'stream echo round trip, the same, one core',
        'one_core.subint_stream',
        'one_core.trio_stream',
        most=1.1,
    ),
    Row(
        '  where the scheduler chooses the cores',
        'messages.subint_stream',
        'messages.trio_stream',
    ),
    Row("start_actor(), 'subint' : 'trio'", 'start.subint', 'start.trio', most=1.2),
    Row('  of which creating the interpreter', 'start.create', 'start.subint'),
    Row('  importing trio in it', 'start.import_trio', 'start.subint'),
    Row('  importing what an actor runs', 'start.import_tractor', 'start.subint'),
    Row('  importing what it serves', 'start.import_modules', 'start.subint'),
    Row('  the rest: booting and connecting', 'start.rest', 'start.subint'),
    Row('  (destroying it afterwards)', 'start.destroy', 'start.subint'),
    Row(
        "memory of one of 16 actors, 'subint' : 'trio'",
        'memory.subint_bytes',
        'memory.trio_bytes',
        most=0.75,
    ),
    Row(
        'actors that spin: stopped in time : all',
        'stop.stopped',
        'stop.spinning',
        least=1.0,
    ),
    Row('  the slowest : grace + 0.5 s', 'stop.worst', 'stop.limit', most=1.0),
]

# Figures whose names end so are no times.
UNITS = {
    'oneway_32': 'msg/s',
    'oneway_1m': 'MB/s',
    '_rate': 'shares/s',
    '_bytes': 'MB',
    'spinning': 'actors',
}


def unit_of(figure: str) -> str:
    """Return the unit in which a figure is shown."""
    return next((unit for end, unit in UNITS.items() if figure.endswith(end)), 'us')


def shown(value: float | None, unit: str) -> str:
    """Return a figure as text; times grow to milliseconds where it helps."""
    if value is None:
        return '-'
    if unit in ('msg/s', 'actors'):
        return f'{value:,.0f} {unit}'
    if unit == 'MB/s':
        return f'{value / 1e6:,.0f} MB/s'
    if unit in ('shares/s', 'MB'):
        return f'{value / (1e6 if unit == "MB" else 1):,.1f} {unit}'
    return f'{value * 1e6:,.1f} us' if value < 1e-3 else f'{value * 1e3:,.1f} ms'


def run_part(command: list[str], quick: bool) -> dict[str, float]:
    """
    Run one script of this directory with bytecode on disk; return its figures.

    Raises:
        RuntimeError: It failed or exceeded its time.
    """
    seconds = STOP_TIMEOUT if 'stop' in command else PART_TIMEOUT
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONDONTWRITEBYTECODE'}
    env['PYTHONPATH'] = os.pathsep.join(
        filter(None, [str(HERE.parent), env.get('PYTHONPATH')])
    )
    script, *args = command
    if quick:
        args.append('--quick' if script == 'raw.py' else 'quick')
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / script), *args],
            env=env,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as err:
        raise RuntimeError(f'no result within {seconds} s') from err
    if done.returncode:
        tail = '\n'.join(done.stderr.splitlines()[-12:])
        raise RuntimeError(f'exit status {done.returncode}\n{tail}')
    results: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return results


def collect(
    rounds: int, quick: bool, chosen: Collection[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """
    Run the plans of the chosen rows.

    Returns:
        The median of each figure, and failures by part.
    """
    samples: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    plan = PLAN * ('base' in chosen) + SUBINT_PLAN * ('subint' in chosen)
    for number in range(rounds):
        once = SUBINT_ONCE * ('subint' in chosen and not number)
        for part, command in plan + once:
            if part in failures:
                continue
            print(f'round {number + 1}/{rounds}: {" ".join(command)}', file=sys.stderr)
            try:
                results = run_part(command, quick)
            except RuntimeError as err:
                failures[part] = f'{" ".join(command)}: {err}'
                continue
            for name, value in results.items():
                samples.setdefault(f'{part}.{name}', []).append(value)
    return {name: median(values) for name, values in samples.items()}, failures


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text."""
    head = ['measure', 'runtime', 'limit', 'ratio', 'budget', 'verdict']
    lines = [head]
    for row in rows:
        ratio = row['ratio']
        lines.append(
            [
                row['measure'],
                shown(row['runtime'], row['unit']),
                shown(row['limit'], row['unit']),
                '-' if ratio is None else f'{ratio:.2f}',
                row['budget'],
                row['verdict'] or '',
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ['-' * width for width in widths])
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if i in (0, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def choose(wanted: str) -> list[str]:
    """Return which rows to measure; say it if this interpreter cannot do them all."""
    chosen = ['base', 'subint'] if wanted == 'all' else [wanted]
    if 'subint' in chosen and sys.version_info < SUBINT_PYTHON:
        print(
            'the rows of sub-interpreters are left out: they need Python '
            f'{".".join(map(str, SUBINT_PYTHON))}, this is {platform.python_version()}'
        )
        chosen.remove('subint')
    return chosen


def main() -> int:
    """Measure, print the table, and tell by the exit status how it went."""
    parser = argparse.ArgumentParser(description='Compare the runtime with the limit.')
    parser.add_argument('--quick', action='store_true', help='one short round')
    parser.add_argument('--json', metavar='FILE', help='write the figures there too')
    parser.add_argument('--rows', choices=['all', 'base', 'subint'], default='all')
    args = parser.parse_args()
    start = perf_counter()
    load = os.getloadavg()[0]
    chosen = choose(args.rows)
    figures, failures = collect(1 if args.quick else ROUNDS, args.quick, chosen)
    wanted = ROWS * ('base' in chosen) + SUBINT_ROWS * ('subint' in chosen)
    rows = [row.judge(figures) for row in wanted]
    print(table(rows))
    print(
        f'\npython {platform.python_version()}, {os.cpu_count()} cpus, load {load:.1f} '
        f'before, {perf_counter() - start:.0f} s; the limit is bench/raw.py unless the '
        'row names another'
    )
    if load > 1:
        print('the machine was busy with something else: these figures mean little')
    for failure in failures.values():
        print(f'\nnot measured: {failure}', file=sys.stderr)
    if args.json:
        report = {
            'python': platform.python_version(),
            'cpus': os.cpu_count(),
            'load_before': load,
            'quick': args.quick,
            'rows': rows,
            'figures': figures,
            'failures': failures,
        }
        path = Path(args.json)
        if args.rows == 'subint':  # `./noxw -s bench` asks for both, with one name
            path = path.with_stem(f'{path.stem}-subint')
        path.write_text(json.dumps(report, indent=2) + '\n')
    if failures:
        return 2
    return 1 if any(row['verdict'] == 'MISSED' for row in rows) else 0


if __name__ == '__main__':
    sys.exit(main())
