"""The rows that are nearest to a vector, as a normal select whose rows carry `.distance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from operator import index
from typing import Any

import peewee
from peewee import SCOPE_VALUES, Alias, Context

from ..errors import ValueRefused
from ..peewee_compat import condition_of, limit_of, order_of
from .distances import EXACT, Distance, database_of
from .engines import postgres
from .field import VectorField

DISTANCE = "distance"
# In a context's state: the query is sent with the settings for an HNSW index; the distance is not among its columns.
_BY_INDEX, _OPERAND = "whatspire_by_index", "whatspire_operand"


def nearest(
    model: Any,
    field: VectorField[Any] | str,
    vector: Any,
    k: int = 10,
    *,
    where: Any = None,
    exact: bool = False,
) -> Any:
    """Return a select of the k rows whose vectors are nearest to a vector, by the field's metric, nearest first.

    Its rows carry `.distance`, lower is closer; rows at the same distance are in the order of their keys. Rows without
    a vector are left out. The query can be extended like any other: where(), join(), select(), dicts().

    :param where: a condition of Peewee's, or several of which all must hold.
    :param exact: look at every row, also where there is an HNSW index.
    :raises ValueRefused: for a vector that does not fit the field, and for a field that holds no vectors.
    """
    found = _field(model, field)
    rows = _number_of_rows(k)
    distance = _Named(found.distance(found.metric, vector, exact or not found.has_index), DISTANCE)
    query = _searching(model)(model, model._meta.sorted_fields)
    query.distance = distance
    conditions = list(where) if isinstance(where, Sequence) else [where] if where is not None else []
    order = [distance.asc(nulls="last"), *model._meta.get_primary_keys()]
    query = query.select(*model._meta.sorted_fields).where(found.is_null(False)).order_by(*order).limit(rows)
    query.asked, query.bare, query.by_key = (), condition_of(query), order_of(query)
    return query.where(*conditions) if conditions else query


def _number_of_rows(k: Any) -> int:
    try:
        rows = 0 if isinstance(k, bool) else index(k)  # integers of numpy are numbers too
    except TypeError:
        rows = 0
    if rows < 1:
        raise ValueRefused(f"k is {k!r}, which is not a number of rows", "give the number of rows to find, from 1 on")
    return rows


def _field(model: Any, field: VectorField[Any] | str) -> VectorField[Any]:
    table = model._meta.table_name
    if isinstance(model, peewee.ModelAlias):
        raise ValueRefused(
            f"nearest() takes a model, not an alias of {table}",
            "search the model and join the alias, or order a query by a distance of the alias's field",
        )
    if DISTANCE in model._meta.combined:
        raise ValueRefused(
            f"{table} has a column {DISTANCE}, and the rows found carry their distance under that name",
            "write the query with cosine_distance(), l2_distance() or max_inner_product(), under another alias",
        )
    name = field if isinstance(field, str) else getattr(field, "name", None)
    found = model._meta.combined.get(name)
    if not isinstance(found, VectorField) or (not isinstance(field, str) and found is not field):
        raise ValueRefused(
            f"{name or field!r} is not a VectorField of {table}", "give a field of the model, or its name"
        )
    return found


class _Named(Alias):
    """The distance under its name, except in a query that does not select it."""

    def __sql__(self, ctx: Context) -> Context:
        return ctx.sql(self.node) if getattr(ctx.state, _OPERAND) else super().__sql__(ctx)


class _Search:
    """A select of the nearest rows: whatever is selected, the distance is too."""

    distance: Any
    asked: tuple[Any, ...]  # the columns that select() was given
    bare: Any  # the condition that every search has
    by_key: Any  # the order of every search: rows at one distance by their keys

    def select(self, *columns: Any) -> Any:
        if not columns:
            return self
        found = super().select(*columns, self.distance)  # type: ignore[misc]
        found.asked = columns
        return found

    def select_extend(self, *columns: Any) -> Any:
        model: Any = self.model  # type: ignore[attr-defined]
        return self.select(*(self.asked or model._meta.sorted_fields), *columns)

    def __sql__(self, ctx: Context) -> Context:
        state = ctx.state
        # Without the settings an index ends after 40 rows: within another query, in a cursor of the server's, and also
        # without a LIMIT, for which there are no settings.
        is_exact = not getattr(state, _BY_INDEX) or bool(ctx.stack) or limit_of(self)[0] is None
        # A value of another query, or the rows that it inserts: such have the columns that were asked for alone.
        is_operand = state.in_expr or state.in_projection or state.in_function or ctx.scope == SCOPE_VALUES
        with ctx(**{EXACT: is_exact, _OPERAND: bool(is_operand)}):
            if is_operand:
                return self._operand(ctx)
            query = self if is_exact or self.distance.unwrap().exact else self._as_an_index_sorts()
            return super(_Search, query).__sql__(ctx)  # type: ignore[misc]

    def _as_an_index_sorts(self) -> Any:
        """Return the query in an order for which its server uses the index."""
        database = database_of(self.distance.unwrap().field)
        keeps = not isinstance(database, peewee.PostgresqlDatabase) or postgres.extension_of(database).sorts_ties
        if keeps or order_of(self) is not self.by_key:
            return self
        by_distance, *_ = self.by_key
        return self.order_by(by_distance)  # type: ignore[attr-defined]

    def _operand(self, ctx: Context) -> Context:
        model: Any = self.model  # type: ignore[attr-defined]
        query = super().select(*(self.asked or model._meta.get_primary_keys()))  # type: ignore[misc]
        return super(_Search, query).__sql__(ctx)  # type: ignore[misc]

    def sql(self) -> tuple[str, Sequence[Any]]:
        """Return the query as it is sent, and its parameters."""
        return database_of(self.distance.unwrap().field).get_sql_context(**{_BY_INDEX: True}).parse(self)

    def _execute(self, database: Any) -> Any:
        inner: Distance = self.distance.unwrap()
        limit, offset = limit_of(self)
        real = database.obj if isinstance(database, peewee.Proxy) else database
        if isinstance(real, peewee.PostgresqlDatabase) and not inner.exact and limit is not None:
            rows = limit + (offset or 0)
            settings = postgres.extension_of(real).settings(rows, condition_of(self) is not self.bare)
            database = _Hnsw(real, settings, limit)
        return super()._execute(database)  # type: ignore[misc]


@cache
def _searching(model: Any) -> Any:
    """Return the select of a search, of the kind that a model has."""
    return type("Nearest", (_Search, type(model.select())), {})


class _Hnsw:
    """A database as a query sees it that searches an HNSW index: with the settings for it, or without the index."""

    def __init__(self, database: Any, settings: Mapping[str, str], limit: int) -> None:
        self.database, self.settings, self.limit = database, settings, limit

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    def execute(self, query: Any, **options: Any) -> Any:
        """Run a query; where the index gives fewer rows than asked for, look at every row."""
        cursor = self._by_index(query, options)
        if cursor.rowcount < self.limit:
            cursor = self.database.execute(query, **options)
        return cursor

    def _by_index(self, query: Any, options: Any) -> Any:
        db, settings = self.database, self.settings
        sql, params = db.get_sql_context(**options, **{_BY_INDEX: True}).sql(query).query()
        if postgres.is_inside_transaction(db):
            with postgres.kept_settings(db, settings):
                db.execute_sql(postgres.settings_sql(settings))
                return db.execute_sql(sql, params)
        if postgres.in_one_message(db):  # which is a transaction
            return db.execute_sql(postgres.settings_sql(settings) + sql, params)
        with db.atomic():
            db.execute_sql(postgres.settings_sql(settings))
            return db.execute_sql(sql, params)
