"""
`Struct` and its company in pure Python, for interpreters that refuse `msgspec`.

A struct has slots for its fields, in order of their first declaration, and nothing
else.  It is made by one generated function, compiled when the class is first called,
since most classes an actor defines are never used in it.  Names and behaviour are those
of `msgspec`, as far as this package and payload types need them.  Used through
`pretty_struct`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import (
    Any,
    ClassVar,
    Final,
    Self,
    dataclass_transform,
    get_origin,
    get_type_hints,
)

WAYS_OUT: Final = "start the actor with `gil='shared'` or with a process backend"


class MsgspecError(Exception):
    """Base of what goes wrong here."""


class DecodeError(MsgspecError):
    """The data is broken."""


class ValidationError(DecodeError):
    """The data is of another type."""


class _Nothing:
    __slots__ = ()

    def __repr__(self) -> str:
        return 'NODEFAULT'


NODEFAULT: Final = _Nothing()


class Raw:
    """A part of a message that nobody has looked at yet, as plain data."""

    __slots__ = ('value',)

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return self.value == other.value if type(other) is Raw else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Raw, (self.value,)


class Field:
    """A field's default, or what makes it."""

    __slots__ = ('default', 'default_factory')

    def __init__(self, default: Any, default_factory: Any) -> None:
        self.default, self.default_factory = default, default_factory


def field(*, default: Any = NODEFAULT, default_factory: Any = NODEFAULT) -> Any:
    """
    Return the default of a field.

    Raises:
        TypeError: Both are given.
    """
    if default is not NODEFAULT and default_factory is not NODEFAULT:
        raise TypeError('pass either `default` or `default_factory`')
    return Field(default, default_factory)


class StructConfig:
    """How a struct class was declared."""

    __slots__ = ('eq', 'frozen', 'tag', 'tag_field')

    def __init__(self, options: Mapping[str, Any], name: str) -> None:
        self.eq: bool = options.get('eq', True)
        self.frozen: bool = options.get('frozen', False)
        tag, key = options.get('tag'), options.get('tag_field')
        if tag is None or tag is False:
            tag = name if key is not None and tag is None else None
        elif tag is True:
            tag = name
        elif callable(tag):
            tag = tag(name)
        self.tag: str | int | None = tag
        self.tag_field: str | None = None if tag is None else key or 'type'


_OPTIONS: Final = frozenset({'eq', 'frozen', 'tag', 'tag_field'})


def _annotations(namespace: dict[str, Any]) -> dict[str, Any]:
    """Return a class body's annotations; in 3.14 a function may stand for them."""
    found: dict[str, Any] | None = namespace.get('__annotations__')
    if found is not None:
        return found
    annotate = namespace.get('__annotate_func__') or namespace.get('__annotate__')
    if annotate is None:
        return {}
    try:
        values: dict[str, Any] = annotate(1)
    except NameError:
        # Refers to something further down, which is rare: not loaded before.
        import annotationlib  # type: ignore[import-not-found,unused-ignore]

        values = annotationlib.call_annotate_function(
            annotate, annotationlib.Format.FORWARDREF
        )
    return values


