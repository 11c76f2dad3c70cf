"""Without the right to change a schema: in sync is no error, pending is two lines, and others can run what is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peewee import sqlite3

from tests.conftest import Place, Server, as_killed_before_its_record, in_english
from tests.migrate.test_command_line import AS_NOBODY, fails
from tests.servers import psql, schema_text, up
from whatspire_db.dsn.postgres import parse_postgres

pytestmark = pytest.mark.sampled

LARGE = 20_000  # twice as many rows as are built on while the table is locked


def sessions(rows: int) -> str:
    when = "'2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00'"
    numbers = f"WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})"
    return f"{numbers} INSERT INTO sessions SELECT 's' || n, 'name', 'jid' || n, 'pending', {when} FROM numbers"


# A role that may read and write rows


@pytest.fixture
def clerk(postgres: Place, server: Server) -> Iterator[Place]:
    """A migrated database, as a role sees it that may read and write rows and nothing else."""
    up(postgres)
    psql(
        postgres.dsn,
        "CREATE ROLE clerk LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO clerk;",
    )
    yield replace(postgres, dsn=server.of_database(parse_postgres(postgres.dsn).arguments["dbname"], user="clerk"))
    psql(postgres.dsn, "DROP OWNED BY clerk; DROP ROLE clerk;")


def test_role_for_rows_finds_a_schema_in_sync(clerk: Place) -> None:
    done = clerk.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing to do" in done.stdout.splitlines()


PENDING = {
    "index": (
        "DROP INDEX idx_sessions_jid;",
        "must be owner of table sessions",
        ['CREATE INDEX "idx_sessions_jid" ON "sessions" ("jid");'],
    ),
    "index of a large table": (
        "DROP INDEX idx_sessions_jid;" + sessions(LARGE),
        "must be owner of table sessions",
        ['CREATE INDEX CONCURRENTLY "idx_sessions_jid" ON "sessions" ("jid");'],
    ),
    "column": (
        "ALTER TABLE receipts DROP COLUMN to_jid;",
        "must be owner of table receipts",
        ['ALTER TABLE "receipts" ADD COLUMN "to_jid" text NOT NULL;'],
    ),
    "table": (
        "DROP TABLE webhook_configs;",
        "permission denied for schema public",
        ['CREATE TABLE "webhook_configs" (', 'CREATE UNIQUE INDEX "idx_webhook_configs_session_id" ON'],
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize(("lost", "right", "statements"), PENDING.values(), ids=PENDING.keys())
def test_role_for_rows_is_told_the_right_and_the_statements(
    postgres: Place, clerk: Place, lost: str, right: str, statements: list[str]
) -> None:
    psql(postgres.dsn, lost)
    before = schema_text(postgres), postgres.run("status").stdout
    done = clerk.run()
    fails(done, 1, "pending: ", "role that owns the tables", *in_english(right), *statements)
    assert (schema_text(postgres), postgres.run("status").stdout) == before
    psql(postgres.dsn, shown(done))
    assert clerk.run().returncode == 0


def shown(done: subprocess.CompletedProcess[str]) -> str:
    """Return the statements that a hint gives to somebody who has the right."""
    return done.stderr.partition("somebody who has the right run: ")[2]


@pytest.mark.soak
def test_what_was_done_before_a_right_was_missing_is_not_shown_as_pending(postgres: Place, clerk: Place) -> None:
    psql(postgres.dsn, "ALTER TABLE receipts DROP COLUMN to_jid, OWNER TO clerk; DROP INDEX idx_sessions_jid;")
    psql(postgres.dsn, sessions(LARGE))
    done = clerk.run()
    fails(done, 1, "role that owns the tables", *in_english("must be owner of table sessions"))
    psql(postgres.dsn, shown(done))
    assert postgres.run("verify").returncode == 0


@pytest.mark.soak
def test_role_for_rows_records_no_starts_that_change_nothing(postgres: Place, clerk: Place) -> None:
    unrecorded = as_killed_before_its_record(postgres)
    psql(postgres.dsn, f"COMMENT ON TYPE migration_versions IS '{unrecorded}'")
    first, second = (json.loads(clerk.run("--json").stdout) for _ in range(2))
    assert first["applied"] == second["applied"] == []
    assert first["version"] == second["version"]


# A file that may only be read


@pytest.fixture
def archived() -> Iterator[Place]:
    """A SQLite file in a folder where everybody may look."""
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        yield Place("sqlite", f"{base}/whatspire.db?_journal_mode=DELETE", Path(base))
        os.chmod(base, 0o755)


def run_read_only(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run as somebody who may read a file and its folder; root would not be refused anything."""
    for file in place.folder.iterdir():
        file.chmod(0o444)
    place.folder.chmod(0o555)
    if os.geteuid() != 0:
        return place.run(*arguments)
    command = [sys.executable, "-c", AS_NOBODY, *arguments]
    return subprocess.run(
        command, env=place.variables(), cwd=place.folder, capture_output=True, text=True, timeout=120, check=False
    )


