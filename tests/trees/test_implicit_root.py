"""A nursery that opens its own root actor."""

from __future__ import annotations

import contextlib
import logging

import pytest
import trio

import tractor
from tractor._exceptions import RuntimeFailure
from tractor._testing.addr import get_rando_addr
from tractor.discovery import _api
from tractor.runtime._supervise import _shutdown_msg


@pytest.mark.parametrize('error', [None, ValueError('of the body')])
def test_the_end_of_the_runtime_is_the_last_record(caplog, reg_addr, error):
    """Also if the block raises."""

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr], loglevel='info'):
                if error is not None:
                    raise error

    with caplog.at_level(logging.INFO, logger='tractor'):
        with contextlib.suppress(ValueError):
            trio.run(main)
    assert _shutdown_msg in caplog.records[-1].getMessage()


@pytest.mark.parametrize('ensure_registry', [False, True])
def test_what_a_root_chose_ends_with_it(monkeypatch, ensure_registry):
    """The next root in the process starts afresh, also after one that failed."""

    async def somebody_answers(addrs):
        return [(addr, 'registrar' if ensure_registry else 'absent') for addr in addrs]

    monkeypatch.setattr(_api, '_probe_registry_addrs', somebody_answers)
    before = tractor.get_runtime_vars()

    async def main():
        async with tractor.open_root_actor(
            registry_addrs=[get_rando_addr('tcp'), get_rando_addr('uds')],
            enable_transports=['tcp', 'uds'],
            ensure_registry=ensure_registry,
        ):
            assert tractor.get_runtime_vars()['_enable_tpts'] == ['tcp', 'uds']
            assert tractor.is_root_process()

    refused = pytest.raises(RuntimeError, match='already bound')
    with refused if ensure_registry else contextlib.nullcontext():
        trio.run(main)
    after = tractor.get_runtime_vars()
    for name in ('_enable_tpts', '_is_root', '_registry_addrs', '_root_addrs'):
        assert after[name] == before[name]


def test_two_that_open_one_at_once_share_it(reg_addr):
    """The second waits until the root is up; no process has two."""

    async def main():
        found = []
        both = trio.Event()

        async def open_one(name):
            async with tractor.open_nursery(registry_addrs=[reg_addr], name=name) as an:
                portal = await an.start_actor(f'child_of_{name}')
                assert portal.chan.connected()
                found.append((an._actor, an._implicit_runtime_started))
                if len(found) == 2:
                    both.set()
                await both.wait()
                await an.cancel()

        with trio.fail_after(10):
            async with trio.open_nursery() as tn:
                tn.start_soon(open_one, 'one')
                tn.start_soon(open_one, 'two')
        (first, _), (second, _) = found
        assert first is second
        assert sorted(booted for _, booted in found) == [False, True]

    trio.run(main)


def test_second_takes_over_when_the_first_cannot_boot(reg_addr):
    """What was wrong with the first is no affair of the second."""

    async def main():
        async def fail(*, task_status):
            task_status.started()
            with pytest.raises(ValueError, match='no GIL mode'):
                async with tractor.open_nursery(subint_gil='none'):
                    raise AssertionError('it was opened')

        with trio.fail_after(10):
            async with trio.open_nursery() as tn:
                await tn.start(fail)
                async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                    assert an._implicit_runtime_started

    trio.run(main)


def test_explicit_root_is_refused_while_one_comes_up(reg_addr):
    """As it is afterwards."""

    async def main():
        async def open_explicitly():
            async with tractor.open_root_actor(registry_addrs=[reg_addr]):
                raise AssertionError('it was opened')

        async def open_first(*, task_status):
            task_status.started()
            async with tractor.open_nursery(registry_addrs=[reg_addr]):
                pass

        with trio.fail_after(10):
            async with trio.open_nursery() as tn:
                await tn.start(open_first)
                with pytest.raises(
                    RuntimeFailure, match='A current actor already exists'
                ):
                    await open_explicitly()

    trio.run(main)


def test_another_event_loop_has_no_part_in_it(reg_addr):
    """One process, one actor: a thread cannot use it, nor open one of its own."""

    async def open_implicitly():
        async with tractor.open_nursery(registry_addrs=[reg_addr]):
            raise AssertionError('it was opened')

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr]):
                for _ in range(2):
                    with pytest.raises(RuntimeFailure, match='in another event loop'):
                        await trio.to_thread.run_sync(trio.run, open_implicitly)

    trio.run(main)


FORKING = """
import os
import signal

async def inside():
    here = os.path.dirname(__file__)
    async with tractor.open_nursery(
        enable_transports=['uds'], registry_addrs=[(here, 'r.sock')]
    ) as an:
        assert an._implicit_runtime_started
        assert an._actor.pid == os.getpid()
        await an.start_actor('child')
        await an.cancel()

def run_inside():
    trio._core._run.GLOBAL_RUN_CONTEXT.__dict__.clear()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trio.run(inside)

async def main():
    async with tractor.open_nursery(registry_addrs=[REG_ADDR]) as an:
        await an.start_actor('child')
        forked = os.fork()
        if not forked:
            signal.alarm(20)
            try:
                run_inside()
                os._exit(0)
            finally:
                os._exit(1)
        status = await trio.to_thread.run_sync(os.waitpid, forked, 0)
        await an.cancel()
    print(status[1])

if __name__ == '__main__':
    trio.run(main)
"""


@pytest.mark.skipon_spawn_backend(
    'mp_forkserver', reason='the standard library asks the parent for its server'
)
@pytest.mark.skipon_spawn_backend('subint', reason='it forbids to fork')
def test_forked_process_has_no_actor(run_program):
    """It may open a root of its own, as any other process."""
    done = run_program(FORKING)
    assert done.stdout == '0\n', done.stdout + done.stderr
