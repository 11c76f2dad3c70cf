"""Behind PgBouncer: a session is not ours beyond a transaction, and still one does the work and nothing stays set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import peewee
import psycopg2
import pytest

from tests.conftest import Place, Server, ends_of
from tests.pooler import PGBOUNCER, POOL, bouncer, through
from tests.servers import eventually, opened
from whatspire_db import LockTimeout, MigrationRunner
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.models.service import Session

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

STARTERS = 16
LARGE = 20_000  # twice as many rows as are built on while the table is locked
SETTINGS = ("lock_timeout", "statement_timeout", "search_path", "idle_in_transaction_session_timeout")


@pytest.fixture(scope="module")
def socket(server: Server) -> Iterator[Path]:
    """The folder of the socket of a pooler in transaction mode."""
    with bouncer(server, "transaction") as folder:
        yield folder


@pytest.fixture
def pooled(postgres: Place, socket: Path) -> Place:
    """A fresh database, reached through a pooler in transaction mode."""
    return through(postgres, socket)


# Runs


def migrates_once(place: Place) -> None:
    """Show that a first run makes the schema and a second one finds it, both without a word on stderr."""
    first = place.run("--json")
    assert (first.returncode, first.stderr) == (0, "")
    made = json.loads(first.stdout)
    assert {step["kind"] for step in made["applied"]} == {"create_table", "create_index"}
    again = place.run("--json")
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout)["applied"] == []
    assert json.loads(again.stdout)["version"] == made["version"]
    assert place.run("verify").returncode == 0


def test_fresh_database_is_migrated_once(pooled: Place) -> None:
    migrates_once(pooled)


@pytest.mark.soak
def test_session_mode_works_as_well(postgres: Place, server: Server) -> None:
    with bouncer(server, "session") as folder:
        place = through(postgres, folder)
        migrates_once(place)
        lock_excludes(holder=place, others=[place, postgres])


def fill(db: peewee.Database, rows: int) -> None:
    """Make the table of sessions with rows and one of its two indexes, so that the other is built concurrently."""
    Session._schema.create_table(safe=False)
    db.execute_sql("CREATE INDEX idx_sessions_jid ON sessions (jid)")
    db.execute_sql(
        "INSERT INTO sessions SELECT n::text, 'name', 'jid' || n, 'pending', now(), now() FROM generate_series(1, %s) AS n",
        [rows],
    )
    db.execute_sql("ANALYZE sessions")


def storm(place: Place) -> list[dict[str, Any]]:
    """Start many at once, show that all succeed, and return their reports, that of the one which did the work first."""
    processes = [place.start("--json") for _ in range(STARTERS)]
    ends = ends_of(processes)
    assert [(code, err) for code, _, err in ends] == [(0, "")] * STARTERS
    reports = sorted((json.loads(out) for _, out, _ in ends), key=lambda report: not report["applied"])
    assert [bool(report["applied"]) for report in reports] == [True] + [False] * (STARTERS - 1)
    with opened(place) as db:
        runner = MigrationRunner(db)
        assert [run.version for run in runner.status()] == [reports[0]["version"]]
        assert not runner.verify_schema()
        assert db.execute_sql("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid").fetchall() == []
    return reports


@pytest.mark.soak
def test_storm_on_a_fresh_database(pooled: Place) -> None:
    reports = storm(pooled)
    assert {report["version"] for report in reports} == {reports[0]["version"]}


@pytest.mark.soak
def test_storm_that_builds_an_index_concurrently(postgres: Place, pooled: Place) -> None:
    with opened(postgres) as db:
        fill(db, LARGE)
    reports = storm(pooled)
    (built,) = [step for step in reports[0]["applied"] if step["name"] == "idx_sessions_status"]
    assert built["sql"] == ['CREATE INDEX CONCURRENTLY "idx_sessions_status" ON "sessions" ("status")']
    assert {report["version"] for report in reports} == {reports[0]["version"]}


# The lock


def lock_holders(place: Place) -> list[int]:
    with opened(place) as db:
        found = db.execute_sql(
            "SELECT l.pid FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database "
            "WHERE l.locktype = 'advisory' AND l.granted AND d.datname = current_database()"
        )
        return [pid for (pid,) in found]


def lock_excludes(holder: Place, others: list[Place], seconds: float = 0.3) -> None:
    """Show that one holds the lock while others wait in vain and learn who that is; and that it ends."""
    with opened(holder) as db, MigrationRunner(db).engine.lock(1):
        db.execute_sql("SELECT 1")  # a transaction of the holder's own does not end it
        (pid,) = lock_holders(others[-1])
        for other in others:
            with opened(other) as waiting, pytest.raises(LockTimeout, match=f"for {seconds} s") as error:
                MigrationRunner(waiting, lock_timeout=seconds, record_all=True).up()
            assert f"pid {pid}, application whatspire_db, user postgres" in error.value.fact
    for other in others:
        with opened(other) as db:
            MigrationRunner(db, lock_timeout=30, record_all=True).up()


@pytest.mark.soak
def test_lock_excludes_others_behind_the_pooler_and_beside_it(postgres: Place, pooled: Place) -> None:
    with opened(postgres) as db:
        db.execute_sql("CREATE TABLE other (id integer)")
    lock_excludes(holder=pooled, others=[pooled, postgres])
    lock_excludes(holder=postgres, others=[pooled])


@pytest.mark.soak
def test_lock_outlasts_the_time_limits_for_transactions(postgres: Place, pooled: Place) -> None:
    name = parse_postgres(postgres.dsn).arguments["dbname"]
    with opened(postgres) as db:
        found = db.execute_sql("SELECT name FROM pg_settings WHERE name ~ '^(idle_in_)?transaction.*_timeout$'")
        limits = [limit for (limit,) in found.fetchall()]
        for limit in limits:
            db.execute_sql(f"ALTER DATABASE {name} SET {limit} = '300ms'")
    unlimited = replace(postgres, dsn=" ".join([postgres.dsn, *(f"{limit}=0" for limit in limits)]))
    lock_excludes(holder=pooled, others=[unlimited], seconds=0.8)


# What stays


def settings_seen(place: Place) -> set[tuple[str, ...]]:
    """Ask all of the pooler's connections to the server at once, each from a fresh connection to the pooler."""
    pids, seen = set(), set()
    question = "SELECT pg_backend_pid(), " + ", ".join(f"current_setting('{name}')" for name in SETTINGS)
    with ExitStack() as stack:
        for _ in range(POOL):
            connection = stack.enter_context(closing(psycopg2.connect(**parse_postgres(place.dsn).arguments)))
            stack.enter_context(connection)  # a transaction, which keeps the server's process to itself until all asked
            cursor = connection.cursor()
            cursor.execute(question)
            pid, *values = cursor.fetchone()
            pids.add(pid)
            seen.add(tuple(values))
    assert len(pids) == POOL
    return seen


