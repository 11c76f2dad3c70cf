"""JSON columns in queries: operators on their stored text, and the values within, alike on both engines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from functools import reduce
from operator import or_
from typing import Any

import peewee
from peewee import SQL, ColumnBase, Context, Expression, Node, NodeList, Value

from ..errors import ValueRefused
from ..sql import pinned

# Bytes, as hex, that are UTF-8 without U+0000: of others PostgreSQL makes no text but an error.
_UTF8 = (
    "^(0[1-9a-f]|[1-7].|(c[2-9a-f]|d.)[89ab].|(e0[ab]|e[1-9abcef][89ab]|ed[89]).[89ab]."
    "|(f0[9ab]|f[123][89ab]|f48).[89ab].[89ab].)*$"
)
_CHECKS_INPUT = 16  # the first PostgreSQL that tells whether a text is JSON without an error
_ESCAPED = NodeList((SQL("ESCAPE"), Value("\\", converter=False)))


def on_postgres(ctx: Context | None) -> bool:
    """Return whether peewee renders for PostgreSQL: its own type map says so, whatever class of Database it is."""
    types = ctx.state.field_types if ctx is not None else None
    return types is not None and types.get("BLOB") == "BYTEA"


# Text


class TextSearch(ColumnBase):
    """Operators that search a text; `%`, `_` and `\\` in patterns mean the same on both engines."""

    def _text(self) -> ColumnBase:
        return self

    def like(self, pattern: Any) -> Any:
        """Match a pattern, case-sensitively."""
        return _Like(self._text(), _pattern(self, pattern))

    def ilike(self, pattern: Any) -> Any:
        """Match a pattern in any case."""
        pattern = _pattern(self, pattern)
        return Expression(self._text(), peewee.OP.ILIKE, NodeList((_plain(pattern), _ESCAPED)))

    __mod__, __pow__ = like, ilike

    def contains(self, text: Any) -> Any:
        """Find a text within, in any case."""
        return ColumnBase.contains(self._text(), _pattern(self, text))

    def startswith(self, text: Any) -> Any:
        """Find a text at the beginning, in any case."""
        return ColumnBase.startswith(self._text(), _pattern(self, text))

    def endswith(self, text: Any) -> Any:
        """Find a text at the end, in any case."""
        return ColumnBase.endswith(self._text(), _pattern(self, text))

    def regexp(self, pattern: Any) -> Any:
        """Search with a regular expression of the engine: PostgreSQL's, or Python's on SQLite."""
        return _Regexp(self._text(), _pattern(self, pattern), any_case=False)

    def iregexp(self, pattern: Any) -> Any:
        """Search with a regular expression in any case."""
        return _Regexp(self._text(), _pattern(self, pattern), any_case=True)


def _pattern(column: Any, pattern: Any) -> Any:
    if isinstance(pattern, (str, Node)):
        return pattern
    raise ValueRefused(
        f"{_name(column)} is searched for a text, not for a value of type {type(pattern).__name__}",
        'give a text; or compare a value within the JSON: Event.data.value("key") == 3',
    )


def _name(column: Any) -> str:
    field = getattr(column, "field", column)
    model = getattr(field, "model", None)
    return f"{model._meta.table_name}.{field.column_name}" if model is not None else "a JSON column"


def _plain(value: Any) -> Any:
    return value if isinstance(value, Node) else Value(value, converter=False)


class _Like(ColumnBase):
    """LIKE in the case as written, which SQLite has as GLOB."""

    def __init__(self, text: ColumnBase, pattern: Any) -> None:
        self.text, self.pattern = text, pattern

    def __sql__(self, ctx: Context) -> Context:
        pattern = self.pattern
        if on_postgres(ctx):
            return ctx.sql(Expression(self.text, peewee.OP.LIKE, NodeList((_plain(pattern), _ESCAPED))))
        return ctx.sql(Expression(self.text, "GLOB", _plain(_glob(pattern) if isinstance(pattern, str) else pattern)))


def _glob(pattern: str) -> str:
    """Return the pattern of GLOB for one of LIKE."""
    parts, letters = [], iter(pattern)
    for letter in letters:
        if letter == "\\":
            parts.append(_globbed(next(letters, "\\")))
        else:
            parts.append({"%": "*", "_": "?"}.get(letter) or _globbed(letter))
    return "".join(parts)


def _globbed(letter: str) -> str:
    return f"[{letter}]" if letter in "*?[" else letter


class _Regexp(ColumnBase):
    """A search with a regular expression; SQLite has no operator for one in any case."""

    def __init__(self, text: ColumnBase, pattern: Any, any_case: bool) -> None:
        self.text, self.pattern, self.any_case = text, pattern, any_case

    def __sql__(self, ctx: Context) -> Context:
        pattern, text = _plain(self.pattern), self.text
        if on_postgres(ctx):
            return ctx.sql(Expression(text, peewee.OP.IREGEXP if self.any_case else peewee.OP.REGEXP, pattern))
        if self.any_case:
            pattern = Expression(Value("(?i)", converter=False), peewee.OP.CONCAT, pattern)
        # Bytes as they are: sqlite3 hands no function a text that is not UTF-8.
        raw = text.field if isinstance(text, StoredText) else text
        return ctx.sql(Expression(raw, peewee.OP.REGEXP, pattern))


def matches(pattern: str | None, subject: Any) -> bool | None:
    """Return whether a regular expression is found: SQLite's REGEXP, which it leaves to the program."""
    if pattern is None or subject is None:
        return None
    text = subject.decode(errors="replace") if isinstance(subject, bytes) else str(subject)
    return re.search(pattern, text) is not None


