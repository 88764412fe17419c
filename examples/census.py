"""
Count a tree of Python source with a cluster of actors.

Walks a directory (by default the whole standard library of the running interpreter),
spreads its files over a cluster of actors, parses each with `ast` in an actor, and
prints lines, functions, classes and imports for each package, the ten longest
functions, the files that do not parse, and how much faster it was than one actor.

    python examples/census.py [--backend KEY] [--actors N] [--transport KEY] [PATH]

With more than one backend, as in `--backend trio,subint`, they count one after the
other, and a table compares them.

Streams have no back-pressure: a sender must not run ahead of its reader.  Each actor
therefore gets a window of files; every result that comes back pays for one more.

Ctrl-C prints what was counted so far, ends with status 130, and leaves no process.
"""

from __future__ import annotations

import os
import signal

# Nothing is counted yet: while all else is imported, Ctrl-C has nothing to print.
if __name__ == '__main__' and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import ast
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from heapq import nlargest
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import trio

import tractor
from tractor.spawn._spawn import try_set_start_method

WINDOW = 4  # files an actor holds at once
TOP = 10  # longest functions to show
SAMPLE = 5  # one actor is timed on one file in five
SAMPLE_ALL = 100  # up to this many files, on all of them
BAR_WIDTH = 32
FOREIGN = {'site-packages', 'dist-packages'}  # not the standard library's own
COUNTED = ('files', 'lines', 'functions', 'classes', 'imports')
LOOSE = '(modules)'  # files directly in the directory

type Source = tuple[str, int]  # path below the directory, size in bytes


# What an actor does.


def summarize(path: Path) -> dict[str, Any]:
    """
    Parse one file.

    Returns:
        The counts, and `longest` as `[lines, qualified name, first line]`; for a file
        that does not parse `error` says why and the other counts are zero.
    """
    counts: dict[str, Any] = dict.fromkeys(COUNTED, 0)
    counts.update(files=1, longest=[], error=None)
    try:
        source = path.read_bytes()
        counts['lines'] = len(source.splitlines())
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the style of other people's escapes
            tree = ast.parse(source)
    except SyntaxError as err:
        counts['error'] = f'{type(err).__name__}: {err.msg}, line {err.lineno}'
        return counts
    except (OSError, ValueError, RecursionError, MemoryError) as err:
        counts['error'] = f'{type(err).__name__}: {err}'
        return counts
    functions = []
    nodes: list[tuple[ast.AST, str]] = [(tree, '')]
    while nodes:  # not recursive: generated source can be deeper than the stack
        node, scope = nodes.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            counts['imports'] += 1
        elif isinstance(node, ast.ClassDef):
            counts['classes'] += 1
            scope = f'{scope}{node.name}.'
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            counts['functions'] += 1
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            functions.append([length, scope + node.name, node.lineno])
            scope = f'{scope}{node.name}.'
        nodes += [(child, scope) for child in ast.iter_child_nodes(node)]
    counts['longest'] = nlargest(TOP, functions)
    return counts


@tractor.context
async def parse_files(ctx: tractor.Context, directory: str) -> int:
    """Answer each path on the stream with its summary; return how many it were."""
    # A terminal sends Ctrl-C to every process; only the root shall decide what it
    # means, and cancel this actor.  Where signals are not for this thread, it cannot
    # be interrupted by one either.
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    await ctx.started()
    parsed = 0
    async with ctx.open_stream() as stream:
        async for name in stream:
            await stream.send({'name': name} | summarize(Path(directory, name)))
            parsed += 1
    return parsed


# What the root does.


