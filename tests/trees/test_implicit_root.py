"""A nursery that opens its own root actor."""

from __future__ import annotations

import contextlib
import logging

import pytest
import trio

import tractor
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
