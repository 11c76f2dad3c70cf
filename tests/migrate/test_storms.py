"""Many more starters than processors, fresh and with an index to build: all succeed and agree, one does the work."""

from __future__ import annotations

import json
from typing import Any

import peewee
import pytest

from tests import gorm
from tests.conftest import Place
from whatspire_db import MigrationRunner

FEW, MANY = 8, 64
ROUNDS = 5  # of either kind on either engine: a round of sixty-four takes two processors some ten seconds
SMALL, LARGE = 20_000, 200_000  # rows; an index on either is built online
INDEX = "idx_events_type"

# So many interpreters share a few processors: the last starter waits for all that come before it.
PATIENCE = ("--lock-timeout", "120s")


def start(place: Place, starters: int) -> list[dict[str, Any]]:
    """Start all at once and return the report of each."""
    processes = [place.start("--json", *PATIENCE) for _ in range(starters)]
    ends = [(*process.communicate(timeout=240), process.returncode) for process in processes]
    assert [code for *_, code in ends] == [0] * starters, [err for _, err, _ in ends if err]
    return [json.loads(out) for out, *_ in ends]


def storm(place: Place, starters: int) -> dict[str, Any]:
    """Start all at once, look at what they agree on and what is there, and return the report of who did the work."""
    db = place.connect()
    with db.connection_context():
        before = [run.version for run in MigrationRunner(db).status()]
    reports = start(place, starters)
    workers = [report for report in reports if report["applied"]]
    assert len(workers) == 1
    with db.connection_context():
        assert [run.version for run in MigrationRunner(db).status()] == [*before, workers[0]["version"]]
        assert [report["version"] for report in reports] == [workers[0]["version"]] * starters
        assert not MigrationRunner(db).verify_schema()
        assert invalid_indexes(place, db) == []
    return workers[0]


def invalid_indexes(place: Place, db: peewee.Database) -> list[tuple[str]]:
    if place.is_sqlite:
        return []
    return db.execute_sql("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid").fetchall()


def storm_on_a_fresh_database(place: Place, starters: int) -> None:
    worker = storm(place, starters)
    assert {step["name"] for step in worker["applied"] if step["kind"] == "create_table"} == set(gorm.TABLES)


def fill_events(place: Place, rows: int) -> None:
    """Migrate, and give one table so many rows."""
    assert place.run().returncode == 0
    values = "'event ' || n, 'type ' || n, 's', '2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00'"
    db = place.connect()
    with db.connection_context():
        db.execute_sql(
            f"WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows}) "
            f"INSERT INTO events (id, type, session_id, timestamp, created_at) SELECT {values} FROM numbers"
        )


def storm_for_an_index(place: Place, starters: int) -> None:
    db = place.connect()
    with db.connection_context():
        db.execute_sql(f"DROP INDEX {INDEX}")
    (step,) = storm(place, starters)["applied"]
    assert (step["kind"], step["name"]) == ("create_index", INDEX)
    assert place.is_sqlite or "CONCURRENTLY" in step["sql"][0]


def test_one_starter_migrates_a_fresh_database(place: Place) -> None:
    storm_on_a_fresh_database(place, FEW)


def test_one_starter_builds_an_index_that_all_wait_for(place: Place) -> None:
    fill_events(place, SMALL)
    for _ in range(2):
        storm_for_an_index(place, FEW)


@pytest.mark.soak
@pytest.mark.parametrize("number", range(ROUNDS))
def test_one_of_many_starters_migrates_a_fresh_database(place: Place, number: int) -> None:
    storm_on_a_fresh_database(place, MANY)


@pytest.mark.soak
def test_one_of_many_starters_builds_an_index_that_all_wait_for(place: Place) -> None:
    fill_events(place, LARGE)
    for _ in range(ROUNDS):
        storm_for_an_index(place, MANY)
