"""
What `/proc` says about other processes.

Every function answers for a process that may end at any moment: a vanished or
unreadable process gives an empty answer, never an error, and so does a platform without
`/proc`.  Used by the reaping helpers and the hang snapshots.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Final

PROC: Final = Path('/proc')


def read_bytes(pid: int, name: str) -> bytes:
    """Return the content of `/proc/<pid>/<name>`, empty if there is none."""
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b''


def read_text(pid: int, name: str) -> str:
    """Return the text of `/proc/<pid>/<name>`, empty if there is none."""
    return read_bytes(pid, name).decode(errors='replace')


def read_link(pid: int, name: str) -> str:
    """Return where the link `/proc/<pid>/<name>` leads, empty if there is none."""
    try:
        return os.readlink(PROC / str(pid) / name)
    except OSError:
        return ''


def list_names(pid: int, name: str) -> list[str]:
    """Return the entries of the directory `/proc/<pid>/<name>`, in numeric order."""
    try:
        return sorted(os.listdir(PROC / str(pid) / name), key=lambda s: (len(s), s))
    except OSError:
        return []


def stat_fields(pid: int) -> list[str]:
    """Return the fields of `/proc/<pid>/stat` behind the name: state, ppid, ..."""
    # The task name may hold blanks and parentheses; the last one closes it.
    return read_text(pid, 'stat').rpartition(')')[2].split()


def state(pid: int) -> str:
    """Return the one-letter state, `'Z'` for a zombie, `''` for no such process."""
    fields = stat_fields(pid)
    return fields[0] if fields else ''


def ppid(pid: int) -> int | None:
    """Return the parent's pid."""
    fields = stat_fields(pid)
    return int(fields[1]) if len(fields) > 1 else None


def started_at(pid: int) -> int | None:
    """Return the start in clock ticks; with the pid it names one process forever."""
    fields = stat_fields(pid)
    return int(fields[19]) if len(fields) > 19 else None


def owner(pid: int) -> int | None:
    """Return the uid of the user the process belongs to."""
    try:
        return (PROC / str(pid)).stat().st_uid
    except OSError:
        return None


def all_pids() -> list[int]:
    """Return every visible pid in ascending order; empty without `/proc`."""
    try:
        return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())
    except OSError:
        return []


def children_by_parent() -> dict[int, list[int]]:
    """Return every parent's direct children, zombies included."""
    table: dict[int, list[int]] = defaultdict(list)
    for pid in all_pids():
        parent = ppid(pid)
        if parent is not None:
            table[parent].append(pid)
    return table


def subtree(roots: list[int]) -> list[int]:
    """Return the roots and all their descendants, each once, parents first."""
    table = children_by_parent()
    found: dict[int, None] = {}
    pending = list(roots)
    while pending:
        pid = pending.pop(0)
        if pid not in found:
            found[pid] = None
            pending.extend(table.get(pid, ()))
    return list(found)
