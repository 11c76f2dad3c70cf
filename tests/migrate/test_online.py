"""Steps on large tables of PostgreSQL: what is locked, for how long, and what is left when they cannot go on."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import peewee as pw
import psycopg2
import pytest
from peewee import SQL

from tests.conftest import POSTGRES_VERSION, Place
from tests.servers import eventually, program
from whatspire_db import LockTimeout, MigrationRefused, MigrationRunner, ModelError, StepFailed
from whatspire_db.migrate.applying import Applying
from whatspire_db.migrate.engines.postgres.online import run_online
from whatspire_db.migrate.plan import Step
from whatspire_db.migrate.progress import Progress, Watcher
from whatspire_db.migrate.reports import Report

pytestmark = pytest.mark.sampled

ROWS = 20_000  # above the limit over which steps go online


class Parent(pw.Model):
    name = pw.TextField()

    class Meta:
        table_name = "parent"


def big(*constraints: str, indexes: tuple[Any, ...] = (), **fields: pw.Field) -> type[pw.Model]:
    meta = {"table_name": "big", "constraints": [SQL(c) for c in constraints], "indexes": indexes}
    own = {"a": pw.IntegerField(), "b": pw.TextField(null=True), **fields}
    return type("Big", (pw.Model,), {**own, "Meta": type("Meta", (), meta)})


def typed(name: str, **more: Any) -> pw.Field:
    return type("Typed", (pw.Field,), {"field_type": name})(**more)


@pytest.fixture
def db(postgres: Place) -> Iterator[pw.PostgresqlDatabase]:
    """A database with a table of many rows."""
    database = postgres.connect()
    with database.connection_context():
        MigrationRunner(database, [Parent, big()]).up()
        database.execute_sql("INSERT INTO parent (name) SELECT 'p' || n FROM generate_series(1, 10) AS n")
        database.execute_sql(f"INSERT INTO big (a, b) SELECT n, 'b' || n FROM generate_series(1, {ROWS}) AS n")
        yield database
    database.close_all()


@contextlib.contextmanager
def session(place: Place, *statements: str) -> Iterator[Any]:
    """Open another session that has run statements, and end it."""
    other = place.connect()
    connection = pw.PostgresqlDatabase._connect(other)
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            yield cursor
    finally:
        connection.close()


def pid_of(cursor: Any) -> int:
    cursor.execute("SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


def one(db: pw.Database, sql: str) -> Any:
    return db.execute_sql(sql).fetchone()[0]


def kinds(steps: tuple[Step, ...]) -> list[tuple[str, bool]]:
    return [(step.kind, step.online) for step in steps]


def in_sync(db: pw.Database, *models: type[pw.Model]) -> bool:
    changes = MigrationRunner(db, models).verify_schema()
    left = one(db, "SELECT count(*) FROM pg_index WHERE NOT indisvalid")
    left += one(db, "SELECT count(*) FROM pg_constraint WHERE NOT convalidated")
    return not changes and left == 0


def test_index_of_a_large_table_is_built_concurrently(db: pw.Database) -> None:
    model = big(indexes=[SQL("CREATE INDEX IF NOT EXISTS big_a ON big (a)")])
    runner = MigrationRunner(db, [Parent, model])
    (step,) = runner.plan().pending
    assert (step.online, step.lock) == (True, "SHARE UPDATE EXCLUSIVE")
    assert step.sql == ("CREATE INDEX CONCURRENTLY big_a ON big (a)",)
    assert (step.cost.work, step.cost.online) == ("scans", True)
    before = runner.version()
    assert runner.up().version > before
    assert in_sync(db, Parent, model)
    assert runner.up().applied == ()


def test_small_and_new_tables_are_done_in_the_transaction(db: pw.Database) -> None:
    new = type("New", (pw.Model,), {"a": pw.IntegerField(index=True), "Meta": type("Meta", (), {"table_name": "new"})})
    small = type(
        "Parent", (pw.Model,), {"name": pw.TextField(index=True), "Meta": type("Meta", (), {"table_name": "parent"})}
    )
    steps = MigrationRunner(db, [small, new]).up().applied
    assert {step.online for step in steps} == {False}
    assert not any("CONCURRENTLY" in sql for step in steps for sql in step.sql)


def test_limit_is_a_setting(postgres: Place, db: pw.Database) -> None:
    model = big(indexes=[SQL("CREATE INDEX big_a ON big (a)")])
    assert not MigrationRunner(db, [model], online_rows=10 * ROWS).plan().pending[0].online
    assert MigrationRunner(db, [model], online_rows=ROWS - 1).plan().pending[0].online


def test_everything_at_once(db: pw.Database) -> None:
    file = "SELECT pg_relation_filenode('big')"
    model = big(
        "CONSTRAINT big_positive CHECK (a > 0)",
        "CONSTRAINT big_b UNIQUE (b)",
        indexes=[SQL("CREATE INDEX big_a ON big (a DESC)")],
        kind=pw.TextField(constraints=[SQL("DEFAULT 'plain'")]),
        parent=pw.ForeignKeyField(Parent, null=True, constraint_name="big_parent"),
    )
    before = one(db, file)
    steps = MigrationRunner(db, [Parent, model]).up().applied
    assert [online for _, online in kinds(steps)] == sorted(online for _, online in kinds(steps))
    assert kinds(steps)[:4] == [("add_column", False)] * 2 + [("add_constraint", False)] * 2
    assert {step.kind for step in steps if step.online} == {"create_index", "add_constraint", "validate_constraint"}
    assert one(db, file) == before
    assert in_sync(db, Parent, model)


def test_plan_alone_does_the_same_through_psql(postgres: Place, db: pw.Database) -> None:
    model = big("CONSTRAINT big_b UNIQUE (b)", "CHECK (a > 0)", kind=pw.IntegerField(constraints=[SQL("DEFAULT 1")]))
    sql = MigrationRunner(db, [Parent, model]).plan().sql()
    psql = [program("psql"), "-v", "ON_ERROR_STOP=1", "-qd", postgres.dsn]
    subprocess.run(psql, input=sql, text=True, check=True)
    assert in_sync(db, Parent, model)


LEFT_BEHIND = {
    "invalid index": ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'big_a'::regclass", "create_index"),
    "index that is not ready": (
        "UPDATE pg_index SET indisvalid = false, indisready = false WHERE indexrelid = 'big_a'::regclass",
        "create_index",
    ),
    "invalid index of a constraint": (
        "ALTER TABLE big DROP CONSTRAINT big_b; CREATE UNIQUE INDEX big_b ON big (b);"
        " UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'big_b'::regclass",
        "create_index",
    ),
    "index that was to become a constraint": (
        "ALTER TABLE big DROP CONSTRAINT big_b; CREATE UNIQUE INDEX big_b ON big (b)",
        "add_constraint",
    ),
    "check": (
        "ALTER TABLE big DROP CONSTRAINT big_positive; ALTER TABLE big ADD CONSTRAINT big_positive CHECK (a > 0) NOT VALID",
        "validate_constraint",
    ),
    "foreign key": (
        "ALTER TABLE big DROP CONSTRAINT big_parent; ALTER TABLE big ADD CONSTRAINT big_parent"
        " FOREIGN KEY (parent_id) REFERENCES parent (id) NOT VALID",
        "validate_constraint",
    ),
}


@pytest.mark.parametrize("case", LEFT_BEHIND)
def test_what_was_left_half_done_is_reported_and_finished(db: pw.Database, case: str) -> None:
    model = big(
        "CONSTRAINT big_positive CHECK (a > 0)",
        "CONSTRAINT big_b UNIQUE (b)",
        indexes=[SQL("CREATE INDEX big_a ON big (a)")],
        parent=pw.ForeignKeyField(Parent, null=True, constraint_name="big_parent"),
    )
    runner = MigrationRunner(db, [Parent, model])
    runner.up()
    statements, kind = LEFT_BEHIND[case]
    for statement in statements.split(";"):
        db.execute_sql(statement)
    (drift,) = runner.verify_schema().drift
    assert drift.declared != drift.live
    plan = runner.plan()
    assert plan.drift == ()
    report = runner.up()
    assert (report.applied[0].kind, report.drift) == (kind, ())
    assert in_sync(db, Parent, model)


def test_constraint_that_is_not_enforced_asks_nothing_of_the_rows(db: pw.Database) -> None:
    model = big("CONSTRAINT small CHECK (a < 100) NOT ENFORCED")
    if POSTGRES_VERSION < 18:
        with pytest.raises(ModelError, match="makes no table that PostgreSQL takes"):
            MigrationRunner(db, [Parent, model]).up()
        return
    (step,) = MigrationRunner(db, [Parent, model]).up().applied
    assert (step.kind, step.online, str(step.cost)) == ("add_constraint", False, "instant")
    assert "NOT VALID" not in step.sql[0]
    assert not MigrationRunner(db, [Parent, model]).verify_schema()


def test_constraint_that_rows_violate_stays_as_it_is(db: pw.Database) -> None:
    """Somebody's deliberate NOT VALID is drift, and no reason to refuse all the rest."""
    model = big("CONSTRAINT small CHECK (a < 100)", indexes=[SQL("CREATE INDEX big_a ON big (a)")])
    db.execute_sql("ALTER TABLE big ADD CONSTRAINT small CHECK (a < 100) NOT VALID")
    report = MigrationRunner(db, [Parent, model]).up()
    assert [step.name for step in report.applied] == ["big_a"]
    assert [drift.name for drift in report.drift] == ["small"]


