"""
One async test as the main task of a root actor.

Owns `@tractor_test`: which fixtures of a test configure the runtime around it, and that
every such test has a deadline.  Imports nothing of pytest, since a child imports the
test module, and with it this one, to find the functions it serves.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, overload

# Fixtures that configure the root actor when the test asks for them.
_RUNTIME_FIXTURES: Final = ('loglevel', 'start_method', 'debug_mode')

type _AsyncTest = Callable[..., Awaitable[Any]]
type _SyncTest = Callable[..., Any]


@overload
def tractor_test(
    wrapped: _AsyncTest, *, timeout: float = ..., hide_tb: bool = ...
) -> _SyncTest: ...


@overload
def tractor_test(
    wrapped: None = ..., *, timeout: float = ..., hide_tb: bool = ...
) -> Callable[[_AsyncTest], _SyncTest]: ...


def tractor_test(
    wrapped: _AsyncTest | None = None,
    *,
    timeout: float = 30,
    hide_tb: bool = True,
) -> _SyncTest | Callable[[_AsyncTest], _SyncTest]:
    """
    Run an async test function as the main task of a root actor.

    The fixtures `reg_addr`, `loglevel`, `start_method` and `debug_mode` configure the
    runtime if the test declares them; for others the runtime's own defaults hold.  At
    the deadline the test is cancelled; the runtime and its children are torn down
    before the error is seen.

    Args:
        wrapped: The test; left out when the decorator is called with options.
        timeout: Seconds for the test together with the start and end of the runtime.
        hide_tb: Leave the frames of this wrapper and of the runtime out of tracebacks.
    Returns:
        A plain function with the test's signature, which pytest can inject into.
    Raises:
        TypeError: `wrapped` is not an async function.
    """
    if wrapped is None:
        return functools.partial(tractor_test, timeout=timeout, hide_tb=hide_tb)

    if not inspect.iscoroutinefunction(wrapped):
        raise TypeError(
            f'@tractor_test needs an async test function, but {wrapped!r} is none; '
            'write it as `async def`'
        )
    signature = inspect.signature(wrapped)

    @functools.wraps(wrapped)
    def run_test(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = hide_tb
        # Fails before any runtime exists when a declared fixture was not given.
        given = signature.bind(*args, **kwargs).arguments
        return _run_in_root(
            functools.partial(wrapped, *args, **kwargs),
            _runtime_options(given),
            timeout=timeout,
            hide_tb=hide_tb,
        )

    run_test.__signature__ = signature  # type: ignore[attr-defined]
    run_test._is_tractor_test = True  # type: ignore[attr-defined]  # for the plugin
    return run_test


def _runtime_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `open_root_actor()` that these fixtures ask for."""
    options: dict[str, Any] = {
        name: given[name] for name in _RUNTIME_FIXTURES if name in given
    }
    if (reg_addr := given.get('reg_addr')) is not None:
        options['registry_addrs'] = [reg_addr]

    method = options.get('start_method')
    if sys.platform == 'win32' and method not in (None, 'trio'):
        raise ValueError(f"start method {method!r} cannot run on Windows; use 'trio'")
    return options


def _run_in_root(
    test: Callable[[], Awaitable[Any]],
    options: dict[str, Any],
    *,
    timeout: float,
    hide_tb: bool,
) -> Any:
    __tracebackhide__ = hide_tb
    # Loaded when a test runs: collecting tests must not cost the runtime's import.
    import trio

    from tractor._root import open_root_actor

    async def main() -> Any:
        __tracebackhide__ = hide_tb
        with trio.fail_after(timeout):
            async with open_root_actor(hide_tb=hide_tb, **options):
                return await test()

    return trio.run(main)
