"""Rules of `tractor.trionics._beg`: which groups collapse, and into what."""

from __future__ import annotations

import pickle
import traceback

import pytest
import trio

from tractor.trionics import collapse_eg, get_collapsed_eg, is_multi_cancelled
from tractor.trionics._beg import COLLAPSE_NOTE, collapse, strip


def _raise_in(exc: BaseException, **kwargs) -> BaseException:
    """Return what leaves a `collapse_eg()` block whose body raises `exc`."""

    async def main():
        async with collapse_eg(**kwargs):
            raise exc

    with pytest.raises(BaseException) as info:  # noqa: PT011
        trio.run(main)
    return info.value


async def _cancelled_group() -> BaseExceptionGroup:
    """Return a group with a real `trio.Cancelled` and a `ValueError`."""
    caught = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            caught.append(exc)
            raise
    return BaseExceptionGroup('both', [*caught, ValueError(1)])


@pytest.mark.parametrize('depth', [1, 2, 5])
@pytest.mark.parametrize('exc_type', [ValueError, KeyboardInterrupt])
def test_single_leaf_is_raised_as_identical_object(depth: int, exc_type: type):
    """A group with one leaf, however deep, is replaced by that very leaf."""
    leaf = group = exc_type('x')
    for _ in range(depth):
        group = BaseExceptionGroup('', [group])
    assert _raise_in(group) is leaf


def test_group_with_several_leaves_passes_unchanged():
    """A group that does not reduce to one leaf is raised as the same object."""
    group = ExceptionGroup('', [ValueError(1), ExceptionGroup('', [KeyError(2)])])
    assert _raise_in(group) is group
    assert not hasattr(group, '__notes__')


def test_bare_error_passes_unchanged():
    """An error which is no group gets no note."""
    error = ValueError(1)
    assert _raise_in(error) is error
    assert not hasattr(error, '__notes__')


def test_ignored_leaf_type_keeps_its_group():
    """Only the exact type in `ignore` keeps the group."""
    group = ExceptionGroup('', [KeyError(1)])
    assert _raise_in(group, ignore={KeyError}) is group
    leaf = KeyError(1)
    assert _raise_in(ExceptionGroup('', [leaf]), ignore={LookupError}) is leaf


def test_note_is_one_line_and_added_once():
    """However often a leaf is collapsed, it says so once, on one line."""
    leaf = ValueError(1)
    for _ in range(3):
        assert _raise_in(ExceptionGroup('', [leaf])) is leaf
    assert leaf.__notes__ == [COLLAPSE_NOTE]
    assert 'collapsed from a group' in COLLAPSE_NOTE
    assert '\n' not in COLLAPSE_NOTE


def test_note_can_be_left_out():
    """`add_notes=False` leaves the leaf as it was."""
    leaf = ValueError(1)
    assert _raise_in(ExceptionGroup('', [leaf]), add_notes=False) is leaf
    assert not hasattr(leaf, '__notes__')


def test_leaf_keeps_its_cause_and_context():
    """What a leaf was raised from stays; the group is not shown beside it."""
    leaf, cause, context = ValueError(1), KeyError(2), OSError(3)
    leaf.__cause__, leaf.__context__ = cause, context
    assert _raise_in(ExceptionGroup('gone', [leaf])) is leaf
    assert leaf.__cause__ is cause
    assert leaf.__context__ is context
    assert 'gone' not in ''.join(traceback.format_exception(leaf))


def test_leaf_without_cause_suppresses_context():
    """A leaf without a cause prints without 'During handling of ...'."""
    leaf = ValueError(1)
    _raise_in(ExceptionGroup('', [leaf]))
    assert leaf.__cause__ is None
    assert leaf.__suppress_context__


def test_bp_enters_the_debugger(monkeypatch: pytest.MonkeyPatch):
    """`bp=True` calls the breakpoint hook, and only where a leaf is raised."""
    calls = []
    monkeypatch.setattr('sys.breakpointhook', lambda: calls.append(1))
    _raise_in(ExceptionGroup('', [ValueError(1)]), bp=True)
    _raise_in(ValueError(1), bp=True)
    assert calls == [1]


def test_collapse_does_the_same_without_raising():
    """`collapse()` returns the leaf, or its argument."""
    leaf = ValueError(1)
    assert collapse(leaf) is leaf
    assert collapse(ExceptionGroup('', [ExceptionGroup('', [leaf])])) is leaf
    assert leaf.__notes__ == [COLLAPSE_NOTE]
    several = ExceptionGroup('', [leaf, KeyError()])
    assert collapse(several) is several
    assert pickle.loads(pickle.dumps(leaf)).__notes__ == [COLLAPSE_NOTE]


def test_nursery_inside_the_block_raises_bare():
    """The usual arrangement: a strict nursery inside the block."""

    async def main():
        async with collapse_eg(), trio.open_nursery() as tn:
            tn.start_soon(trio.sleep_forever)
            raise KeyError('x')

    with pytest.raises(KeyError, match='x'):
        trio.run(main)


def test_get_collapsed_eg_reduces_inner_groups():
    """Single-member groups inside a larger one give way to their member."""
    a, b = ValueError(1), KeyError(2)
    group = ExceptionGroup('outer', [ExceptionGroup('inner', [a]), b])
    reduced = get_collapsed_eg(group)
    assert isinstance(reduced, ExceptionGroup)
    assert reduced.message == 'outer'
    assert reduced.exceptions == (a, b)


def test_get_collapsed_eg_returns_none_if_nothing_changes():
    """No group, or one with several plain members, is not reduced."""
    assert get_collapsed_eg(ValueError(1)) is None
    assert get_collapsed_eg(ExceptionGroup('', [ValueError(1), KeyError(2)])) is None


def test_get_collapsed_eg_returns_the_single_leaf():
    """A chain of single-member groups reduces to its end."""
    leaf = ValueError(1)
    assert get_collapsed_eg(ExceptionGroup('', [ExceptionGroup('', [leaf])])) is leaf


def test_is_multi_cancelled_returns_matching_subgroup():
    """Some cancelled leaf suffices, and the subgroup holds only these."""
    group = trio.run(_cancelled_group)
    found = is_multi_cancelled(group)
    assert isinstance(found, BaseExceptionGroup)
    assert [type(e) for e in found.exceptions] == [trio.Cancelled]


def test_is_multi_cancelled_takes_more_types():
    """Types in `ignore_nested` count beside `trio.Cancelled`."""
    group = ExceptionGroup('', [ExceptionGroup('', [ValueError(1)]), KeyError(2)])
    assert is_multi_cancelled(group) is False
    found = is_multi_cancelled(group, {ValueError})
    assert isinstance(found, BaseExceptionGroup)
    assert found.subgroup(KeyError) is None


def test_is_multi_cancelled_is_false_for_bare_exceptions():
    """Only groups match."""
    assert is_multi_cancelled(ValueError(1), {ValueError}) is False


def test_strip_takes_off_the_outer_levels_only():
    """Down to a leaf, which gets its note, or to the first group with several."""
    leaf, other = ValueError(1), KeyError(2)
    assert strip(leaf) is leaf
    assert not hasattr(leaf, '__notes__')
    several = ExceptionGroup('several', [leaf, other])
    assert strip(ExceptionGroup('', [ExceptionGroup('', [several])])) is several
    assert strip(ExceptionGroup('', [leaf])) is leaf
    assert leaf.__notes__ == [COLLAPSE_NOTE]
