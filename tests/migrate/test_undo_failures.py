"""An undo that fails says what failed and what is left, and what a killed one left is seen and removed."""

from __future__ import annotations

import json

import peewee as pw
import psycopg2
import pytest

from tests.conftest import Place
from tests.migrate.models import model, run
from tests.migrate.test_undo import migrated, new, old, up
from whatspire_db import MigrationRunner, StepFailed, WhatspireDBError
from whatspire_db.cli.undo import outlook
from whatspire_db.errors import LockTimeout, RightMissing, VerificationFailed
from whatspire_db.migrate.plan import Step
from whatspire_db.migrate.progress import Watcher

EVENT_TRIGGER = """CREATE FUNCTION stop() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'stopped'; END $$;
CREATE EVENT TRIGGER stop ON sql_drop EXECUTE FUNCTION stop()"""


def test_a_statement_that_fails_ends_the_undo(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new())
        db.execute_sql(EVENT_TRIGGER)
        with pytest.raises(StepFailed, match="stopped"):
            runner.undo()


def test_indexes_that_were_dropped_before_a_failure_are_named(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new(), rows=30, online_rows=5)
        db.execute_sql(
            EVENT_TRIGGER.replace("RAISE 'stopped'", "IF tg_tag <> 'DROP INDEX' THEN RAISE 'stopped'; END IF")
        )
        with pytest.raises(StepFailed) as failed:
            runner.undo()
        assert "the indexes item_note are dropped, and the next up makes them again" in failed.value.hint
        up(db, new())
        assert [index.name for index in db.get_indexes("item") if index.name == "item_note"]


class Reading(Watcher):
    """Has another session read a table from the end of an online step on, which keeps out what would change it."""

    def __init__(self, place: Place, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.other = place.connect()

    def read(self) -> None:
        self.other.connect()
        self.other.begin()
        self.other.execute_sql("SELECT count(*) FROM item")

    def step_done(self, step: Step) -> None:
        if step.kind == self.kind:
            self.read()


@pytest.mark.soak
def test_a_lock_that_is_not_had_in_time_leaves_nothing_unsaid(postgres: Place) -> None:
    """Neither the index that is dropped already, nor the CHECK that the same lock keeps from being removed."""
    db = postgres.connect()
    with db.connection_context():
        watcher = Reading(postgres, "drop_index")
        runner = migrated(db, new(), rows=30, online_rows=5, lock_timeout=0.3, watcher=watcher)
        with pytest.raises(LockTimeout) as failed:
            runner.undo()
        watcher.other.close()
        assert "the indexes item_note are dropped, and the next up makes them again" in failed.value.hint
        assert "could not be removed from item, and refuses values: run undo again" in failed.value.hint
        runner.watcher = Watcher()
        assert runner.undo().undone


class Swapping(Watcher):
    """Changes a table while an undo is on its way, after it was planned."""

    def __init__(self, place: Place, *statements: str) -> None:
        super().__init__()
        self.place = place
        self.statements = statements

    def step_done(self, step: Step) -> None:
        statements, self.statements = self.statements, ()
        run(self.place.connect(), *statements)


@pytest.mark.sampled
@pytest.mark.parametrize(
    "statements",
    [["ALTER TABLE tag RENAME TO earlier", "CREATE TABLE tag (of_another integer)"], ["ALTER TABLE tag ADD more text"]],
)
def test_a_table_that_came_in_the_place_of_another_stays(postgres: Place, statements: list[str]) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new(), rows=30, online_rows=5)
        runner.watcher = Swapping(postgres, *statements)
        with pytest.raises(VerificationFailed, match="tag was changed by somebody else"):
            runner.undo()
        assert "tag" in db.get_tables()
        assert runner.undo_plan().refused