REFUSED = {
    "default of its own for each row": (
        lambda: big(token=pw.UUIDField(constraints=[SQL("DEFAULT gen_random_uuid()")])),
        "rewrite",
        "fill it in batches",
    ),
    "stored": (
        lambda: big(
            double=pw.IntegerField(null=True, constraints=[SQL("GENERATED ALWAYS AS (a * 2) STORED")]),
        ),
        "rewrite",
        "trigger",
    ),
    "identity": (
        lambda: big(number=pw.BigIntegerField(constraints=[SQL("GENERATED ALWAYS AS IDENTITY")])),
        "rewrite",
        "by hand",
    ),
    "exclude": (lambda: big("CONSTRAINT alone EXCLUDE USING btree (a WITH =)"), "scan", "quiet hour"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_stop_the_service_is_refused_with_the_way_around(db: pw.Database, case: str) -> None:
    make, reason, hint = REFUSED[case]
    runner = MigrationRunner(db, [Parent, make()])
    (refusal,) = runner.plan().refused
    assert reason in refusal.reason
    assert "ACCESS EXCLUSIVE" in refusal.reason
    assert " rows" in refusal.reason
    assert hint in refusal.hint
    before = runner.version()
    with pytest.raises(MigrationRefused):
        runner.up()
    assert runner.version() == before
    assert MigrationRunner(db, [Parent, make()], online_rows=10 * ROWS).up().applied


def test_primary_key_of_a_large_table_is_refused_with_the_way_around(db: pw.Database) -> None:
    db.execute_sql("ALTER TABLE big DROP CONSTRAINT big_pkey")
    (refusal,) = MigrationRunner(db, [Parent, big()]).plan().refused
    assert "PRIMARY KEY USING INDEX" in refusal.hint
    for statement in refusal.hint.replace("make the columns NOT NULL; ", "").split("; "):
        db.execute_sql(statement)
    assert in_sync(db, Parent, big())


def test_an_index_of_a_small_partitioned_table_is_built_at_once(db: pw.Database) -> None:
    db.execute_sql("CREATE TABLE part (a integer NOT NULL) PARTITION BY RANGE (a)")
    db.execute_sql("CREATE TABLE part_one PARTITION OF part DEFAULT")
    db.execute_sql(f"INSERT INTO part SELECT n FROM generate_series(1, {ROWS}) AS n")
    meta = type(
        "Meta", (), {"table_name": "part", "primary_key": False, "indexes": [SQL("CREATE INDEX part_a ON part (a)")]}
    )
    model = type("Part", (pw.Model,), {"a": pw.IntegerField(), "Meta": meta})
    assert len([step for step in MigrationRunner(db, [model]).plan().pending if step.online]) == 3
    steps = MigrationRunner(db, [model], online_rows=10 * ROWS).up().applied
    assert [step.name for step in steps if step.table == "part" and not step.online] == ["part_a"]
    assert in_sync(db, model)


def test_constraints_of_a_large_partitioned_table(db: pw.Database) -> None:
    """A CHECK comes in two steps as well; a reference, which could not before PostgreSQL 18, is refused."""
    db.execute_sql("CREATE TABLE part (a integer NOT NULL, b integer) PARTITION BY RANGE (a)")
    db.execute_sql("CREATE TABLE part_one PARTITION OF part DEFAULT")
    db.execute_sql(f"INSERT INTO part SELECT n FROM generate_series(1, {ROWS}) AS n")

    def part(constraint: str) -> type[pw.Model]:
        meta = type("Meta", (), {"table_name": "part", "primary_key": False, "constraints": [SQL(constraint)]})
        fields = {"a": pw.IntegerField(), "b": pw.IntegerField(null=True)}
        return type("Part", (pw.Model,), {**fields, "Meta": meta})

    checked = part("CONSTRAINT positive CHECK (a > 0)")
    assert [step.kind for step in MigrationRunner(db, [checked]).up().applied] == [
        "add_constraint",
        "validate_constraint",
    ]
    assert in_sync(db, checked)
    referring = part("CONSTRAINT parents FOREIGN KEY (b) REFERENCES parent (id)")
    (refusal,) = MigrationRunner(db, [Parent, referring]).plan().refused
    assert "under SHARE ROW EXCLUSIVE" in refusal.reason


def test_build_that_fails_leaves_no_invalid_index(postgres: Place, db: pw.Database) -> None:
    model = big(indexes=[SQL("CREATE UNIQUE INDEX big_unique ON big (b)")])

    class Late(Watcher):
        """Somebody inserts a duplicate between the plan and the build."""

        def step_started(self, step: Step) -> None:
            with session(postgres, "INSERT INTO big (a, b) VALUES (1, 'b1')"):
                pass

    with pytest.raises(StepFailed, match="big_unique failed"):
        MigrationRunner(db, [Parent, model], watcher=Late()).up()
    assert one(db, "SELECT count(*) FROM pg_class WHERE relname = 'big_unique'") == 0
    (refusal,) = MigrationRunner(db, [Parent, model]).plan().refused
    assert "2 rows" in refusal.reason
    db.execute_sql(f"DELETE FROM big WHERE id > {ROWS}")
    MigrationRunner(db, [Parent, model]).up()
    assert in_sync(db, Parent, model)


def test_run_that_dies_before_it_is_recorded_is_recorded_by_the_next(
    db: pw.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = big(indexes=[SQL("CREATE INDEX big_a ON big (a)")])

    def dies(*arguments: Any) -> int:
        raise KeyboardInterrupt

    class Slow(MigrationRunner):
        """Another run records it between its first question and its lock."""

        def _upgrade(self, *arguments: Any) -> Any:
            reports.append(MigrationRunner(db, [Parent, model]).up())
            return super()._upgrade(*arguments)

    before = len(MigrationRunner(db).status())
    with monkeypatch.context() as patch:
        patch.setattr(Applying, "_record", dies)
        with pytest.raises(KeyboardInterrupt):
            MigrationRunner(db, [Parent, model]).up()
    assert in_sync(db, Parent, model)
    assert len(MigrationRunner(db).status()) == before
    reports: list[Report] = []
    slow = Slow(db, [Parent, model]).up()
    (report,) = reports
    assert slow.version == report.version
    assert report.version > report.previous_version
    assert len(MigrationRunner(db).status()) == before + 1
    again = MigrationRunner(db, [Parent, model]).up()
    assert again.version == again.previous_version == report.version


@pytest.mark.soak
def test_old_release_starts_while_the_new_one_builds(postgres: Place, db: pw.Database) -> None:
    old, new = [Parent, big()], [Parent, big(indexes=[SQL(INDEX)])]
    MigrationRunner(db, old).up()
    listener = Listener()
    with session(postgres, "BEGIN", "UPDATE big SET b = b WHERE id = 1") as other:
        builder = threading.Thread(target=MigrationRunner(postgres.connect(), new, watcher=listener).up)
        builder.start()
        assert listener.waits.wait(30)
        assert MigrationRunner(db, old, lock_timeout=0).up().applied == ()
        other.execute("ROLLBACK")
        builder.join()
    assert in_sync(db, *new)


# Others in the way


class Listener(Watcher):
    """Notes what a run tells, and lets a test await it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Progress] = []
        self.waits = threading.Event()

    def step_progress(self, step: Step, progress: Progress) -> None:
        self.heard.append(progress)
        if progress.waiting_for:
            self.waits.set()


INDEX = "CREATE INDEX big_a ON big (a)"
IN_THE_WAY = {
    "idle transaction on the table, column": (["BEGIN", "SELECT * FROM big LIMIT 1"], "column"),
    "idle transaction on the table, index": (["BEGIN", "UPDATE big SET b = b WHERE id = 1"], "index"),
    "old snapshot elsewhere": (["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT * FROM parent"], "index"),
}


@pytest.mark.soak
@pytest.mark.parametrize("case", IN_THE_WAY)
def test_session_in_the_way_is_waited_for_and_then_named(postgres: Place, db: pw.Database, case: str) -> None:
    statements, what = IN_THE_WAY[case]
    if what == "column":
        model = big(later=pw.IntegerField(constraints=[SQL("DEFAULT 1")]))
    else:
        model = big(indexes=[SQL(INDEX)])
    with session(postgres, *statements) as other, undisturbed(postgres) as stalls:
        blocker = pid_of(other)
        with pytest.raises(LockTimeout, match=f"pid {blocker}, application whatspire_db, user"):
            MigrationRunner(db, [Parent, model], lock_timeout=3).up()
        # It goes on where it could not before, once the way is free.
        other.execute("ROLLBACK")
    assert stalls.errors == []
    assert stalls.rounds > 10
    MigrationRunner(db, [Parent, model]).up()
    assert in_sync(db, Parent, model)


class Stalls:
    """What another client felt meanwhile: none of its statements may wait as long as the run does."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.rounds = 0


@contextlib.contextmanager
def undisturbed(place: Place) -> Iterator[Stalls]:
    stalls, stop = Stalls(), threading.Event()

    def work() -> None:
        with session(place, "SET statement_timeout = 1500") as cursor:
            while not stop.wait(0.01):
                try:
                    cursor.execute("SELECT a FROM big WHERE id = 2")
                    cursor.execute("INSERT INTO big (a, b) VALUES (1, NULL)")
                    stalls.rounds += 1
                except Exception as error:
                    stalls.errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield stalls
    finally:
        stop.set()
        thread.join()


@pytest.mark.soak
def test_wait_ends_well_when_the_way_is_free_again(postgres: Place, db: pw.Database) -> None:
    listener = Listener()
    with session(postgres, "BEGIN", "UPDATE big SET b = b WHERE id = 1") as other:
        blocker = pid_of(other)

        def release() -> None:
            assert listener.waits.wait(30)
            other.execute("ROLLBACK")

        thread = threading.Thread(target=release)
        thread.start()
        model = big(indexes=[SQL(INDEX)])
        MigrationRunner(db, [Parent, model], watcher=listener).up()
        thread.join()
    assert any(f"pid {blocker}" in progress.waiting_for for progress in listener.heard)
    assert in_sync(db, Parent, model)


@pytest.mark.soak
def test_vacuum_is_waited_for(postgres: Place, db: pw.Database) -> None:
    started = threading.Event()

    def vacuum() -> None:
        with session(
            postgres, "SET vacuum_cost_delay = 100", "SET vacuum_cost_limit = 1", "SET application_name = 'slow vacuum'"
        ) as other:
            started.set()
            with contextlib.suppress(Exception):
                other.execute("VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) big")

    thread = threading.Thread(target=vacuum)
    thread.start()
    held = "SELECT count(*) FROM pg_locks WHERE relation = 'big'::regclass AND mode = 'ShareUpdateExclusiveLock'"
    deadline = time.monotonic() + 20
    while not one(db, held):
        assert time.monotonic() < deadline
    model = big(later=pw.IntegerField(null=True))
    try:
        reader = session(postgres, "BEGIN", "SELECT 1 FROM big", "SET application_name = 'not in the way'")
        with reader, undisturbed(postgres) as stalls, pytest.raises(LockTimeout, match="slow vacuum") as error:
            MigrationRunner(db, [Parent, model], lock_timeout=3).up()
        assert stalls.errors == []
        assert "not in the way" not in error.value.fact
    finally:
        db.execute_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'slow vacuum'")
        thread.join()
    MigrationRunner(db, [Parent, model]).up()
    assert in_sync(db, Parent, model)


def test_build_of_somebody_else_is_waited_for(postgres: Place, db: pw.Database) -> None:
    """An index that another session is building right now is INVALID as well, and not to be dropped."""
    model = big(indexes=[SQL(INDEX)])
    building = threading.Event()

    def build() -> None:
        with session(postgres, "SET application_name = 'the builder'") as builder:
            building.set()
            builder.execute("CREATE INDEX CONCURRENTLY big_a ON big (a)")

    with session(postgres, "BEGIN", "UPDATE big SET b = b WHERE id = 1") as other:
        thread = threading.Thread(target=build)
        thread.start()
        deadline = time.monotonic() + 20
        while not one(db, "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('big_a')"):
            assert time.monotonic() < deadline
        number = one(db, "SELECT 'big_a'::regclass::oid")
        with pytest.raises(LockTimeout, match="the builder"):
            MigrationRunner(db, [Parent, model], lock_timeout=0.5).up()
        other.execute("ROLLBACK")
        report = MigrationRunner(db, [Parent, model]).up()
        thread.join()
    assert report.applied == ()
    assert one(db, "SELECT 'big_a'::regclass::oid") == number
    assert in_sync(db, Parent, model)


def test_settings_of_the_session_are_as_before(postgres: Place, db: pw.Database) -> None:
    db.execute_sql("SET lock_timeout = '7s'")
    db.execute_sql("SET statement_timeout = '8s'")
    MigrationRunner(db, [Parent, big(indexes=[SQL(INDEX)])]).up()
    assert (one(db, "SHOW lock_timeout"), one(db, "SHOW statement_timeout")) == ("7s", "8s")
    assert one(db, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()") == 0


@pytest.mark.soak
def test_progress_is_logged_where_there_is_no_terminal(postgres: Place, db: pw.Database) -> None:
    (postgres.folder / "app.py").write_text(
        "import peewee as pw\nclass Big(pw.Model):\n    a = pw.IntegerField(index=True)\n    b = pw.TextField(null=True)\n"
        "    class Meta:\n        table_name = 'big'\n"
    )
    with session(postgres, "BEGIN", "UPDATE big SET b = b WHERE id = 1") as other:
        blocker = pid_of(other)
        process = postgres.start("--only-models", "--models", "app", "--lock-timeout", "60s")
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("INFO: create index big.big_a: waiting for writers before build")
        assert f"pid {blocker}" in line
        other.execute("ROLLBACK")
        assert process.wait(60) == 0
        process.communicate()


def test_new_tables_are_made_before_anybody_is_stopped(db: pw.Database) -> None:
    """What leads to a table that is in use comes after its lock is taken, all else before; in an order that works."""

    def new(name: str, **fields: pw.Field) -> type[pw.Model]:
        return type(name, (pw.Model,), {**fields, "Meta": type("Meta", (), {"table_name": name.lower()})})

    free = new("Free", a=pw.IntegerField(index=True))
    near = new("Near", parent=pw.ForeignKeyField(Parent), later=pw.DeferredForeignKey("Far", null=True))
    far = new("Far", near=pw.ForeignKeyField(near), free=pw.ForeignKeyField(free))
    models = [Parent, big(later=pw.IntegerField(null=True)), far, near, free]
    heard: list[str] = []

    class Order(Watcher):
        def step_started(self, step: Step) -> None:
            heard.append(f"{step.table}.{step.name}")

    steps = MigrationRunner(db, models, watcher=Order()).up().applied
    assert {step.table for step in steps if step.free} == {"free"}
    assert {step.table for step in steps if step.locks} == {"near", "big"}
    assert heard[:2] == ["free.free", "free.free_a"]
    assert in_sync(db, *models)


@pytest.mark.parametrize(
    ("rows", "index", "online"),
    [
        (101, "btree (a)", False),
        (99, "gin (words)", False),
        (101, "gin (words)", True),
        (101, "hnsw (place vector_l2_ops)", True),
    ],
)
def test_index_of_a_costly_kind_counts_a_row_a_hundredfold(
    postgres: Place, rows: int, index: str, online: bool
) -> None:
    db = postgres.connect()
    with db.connection_context():
        db.execute_sql("CREATE EXTENSION IF NOT EXISTS vector")
        db.execute_sql("CREATE TABLE t (id serial PRIMARY KEY, a int, words text[], place vector(2))")
        db.execute_sql(f"INSERT INTO t (a, words, place) SELECT n, '{{x}}', '[1,2]' FROM generate_series(1, {rows}) n")

        class Costly(pw.Model):
            a = pw.IntegerField(null=True)
            words = typed("text[]", null=True)
            place = typed("vector(2)", null=True)

            class Meta:
                table_name = "t"
                indexes = (SQL(f"CREATE INDEX t_i ON t USING {index}"),)

        plan = MigrationRunner(db, [Costly], online_rows=10_000).plan()
        assert [step.online for step in plan.pending if step.table == "t"] == [online]
    db.close_all()


def test_reference_to_a_key_whose_index_is_left_invalid_waits_for_the_index(db: pw.Database) -> None:
    model = big("CONSTRAINT big_a UNIQUE (a)")
    db.execute_sql("CREATE UNIQUE INDEX big_a ON big (a)")
    db.execute_sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'big_a'::regclass")

    class Child(pw.Model):
        big = pw.ForeignKeyField(model, field="a")

        class Meta:
            table_name = "child"

    with pytest.raises(MigrationRefused, match=r"cannot create table child: big \(a\) is not unique yet"):
        MigrationRunner(db, [model, Child]).up()
    MigrationRunner(db, [model]).up()
    MigrationRunner(db, [model, Child]).up()
    assert in_sync(db, model, Child)


def test_a_statement_is_given_up_on_in_its_own_session_alone(postgres: Place) -> None:
    """Other sessions may run the same text, as for other schemas."""
    wait = "SELECT pg_advisory_lock(7)"

    def wait_too(cursor: Any) -> None:
        with contextlib.suppress(psycopg2.Error):  # at its end
            cursor.execute(wait)

    def are_waiting() -> bool:
        found = "SELECT count(*) FROM pg_stat_activity WHERE query = %s AND wait_event_type = 'Lock'"
        witness.execute(found, [wait])
        return bool(witness.fetchone() == (len(others),))

    database = postgres.connect()
    with session(postgres, wait) as witness, contextlib.ExitStack() as stack:
        # In whatever order the server lists sessions, ours is hardly the first.
        others = [stack.enter_context(session(postgres)) for _ in range(4)]
        stack.enter_context(database.connection_context())
        others += [stack.enter_context(session(postgres)) for _ in range(4)]
        waiting = [threading.Thread(target=wait_too, args=[cursor]) for cursor in others]
        for thread in waiting:
            thread.start()
        eventually(are_waiting, "they wait")
        with pytest.raises(LockTimeout, match=r"waited 0.1 s for"):
            run_online(database, wait, 0.1, lambda progress: None)
        assert are_waiting()
        witness.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        for thread in waiting:
            thread.join()
    database.close_all()
