"""PostgreSQL: what a new column does to a table, found out by trying it on another one."""

from __future__ import annotations

from collections.abc import Sequence

import peewee

from whatspire_db.errors import WhatspireDBError
from whatspire_db.light import TYPE_CHECKING
from whatspire_db.messages import first_line, sqlstate
from whatspire_db.migrate.ddl import ModelType, add_canonical_column, execute, qualified
from whatspire_db.migrate.schema import Column
from whatspire_db.sql import pinned

from ..base import discarded

if TYPE_CHECKING:
    from .engine import PostgresEngine

_FILE = pinned("SELECT pg_relation_filenode('pg_temp.whatspire_probe')")
INTEGRITY_VIOLATION = "23"  # the class of NOT NULL, CHECK and the like


def rewriting(engine: PostgresEngine, model: ModelType, columns: Sequence[Column]) -> set[str]:
    """Return the names of those columns whose addition rewrites the table: a copy of it then gets a new file."""
    rewritten = set()
    schema = engine.key(model)[0]
    with discarded(engine.db):
        execute(engine.db, f"CREATE TEMPORARY TABLE whatspire_probe (LIKE {qualified(schema, model._meta.table_name)})")
        engine.search_first("pg_temp", schema)
        for column in columns:
            before = engine.ask(_FILE)
            execute(engine.db, add_canonical_column(engine.db, model, column, "whatspire_probe"))
            if before != engine.ask(_FILE):
                rewritten.add(column.name)
    return rewritten


def refused_by_its_type(engine: PostgresEngine, model: ModelType, column: Column) -> WhatspireDBError | None:
    """Return why a row that is there already cannot take a new column: its domain refuses what the row would hold."""
    try:
        with discarded(engine.db):
            execute(engine.db, "CREATE TEMPORARY TABLE whatspire_probe ()")
            execute(engine.db, "INSERT INTO pg_temp.whatspire_probe DEFAULT VALUES")
            engine.search_first("pg_temp", engine.key(model)[0])
            execute(engine.db, add_canonical_column(engine.db, model, column, "whatspire_probe"))
    except peewee.PeeweeException as error:
        if not (sqlstate(error) or "").startswith(INTEGRITY_VIOLATION):
            raise
        hint = 'give it a default that the domain takes (constraints=[SQL("DEFAULT ...")])'
        return WhatspireDBError(first_line(error), f"{hint}, or another type and fill it in a data migration")
    return None
