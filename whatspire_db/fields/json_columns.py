"""Values within JSON columns, in queries: alike on both engines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from decimal import Decimal
from functools import reduce
from operator import or_

import peewee
from peewee import SQL, ColumnBase, Context, Expression, Node, Value

from ..errors import ValueRefused
from ..light_stdlib import Any
from ..sql import pinned
from . import on_postgres
from .text_search import StoredText, TextSearch, name_of, plain

_CHECKS_INPUT = 16  # the first PostgreSQL that tells whether a text is JSON without an error


class JSONValue(TextSearch):
    """A value within a JSON column: compared with texts, numbers, booleans and None, and read as Python's json would.

    A comparison is one of values of the same kind: "3" is not 3, and True is not 1. Rows without a value at the path,
    with null, or whose column holds no JSON equal None alone; `!=` does not find them.
    """

    def __init__(self, field: Any, path: tuple[Any, ...]) -> None:
        for key in path:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise ValueRefused(
                    f"a path in {name_of(field)} has a {type(key).__name__} in it",
                    "give keys as texts and places in lists as integers",
                )
            if isinstance(key, int) and not -_PLACES <= key < _PLACES:
                raise ValueRefused(f"a path in {name_of(field)} has a place that no list has", "give a smaller integer")
        if not path:
            raise ValueRefused(f"a path in {name_of(field)} is empty", "give the key of a value")
        self.field, self.path = field, path

    @staticmethod
    def _converter(value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    def __sql__(self, ctx: Context) -> Context:
        return ctx.sql(_Part(self.field, self.path, "json"))

    def _text(self) -> ColumnBase:
        return self.as_text()

    def as_text(self) -> _Part:
        """Return the value where it is a text, else NULL."""
        return _Part(self.field, self.path, "text")

    def as_number(self) -> _Part:
        """Return the value where it is a number, else NULL."""
        return _Part(self.field, self.path, "number")

    def as_flag(self) -> _Part:
        """Return the value where it is true or false, else NULL."""
        return _Part(self.field, self.path, "flag")

    def is_null(self, is_null: bool = True) -> Any:
        """Find rows without a value at the path, or with null there."""
        return _Part(self.field, self.path, "present").is_null(is_null)

    def _same_kind(self, other: Any) -> tuple[_Part, Any]:
        if isinstance(other, Decimal):
            other = int(other) if other == other.to_integral_value() else float(other)
        for kinds, part in (((bool,), self.as_flag), ((int, float), self.as_number), ((str,), self.as_text)):
            if isinstance(other, kinds):
                return part(), other
        raise ValueRefused(
            f"a value in {name_of(self.field)} is compared with one of type {type(other).__name__}",
            "compare it with a text, a number, a boolean or None; or use as_text(), as_number() or as_flag()",
        )

    @staticmethod
    def _operand(other: Any) -> Any:
        return _LargeNumber(other) if isinstance(other, int) and not -_LARGEST <= other < _LARGEST else plain(other)

    def _compared(self, operator: str, other: Any) -> Any:
        part, other = self._same_kind(other)
        return Expression(part, operator, self._operand(other))

    def __eq__(self, other: Any) -> Any:
        return self.is_null() if other is None else self._compared(peewee.OP.EQ, other)

    def __ne__(self, other: Any) -> Any:
        if other is None:
            return self.is_null(False)
        part, other = self._same_kind(other)
        return self.is_null(False) & (part.is_null() | Expression(part, peewee.OP.NE, self._operand(other)))

    __hash__ = object.__hash__

    def __lt__(self, other: Any) -> Any:
        return self._compared(peewee.OP.LT, other)

    def __le__(self, other: Any) -> Any:
        return self._compared(peewee.OP.LTE, other)

    def __gt__(self, other: Any) -> Any:
        return self._compared(peewee.OP.GT, other)

    def __ge__(self, other: Any) -> Any:
        return self._compared(peewee.OP.GTE, other)

    def between(self, low: Any, high: Any) -> Any:
        """Find values from one to another, both included."""
        return (self >= low) & (self <= high)

    def in_(self, values: Iterable[Any]) -> Any:
        """Find any of some values."""
        return reduce(or_, [self == value for value in values], SQL("0 = 1"))

    def not_in(self, values: Iterable[Any]) -> Any:
        """Find values that are none of these."""
        values = list(values)
        return reduce(lambda one, other: one & other, [self != value for value in values], self.is_null(False))

    __lshift__, __rshift__ = in_, __eq__


class _LargeNumber(Node):
    """An integer of more than 64 bits, which SQLite has as a floating-point number, in JSON too."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __sql__(self, ctx: Context) -> Context:
        number = self.number
        if not on_postgres(ctx):
            return ctx.value(float(max(min(number, _INFINITE), -_INFINITE)), converter=False)
        return ctx.value(number, converter=False)


