"""PostgreSQL before and after the rows: tables locked, indexes and references away and back, sequences set."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from peewee import sqlite3

from ..errors import TransferRefused
from ..migrate.ddl import quote
from ..migrate.engines.postgres.limits import lock_limit
from ..migrate.engines.postgres.online import memory_for
from ..sql import pinned
from .tables import TransferTable

# Definitions that name every schema but pg_catalog, which is always looked in.
OWN_NAMES = "SET LOCAL search_path = pg_catalog, pg_temp"
# Those that CREATE INDEX alone makes as they are, and on which nothing depends.
_INDEXES = pinned("""
SELECT n.nspname, c.relname, pg_get_indexdef(i.indexrelid)
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE i.indrelid = %s::regclass AND i.indisvalid
AND NOT (i.indisreplident OR i.indisclustered) AND c.reltablespace = 0
AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid)
AND NOT EXISTS (SELECT FROM pg_inherits AS h WHERE h.inhrelid = i.indexrelid)
AND NOT EXISTS (SELECT FROM pg_description AS d WHERE d.classoid = 'pg_class'::regclass AND d.objoid = i.indexrelid)
ORDER BY c.relname
""")
_REFERENCES = pinned("""
SELECT k.conname, pg_get_constraintdef(k.oid), quote_literal(obj_description(k.oid, 'pg_constraint'))
FROM pg_constraint AS k
WHERE k.conrelid = %s::regclass AND k.contype = 'f' AND k.conparentid = 0 ORDER BY k.conname
""")
# The sequences that columns take their numbers from: owned ones, those of identities and others that a default names.
_SEQUENCES = pinned("""
SELECT a.attname, d.refobjid::regclass::text
FROM pg_attrdef AS f JOIN pg_attribute AS a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
JOIN pg_class AS s ON s.oid = d.refobjid AND s.relkind = 'S'
WHERE f.adrelid = %s::regclass AND d.refclassid = 'pg_class'::regclass
AND (a.atttypid = 'int2'::regtype OR a.atttypid = 'int4'::regtype OR a.atttypid = 'int8'::regtype
OR a.atttypid = 'numeric'::regtype)
UNION ALL
SELECT a.attname, s.oid::regclass::text
FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'i'
AND d.refobjid = %s::regclass
""")
_MOST = pinned("SELECT seqmax FROM pg_sequence WHERE seqrelid = %s::regclass")
_SET = pinned("SELECT setval(%s::regclass, %s)")


@dataclass(frozen=True)
class Removed:
    """What was taken off a table for the load: statements that bring its indexes and its references back."""

    table: str
    indexes: tuple[str, ...]
    references: tuple[str, ...]


def statement(postgres: Any, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """Run a statement of psycopg2's and return its rows."""
    with closing(postgres.cursor()) as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall()) if cursor.description else []


def lock(postgres: Any, tables: Sequence[TransferTable], wait_seconds: float) -> None:
    """Let nobody else read or write the tables until the transaction ends."""
    statement(postgres, lock_limit(wait_seconds))
    for table in tables:
        statement(postgres, f"LOCK TABLE {table.postgres} IN ACCESS EXCLUSIVE MODE")


def filled(postgres: Any, places: Sequence[tuple[str, str]]) -> list[str]:
    """Return the names of those tables that have rows.

    :param places: pairs of a name and a quoted table.
    """
    return [name for name, place in places if statement(postgres, f"SELECT EXISTS (SELECT FROM {place})")[0][0]]


def remove(postgres: Any, tables: Sequence[TransferTable]) -> list[Removed]:
    """Drop what is quicker to make after the rows are there; all of it is back at the end of the transaction."""
    statement(postgres, OWN_NAMES)
    references = [_without_references(postgres, table) for table in tables]
    indexes = [_without_indexes(postgres, table) for table in tables]
    return [Removed(table.name, *removed) for table, *removed in zip(tables, indexes, references, strict=True)]


def _without_references(postgres: Any, table: TransferTable) -> tuple[str, ...]:
    found = statement(postgres, _REFERENCES, [table.postgres])
    for name, *_ in found:
        statement(postgres, f"ALTER TABLE {table.postgres} DROP CONSTRAINT {quote(name)}")
    made = [f"ALTER TABLE {table.postgres} ADD CONSTRAINT {quote(name)} {text}" for name, text, _ in found]
    notes = [f"COMMENT ON CONSTRAINT {quote(name)} ON {table.postgres} IS {note}" for name, _, note in found if note]
    return (*made, *notes)


def _without_indexes(postgres: Any, table: TransferTable) -> tuple[str, ...]:
    found = statement(postgres, _INDEXES, [table.postgres])
    for schema, name, _ in found:
        statement(postgres, f"DROP INDEX {quote(schema)}.{quote(name)}")
    return tuple(sql for _, _, sql in found)


def bring_back_indexes(postgres: Any, removed: Removed) -> None:
    """Make the indexes again that were dropped for the load."""
    for sql in removed.indexes:
        for name, value in memory_for(sql, lambda query, params: statement(postgres, query, params)[0][0]).items():
            statement(postgres, "SELECT pg_catalog.set_config(%s, %s, true)", [name, value])
        statement(postgres, sql)


def bring_back_references(postgres: Any, removed: Removed) -> None:
    """Make the references again that were dropped for the load; the server checks every row."""
    for sql in removed.references:
        statement(postgres, sql)


def set_sequences(postgres: Any, sqlite: sqlite3.Connection, table: TransferTable) -> None:
    """Let sequences go on behind the values that are there, and behind the keys that SQLite has given out before."""
    for column, sequence in statement(postgres, _SEQUENCES, [table.postgres, table.postgres]):
        highest = statement(postgres, f"SELECT pg_catalog.max({quote(column)}) FROM {table.postgres}")[0][0]
        used = _used(sqlite, table) if table.key == (column,) else 0
        if (last := max(int(highest or 0), used)) > 0:
            _require_room(postgres, table, column, sequence, last)
            statement(postgres, _SET, [sequence, last])


def _require_room(postgres: Any, table: TransferTable, column: str, sequence: str, last: int) -> None:
    """Refuse a sequence that cannot go on behind a number, which the next INSERT would tell."""
    ((most,),) = statement(postgres, _MOST, [sequence])
    if last > most:
        raise TransferRefused(
            f"{table.name}.{column} is at {last:,} in the source, and its sequence ends at {most:,}",
            "nothing was copied; declare a larger integer, or lower the table's number in sqlite_sequence",
        )


def analyze(postgres: Any, tables: Sequence[TransferTable]) -> None:
    """Let the planner know the tables from the first query on."""
    for table in tables:
        statement(postgres, f"ANALYZE {table.postgres}")


def _used(sqlite: sqlite3.Connection, table: TransferTable) -> int:
    """Return the highest key that AUTOINCREMENT has given out, which a deleted row may have had; 0 without one."""
    if not sqlite.execute("SELECT 1 FROM main.sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        return 0
    found = sqlite.execute(
        "SELECT seq FROM main.sqlite_sequence WHERE name = ? COLLATE NOCASE AND typeof(seq) = 'integer'", [table.source]
    ).fetchone()
    return int(found[0]) if found else 0
