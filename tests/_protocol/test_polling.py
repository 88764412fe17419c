"""When looking for an answer pays: rarer after each miss, frequent again after hits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tractor._protocol.polling import MAX_MISSES, Polling


def looks(polling, messages, verdict):
    """Send so many messages, with one verdict for each look; return how many looks."""
    count = 0
    for _ in range(messages):
        polling.left -= 1
        if not polling.left:
            count += 1
            verdict(polling)
    return count


def test_every_answer_that_comes_is_looked_for():
    """As long as the looks are not in vain, each message gets one."""
    assert looks(Polling(), 100, Polling.hit) == 100


def test_a_look_in_vain_makes_the_next_ones_rarer():
    """Twice as many messages lie between two looks, up to a limit."""
    polling = Polling()
    spacing = []
    for _ in range(MAX_MISSES + 2):
        polling.missed()
        spacing.append(polling.left)
    assert spacing == [2**n for n in range(1, MAX_MISSES + 1)] + [2**MAX_MISSES] * 2


def test_a_peer_that_never_answers_costs_few_looks():
    """A million messages are worth less than a thousand looks."""
    assert looks(Polling(), 1_000_000, Polling.missed) < 1000


def test_hits_make_looks_frequent_again():
    """From the rarest on, it takes a few hits until each message is looked for."""
    polling = Polling()
    for _ in range(MAX_MISSES):
        polling.missed()
    hits = 0
    while True:
        polling.hit()
        hits += 1
        polling.missed()
        if polling.left == 2:
            break
        polling.hit()
        hits += 1
    assert hits <= 2 * MAX_MISSES.bit_length()


def test_a_hit_is_followed_by_a_look():
    """Also after many misses the very next message shows whether it was luck."""
    polling = Polling()
    for _ in range(MAX_MISSES):
        polling.missed()
    polling.hit()
    assert polling.left == 1


def test_no_look_changes_nothing():
    """Without a verdict the spacing stays as it was."""
    polling = Polling()
    polling.missed()
    polling.missed()
    polling.left = 0
    polling.unknown()
    assert polling.left == 4


def test_while_a_look_is_due_more_may_be_sent():
    """Counting on below zero asks for no second look."""
    polling = Polling()
    assert looks(polling, 50, lambda polling: None) == 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([Polling.hit, Polling.missed, Polling.unknown])))
def test_a_look_is_never_further_off_than_the_limit(verdicts):
    """Whatever happened, one of the next 1024 messages is looked for."""
    polling = Polling()
    for verdict in verdicts:
        verdict(polling)
        assert 1 <= polling.left <= 2**MAX_MISSES
