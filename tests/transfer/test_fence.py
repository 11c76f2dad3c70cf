"""The fence: no program writes to a file whose rows are elsewhere, and every command says where they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import peewee
import pytest
from peewee import sqlite3

from tests.conftest import Place
from tests.migrate.models import model
from tests.migrate.test_stamp import statements
from tests.transfer.following import opened, schema_of
from whatspire_db import DatabaseMoved, MigrationRefused, MigrationRunner, Session
from whatspire_db.data import DataMigrations, retain, rules_of
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.health import check_health
from whatspire_db.messages import CONSTRAINT_TRIGGER, in_words, sqlite_code
from whatspire_db.models.data_migrations import DataMigration
from whatspire_db.models.service import SERVICE_MODELS
from whatspire_db.transfer import change_log, fence

TARGET = parse_postgres("postgres://me:secret@db.example:5433/whatspire?application_name=mover")
AT = datetime(2026, 11, 28, 3, 14, 15, 999999, tzinfo=timezone.utc)
FACT = "this database was moved to host=db.example port=5433 dbname=whatspire on 2026-11-28 03:14:15 UTC"
HINT = "remove its fence: whatspire-db transfer --remove-fence"


def put_up(db: peewee.SqliteDatabase) -> fence.Fence:
    with db.atomic("IMMEDIATE"):
        return fence.put_up(db, [m._meta.table_name for m in SERVICE_MODELS], TARGET, AT)


@pytest.fixture
def db(sqlite: Place) -> Iterator[Any]:
    """The service's tables with a row, each writable."""
    database = sqlite.connect()
    with database.connection_context():
        MigrationRunner(database).up()
        Session.create(id="s", name="main", status="pending")
        yield database
    database.close_all()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT {}INTO sessions VALUES ('n', '', '', '', '', '')",
        "UPDATE {}sessions SET name = 'other'",
        "INSERT {}INTO migration_versions (version, name, applied_at) VALUES (1, '', '')",
    ],
)
@pytest.mark.parametrize("conflict", ["", "OR IGNORE ", "OR REPLACE ", "OR ROLLBACK ", "OR FAIL "])
def test_each_write_fails_by_the_sentence(db: peewee.SqliteDatabase, sql: str, conflict: str) -> None:
    put_up(db)
    with closing(sqlite3.connect(db.database)) as connection, pytest.raises(sqlite3.IntegrityError) as failed:
        connection.execute(sql.format(conflict))
    assert str(failed.value) == FACT
    with opened(db.database) as other, pytest.raises(peewee.IntegrityError, match="moved to host=db.example"):
        other.execute_sql(sql.format(conflict))


def test_deletes_and_upserts_fail_too(tmp_path: Path) -> None:
    with opened(tmp_path / "other.db") as db:
        db.execute_sql('CREATE TABLE "p\'""q" (id integer PRIMARY KEY)')
        db.execute_sql("CREATE TABLE c (x)")
        db.execute_sql("CREATE TABLE left_there (x)")
        db.execute_sql('INSERT INTO "p\'""q" VALUES (1)')
        with db.atomic("IMMEDIATE"):
            fence.put_up(db, ["p'\"q", "c"], TARGET, AT)
        for sql in (
            'DELETE FROM "p\'""q"',
            'INSERT INTO "p\'""q" VALUES (1) ON CONFLICT DO NOTHING',
            'INSERT INTO "p\'""q" VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 2',
            "REPLACE INTO c VALUES (1)",
        ):
            with pytest.raises(peewee.IntegrityError, match="this database was moved"):
                db.execute_sql(sql)
        db.execute_sql("INSERT INTO left_there VALUES (1)")


def test_error_of_a_worker_says_what_to_do(db: peewee.SqliteDatabase) -> None:
    put_up(db)
    with pytest.raises(peewee.IntegrityError) as failed:
        Session.create(name="n", status="pending")
    assert sqlite_code(failed.value) in (CONSTRAINT_TRIGGER, CONSTRAINT_TRIGGER & 0xFF)
    told = in_words(failed.value)
    assert told is not None
    assert FACT in told.fact
    if sqlite_code(failed.value) == CONSTRAINT_TRIGGER:  # Python 3.10 does not keep it
        assert told.fact == f"the database refused this: {FACT}"
        assert "WHATSAPP_DATABASE_DSN" in told.hint


