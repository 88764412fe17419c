"""
Text layout for reprs, error reports and log records.

Nothing here raises: these functions run while an error is being shown, where
another one would hide it.  What cannot be formatted is shown by a plain repr.
Used by the error classes, reprs of runtime objects and debugger headers.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

_DIVIDER = '------ - ------'


def safe_repr(obj: object) -> str:
    """Return `repr(obj)`, or the default one where that fails."""
    try:
        return repr(obj)
    except Exception as err:
        return f'<{type(obj).__name__} at {id(obj):#x}, repr: {type(err).__name__}>'


def _text(obj: object) -> str:
    """Return text as it is, anything else by its repr."""
    return obj if isinstance(obj, str) else safe_repr(obj)


def indent_lines(text: str, prefix: str) -> str:
    """Put `prefix` ahead of every line that holds more than white space."""
    lines = text.splitlines(keepends=True)
    return ''.join(prefix + line if line.strip() else line for line in lines)


def add_div(message: str, div_str: str = _DIVIDER) -> str:
    """Return a line with `div_str` about centred under `message`, newlines around."""
    lines = _text(message).splitlines() or ['']
    shift = (max(map(len, lines)) - len(div_str)) // 2
    return f'\n{" " * max(shift, 0)}{div_str}\n'


def pformat_boxed_tb(
    tb_str: str,
    fields_str: str | None = None,
    field_prefix: str = ' |_',
    tb_box_indent: int | None = None,
    tb_body_indent: int = 1,
    boxer_header: str = '-',
) -> str:
    """
    Return a remote traceback in a box, below lines that describe it.

    Args:
        tb_str: The traceback; if empty there is no box.
        fields_str: Lines ahead of the box; `field_prefix` is put before each.
        tb_box_indent: Columns the box stands in; `None` means the width of
            `field_prefix` if there are fields, else 1.
        tb_body_indent: Columns the traceback stands in within the box.
        boxer_header: Who sent the traceback, shown in the box's frame.
    """
    fields = ''
    if fields_str:
        fields = indent_lines(_text(fields_str).rstrip('\n'), field_prefix) + '\n'
    if not tb_str:
        return fields
    if tb_box_indent is None:
        tb_box_indent = len(field_prefix) if fields else 1
    header = _text(boxer_header)
    body = indent_lines(_text(tb_str).rstrip('\n'), ' ' * tb_body_indent)
    box = f'|\n ------ {header} ------\n{body}\n ------ {header}- ------\n_|\n'
    return fields + indent_lines(box, ' ' * tb_box_indent)


def pformat_exc(
    exc: BaseException,
    header: str = '',
    message: str = '',
    body: str = '',
    with_type_header: bool = True,
) -> str:
    """
    Return an exception's text.

    An exception in flight is about to be shown behind its type by whoever handles
    it, so the type is added only to others.

    Args:
        header: Replaces `<Type(`; nothing closes it.
        message: Its first line stays on the line of the header.
        body: Appended on lines of its own.
        with_type_header: `False` never adds the type.
    """
    tail = ''
    if not header and with_type_header and exc is not sys.exception():
        header, tail = f'<{type(exc).__name__}(', ')>'
    text = header
    if message:
        first, *rest = _text(message).splitlines()
        separator = ' ' if header else ''
        text = '\n'.join((f'{header}{separator}{first}', *rest))
    if body:
        text = f'{text}\n{_text(body)}' if text else _text(body)
    if tail and '\n' in text and not text.endswith('\n'):
        text += '\n'
    return text + tail


def pformat_caller_frame(stack_limit: int = 1, box_tb: bool = True) -> str:
    """
    Return the caller's stack as text.

    Args:
        stack_limit: Number of frames, the caller's own last.
        box_tb: Draw a box around it.
    """
    try:
        stack = traceback.format_stack(sys._getframe(1), limit=stack_limit)
    except Exception as err:
        return f'<no stack: {safe_repr(err)}>\n'
    text = ''.join(stack)
    return pformat_boxed_tb(text, field_prefix='  ') if box_tb else text


def nest_from_op(
    input_op: str,
    text: str,
    prefix_op: bool = True,
    op_suffix: str = '\n',
    nest_prefix: str = '|_',
    nest_indent: int | None = None,
) -> str:
    """
    Return an object's text hung below (or above) a symbol for what happens to it.

        >(
        |_('root', 'b0e7')
          |_<Task '__main__.main'>

    Args:
        input_op: The symbol, such as `>(` for "is opened".
        text: The object; lines after the first stand in by `nest_prefix`.
        prefix_op: `False` puts the symbol last.
        op_suffix: What separates symbol and object.
        nest_prefix: Put before the first line.
        nest_indent: Columns the object stands in; `None` means none.
    """
    first, *rest = _text(text).splitlines() or ['']
    hang = ' ' * len(nest_prefix)
    nested = '\n'.join((nest_prefix + first, *(hang + line for line in rest)))
    nested = indent_lines(nested, ' ' * (nest_indent or 0))
    if prefix_op:
        return f'{input_op}{op_suffix}{nested}\n'
    return f'{nested}{op_suffix}{input_op}\n'


def ppfmt(obj: object, do_print: bool = False) -> str:
    """
    Return an object laid out over several lines.

    Args:
        do_print: Write it to stdout as well.
    """
    # Here, since it brings `dataclasses`, and few actors format anything.
    from pprint import PrettyPrinter

    try:
        text = PrettyPrinter().pformat(obj)
    except Exception:
        text = safe_repr(obj)
    if do_print:
        print(text)  # noqa: T201
    return text


def pformat_cs(cs: Any, var_name: str = 'cs', field_prefix: str = ' |_') -> str:
    """
    Return a cancel scope's state, one field per line.

    Args:
        cs: A `trio.CancelScope`.
        var_name: What to call it.
        field_prefix: Put before each field.
    """
    names = ('cancel_called', 'cancelled_caught', 'shield', 'deadline')
    lines = [f'{var_name}: {safe_repr(cs)}']
    for name in names:
        try:
            value = safe_repr(getattr(cs, name))
        except Exception as err:
            value = f'<{type(err).__name__}>'
        lines.append(f'{field_prefix}{name}: {value}')
    return '\n'.join(lines) + '\n'
