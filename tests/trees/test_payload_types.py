"""Payloads of the wrong type between two actors: who is told, and what goes on."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import tractor
from tractor import MsgTypeError, RemoteActorError
from tractor.msg import NamespacePath, Struct, apply_codec, mk_codec
from tractor.msg._ops import limit_plds


def refuse(kind: type, value: object) -> Any:
    raise TypeError(f'the hook refuses {value}')


@tractor.context
async def receive_by_hook(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        with limit_plds(None, dec_hook=refuse, ext_types=[NamespacePath]):
            with pytest.raises(TypeError, match='the hook refuses a:b'):
                await stream.receive()
            await stream.receive()


class Key(Struct, frozen=True):  # can be encoded as the key of a map, not decoded
    number: int


@tractor.context
async def start_with_a_bad_key(ctx: tractor.Context, check: bool) -> None:
    if check:
        with pytest.raises((MsgTypeError, TypeError)) as caught:
            await ctx.started({Key(1): 2})
        assert not getattr(caught.value, 'tb_str', None)
        await ctx.started({'number': 1})
    else:
        await ctx.started({Key(1): 2}, validate_pld_spec=False)


@tractor.context
async def stream_a_bad_key(ctx: tractor.Context) -> None:
    await ctx.started()
    async with ctx.open_stream() as stream:
        await stream.send({Key(1): 2})
        await trio.sleep_forever()


@tractor.context
async def stream_some(ctx: tractor.Context) -> str:
    await ctx.started(0)
    async with ctx.open_stream() as stream:
        for value in (1, 'two', 3, 'four', 5):
            await stream.send(value)
    return 'done'


async def start(an: tractor.ActorNursery) -> tractor.Portal:
    return await an.start_actor('child', enable_modules=[__name__])


def test_a_type_error_of_a_hook_ends_no_context(run_tree):
    """It is the error of the code that receives, in either kind of interpreter."""

    async def body(an):
        portal = await start(an)
        codec = mk_codec(enc_hook=str, ext_types=[NamespacePath])

        async def send_two():
            async with (
                portal.open_context(receive_by_hook) as (ctx, _),
                ctx.open_stream() as stream,
            ):
                with apply_codec(codec):
                    await stream.send(NamespacePath('a:b'))
                    await stream.send(NamespacePath('c:d'))
                await trio.sleep_forever()

        with pytest.raises(RemoteActorError, match='the hook refuses c:d') as caught:
            await send_two()
        assert caught.value.boxed_type is TypeError
        await an.cancel()

    run_tree(body)


@pytest.mark.parametrize('ends', [True, False])
def test_a_wrong_stream_message_ends_the_context_if_told_to(run_tree, ends):
    """By default the context is over; else only that message is lost."""

    async def body(an):
        portal = await start(an)

        async def receive_all(got):
            async with portal.open_context(stream_some) as (ctx, _):
                ctx._cancel_on_msgerr = ends
                with limit_plds(int | None):
                    async with ctx.open_stream() as stream:
                        while True:
                            try:
                                got.append(await stream.receive())
                            except MsgTypeError as err:
                                got.append(f'not {err.bad_msg.pld}')
                                await trio.lowlevel.checkpoint()
                            except trio.EndOfChannel:
                                break
                assert await ctx.wait_for_result() == 'done'

        got = []
        if ends:
            with pytest.raises(MsgTypeError):
                await receive_all(got)
            assert got == [1, 'not two']
        else:
            await receive_all(got)
            assert got == [1, 'not two', 3, 'not four', 5]
        await an.cancel()

    run_tree(body)


def test_a_first_value_that_cannot_be_decoded_is_not_sent(run_tree):
    """Also where any type would do; then another value can be."""

    async def body(an):
        portal = await start(an)
        async with portal.open_context(start_with_a_bad_key, check=True) as (_, first):
            assert first == {'number': 1}
        await an.cancel()

    run_tree(body)


def test_a_payload_that_cannot_be_decoded_is_refused(run_tree, spawn_backend):
    """Where its sender does not look, its receiver finds it of no type at all."""

    async def body(an):
        portal = await start(an)

        async def enter():
            async with portal.open_context(start_with_a_bad_key, check=False):
                pass

        async def receive():
            async with (
                portal.open_context(stream_a_bad_key) as (ctx, _),
                ctx.open_stream() as stream,
            ):
                await stream.receive()

        for use in (enter, receive):
            with pytest.raises(MsgTypeError, match='cannot be decoded') as caught:
                await use()
            assert 'map keys' in str(caught.value.__cause__)
        await an.cancel()

    if spawn_backend == 'subint':
        pytest.skip('an isolated interpreter cannot encode it')
    run_tree(body)
