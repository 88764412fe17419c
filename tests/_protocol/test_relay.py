"""How a boxed error changes per hop: every shape of a hop, then whole ways."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tractor._protocol.relay import RELAYED, Hop, hop

LEAF, MIDDLE, ROOT = ('leaf', 'u1'), ('middle', 'u2'), ('root', 'u3')

EXAMPLES: Final = 200

PLAIN: Final = ('ValueError', 'ExceptionGroup', 'KeyboardInterrupt')
SUBTYPES: Final = ('ContextCancelled', 'MsgTypeError', 'StreamOverrun', 'UsersOwn')
# Each way an error can have arrived here: straight from its source or relayed.
CAME: Final = {
    'from its source': Hop(LEAF, 'ValueError', 'ValueError', [LEAF]),
    'relayed': Hop(LEAF, 'ValueError', RELAYED, [LEAF, MIDDLE]),
    'a cancellation': Hop(LEAF, 'ContextCancelled', 'ContextCancelled', [LEAF]),
    'a cancellation, relayed': Hop(
        MIDDLE, 'ContextCancelled', 'ContextCancelled', [LEAF, MIDDLE]
    ),
}


@pytest.mark.parametrize('name', [*PLAIN, *SUBTYPES, RELAYED])
def test_an_error_raised_here(name):
    """The first hop names this actor and one type, and the way starts here."""
    assert hop(name, LEAF) == Hop(LEAF, name, name, [LEAF])


@pytest.mark.parametrize('came', CAME.values(), ids=CAME)
def test_a_relayed_error_keeps_its_source(came):
    """An exact `RemoteActorError` changes in its box and its way only."""
    step = hop(RELAYED, ROOT, came)
    assert step.src_uid == came.src_uid
    assert step.src_type_str == came.src_type_str
    assert step.boxed_type_str == RELAYED
    assert step.relay_path == [*came.relay_path, ROOT]


@pytest.mark.parametrize('came', CAME.values(), ids=CAME)
@pytest.mark.parametrize('name', SUBTYPES)
def test_a_subtype_speaks_for_the_actor_that_ships_it(name, came):
    """Source and types are those of this hop; the way so far is kept."""
    step = hop(name, ROOT, came)
    assert step == Hop(ROOT, name, name, [*came.relay_path, ROOT])


@pytest.mark.parametrize('name', [RELAYED, *SUBTYPES])
def test_a_hop_leaves_what_arrived_alone(name):
    """The error stays in use here: the way it came may not grow under it."""
    came = Hop(LEAF, 'ValueError', 'ValueError', [LEAF])
    step = hop(name, MIDDLE, came)
    step.relay_path.append(ROOT)
    assert came == Hop(LEAF, 'ValueError', 'ValueError', [LEAF])


def test_a_grandchilds_error_at_the_root():
    """Original type and source, boxed as a relay, last relayer at the end."""
    came = hop(RELAYED, MIDDLE, hop('ValueError', LEAF))
    assert came == Hop(LEAF, 'ValueError', RELAYED, [LEAF, MIDDLE])


ACTORS: Final = st.tuples(st.sampled_from('abc'), st.uuids().map(str))


@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(
    source=ACTORS,
    name=st.sampled_from([*PLAIN, *SUBTYPES, RELAYED]),
    hops=st.lists(st.tuples(st.sampled_from([RELAYED, *SUBTYPES]), ACTORS), max_size=6),
)
def test_any_way(source, name, hops):
    """
    The way lists every actor once per hop, in order.

    The source is the actor of the last hop that was no plain relay, with its type.
    """
    step = hop(name, source)
    speaker = (source, name)
    for boxed, actor in hops:
        step = hop(boxed, actor, step)
        if boxed != RELAYED:
            speaker = (actor, boxed)
    assert step.relay_path == [source, *(actor for _, actor in hops)]
    assert (step.src_uid, step.src_type_str) == speaker
    assert step.boxed_type_str == (hops[-1][0] if hops else name)
