"""Tasks that end the actor which serves them, and wait for that."""

from __future__ import annotations

import pytest
import trio

import tractor

running = trio.Event()
counted: list[int] = []


async def end_the_actor_at_the_end(count: int) -> None:
    counted.append(count)
    if len(counted) == count:
        running.set()
    try:
        await trio.sleep_forever()
    finally:
        assert await tractor.current_actor().cancel(None)


async def wait_until_they_run() -> None:
    await running.wait()


@pytest.mark.parametrize('count', [1, 2])
def test_tasks_that_end_their_actor_do_not_wait_for_each_other(run_tree, count):
    """Nor does whoever asked for that end wait for them: it confirms."""

    async def call(portal):
        with pytest.raises(tractor.ContextCancelled):
            await portal.run(end_the_actor_at_the_end, count=count)

    async def body(an):
        portal = await an.start_actor('child', enable_modules=[__name__])
        async with trio.open_nursery() as tn:
            for _ in range(count):
                tn.start_soon(call, portal)
            await portal.run(wait_until_they_run)
            assert await portal.cancel_actor(timeout=5)

    run_tree(body)
