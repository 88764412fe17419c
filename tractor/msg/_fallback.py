"""
`Struct` and its company in pure Python, for interpreters that refuse `msgspec`.

A struct has slots for its fields, in order of their first declaration, those that are
only given by name last, and nothing else.  It is made by one generated function,
compiled when the class is first called, since most classes an actor defines are never
used in it.  Names and behaviour are those of `msgspec`, as far as this package and
payload types need them.  Used through `pretty_struct`.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import dropwhile
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

# Class keywords that are inherited, and what they are by default.  Those of garbage
# collection and of hashing change nothing but speed and memory.
_SWITCHES: Final = {
    'eq': True,
    'frozen': False,
    'order': False,
    'omit_defaults': False,
    'forbid_unknown_fields': False,
    'repr_omit_defaults': False,
    'weakref': False,
    'gc': True,
    'cache_hash': False,
}

WAYS_OUT: Final = "start the actor with `gil='shared'` or with a process backend"


class MsgspecError(Exception):
    """Base of what goes wrong here."""


class DecodeError(MsgspecError):
    """The data is broken."""


class ValidationError(DecodeError):
    """The data is of another type."""


class NeedsMsgspec(ImportError, TypeError):
    """
    A class that cannot be made here.

    To the backend it is what it means: the module that defines the class refuses this
    interpreter.  It says so in the words of a C extension.
    """


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
    """A field's default, or what makes it, and its name in encoded data."""

    __slots__ = ('default', 'default_factory', 'name')

    def __init__(
        self, default: Any, default_factory: Any, name: str | None = None
    ) -> None:
        self.default, self.default_factory = default, default_factory
        self.name = name


def field(
    *,
    default: Any = NODEFAULT,
    default_factory: Any = NODEFAULT,
    name: str | None = None,
) -> Any:
    """
    Return the default of a field.

    Args:
        name: What it is called in encoded data.
    Raises:
        TypeError: Both are given.
    """
    if default is not NODEFAULT and default_factory is not NODEFAULT:
        raise TypeError('pass either `default` or `default_factory`')
    return Field(default, default_factory, name)


class StructConfig:
    """How a struct class was declared."""

    __slots__ = (*_SWITCHES, 'tag', 'tag_field')

    eq: bool
    frozen: bool
    order: bool
    omit_defaults: bool
    forbid_unknown_fields: bool
    repr_omit_defaults: bool
    weakref: bool
    cache_hash: bool

    def __init__(self, options: Mapping[str, Any], name: str) -> None:
        for switch, normal in _SWITCHES.items():
            setattr(self, switch, options.get(switch, normal))
        if self.order and not self.eq:
            raise ValueError(f'struct {name!r} cannot have order=True with eq=False')
        if self.cache_hash and not self.frozen:
            raise ValueError(f'struct {name!r}: cache_hash=True needs frozen=True')
        tag, key = options.get('tag'), options.get('tag_field')
        if tag is None or tag is False:
            tag = name if key is not None and tag is None else None
        elif tag is True:
            tag = name
        elif callable(tag):
            tag = tag(name)
        self.tag: str | int | None = tag
        self.tag_field: str | None = None if tag is None else key or 'type'


_NEEDS_MSGSPEC: Final = frozenset({'array_like', 'dict'})
_OPTIONS: Final = frozenset({*_SWITCHES, 'kw_only', 'rename', 'tag', 'tag_field'})


def _refuse_options(struct: str, given: Iterable[str]) -> None:
    unknown = sorted({*given} - _OPTIONS)
    needed = [name for name in unknown if name in _NEEDS_MSGSPEC]
    if needed:
        raise NeedsMsgspec(
            f'struct {struct!r}: {", ".join(needed)} needs msgspec, which does not'
            f' support loading in subinterpreters with a GIL of their own; {WAYS_OUT}',
            name='msgspec',
        )
    if unknown:
        raise TypeError(
            f'struct {struct!r} got an unexpected keyword argument {unknown[0]!r}'
        )


def _camel(name: str, first: Callable[[str], str]) -> str:
    """Return a name in camel case; only underscores before it stay."""
    bare = name.lstrip('_')
    head, *tail = bare.split('_')
    return '_' * (len(name) - len(bare)) + first(head) + ''.join(map(str.title, tail))


_RENAMES: Final[dict[str, Callable[[str], str]]] = {
    'lower': str.lower,
    'upper': str.upper,
    'camel': lambda name: _camel(name, str),
    'pascal': lambda name: _camel(name, str.title),
    'kebab': lambda name: name.strip('_').replace('_', '-'),
}


def _renamed(name: str, before: str, rename: Any) -> str:
    """Return what a field is called in encoded data: anew if its class renames."""
    if rename is None:
        return before
    if isinstance(rename, str):
        if rename not in _RENAMES:
            raise ValueError(f'rename={rename!r} is unsupported')
        return _RENAMES[rename](name)
    new = rename(name) if callable(rename) else rename.get(name)
    if new is not None and not isinstance(new, str):
        raise TypeError(f'`rename` has to return a `str` or `None`, not {new!r}')
    return name if new is None else new


