"""What a child shares of the program of its parent: its functions, its imports."""

from __future__ import annotations

PROGRAM = """
import os
import sys

import neighbour_of_program

async def answer():
    return [neighbour_of_program.ANSWER, *sys.argv[1:]]

async def main():
    import package_of_program.inner.module as module
    async with tractor.open_nursery(registry_addrs=[REG_ADDR]) as an:
        portal = await an.run_in_actor(answer)
        print(*await portal.wait_for_result())
    async with tractor.open_nursery(registry_addrs=[REG_ADDR]) as an:
        portal = await an.run_in_actor(module.inside, inherit_parent_main=False)
        print(await portal.wait_for_result())

if __name__ == '__main__':
    sys.path.append(sys.argv[1])
    trio.run(main)
"""


def test_script_may_import_its_neighbours_wherever_it_is_run(run_program, tmp_path):
    """Also what it finds by a path that it added, with or without its `__main__`."""
    (tmp_path / 'neighbour_of_program.py').write_text('ANSWER = 42\n')
    inner = tmp_path / 'added' / 'package_of_program' / 'inner'
    inner.mkdir(parents=True)
    for package in (inner, inner.parent):
        (package / '__init__.py').touch()
    (inner / 'module.py').write_text("async def inside():\n    return 'inside'\n")
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    added = str(tmp_path / 'added')
    done = run_program(PROGRAM, added, cwd=elsewhere)
    assert done.stdout == f'42 {added}\ninside\n', done.stderr


CALLS_ROOT = """
async def on_root():
    return tractor.current_actor().name

@tractor.context
async def with_root(ctx: tractor.Context):
    await ctx.started(tractor.current_actor().name)

async def child():
    async with tractor.get_registry(REG_ADDR) as portal:
        async with portal.open_context(with_root) as (_, first):
            return [__name__, await portal.run(on_root), first]

async def main():
    async with tractor.open_nursery(
        registry_addrs=[REG_ADDR], enable_modules=[__name__], name='top'
    ) as an:
        portal = await an.run_in_actor(child)
        print(*await portal.wait_for_result())

if __name__ == '__main__':
    trio.run(main)
"""


def test_function_of_the_program_can_be_called_in_the_root(run_program):
    """A child knows the program under its other name, and passes the function."""
    done = run_program(CALLS_ROOT)
    assert done.stdout == '__mp_main__ top top\n', done.stderr
