"""What differs between the engines where many rows are changed: how they are locked, and where their space goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import peewee

from whatspire_db.errors import ConfigError

if TYPE_CHECKING:
    from .base import RowEngine


def engine_of(db: peewee.Database) -> RowEngine:
    """Return the engine of a database.

    :raises ConfigError: when it is neither SQLite nor PostgreSQL.
    """
    if isinstance(db, peewee.SqliteDatabase):
        from .sqlite import SqliteRows

        return SqliteRows(db)
    if isinstance(db, peewee.PostgresqlDatabase):
        from .postgres import PostgresRows

        return PostgresRows(db)
    raise ConfigError(f"{type(db).__name__} is no database for this", "use one of SQLite or PostgreSQL")
