"""Calls through a portal, what a portal knows of its peer, and what an actor knows."""

from __future__ import annotations

import functools

import pytest
import trio

import tractor
from tractor import (
    ContextCancelled,
    ModuleNotExposed,
    MsgTypeError,
    RemoteActorError,
    TransportClosed,
)
from tractor._exceptions import NoResult, NoRuntime
from tractor.msg import Struct

state = {'calls': 0}


class Key(Struct, frozen=True):  # can be encoded as the key of a map, not decoded
    number: int


async def give_a_struct_as_key() -> dict[Key, str]:
    return {Key(1): 'one'}


async def give(value: object = None) -> object:
    return value


async def fail_with(text: str) -> None:
    raise ValueError(text)


# As served functions these have no name of their own.
failing = functools.partial(fail_with, 'told')
sleeping = functools.partial(trio.sleep, 3600)


async def count_calls() -> int:
    state['calls'] += 1
    return state['calls']


async def own_aid() -> tuple[str, str]:
    return tractor.current_actor().aid.uid


async def describe_actor() -> dict[str, object]:
    actor = tractor.current_actor()
    return {
        'name': actor.name,
        'loglevel': actor.loglevel,
        'is_root': tractor.is_root_process(),
        'is_registrar': actor.is_registrar,
        'debug_mode': tractor.debug_mode(),
        'main_data': bool(actor._parent_main_data),
        'parent': actor.get_parent().chan.aid.uid,
        'has_ctx': tractor.current_ipc_ctx() is not None,
    }


async def count_contexts() -> int:
    return len(tractor.current_actor()._contexts)


async def runtime_vars_match() -> bool:
    """Whether this actor runs with what its parent sent."""
    actor = tractor.current_actor()
    return actor._spawn_spec._runtime_vars == tractor.get_runtime_vars()


async def parent_is_a_root_address() -> bool:
    actor = tractor.current_actor()
    addrs = [list(addr) for addr in tractor.get_runtime_vars()['_root_addrs']]
    return list(actor._parent_chan.raddr.unwrap()) in addrs


asleep, cancelled = trio.Event(), trio.Event()


async def sleep_and_tell() -> None:
    asleep.set()
    try:
        await trio.sleep_forever()
    finally:
        cancelled.set()


async def wait_until_asleep() -> None:
    await asleep.wait()


async def wait_until_cancelled() -> None:
    await cancelled.wait()


async def cancel_actor(name: str) -> None:
    async with tractor.wait_for_actor(name) as portal:
        assert await portal.cancel_actor()


def not_async() -> None: ...


@tractor.context
async def serve(ctx: tractor.Context) -> None:
    await ctx.started()
    await trio.sleep_forever()


async def start(an: tractor.ActorNursery, name: str = 'child') -> tractor.Portal:
    return await an.start_actor(name, enable_modules=[__name__])


# -- calls -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    'value', [None, 0, 1.5, 'text', b'bytes', ['a', 1], {'key': [None, True]}, 2**63]
)
def test_value_makes_the_round_trip(run_tree, value):
    """What is passed comes back equal."""

    async def body(an):
        portal = await start(an)
        assert await portal.run(give, value=value) == value
        await an.cancel()

    run_tree(body)


@pytest.mark.parametrize('first', [True, False])
def test_arguments_that_cannot_be_decoded(run_tree, first):
    """The caller is told, and the child lives on, also if that is the first request."""

    async def body(an):
        portal = await start(an)
        if first:
            assert await portal.run(give, value=1) == 1
        for _ in range(6):
            with pytest.raises(MsgTypeError, match=r'hashable|valid msgpack'):
                await portal.run(give, value={Key(1): 2})
        assert await portal.run(give, value=3) == 3
        await an.cancel()

    run_tree(body)


def test_tuples_arrive_as_lists(run_tree):
    """The wire has one kind of sequence."""

    async def body(an):
        portal = await start(an)
        assert await portal.run(give, value=(1, (2,))) == [1, [2]]
        await an.cancel()

    run_tree(body)


def test_calls_share_the_state_of_the_child(run_tree):
    """Every call runs in the same process, as a task of its own."""

    async def body(an):
        portal = await start(an)
        async with trio.open_nursery() as tn:
            for _ in range(10):
                tn.start_soon(portal.run, count_calls)
        assert await portal.run(count_calls) == 11
        assert state['calls'] == 0
        await an.cancel()

    run_tree(body)


def test_function_is_named_by_text(run_tree):
    """`run_from_ns()` takes module and function as strings."""

    async def body(an):
        portal = await start(an)
        assert await portal.run_from_ns(__name__, 'give', value=3) == 3
        await an.cancel()

    run_tree(body)


