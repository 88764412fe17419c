"""Payload decoders: which one a context has, and for how long."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from tractor._exceptions import MsgTypeError
from tractor.msg import NamespacePath, _ops
from tractor.msg._codec import current_codec, mk_codec, unpack_spec_types
from tractor.msg._ops import PldRx, maybe_limit_plds, validate_payload_msg
from tractor.msg.types import Return, Started, Yield

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


class HookFailed(TypeError):
    """What only the hook of this test raises."""


def failing_hook(kind, value):
    raise HookFailed('told') from LookupError('why')


@pytest.mark.parametrize('kind', [Started, Yield, Return])
@pytest.mark.parametrize('is_nested', [False, True])
def test_a_type_error_of_the_hook_is_the_users(ctx, kind, is_nested):
    """It propagates as it was raised; nothing is made of it for the context."""
    ext_type = list[NamespacePath] if is_nested else NamespacePath
    pld_rx = ctx._pld_rx
    open_pld = pld_rx.open_yield if kind is Yield else pld_rx.decode_pld
    msg = kind('c1', CODEC.raw([NSP] if is_nested else NSP))
    with (
        pld_rx.limit_plds(None, dec_hook=failing_hook, ext_types=[ext_type]),
        pytest.raises(HookFailed, match='told') as caught,
    ):
        open_pld(msg, ctx)
    assert type(caught.value.__cause__) is LookupError
    assert caught.value.__context__ is None


@pytest.mark.parametrize('is_returned', [False, True])
def test_a_value_that_would_change_on_its_way(ctx, is_returned):
    """With strict parity it is refused like one of the wrong type."""
    value = (1, 2)
    msg = Started('c1', current_codec().raw(value))
    assert validate_payload_msg(msg, value, ctx) is None
    assert validate_payload_msg(msg, [1, 2], ctx, strict_pld_parity=True) is None
    if is_returned:
        error = validate_payload_msg(
            msg, value, ctx, raise_mte=False, strict_pld_parity=True
        )
    else:
        with pytest.raises(MsgTypeError) as caught:
            validate_payload_msg(msg, value, ctx, strict_pld_parity=True)
        error = caught.value
    assert type(error) is MsgTypeError
    assert error.message == '`Started.pld`: (1, 2) would arrive as [1, 2]'
    assert error.bad_msg == Started('c1', [1, 2])
    assert not error.tb_str


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
