"""A program that writes sessions until the fence stops it, and notes each row that was acknowledged.

python -m tests.transfer.writer FILE KIND NOTES
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TextIO

import peewee
from peewee import sqlite3

from whatspire_db import Session, Settings, connect
from whatspire_db.messages import CONSTRAINT, CONSTRAINT_TRIGGER, in_words, sqlite_code

NOW = "2026-11-22 09:05:03.5+00:00"
INSERT = "INSERT INTO sessions (id, name, status, created_at, updated_at) VALUES (?, ?, 'pending', ?, ?)"
UPSERT = f"{INSERT} ON CONFLICT (id) DO UPDATE SET name = excluded.name RETURNING id"
REFUSED = (CONSTRAINT_TRIGGER, CONSTRAINT)  # Python 3.10 keeps the primary code alone
PAUSE_SECONDS = 0.002  # SQLite's lock goes to whoever asks at the right moment: without a pause some wait for long
Put = Callable[[str, str], None]
Drop = Callable[[str], None]


def by_sql(execute: Callable[..., Any]) -> tuple[Put, Drop]:
    """Return what writes and what deletes a row, by statements as the service sends them."""

    def put(key: str, name: str) -> None:
        assert execute(UPSERT, (key, name, NOW, NOW)).fetchall() == [(key,)]

    def drop(key: str) -> None:
        execute("DELETE FROM sessions WHERE id = ?", (key,))

    return put, drop


def by_models() -> tuple[Put, Drop]:
    """Return what writes and what deletes a row, by models."""

    def put(key: str, name: str) -> None:
        session = Session.get_or_none(Session.id == key)
        if session is None:
            Session.create(id=key, name=name, status="pending")
        else:
            session.name = name
            session.save()

    def drop(key: str) -> None:
        Session.delete().where(Session.id == key).execute()

    return put, drop


def work(kind: str, put: Put, drop: Drop, notes: TextIO) -> None:
    """Insert, update and delete rows, without end."""
    for number in range(10**9):
        key, name = f"{kind}-{number % 40}", f"{kind} {number}"
        if number % 7 == 6:
            drop(key)
        else:
            put(key, name)
        print(json.dumps([key, None if number % 7 == 6 else name]), file=notes, flush=True)
        time.sleep(PAUSE_SECONDS)


def main(path: str, kind: str, file: str) -> int:
    """Write until the fence is met, and print its sentence."""
    db: Any = connect(Settings(driver="sqlite", dsn=f"{path}?_busy_timeout=30000", log_level="silent"))
    plain = peewee.SqliteDatabase(path, timeout=30)
    own = sqlite3.connect(path, timeout=30, isolation_level=None)
    with db.connection_context(), plain.connection_context(), closing(own), open(file, "w") as notes:
        ways = {"sqlite3": by_sql(own.execute), "peewee": by_sql(plain.execute_sql), "sql": by_sql(db.execute_sql)}
        try:
            work(kind, *(ways.get(kind) or by_models()), notes)
        except (peewee.IntegrityError, sqlite3.IntegrityError) as error:
            told = in_words(error)
            if told is None or sqlite_code(error) not in REFUSED:
                raise
            sys.stdout.write(f"{told.fact}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
