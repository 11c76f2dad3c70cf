"""What differs between the engines where many rows are changed: how they are locked, and where their space goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import peewee

from whatspire_db.migrate.engines.base import engine_for

if TYPE_CHECKING:
    from .base import RowEngine


def engine_of(db: peewee.Database, trust_source: bool = False) -> RowEngine:
    """Return the engine of a database.

    :param trust_source: let a superuser run code that other roles left in the database.
    :raises ModelError: when it is neither SQLite nor PostgreSQL.
    """
    schema = engine_for(db, trust_source)
    if isinstance(schema.db, peewee.SqliteDatabase):
        from .sqlite import SqliteRows

        return SqliteRows(schema)
    from .postgres import PostgresRows

    return PostgresRows(schema)