def test_a_partial_is_served_as_any_function(run_tree):
    """It may fail or be cancelled, and the actor lives on."""

    async def main(an):
        portal = await an.start_actor('child', enable_modules=[__name__])
        with pytest.raises(RemoteActorError, match='told') as caught:
            await portal.run_from_ns(__name__, 'failing')
        assert caught.value.boxed_type is ValueError
        with trio.move_on_after(0.1) as scope:
            await portal.run_from_ns(__name__, 'sleeping')
        assert scope.cancelled_caught
        assert await portal.run(give, value=1) == 1
        await portal.cancel_actor()

    run_tree(main)


def test_legacy_form_of_run_warns(run_tree):
    """Module and function as strings still work, with a warning."""

    async def body(an):
        portal = await start(an)
        with pytest.warns(DeprecationWarning, match='deprecated'):
            assert await portal.run(__name__, 'give', value=3) == 3
        await an.cancel()

    run_tree(body)


def test_unexposed_module_is_refused(run_tree):
    """A child serves only what it was started with, however it is named."""

    async def body(an):
        portal = await an.start_actor('closed')
        with pytest.raises(RemoteActorError) as caught:
            await portal.run(give)
        assert caught.value.boxed_type is ModuleNotExposed
        assert 'enable_modules' in caught.value.tb_str
        await portal.run_from_ns('os', 'getpid')

    with pytest.raises(RemoteActorError) as caught:
        run_tree(body)
    assert caught.value.boxed_type is ModuleNotExposed


def test_missing_function_is_refused(run_tree):
    """The child's `AttributeError` is raised, boxed."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError) as caught:
            await portal.run_from_ns(__name__, 'no_such_function')
        assert caught.value.boxed_type is AttributeError
        await an.cancel()

    run_tree(body)


def test_sync_function_is_refused(run_tree):
    """Only coroutine functions can be called."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(TypeError, match='must be a non-streaming async function'):
            await portal.run(not_async)
        await an.cancel()

    run_tree(body)


def test_context_over_a_portal_to_oneself_is_refused(run_tree):
    """A task cannot be both sides of a dialog."""

    async def body(an):
        async with tractor.wait_for_actor('root') as portal:
            async with portal.open_context(serve):
                raise AssertionError('it was opened')

    with pytest.raises(RuntimeError, match='Invalid Operation') as caught:
        run_tree(body)
    assert not isinstance(caught.value, RemoteActorError)


# -- calls that are given up -----------------------------------------------------------


def test_cancelled_call_cancels_the_remote_task(run_tree):
    """Giving up a `Portal.run()` ends what it started."""

    async def body(an):
        portal = await start(an)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as tn:
                tn.start_soon(portal.run, sleep_and_tell)
                await portal.run(wait_until_asleep)
                scope.cancel()
        await portal.run(wait_until_cancelled)
        await an.cancel()

    run_tree(body)


def test_call_cancelled_by_another_actor_answers(run_tree):
    """A plain remote task that a third actor cancels says so, instead of nothing."""
    uids = []

    async def body(an):
        child, third = await start(an), await start(an, 'third')
        uids.append(third.chan.aid.uid)
        async with trio.open_nursery() as tn:
            tn.start_soon(child.run, sleep_and_tell)
            await child.run(wait_until_asleep)
            await third.run(cancel_actor, name='child')
            await trio.sleep_forever()

    with pytest.raises(ContextCancelled) as caught:
        run_tree(body)
    assert caught.value.canceller == uids[0]


# -- results ---------------------------------------------------------------------------


def test_result_of_a_run_once_child_is_kept(run_tree):
    """Later calls return the same object."""

    async def body(an):
        portal = await an.run_in_actor(give, value=['x'])
        result = await portal.wait_for_result()
        assert result == ['x']
        assert await portal.wait_for_result() is result

    run_tree(body)


def test_daemon_has_no_result(run_tree):
    """The sentinel is the class, returned at once."""

    async def body(an):
        portal = await start(an)
        assert await portal.wait_for_result() is NoResult
        await an.cancel()

    run_tree(body)


# -- cancelling the peer ---------------------------------------------------------------


def test_cancel_is_acknowledged_once(run_tree):
    """`True` on the ack, `False` when the peer was gone already."""

    async def body(an):
        portal = await start(an)
        # The time for the ack is not to be that of its imports as well.
        assert await portal.run(give, value=1) == 1
        assert await portal.cancel_actor() is True
        assert portal.chan._cancel_called
        assert portal.chan.cancel_called
        with trio.fail_after(5):
            while portal.chan.connected():
                await trio.lowlevel.checkpoint()
        assert await portal.cancel_actor() is False

    run_tree(body)


def test_call_after_the_peer_left_is_refused(run_tree):
    """Sending to a peer that is gone raises `TransportClosed`."""

    async def body(an):
        portal = await start(an)
        await portal.cancel_actor()
        with trio.fail_after(5):
            while portal.chan.connected():
                await trio.lowlevel.checkpoint()
        with pytest.raises(TransportClosed):
            await portal.run(give)

    run_tree(body)


