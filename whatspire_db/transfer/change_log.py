"""The change log of a SQLite file: triggers note which rows its writers change, while the rows are copied elsewhere.

The triggers note a table and a key, and no values: whoever follows reads the row again, and finds it changed or gone.
A note is part of the writer's transaction, so the order of notes is that of the commits.

A row that OR REPLACE removes, for another one has its value under a unique index, fires no trigger of its own (unless
PRAGMA recursive_triggers is on). So a trigger before each INSERT and UPDATE notes the rows whose values under a unique
index are the new ones.

The log does not see a row that is replaced because of a partial index, one on an expression, or a rowid that is no
column. Neither does it see DROP TABLE, what ALTER TABLE changes, a restore, and the writes of a connection that turned
triggers off. A comparison of all rows has to find those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import peewee

from ..errors import WhatspireDBError
from ..migrate.ddl import execute, quote, quote_text

TABLE = "whatspire_db_changes"
PREFIX = f"{TABLE}_"  # of the names of the triggers
ROWID_NAMES = ("rowid", "_rowid_", "oid")

Key = tuple[Any, ...]
Index = tuple[tuple[str, str, str], ...]  # each column, the value that it gets, and its collation there


@dataclass(frozen=True)
class Log:
    """A log that is there: which tables it is about, and the position of its last note; 0 without one."""

    tables: tuple[str, ...]
    position: int


@dataclass(frozen=True)
class Changed:
    """The keys of rows that were changed, each with its table, and the position of the last note about them.

    They are in the order of their last change. A row of that key may be there or not.
    """

    keys: tuple[tuple[str, Key], ...]
    position: int

    def __bool__(self) -> bool:
        return bool(self.keys)


def start(db: peewee.SqliteDatabase, tables: Sequence[str]) -> Log:
    """Have every change of the rows of tables noted from now on, in one transaction; return the log.

    A log of the same tables that is there, as of a process that was killed, goes on: its notes stay.

    :raises WhatspireDBError: when there is a log of other tables, or a table's rows have nothing to tell them apart.
    """
    with db.atomic("IMMEDIATE"):
        keys = {table: key_of(db, table) for table in tables}
        wanted = {
            f"{PREFIX}{event}_{table}": sql for table in tables for event, sql in _triggers(db, table, keys[table])
        }
        found = _found(db)
        if found is not None and found != {n: f"CREATE TRIGGER {quote(n)} {sql}" for n, sql in wanted.items()}:
            raise WhatspireDBError(
                "this database has a change log of other tables, or of another version",
                "end the transfer that made it, or remove the log: whatspire-db transfer --remove-log",
            )
        if found is None:
            _create(db, max(map(len, keys.values()), default=1))
            for name, sql in wanted.items():
                execute(db, f"CREATE TRIGGER main.{quote(name)} {sql}")
        return Log(tuple(tables), _last(db))


def changed(db: peewee.SqliteDatabase, after: int) -> Changed:
    """Return the keys of the rows that were changed since a position, each once.

    Read the rows in the same transaction, so that they are as of one moment; remove all of them from the copy before
    the first is written there. Else two rows that exchanged a unique value are in each other's way.
    """
    last = _last(db)
    columns = ", ".join(_key_columns(db))
    found = execute(
        db,
        f"SELECT name, parts, max(position) AS last, {columns} FROM main.{TABLE} "
        f"WHERE position > ? AND position <= ? GROUP BY name, parts, {columns} ORDER BY last",
        (after, last),
    )
    return Changed(tuple((name, tuple(key[:parts])) for name, parts, _, *key in found.fetchall()), last)


def is_there(sqlite: peewee.sqlite3.Connection) -> bool:
    """Tell whether a file has a log, by a connection of the driver's."""
    found = sqlite.execute("SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?", [TABLE]).fetchone()
    return found is not None


def find(db: peewee.SqliteDatabase) -> Log | None:
    """Return the log that is there; None without one."""
    if _found(db) is None:
        return None
    tables = execute(
        db,
        "SELECT DISTINCT tbl_name FROM main.sqlite_master WHERE type = 'trigger' AND substr(name, 1, ?) = ?",
        (len(PREFIX), PREFIX),
    )
    return Log(tuple(sorted(name for (name,) in tables.fetchall())), _last(db))


def stop(db: peewee.SqliteDatabase) -> None:
    """Remove the log and its triggers, if there are any, in one transaction or in that of the caller."""
    with db.atomic("IMMEDIATE"):
        for name in _found(db) or ():
            execute(db, f"DROP TRIGGER main.{quote(name)}")
        execute(db, f"DROP TABLE IF EXISTS main.{TABLE}")


def key_of(db: peewee.SqliteDatabase, table: str) -> tuple[str, ...]:
    """Return the columns by which rows of a table are told apart: its primary key, else the name of its rowid.

    :raises WhatspireDBError: when it is not a table, or has neither; SQLite has no triggers on virtual tables.
    """
    columns = execute(db, "SELECT name, pk FROM pragma_table_xinfo(?, 'main')", (table,)).fetchall()
    kind = execute(
        db,
        "SELECT type, coalesce(sql LIKE 'create virtual%', 0) FROM main.sqlite_master WHERE name = ? COLLATE NOCASE "
        "AND type IN ('table', 'view')",
        (table,),
    ).fetchone()
    if kind != ("table", 0):
        what = "is not there" if kind is None else "is a virtual table or a view"
        hint = f"leave its model out (--models), and the table behind: --leave {table}"
        raise WhatspireDBError(f"changes of {table} cannot be noted: it {what}", hint)
    if key := tuple(name for name, place in sorted(columns, key=lambda column: int(column[1])) if place):
        return key
    taken = {name.lower() for name, _ in columns}
    if free := [name for name in ROWID_NAMES if name not in taken]:
        return (free[0],)
    raise WhatspireDBError(f"changes of {table} cannot be noted: columns hide its rowid", "give it a primary key")