def is_default(value: Any, default: Any) -> bool:
    """Return whether a field's value need not be told, as `msgspec` judges that."""
    if type(default) is not Field:
        return value is default
    made = default.default_factory
    return made in (list, dict, set) and type(value) is made and not value


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
        if index == len(cls.__match_args__):
            params.append('*')
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
    __struct_encoded__: dict[str, str]  # field -> its name in encoded data
    __struct_encode_fields__: tuple[str, ...]
    __match_args__: tuple[str, ...]
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
            ValueError: Options or names that exclude each other.
        """
        _refuse_options(name, options)
        if '__slots__' in namespace:
            raise TypeError(f'struct {name!r} cannot define __slots__')
        declared: dict[str, Any] = {}
        encoded: dict[str, str] = {}
        merged: dict[str, Any] = {}
        by_name: set[str] = set()
        for base in reversed(bases):
            if isinstance(base, StructMeta):
                declared.update(base.__struct_declared__)
                encoded.update(base.__struct_encoded__)
                merged.update(base.__struct_options__)
                by_name -= {*base.__match_args__}
                by_name |= {*base.__struct_fields__[len(base.__match_args__) :]}
        inherited_rename = merged.get('rename')
        merged.update({k: v for k, v in options.items() if v is not None})
        merged['rename'] = options.get('rename', inherited_rename)
        kw_only = merged.pop('kw_only', False)  # of this body alone
        slots = []
        own = {
            key: annotation
            for key, annotation in _annotations(namespace).items()
            if not _is_class_var(annotation)
        }
        for key in own:
            if key not in declared:
                slots.append(key)
            default = namespace.pop(key, NODEFAULT)
            given = default.name if isinstance(default, Field) else None
            before = encoded.get(key, key)
            encoded[key] = given or _renamed(key, before, merged['rename'])
            declared[key] = _checked_default(default)
        by_name = by_name | {*own} if kw_only else by_name - {*own}
        positional = tuple(key for key in declared if key not in by_name)
        _check_order(name, {key: declared[key] for key in positional})
        order = (*positional, *(key for key in declared if key in by_name))
        declared = {key: declared[key] for key in order}
        encoded = {key: encoded[key] for key in order}
        config = StructConfig(merged, name)
        if len({*encoded.values()}) < len(encoded):
            raise ValueError(f'struct {name!r}: two fields are encoded by one name')
        if config.tag_field in encoded.values():
            raise ValueError(
                f'struct {name!r}: tag_field={config.tag_field!r} is a field already'
            )
        if config.weakref and not any(base.__weakrefoffset__ for base in bases):
            slots.append('__weakref__')
        if config.frozen:
            namespace.setdefault('__setattr__', _immutable)
            namespace.setdefault('__delattr__', _immutable)
        elif any(getattr(base, '__setattr__', None) is _immutable for base in bases):
            namespace.setdefault('__setattr__', object.__setattr__)
            namespace.setdefault('__delattr__', object.__delattr__)
        namespace.setdefault('__init__', _first_init)
        namespace |= {
            '__slots__': tuple(slots),
            '__match_args__': positional,
            '__struct_fields__': order,
            '__struct_encoded__': encoded,
            '__struct_encode_fields__': tuple(encoded.values()),
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
        """Defaults from the first field on that has one."""
        defaults = iter(cls.__struct_declared__.values())
        return tuple(dropwhile(lambda default: default is NODEFAULT, defaults))


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

    __match_args__: ClassVar[tuple[str, ...]]
    __struct_fields__: ClassVar[tuple[str, ...]]
    __struct_encode_fields__: ClassVar[tuple[str, ...]]
    __struct_config__: ClassVar[StructConfig]

    def __repr__(self) -> str:
        hides = self.__struct_config__.repr_omit_defaults
        pairs = (
            f'{name}={getattr(self, name)!r}'
            for name, default in type(self).__struct_declared__.items()
            if not (hides and is_default(getattr(self, name), default))
        )
        return f'{type(self).__name__}({", ".join(pairs)})'

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not self.__struct_config__.eq:
            return NotImplemented
        return all(
            getattr(self, n) == getattr(other, n) for n in self.__struct_fields__
        )

    def _ordered(self, other: object, compare: Callable[[Any, Any], Any]) -> Any:
        if type(self) is not type(other) or not self.__struct_config__.order:
            return NotImplemented
        return compare(_values(self), _values(other))

    def __lt__(self, other: object) -> Any:
        return self._ordered(other, operator.lt)

    def __le__(self, other: object) -> Any:
        return self._ordered(other, operator.le)

    def __gt__(self, other: object) -> Any:
        return self._ordered(other, operator.gt)

    def __ge__(self, other: object) -> Any:
        return self._ordered(other, operator.ge)

    def __hash__(self) -> int:
        config = self.__struct_config__
        if not config.eq:
            return object.__hash__(self)
        if not config.frozen:
            raise TypeError(f'unhashable type: {type(self).__name__!r}')
        return hash((type(self), *_values(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        if len(self.__match_args__) < len(self.__struct_fields__):
            return _rebuilt, (type(self), asdict(self))
        return type(self), _values(self)

    def __copy__(self) -> Self:
        cls: Any = type(self)
        new: Self = cls.__new__(cls)
        for name in self.__struct_fields__:
            # By its descriptor, which works in a frozen struct as well.
            getattr(cls, name).__set__(new, getattr(self, name))
        return new


def _values(struct: Any) -> tuple[Any, ...]:
    return tuple(getattr(struct, name) for name in struct.__struct_fields__)


def _rebuilt(cls: Any, fields: dict[str, Any]) -> Any:
    return cls(**fields)


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

    def __init__(self, name: str, encode_name: str, kind: Any, default: Any) -> None:
        self.name, self.encode_name = name, encode_name
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
    cls = get_origin(target) or target
    declared, encoded = cls.__struct_declared__, cls.__struct_encoded__
    return tuple(
        FieldInfo(name, encoded[name], kind, declared[name])
        for name, kind in field_types(target).items()
    )


def force_setattr(struct: Struct, name: str, value: Any) -> None:
    """Set a field, also of a frozen struct."""
    getattr(type(struct), name).__set__(struct, value)


structs: Final = SimpleNamespace(
    asdict=asdict, fields=fields, force_setattr=force_setattr, FieldInfo=FieldInfo
)