class Census:
    """Everything counted so far; correct at any moment, also when interrupted."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sizes = dict(sources)
        self.total = sum(self.sizes.values())
        self.bytes = 0
        self.packages: dict[str, dict[str, int]] = {}
        self.longest: list[tuple[int, str]] = []
        self.broken: list[tuple[str, str]] = []

    def add(self, result: dict[str, Any]) -> None:
        """Take in the summary of one file."""
        name = result['name']
        self.bytes += self.sizes[name]
        package = name.split('/')[0] if '/' in name else LOOSE
        row = self.packages.setdefault(package, dict.fromkeys(COUNTED, 0))
        for key in COUNTED:
            row[key] += result[key]
        found = [
            (length, f'{function}  {name}:{line}')
            for length, function, line in result['longest']
        ]
        self.longest = nlargest(TOP, self.longest + found)
        if result['error'] is not None:
            self.broken.append((name, result['error']))

    def sums(self) -> dict[str, int]:
        """Return the counts over all packages."""
        rows = self.packages.values()
        return {key: sum(row[key] for row in rows) for key in COUNTED}

    def report(self) -> str:
        """Return all tables as text."""
        lines = ['package'.ljust(24) + ''.join(key.rjust(11) for key in COUNTED)]
        rows = sorted(self.packages.items(), key=lambda item: -item[1]['lines'])
        for name, row in [*rows, ('total', self.sums())]:
            cells = ''.join(f'{row[key]:11,}' for key in COUNTED)
            lines.append(name[:24].ljust(24) + cells)
        lines.append(f'\nthe {len(self.longest)} longest functions')
        lines += [f'{length:7,} lines  {where}' for length, where in self.longest]
        lines.append(f'\n{len(self.broken)} files do not parse')
        lines += [f'  {name}: {why}' for name, why in sorted(self.broken)]
        return '\n'.join(lines)


class Progress:
    """A bar redrawn in place on a terminal; elsewhere a line for each tenth."""

    def __init__(self, census: Census, title: str, out: TextIO) -> None:
        self.census, self.title, self.out = census, title, out
        self.live = out.isatty()
        self.shown = -1
        self.start = perf_counter()

    def show(self) -> None:
        """Draw the present state if it looks different from what is shown."""
        done = self.census.bytes / (self.census.total or 1)
        step = int(done * (100 if self.live else 10))
        if step == self.shown:
            return
        self.shown = step
        filled = int(done * BAR_WIDTH)
        files = self.census.sums()['files']
        text = (
            f'{self.title} [{"#" * filled}{"." * (BAR_WIDTH - filled)}] {done:4.0%}'
            f' {files} files, {perf_counter() - self.start:.1f} s'
        )
        self.out.write(f'\r{text}\x1b[K' if self.live else f'{text}\n')
        self.out.flush()

    def finish(self) -> None:
        """Leave the line of the bar."""
        if self.live and self.shown >= 0:
            self.out.write('\n')
            self.out.flush()


async def feed(
    portal: tractor.Portal,
    directory: str,
    work: Iterator[Source],
    census: Census,
    progress: Progress,
) -> None:
    """Keep one actor's window full until there is no more work, and count."""
    async with (
        portal.open_context(parse_files, directory=directory) as (ctx, _),
        ctx.open_stream() as stream,
    ):
        held = 0
        for name, _ in islice(work, WINDOW):
            await stream.send(name)
            held += 1
        while held:
            census.add(await stream.receive())
            held -= 1
            progress.show()
            for name, _ in islice(work, 1):
                await stream.send(name)
                held += 1


async def count(
    portals: Sequence[tractor.Portal], directory: str, census: Census, title: str
) -> float:
    """Count all files of `census` with these actors; return the seconds it took."""
    # The largest first: a big file at the end would keep one actor busy alone.
    work = iter(sorted(census.sizes.items(), key=lambda item: -item[1]))
    progress = Progress(census, title, sys.stderr)
    start = perf_counter()
    try:
        async with trio.open_nursery() as tn:
            for portal in portals:
                tn.start_soon(feed, portal, directory, work, census, progress)
    finally:
        progress.finish()
    return perf_counter() - start


class Timing:
    """
    How long one backend took.

    Attributes:
        started, counted: Seconds for the cluster to come up, and to count.
        speed: Bytes per second of all actors.
        single: The same of one of them alone; `None` if there was only one.
        lines: The same in words.
    """

    def __init__(self, backend: str, started: float, counted: float) -> None:
        self.backend, self.started, self.counted = backend, started, counted
        self.speed = 0.0
        self.single: float | None = None
        self.lines: list[str] = []

    def columns(self) -> list[str]:
        """Return its row of the table that compares backends."""
        gain = '-' if self.single is None else f'{self.speed / self.single:.2f}'
        return [
            self.backend,
            f'{self.started:.2f} s',
            f'{self.counted:.2f} s',
            f'{self.speed / 1e6:.2f} MB/s',
            gain,
        ]


