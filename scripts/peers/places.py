"""A database of one engine: emptied, kept aside, brought back and looked at, by the drivers alone."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a tool works. On PostgreSQL `admin` is the DSN of another database of a role that may make databases."""

    driver: str
    dsn: str
    admin: str = ""

    @property
    def name(self) -> str:
        """Return the name of the database."""
        return os.path.basename(self.dsn) if self.driver == "sqlite" else _parse(self.dsn)["dbname"]

    def clear(self) -> None:
        """Make an empty database; in SQLite a file without tables that is in WAL mode already."""
        if self.driver == "sqlite":
            _remove(self.dsn)
            with closing(sqlite3.connect(self.dsn)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        else:
            self.administer(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)", f"CREATE DATABASE {self.name}")

    def keep(self) -> None:
        """Keep the database as it is now for `restore`."""
        if self.driver == "sqlite":
            with closing(sqlite3.connect(self.dsn)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copyfile(self.dsn, f"{self.dsn}.kept")
        else:
            kept = f"{self.name}_kept"
            self.administer(f"DROP DATABASE IF EXISTS {kept}", f"CREATE DATABASE {kept} TEMPLATE {self.name}")

    def restore(self) -> None:
        """Bring the database back to what it was when it was kept."""
        if self.driver == "sqlite":
            _remove(self.dsn)
            shutil.copyfile(f"{self.dsn}.kept", self.dsn)
        else:
            drop = f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)"
            self.administer(drop, f"CREATE DATABASE {self.name} TEMPLATE {self.name}_kept")

    def log(self, on: bool) -> None:
        """Let PostgreSQL log every statement of the sessions to come, or no more."""
        if self.driver == "postgres":
            self.administer(
                f"ALTER DATABASE {self.name} " + ("SET log_statement = 'all'" if on else "RESET log_statement")
            )

    def drop(self) -> None:
        """Remove the database and what was kept of it."""
        if self.driver == "postgres":
            names = (self.name, f"{self.name}_kept")
            self.administer(*(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in names))

    def tables(self) -> dict[str, tuple[set[str], int]]:
        """Return each table's columns and the number of its indexes beside the primary key."""
        if self.driver == "sqlite":
            return self._sqlite_tables()
        found: dict[str, tuple[set[str], int]] = {}
        for name, columns, indexes in self.query(_POSTGRES_TABLES):
            found[name] = (set(columns), indexes)
        return found

    def _sqlite_tables(self) -> dict[str, tuple[set[str], int]]:
        found = {}
        for (name,) in self.query("SELECT name FROM sqlite_master WHERE type = 'table'"):
            columns = {row[0] for row in self.query("SELECT name FROM pragma_table_info(?)", name)}
            indexes = self.query("SELECT count(*) FROM pragma_index_list(?) WHERE origin <> 'pk'", name)
            found[name] = (columns, indexes[0][0])
        return found

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""
        with closing(sqlite3.connect(self.dsn) if self.driver == "sqlite" else _connect(self.dsn)) as connection:
            cursor = connection.cursor()
            cursor.execute(sql, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def administer(self, *statements: str) -> None:
        """Run statements in the other database, each in a transaction of its own."""
        with closing(_connect(self.admin)) as connection:
            connection.autocommit = True
            for statement in statements:
                connection.cursor().execute(statement)


_POSTGRES_TABLES = """
    SELECT c.relname,
           (SELECT array_agg(a.attname::text) FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
           (SELECT count(*)::int FROM pg_index i WHERE i.indrelid = c.oid AND NOT i.indisprimary)
      FROM pg_class c
     WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
"""


def of_database(dsn: str, name: str) -> str:
    """Return a PostgreSQL DSN with another database in it."""
    from psycopg2.extensions import make_dsn

    made: str = make_dsn(dsn, dbname=name)
    return made


def _parse(dsn: str) -> dict[str, str]:
    from psycopg2.extensions import parse_dsn

    parsed: dict[str, str] = parse_dsn(dsn)
    return parsed


def _connect(dsn: str) -> Any:
    import psycopg2

    return psycopg2.connect(dsn)


def _remove(path: str) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        if os.path.exists(path + suffix):
            os.remove(path + suffix)
