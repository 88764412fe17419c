"""Payload decoders: which one a context has, and for how long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from tractor.msg import NamespacePath, _ops
from tractor.msg._codec import mk_codec, unpack_spec_types
from tractor.msg._ops import PldRx, maybe_limit_plds

NSP = NamespacePath('builtins:len')
CODEC = mk_codec(enc_hook=str, ext_types=[NamespacePath])


@pytest.fixture
def ctx(monkeypatch):
    """A context, which is the current one."""
    ctx = SimpleNamespace(cid='c1', _pld_rx=PldRx())
    monkeypatch.setattr(_ops, 'current_ipc_ctx', lambda: ctx)
    return ctx


def hook(kind, value):
    return kind(value)


@pytest.mark.parametrize(
    ('args', 'kwargs', 'pld', 'types'),
    [
        ((int,), {}, 5, {int}),
        ((NamespacePath, hook), {}, NSP, {NamespacePath}),
        ((NamespacePath, hook), {'ext_types': [NamespacePath]}, NSP, {NamespacePath}),
        ((None, hook), {'ext_types': [NamespacePath]}, NSP, {NamespacePath}),
    ],
)
def test_a_limit_for_a_block(ctx, args, kwargs, pld, types):
    """Inside the block the context decodes that type; after it, what it did before."""
    before = ctx._pld_rx.pld_dec

    async def main():
        async with maybe_limit_plds(ctx, *args, **kwargs) as dec:
            assert ctx._pld_rx.pld_dec is dec
            assert types <= unpack_spec_types(dec.spec)
            return dec.decode(CODEC.encode(pld))

    assert trio.run(main) == pld
    assert ctx._pld_rx.pld_dec is before


def test_no_limit(ctx):
    """Without a type and a hook nothing changes, whatever the context."""
    before = ctx._pld_rx.pld_dec

    async def main():
        async with maybe_limit_plds(SimpleNamespace(cid='other')) as dec:
            assert dec is None
            assert ctx._pld_rx.pld_dec is before

    trio.run(main)


def test_another_context_than_the_current_one(ctx):
    """Its task could not be meant."""

    async def main():
        async with maybe_limit_plds(SimpleNamespace(cid='other'), int):
            pass

    with pytest.raises(RuntimeError, match='other'):
        trio.run(main)
