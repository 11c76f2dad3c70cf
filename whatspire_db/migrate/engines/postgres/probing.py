"""PostgreSQL: what a change does to a table, found out by trying it on an empty one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import peewee

from whatspire_db.errors import WhatspireDBError
from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.messages import first_line, sqlstate
from whatspire_db.migrate.ddl import ModelType, add_canonical_column, execute, qualified
from whatspire_db.migrate.schema import Column, Key
from whatspire_db.sql import pinned

from ..base import discarded
from .extensions import create_extension, extensions_of

if TYPE_CHECKING:
    from .engine import PostgresEngine

PROBE = "whatspire_probe"
_FILE = pinned(f"SELECT pg_relation_filenode('pg_temp.{PROBE}')")
INTEGRITY_VIOLATION = "23"  # the class of NOT NULL, CHECK and the like


def rewriting(engine: PostgresEngine, model: ModelType, columns: Sequence[Column]) -> set[str]:
    """Return the names of those columns whose addition rewrites the table."""
    with discarded(engine.db):
        for extension in sorted(extensions_of(engine.db, model)):
            create_extension(engine, extension, engine.strangers([model]))
        with _empty_copy(engine, engine.key(model)[0], model._meta.table_name) as rewrites:
            return {c.name for c in columns if rewrites(add_canonical_column(engine.db, model, c, PROBE))}


def alters_by_rewriting(engine: PostgresEngine, key: Key, action: str) -> bool | str:
    """Return whether an action of ALTER TABLE rewrites a table, or why it fails."""
    try:
        with _empty_copy(engine, *key) as rewrites:
            return rewrites(f"ALTER TABLE pg_temp.{PROBE} {action}")
    except peewee.PeeweeException as error:
        return first_line(error)


@contextmanager
def _empty_copy(engine: PostgresEngine, schema: str, table: str) -> Iterator[Callable[[str], bool]]:
    """Make an empty table of the same columns, and yield what runs a statement on it and tells if it got a new file."""

    def rewrites(sql: str) -> bool:
        before = engine.ask(_FILE)
        execute(engine.db, sql)
        return bool(before != engine.ask(_FILE))

    with discarded(engine.db):
        execute(engine.db, "SET LOCAL TimeZone TO 'UTC'")
        execute(engine.db, f"CREATE TEMPORARY TABLE {PROBE} (LIKE {qualified(schema, table)})")
        engine.search_first("pg_temp", schema)
        yield rewrites


def refused_by_its_type(engine: PostgresEngine, model: ModelType, column: Column) -> WhatspireDBError | None:
    """Return why a row that is there already cannot take a new column: its domain refuses what the row would hold."""
    try:
        with discarded(engine.db):
            execute(engine.db, f"CREATE TEMPORARY TABLE {PROBE} ()")
            execute(engine.db, f"INSERT INTO pg_temp.{PROBE} DEFAULT VALUES")
            engine.search_first("pg_temp", engine.key(model)[0])
            execute(engine.db, add_canonical_column(engine.db, model, column, PROBE))
    except peewee.PeeweeException as error:
        if not (sqlstate(error) or "").startswith(INTEGRITY_VIOLATION):
            raise
        hint = 'give it a default that the domain takes (constraints=[SQL("DEFAULT ...")])'
        return WhatspireDBError(first_line(error), f"{hint}, or another type and fill it in a data migration")
    return None