def test_an_index_that_a_reader_keeps_is_told_as_invalid(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        later = [model("Item", "item", {"name": pw.TextField(index=True)})]
        migrated(db, later, rows=30)
        watcher = Reading(postgres, "")
        watcher.read()
        runner = MigrationRunner(db, later, online_rows=5, lock_timeout=0.3)
        with pytest.raises(LockTimeout) as failed:
            runner.undo()
        assert "the indexes item_name are left INVALID" in failed.value.hint
        watcher.other.close()
        assert runner.undo().undone


def test_an_index_that_was_not_dropped_is_not_told_as_dropped(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        later = [model("Item", "item", {"name": pw.TextField()}, indexes=((("id", "name"), False), (("name",), False)))]
        runner = migrated(db, later, rows=30, online_rows=5)
        db.execute_sql(EVENT_TRIGGER.replace("sql_drop", "ddl_command_start"))
        with pytest.raises(StepFailed, match="stopped") as failed:
            runner.undo()
        assert "dropped" not in failed.value.hint


def test_a_start_tells_what_a_killed_undo_left(postgres: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It makes writes fail, and nobody may think of an undo any more."""
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new())
        run(db, "ALTER TABLE item ADD CONSTRAINT whatspire_db_undo_note CHECK (note IS NULL) NOT VALID")
        assert any("refuses values until undo is run" in note for note in runner.plan().to_json()["notes"])
        for _ in range(2):
            with caplog.at_level("WARNING", "whatspire_db"):
                assert not runner.up().applied
            assert "extra constraint item.whatspire_db_undo_note, of an undo" in caplog.text
            caplog.clear()
        assert any("whatspire_db_undo_note" in line for line in outlook(runner)[1])
        assert runner.check().in_sync  # for an undo that is running stops no service
        assert not runner.verify_schema()
        run(db, "ALTER TABLE item DROP CONSTRAINT whatspire_db_undo_note")
        runner.up()
        assert caplog.text == ""


def test_status_tells_that_nothing_is_left_of_a_run(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    assert outlook(runner)[1][1:]
    run(db, "DROP TABLE tag", "DROP INDEX item_note", "ALTER TABLE item DROP COLUMN note")
    assert outlook(runner)[1] == [f"undo of run {runner.version()}: nothing of it is left"]


def test_what_a_killed_undo_left_is_told_and_removed(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new())
        run(db, "ALTER TABLE item ADD CONSTRAINT whatspire_db_undo_note CHECK (note IS NULL) NOT VALID")
        plan = runner.undo_plan()
        assert any("whatspire_db_undo_note on item, which refuses values" in note for note in plan.notes)
        run(db, "UPDATE whatspire_db_runs SET undone_by = 1")
        assert not runner.undo_plan()
        assert runner.undo_plan().notes
        assert runner.undo().runs == ()
        assert runner.undo_plan().notes == ()
        run(db, "UPDATE item SET note = 'value'")


def test_rows_of_the_records_that_a_policy_hides(postgres: Place) -> None:
    db = postgres.connect()
    role = f"undo_{postgres.named.split('_')[-1]}"
    with db.connection_context():
        migrated(db, new())
        db.execute_sql(f"CREATE ROLE {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            db.execute_sql("ALTER TABLE whatspire_db_runs ENABLE ROW LEVEL SECURITY")
            db.execute_sql(f"SET ROLE {role}")
            with pytest.raises(RightMissing, match="row level security hides rows of whatspire_db_runs"):
                MigrationRunner(db, new()).undo()
        finally:
            db.execute_sql(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_record_without_a_definition_drops_nothing(place: Place, db: pw.Database) -> None:
    """Whoever may write the records could name what no run added."""
    models = [*old(), model("Kept", "kept", {"name": pw.TextField()})]
    runner = MigrationRunner(db, models)
    runner.up()
    forged = [{"kind": "table", "schema": "", "table": "kept", "name": "", "sql": [], "definition": None}]
    for version in (0, 99999999999):
        sql = "INSERT INTO whatspire_db_runs (version, content) VALUES ({0}, {0})".format(
            "?" if place.is_sqlite else "%s"
        )
        db.execute_sql(sql, (version, json.dumps(forged)))
        assert "kept" not in [step.table for step in runner.undo_plan().pending]
        db.execute_sql(f"DELETE FROM whatspire_db_runs WHERE version = {version}")


@pytest.mark.parametrize("grantee", ["role", "PUBLIC"])
def test_a_superuser_undoes_nothing_that_others_could_have_written(postgres: Place, grantee: str) -> None:
    db = postgres.connect()
    role = f"undo_{postgres.named.split('_')[-1]}"
    with db.connection_context():
        runner = migrated(db, new())
        db.execute_sql(f"CREATE ROLE {role}")
        to = role if grantee == "role" else grantee
        try:
            db.execute_sql(f"GRANT SELECT ON whatspire_db_runs TO {to}")
            assert runner.undo_plan()
            db.execute_sql(f"GRANT INSERT ON whatspire_db_runs TO {to}")
            with pytest.raises(WhatspireDBError, match=f"role {to} may write to whatspire_db_runs"):
                runner.undo()
            assert runner.status()
            db.execute_sql(f"REVOKE INSERT ON whatspire_db_runs FROM {to}")
            assert runner.undo().undone
        finally:
            db.execute_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("name", ["a\0", "\udc80"])
def test_a_record_with_what_is_no_text(place: Place, db: pw.Database, name: str) -> None:
    runner = migrated(db, new())
    forged = [{"kind": "table", "schema": "", "table": name, "name": "", "sql": [], "definition": []}]
    sql = "INSERT INTO whatspire_db_runs (version, content) VALUES ({0}, {0})".format("?" if place.is_sqlite else "%s")
    db.execute_sql(sql, (99999999999, json.dumps(forged)))
    with pytest.raises(WhatspireDBError, match="what run 99999999999 added cannot be read"):
        runner.undo()
    assert runner.status()


OTHER_COLUMNS = {
    "texts": ("version text, content text, undone_by text", "'x', '[]', NULL"),
    "NaN": ("version double precision, content text, undone_by double precision", "{nan}, '[]', NULL"),
    "large": ("version double precision, content text, undone_by double precision", "9e99, '[]', NULL"),
    "no version": ("version bigint, content text, undone_by bigint", "NULL, '[]', NULL"),
    "undone by a text": ("version bigint, content text, undone_by text", "5, '[]', 'x'"),
    "no UTF-8": ("version bigint, content text, undone_by bigint", "5, {bytes}, NULL"),
}


@pytest.mark.sampled
@pytest.mark.parametrize("case", OTHER_COLUMNS)
def test_a_table_of_records_with_other_types(place: Place, db: pw.Database, case: str) -> None:
    """Undo says what is wrong with it, and status has its say without it."""
    columns, row = OTHER_COLUMNS[case]
    up(db, old())
    row = row.format(nan="9e9999" if place.is_sqlite else "'NaN'", bytes="x'ff'" if place.is_sqlite else "''")
    run(db, "DROP TABLE whatspire_db_runs", f"CREATE TABLE whatspire_db_runs ({columns})")
    run(db, f"INSERT INTO whatspire_db_runs VALUES ({row})")
    runner = MigrationRunner(db, old())
    for verb in (runner.undo_plan, runner.undo):
        with pytest.raises(WhatspireDBError, match="whatspire_db_runs") as error:
            verb()
        assert error.value.hint == "it was not written by this package"
    assert [found.added for found in runner.status()] == [None]
    assert "error" in outlook(runner)[0]["undo"]


def test_a_script_that_failed_can_be_run_again(postgres: Place) -> None:
    """What keeps values out on a large table stays behind where rows are in the way."""
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new(), rows=30, online_rows=5)
        statements = [sql for sql in runner.undo_plan().sql().split(";\n") if sql]
        run(db, "UPDATE item SET note = 'in the way' WHERE id = 7")
        with pytest.raises(psycopg2.IntegrityError):
            run(db, *statements)
        run(db, "UPDATE item SET note = NULL", *statements)
        assert not MigrationRunner(db, old()).verify_schema()
