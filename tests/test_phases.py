"""The patch queue's tools, on a throw-away repository with two small phases."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
TOOLS: Final = ('.ci/phases.py', '.ci/pythons.py', 'ai/skills/open-wkt/open_wkt.py')
HERE: Final = '{}.{}'.format(*sys.version_info)

NOXFILE: Final = f"""\
import os
from pathlib import Path

import nox


@nox.session(python=False)
def lint(session):
    session.log('linted ' + Path('tractor/__init__.py').read_text())


@nox.session(python=False)
def types(session):
    session.log('typed')


@nox.session(python=False, name='tests-{HERE}')
def tests(session):
    if os.path.exists(os.environ.get('GATE', '')):
        Path(os.environ['GATE']).read_text()
    print('SKIPPED [3] tests/test_x.py:7: this is too old')
    print('5 passed, 3 skipped in 0.12s')
    if os.environ.get('FAIL'):
        session.error('a test failed')
"""
PYPROJECT: Final = f"""\
[project]
name = "tractor"
version = "1"
requires-python = ">={HERE},<3.{sys.version_info.minor + 1}"

[tool.ruff]
target-version = "py312"

[tool.ruff.lint]
select = ["F"]

[tool.ruff.format]
quote-style = "single"
"""
QUEUE: Final = """\
[phase_a]
title = "Move"
branch = "wkt/alpha"
base = "{base}"
pythons = ["{here}"]
move = "tractor"

