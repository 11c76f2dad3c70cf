"""What the modules that every start loads need of `typing`, `dataclasses` and `re`, without what those cost.

`typing` takes two milliseconds to load, `dataclasses` half a millisecond for each class, whose code it generates, and
`re` up to as much for each pattern. Type checkers see the standard library's names. At run time annotations are not
evaluated, so types are placeholders; the methods of a dataclass loop over its fields instead of being generated; a
pattern is compiled when it is first used. Modules that only some runs load use the standard library.
scripts/benchmark_start.py measures what this saves.
"""

from __future__ import annotations

__all__ = [
    "TYPE_CHECKING",
    "Any",
    "Generic",
    "NamedTuple",
    "NoReturn",
    "TextIO",
    "TypeVar",
    "dataclass",
    "field",
    "fields",
    "lazy_module",
    "pattern",
    "replace",
]

TYPE_CHECKING = False

if TYPE_CHECKING:
    from dataclasses import dataclass, field, fields, replace
    from importlib import import_module as lazy_module
    from re import compile as pattern
    from typing import Any, Generic, NamedTuple, NoReturn, TextIO, TypeVar
else:
    import re
    from collections import namedtuple
    from functools import cache
    from importlib import import_module
    from operator import attrgetter

    Any = NoReturn = TextIO = object
    MISSING = object()

    class pattern:
        """A pattern of `re` that is compiled when it is first used."""

        def __init__(self, text, flags=0):
            self._arguments = text, flags

        def __getattr__(self, name):
            value = getattr(re.compile(*self._arguments), name)
            setattr(self, name, value)
            return value

    class lazy_module:
        """A module that is imported when something of it is first used."""

        def __init__(self, name):
            self._name = name

        def __getattr__(self, name):
            return getattr(import_module(self._name), name)

    def TypeVar(name, *constraints, bound=None):
        return object

    class Generic:
        def __class_getitem__(cls, parameters):
            return cls

    class _NamedTupleType(type):
        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            names = body["__annotations__"]
            base = namedtuple(name, names, defaults=[body.pop(field) for field in names if field in body])
            return type(name, (base,), {**body, "__slots__": ()})

    class NamedTuple(metaclass=_NamedTupleType):
        pass

    class field:
        """What a class says of a field beside its annotation."""

        __slots__ = ("compare", "default", "default_factory", "metadata", "name", "repr")

        def __init__(self, default=MISSING, default_factory=None, repr=True, compare=True, metadata=None):
            self.default, self.default_factory = default, default_factory
            self.repr, self.compare, self.metadata = repr, compare, metadata

    def dataclass(cls=None, *, frozen=False, eq=True):
        """Give a class what the standard library's decorator gives one without base classes."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, eq=eq)
        made = {"__init__": _initialize, "__repr__": _represent}
        if eq:
            made |= {"__eq__": _equal, "__hash__": _hash if frozen else None}
        if frozen:
            made["__setattr__"] = made["__delattr__"] = _refuse
        for name in made.keys() - vars(cls).keys() | made.keys() & {"__hash__"}:
            setattr(cls, name, made[name])
        cls.__fields__ = {name: _field(cls, name) for name in cls.__annotations__}
        cls.__dataclass_fields__ = _StandardFields()
        return cls

    def fields(cls):
        """Return the fields of a dataclass, in their order."""
        return tuple(cls.__fields__.values())

    def replace(value, **changes):
        """Return a value with other fields, like the standard library's function of this name."""
        return type(value)(**{name: getattr(value, name) for name in value.__fields__} | changes)

    def _field(cls, name):
        """Return a class's field; what stays on the class is its default alone."""
        value = vars(cls).get(name, MISSING)
        found = value if isinstance(value, field) else field(value)
        found.name = name
        if found.default is not MISSING:
            setattr(cls, name, found.default)
        elif value is found:
            delattr(cls, name)
        return found

    @cache
    def _layout(cls):
        """Return a dataclass's names, its defaults, what makes those that are not shared, and what compares it."""
        fields = cls.__fields__
        defaults = {name: field.default for name, field in fields.items() if field.default is not MISSING}
        factories = {name: field.default_factory for name, field in fields.items() if field.default_factory}
        return tuple(fields), defaults, factories, attrgetter(*(n for n, field in fields.items() if field.compare))

    def _initialize(self, *arguments, **given):
        names, defaults, factories, _ = _layout(type(self))
        values = self.__dict__
        values.update(zip(names, arguments, strict=False), **given)
        is_doubled = len(values) < len(arguments) + len(given)
        if len(values) < len(names):
            for name, make in factories.items():
                if name not in values:
                    values[name] = make()
            values.update(defaults | values)
        if is_doubled or values.keys() != self.__fields__.keys():
            raise TypeError(f"{type(self).__name__} takes {', '.join(names)}, each once")
        if hasattr(self, "__post_init__"):
            self.__post_init__()

    def _represent(self):
        shown = (name for name, field in self.__fields__.items() if field.repr)
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def _equal(self, other):
        values = _layout(type(self))[3]
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    def _hash(self):
        return hash(_layout(type(self))[3](self))

    def _refuse(self, name, value=None):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot assign to or delete field {name!r}")

    class _StandardFields:
        """What the standard library's `replace`, `fields` and `asdict` ask a dataclass for; made when they first do."""

        made = None

        def __get__(self, instance, cls):
            self.made = self.made or self._make(cls)
            return self.made

        def _make(self, cls):
            import dataclasses

            standard = []
            for name, own in cls.__fields__.items():
                more = {"default": own.default} if own.default is not MISSING else {}
                more |= {"default_factory": own.default_factory} if own.default_factory else {}
                one = dataclasses.field(repr=own.repr, compare=own.compare, metadata=own.metadata, **more)
                standard.append((name, object, one))
            return dataclasses.make_dataclass(cls.__name__, standard).__dataclass_fields__