def test_fence_names_neither_user_nor_password(db: peewee.SqliteDatabase) -> None:
    put_up(db)
    (texts,) = db.execute_sql("SELECT group_concat(sql) FROM sqlite_master WHERE name LIKE 'whatspire%'").fetchone()
    assert FACT in texts
    for hidden in ("secret", "me:", "mover"):
        assert hidden not in texts
    assert db.execute_sql("SELECT * FROM whatspire_db_fence").fetchall() == [
        ("host=db.example port=5433 dbname=whatspire", "2026-11-28 03:14:15 UTC")
    ]


def test_fence_is_found_and_removed(db: peewee.SqliteDatabase) -> None:
    before = schema_of(db)
    assert fence.find(db) is None
    assert fence.removed(fence.remove(db)) == "this database has no fence"
    wanted = put_up(db)
    assert fence.find(db) == wanted
    with closing(sqlite3.connect(db.database)) as connection:
        assert fence.find(connection) == wanted
    assert put_up(db) == wanted
    assert "lacks what was written to host=db.example" in fence.removed(fence.remove(db))
    assert schema_of(db) == before
    Session.create(name="n", status="pending")


def test_fence_is_part_of_the_callers_transaction(db: peewee.SqliteDatabase) -> None:
    with db.atomic("IMMEDIATE") as transaction:
        fence.put_up(db, ["sessions"], TARGET, AT)
        transaction.rollback()
    assert fence.find(db) is None
    Session.create(name="n", status="pending")


# What the commands say


def test_run_of_a_fenced_file_is_refused_and_changes_nothing(db: peewee.SqliteDatabase) -> None:
    put_up(db)
    before = schema_of(db)
    more = model("More", "more", {"name": peewee.TextField()})
    for models in (None, [more], [*SERVICE_MODELS, more]):
        with pytest.raises(MigrationRefused) as refused:
            MigrationRunner(db, models).up()
        assert refused.value.fact.startswith(FACT)
        assert HINT in refused.value.hint
        assert [r.kind for r in refused.value.plan.refused] == ["fence"]
    assert schema_of(db) == before


def test_fence_and_log_are_no_differences(db: peewee.SqliteDatabase) -> None:
    change_log.start(db, db.get_tables())
    found = MigrationRunner(db).verify_schema()
    assert [str(item) for item in (*found.missing, *found.drift, *found.extra)] == ["extra table whatspire_db_changes"]
    assert not MigrationRunner(db).up().drift
    change_log.stop(db)
    put_up(db)
    runner = MigrationRunner(db)
    found = runner.verify_schema()
    assert [*found.missing, *found.drift, *found.extra] == []
    assert runner.fence() == fence.Fence("host=db.example port=5433 dbname=whatspire", "2026-11-28 03:14:15 UTC")


def test_start_with_nothing_to_do_does_not_look_for_a_fence(db: peewee.SqliteDatabase) -> None:
    runner = MigrationRunner(db)
    runner.up()
    with statements(db, None) as seen:
        runner.up()
    assert len(seen) == 1
    put_up(db)
    with pytest.raises(MigrationRefused):
        runner.up()
    fence.remove(db)
    with statements(db, None) as seen:
        runner.up()
    assert len(seen) == 1  # the stamp of the file as it was fits again


@pytest.fixture
def fenced(sqlite: Place, db: peewee.SqliteDatabase) -> Place:
    """The place of a fenced database."""
    put_up(db)
    db.close()
    return sqlite


@pytest.mark.soak
def test_migrate_says_so_first(fenced: Place) -> None:
    done = fenced.run("up")
    assert (done.returncode, done.stderr.startswith(f"error: {FACT}")) == (4, True)
    assert HINT in done.stderr
    for verb, code in (("plan", 4), ("verify", 0), ("status", 0)):
        done = fenced.run(verb)
        assert (verb, done.returncode, done.stdout.splitlines()[0]) == (verb, code, FACT)
        assert HINT in done.stdout
        document = json.loads(fenced.run(verb, "--json").stdout)
        assert document["moved"]["to"] == "host=db.example port=5433 dbname=whatspire"
    assert fenced.run("verify", "--sql").stdout.startswith(f"-- {FACT}\n")
    assert fenced.run("plan", "--sql").stdout.startswith(f"-- {FACT}\n")
    assert fenced.run("version").returncode == 0


