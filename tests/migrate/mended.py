"""Running the output of verify --sql as users would, and what must be there before and afterwards."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import peewee as pw

from tests.conftest import Place, postgres_programs
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.migrate import MigrationRunner
from whatspire_db.migrate.mending import Mending, is_comment


def mending(place: Place, models: Sequence[type[pw.Model]]) -> Mending:
    """Return what verify --sql prints for some models."""
    db = place.connect()
    with db.connection_context():
        return MigrationRunner(db, list(models)).mending()


def run(place: Place, script: str, *, stops: bool = True) -> str:
    """Run a script in the engine's own shell, and return what it said.

    :param stops: at the first failure; else it goes on, as both shells do unless they are told.
    """
    if not place.is_sqlite:
        psql = [f"{postgres_programs()}/psql", "-X", "-q", "-v", f"ON_ERROR_STOP={int(stops)}"]
        arguments = {k: str(v) for k, v in parse_postgres(place.dsn).arguments.items()}
        command = [*psql, "-d", " ".join(f"{k}='{v}'" for k, v in arguments.items())]
        variables = os.environ | {"PGOPTIONS": "-c client_min_messages=warning"}
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=60, env=variables)
        return done.stderr
    connection = sqlite3.connect(place.dsn, isolation_level=None)
    try:
        for part in [script] if stops else statements(script):
            try:
                connection.executescript(part) if stops else connection.execute(part)
            except sqlite3.Error as error:
                if stops:
                    return str(error)
    finally:
        connection.close()
    return ""


def statements(script: str) -> list[str]:
    """Split a script for SQLite into its statements."""
    found, last = [], ""
    for line in script.split("\n"):
        last += line + "\n"
        if sqlite3.complete_statement(last):
            found.append(last)
            last = ""
    return found


def with_failure(fix: Sequence[str], number: int) -> str:
    """Return a script in which the statement of a number fails."""
    written = [sql for sql in fix if not is_comment(sql)]
    written[number] = "SELECT * FROM nowhere"
    return "".join(f"{sql};\n" for sql in written)


def shown(value: Any) -> str:
    """Return a value as a text; numbers that are equal have one, whatever their type."""
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return str(value)


def rows(db: pw.Database, *tables: str) -> dict[str, list[dict[str, str]]]:
    """Return all rows of tables as texts, whatever the order of their columns."""
    found = {}
    for table in tables:
        cursor = db.execute_sql(f'SELECT * FROM "{table}"')
        names = [column[0].lower() for column in cursor.description]
        found[table] = sorted((dict(zip(names, map(shown, row), strict=True)) for row in cursor), key=repr)
    return found


OBJECTS = """
SELECT 'trigger', tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'view', viewname, definition FROM pg_views WHERE schemaname = 'public'
UNION ALL SELECT 'index', indexname, '' FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'constraint', conname, '' FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
UNION ALL SELECT 'column', attname, attrelid::regclass::text FROM pg_attribute
    WHERE attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
        AND attnum > 0 AND NOT attisdropped
"""
SQLITE_OBJECTS = """
SELECT type, name, CASE WHEN type IN ('trigger', 'view') THEN sql END FROM sqlite_master WHERE name NOT LIKE 'sqlite_auto%'
UNION ALL SELECT 'column', c.name, t.name FROM sqlite_master AS t, pragma_table_xinfo(t.name) AS c WHERE t.type = 'table'
"""


def objects(db: pw.Database) -> set[tuple[Any, ...]]:
    """Return the names of everything, what triggers and views are, and how far sequences are."""
    is_sqlite = isinstance(db, pw.SqliteDatabase)
    found = {tuple(row) for row in db.execute_sql(SQLITE_OBJECTS if is_sqlite else OBJECTS)}
    if is_sqlite:
        with suppress(pw.OperationalError):
            found |= {("sequence", *row) for row in db.execute_sql("SELECT name, seq FROM sqlite_sequence").fetchall()}
    return found
