"""Keys as positions: written as text, read again, and compared in queries."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

import peewee
from peewee import Tuple, Value

from ..errors import ModelError
from ..migrate.schema import DATA_TABLE
from .engines.base import RowEngine

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
    time: (time.isoformat, time.fromisoformat),
    timedelta: (lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)),
    bool: (bool, bool),
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
                f"a key of type {type(value).__name__} cannot be stored as a position",
                "let the function take no batch: it then runs in one transaction",
            )
        parts.append([type(value).__name__, _KINDS[type(value)][0](value)])
    return json.dumps(parts)


def read(text: str) -> list[Any]:
    """Return the values of a key that `write` wrote.

    :raises ModelError: when somebody else wrote the text.
    """
    try:
        return [_KINDS[_BY_NAME[kind]][1](value) for kind, value in json.loads(text)]
    except (ValueError, TypeError, LookupError, ArithmeticError):
        raise ModelError(
            "the recorded position of a data migration is not valid", f"look at the table {DATA_TABLE}"
        ) from None


@dataclass(frozen=True)
class Batch:
    """The rows of a batch: a condition that selects them, how many they are, and the last one's key as text."""

    selected: Any
    rows: int
    position: str


class Keys:
    """The primary key of a model, whose values are compared as the driver gives them."""

    def __init__(self, engine: RowEngine, model: type[peewee.Model]) -> None:
        self.engine, self.model, self.fields = engine, model, model._meta.get_primary_keys()
        self._above, self._up_to, self._equal = (engine.operator_of_key(model, each) for each in (">", "<=", "="))

    @property
    def _node(self) -> Any:
        return self.fields[0] if len(self.fields) == 1 else Tuple(*self.fields)

    def _compared(self, operator: str, key: Sequence[Any]) -> Any:
        values = [Value(value, converter=False) for value in key]
        return peewee.Expression(self._node, operator, values[0] if len(values) == 1 else Tuple(*values))

    def require_no_nulls(self) -> None:
        """Refuse rows that no order of keys reaches: SQLite takes NULL in a primary key that is no integer.

        :raises ModelError: tells that there are some.
        """
        is_null = reduce(or_, (field.is_null() for field in self.fields))
        if self._rows(self.model.select(peewee.SQL("1")).where(is_null).limit(1)):
            raise ModelError(
                f"rows of {self.model._meta.table_name} have NULL in their primary key, and would not be changed",
                "give them keys, or let the function take no batch: it then runs in one transaction",
            )

    def batch(self, position: str | None, size: int) -> Batch | None:
        """Return the next rows after a position, at most `size`; None when there are no more.

        :raises ModelError: when a key cannot be stored as a position.
        """
        above = None if position is None else self._compared(self._above, read(position))
        rows, key = self._last(above, size)
        while key is not None and not self._is_there(above, key):
            before, (rows, key) = key, self._last(above, size)
            if key == before:  # else it was deleted meanwhile
                raise self._inexact()
        if key is None:
            return None
        upper = self._compared(self._up_to, key)
        return Batch(upper if above is None else above & upper, rows, write(key))

    def _last(self, above: Any, size: int) -> tuple[int, Sequence[Any] | None]:
        """Return how many rows a batch has, and the key of the last one; None where there are no more."""
        query = self.model.select(*self.fields).order_by(*self.fields)
        query = query if above is None else query.where(above)
        if found := self._rows(query.limit(1).offset(size - 1)):
            return size, found[0]
        found = self._rows(query.limit(size))
        return len(found), found[-1] if found else None

    def _is_there(self, above: Any, key: Sequence[Any]) -> bool:
        """Tell whether a row behind the position has a key: one that the driver has rounded finds none."""
        write(key)  # what cannot be stored may be nothing to compare with either
        equal = self._compared(self._equal, key)
        query = self.model.select(peewee.SQL("1")).where(equal if above is None else above & equal)
        return bool(self._rows(query.limit(1)))

    def _inexact(self) -> ModelError:
        return ModelError(
            f"a key of {self.model._meta.table_name} is rounded by the driver, so rows could be missed",
            "let the function take no batch: it then runs in one transaction",
        )

    def _rows(self, query: peewee.ModelSelect) -> list[Sequence[Any]]:
        """Return rows as the driver gives them: a field's own values may not be comparable."""
        db = self.engine.db
        return list(db.execute_sql(*db.get_sql_context().parse(query)).fetchall())
