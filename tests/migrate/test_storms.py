"""Many more starters than processors, fresh and with an index to build: all succeed and agree, one does the work."""

from __future__ import annotations

import json
from typing import Any

import peewee
import pytest

from tests import gorm
from tests.conftest import Place, ends_of
from whatspire_db import MigrationRunner

FEW, MANY = 8, 64
# On either engine: a round of sixty-four takes two processors some ten seconds.
FRESH_ROUNDS, INDEX_ROUNDS, COLUMN_ROUNDS = 10, 10, 2
SMALL, LARGE = 20_000, 200_000  # rows; an index on either is built online
INDEX, COLUMN = "idx_events_type", "ignore_groups"

MEMOS = """
import peewee
from pgvector.peewee import VectorField


class Memo(peewee.Model):
    embedding = VectorField(dimensions=3)
"""

# So many interpreters share a few processors: the last starter waits for all that come before it.
PATIENCE = ("--lock-timeout", "120s")


def start(place: Place, starters: int, *arguments: str) -> list[dict[str, Any]]:
    """Start all at once and return the report of each."""
    processes = [place.start("--json", *PATIENCE, *arguments) for _ in range(starters)]
    ends = ends_of(processes, timeout=240)
    assert [code for code, *_ in ends] == [0] * starters, [err for *_, err in ends if err]
    return [json.loads(out) for _, out, _ in ends]


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


def fill(place: Place, rows: int) -> None:
    """Migrate, give one table so many rows, and another one."""
    assert place.run().returncode == 0
    times = "'2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00'"
    db = place.connect()
    with db.connection_context():
        db.execute_sql(
            f"WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows}) "
            "INSERT INTO events (id, type, session_id, timestamp, created_at) "
            f"SELECT 'event ' || n, 'type ' || n, 's', {times} FROM numbers"
        )
        db.execute_sql(
            f"INSERT INTO webhook_configs (id, session_id, created_at, updated_at) VALUES ('w', 's', {times})"
        )


def storm_for_an_index(place: Place, starters: int) -> None:
    db = place.connect()
    with db.connection_context():
        db.execute_sql(f"DROP INDEX {INDEX}")
    (step,) = storm(place, starters)["applied"]
    assert (step["kind"], step["name"]) == ("create_index", INDEX)
    assert place.is_sqlite or "CONCURRENTLY" in step["sql"][0]


def storm_for_a_column(place: Place, starters: int) -> None:
    db = place.connect()
    with db.connection_context():
        db.execute_sql(f"ALTER TABLE webhook_configs DROP COLUMN {COLUMN}")
    (step,) = storm(place, starters)["applied"]
    assert (step["kind"], step["name"]) == ("add_column", COLUMN)


def test_one_starter_migrates_a_fresh_database(place: Place) -> None:
    storm_on_a_fresh_database(place, FEW)


@pytest.mark.soak
def test_one_starter_adds_what_all_find_missing(place: Place) -> None:
    fill(place, SMALL)
    for _ in range(2):
        storm_for_an_index(place, FEW)
        storm_for_a_column(place, FEW)


@pytest.mark.soak
def test_one_starter_creates_an_extension_that_all_need(postgres: Place) -> None:
    (postgres.folder / "memos.py").write_text(MEMOS)
    reports = start(postgres, FEW, "--models", "memos")
    assert [bool(report["applied"]) for report in reports].count(True) == 1


@pytest.mark.soak
@pytest.mark.parametrize("number", range(FRESH_ROUNDS))
def test_one_of_many_starters_migrates_a_fresh_database(place: Place, number: int) -> None:
    storm_on_a_fresh_database(place, MANY)


@pytest.mark.soak
def test_one_of_many_starters_adds_what_all_find_missing(place: Place) -> None:
    fill(place, LARGE)
    for _ in range(INDEX_ROUNDS):
        storm_for_an_index(place, MANY)
    for _ in range(COLUMN_ROUNDS):
        storm_for_a_column(place, MANY)