def _is_class_var(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return annotation.startswith(('ClassVar', 'typing.ClassVar'))
    return annotation is ClassVar or get_origin(annotation) is ClassVar


def _checked_default(default: Any) -> Any:
    """Return a default as a `Field` if every instance needs its own."""
    if isinstance(default, Field):
        made = default.default_factory
        return _checked_default(default.default) if made is NODEFAULT else default
    if type(default) in (list, dict, set, bytearray):
        if default:
            raise TypeError(
                f'the default {default!r} would be shared: use `default_factory`'
            )
        return Field(NODEFAULT, type(default))
    return default


def _first_init(self: Any, /, *args: Any, **kwargs: Any) -> None:
    """Compile the class's own `__init__()`, which replaces this, and run it."""
    cls: Any = type(self)
    # A subclass may call this one's through `super()`: find whose place it is in.
    owner: Any = next(c for c in cls.__mro__ if vars(c).get('__init__') is _first_init)
    init = owner.__init__ = _compile_init(owner)
    init(self, *args, **kwargs)


def _compile_init(cls: Any) -> Callable[..., None]:
    names: tuple[str, ...] = cls.__struct_fields__
    scope: dict[str, Any] = {'_nothing': NODEFAULT}
    params, body = ['self'], []
    for index, name in enumerate(names):
        default = cls.__struct_declared__[name]
        value = name
        if default is NODEFAULT:
            params.append(name)
        elif type(default) is Field:
            scope[f'_make{index}'] = default.default_factory
            params.append(f'{name}=_nothing')
            value = f'_make{index}() if {name} is _nothing else {name}'
        else:
            scope[f'_default{index}'] = default
            params.append(f'{name}=_default{index}')
        if cls.__struct_config__.frozen:
            scope[f'_set{index}'] = getattr(cls, name).__set__
            body.append(f'_set{index}(self, {value})')
        else:
            body.append(f'self.{name} = {value}')
    if hasattr(cls, '__post_init__'):
        body.append('self.__post_init__()')
    source = f'def __init__({", ".join(params)}):\n ' + '\n '.join(body or ['return'])
    exec(source, scope)  # of our own making: names of fields are identifiers
    init: Callable[..., None] = scope['__init__']
    init.__qualname__ = f'{cls.__qualname__}.__init__'
    return init


def _immutable(self: Any, name: str, value: Any = None) -> None:
    raise AttributeError(f'immutable type: {type(self).__name__!r}')


@dataclass_transform(field_specifiers=(field,))
class StructMeta(type):
    """Makes slots of the annotations of a class."""

    __struct_fields__: tuple[str, ...]
    __struct_annotations__: dict[str, Any]  # of the class's own body
    __struct_declared__: dict[str, Any]  # field -> default, a `Field` if made anew
    __struct_options__: dict[str, Any]
    __struct_config__: StructConfig

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        **options: Any,
    ) -> Any:
        """
        Return the class.

        Raises:
            TypeError: A class keyword or an order of fields that is not possible.
        """
        if unknown := options.keys() - _OPTIONS:
            raise TypeError(
                f'struct {name!r}: {", ".join(sorted(unknown))} needs msgspec, which '
                f'cannot be loaded in an isolated sub-interpreter; {WAYS_OUT}'
            )
        if '__slots__' in namespace:
            raise TypeError(f'struct {name!r} cannot define __slots__')
        declared: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for base in reversed(bases):
            if isinstance(base, StructMeta):
                declared.update(base.__struct_declared__)
                merged.update(base.__struct_options__)
        merged.update({k: v for k, v in options.items() if v is not None})
        slots = []
        own = {
            key: annotation
            for key, annotation in _annotations(namespace).items()
            if not _is_class_var(annotation)
        }
        for key in own:
            if key not in declared:
                slots.append(key)
            declared[key] = _checked_default(namespace.pop(key, NODEFAULT))
        _check_order(name, declared)
        config = StructConfig(merged, name)
        if config.tag_field in declared:
            raise ValueError(
                f'struct {name!r}: tag_field={config.tag_field!r} is a field already'
            )
        if config.frozen:
            namespace.setdefault('__setattr__', _immutable)
            namespace.setdefault('__delattr__', _immutable)
        elif any(getattr(base, '__setattr__', None) is _immutable for base in bases):
            namespace.setdefault('__setattr__', object.__setattr__)
            namespace.setdefault('__delattr__', object.__delattr__)
        namespace.setdefault('__init__', _first_init)
        namespace |= {
            '__slots__': tuple(slots),
            '__match_args__': tuple(declared),
            '__struct_fields__': tuple(declared),
            '__struct_annotations__': own,
            '__struct_declared__': declared,
            '__struct_options__': merged,
            '__struct_config__': config,
        }
        return super().__new__(mcls, name, bases, namespace)

    def __init__(cls, name: str, bases: Any, namespace: Any, **options: Any) -> None:
        super().__init__(name, bases, namespace)

    @property
    def __struct_defaults__(cls) -> tuple[Any, ...]:
        """Defaults of the fields that have one; those come last."""
        return tuple(v for v in cls.__struct_declared__.values() if v is not NODEFAULT)


def _check_order(name: str, declared: Mapping[str, Any]) -> None:
    optional = None
    for key, default in declared.items():
        if default is not NODEFAULT:
            optional = key
        elif optional is not None:
            raise TypeError(
                f'struct {name!r}: field {key!r} has no default and cannot follow'
                f' {optional!r}, which has one'
            )


