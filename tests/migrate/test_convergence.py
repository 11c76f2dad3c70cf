"""From any earlier database one run gives the declared schema, or refuses as a whole; nothing is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peewee
import pytest
from hypothesis import given, note
from hypothesis import strategies as st

from tests import gorm
from tests.conftest import Place, Server
from whatspire_db import MigrationRefused, MigrationRunner, Settings, StepFailed, connect
from whatspire_db.health import check_health
from whatspire_db.migrate.applying import Applying
from whatspire_db.migrate.plan import Plan
from whatspire_db.migrate.schema import Schema
from whatspire_db.migrate.stamp import Standing
from whatspire_db.models.service import SERVICE_MODELS

COLUMNS = [f"{t}.{c.split()[0]}" for t, text in gorm.TABLES.items() for c in text.split(",")[1:]]
INDEXES = [f"idx_{t}_{c.rstrip('!')}" for t, columns in gorm.INDEXES.items() for c in columns]

older = st.tuples(
    st.sets(st.sampled_from(list(gorm.TABLES)), max_size=9),
    st.sets(st.sampled_from(COLUMNS), max_size=12),
    st.sets(st.sampled_from(INDEXES), max_size=18),
)


def wipe(place: Place, db: peewee.Database) -> None:
    if place.is_sqlite:
        db.execute_sql("PRAGMA foreign_keys = 0")
        for table in db.get_tables():
            quoted = table.replace('"', '""')
            db.execute_sql(f'DROP TABLE IF EXISTS "{quoted}"')
        db.execute_sql("PRAGMA foreign_keys = 1")
    else:
        db.execute_sql("DROP SCHEMA public CASCADE")
        db.execute_sql("CREATE SCHEMA public")


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
@given(removed=older, with_rows=st.booleans())
def test_one_run_converges_or_refuses_as_a_whole(
    request: pytest.FixtureRequest, engine: str, removed: tuple[set[str], set[str], set[str]], with_rows: bool
) -> None:
    place: Place = request.getfixturevalue(engine)
    leave_out = tuple(set().union(*removed))
    db = place.connect()
    wipe(place, db)
    gorm.create(place, db, leave_out, with_rows)
    db.execute_sql("CREATE TABLE unknown (id integer)")
    db.execute_sql("INSERT INTO unknown VALUES (7)")
    present = [t for t in gorm.TABLES if t not in leave_out]
    for table in present:
        db.execute_sql(f'ALTER TABLE "{table}" ADD COLUMN unknown text')
    before = gorm.content(db, present)
    runner = MigrationRunner(db)
    # With its leftover column, a table that lacks most of the declared ones seems to be another program's.
    foreign = [t for t in present if _lacks_most(t, place, leave_out)]
    unfillable = [
        f"{t}.{n}"
        for t in present
        if with_rows and t not in foreign
        for n, definition in gorm.columns(t, place.is_sqlite).items()
        if f"{t}.{n}" in leave_out and "NOT NULL" in definition and "DEFAULT" not in definition
    ]
    if foreign or unfillable:
        note(str(foreign + unfillable))
        with pytest.raises(MigrationRefused) as refused:
            runner.up()
        assert {f"{r.table}.{r.name}" for r in refused.value.plan.refused} == {
            *unfillable,
            *(f"{t}.{t}" for t in foreign),
        }
        assert gorm.content(db, present) == before
        assert set(db.get_tables()) == {*present, "unknown"}
    else:
        report = runner.up()
        assert not runner.verify_schema(), str(runner.verify_schema())
        assert runner.up().applied == ()
        assert runner.version() == report.version
        assert _old_part(db, place, before, present) == before
    assert db.execute_sql("SELECT id FROM unknown").fetchall() == [(7,)]
    db.close()


def _lacks_most(table: str, place: Place, leave_out: tuple[str, ...]) -> bool:
    names = gorm.columns(table, place.is_sqlite)
    return 2 * sum(f"{table}.{name}" in leave_out for name in names) > len(names)


def _old_part(db: peewee.Database, place: Place, before: object, present: list[str]) -> object:
    db.execute_sql("DELETE FROM migration_versions WHERE name = 'auto_migration'")
    after = gorm.content(db, present)
    # Columns that were added stand at the end.
    return {
        t: sorted((r[: len(before[t][0])] if before[t] else r for r in rows), key=repr) for t, rows in after.items()
    }  # type: ignore[index]


class Small(peewee.Model):
    name = peewee.TextField()
    size = peewee.IntegerField(index=True, constraints=[peewee.SQL("DEFAULT 3")])

    class Meta:
        table_name = "small"


@pytest.mark.soak
@given(data=st.data())
def test_a_step_that_fails_at_any_position_leaves_everything_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, server: Server, data: st.DataObject
) -> None:
    engine = data.draw(st.sampled_from(["sqlite", "postgres"]))
    if engine == "sqlite":
        folder = tmp_path_factory.mktemp("steps")
        _fail_at_each(Place("sqlite", str(folder / "x.db"), folder), data)
    else:
        server.execute("DROP DATABASE IF EXISTS steps WITH (FORCE)", "CREATE DATABASE steps")
        _fail_at_each(Place("postgres", server.of_database("steps"), Path()), data)


def _fail_at_each(place: Place, data: st.DataObject) -> None:
    db = place.connect()
    leave_out = tuple(data.draw(st.sets(st.sampled_from([*INDEXES, "events", "sessions.jid", "api_keys.is_active"]))))
    gorm.create(place, db, leave_out)
    present = [t for t in gorm.TABLES if t not in leave_out]
    before, tables = gorm.content(db, present), db.get_tables()
    pending = MigrationRunner(db).plan().pending
    position = data.draw(st.integers(0, len(pending) - 1))

    apply = Applying.apply

    def broken(self: Applying, declared: Schema, plan: Plan, standing: Standing | None) -> int:
        """Give the engine a statement that it refuses in the place of one step."""
        steps = list(plan.pending)
        steps[position] = replace(steps[position], sql=("CREATE TABLE sessions (x nonsense nonsense",))
        return apply(self, declared, replace(plan, pending=tuple(steps)), standing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Applying, "apply", broken)
        with pytest.raises(StepFailed, match="everything was rolled back"):
            MigrationRunner(db).up()
    assert gorm.content(db, present) == before
    assert db.get_tables() == tables
    assert MigrationRunner(db).plan().pending == pending
    db.close()


def test_nothing_to_do_opens_no_lock_and_writes_nothing(place: Place, db: peewee.Database) -> None:
    MigrationRunner(db).up()
    before = gorm.content(db)
    report = MigrationRunner(db).up()
    assert report.applied == ()
    assert report.version == report.previous_version
    assert gorm.content(db) == before


def test_every_run_is_recorded_on_request(place: Place, db: peewee.Database) -> None:
    runner = MigrationRunner(db, record_all=True)
    versions = [runner.up().version for _ in range(3)]
    assert versions == sorted(set(versions))
    assert [run.version for run in runner.status()] == versions
    assert {run.name for run in runner.status()} == {"auto_migration"}
    assert place.run(env={"WHATSAPP_DATABASE_RECORD_RUNS": "all"}).returncode == 0
    assert len(runner.status()) == 4


def test_versions_rise_though_the_clock_does_not(place: Place, db: peewee.Database) -> None:
    runner = MigrationRunner(db)
    runner.up()
    db.execute_sql("INSERT INTO migration_versions VALUES (9999999999, 'auto_migration', '2026-01-01 00:00:00+00:00')")
    db.execute_sql("DROP INDEX idx_sessions_jid")
    assert runner.up().version == 10_000_000_000


def test_own_models_alone_need_no_service_tables(place: Place, db: peewee.Database) -> None:
    with db.bind_ctx([Small]):
        report = MigrationRunner(db, [Small]).up()
        assert sorted(db.get_tables()) == ["migration_versions", "small", "whatspire_db_runs"]
        assert report.version > 0
        Small.create(name="x", size=1)
        assert MigrationRunner(db, [Small]).verify_schema().extra == []


def test_all_service_models_are_registered() -> None:
    assert [model._meta.table_name for model in SERVICE_MODELS] == list(gorm.TABLES)


def test_a_run_inside_a_transaction_is_refused(place: Place, db: peewee.Database) -> None:
    with db.atomic(), pytest.raises(Exception, match="inside a transaction"):
        MigrationRunner(db).up()


def test_a_database_in_memory_stays_open(tmp_path: Path) -> None:
    for dsn in (":memory:", "file::memory:", "file:x?mode=memory"):
        db = Place("sqlite", dsn, tmp_path).connect()
        MigrationRunner(db).up()
        assert len(db.get_tables()) == 10
        db.close()


def test_a_connection_that_the_runner_opened_is_closed(place: Place) -> None:
    db = place.connect()
    MigrationRunner(db).up()
    assert db.is_closed()
    db.connect()
    MigrationRunner(db).up()
    assert not db.is_closed()
    db.close()


def test_models_that_are_bound_to_the_other_engine_serve_as_well(sqlite: Place, postgres: Place, place: Place) -> None:
    other = postgres if place.is_sqlite else sqlite
    db = connect(Settings(place.driver, place.dsn), bind=False)
    bound = connect(Settings(other.driver, other.dsn))
    try:
        runner = MigrationRunner(db)
        version = runner.up().version
        assert not runner.plan()
        assert [run.version for run in runner.status()] == [version] == [runner.version()]
        assert check_health(db).in_sync
        assert not bound.get_tables()
    finally:
        bound.close_all()
        db.close_all()


def test_models_are_as_they_were_after_a_run(place: Place, db: peewee.Database) -> None:
    class Parent(peewee.Model):
        a = peewee.IntegerField(constraints=[peewee.SQL("DEFAULT 1")])
        b = peewee.IntegerField(unique=True)

        class Meta:
            table_name = "parent"
            primary_key = peewee.CompositeKey("a", "b")
            constraints = [peewee.Check("a > 0")]
            indexes = [(("a", "b"), False)]

    class Child(peewee.Model):
        parent = peewee.ForeignKeyField(Parent, field="b", backref="children")
        kind = peewee.TextField(constraints=[peewee.Check("kind <> ''")])

        class Meta:
            table_name = "child"
            constraints = [peewee.SQL("UNIQUE (kind)")]

    def facts() -> list[Any]:
        metas = [model._meta for model in (Parent, Child)]
        fields = [field for meta in metas for field in meta.sorted_fields]
        return [
            *(list(meta.constraints) for meta in metas),
            *(list(meta.indexes) for meta in metas),
            *((list(field.constraints or ()), field.unique, field.index, field.null) for field in fields),
        ]

    before = facts()
    for models in ([Parent], [Child], [Parent, Child]):
        runner = MigrationRunner(db, models)
        runner.plan()
        runner.up()
        runner.verify_schema()
        assert facts() == before