def compare(timings: Sequence[Timing]) -> list[str]:
    """Return a table of several backends, and each one's ratio to the first."""
    head = ['backend', 'started in', 'counted in', 'together', 'speed-up']
    rows = [head, *(timing.columns() for timing in timings)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        '  '.join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    first, *others = timings
    return lines + [
        f'{other.backend} against {first.backend}: started in '
        f'{other.started / first.started:.2f} x the time, counted in '
        f'{other.counted / first.counted:.2f} x the time'
        for other in others
    ]


async def take(
    args: Any, backend: str, directory: str, census: Census, registry: Any
) -> Timing:
    """Boot the cluster and count; return how long that took."""
    begin = perf_counter()
    async with tractor.open_actor_cluster(
        modules=[__name__],
        count=args.actors,
        start_method=backend,
        enable_transports=[args.transport],
        registry_addrs=[registry],
    ) as cluster:
        portals = list(cluster.values())
        booted = perf_counter() - begin
        seconds = await count(portals, directory, census, 'counting')
        timing = Timing(backend, booted, seconds)
        timing.speed = speed = census.bytes / seconds
        timing.lines.append(
            f'{args.actors} actors ({backend}, {args.transport}): started in '
            f'{booted:.2f} s, counted in {seconds:.2f} s, {speed / 1e6:.2f} MB/s'
        )
        if args.actors > 1:
            files = sorted(census.sizes.items(), key=lambda item: item[1])
            part = files if len(files) <= SAMPLE_ALL else files[::SAMPLE]
            sample = Census(part)
            single = sample.total / await count(
                portals[:1], directory, sample, 'one actor'
            )
            timing.single = single
            share = (
                f'all {len(part)} files'
                if part is files
                else (f'a sample of {len(part)} files, every {SAMPLE}th by size')
            )
            timing.lines.append(
                f'one of these actors alone, timed on {share}: {single / 1e6:.2f} '
                f'MB/s; speed-up {speed / single:.2f}'
            )
    return timing


def sources_of(directory: Path, own_only: bool) -> list[Source]:
    """Return the Python files below `directory`, without foreign ones if `own_only`."""
    found = []
    for folder, folders, files in os.walk(directory):
        if own_only:
            folders[:] = [name for name in folders if name not in FOREIGN]
        for file in files:
            path = Path(folder, file)
            if path.suffix == '.py' and path.is_file():
                name = path.relative_to(directory).as_posix()
                found.append((name, path.stat().st_size))
    return found


def private_registry(transport: str, directory: str) -> tuple[str, str | int]:
    """Return an address at which no other program keeps its registry."""
    if transport == 'uds':
        return directory, 'registry.sock'
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        host, port = free.getsockname()
    return host, port


def is_interrupt(err: BaseException) -> bool:
    """
    Tell whether `err` is a Ctrl-C.

    It comes in a group when actors that were just starting got it as well.
    """
    if isinstance(err, BaseExceptionGroup):
        return err.subgroup(KeyboardInterrupt) is not None
    return isinstance(err, KeyboardInterrupt)


def main() -> int:
    """Run the census; return the exit status."""
    # Children import this module; they need no command line.
    import argparse
    import sysconfig

    parser = argparse.ArgumentParser(description='Count a tree of Python source.')
    parser.add_argument('path', nargs='?', metavar='PATH', help='default: the stdlib')
    parser.add_argument(
        '--backend', action='append', metavar='KEY', help='trio; more with commas'
    )
    parser.add_argument('--actors', type=int, default=os.cpu_count() or 1, metavar='N')
    parser.add_argument('--transport', choices=['tcp', 'uds'], default='uds')
    args = parser.parse_args()
    if args.actors < 1:
        parser.error('--actors must be at least 1')
    directory = Path(args.path or sysconfig.get_path('stdlib'))
    if not directory.is_dir():
        parser.error(f'not a directory: {directory}')
    backends = ','.join(args.backend or ['trio']).split(',')
    for backend in backends:
        try:
            try_set_start_method(backend)
        except (ValueError, RuntimeError) as err:
            parser.error(f'--backend {backend}: {err}')

    census = Census(())
    timings = []
    closing = ['interrupted: this is what was counted so far']
    status = 130
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        sources = sources_of(directory, own_only=args.path is None)
        if not sources:
            parser.error(f'no Python files below {directory}')
        print(f'{len(sources)} files below {directory}', flush=True)
        for backend in backends:
            census = Census(sources)
            with tempfile.TemporaryDirectory(prefix='census') as scratch:
                registry = private_registry(args.transport, scratch)
                timings.append(
                    trio.run(take, args, backend, str(directory), census, registry)
                )
        closing = compare(timings) if len(timings) > 1 else []
        status = 0
    except BaseException as err:
        if not is_interrupt(err):
            raise
    print(f'\n{census.report()}\n')
    for timing in timings:
        print('\n'.join(timing.lines))
    print('\n'.join(closing), end='\n' if closing else '')
    return status


if __name__ == '__main__':
    sys.exit(main())
