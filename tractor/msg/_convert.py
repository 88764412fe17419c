"""
Plain data to typed values: what `msgspec` does while it decodes.

A type is compiled once into a *shape*: for each type that plain data can have, what
turns it into a value.  A union merges the shapes of its members, so that one look at
the type of the data decides.  Structs are filled by a generated function; those of the
wire messages are generated when the first such message comes, all others at once, so
that a type that cannot be served is refused when its decoder is made.  Data is never
changed, but a container that needs no conversion is used as it is.  Used by
`_fallback_codec`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import EnumType
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NewType,
    TypeAliasType,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from tractor.msg._fallback import (
    NODEFAULT,
    WAYS_OUT,
    Field,
    Raw,
    StructMeta,
    field_types,
)

Converter = Callable[[Any], Any]
DecHook = Callable[[type, Any], Any]

# The type of the data -> what this is called in errors, and its converter.
Shape = dict[type, tuple[str, Converter]]

# Its structs can all be decoded, hence need not be looked at beforehand.
_OWN_MESSAGES: Final = 'tractor.msg.types'

_NAMES: Final[dict[type, str]] = {
    NoneType: 'None',
    bool: 'bool',
    int: 'int',
    float: 'float',
    str: 'str',
    bytes: 'bytes',
    dict: 'object',
    list: 'array',
    tuple: 'array',  # in keys
}
# In this order a union names what it takes.
_ORDER: Final = (*('bool', 'int', 'float', 'str', 'bytes', 'object', 'array', 'null'),)
_CONTAINERS: Final[dict[Any, type]] = {
    list: list,
    tuple: tuple,
    set: set,
    frozenset: frozenset,
}
_LEAVES: Final = frozenset({NoneType, bool, int, str, bytes})


class Mismatch(ValueError):
    """Data of the wrong type, and the path to it, innermost step first."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.path: list[str] = []

    def __str__(self) -> str:
        what = self.args[0]
        if not self.path:
            return str(what)
        if self.path[0] == 'key':
            return f'{what} - at `key` in `${"".join(reversed(self.path[1:]))}`'
        return f'{what} - at `${"".join(reversed(self.path))}`'


def _same(obj: Any) -> Any:
    return obj


def _name(obj: Any) -> str:
    return _NAMES.get(type(obj), 'ext')


def _null_or_name(obj: Any) -> str:
    return 'null' if obj is None else _name(obj)


def _unknown(spec: Any, why: str = '') -> TypeError:
    name = getattr(spec, '__qualname__', None) if isinstance(spec, type) else None
    return TypeError(
        f'the payload type `{name or spec}` needs msgspec, which cannot be loaded in an'
        f' isolated sub-interpreter{why}; {WAYS_OUT}'
    )


def _ambiguous(name: str, spec: Any) -> TypeError:
    return TypeError(
        f'a type union may not contain more than one {name}-like type:'
        f' `{spec}` is not supported'
    )


