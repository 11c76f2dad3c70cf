"""PostgreSQL: the history is read without running what the owner of its table may have attached to it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

import peewee

from whatspire_db.messages import sqlstate
from whatspire_db.migrate.ddl import execute
from whatspire_db.migrate.stamp import recorded_version
from whatspire_db.peewee_compat import peewee_errors
from whatspire_db.sql import SAFE_TO_QUERY, pinned

from .catalog import STANDING, STANDING_WITHOUT_VERSION

DIVISION_BY_ZERO = "22012"

_HISTORY = "FROM pg_class WHERE oid = to_regclass('migration_versions')"
_ASK = pinned(f"SELECT {SAFE_TO_QUERY} {_HISTORY}")
# In one message with the question, which the server does not even plan after an error.
_STOP = pinned(f"SELECT 1 / CASE WHEN {SAFE_TO_QUERY} THEN 1 ELSE 0 END {_HISTORY}; ")
_COLUMNS = pinned("""
SELECT a.attname::text FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.oid = to_regclass(quote_ident(current_schema()) || '.migration_versions') AND c.relkind = ANY ('{r,p}')
    AND a.attnum > 0 AND NOT a.attisdropped
""")
_HIDES_ROWS = pinned("""
SELECT row_security_active(c.oid) FROM pg_class AS c
WHERE c.oid = to_regclass(quote_ident(current_schema()) || '.migration_versions')
""")


def standing_row(db: peewee.PostgresqlDatabase, ask: Callable[[str], Any], limit: str) -> tuple[Any, ...] | None:
    """Return STANDING's row; None where there is no history. A history that runs code of others is only copied.

    :param ask: sends a message and returns the first row of its last statement.
    :param limit: a statement to go before, in the same message.
    """
    try:
        row: tuple[Any, ...] | None = ask(limit + _STOP + STANDING)
        return row
    except peewee.DataError as error:
        if sqlstate(error) != DIVISION_BY_ZERO:
            raise
    row = ask(limit + STANDING_WITHOUT_VERSION)
    return (newest(db), *row[1:]) if row else None


def columns(db: peewee.PostgresqlDatabase) -> set[str]:
    """Return the names of the history's columns; none where there is none."""
    return {name for (name,) in execute(db, _COLUMNS)}


def hides_rows(db: peewee.PostgresqlDatabase) -> bool:
    """Tell whether a policy may have hidden rows of the history."""
    return execute(db, _HIDES_ROWS).fetchone() == (True,)


def is_unsafe(db: peewee.PostgresqlDatabase) -> bool:
    """Tell whether a query of the history could run code of another role with rights above that role's."""
    row = execute(db, _ASK).fetchone()
    return row is not None and not row[0]


def newest(db: peewee.PostgresqlDatabase) -> int:
    """Return the newest version in a history that is not safe to query; 0 where none can be copied either."""
    return max((recorded_version(version) for (version,) in copied(db, "version")), default=0)


def copied(db: peewee.PostgresqlDatabase, columns: str) -> list[list[str]]:
    """Return columns of the history as texts, by COPY, which plans nothing; none of what is no plain table."""
    file = io.StringIO()
    try:
        with db.atomic(), peewee_errors:
            _copy(db.cursor(), f"COPY migration_versions ({columns}) TO STDOUT (FORMAT csv)", file)
    except peewee.PeeweeException as error:
        if sqlstate(error) != "42809":  # wrong_object_type: a view, or a partitioned table
            raise
    return list(csv.reader(io.StringIO(file.getvalue())))


def _copy(cursor: Any, sql: str, file: io.StringIO) -> None:
    if hasattr(cursor, "copy_expert"):
        cursor.copy_expert(sql, file)
        return
    with cursor.copy(sql) as copy:  # psycopg 3
        for data in copy:
            file.write(bytes(data).decode())
