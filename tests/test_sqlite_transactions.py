"""A transaction that SQLite ends by itself: the caller sees why, and nothing that follows is committed alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import peewee
import pytest

from tests.conftest import Place
from whatspire_db import TransactionError

NESTED = [1, 2]


@pytest.fixture
def db(sqlite: Place) -> Iterator[Any]:
    database = sqlite.connect()
    with database.connection_context():
        database.execute_sql("CREATE TABLE note (text text PRIMARY KEY)")
        write(database, "there")
        yield database
    assert database.pool_stats().in_use == 0


def write(db: Any, text: str) -> None:
    db.execute_sql("INSERT INTO note VALUES (?)", (text,))


def fail(db: Any) -> None:
    db.execute_sql("INSERT OR ROLLBACK INTO note VALUES ('there')")


def notes(db: Any) -> list[str]:
    return [text for (text,) in db.execute_sql("SELECT text FROM note").fetchall()]


@pytest.mark.parametrize("depth", NESTED)
def test_caller_sees_why(db: Any, depth: int) -> None:
    with pytest.raises(peewee.IntegrityError, match="UNIQUE"):
        within(db, depth, lambda: (write(db, "lost"), fail(db)))
    assert notes(db) == ["there"]


def test_caller_sees_that_the_disk_is_full(db: Any) -> None:
    db.execute_sql("PRAGMA max_page_count = 10")
    with pytest.raises(peewee.OperationalError, match="full"):
        within(db, 1, lambda: [write(db, f"{number:05}" * 100) for number in range(1000)])
    assert notes(db) == ["there"]


@pytest.mark.parametrize("depth", NESTED)
def test_nothing_runs_behind_it(db: Any, depth: int) -> None:
    def act() -> None:
        with pytest.raises(peewee.IntegrityError):
            fail(db)
        with pytest.raises(TransactionError, match="rolled back"):
            write(db, "behind")

    with pytest.raises((peewee.OperationalError, TransactionError)):
        within(db, depth, act)
    assert notes(db) == ["there"]
    with db.atomic():
        write(db, "afterwards")
    assert "afterwards" in notes(db)


def within(db: Any, depth: int, act: Any) -> None:
    with db.atomic():
        if depth > 1:
            within(db, depth - 1, act)
        else:
            act()
