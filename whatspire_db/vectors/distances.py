"""Distances in queries: expressions that mean the same on both engines."""

from __future__ import annotations

from math import isnan
from typing import Any

import peewee
from peewee import ColumnBase, Context, Node, Value

from ..fields import on_postgres
from .codec import Codec
from .engines.postgres import extension_of
from .engines.sqlite import function_for
from .metrics import Metric

# In a context's state: the distances of a query are computed for every row, whatever index there is.
EXACT = "whatspire_exact"


class StoredVector(Node):
    """A checked vector that renders as the engine stores it.

    :param db: names a database of PostgreSQL where nothing else says that the text is a vector.
    """

    def __init__(self, codec: Codec, value: Any, db: peewee.Database | None = None) -> None:
        self.codec, self.numbers, self.db = codec, codec.numbers(value), db

    def __sql__(self, ctx: Context) -> Context:
        if not on_postgres(ctx):
            return ctx.value(self.codec.packed(self.numbers), converter=False)
        return _typed(ctx, self.codec, self.codec.text(self.numbers), self.db)


class NoVector(Node):
    """NULL, with the type of the column where a database of PostgreSQL is named."""

    def __init__(self, codec: Codec, db: peewee.Database | None = None) -> None:
        self.codec, self.db = codec, db

    def __sql__(self, ctx: Context) -> Context:
        return _typed(ctx, self.codec, None, self.db)


def _typed(ctx: Context, codec: Codec, value: str | None, db: peewee.Database | None) -> Context:
    if db is None:
        return ctx.value(value, converter=False)
    type_ = f"{extension_of(db).quoted_schema}.{codec.type}"
    return ctx.literal("CAST(").value(value, converter=False).literal(f" AS {type_})")


class Distance(ColumnBase):
    """The distance of a column's vectors from a vector; lower is closer, NULL without a vector.

    :param exact: let no index of PostgreSQL's be used that knows the distances only roughly.
    """

    def __init__(self, field: Any, metric: Metric, other: Any, exact: bool = False) -> None:
        self.field, self.metric, self.other, self.exact = field, metric, other, exact

    @staticmethod
    def _converter(value: Any) -> float | None:
        """Return a distance as both engines mean it: a vector without a direction has none."""
        return None if value is None or isnan(value) else float(value)

    def __sql__(self, ctx: Context) -> Context:
        with ctx(converter=None, in_expr=False):
            return self._postgres(ctx) if on_postgres(ctx) else self._sqlite(ctx)

    def _postgres(self, ctx: Context) -> Context:
        operator = extension_of(database_of(self.field)).operator(self.metric.operator)
        exact = self.exact or getattr(ctx.state, EXACT)
        ctx.literal("(" if not exact else "((").sql(self.field).literal(f" {operator} ").sql(_operand(self.other))
        # No index gives the distance plus zero.
        return ctx.literal(")" if not exact else ") OPERATOR(pg_catalog.+) 0)")

    def _sqlite(self, ctx: Context) -> Context:
        function = function_for(database_of(self.field), self.metric, self.field.codec.is_half)
        other = _operand(self.other)
        # Of anything else, NULL included, the functions make an error, and one row would stop the search of all.
        _fits(ctx.literal("CASE WHEN "), self.field, self.field.codec)
        if not isinstance(other, StoredVector):
            _fits(ctx.literal(" AND "), other, getattr(other, "codec", None))
        return ctx.literal(f" THEN {function}(").sql(self.field).literal(", ").sql(other).literal(") END")


def _fits(ctx: Context, value: Node, codec: Codec | None) -> Context:
    """Write the condition that a value of SQLite's is a vector; of an expression, that there is one."""
    if codec is None:
        return ctx.sql(value).literal(" IS NOT NULL")
    ctx.literal("typeof(").sql(value).literal(") = 'blob' AND length(").sql(value)
    return ctx.literal(f") = {codec.length}")


def database_of(field: Any) -> Any:
    """Return the database that the model of a field is bound to; behind a proxy, the real one."""
    return field.model._meta.get_database_instance()


def _operand(other: Any) -> Any:
    return other if isinstance(other, Node) else Value(other, converter=False)