def test_identity_outlives_the_connection(reg_addr):
    """Who the peer was stays readable, and the channel knows it is closed."""

    async def main():
        with trio.fail_after(10):
            async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
                portal = await start(an)
                uid = tuple(await portal.run(own_aid))
                assert portal.chan.connected()
                await an.cancel()
        assert portal.chan.aid.uid == uid
        assert portal.chan.raddr is not None
        assert portal.chan.laddr is not None
        assert not portal.chan.connected()
        assert repr(portal.chan)

    trio.run(main)


# -- what an actor knows ---------------------------------------------------------------


def test_child_knows_its_place(run_tree, start_method):
    """Name, parent and level are what the parent gave it."""

    async def body(an):
        portal = await an.start_actor(
            'child', enable_modules=[__name__], loglevel='Cancel'
        )
        root = tractor.current_actor()
        assert await portal.run(describe_actor) == {
            'name': 'child',
            'loglevel': 'Cancel',
            'is_root': False,
            'is_registrar': False,
            'debug_mode': False,
            # Under multiprocessing it is the library's business.
            'main_data': not start_method.startswith('mp_'),
            'parent': list(root.aid.uid),
            'has_ctx': True,
        }
        await an.cancel()

    run_tree(body)


@pytest.mark.skipon_spawn_backend(
    'mp_spawn', 'mp_forkserver', reason='multiprocessing handles __main__ itself'
)
def test_child_can_do_without_the_parents_main(run_tree):
    """`inherit_parent_main=False` leaves the child's `__main__` alone."""

    async def body(an):
        portal = await an.start_actor(
            'child', enable_modules=[__name__], inherit_parent_main=False
        )
        assert (await portal.run(describe_actor))['main_data'] is False
        await an.cancel()

    run_tree(body)


def test_child_runs_with_what_its_parent_sent(run_tree):
    """The live runtime variables are those of the spawn spec."""

    async def body(an):
        portal = await start(an)
        assert await portal.run(runtime_vars_match)
        await an.cancel()

    run_tree(body)


def test_child_knows_where_the_root_listens(run_tree):
    """Its parent's address is one of the root's."""

    async def body(an):
        portal = await start(an)
        assert await portal.run(parent_is_a_root_address)
        await an.cancel()

    run_tree(body)


def test_registry_of_a_fresh_root_holds_only_itself(run_tree):
    """Children join when they start, and leave when they are cancelled."""

    async def body(an):
        root = tractor.current_actor()
        assert list(root._registry) == [root.aid.uid]
        portal = await start(an)
        async with tractor.wait_for_actor('child'):
            assert portal.chan.aid.uid in root._registry
        await an.cancel()

    run_tree(body)


def test_children_leave_the_registry(reg_addr):
    """After the nursery only the root is listed."""

    async def main():
        with trio.fail_after(10):
            async with tractor.open_root_actor(registry_addrs=[reg_addr]) as root:
                async with tractor.open_nursery() as an:
                    await start(an)
                    async with tractor.wait_for_actor('child'):
                        await an.cancel()
                assert list(root._registry) == [root.aid.uid]

    trio.run(main)


def test_root_listens_on_its_registry_address(run_tree, reg_addr):
    """A root that found no registry becomes one, at that address."""

    async def body(an):
        root = tractor.current_actor()
        assert root.is_registrar
        assert root.is_root
        assert root.accept_addr == reg_addr
        assert root.accept_addrs == root.ipc_server.accept_addrs
        assert root.reg_addrs == [reg_addr]

    run_tree(body)


def test_no_actor_outside_of_a_runtime():
    """Asking is an error, unless the caller can do without."""
    with pytest.raises(NoRuntime):
        tractor.current_actor()
    assert tractor.current_actor(err_on_no_runtime=False) is None


def test_runtime_can_be_opened_again(run_tree):
    """A finished runtime leaves the process as it was."""

    async def body(an):
        portal = await start(an)
        assert await portal.run(give, value=1) == 1
        await an.cancel()

    for _ in range(3):
        run_tree(body)
        variables = tractor.get_runtime_vars()
        assert variables['_root_addrs'] == []
        assert variables['_root_mailbox'] is None
        assert variables['_debug_mode'] is False


def test_result_that_cannot_be_decoded_is_an_error_of_the_call(run_tree):
    """It names the message; the portal goes on to work."""

    async def body(an):
        portal = await start(an)
        with pytest.raises(RemoteActorError) as caught:
            await portal.run(give_a_struct_as_key)
        assert isinstance(caught.value, MsgTypeError) or 'struct' in str(caught.value)
        assert await portal.run(give, value=1) == 1
        await an.cancel()

    run_tree(body)


def test_calls_leave_nothing_behind(run_tree):
    """Neither side remembers a call that is over."""

    async def body(an):
        portal = await an.start_actor('child', enable_modules=[__name__])
        for _ in range(20):
            assert await portal.run(count_contexts) == 1  # its own
        assert not portal.actor._contexts
        await an.cancel()

    run_tree(body)