class Struct(metaclass=StructMeta):
    """A class with typed fields."""

    __struct_fields__: ClassVar[tuple[str, ...]]
    __struct_config__: ClassVar[StructConfig]

    def __repr__(self) -> str:
        pairs = (f'{n}={getattr(self, n)!r}' for n in self.__struct_fields__)
        return f'{type(self).__name__}({", ".join(pairs)})'

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not self.__struct_config__.eq:
            return NotImplemented
        return all(
            getattr(self, n) == getattr(other, n) for n in self.__struct_fields__
        )

    def __hash__(self) -> int:
        config = self.__struct_config__
        if not config.eq:
            return object.__hash__(self)
        if not config.frozen:
            raise TypeError(f'unhashable type: {type(self).__name__!r}')
        return hash((type(self), *(getattr(self, n) for n in self.__struct_fields__)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, n) for n in self.__struct_fields__)

    def __copy__(self) -> Self:
        cls: Any = type(self)
        new: Self = cls.__new__(cls)
        for name in self.__struct_fields__:
            # By its descriptor, which works in a frozen struct as well.
            getattr(cls, name).__set__(new, getattr(self, name))
        return new


def defstruct(
    name: str,
    fields: Iterable[Any],
    *,
    bases: tuple[type, ...] = (),
    module: str | None = None,
    **options: Any,
) -> Any:
    """
    Return a new struct class.

    Args:
        fields: `name`, `(name, type)` or `(name, type, default)` each.
        bases: `Struct` by default.
        module: What the class says it is from; the caller's by default.
        **options: As in a class statement.
    """
    body: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    for each in fields:
        key, kind, *default = (each, Any) if isinstance(each, str) else each
        annotations[key] = kind
        if default:
            body[key] = default[0]
    caller = sys._getframe(1).f_globals.get('__name__')
    body |= {'__module__': module or caller, '__annotations__': annotations}
    return StructMeta(name, bases or (Struct,), body, **options)


class FieldInfo:
    """One field of a struct class."""

    __slots__ = ('default', 'default_factory', 'encode_name', 'name', 'type')

    def __init__(self, name: str, kind: Any, default: Any) -> None:
        self.name = self.encode_name = name
        self.type = kind
        made = type(default) is Field
        self.default = NODEFAULT if made else default
        self.default_factory = default.default_factory if made else NODEFAULT

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is self.default_factory is NODEFAULT


def field_types(target: Any) -> dict[str, Any]:
    """
    Return the type of each field, in order.

    Args:
        target: A struct class, or a generic one with its arguments, which are put in
            the place of its type variables.
    """
    cls = get_origin(target) or target
    scopes: dict[type, dict[Any, Any]] = {}
    _collect_scopes(target, {}, scopes)
    found: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if not isinstance(owner, StructMeta):
            continue
        for name, annotation in _own_types(owner).items():
            found[name] = _substitute(annotation, scopes.get(owner, {}))
    return {name: found[name] for name in cls.__struct_fields__}


def _own_types(cls: Any) -> dict[str, Any]:
    """Return the annotations in one class's body, evaluated."""
    holder = SimpleNamespace(__annotations__=cls.__struct_annotations__)
    scope = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
    inner = {param.__name__: param for param in getattr(cls, '__type_params__', ())}
    return get_type_hints(holder, scope, inner | vars(cls))


def _collect_scopes(
    target: Any, outer: Mapping[Any, Any], scopes: dict[type, dict[Any, Any]]
) -> None:
    """Record what the type variables of a class and of its bases stand for."""
    cls = get_origin(target) or target
    params = getattr(cls, '__parameters__', ())
    args = target.__args__ if target is not cls else params
    mine = {p: _substitute(a, outer) for p, a in zip(params, args, strict=True)}
    scopes[cls] = mine
    for base in cls.__dict__.get('__orig_bases__', cls.__bases__):
        if isinstance(get_origin(base) or base, StructMeta):
            _collect_scopes(base, mine, scopes)


def _substitute(annotation: Any, scope: Mapping[Any, Any]) -> Any:
    if not scope:
        return annotation
    if annotation in scope:
        return scope[annotation]
    params = getattr(annotation, '__parameters__', ())
    if not params or isinstance(annotation, type):
        return annotation
    return annotation[tuple(scope.get(p, p) for p in params)]


def asdict(struct: Struct) -> dict[str, Any]:
    """Return a struct's fields by name."""
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def fields(target: Any) -> tuple[FieldInfo, ...]:
    """Return the fields of a struct or struct class, in order."""
    if isinstance(target, Struct):
        target = type(target)
    declared = (get_origin(target) or target).__struct_declared__
    return tuple(FieldInfo(n, t, declared[n]) for n, t in field_types(target).items())


structs: Final = SimpleNamespace(asdict=asdict, fields=fields, FieldInfo=FieldInfo)