class StoredText(TextSearch):
    """The text that a JSON column holds; for bytes that are not UTF-8 NULL on PostgreSQL, and the bytes on SQLite."""

    def __init__(self, field: Any) -> None:
        self.field = field

    def __sql__(self, ctx: Context) -> Context:
        if not self.field.holds_bytes:
            return ctx.sql(self.field)
        if not on_postgres(ctx):
            return ctx.literal("CAST(").sql(self.field).literal(" AS TEXT)")
        ctx.literal("pg_catalog.convert_from(CASE WHEN pg_catalog.encode(").sql(self.field)
        ctx.literal(f", 'hex') OPERATOR(pg_catalog.~) '{_UTF8}' THEN ").sql(self.field)
        return ctx.literal(" END, 'UTF8')")


# Values


class JSONValue(TextSearch):
    """A value within a JSON column: compared with texts, numbers, booleans and None, and read as Python's json would.

    A comparison is one of values of the same kind: "3" is not 3, and True is not 1. Rows without a value at the path,
    with null, or whose column holds no JSON equal None alone; `!=` does not find them.
    """

    def __init__(self, field: Any, path: tuple[Any, ...]) -> None:
        for key in path:
            if isinstance(key, bool) or not isinstance(key, (str, int)):
                raise ValueRefused(
                    f"a path in {_name(field)} has a {type(key).__name__} in it",
                    "give keys as texts and places in lists as integers",
                )
            if isinstance(key, int) and not -_PLACES <= key < _PLACES:
                raise ValueRefused(f"a path in {_name(field)} has a place that no list has", "give a smaller integer")
        if not path:
            raise ValueRefused(f"a path in {_name(field)} is empty", "give the key of a value")
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
            f"a value in {_name(self.field)} is compared with one of type {type(other).__name__}",
            "compare it with a text, a number, a boolean or None; or use as_text(), as_number() or as_flag()",
        )

    @staticmethod
    def _operand(other: Any) -> Any:
        return _LargeNumber(other) if isinstance(other, int) and not -_LARGEST <= other < _LARGEST else _plain(other)

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
        ctx.literal(f"(SELECT {_POSTGRES[self.kind]} FROM (SELECT ").sql(StoredText(self.field))
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
    "json": pinned("v::text"),
    "text": pinned("CASE WHEN jsonb_typeof(v) = 'string' THEN v #>> '{}' END"),
    "number": pinned("CASE WHEN jsonb_typeof(v) = 'number' THEN (v #>> '{}')::numeric END"),
    "flag": pinned("CASE WHEN jsonb_typeof(v) = 'boolean' THEN (v #>> '{}')::boolean END"),
    "present": pinned("CASE WHEN jsonb_typeof(v) <> 'null' THEN 1 END"),
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
