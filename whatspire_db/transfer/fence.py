"""The fence of a SQLite file whose rows were moved to another database: every write fails with a sentence that says so.

Triggers refuse the writes of all programs, the Go service's included, and a row in a table of ours holds the facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Protocol

import peewee

from ..dsn.naming import describe
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import DatabaseMoved
from ..messages import ERROR, primary
from ..peewee_compat import peewee_errors

TABLE = "whatspire_db_fence"
PREFIX = f"{TABLE}_"  # of the names of the triggers
HISTORY = "migration_versions"
EVENTS = ("INSERT", "UPDATE", "DELETE")


class Readable(Protocol):
    """A connection of the driver, or a Peewee database."""

    def cursor(self) -> Any: ...


@dataclass(frozen=True)
class Fence:
    """Where the rows of a file are now, without a user or a password, and since when, in UTC."""

    moved_to: str
    moved_at: str

    @property
    def fact(self) -> str:
        """The sentence by which every write fails."""
        return f"this database was moved to {self.moved_to} on {self.moved_at}"

    @property
    def hint(self) -> str:
        """What to do about it."""
        return (
            "point driver and DSN (WHATSAPP_DATABASE_*) there; to go back to this database, remove its fence: "
            "whatspire-db transfer --remove-fence --from DSN"
        )

    def refusal(self) -> DatabaseMoved:
        """Return the error for what is not done to a fenced database."""
        return DatabaseMoved(self.fact, self.hint)

    def to_json(self) -> dict[str, str]:
        return {"to": self.moved_to, "at": self.moved_at}


def put_up(
    db: peewee.SqliteDatabase, tables: Iterable[str], where: PostgresTarget | SqliteTarget, at: datetime
) -> Fence:
    """Put the fence around tables and the history of migrations, in the transaction that the caller holds; return it.

    A fence that is there already is replaced.

    :param where: the database that has the rows now.
    :param at: when it got them; a time with a zone.
    """
    fence = Fence(describe(where), f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC")
    _take_down(db)
    db.execute_sql(f"CREATE TABLE main.{TABLE} (moved_to text NOT NULL, moved_at text NOT NULL)")
    db.execute_sql(f"INSERT INTO main.{TABLE} VALUES (?, ?)", (fence.moved_to, fence.moved_at))
    names = list(tables)
    if HISTORY not in {name.lower() for name in names}:
        names += [name for name in _names(db, "table", HISTORY) if name.lower() == HISTORY]
    for table in names:
        for event in EVENTS:
            db.execute_sql(_trigger(table, event, fence))
    return fence


def _trigger(table: str, event: str, fence: Fence) -> str:
    name = _quoted(f"{PREFIX}{event.lower()}_{table}")
    sentence = fence.fact.replace("'", "''")
    # BEFORE: not even a row that ON CONFLICT would leave out, or change, gets by.
    return f"CREATE TRIGGER main.{name} BEFORE {event} ON {_quoted(table)} BEGIN SELECT RAISE(ABORT, '{sentence}'); END"


def find(db: Readable) -> Fence | None:
    """Return the fence of a file, in one statement; None without one."""
    with peewee_errors:
        try:
            row = db.cursor().execute(f"SELECT moved_to, moved_at FROM main.{TABLE}").fetchone()
        except peewee.sqlite3.OperationalError as error:
            if primary(error) != ERROR:
                raise
            return None  # there is no such table
    return Fence(*map(str, row)) if row else None


def remove(db: peewee.SqliteDatabase) -> Fence | None:
    """Take the fence away in one transaction, so that the file can be written again; return it, None without one."""
    with db.atomic("IMMEDIATE"):
        fence = find(db)
        _take_down(db)
    return fence


def removed(fence: Fence | None) -> str:
    """Say in a sentence what `remove` did."""
    if fence is None:
        return "this database has no fence"
    return (
        f"the fence is removed: this database takes writes again, and lacks what was written to {fence.moved_to} "
        f"since {fence.moved_at}"
    )


def _take_down(db: peewee.SqliteDatabase) -> None:
    for name in _names(db, "trigger", PREFIX):
        db.execute_sql(f"DROP TRIGGER main.{_quoted(name)}")
    db.execute_sql(f"DROP TABLE IF EXISTS main.{TABLE}")


def _names(db: peewee.SqliteDatabase, kind: str, beginning: str) -> list[str]:
    found = db.execute_sql(
        "SELECT name FROM main.sqlite_master WHERE type = ? AND lower(substr(name, 1, ?)) = ? ORDER BY name",
        (kind, len(beginning), beginning),
    )
    return [name for (name,) in found.fetchall()]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
