"""Keys of rows as a place to go on from: written as text, read again, and compared in queries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import peewee
from peewee import Tuple, Value

from ..errors import ModelError

# How a value of the driver's is written in JSON, and read again.
_KINDS: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    int: (int, int),
    str: (str, str),
    float: (float.hex, float.fromhex),
    bytes: (bytes.hex, bytes.fromhex),
    Decimal: (str, Decimal),
    UUID: (str, UUID),
    datetime: (datetime.isoformat, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
}
_BY_NAME = {kind.__name__: kind for kind in _KINDS}


def write(key: Sequence[Any]) -> str:
    """Return the values of a key, as the driver gave them, as text.

    :raises ModelError: when one has a type that is not known here.
    """
    parts = []
    for value in key:
        value = bytes(value) if isinstance(value, memoryview) else value
        if type(value) not in _KINDS:
            raise ModelError(
                f"a key of type {type(value).__name__} cannot be kept as a place to go on from",
                "let the function take no batch: it then runs in one transaction",
            )
        parts.append([type(value).__name__, _KINDS[type(value)][0](value)])
    return json.dumps(parts)


def read(text: str) -> list[Any]:
    """Return the values of a key that `write` wrote."""
    return [_KINDS[_BY_NAME[kind]][1](value) for kind, value in json.loads(text)]


class Keys:
    """The primary key of a model, whose values are compared as the driver gives them."""

    def __init__(self, model: type[peewee.Model]) -> None:
        self.fields = model._meta.get_primary_keys()

    @property
    def node(self) -> Any:
        """The key in a query."""
        return self.fields[0] if len(self.fields) == 1 else Tuple(*self.fields)

    def _value(self, key: Sequence[Any]) -> Any:
        values = [Value(value, converter=False) for value in key]
        return values[0] if len(values) == 1 else Tuple(*values)

    def behind(self, key: Sequence[Any]) -> Any:
        """Return a condition for the rows whose key comes later."""
        return peewee.Expression(self.node, peewee.OP.GT, self._value(key))

    def up_to(self, key: Sequence[Any]) -> Any:
        """Return a condition for the rows up to a key, that one included."""
        return peewee.Expression(self.node, peewee.OP.LTE, self._value(key))

    def ordered(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        """Return a query in the order of the keys."""
        return query.order_by(*self.fields)
