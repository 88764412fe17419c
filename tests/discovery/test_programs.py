"""What several programs that share registries do to each other."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._testing import repodir
from tractor._testing.addr import get_rando_addr
from tractor.discovery import _api

DEADLINE: Final = 30.0


@pytest.fixture(params=['tcp', 'uds'])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def other_program(*registries: Any) -> AsyncIterator[trio.Process]:
    """Run a root actor at these registries; it ends with its standard input."""
    script = f"""
        import sys, trio, tractor
        async def main():
            async with tractor.open_root_actor(
                name='other',
                registry_addrs={list(registries)!r},
                enable_transports=['tcp', 'uds'],
            ):
                print('up', end='', flush=True)
                await trio.lowlevel.wait_readable(sys.stdin.fileno())
        trio.run(main)
    """
    program = await trio.lowlevel.open_process(
        [sys.executable, '-c', textwrap.dedent(script)],
        cwd=repodir(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert program.stdin is not None
        assert program.stdout is not None
        async with program.stdin, program.stdout:
            assert await program.stdout.receive_some() == b'up'
            yield program
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(DEADLINE):
            await program.wait()
        if program.returncode is None:
            program.kill()
            await program.wait()


@pytest.fixture
def probes_then(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Have something happen once, between the probes of an election and its result."""
    real = _api._probe_registry_addrs

    def arm(happens: Any) -> None:
        async def probe(addrs: Any) -> Any:
            found = await real(addrs)
            monkeypatch.setattr(_api, '_probe_registry_addrs', real)
            await happens()
            return found

        monkeypatch.setattr(_api, '_probe_registry_addrs', probe)

    return arm


@pytest.mark.parametrize('count', [1, 2])
def test_the_slower_of_two_programs_joins(transport, probes_then, count):
    """Both found nobody; whoever cannot bind then asks again."""
    registries = [get_rando_addr(transport) for _ in range(count)]

    async def main():
        with trio.fail_after(DEADLINE):
            async with trio.open_nursery() as tn:
                leave = trio.Event()

                async def run_other(task_status):
                    async with other_program(*reversed(registries)):
                        task_status.started()
                        await leave.wait()

                async def start_other():
                    await tn.start(run_other)

                probes_then(start_other)
                async with tractor.open_root_actor(
                    registry_addrs=registries, enable_transports=[transport]
                ) as root:
                    assert not root.is_registrar
                    async with tractor.find_actor('other') as portal:
                        assert portal is not None
                        assert portal.chan.aid.is_registrar
                leave.set()

    trio.run(main)


def test_an_address_that_nobody_gives_up(transport):
    """What is taken by other than a registrar is told after some attempts."""
    registry, taken = get_rando_addr('tcp'), get_rando_addr(transport)

    async def main():
        with trio.fail_after(DEADLINE):
            async with other_program(taken):
                async with tractor.open_root_actor(
                    registry_addrs=[registry],
                    tpt_bind_addrs=[taken],
                    enable_transports=['tcp', 'uds'],
                ):
                    pass

    with pytest.raises(OSError, match='already in use'):
        trio.run(main)


def test_a_tree_outlives_the_registrar_it_joined(transport):
    """Children are started without it, and known to its successor."""
    registry = get_rando_addr(transport)

    async def main():
        with trio.fail_after(DEADLINE):
            async with AsyncExitStack() as others:
                await others.enter_async_context(other_program(registry))
                async with tractor.open_nursery(
                    registry_addrs=[registry], enable_transports=[transport]
                ) as an:
                    await an.start_actor('before')
                    async with tractor.wait_for_actor('before'):
                        await others.aclose()
                    await an.start_actor('after')
                    async with (
                        other_program(registry),
                        tractor.wait_for_actor('before'),
                        tractor.wait_for_actor('after'),
                    ):
                        await an.cancel()

    trio.run(main)
