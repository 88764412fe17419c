"""What a context raises, absorbs or ships: every row of every table."""

from __future__ import annotations

from itertools import product
from typing import Final

import pytest

from tractor._protocol.verdict import (
    AT_EXIT,
    Body,
    Ended,
    Exit,
    Outcome,
    Ship,
    canceller_of,
    interrupts_body,
    is_own_ack,
    ship,
)

OWN, PEER, THIRD = ('me', 'u1'), ('peer', 'u2'), ('third', 'u3')

# Rows: how the body ended.  Columns: what is known of the remote task.
COLUMNS: Final = (
    Outcome.PENDING,
    Outcome.RESULT,
    Outcome.OWN_ACK,
    Outcome.ERROR,
    Outcome.LOST,
    Outcome.LOST_ASKED,
)
ROWS: Final = {
    Body.CLEAN: 'wait return return remote remote return',
    Body.OWN_ACK: 'return return return return return return',
    Body.CTXC: 'body body body body body body',
    Body.ERROR: 'cancel cancel cancel cancel cancel cancel',
}
EXITS: Final = {
    'wait': Exit.WAIT,
    'return': Exit.RETURN,
    'remote': Exit.RAISE_REMOTE,
    'body': Exit.RAISE_BODY,
    'cancel': Exit.CANCEL,
}


def test_the_tables_are_complete():
    """Every end of a body has an answer to every outcome; nothing else is in there."""
    assert set(AT_EXIT) == set(ROWS) == set(Body)
    assert set(COLUMNS) == set(Outcome)
    assert all(set(row) == set(Outcome) for row in AT_EXIT.values())


@pytest.mark.parametrize('body', Body)
@pytest.mark.parametrize('outcome', Outcome)
def test_each_body_with_each_outcome(body, outcome):
    """The block does what the table says."""
    word = ROWS[body].split()[COLUMNS.index(outcome)]
    assert AT_EXIT[body][outcome] is EXITS[word]


def test_only_an_open_question_is_waited_for():
    """Asked again with any known outcome, the block ends: it cannot wait twice."""
    waits = [
        (body, outcome)
        for body, outcome in product(Body, Outcome)
        if AT_EXIT[body][outcome] is Exit.WAIT
    ]
    assert waits == [(Body.CLEAN, Outcome.PENDING)]


def test_a_body_that_raised_is_never_overruled():
    """No outcome of the remote task replaces or swallows an error of the body."""
    for body, outcome in product((Body.CTXC, Body.ERROR), Outcome):
        assert AT_EXIT[body][outcome] in (Exit.RAISE_BODY, Exit.CANCEL)


def test_a_foreign_cancellation_sends_no_cancel():
    """A `ContextCancelled` of another context leaves this one's task running."""
    assert set(AT_EXIT[Body.CTXC].values()) == {Exit.RAISE_BODY}


@pytest.mark.parametrize('cancel_called', [False, True])
@pytest.mark.parametrize('is_ctxc', [False, True])
@pytest.mark.parametrize('canceller', [None, OWN, PEER, THIRD])
def test_an_ack_is_own_only_if_all_three_agree(cancel_called, is_ctxc, canceller):
    """This side asked, the answer is a cancellation, and it names this actor."""
    own = is_own_ack(cancel_called, is_ctxc, canceller, OWN)
    assert own is (cancel_called and is_ctxc and canceller is OWN)


# Who caused the end: whether this side called `Context.cancel()`, what came, and what
# the block with a clean body does.
ABSORPTION: Final = {
    'own Context.cancel()': (True, True, OWN, Exit.RETURN),
    'own Portal.cancel_actor()': (False, True, OWN, Exit.RAISE_REMOTE),
    'the child itself': (False, True, PEER, Exit.RAISE_REMOTE),
    'the child itself, while asked': (True, True, PEER, Exit.RAISE_REMOTE),
    'a third actor': (False, True, THIRD, Exit.RAISE_REMOTE),
    'a third actor, while asked': (True, True, THIRD, Exit.RAISE_REMOTE),
    'an error': (False, False, None, Exit.RAISE_REMOTE),
    'an error, while asked': (True, False, None, Exit.RAISE_REMOTE),
}


@pytest.mark.parametrize('case', ABSORPTION)
def test_who_caused_the_end(case):
    """Only the answer to this side's own `Context.cancel()` is absorbed."""
    cancel_called, is_ctxc, canceller, expected = ABSORPTION[case]
    own = is_own_ack(cancel_called, is_ctxc, canceller, OWN)
    outcome = Outcome.OWN_ACK if own else Outcome.ERROR
    assert AT_EXIT[Body.CLEAN][outcome] is expected


@pytest.mark.parametrize('is_ctxc', [False, True])
@pytest.mark.parametrize('canceller', [None, OWN, PEER, THIRD])
@pytest.mark.parametrize('src_uid', [None, OWN, PEER])
def test_the_reported_canceller(is_ctxc, canceller, src_uid):
    """Ourselves if a cancellation names us; else the source, not its canceller."""
    expected = OWN if is_ctxc and canceller is OWN else src_uid
    assert canceller_of(is_ctxc, canceller, src_uid, OWN) == expected


def test_a_relayed_cancellation_is_reported_as_its_relayers():
    """A third actor cancelled the peer: the peer is who ended this context."""
    assert canceller_of(True, THIRD, PEER, OWN) == PEER


@pytest.mark.parametrize('own_ack', [False, True])
@pytest.mark.parametrize('owner_listens', [False, True])
def test_what_interrupts_the_body(own_ack, owner_listens):
    """All but an own ack that the owner receives anyway, where it waits."""
    assert interrupts_body(own_ack, owner_listens) is not (own_ack and owner_listens)


SHIPPED: Final = {
    (Ended.RETURNED, False): Ship.RESULT,
    (Ended.RETURNED, True): Ship.RESULT,
    (Ended.RAISED, False): Ship.ERROR,
    (Ended.RAISED, True): Ship.ERROR,
    (Ended.OWN_SCOPE, False): Ship.CANCELLED,
    (Ended.OWN_SCOPE, True): Ship.REMOTE_ERROR,
    (Ended.FOREIGN_SCOPE, False): Ship.NOTHING,
    (Ended.FOREIGN_SCOPE, True): Ship.NOTHING,
}


@pytest.mark.parametrize(
    ('ended', 'has_remote_error'), list(product(Ended, [False, True]))
)
def test_what_the_called_side_sends_last(ended, has_remote_error):
    """One last word for every end."""
    assert ship(ended, has_remote_error) is SHIPPED[ended, has_remote_error]