def path_of(place: Place) -> str:
    return place.dsn.partition("?")[0]


@pytest.mark.soak
@pytest.mark.parametrize("stamps", [True, False])
def test_read_only_file_in_sync_has_nothing_to_do(archived: Place, stamps: bool) -> None:
    up(archived)
    if not stamps:
        os.unlink(f"{path_of(archived)}-stamps")
    done = run_read_only(archived)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing to do" in done.stdout.splitlines()


@pytest.mark.soak
def test_read_only_file_of_the_usual_journal_is_read_as_immutable(archived: Place) -> None:
    usual = replace(archived, dsn=path_of(archived))
    up(usual)
    done = run_read_only(replace(usual, dsn=f"file:{usual.dsn}?immutable=1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing to do" in done.stdout.splitlines()


def test_read_only_file_with_something_pending_ends_in_two_lines(archived: Place) -> None:
    up(archived)
    with closing(sqlite3.connect(path_of(archived))) as connection:
        connection.execute("DROP INDEX idx_sessions_jid")
    before = Path(path_of(archived)).read_bytes()
    done = run_read_only(archived)
    fails(done, 1, "pending: create index sessions.idx_sessions_jid", "readonly database", "right to write the file")
    assert 'CREATE INDEX "idx_sessions_jid" ON "sessions" ("jid");' in shown(done)
    assert Path(path_of(archived)).read_bytes() == before


# Statements for somebody else


@pytest.fixture
def twins(place: Place, request: pytest.FixtureRequest) -> Iterator[tuple[Place, Place]]:
    """Give two equal, empty databases of an engine."""
    if place.is_sqlite:
        yield place, replace(place, dsn=f"{place.dsn}.twin")
        return
    server, name = request.getfixturevalue("server"), f"t_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}")
    yield place, replace(place, dsn=server.of_database(name))
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def execute(place: Place, statements: str) -> None:
    """Run statements through the engine's own shell."""
    if not place.is_sqlite:
        psql(place.dsn, statements)
        return
    with closing(sqlite3.connect(place.dsn, isolation_level=None)) as connection:
        connection.executescript(statements)


def schema(place: Place) -> Any:
    """Return the whole schema as the engine itself tells it, but for the table of what runs recorded."""
    if not place.is_sqlite:
        return schema_text(place, "--exclude-table=whatspire_db_runs")
    others = "WHERE tbl_name <> 'whatspire_db_runs'"
    with closing(sqlite3.connect(place.dsn)) as connection:
        return sorted(connection.execute(f"SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master {others}"))


def mend_both(by_hand: Place, by_run: Place) -> Any:
    """Let one run what `plan --sql` prints and the other `up`; show that it makes no difference."""
    planned = by_hand.run("plan", "--sql")
    assert planned.returncode == 3, planned.stderr
    execute(by_hand, planned.stdout)
    up(by_run)
    assert schema(by_hand) == schema(by_run)
    assert by_hand.run("verify").stdout.splitlines()[1:] == ["in sync"]
    return schema(by_run)


@pytest.mark.soak
def test_statements_of_a_fresh_database_make_what_a_run_makes(twins: tuple[Place, Place]) -> None:
    assert "idx_events_session_timestamp" in str(mend_both(*twins))


def test_statements_make_what_was_lost_as_a_run_does(twins: tuple[Place, Place]) -> None:
    lost = [sessions(LARGE), "DROP INDEX idx_sessions_jid", "ALTER TABLE sessions DROP COLUMN jid"]
    lost += ["DROP INDEX idx_events_timestamp", "ALTER TABLE receipts DROP COLUMN to_jid"]
    if not twins[0].is_sqlite:
        lost += [
            f"ALTER TABLE {t} DROP CONSTRAINT chk_{t}_{c}" for t, c in (("sessions", "status"), ("receipts", "type"))
        ]
    for twin in twins:
        up(twin)
        execute(twin, ";\n".join(lost))
    left = schema(twins[0])
    assert mend_both(*twins) != left
