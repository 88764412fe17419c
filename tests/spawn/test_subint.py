"""Actors in sub-interpreters: what the backend gives beyond what every backend does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio

import tractor
from tractor._exceptions import ActorFailure
from tractor.runtime import _state
from tractor.spawn import _spawn, _subint

DEADLINE: Final = 20.0

needs_subint = pytest.mark.skipif(
    _subint.unavailable() is not None, reason=str(_subint.unavailable())
)


async def where() -> dict[str, Any]:
    """Tell which interpreter this is, and what it has."""
    import _interpreters

    actor = tractor.current_actor()
    number = _interpreters.get_current()[0]
    return {
        'interpreter': number,
        'gil': _interpreters.get_config(number).gil,
        'pid': os.getpid(),
        'method': _spawn._spawn_method,
        'parent': actor._parent_chan.transport.codec_key,
        'msgspec': 'msgspec._core' in sys.modules,
        'addrs': [list(addr) for addr in actor.accept_addrs],
    }


async def fail() -> None:
    """Raise what the caller is to see."""
    raise LookupError('nothing here')


@tractor.context
async def pass_on(ctx: tractor.Context, methods: list[str], fn: str) -> Any:
    """Start one actor below the other, and call a function in the last one."""
    await ctx.started()
    if not methods:
        return await globals()[fn]()
    async with tractor.open_nursery() as an:
        portal = await an.start_actor(
            'below', enable_modules=[__name__], start_method=methods[0]
        )
        rest = methods[1:]
        async with portal.open_context(pass_on, methods=rest, fn=fn) as (inner, _):
            result = await inner.wait_for_result()
        await portal.cancel_actor()
        return result


@tractor.context
async def double(ctx: tractor.Context) -> str:
    """Send everything back twice as large."""
    await ctx.started('ready')
    async with ctx.open_stream() as stream:
        async for value in stream:
            await stream.send(2 * value)
    return 'done'


async def call_by_address(addr: list[Any]) -> Any:
    """Call another actor directly."""
    from tractor.ipc import _connect_chan
    from tractor.runtime._portal import open_portal

    async with _connect_chan(tuple(addr)) as chan, open_portal(chan) as portal:
        return await portal.run(where)


async def default_method() -> str | None:
    """Tell the backend that children of this actor get."""
    return _spawn.choose(None)


@pytest.fixture
def subint_root(reg_addr: Any) -> Iterator[dict[str, Any]]:
    """Give the arguments of a root whose children live in sub-interpreters."""
    before, gil = (_spawn._ctx, _spawn._spawn_method), _state.subint_gil()
    _state.set_subint_gil('auto')  # the session may have chosen another one
    yield {'registry_addrs': [reg_addr], 'start_method': 'subint'}
    _state.set_subint_gil(gil)
    _spawn._restore(*before)


@pytest.mark.skipif(
    _subint.unavailable() is None, reason='this interpreter can run the backend'
)
def test_an_old_interpreter_is_told_apart() -> None:
    """Below 3.14 the backend cannot be selected, and the text names the version."""
    with pytest.raises(RuntimeError, match=r'subint needs Python 3\.14, this is 3'):
        _spawn.try_set_start_method('subint')


def test_a_mode_needs_a_sub_interpreter(reg_addr: Any) -> None:
    """`gil` for a child in a process is a mistake of the call."""

    async def main() -> None:
        async with tractor.open_nursery(registry_addrs=[reg_addr]) as an:
            with pytest.raises(ValueError, match='is for sub-interpreters'):
                await an.start_actor('kid', start_method='trio', gil='own')

    trio.run(main)


def test_an_unknown_mode_is_refused() -> None:
    """The text lists what there is."""
    with pytest.raises(ValueError, match=r"no GIL mode 'none'.*'auto', 'own'"):
        _state.set_subint_gil('none')


@needs_subint
def test_the_root_chooses_the_gil_of_its_tree(subint_root: Any) -> None:
    """Of grandchildren too, and of this tree only."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root, subint_gil='shared') as an:
                portal = await an.start_actor('kid', enable_modules=[__name__])
                assert (await portal.run(where))['gil'] == 'shared'
                async with portal.open_context(
                    pass_on, methods=['subint'], fn='where'
                ) as (ctx, _):
                    assert (await ctx.wait_for_result())['gil'] == 'shared'
                await portal.cancel_actor()

    trio.run(main)
    assert _state.subint_gil() == 'auto'


