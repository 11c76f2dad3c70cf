"""Columns that are searched as texts: LIKE and its kin mean the same on both engines."""

from __future__ import annotations

import peewee
from peewee import SQL, ColumnBase, Context, Expression, Node, NodeList, Value

from ..errors import ValueRefused
from ..light_stdlib import Any
from . import on_postgres

# Bytes, as hex, that are UTF-8 without U+0000: of others PostgreSQL makes no text but an error.
_UTF8 = (
    "^(0[1-9a-f]|[1-7].|(c[2-9a-f]|d.)[89ab].|(e0[ab]|e[1-9abcef][89ab]|ed[89]).[89ab]."
    "|(f0[9ab]|f[123][89ab]|f48).[89ab].[89ab].)*$"
)
_ESCAPED = NodeList((SQL("ESCAPE"), Value("\\", converter=False)))


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
        return Expression(self._text(), peewee.OP.ILIKE, NodeList((plain(pattern), _ESCAPED)))

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
        f"{name_of(column)} is searched for a text, not for a value of type {type(pattern).__name__}",
        'give a text; or compare a value within the JSON: Event.data.value("key") == 3',
    )


def name_of(column: Any) -> str:
    """Return how a message names a column."""
    field = getattr(column, "field", column)
    model = getattr(field, "model", None)
    return f"{model._meta.table_name}.{field.column_name}" if model is not None else "a JSON column"


def plain(value: Any) -> Any:
    """Return a value as a parameter that the field's own conversion leaves alone."""
    return value if isinstance(value, Node) else Value(value, converter=False)


class _Like(ColumnBase):
    """LIKE in the case as written, which SQLite has as GLOB."""

    def __init__(self, text: ColumnBase, pattern: Any) -> None:
        self.text, self.pattern = text, pattern

    def __sql__(self, ctx: Context) -> Context:
        pattern = self.pattern
        if on_postgres(ctx):
            return ctx.sql(Expression(self.text, peewee.OP.LIKE, NodeList((plain(pattern), _ESCAPED))))
        return ctx.sql(Expression(self.text, "GLOB", plain(_glob(pattern) if isinstance(pattern, str) else pattern)))


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
        pattern, text = plain(self.pattern), self.text
        if on_postgres(ctx):
            return ctx.sql(Expression(text, peewee.OP.IREGEXP if self.any_case else peewee.OP.REGEXP, pattern))
        if self.any_case:
            pattern = Expression(Value("(?i)", converter=False), peewee.OP.CONCAT, pattern)
        # Bytes as they are: sqlite3 hands no function a text that is not UTF-8.
        raw = text.field if isinstance(text, StoredText) else text
        return ctx.sql(Expression(raw, peewee.OP.REGEXP, pattern))


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