[phase_b]
title = "Add"
branch = "wkt/beta"
base = "phase_a"
pythons = ["{here}"]
"""
ONE: Final = (
    '"""One."""\n\n\ndef first():\n    return 1\n\n\ndef second():\n    return 2\n'
)
COVER: Final = (
    'Move the second function\n\nProblem   One file held two.\nRead      two.py.\n'
)


class Repository:
    """A clone with a queue, and its tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            **os.environ,
            'GIT_CONFIG_GLOBAL': os.devnull,
            'GIT_CONFIG_SYSTEM': os.devnull,
            'GIT_AUTHOR_NAME': 'A',
            'GIT_AUTHOR_EMAIL': 'a@b.c',
            'GIT_COMMITTER_NAME': 'A',
            'GIT_COMMITTER_EMAIL': 'a@b.c',
        }
        self.env.pop('UV', None)

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ['git', *arguments],
            cwd=self.folder,
            env=self.env,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')

    def commit(self, subject: str) -> str:
        self.git('add', '-A')
        self.git('commit', '-q', '-m', subject)
        return self.git('rev-parse', 'HEAD')

    def run(self, tool: str, *arguments: str, **env: str) -> tuple[int, str]:
        """Run a tool; return its exit status and all that it printed."""
        done = subprocess.run(
            [sys.executable, str(self.folder / tool), *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout

    def phases(self, *arguments: str, **env: str) -> tuple[int, str]:
        return self.run('.ci/phases.py', *arguments, **env)

    def wkt(self, *arguments: str) -> tuple[int, str]:
        return self.run('ai/skills/open-wkt/open_wkt.py', *arguments)

    def root(self) -> str:
        return self.git('rev-list', '--max-parents=0', 'HEAD')

    def worktrees(self) -> list[str]:
        return self.git('worktree', 'list', '--porcelain').split('worktree ')[2:]

    def change_on(self, branch: str, name: str, text: str) -> None:
        """Add a commit to a branch."""
        self.git('checkout', '-q', branch)
        self.write(name, text)
        self.commit('Change')
        self.git('checkout', '-q', 'main')


@pytest.fixture(scope='module')
def template(tmp_path_factory):
    """The repository before any test changed it."""
    repo = Repository(tmp_path_factory.mktemp('queue') / 'repo')
    repo.folder.mkdir()
    repo.git('init', '-q', '-b', 'main')
    for name in TOOLS:
        repo.write(name, (ROOT / name).read_text(encoding='utf-8'))
    repo.write('pyproject.toml', PYPROJECT)
    repo.write(
        '.gitignore', '__pycache__/\n.claude/wkts/\n.nox/\n.ruff_cache/\nwkt.env\n'
    )
    repo.write('noxfile.py', NOXFILE)
    repo.write('tractor/__init__.py', '')
    repo.write('tractor/one.py', ONE)
    base = repo.commit('Base')
    repo.git('checkout', '-q', '-b', 'wkt/alpha')
    repo.write('tractor/one.py', ONE.split('\n\n\ndef second')[0] + '\n')
    repo.write('tractor/two.py', '"""Two."""\n\n\ndef second():\n    return 2\n')
    repo.commit('Move second() to a file of its own')
    repo.git('checkout', '-q', '-b', 'wkt/beta')
    repo.write('tractor/three.py', '"""Three."""\n')
    repo.commit('Add a third file')
    repo.git('checkout', '-q', 'main')
    repo.write('patches/queue.toml', QUEUE.format(base=base, here=HERE))
    repo.write('cover', COVER)
    for phase in ('phase_a', 'phase_b'):
        assert repo.phases('export', phase, '--cover', 'cover')[0] == 0
    (repo.folder / 'cover').unlink()
    repo.commit('Queue the phases')
    return repo.folder


@pytest.fixture
def repo(template, tmp_path):
    """A copy for one test, which leaves no worktree behind."""
    shutil.copytree(template, tmp_path / 'repo')
    repo = Repository(tmp_path / 'repo')
    yield repo
    assert not [w for w in repo.worktrees() if '.claude/wkts' not in w]


# -- queue -------------------------------------------------------------------


def test_a_good_queue_passes(repo):
    """Each patch is named as it passes, and the move is one."""
    status, text = repo.phases('queue')
    assert status == 0, text
    assert 'phase_a: no function body changed' in text
    assert text.count('applies, passes ruff and imports') == 2


def test_a_patch_that_does_not_apply_is_named(repo):
    """Its name stands in the message, and nothing is left half applied."""
    [patch] = (repo.folder / 'patches/phase_a').glob('0001-*')
    patch.write_text(patch.read_text().replace('-    return 2', '-    return 3'))
    status, text = repo.phases('queue')
    assert status == 1
    assert f'phase_a/{patch.name} does not apply' in text


def test_a_changed_function_is_no_pure_move(repo):
    """The function is named."""
    text = '"""Two."""\n\n\ndef second():\n    return 22\n'
    repo.change_on('wkt/alpha', 'tractor/two.py', text)
    assert repo.phases('export', 'phase_a')[0] == 0
    status, text = repo.phases('queue')
    assert status == 1
    assert 'phase_a is to move code only, but changes second' in text


def test_an_out_of_date_export_is_noticed(repo):
    """The message says how to write it again."""
    repo.change_on('wkt/beta', 'tractor/three.py', '"""More."""\n')
    status, text = repo.phases('queue')
    assert status == 1
    assert 'wkt/beta is not what patches/ has' in text
    assert 'nox -s export -- phase_b' in text


def test_a_cover_letter_names_the_base(repo):
    """The trailer that `git format-patch` wrote is compared with the queue."""
    cover = repo.folder / 'patches/phase_b/0000-cover-letter.patch'
    text = cover.read_text(encoding='utf-8')
    cover.write_text(re.sub(r'base-commit: \w+', f'base-commit: {repo.root()}', text))
    status, text = repo.phases('queue')
    assert status == 1
    assert f'phase_b: its base-commit {repo.root()} is not its base' in text
    cover.write_text('Subject: [PATCH 0/1] Add\n\nNo trailer.\n')
    assert 'has no base-commit: trailer' in repo.phases('queue')[1]


def test_a_series_that_lists_other_files_is_refused(repo):
    """Each file that is in one of the two only is named."""
    repo.write('patches/phase_b/series', '0009-gone.patch\n')
    status, text = repo.phases('queue')
    assert status == 1
    assert '0009-gone.patch' in text
    assert '0001-Add-a-third-file.patch' in text


def test_a_step_that_does_not_import_is_named(repo):
    """Each patch is checked alone, not only the last tree."""
    repo.change_on(
        'wkt/beta', 'tractor/four.py', '"""Four."""\n\nN = __import__(\'no_such\')\n'
    )
    assert repo.phases('export', 'phase_b')[0] == 0
    status, text = repo.phases('queue')
    assert status == 1
    assert "No module named 'no_such'" in text


# -- verify ------------------------------------------------------------------


def test_verify_ends_with_a_table(repo):
    """Phase, interpreter, patches, passed, skipped, and why skipped."""
    status, text = repo.phases('verify', 'phase_b')
    assert status == 0, text
    head, row, reason = text.strip().splitlines()[-3:]
    assert head.split() == [
        *('phase', 'interpreter', 'patches', 'passed', 'skipped', 'seconds')
    ]
    assert row.split()[:5] == ['phase_b', HERE, '2', '5', '3']
    assert reason.strip() == '3 skipped: this is too old'


def test_verify_takes_over_what_was_mended_since(repo):
    """What the commit changed in the package, whatever it did to files not there."""
    repo.write('tests/test_later.py', 'assert 1\n')
    repo.commit('Add a test')
    repo.write('tests/test_later.py', 'assert 2\n')
    repo.write('tractor/__init__.py', '"""Mended."""\n')
    mend = repo.commit('Mend the package')
    queue = (repo.folder / 'patches/queue.toml').read_text(encoding='utf-8')
    mended = queue.replace('move =', f'mends = ["{mend}"]\nmove =')
    repo.write('patches/queue.toml', mended)
    status, text = repo.phases('verify', 'phase_b')
    assert status == 0, text
    assert f'phase_b: mended by {mend[:7]} Mend the package' in text
    assert 'linted """Mended."""' in text
    assert repo.phases('queue')[0] == 0


def test_verify_fails_with_the_tests(repo):
    """A failed session is the phase's failure."""
    status, text = repo.phases('verify', 'phase_a', FAIL='yes')
    assert status == 1
    assert f'phase_a failed: tests-{HERE}' in text


def test_an_interpreter_outside_the_range_is_refused(repo):
    """The range stands in the message."""
    status, text = repo.phases('verify', 'phase_a', '--python', '3.99')
    assert status == 1
    assert f'phase_a is verified on Python {HERE}, not on 3.99' in text


def test_a_missing_interpreter_is_named(repo):
    """With the command that installs it."""
    path = repo.folder / 'patches/queue.toml'
    path.write_text(path.read_text().replace(f'"{HERE}"', '"3.99"'))
    status, text = repo.phases('verify', 'phase_a', CI='')
    assert status == 1
    assert 'Python 3.99 is missing, run: pyenv install 3.99' in text


def test_a_shallow_clone_is_told_to_fetch(repo, tmp_path):
    """The base is not there, and that is why."""
    repo.git('clone', '-q', '--depth=1', f'file://{repo.folder}', str(tmp_path / 'c'))
    status, text = Repository(tmp_path / 'c').phases('verify', 'phase_a')
    assert status == 1
    assert 'it is shallow, run: git fetch --unshallow' in text


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_worktree(repo, tmp_path, signum):
    """Ctrl-C and SIGTERM in the middle of the tests."""
    os.mkfifo(gate := tmp_path / 'gate')
    with subprocess.Popen(
        [sys.executable, '.ci/phases.py', 'verify', 'phase_a'],
        cwd=repo.folder,
        env={**repo.env, 'GATE': str(gate)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as run:
        for line in run.stdout:
            if f'Running session tests-{HERE}' in line:
                break
        assert repo.worktrees()
        run.send_signal(signum)
        assert run.wait(timeout=20) == (130 if signum == signal.SIGINT else 143)
    assert not repo.worktrees()


# -- export and land -----------------------------------------------------------


def test_export_shows_what_changed(repo):
    """The range-diff against what was there; the cover letter is kept."""
    repo.change_on('wkt/beta', 'tractor/three.py', '"""More."""\n')
    status, text = repo.phases('export', 'phase_b')
    assert status == 0, text
    assert re.search(r'(?m)^1:  \w+ = 1:  \w+ Add a third file$', text)
    assert re.search(r'(?m)^-:  -+ > 2:  \w+ Change$', text)
    cover = (repo.folder / 'patches/phase_b/0000-cover-letter.patch').read_text()
    assert 'Problem   One file held two.' in cover
    assert 'base-commit: ' in cover
    assert repo.phases('queue')[0] == 0


def test_export_on_a_changed_phase_below(repo):
    """Old patches that do not apply any more are no reason to keep them."""
    repo.change_on('wkt/alpha', 'tractor/three.py', '"""Taken."""\n')
    assert repo.phases('export', 'phase_a')[0] == 0
    repo.commit('Export')
    repo.git('branch', '-f', 'wkt/beta', 'wkt/alpha')
    repo.change_on('wkt/beta', 'tractor/four.py', '"""Four."""\n')
    status, text = repo.phases('export', 'phase_b')
    assert status == 0, text
    assert 'nothing to compare with: phase_b/0001' in text
    assert repo.phases('queue')[0] == 0


def test_export_where_nobody_has_the_branch_below(repo):
    """As in a clone; the base is then what the patches below make."""
    repo.git('branch', '-D', 'wkt/alpha', 'wkt/beta')
    assert repo.wkt('beta')[0] == 0
    there = Repository(repo.folder / '.claude/wkts/beta')
    there.write('tractor/three.py', '"""More."""\n')
    there.commit('Change')
    status, text = repo.phases('export', 'phase_b')
    assert status == 0, text
    assert (repo.folder / 'patches/phase_b/0002-Change.patch').exists()
    assert repo.phases('queue')[0] == 0


def test_an_export_that_fails_takes_nothing_away(repo):
    """What is wrong stands on one line."""
    repo.git('branch', '-D', 'wkt/beta')
    status, text = repo.phases('export', 'phase_b')
    assert status == 1
    assert text.count('\n') == 1
    assert 'wkt/beta' in text
    assert repo.git('status', '--porcelain') == ''


def test_the_series_lands_where_nobody_has_its_branches(repo):
    """As in a clone; the second phase changes what the first one made."""
    repo.change_on('wkt/beta', 'tractor/two.py', '"""Two."""\n')
    assert repo.phases('export', 'phase_b')[0] == 0
    repo.commit('Export')
    repo.git('branch', '-D', 'wkt/alpha', 'wkt/beta')
    for phase in ('phase_a', 'phase_b'):
        status, text = repo.phases('land', phase)
        assert status == 0, text
    status, text = repo.phases('queue')
    assert status == 0, text


def test_a_merge_that_conflicts_is_undone(repo):
    """The tree is as before."""
    repo.write('tractor/one.py', ONE.replace('return 2', 'return 3'))
    repo.commit('Change what the phase moves')
    status, text = repo.phases('land', 'phase_a')
    assert status == 1
    assert 'CONFLICT' in text
    assert repo.git('status', '--porcelain') == ''
    assert repo.git('log', '-1', '--format=%s') == 'Change what the phase moves'


def test_landing_merges_with_the_cover_letter(repo):
    """One merge commit, recorded; the queue then compares with it."""
    status, text = repo.phases('land', 'phase_a')
    assert status == 0, text
    assert repo.git('log', '-1', '--format=%B', 'HEAD~1') == COVER.strip()
    assert len(repo.git('log', '-1', '--format=%P', 'HEAD~1').split()) == 2
    status, text = repo.phases('queue')
    assert status == 0, text
    assert 'phase_a: the tree is that of' in text
    assert 'has landed already' in repo.phases('land', 'phase_a')[1]


def test_a_base_that_moved_on_is_no_difference(repo):
    """Commits that came between the base and the merge are not the phase's."""
    repo.write('tractor/later.py', '"""Later."""\n')
    repo.commit('Go on meanwhile')
    assert repo.phases('land', 'phase_a')[0] == 0
    status, text = repo.phases('queue')
    assert status == 0, text


def test_a_tree_that_is_not_the_queues_is_noticed(repo):
    """Something was slipped into the merge."""
    repo.git('merge', '-q', '--no-ff', '--no-commit', 'wkt/alpha')
    repo.write('tractor/more.py', '"""More."""\n')
    merge = repo.commit('Merge and more')
    path = repo.folder / 'patches/queue.toml'
    text = path.read_text().replace('title = "Move"', f'landed = "{merge}"')
    path.write_text(text.replace('[phase_a]', '[phase_a]\ntitle = "Move"'))
    status, text = repo.phases('queue')
    assert status == 1
    assert 'the queue is not what landed' in text


def test_landing_out_of_order_is_refused(repo):
    """Phase B waits for phase A."""
    status, text = repo.phases('land', 'phase_b')
    assert status == 1
    assert 'phase_b comes after phase_a: land that first' in text


def test_landing_on_a_dirty_tree_is_refused(repo):
    """Nothing uncommitted gets into a merge."""
    repo.write('tractor/one.py', '')
    status, text = repo.phases('land', 'phase_a')
    assert status == 1
    assert 'uncommitted changes' in text


def test_landing_on_another_history_is_refused(repo):
    """The phase's base has to be below what it is merged into."""
    repo.git('checkout', '-q', '--orphan', 'other')
    repo.commit('Another beginning')
    status, text = repo.phases('land', 'phase_a')
    assert status == 1
    assert 'is not in the current history' in text


# -- worktrees -----------------------------------------------------------------


def test_a_phases_worktree_has_its_patches(repo):
    """Ready to be amended, and entered again by the same command."""
    repo.git('branch', '-D', 'wkt/alpha', 'wkt/beta')
    status, text = repo.wkt('beta')
    assert status == 0, text
    folder = repo.folder / '.claude/wkts/beta'
    assert text.strip() == str(folder)
    assert (folder / 'tractor/three.py').exists()
    name, _, sockets = (folder / 'wkt.env').read_text().strip().partition('=')
    assert name == 'XDG_RUNTIME_DIR'
    assert Path(sockets).stat().st_mode & 0o777 == 0o700
    assert repo.wkt('beta') == (0, text)
    assert repo.wkt('--list') == (0, text)
    assert repo.git('status', '--porcelain') == ''
    assert repo.wkt('beta', '--close')[0] == 0
    assert repo.wkt('--list') == (0, '')
    assert not Path(sockets).exists()


def test_a_worktree_with_work_is_not_closed(repo):
    """Uncommitted and unmerged work is shown; `--force` drops it."""
    repo.wkt('other')
    folder = repo.folder / '.claude/wkts/other'
    (folder / 'new.py').write_text('')
    status, text = repo.wkt('other', '--close')
    assert status == 1
    assert 'new.py' in text
    repo.git('-C', str(folder), 'add', '-A')
    repo.git('-C', str(folder), 'commit', '-q', '-m', 'Work of mine')
    status, text = repo.wkt('other', '--close')
    assert status == 1
    assert 'Work of mine' in text
    assert repo.wkt('other', '--close', '--force')[0] == 0


@pytest.mark.parametrize('name', ['Big', '../up', '1st', 'a-b', ''])
def test_an_unusable_name_is_refused(repo, name):
    """It becomes a folder and a branch."""
    status, text = repo.wkt(name)
    assert status == 1
    assert 'is no name' in text
