"""The sample messages that stream tests send."""

from __future__ import annotations

from tractor._testing.samples import generate_sample_messages


def test_each_message_starts_with_its_index():
    """The index is eight digits in brackets, counted from zero."""
    messages, _ = generate_sample_messages(11, rand_max=4, silent=True)
    assert [message[:10] for message in messages] == [b'[%08d]' % i for i in range(11)]


def test_total_is_the_sum_of_all_lengths():
    """The second value counts every byte of every message."""
    messages, total = generate_sample_messages(20, 3, 9, silent=True)
    assert total == sum(len(message) for message in messages)


def test_without_a_maximum_nothing_is_appended():
    """`rand_max=0` gives the bare index, whatever the minimum."""
    assert generate_sample_messages(2, 5, 0, silent=True)[0] == [
        b'[00000000]',
        b'[00000001]',
    ]


def test_tail_stays_within_its_bounds():
    """The random tail is `rand_min` to `rand_max` bytes long."""
    messages, _ = generate_sample_messages(50, 2, 4, silent=True)
    assert {len(message) - 10 for message in messages} <= {2, 3, 4}


def test_summary_is_printed_unless_silent(capsys):
    """One line on stdout tells amount and size."""
    generate_sample_messages(3)
    assert capsys.readouterr().out == '3 sample messages, 30 bytes in total\n'
    generate_sample_messages(3, silent=True)
    assert capsys.readouterr().out == ''
