"""A nursery that opens its own root actor."""

from __future__ import annotations

import contextlib
import logging

import pytest
import trio

import tractor
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