def test_no_setting_and_no_lock_is_left_on_the_poolers_connections(postgres: Place, pooled: Place) -> None:
    usual = ("7s", "11s", "public, pg_temp", "13s")
    with opened(postgres) as db:
        fill(db, LARGE)
        for name, value in zip(SETTINGS, usual, strict=True):
            value = value if name == "search_path" else f"'{value}'"
            db.execute_sql(f"ALTER DATABASE {parse_postgres(postgres.dsn).arguments['dbname']} SET {name} = {value}")
    assert settings_seen(pooled) == {usual}
    with opened(pooled) as db:
        applied = MigrationRunner(db).up().applied
        assert [step.name for step in applied if step.online] == ["idx_sessions_status"]
    assert settings_seen(pooled) == {usual}
    eventually(lambda: lock_holders(postgres) == [], "the migration lock is given back")


@pytest.mark.soak
def test_a_run_over_schemas_never_works_in_another_schema_behind_a_pooler(
    postgres: Place, server: Server, socket: Path
) -> None:
    """What begins in a schema needs a session of its own; one question leaves nothing in a session of the pooler's."""
    with opened(postgres) as db:
        db.execute_sql("CREATE SCHEMA tenant_1")
        with bouncer(server, "transaction", ignored="options") as dropping:
            for folder, words in (
                (socket, "unsupported startup parameter"),
                (dropping, "schema is public, not tenant_1"),
            ):
                done = through(postgres, folder).run("--each-schema", "tenant_*")
                assert done.returncode == 1
                assert "error: tenant_1: " in done.stderr
                assert words in done.stderr
                assert "connect to the server itself" in done.stderr
        assert db.get_tables("tenant_1") == db.get_tables("public") == []
    assert postgres.run("--each-schema", "tenant_*").returncode == 0
    pooled = through(postgres, socket)
    done = pooled.run("--each-schema", "tenant_*")
    assert (done.returncode, done.stderr) == (0, "")
    with opened(pooled) as db:
        assert {db.execute_sql("SHOW search_path").fetchone() for _ in range(3 * POOL)} == {('"$user", public',)}
