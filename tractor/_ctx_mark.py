"""
`@context`: the mark of a function that other actors open as a context.

The mark is data on the function itself: which parameter takes the context, and the
type of its payloads.  `_open_ctx` reads it on one side, `runtime/_rpc` on the other.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from typing import Any, overload

from ._context import Context


@overload
def context[F: Callable[..., Any]](func: F) -> F: ...
@overload
def context[F: Callable[..., Any]](
    *,
    pld_spec: Any = ...,
    dec_hook: Callable[..., Any] | None = ...,
    enc_hook: Callable[..., Any] | None = ...,
) -> Callable[[F], F]: ...
def context[F: Callable[..., Any]](
    func: F | None = None,
    *,
    pld_spec: Any = Any,
    dec_hook: Callable[..., Any] | None = None,
    enc_hook: Callable[..., Any] | None = None,
) -> F | Callable[[F], F]:
    """
    Mark an async function as one that can be opened with `Portal.open_context()`.

    One of its parameters has to be annotated as `tractor.Context`.

    Args:
        pld_spec: The type, or union of types, of all its payloads both ways.
        dec_hook: Decodes the extension types of `pld_spec`.
        enc_hook: Kept for the caller's use; apply it with `tractor.msg.apply_codec()`.
    Returns:
        The same function.
    Raises:
        TypeError: No parameter is annotated as a context.
    """

    def mark(fn: F) -> F:
        sig = inspect.signature(fn)
        name = _find_ctx_param(fn, sig)
        if name is None:
            raise TypeError(
                f'`@context` function {fn.__module__}:{fn.__qualname__} must take a '
                'parameter annotated as `ctx: tractor.Context`'
            )
        fn._tractor_context_meta = {  # type: ignore[attr-defined]
            'ctx_var_name': name,
            'pld_spec': pld_spec,
            'dec_hook': dec_hook,
            'enc_hook': enc_hook,
            'sig': sig,
        }
        return fn

    return mark if func is None else mark(func)


def _find_ctx_param(func: Callable[..., Any], sig: inspect.Signature) -> str | None:
    for name, param in sig.parameters.items():
        hint = param.annotation
        if isinstance(hint, str):
            if _names_context(hint, func):
                return name
        elif _is_context(hint):
            return name
    return None


def _is_context(hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_is_context(arg) for arg in typing.get_args(hint))
    return isinstance(hint, type) and issubclass(hint, Context)


def _names_context(hint: str, func: Callable[..., Any]) -> bool:
    """Evaluate a postponed annotation; one that cannot be is judged by its name."""
    try:
        closure = inspect.getclosurevars(func).nonlocals
        value = eval(hint, getattr(func, '__globals__', {}), dict(closure))
    except Exception:
        parts = (part.strip() for part in hint.split('|'))
        return any(re.fullmatch(r'(\w+\.)*Context', part) for part in parts)
    return _is_context(value)