class _Part(TextSearch):
    """A value within a JSON column as SQL of one kind."""

    def __init__(self, field: Any, path: tuple[Any, ...], kind: str) -> None:
        self.field, self.path, self.kind = field, path, kind

    def _converter(self, value: Any) -> Any:
        if isinstance(value, Decimal):
            return int(value) if value == value.to_integral_value() else float(value)
        return bool(value) if self.kind == "flag" and value is not None else value

    def __sql__(self, ctx: Context) -> Context:
        with ctx(converter=None, in_expr=False):
            return self._postgres(ctx) if on_postgres(ctx) else self._sqlite(ctx)

    def _postgres(self, ctx: Context) -> Context:
        # OFFSET 0 has the text and the document computed once.
        ctx.literal(f"(SELECT {pinned(_POSTGRES[self.kind])} FROM (SELECT ").sql(StoredText(self.field))
        ctx.literal(f" AS t OFFSET 0) AS jt, LATERAL (SELECT {_document(self.field)}")
        for key in self.path:
            ctx.literal(" OPERATOR(pg_catalog.->) ").sql(Value(key, converter=False))
        return ctx.literal(" AS v OFFSET 0) AS jv)")

    def _sqlite(self, ctx: Context) -> Context:
        text = StoredText(self.field)
        last = len(self.path)
        ctx.literal(f"(SELECT {_SQLITE[self.kind].format(last)} FROM json_each(CASE WHEN json_valid(").sql(text)
        ctx.literal(") THEN ").sql(text).literal(" END) AS j1")
        for level in range(1, last):
            ctx.literal(f", json_each(CASE WHEN {_CONTAINER.format(level)} THEN j{level}.value END) AS j{level + 1}")
        for level, key in enumerate(self.path, 1):
            ctx.literal(f" {'AND' if level > 1 else 'WHERE'} j{level}.key = ")
            if isinstance(key, int) and key < 0:  # from the end
                ctx.literal(f"(SELECT count(*) FROM json_each(j{level}.json, j{level}.path)) + ")
            ctx.sql(Value(key, converter=False))
        newest = ", ".join(f"j{level}.id DESC" for level in range(1, last + 1))
        return ctx.literal(f" ORDER BY {newest} LIMIT 1)")


_PLACES = 1 << 31  # places of a list, as PostgreSQL counts them
_LARGEST = 1 << 63
_INFINITE = 10**308
_CONTAINER = "j{0}.type IN ('object', 'array')"
_POSTGRES = {
    "json": "v::text",
    "text": "CASE WHEN jsonb_typeof(v) = 'string' THEN v #>> '{}' END",
    "number": "CASE WHEN jsonb_typeof(v) = 'number' THEN (v #>> '{}')::numeric END",
    "flag": "CASE WHEN jsonb_typeof(v) = 'boolean' THEN (v #>> '{}')::boolean END",
    "present": "CASE WHEN jsonb_typeof(v) <> 'null' THEN 1 END",
}
_SQLITE = {
    "json": "CASE WHEN j{0}.type IN ('true', 'false', 'null') THEN j{0}.type"
    " WHEN j{0}.type IN ('object', 'array') THEN j{0}.value ELSE json_quote(j{0}.value) END",
    "text": "CASE j{0}.type WHEN 'text' THEN j{0}.value END",
    "number": "CASE WHEN j{0}.type IN ('integer', 'real') THEN j{0}.value END",
    "flag": "CASE j{0}.type WHEN 'true' THEN 1 WHEN 'false' THEN 0 END",
    "present": "CASE WHEN j{0}.type <> 'null' THEN 1 END",
}


def _document(field: Any) -> str:
    """Return the SQL of a text `t` as jsonb: NULL where it is not JSON, from PostgreSQL 16 on."""
    db = field.model._meta.get_database_instance() if hasattr(field.model, "_meta") else None
    if db is not None and db.server_version is None:
        db.connection()  # the statement needs one anyway
    version = db.server_version if db is not None else None
    if isinstance(version, int) and version // 10000 < _CHECKS_INPUT:
        return pinned("CASE WHEN t <> '' THEN t::jsonb END")
    return pinned("CASE WHEN pg_input_is_valid(t, 'jsonb') THEN t::jsonb END")
