"""A look never waits longer than it may, names the session in its way, and leaves nothing on the server when it is killed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import peewee as pw
import psycopg2
import pytest
from peewee import sqlite3

from tests.conftest import Place
from tests.migrate.models import converges, model, run
from tests.servers import eventually
from whatspire_db import LockTimeout, MigrationRunner, ModelError
from whatspire_db.health import check_health
from whatspire_db.migrate.engines.postgres.engine import PostgresEngine
from whatspire_db.migrate.engines.postgres.scratch import LOCKS

pytestmark = pytest.mark.sampled

NO_STAMP = "COMMENT ON TYPE migration_versions IS NULL"
LOOKS = ["up", "plan", "verify"]
QUESTIONS = ["up", "version", "status"]
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@contextmanager
def held(place: Place, table: str) -> Iterator[str]:
    """Hold a lock that stops every reader, and yield what an error must say of its holder."""
    if place.is_sqlite:
        with closing(sqlite3.connect(place.dsn.partition("?")[0], isolation_level=None)) as file:
            file.execute("BEGIN EXCLUSIVE")
            yield f"{place.dsn.partition('?')[0]} was locked by another connection for 0.3 s"
        return
    with closing(psycopg2.connect(place.dsn, application_name="nightly-job")) as session:
        session.cursor().execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield f"{table} was locked (ACCESS EXCLUSIVE) for 0.3 s by pid {session.info.backend_pid}, application nightly-"


@pytest.fixture
def place(place: Place) -> Place:
    """On SQLite without a WAL, in which no writer stops a reader."""
    return replace(place, dsn=f"{place.dsn}?_journal_mode=DELETE") if place.is_sqlite else place


def execute(place: Place, sql: str) -> None:
    with closing(psycopg2.connect(place.dsn)) as session, session, session.cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("verb", "table"), [(verb, "sessions") for verb in LOOKS] + [(verb, "migration_versions") for verb in QUESTIONS]
)
def test_command_behind_a_lock_ends_in_time_and_names_the_holder(place: Place, verb: str, table: str) -> None:
    assert place.run().returncode == 0
    if not place.is_sqlite:
        execute(place, NO_STAMP)
    with held(place, table) as holder:
        done = place.run(verb, "--lock-timeout", "300ms")
    assert (done.returncode, done.stderr.count("\n")) == (1, 2), done.stderr
    assert holder in done.stderr or place.is_sqlite  # there a file may be locked before it is opened
    assert "locked" in done.stderr
    assert place.run(verb).returncode == 0


@pytest.mark.soak
def test_runner_of_a_worker_raises_lock_timeout(place: Place) -> None:
    assert place.run().returncode == 0
    db = place.connect()
    runner = MigrationRunner(db, lock_timeout=0.3)
    with db.connection_context(), held(place, "migration_versions") as holder:
        for ask in (runner.plan, runner.version, runner.status, runner.check, runner.up):
            with pytest.raises(LockTimeout) as caught:
                ask()
            assert holder in caught.value.fact


@pytest.mark.soak
def test_health_behind_a_lock_is_an_answer(place: Place) -> None:
    assert place.run().returncode == 0
    db = place.connect()
    with db.connection_context(), held(place, "migration_versions") as holder:
        found = check_health(db, timeout=0.3)
    assert not found.healthy
    assert holder in str(found.error)


def test_index_that_is_rebuilt_is_named_with_its_holder(postgres: Place) -> None:
    assert postgres.run().returncode == 0
    db = postgres.connect()
    with db.connection_context(), closing(psycopg2.connect(postgres.dsn)) as session:
        session.cursor().execute("REINDEX INDEX migration_versions_pkey")
        with pytest.raises(LockTimeout, match=f"locked .* by pid {session.info.backend_pid}"):
            MigrationRunner(db, lock_timeout=0.3).up()


def test_question_leaves_no_limit_in_the_session(postgres: Place) -> None:
    assert postgres.run().returncode == 0
    db = postgres.connect()
    with db.connection_context():
        db.execute_sql("SET lock_timeout = '7s'")
        runner = MigrationRunner(db)
        runner.up(), runner.plan(), runner.version()
        assert db.execute_sql("SHOW lock_timeout").fetchone() == ("7s",)


def test_no_look_is_compiled(postgres: Place) -> None:
    engine = PostgresEngine(postgres.connect())
    with engine.db.connection_context(), engine.reading(1):
        assert engine.ask("SHOW jit") == "off"


@pytest.mark.soak
def test_killed_look_leaves_no_session_that_waits(postgres: Place) -> None:
    assert postgres.run().returncode == 0
    execute(postgres, NO_STAMP)
    with held(postgres, "sessions"), closing(psycopg2.connect(postgres.dsn)) as watcher:
        watcher.autocommit = True

        def waiting() -> int:
            with watcher.cursor() as cursor:
                cursor.execute(WAITING)
                return int(cursor.fetchone()[0])

        process = postgres.start("plan", "--lock-timeout", "1h")
        eventually(waiting, "the look waits")
        process.kill()
        process.communicate()
        eventually(lambda: not waiting(), "its session ends")


@pytest.mark.soak
def test_killed_build_leaves_no_session_that_waits(postgres: Place) -> None:
    assert postgres.run().returncode == 0
    times = "'2026-01-01 00:00:00+00:00', '2026-01-01 00:00:00+00:00'"
    execute(
        postgres, f"INSERT INTO events (id, type, session_id, timestamp, created_at) VALUES ('1', 't', 's', {times})"
    )
    execute(postgres, "DROP INDEX idx_events_type")
    online = {"WHATSAPP_DATABASE_MIGRATION_ONLINE_ROWS": "0"}
    with closing(psycopg2.connect(postgres.dsn)) as old, closing(psycopg2.connect(postgres.dsn)) as watcher:
        old.cursor().execute("UPDATE events SET type = type")
        watcher.autocommit = True

        def waiting() -> int:
            with watcher.cursor() as cursor:
                cursor.execute(f"{WAITING} AND query LIKE 'CREATE INDEX CONCURRENTLY%'")
                return int(cursor.fetchone()[0])

        process = postgres.start("up", env=online)
        eventually(waiting, "the build waits")
        process.kill()
        process.communicate()
        eventually(lambda: not waiting(), "its session ends")
    assert postgres.run("up", env=online).returncode == 0
    assert postgres.run("verify").returncode == 0


# Tables that are made a few at a time


def tangle() -> list[type[pw.Model]]:
    """Return models that refer to each other in every way, and that no batch holds together."""
    hub = model("Hub", "hub", {"code": pw.CharField(unique=True), "size": pw.IntegerField(default=1)})
    pair = model("Pair", "pair", {"a": pw.TextField(), "b": pw.IntegerField()}, primary_key=pw.CompositeKey("a", "b"))
    models, last = [hub, pair], hub
    for number in range(90):
        fields: dict[str, pw.Field] = {
            "hub": pw.ForeignKeyField(hub, null=True, on_delete="CASCADE"),
            "code": pw.ForeignKeyField(hub, field="code", null=True, backref=f"by_code_{number}"),
            "last": pw.ForeignKeyField(last, null=True, backref=f"after_{number}"),
            "self": pw.ForeignKeyField("self", null=True, backref=f"own_{number}"),
            "a": pw.TextField(null=True, index=True),
            "b": pw.IntegerField(null=True),
            "text": pw.IntegerField(null=True, constraints=[pw.SQL("REFERENCES hub (id) ON DELETE SET NULL")]),
            "counted": pw.IntegerField(constraints=[pw.SQL("DEFAULT nextval('hub_id_seq')")]),
        }
        written = [pw.SQL("FOREIGN KEY (a, b) REFERENCES pair (a, b)"), pw.Check("b > 0")]
        last = model(f"T{number}", f"t{number}", fields, constraints=written)
        models.append(last)
    first = models[2]
    first._meta.add_field("end", pw.ForeignKeyField(last, null=True, backref="first", deferrable="INITIALLY DEFERRED"))
    first._meta.fields["end"].deferred = True  # it closes a cycle
    return models


@pytest.mark.soak
def test_tables_that_refer_to_each_other_compare_equal_over_batches(postgres: Place) -> None:
    models = tangle()
    db = postgres.connect()
    with db.connection_context(), db.bind_ctx(models):
        runner = MigrationRunner(db, models)
        report = runner.up()
        assert sum(step.kind == "create_table" for step in report.applied) == len(models) + 1
        assert not runner.verify_schema()
        db.execute_sql("ALTER TABLE t45 DROP CONSTRAINT t45_last_id_fkey")
        (step,) = runner.plan().pending
        assert 'REFERENCES "t44" ("id")' in step.sql[0]
        runner.up()
        assert not runner.verify_schema()


@pytest.mark.soak
def test_batch_holds_few_locks(postgres: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    usual = PostgresEngine.scratch

    def counting(self: PostgresEngine, *arguments: Any) -> Any:
        found = usual(self, *arguments)
        held.append(self.ask("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND relation >= 16384"))
        return found

    models = tangle()
    db = postgres.connect()
    monkeypatch.setattr(PostgresEngine, "scratch", counting)
    with db.connection_context(), db.bind_ctx(models):
        MigrationRunner(db, models).plan()
    assert len(held) > 3
    assert max(held) <= 1.5 * LOCKS


# What it counts outlives the look, which is rolled back.
COUNT_FILES = """
CREATE SEQUENCE files;
CREATE FUNCTION count_files() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM nextval('files') FROM pg_event_trigger_ddl_commands() WHERE pg_relation_filenode(objid) IS NOT NULL;
END $$;
CREATE EVENT TRIGGER count_files ON ddl_command_end EXECUTE FUNCTION count_files();
"""
KEY = {"id": pw.BigIntegerField(primary_key=True), "name": pw.TextField(index=True), "kind": pw.TextField(unique=True)}


@pytest.mark.parametrize(
    ("fields", "meta", "makes_files"),
    [
        (KEY, {}, False),
        ({**KEY, "boss": pw.ForeignKeyField("self", null=True)}, {}, False),
        ({"a": pw.TextField(), "b": pw.TextField()}, {"primary_key": pw.CompositeKey("b", "a")}, False),
        ({"name": pw.TextField()}, {"primary_key": False}, True),
        (KEY, {"constraints": [pw.SQL("CHECK (id > 0) NO INHERIT")]}, True),
        (KEY, {"constraints": [pw.SQL("UNIQUE (name) DEFERRABLE")]}, True),
        (KEY, {"table_settings": ["WITH (fillfactor = 70)"]}, True),
    ],
    ids=["plain", "to itself", "two keys", "no key", "no inherit", "unique", "settings"],
)
def test_a_look_makes_files_only_where_it_must(
    postgres: Place, fields: dict[str, pw.Field], meta: dict[str, Any], makes_files: bool
) -> None:
    db = postgres.connect()
    with db.connection_context():
        thing = model("Thing", "thing", {name: deepcopy(field) for name, field in fields.items()}, **meta)
        converges(db, [thing])
        db.execute_sql("CREATE TABLE made (id bigint)")
        run(db, COUNT_FILES)
        runner = MigrationRunner(db, [thing])
        assert not runner.verify_schema()
        assert db.execute_sql("SELECT is_called FROM files").fetchone() == (makes_files,)


@pytest.mark.parametrize("name", ["named", 'a "name"', "n" * 70])
def test_a_unique_index_that_is_plain_in_the_database_is_seen(postgres: Place, name: str) -> None:
    db = postgres.connect()
    thing = model("Thing", "thing", {"id": pw.BigIntegerField(primary_key=True), "kind": pw.TextField()})
    thing.add_index(thing.kind, unique=True, name=name)
    with db.connection_context():
        converges(db, [thing])
        kept = name.replace('"', '""')[:63]
        run(db, f'DROP INDEX "{kept}"', f'CREATE INDEX "{kept}" ON thing (kind)')
        (drift,) = MigrationRunner(db, [thing]).verify_schema().drift
        assert (drift.kind, drift.declared, drift.live) == ("index", "UNIQUE btree (kind)", "btree (kind)")


def test_a_reference_to_a_unique_column_is_one_in_any_form(postgres: Place) -> None:
    db = postgres.connect()
    parent = model("Parent", "parent", {"id": pw.BigIntegerField(primary_key=True), "kind": pw.TextField(unique=True)})
    child = model("Child", "child", {"parent": pw.ForeignKeyField(parent, field="kind")})
    with db.connection_context():
        converges(db, [parent, child])


def test_reference_to_what_is_not_unique_is_refused_over_batches(postgres: Place) -> None:
    hub = model("Hub", "hub", {"code": pw.CharField()})
    many = [model(f"T{n}", f"t{n}", {"hub": pw.ForeignKeyField(hub, field="code", null=True)}) for n in range(60)]
    db = postgres.connect()
    with db.connection_context(), db.bind_ctx([hub, *many]), pytest.raises(ModelError, match="makes no table"):
        MigrationRunner(db, [hub, *many]).plan()


# One at a time


def test_runs_that_start_together_look_once(postgres: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    usual = PostgresEngine.declared

    def counting(self: PostgresEngine, models: Any) -> Any:
        looks.append(threading.get_ident())
        return usual(self, models)

    monkeypatch.setattr(PostgresEngine, "declared", counting)
    db = postgres.connect()
    models = [model("Alone", "alone", {"a": pw.TextField()})]
    with db.bind_ctx(models):
        MigrationRunner(db, models).up()
        looks.clear()
        execute(postgres, NO_STAMP)
        together = threading.Barrier(6)

        def start() -> None:
            with db.connection_context():
                together.wait(30)
                MigrationRunner(db, models).up()

        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(start) for _ in range(6)]:
                done.result(60)
    assert len(looks) == 1


@pytest.mark.soak
def test_run_with_nothing_to_do_does_not_wait_for_a_migration_in_vain(postgres: Place) -> None:
    assert postgres.run().returncode == 0
    execute(postgres, NO_STAMP)
    db = postgres.connect()
    with db.connection_context(), MigrationRunner(postgres.connect()).engine.lock(1):
        assert MigrationRunner(db, lock_timeout=0.3).up().applied == ()
        execute(postgres, "DROP INDEX idx_sessions_jid")
        with pytest.raises(LockTimeout, match="another migration held the lock"):
            MigrationRunner(db, lock_timeout=0.3).up()


def test_role_that_may_change_nothing_looks_without_the_lock(postgres: Place) -> None:
    assert postgres.run().returncode == 0
    execute(postgres, NO_STAMP)
    db = postgres.connect()
    with db.connection_context(), MigrationRunner(postgres.connect()).engine.lock(1):
        db.execute_sql("SET default_transaction_read_only = on")
        assert MigrationRunner(db, lock_timeout=3600).up().applied == ()


def test_schema_that_changes_in_the_middle_of_a_look_is_looked_at_again(postgres: Place) -> None:
    """What is refused of a schema that stood so for a moment alone is no reason to refuse the run."""
    execute(postgres, "CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t DEFAULT VALUES")
    model = type("T", (pw.Model,), {"x": pw.IntegerField(), "Meta": type("Meta", (), {"table_name": "t"})})
    db = postgres.connect()
    runner = MigrationRunner(db, [model])
    snapshot, looks = runner.engine.snapshot, []

    def and_then_it_changes(keys: Any) -> Any:
        seen = snapshot(keys)
        if not looks:
            execute(postgres, "ALTER TABLE t ADD x int NOT NULL DEFAULT 1; ALTER TABLE t ALTER x DROP DEFAULT")
        looks.append(seen)
        return seen

    runner.engine.snapshot = and_then_it_changes  # type: ignore[method-assign]
    with db.connection_context():
        assert [step.table for step in runner.up().applied] == ["migration_versions"]
    assert len(looks) > 1
    db.close_all()