@needs_subint
@pytest.mark.parametrize('gil', ['own', 'shared'])
def test_one_actor(subint_root: Any, gil: str) -> None:
    """It lives in this process, on the GIL that was asked for; all calls work."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                portal = await an.start_actor('kid', enable_modules=[__name__], gil=gil)
                told = await portal.run(where)
                assert told['pid'] == os.getpid()
                assert told['interpreter'] != 0
                assert told['gil'] == gil
                assert told['parent'] == 'marshal'
                assert told['msgspec'] is (gil == 'shared')
                async with portal.open_context(double) as (ctx, first):
                    assert first == 'ready'
                    async with ctx.open_stream() as stream:
                        for value in (1, 'a', [1, 2]):
                            await stream.send(value)
                            assert await stream.receive() == 2 * value
                assert await ctx.wait_for_result() == 'done'
                with pytest.raises(tractor.RemoteActorError) as caught:
                    await portal.run(fail)
                assert caught.value.boxed_type is LookupError
                await portal.cancel_actor()

    trio.run(main)


@needs_subint
@pytest.mark.parametrize(
    'methods',
    [
        ['subint', 'subint'],
        ['subint', 'trio'],
        ['trio', 'subint'],
        ['subint', 'mp_spawn'],
    ],
    ids='-'.join,
)
def test_mixed_trees(subint_root: Any, methods: list[str]) -> None:
    """A backend for each child; an error comes up through all of them."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                portal = await an.start_actor(
                    'kid', enable_modules=[__name__], start_method=methods[0]
                )
                async with portal.open_context(
                    pass_on, methods=methods[1:], fn='where'
                ) as (ctx, _):
                    told = await ctx.wait_for_result()
                assert (told['pid'] == os.getpid()) is (set(methods) == {'subint'})
                with pytest.raises(tractor.RemoteActorError) as caught:
                    async with portal.open_context(
                        pass_on, methods=methods[1:], fn='fail'
                    ) as (ctx, _):
                        await ctx.wait_for_result()
                assert caught.value.src_type is LookupError
                assert [uid[0] for uid in caught.value.relay_path] == ['below', 'kid']
                await portal.cancel_actor()

    trio.run(main)


@needs_subint
@pytest.mark.parametrize('method', ['trio', 'subint', 'mp_spawn'])
def test_the_roots_choice_is_the_default(subint_root: Any, method: str) -> None:
    """Also below a child that was started in another way."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                portal = await an.start_actor(
                    'kid', enable_modules=[__name__], start_method=method
                )
                assert await portal.run(default_method) == 'subint'
                await portal.cancel_actor()

    trio.run(main)


@needs_subint
@pytest.mark.parametrize('transport', ['tcp', 'uds'])
def test_another_process_talks_to_it_directly(subint_root: Any, transport: str) -> None:
    """It listens by itself, and has msgpack for whoever connects."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                inner = await an.start_actor(
                    'inner', enable_modules=[__name__], enable_transports=[transport]
                )
                outer = await an.start_actor(
                    'outer', enable_modules=[__name__], start_method='trio'
                )
                told = await inner.run(where)
                again = await outer.run(call_by_address, addr=told['addrs'][0])
                assert again == told
                await an.cancel()

    trio.run(main)


@needs_subint
def test_two_of_one_name_in_one_process(subint_root: Any) -> None:
    """Their socket files do not collide."""

    addrs: list[Any] = []

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                for _ in range(2):
                    portal = await an.start_actor(
                        'twin', enable_modules=[__name__], enable_transports=['uds']
                    )
                    addrs.extend((await portal.run(where))['addrs'])
                assert addrs[0] != addrs[1]
                await an.cancel()

    trio.run(main)
    assert not any(Path(*addr).exists() for addr in addrs)


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder for modules, on the path of this process and of its actors."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write_module(folder: Path, name: str, text: str) -> None:
    """Write a module that can be loaded in the main interpreter, whatever else."""
    (folder / f'{name}.py').write_text(
        f'import _interpreters\n'
        f'number = _interpreters.get_current()[0]\n'
        f'gil = _interpreters.get_config(number).gil\n'
        f'{text}\n'
        f'async def which():\n'
        f'    return gil\n'
    )


