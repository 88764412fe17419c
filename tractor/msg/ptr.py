"""
A function reference as text: `'package.module:name'`.

The text is what travels; the object is looked up where it is needed.  Used by
portals to name what they call.
"""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Self


class NamespacePath(str):
    """
    The text form of a module-level function, class or method.

    Equality and hash are those of `str`.  No codec encodes it without a hook.
    """

    __slots__ = ('_ref',)

    _ref: Any

    @classmethod
    def from_ref(cls, ref: Any) -> Self:
        """
        Return the path of an object.

        Args:
            ref: A function gives `module:name`, a bound method
                `module:Class.method` of its instance, a class its own path, and any
                other object that of its type.
        """
        return cls(':'.join(_module_and_name(ref)))

    def load_ref(self) -> Any:
        """
        Import and return the object; the result is kept.

        Raises:
            ValueError: The text is no path.
            ImportError: The module cannot be imported.
            AttributeError: The module has no such object.
        """
        try:
            return self._ref
        except AttributeError:
            # Here, since most actors load no reference and it costs a millisecond.
            from pkgutil import resolve_name

            self._ref = resolve_name(self)
            return self._ref

    def to_tuple(self) -> tuple[str, str]:
        """Load the object and return its `(module, name)`."""
        return _module_and_name(self.load_ref())


def _module_and_name(ref: Any) -> tuple[str, str]:
    if isinstance(ref, MethodType):
        owner = ref.__self__
        cls = owner if isinstance(owner, type) else type(owner)
        return cls.__module__, f'{cls.__qualname__}.{ref.__name__}'
    if isinstance(ref, FunctionType | BuiltinFunctionType):
        return ref.__module__, ref.__name__
    cls = ref if isinstance(ref, type) else type(ref)
    return ref.__module__, cls.__qualname__
