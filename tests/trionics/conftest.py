"""What the tests of contexts share: a context that records, and nurseries around."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from tractor.trionics import _mngrs, collapse_eg


def run(main, *args):
    """Run an async test under a deadline, and see to it that nothing is left open."""

    async def bounded():
        with trio.fail_after(5):
            return await main(*args)

    try:
        return trio.run(bounded)
    finally:
        assert _mngrs._slots == {}


class Recorder:
    """A context function that records what happens, with faults on demand."""

    def __init__(self, **faults) -> None:
        self.events: list[str] = []
        self.entry_error: BaseException | None = faults.get('entry_error')
        self.exit_error: BaseException | None = faults.get('exit_error')
        self.entry_gate: trio.Event | None = faults.get('entry_gate')
        self.exit_gate: trio.Event | None = faults.get('exit_gate')

    @asynccontextmanager
    async def __call__(self, value: object = 1, **_) -> AsyncGenerator[object]:
        if self.entry_gate is not None:
            await self.entry_gate.wait()
        if self.entry_error is not None:
            raise self.entry_error
        self.events.append('enter')
        try:
            yield value
        finally:
            if self.exit_gate is not None:
                with trio.CancelScope(shield=True):
                    await self.exit_gate.wait()
            self.events.append('exit')
            if self.exit_error is not None:
                raise self.exit_error


@asynccontextmanager
async def services():
    """A nursery of which tests run their users as grandchildren."""
    async with collapse_eg(), trio.open_nursery() as tn:
        yield tn
        tn.cancel_scope.cancel()


async def in_task(async_fn, *args):
    """Run `async_fn` in a child task of its own, so that outer nurseries enclose it."""
    results = []

    async def child():
        results.append(await async_fn(*args))

    async with collapse_eg(add_notes=False), trio.open_nursery() as tn:
        tn.start_soon(child)
    return results[0]


@pytest.fixture
def kit() -> SimpleNamespace:
    """`run()`, `Recorder`, `services()` and `in_task()`."""
    return SimpleNamespace(
        run=run, Recorder=Recorder, services=services, in_task=in_task
    )
