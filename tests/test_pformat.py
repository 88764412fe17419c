"""Text layout; and that nothing here raises."""

from __future__ import annotations

import pytest
import trio

from tractor import _pformat
from tractor._pformat import (
    add_div,
    nest_from_op,
    pformat_boxed_tb,
    pformat_caller_frame,
    pformat_cs,
    pformat_exc,
    ppfmt,
)


class Bad:
    """Its repr fails."""

    def __repr__(self):
        raise ZeroDivisionError


def test_divider_is_centred_under_the_message():
    """The divider stands on its own line, about as far from both ends."""
    message = 'x' * 40
    before, line, after = add_div(message).split('\n')
    assert (before, after) == ('', '')
    assert line.strip() == '------ - ------'
    left = len(line) - len(line.lstrip())
    assert abs(left - (40 - len(line))) <= 1


def test_divider_of_a_short_message():
    """A message shorter than the divider shifts nothing."""
    assert add_div('a', div_str='--==--') == '\n--==--\n'
    assert add_div('') == '\n------ - ------\n'


def test_boxed_traceback_layout():
    """Fields come first, then the box with the sender in both dividers."""
    text = pformat_boxed_tb(
        'Traceback:\n  line\nError: 1\n',
        fields_str="src_uid=('a', 'b')\nboxed_type=X",
        boxer_header="('a', 'b')",
    )
    assert text.splitlines() == [
        " |_src_uid=('a', 'b')",
        ' |_boxed_type=X',
        '   |',
        "    ------ ('a', 'b') ------",
        '    Traceback:',
        '      line',
        '    Error: 1',
        "    ------ ('a', 'b')- ------",
        '   _|',
    ]


def test_boxed_traceback_options():
    """Indents of box and body are settable, the header has a default."""
    lines = pformat_boxed_tb('tb', tb_box_indent=0, tb_body_indent=4).splitlines()
    assert lines == ['|', ' ------ - ------', '    tb', ' ------ -- ------', '_|']


def test_no_box_without_traceback():
    """No traceback, no box: a divider would claim a remote one."""
    text = pformat_boxed_tb('', fields_str='a=1')
    assert text == ' |_a=1\n'
    assert pformat_boxed_tb('') == ''


def test_boxed_traceback_has_a_fixed_signature():
    """An unknown argument is refused."""
    with pytest.raises(TypeError):
        pformat_boxed_tb('tb', nope=1)


def test_exception_not_in_flight_gets_its_type():
    """An exception at rest is shown inside its type, first line on that line."""
    text = pformat_exc(ValueError(), message='one\ntwo', body='rest\n')
    assert text == '<ValueError( one\ntwo\nrest\n)>'
    assert pformat_exc(ValueError(), message='one') == '<ValueError( one)>'


def test_exception_in_flight_has_no_type():
    """The handler shows the type of the exception it handles, so it is not repeated."""
    err = ValueError()
    try:
        raise err
    except ValueError:
        assert pformat_exc(err, message='one') == 'one'
        assert pformat_exc(KeyError(), message='one') == '<KeyError( one)>'


def test_exception_header_and_without():
    """A given header replaces the type; the type can be left out."""
    err = ValueError()
    assert pformat_exc(err, header='->', message='one\ntwo') == '-> one\ntwo'
    assert pformat_exc(err, message='one', body='b', with_type_header=False) == 'one\nb'
    assert pformat_exc(err, body='b', with_type_header=False) == 'b'


@pytest.mark.parametrize('box', [True, False])
def test_caller_frame_names_the_caller(box):
    """The stack ends with the calling function, boxed or bare."""

    def the_caller():
        return pformat_caller_frame(box_tb=box)

    text = the_caller()
    assert 'the_caller' in text
    assert 'test_caller_frame_names_the_caller' not in text
    assert ('------' in text) is box


def test_caller_frame_limit():
    """The limit counts frames up from the caller."""

    def inner():
        return pformat_caller_frame(stack_limit=2)

    assert 'test_caller_frame_limit' in inner()


def test_nest_from_op():
    """The object hangs below its symbol; later lines stand in by the prefix."""
    text = nest_from_op('>(', "('root', 'x')\n|_<Task>")
    assert text == ">(\n|_('root', 'x')\n  |_<Task>\n"
    assert nest_from_op('<=)', 'x', prefix_op=False) == '|_x\n<=)\n'
    assert nest_from_op('>', 'x', nest_prefix=' |_ ', nest_indent=1) == '>\n  |_ x\n'


def test_ppfmt_prints_on_request(capsys):
    """The text is returned, and printed only when asked."""
    text = ppfmt({'a': 1})
    assert text == "{'a': 1}"
    assert capsys.readouterr().out == ''
    ppfmt({'a': 1}, do_print=True)
    assert capsys.readouterr().out == text + '\n'


def test_cancel_scope():
    """Name and state of a scope are listed, also before it is entered."""
    scope = trio.CancelScope(shield=True)
    text = pformat_cs(scope, var_name='my_cs')
    assert text.startswith('my_cs: <trio.CancelScope')
    assert ' |_shield: True' in text

    async def main():
        with scope:
            scope.cancel()
            await trio.sleep_forever()
        return pformat_cs(scope)

    assert ' |_cancelled_caught: True' in trio.run(main)


def test_nothing_raises():
    """What cannot be formatted is named by its type instead."""
    bad = Bad()
    shown = [
        _pformat.safe_repr(bad),
        add_div(bad),
        pformat_boxed_tb(bad, fields_str=bad, boxer_header=bad),
        pformat_exc(ValueError(), message=bad, body=bad),
        nest_from_op('>', bad),
        ppfmt(bad),
        ppfmt([bad]),
        pformat_cs(bad),
    ]
    assert 'Bad' in shown[0]
    assert 'ZeroDivisionError' in shown[0]
    assert all(isinstance(text, str) for text in shown)