@pytest.mark.soak
def test_each_of_many_files_is_named(fenced: Place) -> None:
    shutil.copy(fenced.dsn, fenced.folder / "second.db")
    fenced.run("--dsn", "new.db", "-q")
    done = fenced.run("up", "--each-file", "*.db")
    assert done.returncode == 4
    assert "2 refused" in done.stdout.splitlines()[-1]
    for name in ("whatspire.db", "second.db"):
        assert f"error: {name}: {FACT}" in done.stderr
        for verb in ("plan", "verify", "status"):
            out = fenced.run(verb, "--each-file", "*.db").stdout
            assert f"{name}: {FACT.removeprefix('this database was ')}" in out


def test_health_fails(fenced: Place, db: peewee.SqliteDatabase) -> None:
    for schema in (True, False):
        health = check_health(db, schema=schema)
        assert (health.healthy, health.error) == (False, FACT)
    done = fenced.run(module="whatspire_db.health")
    assert (done.returncode, done.stderr.startswith(f"error: {FACT}")) == (1, True)


def test_retain_is_refused(fenced: Place, db: peewee.SqliteDatabase) -> None:
    rules = rules_of(SERVICE_MODELS, db.settings, ["events.timestamp=30d"])  # type: ignore[attr-defined]
    for dry_run in (True, False):
        with pytest.raises(DatabaseMoved, match="this database was moved"):
            retain(db, rules, dry_run=dry_run)
    done = fenced.run("retain", "--rule", "events.timestamp=30d", module="whatspire_db")
    assert (done.returncode, done.stderr.startswith(f"error: {FACT}")) == (4, True)


def test_data_migrations_are_refused(fenced: Place, db: peewee.SqliteDatabase) -> None:
    def rename(here: Any) -> None:
        Session.update(name="other").where(here).execute()

    data = DataMigrations(db, [DataMigration("rename", Session, rename)])
    for run in (data.run, data.run_unless_busy, lambda: data.retry("rename"), lambda: data.skip("rename")):
        with pytest.raises(DatabaseMoved, match="this database was moved"):
            run()
    assert [state.state for state in data.states()] == ["pending"]
    (fenced.folder / "renaming.py").write_text(
        "from whatspire_db import Session, data_migration\n@data_migration(Session)\ndef rename(here): pass\n"
    )
    done = fenced.run("data", "run", "--models", "renaming", module="whatspire_db")
    assert (done.returncode, done.stderr.startswith(f"error: {FACT}")) == (4, True)
    assert fenced.run("up", "--models", "renaming").returncode == 4
    with pytest.raises(DatabaseMoved, match="this database was moved"):
        DataMigrations(db, []).run()  # also where nothing is left to do


@pytest.mark.soak
def test_backup_is_made_with_a_warning_and_holds_the_fence(fenced: Place) -> None:
    done = fenced.run("create", "--to", "kept", "--test-restore", module="whatspire_db.backup")
    assert (done.returncode, done.stderr.count(FACT)) == (0, 1)
    done = fenced.run("verify", "latest", "--dir", "kept", module="whatspire_db.backup")
    assert (done.returncode, done.stderr.count(FACT)) == (0, 1)
    done = fenced.run("restore", "latest", "--dir", "kept", "--to", "new.db", module="whatspire_db.backup")
    assert (done.returncode, done.stderr.count(FACT)) == (0, 1)
    with opened(fenced.folder / "new.db") as db:
        assert fence.find(db) is not None


@pytest.mark.soak
def test_restore_over_a_fenced_file_takes_force(fenced: Place, db: peewee.SqliteDatabase) -> None:
    fence.remove(db)
    db.close()
    assert fenced.run("create", "--to", "kept", module="whatspire_db.backup").returncode == 0
    put_up(db)
    db.close()
    done = fenced.run("restore", "latest", "--dir", "kept", module="whatspire_db.backup")
    assert (done.returncode, FACT in done.stderr, "--force" in done.stderr) == (4, True, True)
    done = fenced.run("restore", "latest", "--dir", "kept", "--force", module="whatspire_db.backup")
    assert done.returncode == 0
    assert fence.find(db) is None
