"""
From a request to a call that is ready to run.

Looks the function up among the modules that the actor serves, finds out what kind it
is, and binds the arguments.  Everything wrong with a request is found here, before
anything is scheduled or acknowledged.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from .._exceptions import ModuleNotExposed

if TYPE_CHECKING:
    from .._context import Context


class Kind(Enum):
    """
    What a function is to the runtime.

    Attributes:
        functype: The wire name.
    """

    PLAIN = 1, 'asyncfunc'
    GENERATOR = 2, 'asyncgen'
    STREAM = 3, 'asyncgen'  # a coroutine function that streams (legacy)
    CONTEXT = 4, 'context'

    __hash__ = object.__hash__  # that of an enum is a call in Python

    def __init__(
        self, _number: int, functype: Literal['asyncfunc', 'asyncgen', 'context']
    ) -> None:
        self.functype = functype


# One module, run as a program here and again under another name there.
_MAINS: Final = {'__main__': '__mp_main__', '__mp_main__': '__main__'}

_kinds: weakref.WeakKeyDictionary[Any, Kind] = weakref.WeakKeyDictionary()


def kind_of(func: Callable[..., Any]) -> Kind:
    """
    Return what kind of endpoint a function is.

    Raises:
        TypeError: It is not an async function.
    """
    target = getattr(func, '__func__', func)
    kind = _kinds.get(target)
    if kind is None:
        kind = _kinds[target] = _inspect(target)
    return kind


def _inspect(func: Callable[..., Any]) -> Kind:
    if inspect.isasyncgenfunction(func):
        return Kind.GENERATOR
    if getattr(func, '_tractor_stream_function', False):
        return Kind.STREAM
    if not inspect.iscoroutinefunction(func):
        name = getattr(func, '__qualname__', repr(func))
        raise TypeError(f'{name} must be an async function')
    if getattr(func, '_tractor_context_meta', None) is not None:
        return Kind.CONTEXT
    return Kind.PLAIN


def check_name(func: Callable[..., Any], absent_is_wrong: bool = False) -> None:
    """
    Refuse a function that a peer could not find by its module and name.

    A method or a local function may be named like one of its module, which would be
    run in its place.

    Args:
        absent_is_wrong: Also if the module has nothing of that name, which the peer
            would tell.
    Raises:
        TypeError: It is another one, or none.
    """
    name = getattr(func, '__name__', '')
    module = sys.modules.get(func.__module__)
    if module is None:
        return  # importing it tells more
    found = getattr(module, name, None)
    if found is None and not absent_is_wrong:
        return
    # Decorated in place, or reloaded, it still is the same one.
    while found is not None and not _is_same(found, func):
        found = getattr(found, '__wrapped__', None)
    if found is None:
        raise TypeError(
            f'{func!r} cannot be run in another actor: it is not '
            f'{func.__module__}:{name or "?"}, by which that would find it; '
            'use an async function of a module'
        )


def _is_same(found: Any, func: Any) -> bool:
    if found == func:
        return True
    code = getattr(func, '__code__', None)
    return code is not None and getattr(found, '__code__', None) == code


def files_of(modules: Iterable[str]) -> dict[str, str]:
    """Import modules and return the file of each."""
    found = {}
    for name in modules:
        module = sys.modules.get(name) or importlib.import_module(name)
        path = getattr(module, '__file__', None) or ''
        found[name] = os.path.abspath(path) if path else ''
    return found


def folders_of(name: str, path: str) -> list[str]:
    """Return the folder of a module, and that of its outermost package."""
    if not path:
        return []
    folder = os.path.dirname(path)
    above = name.count('.') + (os.path.basename(path) == '__init__.py')
    outermost = folder
    for _ in range(above):
        outermost = os.path.dirname(outermost)
    return [folder] if outermost == folder else [folder, outermost]


def look_up(
    modules: Mapping[str, str], ns: str, name: str, actor_name: str
) -> Callable[..., Any]:
    """
    Return the function `name` of the served module `ns`.

    Args:
        modules: The served modules.
        actor_name: Whose they are, for the error.
    Raises:
        ModuleNotExposed: The module is not served.
        AttributeError: The module has no such name.
    """
    also = _MAINS.get(ns)
    if ns not in modules and also not in modules:
        raise ModuleNotExposed(
            f'module {ns!r} is not served by actor {actor_name!r}: start it with '
            f'`ActorNursery.start_actor({actor_name!r}, enable_modules=[{ns!r}])`'
        )
    module = sys.modules.get(ns)
    if module is None and also is not None:
        module = sys.modules.get(also)
    if module is None:
        raise ModuleNotExposed(f'module {ns!r} is served but was never imported')
    func: Callable[..., Any] = getattr(module, name)
    return func


def bind(
    func: Callable[..., Any], kind: Kind, kwargs: dict[str, Any], ctx: Context
) -> Any:
    """
    Call the function without running it: return its coroutine or async generator.

    Raises:
        TypeError: The arguments do not fit.
    """
    if kind is Kind.CONTEXT:
        meta: dict[str, Any] = func._tractor_context_meta  # type: ignore[attr-defined]
        return func(**{meta['ctx_var_name']: ctx}, **kwargs)
    if kind is Kind.STREAM:
        return func(**(kwargs | _stream_param(func, ctx)))
    return func(**kwargs)


class _SendSide:
    """What a `@tractor.stream` function gets as its `stream`."""

    __slots__ = ('ctx',)

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    async def send(self, data: Any) -> None:
        """Send one message to the caller."""
        await self.ctx._send_yield(data)

    send_yield = send


def _stream_param(func: Callable[..., Any], ctx: Context) -> dict[str, Any]:
    params = inspect.signature(func).parameters
    if 'stream' in params:
        return {'stream': _SendSide(ctx)}
    name = 'ctx' if 'ctx' in params else 'to_trio'
    # A decorator's own parameter is not for the decorated function's author to change.
    if name == 'ctx' and not getattr(func, '_tractor_has_own_ctx', False):
        warnings.warn(
            f'`@tractor.stream decorated funcs should declare a `stream` arg: '
            f'{func.__qualname__}',
            DeprecationWarning,
            stacklevel=2,
        )
    return {name: ctx}