class Compiler:
    """
    Makes converters, which call one `dec_hook`.

    Args:
        dec_hook: As `msgspec.msgpack.Decoder` takes it.
    """

    __slots__ = ('_hook', '_made')

    def __init__(self, dec_hook: DecHook | None) -> None:
        self._hook = dec_hook
        self._made: dict[Any, Converter] = {}

    def converter(self, spec: Any) -> Converter:
        """
        Return what makes values of a type out of plain data, or raises `Mismatch`.

        Raises:
            TypeError: No way to decode this type.
        """
        made = self._made.get(spec)
        if made is not None:
            return made

        def forward(obj: Any) -> Any:
            return self._made[spec](obj)

        # A struct may contain itself.
        self._made[spec] = forward
        try:
            made = self._made[spec] = self._compile(spec)
        except TypeError:
            del self._made[spec]
            raise
        return made

    def _compile(self, spec: Any) -> Converter:
        members = _merge_literals(_members(spec))
        if any(member is Any or member is object for member in members):
            return _same
        if members == [Raw]:
            return Raw
        members = [member for member in members if member is not Raw]
        structs = [m for m in members if isinstance(get_origin(m) or m, StructMeta)]
        shape: Shape = {}
        for member in members:
            if member not in structs:
                self._merge(shape, self._shape(member, members), spec)
        if structs:
            self._merge(shape, {dict: ('object', self._structs(structs, spec))}, spec)
        if shape.keys() >= {str, bytes}:  # both are text in other formats
            raise _ambiguous('str', spec)
        return _by_type(shape)

    def _merge(self, shape: Shape, more: Shape, spec: Any) -> None:
        for kind, (name, convert) in more.items():
            there = shape.get(kind)
            # An integer is a float as well, but rather an integer.
            if there is not None and there[0] == name and name != 'float':
                raise _ambiguous(name, spec)
            if there is None or there[0] == 'float':
                shape[kind] = name, convert

    def _shape(self, spec: Any, union: list[Any]) -> Shape:
        """Return the shape of one type that is no struct."""
        origin, args = get_origin(spec) or spec, get_args(spec)
        if spec in _LEAVES:
            return {spec: ('null' if spec is NoneType else _NAMES[spec], _same)}
        if spec is float:
            return {float: ('float', _same), int: ('float', float)}
        if spec is bytearray:
            return {bytes: ('bytes', bytearray)}
        if origin is Literal:
            return _literal_shape(args)
        if isinstance(spec, EnumType):
            return _enum_shape(spec)
        if origin in _CONTAINERS:
            convert = self._array(_CONTAINERS[origin], args, spec is not tuple)
            return {list: ('array', convert), tuple: ('array', convert)}
        if origin is dict:
            key, value = args or (Any, Any)
            return {dict: ('object', self._dict(key, value))}
        return self._custom(spec, union)

    def _custom(self, spec: Any, union: list[Any]) -> Shape:
        hook, cls = self._hook, get_origin(spec) or spec
        if hook is None or not isinstance(cls, type):
            raise _unknown(spec)
        if set(union) - {spec, NoneType}:
            raise TypeError(
                'a type union with a custom type may contain only `None` besides:'
                f' `{spec}` in `{union}` is not supported'
            )
        name = cls.__name__

        def convert(obj: Any) -> Any:
            if obj is None and len(union) > 1:
                return None
            try:
                value = hook(spec, obj)
            except (TypeError, ValueError) as err:
                raise Mismatch(str(err)) from err
            if not isinstance(value, cls):
                raise Mismatch(f'Expected `{name}`, got `{type(value).__name__}`')
            return value

        return {object: (name, convert)}

    def _array(self, make: type, args: tuple[Any, ...], has_args: bool) -> Converter:
        if make is tuple and has_args and args[-1:] != (Ellipsis,):
            return self._fixed_tuple(args)
        item = self.converter(args[0]) if args else _same
        leaf = args[0] if args and args[0] in _LEAVES else None
        hashed = make is set or make is frozenset

        def convert(obj: Any) -> Any:
            if item is _same and not hashed:
                return obj if make is list and type(obj) is list else make(obj)
            # A list of one simple type is checked without a loop.
            if leaf is not None and {*map(type, obj)} <= {leaf}:
                return obj if make is list and type(obj) is list else make(obj)
            values = []
            for index, each in enumerate(obj):
                try:
                    # Where no type says otherwise its lists become tuples.
                    value = item(freeze(each) if hashed else each)
                except Mismatch as err:
                    err.path.append(f'[{index}]')
                    raise
                values.append(value)
            return values if make is list else make(values)

        return convert

    def _fixed_tuple(self, args: tuple[Any, ...]) -> Converter:
        items = [self.converter(arg) for arg in args]
        count = len(items)
        leaves = list(args) if _LEAVES.issuperset(args) else None

        def convert(obj: Any) -> Any:
            if [*map(type, obj)] == leaves:
                return tuple(obj)
            if len(obj) != count:
                raise Mismatch(f'Expected `array` of length {count}, got {len(obj)}')
            values = []
            for item, each in zip(items, obj, strict=True):
                try:
                    values.append(item(each))
                except Mismatch as err:
                    err.path.append(f'[{len(values)}]')
                    raise
            return tuple(values)

        return convert

    def _dict(self, key_type: Any, value_type: Any) -> Converter:
        key, value = self.converter(key_type), self.converter(value_type)
        if key is _same and value is _same:
            return _same
        only_keys = value is _same and key_type in _LEAVES

        def convert(obj: Any) -> Any:
            if only_keys:
                for each in obj:
                    if type(each) is not key_type:
                        break
                else:
                    return obj
            made = {}
            for k, v in obj.items():
                try:
                    k = key(k)
                except Mismatch as err:
                    err.path.append('key')
                    raise
                try:
                    made[k] = value(v)
                except Mismatch as err:
                    err.path.append('[...]')
                    raise
            return made

        return convert

    def _structs(self, members: list[Any], spec: Any) -> Converter:
        """Return what makes one of some structs, by their tags if they are several."""
        if len(members) == 1:
            return self._struct(members[0])
        by_tag: dict[Any, Converter] = {}
        keys = set()
        for member in members:
            config = (get_origin(member) or member).__struct_config__
            if config.tag is None or config.tag in by_tag:
                raise TypeError(
                    'structs of a type union must all be tagged, each by its own tag:'
                    f' `{spec}` is not supported'
                )
            by_tag[config.tag] = self._struct(member)
            keys.add(config.tag_field)
        if len(keys) > 1:
            raise TypeError(
                f'structs of a type union must have one `tag_field`, not {sorted(keys)}'
            )
        (key,) = keys
        kind = type(next(iter(by_tag)))

        def convert(obj: Any) -> Any:
            try:
                made = by_tag[obj[key]]
            except (KeyError, TypeError):
                raise _wrong_tag(obj, key, kind) from None
            return made(obj)

        return convert

    def _struct(self, spec: Any) -> Converter:
        cls = get_origin(spec) or spec
        if cls.__module__ != _OWN_MESSAGES:
            return self._generate(spec)
        for arg in get_args(spec):
            self.converter(arg)
        made: list[Converter] = []

        def convert(obj: Any) -> Any:
            if not made:
                made.append(self._generate(spec))
            return made[0](obj)

        return convert

    def row_converter(self, spec: Any) -> Converter:
        """
        Return what makes a struct of a row: its tag and the data of all its fields.

        It raises `Mismatch` without a path, and `ValueError` for a row of another size.
        """
        return self._generate(spec, row=True)

    def _generate(self, spec: Any, row: bool = False) -> Converter:
        """Compile the function that fills a struct out of a dict, or of a row."""
        cls = get_origin(spec) or spec
        config, types = cls.__struct_config__, field_types(spec)
        keys = _Keys(config.forbid_unknown_fields)
        scope: dict[str, Any] = {
            '_cls': cls,
            '_new': cls.__new__,
            '_keys': keys,
            'Mismatch': Mismatch,
            'Raw': Raw,
            'nothing': NODEFAULT,
        }
        body = ['new = _new(_cls)']
        if row:
            names = ''.join(f'v{i}, ' for i in range(len(types)))
            body.append(f'_, {names} = obj')
        elif config.tag is not None:
            scope['_tag'] = config.tag
            keys.known[config.tag_field] = _same
            body.append(f'if obj.get({config.tag_field!r}) != _tag:')
            body.append(f'    _keys.check_tag(obj, {config.tag_field!r}, _tag)')
        for i, (name, kind) in enumerate(types.items()):
            convert, default = self.converter(kind), cls.__struct_declared__[name]
            key = cls.__struct_encoded__[name]
            keys.known[key] = convert
            scope[f'_c{i}'] = convert if row else _field(key, convert, default, keys)
            if not row:
                body.append(f'v{i} = obj.get({key!r}, nothing)')
            value = _value(f'v{i}', f'_c{i}', kind, convert, row)
            if config.frozen:
                scope[f'_s{i}'] = getattr(cls, name).__set__
                body.append(f'_s{i}(new, {value})')
            else:
                body.append(f'new.{name} = {value}')
        if not row:
            body.append(f'if len(obj) > {len(types) + (config.tag is not None)}:')
            body.append('    _keys.check(obj)')
        if hasattr(cls, '__post_init__'):
            body += [
                'try:',
                '    new.__post_init__()',
                'except (TypeError, ValueError) as err:',
                '    raise Mismatch(str(err)) from err',
            ]
        source = '\n '.join(['def convert(obj):', *body, 'return new'])
        exec(source, scope)  # of our own making: names of fields are identifiers
        made: Converter = scope['convert']
        return made


