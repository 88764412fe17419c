"""
Compare the runtime with the limit: both sides, ratio, budget, verdict.

    python bench/run.py [--quick] [--json FILE]

Runs of `raw.py` and of `runtime.py` alternate, so that a change of the machine's mood
hits both; each figure is the median over the rounds.  A ratio is always runtime over
limit; a budget is its upper bound for times, its lower bound for rates.  Exit status 1
if a budget is missed, 2 if a part could not be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

HERE = Path(__file__).resolve().parent
ROUNDS = 3
PART_TIMEOUT = 60  # seconds

# What one round runs, in this order: script arguments and where the result goes.
PLAN: list[tuple[str, list[str]]] = [
    ('raw', ['raw.py']),
    ('uds', ['runtime.py', 'messages', 'uds']),
    ('spawn', ['runtime.py', 'spawn', 'uds']),
    ('raw', ['raw.py']),
    ('tcp', ['runtime.py', 'messages', 'tcp']),
    ('forkserver', ['runtime.py', 'forkserver', 'uds']),
    ('import', ['runtime.py', 'import', '-']),
]


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
    Row('stream echo round trip, uds', 'uds.stream_echo', 'raw.rtt', most=1.6),
    Row('  over tcp', 'tcp.stream_echo', 'raw.rtt'),
    Row('context open, started, result, uds', 'uds.context', 'raw.rtt', most=4.0),
    Row('  over tcp', 'tcp.context', 'raw.rtt'),
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


def unit_of(figure: str) -> str:
    """Return the unit in which a figure is shown."""
    if figure.endswith('oneway_32'):
        return 'msg/s'
    return 'MB/s' if figure.endswith('oneway_1m') else 'us'


def shown(value: float | None, unit: str) -> str:
    """Return a figure as text; times grow to milliseconds where it helps."""
    if value is None:
        return '-'
    if unit == 'msg/s':
        return f'{value:,.0f} msg/s'
    if unit == 'MB/s':
        return f'{value / 1e6:,.0f} MB/s'
    return f'{value * 1e6:,.1f} us' if value < 1e-3 else f'{value * 1e3:,.1f} ms'


def run_part(command: list[str], quick: bool) -> dict[str, float]:
    """
    Run one script of this directory with bytecode on disk; return its figures.

    Raises:
        RuntimeError: It failed or exceeded `PART_TIMEOUT`.
    """
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
            timeout=PART_TIMEOUT,
        )
    except subprocess.TimeoutExpired as err:
        raise RuntimeError(f'no result within {PART_TIMEOUT} s') from err
    if done.returncode:
        tail = '\n'.join(done.stderr.splitlines()[-12:])
        raise RuntimeError(f'exit status {done.returncode}\n{tail}')
    results: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return results


def collect(rounds: int, quick: bool) -> tuple[dict[str, float], dict[str, str]]:
    """Run the plan; return the median of each figure, and failures by part."""
    samples: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    for number in range(rounds):
        for part, command in PLAN:
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


def main() -> int:
    """Measure, print the table, and tell by the exit status how it went."""
    parser = argparse.ArgumentParser(description='Compare the runtime with the limit.')
    parser.add_argument('--quick', action='store_true', help='one short round')
    parser.add_argument('--json', metavar='FILE', help='write the figures there too')
    args = parser.parse_args()
    start = perf_counter()
    load = os.getloadavg()[0]
    figures, failures = collect(1 if args.quick else ROUNDS, args.quick)
    rows = [row.judge(figures) for row in ROWS]
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
        Path(args.json).write_text(json.dumps(report, indent=2) + '\n')
    if failures:
        return 2
    return 1 if any(row['verdict'] == 'MISSED' for row in rows) else 0


if __name__ == '__main__':
    sys.exit(main())