OWN_ONLY: Final = (
    "if number and gil == 'own':\n"
    "    raise ImportError('module x does not support loading in subinterpreters')"
)
ANY: Final = (
    "if number:\n    raise ImportError('cannot load module more than once per process')"
)


@needs_subint
def test_a_refusing_module_shares_the_gil(
    subint_root: Any,
    refusing: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mode `auto` starts the actor again, with one warning that names the module."""
    write_module(refusing, 'grumpy_auto', OWN_ONLY)
    monkeypatch.setattr(_subint, '_warned', set())

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root, loglevel='warning') as an:
                portal = await an.start_actor('kid', enable_modules=['grumpy_auto'])
                assert await portal.run_from_ns('grumpy_auto', 'which') == 'shared'
                await portal.cancel_actor()

    with caplog.at_level('WARNING', logger='tractor'):
        with pytest.warns(RuntimeWarning, match="'x', which 'grumpy_auto' needs"):
            trio.run(main)
    told = [r.getMessage() for r in caplog.records if 'grumpy_auto' in r.getMessage()]
    assert len(told) == 1
    assert "actor 'kid' runs on the GIL of the main interpreter" in told[0]
    trio.run(main)  # without another warning: these are errors here


@needs_subint
@pytest.mark.parametrize(
    ('gil', 'text', 'remedy'),
    [
        ('own', OWN_ONLY, "use gil='shared', or a process backend"),
        ('own', ANY, 'use a process backend'),
        ('auto', ANY, 'use a process backend'),
        ('shared', ANY, 'use a process backend'),
    ],
    ids=['own-own', 'own-any', 'auto-any', 'shared-any'],
)
def test_a_refusal_names_the_module_and_the_way_out(
    subint_root: Any, refusing: Path, gil: str, text: str, remedy: str
) -> None:
    """The error comes from `start_actor()`, and the nursery goes on."""
    name = f'grumpy_{gil}_{"own" if text is OWN_ONLY else "any"}'
    write_module(refusing, name, text)

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                with pytest.raises(ActorFailure, match=remedy) as caught:
                    await an.start_actor('kid', enable_modules=[name], gil=gil)
                assert name in str(caught.value)
                portal = await an.start_actor('next', enable_modules=[__name__])
                await portal.run(where)
                await portal.cancel_actor()

    trio.run(main)


@needs_subint
def test_forking_is_refused_while_one_lives(subint_root: Any) -> None:
    """The forked process would crash; afterwards it works again."""

    async def main() -> None:
        with trio.fail_after(DEADLINE):
            async with tractor.open_nursery(**subint_root) as an:
                portal = await an.start_actor('kid', enable_modules=[__name__])
                with pytest.raises(RuntimeError, match=r"fork.* is refused.*'kid'"):
                    os.fork()
                with pytest.raises(RuntimeError, match=r"preexec_fn.* refused.*'kid'"):
                    await trio.run_process(['true'], preexec_fn=len)
                await trio.run_process(['true'])
                await portal.cancel_actor()

    trio.run(main)
    subprocess.run(['true'], preexec_fn=os.getpid, check=True)
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@needs_subint
def test_nothing_stays_behind(subint_root: Any) -> None:
    """Interpreters, threads and descriptors are as they were."""
    import _interpreters

    async def main() -> list[int]:
        with trio.fail_after(DEADLINE):
            counts = []
            async with tractor.open_nursery(**subint_root) as an:
                for _ in range(4):
                    portal = await an.start_actor('kid', enable_modules=[__name__])
                    await portal.run(where)
                    await portal.cancel_actor()
                    while an._children:
                        await an._changed.wait()
                    counts.append(len(os.listdir('/proc/self/fd')))
            return counts

    counts = trio.run(main)
    assert counts[1:] == counts[:-1]
    assert len(_interpreters.list_all()) == 1