def _value(data: str, call: str, kind: Any, convert: Converter, row: bool) -> str:
    """Return the expression for a field's value; what needs no call has none."""
    call += f'({data})' if row else f'({data}, obj)'
    if convert is _same or convert is Raw:
        value = f'Raw({data})' if convert is Raw else data
        return value if row else f'{value} if {data} is not nothing else {call}'
    if kind in _LEAVES and kind is not NoneType:
        return f'{data} if type({data}) is {kind.__name__} else {call}'
    return call


class _Keys:
    """
    The keys of a struct's data, and the order in which its errors are told.

    Attributes:
        known: What makes a value of each.
        closed: There may be no other.
    """

    __slots__ = ('closed', 'known')

    def __init__(self, closed: bool = False) -> None:
        self.closed = closed
        self.known: dict[Any, Converter] = {}

    def check(self, obj: dict[Any, Any]) -> None:
        """Refuse keys that the struct, or that none, can have."""
        if self.closed or not all(type(key) is str for key in obj):
            self.explain(obj)

    def check_tag(self, obj: dict[Any, Any], key: str, tag: str | int) -> None:
        """Refuse another tag; a lone struct needs none."""
        if key in obj:
            self.explain(obj, key)
            raise _wrong_tag(obj, key, type(tag))
        self.check(obj)

    def explain(self, obj: dict[Any, Any], up_to: Any = NODEFAULT) -> None:
        """Raise the first error in the order of the data, up to a key, if any."""
        for key, data in obj.items():
            if key == up_to:
                return
            if type(key) is not str:
                wrong = Mismatch(f'Expected `str`, got `{_null_or_name(key)}`')
                wrong.path.append('key')
                raise wrong
            if key in self.known:
                try:
                    self.known[key](data)
                except Mismatch as err:
                    err.path.append(f'.{key}')
                    raise
            elif self.closed:
                raise Mismatch(f'Object contains unknown field `{key}`')


