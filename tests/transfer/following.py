"""A copy of a SQLite file that follows its source by the change log, as a live transfer does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import peewee
from peewee import sqlite3

from whatspire_db.migrate.ddl import quote
from whatspire_db.transfer import change_log

Rows = dict[str, list[tuple[Any, ...]]]


@contextmanager
def opened(path: str | Path) -> Iterator[peewee.SqliteDatabase]:
    """Open a file by Peewee alone."""
    db = peewee.SqliteDatabase(str(path), timeout=30)
    with db.connection_context():
        yield db


def copy_of(db: peewee.SqliteDatabase, copy: Path) -> None:
    """Copy a database as of one moment, with a table for how far the copy follows."""
    db.execute_sql("VACUUM INTO ?", (str(copy),))
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute("CREATE TABLE followed (position)")
        connection.execute("INSERT INTO followed VALUES (0)")


def follow(db: peewee.SqliteDatabase, copy: Path) -> int:
    """Bring a copy to what its source is at a moment, in one transaction; return how many keys that took."""
    with db.atomic(), closing(sqlite3.connect(copy, isolation_level=None)) as target:
        target.execute("BEGIN")
        (position,) = target.execute("SELECT position FROM followed").fetchone()
        changed = change_log.changed(db, position)
        for table, key in changed.keys:
            target.execute(f"DELETE FROM {quote(table)} WHERE {_is(db, table)}", key)
        for table, key in changed.keys:
            columns = ", ".join(map(quote, _columns(db, table)))
            rows = db.execute_sql(f"SELECT {columns} FROM {quote(table)} WHERE {_is(db, table)}", key).fetchall()
            for row in rows:
                marks = ", ".join("?" * len(row))
                target.execute(f"INSERT INTO {quote(table)} ({columns}) VALUES ({marks})", row)
        target.execute("UPDATE followed SET position = ?", (changed.position,))
        target.execute("COMMIT")
    return len(changed.keys)


def _is(db: peewee.SqliteDatabase, table: str) -> str:
    return " AND ".join(f"{quote(name)} COLLATE BINARY IS ?" for name in change_log.key_of(db, table))


def _columns(db: peewee.SqliteDatabase, table: str) -> list[str]:
    """Return the columns of a table; its rowid too, where that is the key."""
    names = [row[1] for row in db.execute_sql(f"PRAGMA table_xinfo({quote(table)})").fetchall()]
    return list(dict.fromkeys([*change_log.key_of(db, table), *names]))


def rows_of(path: str | Path, tables: Iterable[str]) -> Rows:
    """Return what tables hold, rowids aside."""
    with closing(sqlite3.connect(path)) as connection:
        return {t: sorted(connection.execute(f"SELECT * FROM {quote(t)}").fetchall(), key=repr) for t in tables}


def schema_of(db: peewee.SqliteDatabase) -> list[tuple[Any, ...]]:
    """Return all that sqlite_master says."""
    return list(db.execute_sql("SELECT * FROM sqlite_master ORDER BY rowid").fetchall())