def _create(db: peewee.SqliteDatabase, width: int) -> None:
    # No AUTOINCREMENT, whose table of counters would stay; no note is deleted, so no position is used again. Columns
    # without a type keep values as they are.
    columns = ", ".join(f"k{number}" for number in range(width))
    execute(db, f"CREATE TABLE main.{TABLE} (position INTEGER PRIMARY KEY, name, parts, {columns})")


def _triggers(db: peewee.SqliteDatabase, table: str, key: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the triggers of a table: a word for each one's name, and what follows that name."""
    new, old = ([f"{row}.{quote(name)}" for name in key] for row in ("NEW", "OLD"))
    # Not by the columns' collations: a key that changes from a to A leaves a.
    differs = " OR ".join(f"{was} COLLATE BINARY IS NOT {is_}" for was, is_ in zip(old, new, strict=True))
    noted = {
        "insert": _note(table, new),
        "update": f"{_note(table, old, f'WHERE {differs}')} {_note(table, new)}",
        "delete": _note(table, old),
    }
    for event, notes in noted.items():
        yield event, f"AFTER {event.upper()} ON {quote(table)} BEGIN {notes} END"
    if not (indexes := _unique_indexes(db, table)):
        return
    own = [quote(name) for name in key]
    replaced = " ".join(_note(table, own, f"FROM {quote(table)} WHERE {_has_values(index)}") for index in indexes)
    columns = dict.fromkeys(name for index in indexes for name, *_ in index)
    # No UPDATE sets a generated column, which changes with those that it is made of.
    of = "" if _generated(db, table) & columns.keys() else f" OF {', '.join(map(quote, columns))}"
    yield "replaced_by_insert", f"BEFORE INSERT ON {quote(table)} BEGIN {replaced} END"
    yield "replaced_by_update", f"BEFORE UPDATE{of} ON {quote(table)} BEGIN {replaced} END"


def _generated(db: peewee.SqliteDatabase, table: str) -> set[str]:
    sql = "SELECT name FROM pragma_table_xinfo(?, 'main') WHERE hidden IN (2, 3)"
    return {name for (name,) in execute(db, sql, (table,)).fetchall()}


def _note(table: str, key: Sequence[str], of: str = "") -> str:
    columns = ", ".join(f"k{number}" for number in range(len(key)))
    select = f"SELECT {quote_text(table)}, {len(key)}, {', '.join(key)} {of}".rstrip()
    return f"INSERT INTO {TABLE} (name, parts, {columns}) {select};"


def _has_values(index: Index) -> str:
    """Return the condition for a row to have the new row's values under a unique index."""
    return " AND ".join(f"{quote(name)} = {new} COLLATE {quote(collation)}" for name, new, collation in index)


def _unique_indexes(db: peewee.SqliteDatabase, table: str) -> list[Index]:
    """Return the unique indexes under which a row can be replaced by one with another key."""
    found = execute(
        db,
        """
        SELECT i.name, i.origin = 'pk', k.name, k.coll, CASE WHEN c."notnull" THEN c.dflt_value END
        FROM pragma_index_list(?, 'main') AS i, pragma_index_xinfo(i.name, 'main') AS k
        LEFT JOIN pragma_table_xinfo(?, 'main') AS c ON c.cid = k.cid
        WHERE i."unique" AND NOT i.partial AND k.key ORDER BY i.seq, k.seqno
        """,
        (table, table),
    )
    indexes: dict[str, list[tuple[str, str, str]]] = {}
    is_key = {}
    for name, is_key[name], column, collation, default in found.fetchall():
        new = f"NEW.{quote(column)}" if column is not None else ""
        # OR REPLACE takes the default for NULL in a column that is NOT NULL.
        given = new if default is None else f"ifnull({new}, ({default}))"
        indexes.setdefault(name, []).append((column, given, collation))
    return [
        tuple(index)
        for name, index in indexes.items()
        if all(column is not None for column, *_ in index)  # None is an expression
        and not (is_key[name] and all(collation == "BINARY" for *_, collation in index))
    ]


def _found(db: peewee.SqliteDatabase) -> dict[str, str] | None:
    """Return the triggers of the log that is there, by name; None without a log."""
    found: Iterable[tuple[str, str, str]] = execute(
        db,
        "SELECT type, name, sql FROM main.sqlite_master WHERE (type, name) = ('table', ?) "
        "OR type = 'trigger' AND substr(name, 1, ?) = ?",
        (TABLE, len(PREFIX), PREFIX),
    ).fetchall()
    triggers = {name: sql for kind, name, sql in found if kind == "trigger"}
    return triggers if found else None


def _key_columns(db: peewee.SqliteDatabase) -> list[str]:
    found = execute(db, "SELECT name FROM pragma_table_info(?, 'main') WHERE name LIKE 'k%'", (TABLE,))
    return [name for (name,) in found.fetchall()]


def _last(db: peewee.SqliteDatabase) -> int:
    return int(execute(db, f"SELECT coalesce(max(position), 0) FROM main.{TABLE}").fetchone()[0])