def _field(
    name: str,
    convert: Converter,
    default: Any,
    keys: _Keys,
) -> Callable[[Any, dict[Any, Any]], Any]:
    """Return what makes a field's value of its data, which may be `NODEFAULT`."""

    def value_of(data: Any, obj: dict[Any, Any]) -> Any:
        if data is NODEFAULT:
            if default is NODEFAULT:
                keys.explain(obj)
                raise Mismatch(f'Object missing required field `{name}`')
            keys.check(obj)  # few as they are, some may be no field's
            return default.default_factory() if type(default) is Field else default
        try:
            return convert(data)
        except Mismatch as err:
            keys.explain(obj, name)
            err.path.append(f'.{name}')
            raise

    return value_of


def _wrong_tag(obj: dict[Any, Any], key: str, kind: type) -> Mismatch:
    _Keys().explain(obj, key)
    if key not in obj:
        return Mismatch(f'Object missing required field `{key}`')
    tag = obj[key]
    wrong = Mismatch(f'Invalid value {tag!r}')
    if type(tag) is not kind:
        wrong = Mismatch(f'Expected `{_NAMES[kind]}`, got `{_null_or_name(tag)}`')
    wrong.path.append(f'.{key}')
    return wrong


def freeze(value: Any) -> Any:
    """Return a value with its lists as tuples, as a set or a dict's key needs it."""
    return tuple(map(freeze, value)) if type(value) is list else value


def _members(spec: Any) -> list[Any]:
    """Return a union's members; wrappers that mean another type are taken off."""
    origin = get_origin(spec)
    if origin is Union or origin is UnionType:
        return [m for arg in get_args(spec) for m in _members(arg)]
    if origin is Annotated:
        return _members(spec.__origin__)
    if isinstance(spec, TypeVar):
        if spec.__constraints__:
            raise TypeError(
                f'the type variable `{spec}` has constraints, which are not supported:'
                f' `{spec.__constraints__}`'
            )
        return _members(Any if spec.__bound__ is None else spec.__bound__)
    if isinstance(spec, NewType):
        return _members(spec.__supertype__)
    if isinstance(spec, TypeAliasType):
        return _members(spec.__value__)
    return [NoneType if spec is None else spec]


def _merge_literals(members: list[Any]) -> list[Any]:
    """Return a union's members with one `Literal`, of what no other one includes."""
    literals = [member for member in members if get_origin(member) is Literal]
    if not literals:
        return members
    others = [member for member in members if member not in literals]
    values = [value for literal in literals for value in get_args(literal)]
    if not {*map(type, values)} <= {NoneType, bool, int, str}:
        raise TypeError(
            f'Literal may only contain None, booleans, integers or strings,'
            f' not {values!r}'
        )
    values = [value for value in values if type(value) not in others]
    return [*others, Literal[tuple(values)]] if values else others


def _by_type(shape: Shape) -> Converter:
    custom = shape.get(object)
    if custom is not None:
        return custom[1]
    table = {kind: convert for kind, (_, convert) in shape.items()}
    names = {name for name, _ in shape.values()}
    if 'int' in names and float not in shape:
        names.discard('float')
    expected = ' | '.join(name for name in _ORDER if name in names)

    def convert(obj: Any) -> Any:
        found = table.get(type(obj))
        if found is None:
            raise Mismatch(f'Expected `{expected}`, got `{_name(obj)}`')
        return found(obj)

    return convert


def _choice(
    values: dict[Any, Any], missing: Callable[[Any], Any] | None = None
) -> Converter:
    """Return what takes one of some values, or what `missing` makes of another."""

    def convert(obj: Any) -> Any:
        try:
            return values[obj]
        except KeyError:
            if missing is not None:
                # Whatever it returns is taken, as by `msgspec`.
                with suppress(Exception):
                    if (made := missing(obj)) is not None:
                        return made
            raise Mismatch(f'Invalid enum value {obj!r}') from None

    return convert


def _literal_shape(args: tuple[Any, ...]) -> Shape:
    shape: Shape = {}
    for kind in {type(arg) for arg in args}:
        name = 'null' if kind is NoneType else _NAMES[kind]
        shape[kind] = name, _choice({a: a for a in args if type(a) is kind})
    return shape


def _enum_shape(cls: Any) -> Shape:
    values = {**cls._value2member_map_}
    for kind in (int, str):
        if values and all(isinstance(v, kind) and type(v) is not bool for v in values):
            return {kind: (_NAMES[kind], _choice(values, cls._missing_))}
    raise TypeError(
        'Enums must contain either all str or all int values -'
        f' type `{cls!r}` is not supported'
    )
