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
