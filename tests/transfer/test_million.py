"""A million rows, compared one by one by the two drivers alone: nothing of the proof's, nor of its conversions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, timezone
from itertools import zip_longest
from typing import Any

import psycopg2
import pytest
from peewee import sqlite3

from tests.conftest import Place
from whatspire_db import MigrationRunner
from whatspire_db.transfer import transfer

ROWS = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
# Ids in no order, texts that COPY escapes, data that are NULL, times with a fraction of none to nine digits.
FILL = f"""
WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c WHERE n < {ROWS - 1})
INSERT INTO events (id, type, session_id, data, timestamp, created_at)
SELECT printf('%07d-%s', n * 7919 % {ROWS}, char(233, 0x1F989)),
  CASE n % 4 WHEN 0 THEN 'message' WHEN 1 THEN 'tab' || char(9) || '\\N' WHEN 2 THEN 'line' || char(10, 13) ELSE '' END,
  's' || n % 97,
  CASE WHEN n % 11 THEN CAST(printf('{{"n":%d,"text":"%s"}}', n, substr(hex(n), 1, n % 13)) AS BLOB) END,
  datetime(1700000000 + n * 37, 'unixepoch')
    || CASE n % 10 WHEN 0 THEN '' ELSE '.' || substr(printf('%09d', n * 7907 % 1000000000), 1, n % 10) END || '+00:00',
  datetime(1700000000 + n, 'unixepoch') || '.5+00:00'
FROM c
"""
COLUMNS = "id, type, session_id, data, timestamp, created_at"


def instant(text: str) -> datetime:
    """Return the moment that a text of SQLite's means, cut to microseconds."""
    assert text.endswith("+00:00")
    fraction = text[20:-6][:6]
    return datetime.fromisoformat(text[:19]).replace(microsecond=int(fraction.ljust(6, "0")), tzinfo=timezone.utc)


def of_sqlite(connection: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    for *plain, timestamp, created in connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY id"):
        yield (*plain, instant(timestamp), instant(created))


def of_postgres(connection: Any) -> Iterator[tuple[Any, ...]]:
    """Yield rows with times as microseconds that the server has counted."""
    micros = [f"(extract(epoch FROM {column}) * 1000000)::bigint" for column in ("timestamp", "created_at")]
    with connection.cursor("compared") as cursor:
        cursor.itersize = 5000
        cursor.execute(f'SELECT id, type, session_id, data, {", ".join(micros)} FROM events ORDER BY id COLLATE "C"')
        for id_, type_, session, data, *times in cursor:
            moments = (EPOCH + timedelta(microseconds=time) for time in times)
            yield (id_, type_, session, None if data is None else bytes(data), *moments)


@pytest.mark.soak
def test_a_million_rows_are_the_same_one_by_one(sqlite: Place, postgres: Place) -> None:
    db = sqlite.connect()
    with db.connection_context():
        MigrationRunner(db).up()
    with closing(sqlite3.connect(sqlite.dsn)) as connection, connection:
        connection.execute(FILL)
    assert transfer(sqlite.dsn, postgres.dsn).rows == ROWS
    count = 0
    with closing(sqlite3.connect(sqlite.dsn)) as ours, closing(psycopg2.connect(postgres.dsn)) as theirs:
        for left, right in zip_longest(of_sqlite(ours), of_postgres(theirs)):
            assert left == right
            count += 1
    assert count == ROWS
