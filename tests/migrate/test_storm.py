"""Many starters at once: all succeed, one does the work, one row is recorded."""

from __future__ import annotations

import json
from contextlib import closing

import pytest
from peewee import sqlite3

from tests import gorm
from tests.conftest import Place, ends_of
from whatspire_db import LockTimeout, MigrationRunner, Settings, connect
from whatspire_db.migrate import Step
from whatspire_db.migrate.progress import Watcher

STARTERS = 32


def storm(place: Place) -> None:
    """Start all at once and look at what each said and what is there."""
    processes = [place.start("--json") for _ in range(STARTERS)]
    ends = ends_of(processes)
    assert [code for code, *_ in ends] == [0] * STARTERS, [err for *_, err in ends if err]
    reports = [json.loads(out) for _, out, _ in ends]
    workers = [report for report in reports if report["applied"]]
    assert len(workers) == 1
    assert len({report["version"] for report in reports}) == 1
    db = place.connect()
    with db.connection_context():
        assert [run.version for run in MigrationRunner(db).status()] == [workers[0]["version"]]
        assert not MigrationRunner(db).verify_schema()
        assert sorted(db.get_tables()) == sorted([*gorm.TABLES, "whatspire_db_runs"])


@pytest.mark.soak
def test_one_storm(place: Place) -> None:
    storm(place)


def test_the_go_service_starts_at_the_same_second(place: Place) -> None:
    """The Go service records its start without our lock: its version is passed over, not fought for."""
    db = place.connect()
    with db.connection_context():
        runner = MigrationRunner(db)
        runner.up()
        insert = "INSERT INTO migration_versions VALUES (%d, 'auto_migration', '2026-01-01 00:00:00+00:00')"
        for version in range(runner.version() + 1, runner.version() + 5):
            db.execute_sql(insert % version)
        db.execute_sql("DROP INDEX idx_sessions_jid")
        newest = runner.version()
        assert runner.up().version == newest + 1


def test_lock_is_waited_for_and_then_named(place: Place) -> None:
    holder, db = place.connect(), place.connect()
    with holder.connection_context(), db.connection_context():
        if not place.is_sqlite:
            db.execute_sql("CREATE TABLE other (id integer)")
        with (
            MigrationRunner(holder).engine.lock(1),
            pytest.raises(LockTimeout, match=r"for 0\.2 s") as error,
        ):
            MigrationRunner(db, lock_timeout=0.2).up()
        if not place.is_sqlite:
            (pid,) = holder.execute_sql("SELECT pg_backend_pid()").fetchone()
            assert f"pid {pid}, application whatspire_db" in error.value.fact
        MigrationRunner(db).up()


@pytest.mark.parametrize("lock_type", ["deferred", "immediate", "exclusive"])
def test_a_run_on_sqlite_holds_the_write_lock_however_transactions_begin(sqlite: Place, lock_type: str) -> None:
    class Meddler(Watcher):
        refused = 0

        def step_started(self, step: Step) -> None:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("CREATE TABLE meddled (id integer)")
            self.refused += 1

    db = connect(Settings(dsn=f"{sqlite.dsn}?_txlock={lock_type}&_busy_timeout=0", log_level="silent"))
    meddler = Meddler()
    with closing(sqlite3.connect(sqlite.dsn, timeout=0, isolation_level=None)) as other, db.connection_context():
        other.execute("PRAGMA journal_mode = WAL")
        runner = MigrationRunner(db, lock_timeout=0, watcher=meddler)
        other.execute("BEGIN IMMEDIATE")
        planned = runner.plan()  # to look takes no lock, though a transaction of the user's might
        other.execute("COMMIT")
        assert len(runner.up().applied) == len(planned.pending) == meddler.refused > 0
        assert not runner.verify_schema()
        db.execute_sql("DROP INDEX idx_sessions_jid")
        assert len(runner.up().applied) == 1
