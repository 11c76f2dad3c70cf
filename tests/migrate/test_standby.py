"""On a hot standby: a start in sync is no error, and where something is pending the primary's admin learns what."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from tests.conftest import Place, Server, as_killed_before_its_record
from tests.migrate.test_command_line import fails
from tests.servers import eventually, new_node, psql, up

pytestmark = pytest.mark.sampled

SETTINGS = "-c fsync=off -c wal_level=replica -c hot_standby=on -c max_connections=20"
NO_SCRATCH = "compared by names alone"


@dataclass(frozen=True)
class Pair:
    """A database as the primary has it, and as its standby does."""

    primary: Place
    standby: Place

    def catch_up(self) -> None:
        """Wait until the standby has replayed all that the primary has written."""
        (end,) = ask(self.primary, "SELECT pg_current_wal_lsn()")
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
        eventually(lambda: ask(self.standby, replayed)[0], "the standby replays")

    def change(self, statements: str) -> None:
        """Run statements on the primary, and see them arrive."""
        psql(self.primary.dsn, statements)
        self.catch_up()


def ask(place: Place, question: str) -> tuple[Any, ...]:
    connection = psycopg2.connect(place.dsn)
    try:
        with connection.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchone()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def sockets(server: Server) -> Iterator[tuple[Path, Path]]:
    """Run a primary and a hot standby of it, and give the folders of their sockets."""
    with new_node(server, SETTINGS) as primary, new_node(server, SETTINGS) as standby:
        primary.make()
        primary.start()
        standby.copy(primary)
        standby.start()
        yield primary.folder, standby.folder


@pytest.fixture
def pair(sockets: tuple[Path, Path], tmp_path: Path) -> Iterator[Pair]:
    """Give an empty database on both."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    primary, standby = (Place("postgres", f"host={s} user=postgres dbname={name}", tmp_path) for s in sockets)
    usual = Pair(*(replace(place, dsn=place.dsn.replace(name, "postgres")) for place in (primary, standby)))
    usual.change(f"CREATE DATABASE {name}")
    assert ask(standby, "SELECT pg_is_in_recovery(), count(*) FROM pg_stat_wal_receiver") == (True, 1)
    yield Pair(primary, standby)
    usual.change(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def migrated(pair: Pair) -> Pair:
    """Give a database that was migrated, and so stamped, on the primary."""
    up(pair.primary)
    pair.catch_up()
    return pair


def test_start_on_a_standby_in_sync_has_nothing_to_do(migrated: Pair) -> None:
    done = migrated.standby.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing to do" in done.stdout.splitlines()
    assert "recorded" not in done.stdout


@pytest.mark.parametrize(
    ("verb", "says", "warns"),
    [
        ("version", "", ""),
        ("status", "auto_migration", ""),
        ("verify", "in sync", NO_SCRATCH),
        ("plan", "nothing", NO_SCRATCH),
    ],
)
def test_verbs_that_look_work_on_a_standby_in_sync(migrated: Pair, verb: str, says: str, warns: str) -> None:
    done = migrated.standby.run(verb)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert warns in done.stderr
    assert len(done.stderr.splitlines()) == bool(warns)
    if verb in ("version", "status"):
        there = migrated.primary.run(verb)
        said = [
            run.stdout.replace(place.named, "") for run, place in ((done, migrated.standby), (there, migrated.primary))
        ]
        assert said[0] == said[1] != "0\n"


@pytest.mark.soak
def test_start_without_a_stamp_has_nothing_to_do_either(pair: Pair) -> None:
    pair.change(pair.primary.run("plan", "--sql").stdout)
    assert ask(pair.standby, "SELECT obj_description('migration_versions'::regtype, 'pg_type')") == (None,)
    done = pair.standby.run()
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout.splitlines()
    assert NO_SCRATCH in done.stderr


@pytest.mark.soak
def test_pending_on_a_standby_ends_in_two_lines_with_the_statement(migrated: Pair) -> None:
    migrated.change("DROP INDEX idx_sessions_jid")
    version = migrated.primary.run("version").stdout
    fails(
        migrated.standby.run(),
        1,
        "pending: create index sessions.idx_sessions_jid",
        "in a read-only transaction",
        "connect to the primary",
        'CREATE INDEX "idx_sessions_jid" ON "sessions" ("jid");',
    )
    assert migrated.standby.run("version").stdout == version
    assert migrated.standby.run("verify").returncode == 3


LOST = {
    "an index": "DROP INDEX idx_events_session_timestamp",
    "a column and its index": "ALTER TABLE receipts DROP COLUMN session_id",
    "tables": "DROP TABLE api_keys, presence, migration_versions",
    "everything": "SET client_min_messages = warning; DROP SCHEMA public CASCADE; CREATE SCHEMA public",
}


@pytest.mark.soak
@pytest.mark.parametrize("lost", LOST.values(), ids=LOST.keys())
def test_statements_shown_by_the_standby_mend_the_primary(migrated: Pair, lost: str) -> None:
    migrated.change(lost)
    planned = migrated.standby.run("plan", "--sql")
    assert planned.returncode == 3, planned.stderr
    assert migrated.primary.run("verify").returncode == 3
    migrated.change(planned.stdout)
    verified = migrated.primary.run("verify")
    assert (verified.returncode, verified.stdout.splitlines()[1:]) == (0, ["in sync"])
    assert migrated.standby.run().returncode == 0


def test_start_on_a_standby_of_a_run_not_yet_recorded_has_nothing_to_do(migrated: Pair) -> None:
    unrecorded = as_killed_before_its_record(migrated.primary)
    migrated.change(f"COMMENT ON TYPE migration_versions IS '{unrecorded}'")
    done = migrated.standby.run()
    assert done.returncode == 0, done.stderr
    assert "Nothing to do" in done.stdout.splitlines()


@pytest.mark.soak
def test_health_of_a_standby(migrated: Pair) -> None:
    for place, in_recovery in ((migrated.primary, False), (migrated.standby, True)):
        done = place.run("--json", module="whatspire_db.health")
        assert (done.returncode, done.stderr) == (0, "")
        found = json.loads(done.stdout)
        assert (found["in_sync"], found["server"]["in_recovery"]) == (True, in_recovery)
    migrated.change("COMMENT ON TYPE migration_versions IS NULL")
    unstamped = json.loads(migrated.standby.run("--json", module="whatspire_db.health").stdout)
    assert (unstamped["healthy"], unstamped["in_sync"]) == (True, None)
    assert "in a read-only transaction" in unstamped["note"]
