"""PostgreSQL: expressions read back once more, for what the server shows of one is not what it shows of that text.

`varchar IN (...)` is shown as (ARRAY[...])::text[]; read back from a dump it becomes ARRAY[(...)::text, ...] for good.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import peewee

from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.migrate.ddl import execute, quote
from whatspire_db.migrate.schema import Column, Constraint, Index, Table

from ..base import discarded
from . import trust

if TYPE_CHECKING:
    from .engine import PostgresEngine


def settled(engine: PostgresEngine, table: Table) -> Table:
    """Return a table with its expressions as the server shows them after it has read its own text of them.

    An expression that it does not take back, or that a superuser should not run, stays as it is.
    """
    statements = list(filter(_is_text, _statements(table)))
    if not _is_text(_create(table)):
        return table
    words = trust.words_of("\0".join([*statements, _create(table)]))
    found = [] if engine.trust_source else trust.strangers(engine.db, words, [])
    if any(stranger.is_meant_by(words) for stranger in found):
        return table
    with discarded(engine.db):
        engine.search_first("pg_temp", table.key[0])
        execute(engine.db, _create(table))
        for sql in statements:
            with suppress(peewee.PeeweeException), engine.db.atomic():
                execute(engine.db, sql)
        again = engine.scratch(table.key[0], {table.key[1]: table.key})[table.key]
    return _with_texts(table, again)


def _is_text(sql: str) -> bool:
    """Tell whether the driver can send SQL: a database in SQL_ASCII can hold bytes that are not text."""
    return sql == sql.encode(errors="ignore").decode()


def _create(table: Table) -> str:
    columns = [_column(column) for column in table.columns.values() if not column.generated]
    return f"CREATE TEMPORARY TABLE {quote(table.key[1])} ({', '.join(columns)})"


def _column(column: Column) -> str:
    kind, _, expression = (column.generated or "").partition(" ")
    generated = f"GENERATED ALWAYS AS {expression} {kind}" if kind else ""
    collation = f"COLLATE {column.collation}" if column.collation else ""
    return " ".join(filter(None, [quote(column.name), str(column.type), collation, generated]))


def _statements(table: Table) -> Iterator[str]:
    """Yield what gives an empty table the expressions of another, each by itself."""
    name = f"pg_temp.{quote(table.key[1])}"
    for column in table.columns.values():
        if column.generated:
            yield f"ALTER TABLE {name} ADD COLUMN {_column(column)}"
        elif column.default is not None and not column.is_serial:
            yield f"ALTER TABLE {name} ALTER {quote(column.name)} SET DEFAULT {column.default}"
    for constraint in table.constraints:
        if constraint.is_text:
            yield f"ALTER TABLE {name} ADD CONSTRAINT {quote(constraint.name)} {constraint.definition}"
    for index in table.indexes:
        if index.is_text:
            keys = ", ".join(map(str, index.keys))
            where = f" WHERE {index.predicate}" if index.predicate else ""
            yield f"CREATE INDEX {quote(index.name)} ON {name} USING {index.method} ({keys}){where}"


def _with_texts(table: Table, again: Table) -> Table:
    indexes = {index.name: index for index in again.indexes}
    constraints = {constraint.name: constraint for constraint in again.constraints}
    columns = {name: _with_column_texts(column, again.columns.get(name)) for name, column in table.columns.items()}
    return replace(
        table,
        columns=columns,
        indexes=tuple(_with_index_text(index, indexes.get(index.name)) for index in table.indexes),
        constraints=tuple(_with_constraint_text(c, constraints.get(c.name)) for c in table.constraints),
    )


def _with_column_texts(column: Column, again: Column | None) -> Column:
    if again is None:
        return column
    is_settled = column.default is not None and again.default is not None and not column.is_serial
    return replace(column, generated=again.generated, default=again.default if is_settled else column.default)


def _with_index_text(index: Index, again: Index | None) -> Index:
    return index if again is None else replace(index, keys=again.keys, predicate=again.predicate)


def _with_constraint_text(constraint: Constraint, again: Constraint | None) -> Constraint:
    if again is None or again.kind != constraint.kind:
        return constraint
    return replace(constraint, definition=again.definition)
