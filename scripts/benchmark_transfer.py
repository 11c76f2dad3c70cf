"""Measure a transfer of events from SQLite to PostgreSQL, against executemany with INSERT.

    python scripts/benchmark_transfer.py [--rows N] [--dsn POSTGRES_DSN]

Events have 250 bytes of JSON, and their tables the indexes of the service. Prints the seconds and the rows a second of
the check, of the copy with its indexes, of the proof and of the whole, and those of reading the rows from SQLite and
sending them with executemany. Without a DSN it starts the PostgreSQL of the test extra.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers.surroundings import postgres, progress
from peewee import sqlite3

from whatspire_db import Event, MigrationRunner, Settings, connect
from whatspire_db.transfer import check, transfer

START = datetime(2026, 1, 1)
INSERT = "INSERT INTO events (id, type, session_id, data, timestamp, created_at) VALUES (%s, %s, %s, %s, %s, %s)"
CHUNK = 10_000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dsn", help="of a PostgreSQL database whose schema public may be emptied")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, postgres(options.dsn) as (server, _):
        path = f"{folder}/events.db"
        progress("filling")
        fill(path, options.rows)
        figures = measured(path, server)
        emptied(server)
        progress("executemany")
        figures["executemany"] = executemany(path, server)
    print("| | seconds | rows a second |")
    print("| --- | --- | --- |")
    for name, seconds in figures.items():
        print(f"| {name} | {seconds:.1f} | {options.rows / seconds:,.0f} |")
    print(f"the copy is {figures['executemany'] / figures['copy and indexes']:.1f} times as fast as executemany")


def rows_of(count: int) -> Iterator[tuple[Any, ...]]:
    """Yield events as the service writes them."""
    data = json.dumps({"text": "x" * 230}).encode()
    for number in range(count):
        at = f"{START + timedelta(seconds=number):%Y-%m-%d %H:%M:%S}.{number % 1000:09d}+00:00"
        yield str(uuid.uuid4()), "message", f"session {number % 50}", data, at, at


def fill(path: str, count: int) -> None:
    """Make a SQLite file with events."""
    MigrationRunner(connect(Settings(dsn=path), bind=False)).up()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows_of(count))


def measured(path: str, server: str) -> dict[str, float]:
    """Return the seconds of the check, the copy, the proof and the whole."""
    progress("check")
    started = time.perf_counter()
    check(path, server)
    checked = time.perf_counter() - started
    progress("transfer")
    report = transfer(path, server)
    copied = next(table.seconds for table in report.tables if table.table == "events")
    rest = report.seconds - copied - checked
    return {"check": checked, "copy and indexes": copied, "proof and all else": rest, "transfer": report.seconds}


def emptied(server: str) -> None:
    """Leave the service's tables without rows."""
    db = connect(Settings(dsn=server), bind=False)
    with db.connection_context(), db.bind_ctx([Event]):
        Event.truncate_table()


def executemany(path: str, server: str) -> float:
    """Return the seconds that INSERT takes, a statement a row."""
    db: Any = connect(Settings(dsn=server), bind=False)
    started = time.perf_counter()
    with closing(sqlite3.connect(path)) as source, db.connection_context(), db.atomic():
        rows = source.execute("SELECT id, type, session_id, data, timestamp, created_at FROM events")
        with closing(db.cursor()) as cursor:
            while chunk := rows.fetchmany(CHUNK):
                cursor.executemany(INSERT, chunk)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
