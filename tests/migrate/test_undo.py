"""Undo drops what a run added, gives the earlier schema exactly, and loses no row that nobody gave up."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

import peewee as pw
import psycopg2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import gorm
from tests.backup.ground import at_once
from tests.conftest import KILLS, Place, Server
from tests.migrate.models import model, run
from tests.servers import schema_text
from whatspire_db import MigrationRunner
from whatspire_db.dsn.targets import SqliteTarget
from whatspire_db.errors import BackupFailed, ConfigError, DatabaseMoved, UndoRefused
from whatspire_db.fields import utcnow
from whatspire_db.migrate import records
from whatspire_db.migrate.applying import Applying
from whatspire_db.transfer import fence

pytestmark = pytest.mark.sampled

OURS = ("migration_versions", "whatspire_db_runs")
Models = list[type[pw.Model]]


def old() -> Models:
    return [model("Item", "item", {"name": pw.TextField()})]


def new(**more: pw.Field) -> Models:
    item = model("Item", "item", {"name": pw.TextField(), "note": pw.TextField(null=True, index=True), **more})
    return [item, model("Tag", "tag", {"item": pw.ForeignKeyField(item), "word": pw.TextField(unique=True)})]


def of_type(name: str) -> type[pw.Field]:
    """Return a field of a type that the database has, or will have."""
    return type(name.title(), (pw.Field,), {"field_type": name})


def up(db: pw.Database, models: Models, **options: Any) -> int:
    return MigrationRunner(db, models, **options).up().version


def migrated(db: pw.Database, later: Models, rows: int = 3, **options: Any) -> MigrationRunner:
    """Return the runner of a database in which the second run added what the later models have more than the old."""
    up(db, old())
    for number in range(rows):
        db.execute_sql(f"INSERT INTO item (name) VALUES ('{number}')")
    up(db, later, **options)
    return MigrationRunner(db, later, **options)


def schema(place: Place) -> Any:
    """Return the schema as the engine itself tells it, but for the package's own tables."""
    if not place.is_sqlite:
        return schema_text(place, *(f"--exclude-table={name}" for name in OURS))
    with closing(pw.sqlite3.connect(place.dsn)) as connection:
        rows = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    return sorted(row for row in rows if row[2] not in OURS)


def refused(runner: MigrationRunner, *words: str, **options: Any) -> UndoRefused:
    """Check that an undo is refused with these words, and says so in its plan too; nothing is changed."""
    plan = runner.undo_plan(**options)
    assert plan.refused
    assert not plan.pending
    with pytest.raises(UndoRefused) as error:
        runner.undo(**options)
    assert error.value.plan.refused == plan.refused
    for word in words:
        assert any(word in refusal.reason for refusal in plan.refused), (word, str(plan))
    return error.value


def run_script(place: Place, script: str) -> None:
    """Run statements up to the first that fails, as psql and sqlite3 do where they are told to."""
    if place.is_sqlite:
        with closing(pw.sqlite3.connect(place.dsn, isolation_level=None)) as connection:
            connection.executescript(script)
        return
    with closing(psycopg2.connect(place.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(script)


def on_each(cases: Mapping[str, Sequence[Any]]) -> list[tuple[str, str]]:
    """Return cases on the engines that have them; the last part of a case names the only one."""
    return [(driver, case) for case in cases for driver in ("sqlite", "postgres") if cases[case][-1] in (None, driver)]


# A round


@pytest.mark.soak
def test_undo_gives_the_earlier_schema_and_the_run_can_be_repeated(place: Place, db: pw.Database) -> None:
    up(db, old())
    before = schema(place)
    db.execute_sql("INSERT INTO item (name) VALUES ('x')")
    later = new(kind=pw.IntegerField(constraints=[pw.SQL("DEFAULT 5")]))
    runner = MigrationRunner(db, later)
    for _ in range(2):
        version = runner.up().version
        assert schema(place) != before
        report = runner.undo()
        assert (report.runs, report.previous_version) == ((version,), version)
        assert report.version > version
        assert schema(place) == before
        assert not MigrationRunner(db, old()).plan()
        assert runner.plan()
        last = runner.status()[-1]
        assert (last.version, last.name) == (report.version, "undo")
        assert runner.status()[-2].undone_by == report.version
    assert db.execute_sql("SELECT name FROM item").fetchall() == [("x",)]


def test_what_runs_is_what_was_shown(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    shown = runner.undo_plan()
    assert shown.pending
    assert all(sql in shown.sql() for step in shown.pending for sql in step.sql)
    assert runner.undo().undone == shown.pending


def test_the_script_does_the_same(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    run_script(place, runner.undo_plan().sql())
    assert not MigrationRunner(db, old()).verify_schema()


def test_the_script_drops_nothing_that_holds_rows(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    script = runner.undo_plan().sql()
    db.execute_sql("UPDATE item SET note = 'new' WHERE id = 2")
    before = schema(place)
    with pytest.raises((psycopg2.IntegrityError, pw.sqlite3.OperationalError)):
        run_script(place, script)
    assert schema(place) == before


def test_nothing_to_undo(place: Place, db: pw.Database) -> None:
    runner = MigrationRunner(db, old())
    assert not runner.undo_plan()
    assert str(runner.undo_plan()) == "nothing to undo"
    assert (runner.undo().runs, runner.undo().undone) == ((), ())
    assert db.get_tables() == []


def test_all_runs_down_to_a_version(place: Place, db: pw.Database) -> None:
    first = up(db, old())
    before = schema(place)
    second = up(db, new())
    third = up(db, new(more=pw.TextField(null=True)))
    runner = MigrationRunner(db, old())
    assert runner.undo_plan(third).runs == ()
    assert runner.undo_plan(first).runs == (third, second)
    assert runner.undo(first).runs == (third, second)
    assert schema(place) == before
    assert runner.undo(0).runs == (first,)
    assert sorted(db.get_tables()) == list(OURS)


def test_a_version_that_no_run_has(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    with pytest.raises(ConfigError, match="--to is 5, and no run has that version"):
        runner.undo(5)


def test_the_history_and_the_records_are_never_dropped(place: Place, db: pw.Database) -> None:
    MigrationRunner(db).up()
    MigrationRunner(db).undo()
    assert sorted(db.get_tables()) == list(OURS)
    assert MigrationRunner(db).up().applied


def test_tables_that_refer_to_each_other_in_a_circle(place: Place, db: pw.Database) -> None:
    class Left(pw.Model):
        right = pw.DeferredForeignKey("Right", null=True)

    class Right(pw.Model):
        left = pw.ForeignKeyField(Left, null=True)

    runner = MigrationRunner(db, [Left, Right])
    runner.up()
    runner.undo()
    assert sorted(db.get_tables()) == list(OURS)


def test_a_start_of_the_go_service_is_passed_over_and_named(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    version = runner.version()
    for number in (1, 2):
        db.execute_sql(
            f"INSERT INTO migration_versions VALUES ({version + number}, 'auto_migration', '2026-01-01 00:00:00+00:00')"
        )
    plan = runner.undo_plan()
    assert plan.runs == (version,)
    assert f"nobody recorded what {version + 1}, {version + 2} added" in plan.notes[0]
    assert runner.undo().notes == plan.notes


def test_what_nobody_recorded_is_not_undone(place: Place, db: pw.Database) -> None:
    gorm.create(place, db, with_rows=False)
    before = schema(place)
    runner = MigrationRunner(db)
    runner.up()
    runner.undo(0)
    assert schema(place) == before


def test_what_was_dropped_by_hand_is_passed_over(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    run(db, "DROP INDEX item_note", "ALTER TABLE item DROP COLUMN note", "DROP TABLE tag")
    assert str(runner.undo_plan()).endswith("nothing of it is left; undo records that")
    assert (runner.undo().undone, runner.undo_plan().runs) == ((), (runner.status()[0].version,))


# Refusals


def test_a_table_with_rows(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    db.execute_sql("INSERT INTO tag (item_id, word) VALUES (1, 'a'), (2, 'b')")
    error = refused(runner, "cannot drop table tag: it has 2 rows")
    assert "--with-data" in error.hint


def test_a_column_that_holds_values(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new(kind=pw.IntegerField(constraints=[pw.SQL("DEFAULT 5")])))
    db.execute_sql("UPDATE item SET note = 'x' WHERE id > 1")
    db.execute_sql("UPDATE item SET kind = 6 WHERE id = 1")
    refused(runner, "cannot drop column item.note: 2 rows hold a value", "cannot drop column item.kind: 1 row holds")


DEFAULTS: dict[str, tuple[str, str, str, str | None]] = {
    # type, default, a value that compares equal or looks alike, the engine
    "text": ("text", "'a'", "'A'", None),
    "case": ("text COLLATE NOCASE", "'a'", "'A'", "sqlite"),
    "zero byte": ("text", "'a'", "CAST(x'6100' AS TEXT)", "sqlite"),
    "affinity": ("blob", "1", "'1'", "sqlite"),
    "real": ("real", "1.5", "1.5000001", None),
    "scale": ("numeric", "1.0", "1.00", "postgres"),
    "json": ("json", "'{}'", "'{ }'", "postgres"),
    "empty": ("text", "''", "' '", None),
    "quote": ("text", "'it''s %s'", "'it''s %'", None),
    "time": ("timestamp with time zone", "'2026-01-01 00:00:00+00'", "'2026-01-01 00:00:00.000001+00'", "postgres"),
    "length": ("varchar(3)", "'abc'", "'abd'", None),
    "numeric": ("numeric(10, 2)", "1.5", "1.51", None),
    "flag": ("boolean", "true", "false", None),
    "array": ("integer[]", "'{1,2}'", "'{2,1}'", "postgres"),
    "double": ("double precision", "1.0", "1.0000000000000002", "postgres"),
    "zero": ("double precision", "0.0", "'-0'", "postgres"),
    "money": ("money", "1.5", "1.51", "postgres"),
    "bytes": ("bytea", r"'\x5c61'", r"'\x5c62'", "postgres"),
    "reals": ("real[]", "'{1,NULL}'", "'{1.0000001,NULL}'", "postgres"),
    "interval": ("interval", "'1 day'", "'24:00:00'", "postgres"),
    "day": ("date", "'2026-01-02'", "'2026-02-01'", "postgres"),
    "period": ("daterange", "'[2026-01-02,2026-01-05)'", "'[2026-01-02,2026-01-06)'", "postgres"),
    "bits": ("bit(3)", "B'101'", "B'100'", "postgres"),
}


@pytest.mark.parametrize(("driver", "case"), on_each(DEFAULTS))
def test_a_column_of_which_every_value_is_its_default(request: pytest.FixtureRequest, driver: str, case: str) -> None:
    place = request.getfixturevalue(driver)
    db = place.connect()
    db.connect()
    type_, default, other, _ = DEFAULTS[case]
    runner = migrated(db, new(kind=of_type(type_)(null=True, constraints=[pw.SQL(f"DEFAULT {default}")])))
    run(db, f"INSERT INTO item (name, kind) VALUES ('default', {default}), ('nothing', NULL)")
    assert not runner.undo_plan().refused, str(runner.undo_plan())
    run(db, f"UPDATE item SET kind = {other} WHERE id = 2")
    refused(runner, "cannot drop column item.kind: 1 row holds a value")
    run(db, f"UPDATE item SET kind = {default} WHERE id = 2")
    assert runner.undo().undone


def test_a_default_that_differs_from_row_to_row_is_a_value(postgres: Place) -> None:
    db = postgres.connect()
    later = new(at=pw.DateTimeField(null=True, constraints=[pw.SQL("DEFAULT now()")]))
    with db.connection_context():
        refused(migrated(db, later), "cannot drop column item.at: 3 rows hold a value")


LOSSY = {
    "double": ("double precision", "1.0", "1.0000000000000002", "extra_float_digits TO -15"),
    "money": ("money", "1.5", "1.25", "lc_monetary TO 'C'"),
    "time": ("timestamp with time zone", "'2026-02-01 00:00:00+00'", "'2026-01-02 00:00:00+00'", "TimeZone TO 'EST'"),
}


@pytest.mark.parametrize("case", LOSSY)
@pytest.mark.parametrize("is_script", [False, True])
def test_no_setting_of_a_session_makes_a_value_look_like_the_default(
    postgres: Place, case: str, is_script: bool
) -> None:
    """Also where the database gives the setting to each session, and where a script runs in another one."""
    db = postgres.connect()
    type_, default, other, setting = LOSSY[case]
    with db.connection_context():
        name = db.execute_sql("SELECT current_database()").fetchone()[0]
        runner = migrated(db, new(kind=of_type(type_)(null=True, constraints=[pw.SQL(f"DEFAULT {default}")])))
        script = runner.undo_plan().sql()
        assert script
        run(db, f"UPDATE item SET kind = {other} WHERE id = 2", f"ALTER DATABASE {name} SET {setting}")
    with db.connection_context():
        before = schema(postgres)
        if is_script:
            with pytest.raises(psycopg2.IntegrityError):
                run_script(
                    postgres, f"SET {setting}; SET DateStyle TO 'SQL, DMY'; SET bytea_output TO escape; {script}"
                )
        else:
            refused(runner, "cannot drop column item.kind: 1 row holds a value")
        assert schema(postgres) == before


def test_columns_whose_names_begin_alike_have_proofs_of_their_own(postgres: Place) -> None:
    """Also where a script runs on after an error, as psql does without ON_ERROR_STOP."""
    db = postgres.connect()
    long = "a_column_whose_name_is_long_enough_to_be_cut_to_"
    with db.connection_context():
        fields = {f"{long}{end}": pw.TextField(null=True) for end in ("one", "two")}
        runner = migrated(db, new(**fields), rows=50, online_rows=10)
        script = runner.undo_plan().sql()
        run(db, f"UPDATE item SET {long}one = 'kept' WHERE id = 7")
        for statement in script.split(";\n"):
            with suppress(psycopg2.Error):
                run(db, statement)
        assert db.execute_sql(f"SELECT {long}one FROM item WHERE id = 7").fetchone() == ("kept",)


def test_a_proof_that_somebody_took_away_stops_the_drop(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        script = large(db).undo_plan().sql()
        head, begin, tail = script.partition("BEGIN")
        for statement in head.split(";\n"):
            if statement.strip():
                run(db, statement)
        (name,) = db.execute_sql(
            "SELECT conname FROM pg_constraint WHERE conname LIKE 'whatspire_db_undo%%'"
        ).fetchone()
        run(db, f"ALTER TABLE item DROP CONSTRAINT {name}", "UPDATE item SET note = 'kept' WHERE id = 7")
        with pytest.raises(psycopg2.ProgrammingError):
            run_script(postgres, begin + tail)
        assert db.execute_sql("SELECT note FROM item WHERE id = 7").fetchone() == ("kept",)


def test_only_null_is_nothing_in_a_type_that_cannot_be_compared(postgres: Place) -> None:
    db = postgres.connect()
    run(db, "CREATE TYPE pair AS (a double precision)")
    with db.connection_context():
        runner = migrated(db, new(pair=of_type("pair")(null=True, constraints=[pw.SQL("DEFAULT '(1)'")])))
        refused(runner, "cannot drop column item.pair: 3 rows hold a value")
        run(db, "UPDATE item SET pair = NULL")
        assert runner.undo().undone


def test_a_domain_is_compared_as_what_is_below_it(postgres: Place) -> None:
    db = postgres.connect()
    run(db, "CREATE DOMAIN share AS double precision CHECK (value > 0)")
    with db.connection_context():
        runner = migrated(db, new(share=of_type("share")(null=True, constraints=[pw.SQL("DEFAULT 1.5")])))
        run(db, "UPDATE item SET share = 1.5000000000000002 WHERE id = 2")
        refused(runner, "cannot drop column item.share: 1 row holds a value")
        run(db, "UPDATE item SET share = 1.5 WHERE id = 2")
        assert runner.undo().undone


def test_a_type_of_the_users_own(postgres: Place) -> None:
    db = postgres.connect()
    run(db, "CREATE TYPE mood AS ENUM ('good', 'bad')")
    with db.connection_context():
        runner = migrated(db, new(mood=of_type("mood")(constraints=[pw.SQL("DEFAULT 'good'")])))
        run(db, "UPDATE item SET mood = 'bad' WHERE id = 1")
        refused(runner, "cannot drop column item.mood: 1 row holds a value")
        run(db, "UPDATE item SET mood = 'good'")
        assert runner.undo().undone


DEPENDENTS: dict[str, tuple[str, Sequence[str], str | None]] = {
    "view of a column": ("CREATE VIEW seen AS SELECT note FROM item", ["item.note: view seen"], None),
    "view of all columns": ("CREATE VIEW seen AS SELECT * FROM item", ["item.note: view seen"], None),
    "view of a table": ("CREATE VIEW seen AS SELECT word FROM tag", ["table tag: view seen"], None),
    "materialized view": (
        "CREATE MATERIALIZED VIEW kept AS SELECT word FROM tag",
        ["materialized view kept"],
        "postgres",
    ),
    "index": ("CREATE INDEX by_note ON item (name, note)", ["item.note: index by_note"], None),
    "partial index": ("CREATE INDEX by_name ON item (name) WHERE note IS NULL", ["item.note: index by_name"], None),
    "index of a table": ("CREATE INDEX by_word ON tag (word)", ["table tag: it is not as", "+ index by_word"], None),
    "CHECK": ("ALTER TABLE item ADD CONSTRAINT short CHECK (length(note) < 9)", ["constraint short"], "postgres"),
    "reference to a table": ("CREATE TABLE other (tag integer REFERENCES tag (id))", ["table tag: "], None),
    "generated column": (
        "ALTER TABLE item ADD COLUMN shout text GENERATED ALWAYS AS (upper(note)) {kind}",
        ["item.note: ", "shout"],
        None,
    ),
    "trigger of a column": (
        "CREATE TRIGGER noted AFTER UPDATE OF note ON item {work}",
        ["trigger noted"],
        None,
    ),
    "trigger of a table": ("CREATE TRIGGER tagged AFTER INSERT ON tag {work}", ["table tag: ", "trigger tagged"], None),
    "trigger of another table": (
        "CREATE TRIGGER copied AFTER INSERT ON item BEGIN INSERT INTO tag (word) VALUES (new.name); END",
        ["table tag: trigger copied"],
        "sqlite",
    ),
    "function that names the column": (
        "CREATE FUNCTION last() RETURNS text LANGUAGE sql AS 'SELECT note FROM item LIMIT 1'",
        ["item.note: function public.last"],
        "postgres",
    ),
    "statistics": ("CREATE STATISTICS pair ON name, note FROM item", ["statistics object pair"], "postgres"),
    "publication": ("CREATE PUBLICATION sent FOR TABLE tag", ["publication"], "postgres"),
    "policy": ("CREATE POLICY own ON item USING (note IS NULL)", ["policy own"], "postgres"),
    "inherited": ("CREATE TABLE child () INHERITS (tag)", ["table child"], "postgres"),
    "a table of rows": ("CREATE TABLE rows (one tag)", ["rows"], "postgres"),
    "rows in a column": ("CREATE TABLE other (x item)", ["item.note: column x of table other"], "postgres"),
    "rows in an array": ("CREATE TABLE other (x item[])", ["item.note: column x of table other"], "postgres"),
    "function that returns rows": (
        "CREATE FUNCTION made() RETURNS item LANGUAGE sql AS $$ SELECT 1, 'a', 'x' $$",
        ["item.note: function made()"],
        "postgres",
    ),
    "view of an heir": (
        "CREATE TABLE heir (extra integer) INHERITS (item); CREATE VIEW seen AS SELECT note FROM heir",
        ["item.note: view seen"],
        "postgres",
    ),
    "index of an heir": (
        "CREATE TABLE heir () INHERITS (item); CREATE TABLE last () INHERITS (heir); CREATE INDEX by_note ON last (note)",
        ["item.note: index by_note"],
        "postgres",
    ),
    "rows of an heir": (
        "CREATE TABLE heir () INHERITS (item); CREATE TABLE other (x heir)",
        ["item.note: column x of table other"],
        "postgres",
    ),
    "CHECK of an heir": (
        "CREATE TABLE heir (extra integer, CONSTRAINT pair CHECK (note <> 'x' OR extra > 0)) INHERITS (item)",
        ["item.note: constraint pair on table heir"],
        "postgres",
    ),
    "function that names an heir": (
        "CREATE TABLE heir () INHERITS (item); CREATE FUNCTION last() RETURNS text LANGUAGE sql AS "
        "'SELECT note FROM heir'",
        ["item.note: function public.last"],
        "postgres",
    ),
    "function in capitals": (
        "CREATE FUNCTION last() RETURNS text LANGUAGE sql AS 'SELECT NOTE FROM ITEM LIMIT 1'",
        ["item.note: function public.last"],
        "postgres",
    ),
    "function that inserts a whole row": (
        "CREATE FUNCTION adds() RETURNS void LANGUAGE sql AS $$ INSERT INTO item VALUES (77, 'a', 'b') $$",
        ["item.note: function public.adds"],
        "postgres",
    ),
    "function that reads a whole row": (
        "CREATE FUNCTION last() RETURNS text LANGUAGE sql AS 'SELECT to_json(i.*)::text FROM item AS i LIMIT 1'",
        ["item.note: function public.last"],
        "postgres",
    ),
    "view of a whole row": (
        "CREATE VIEW seen AS SELECT name, to_json(item) FROM item",
        ["item.note: view seen"],
        "postgres",
    ),
    "sequence of a column": (
        "CREATE SEQUENCE number OWNED BY item.note; CREATE TABLE bill (n integer DEFAULT nextval('number'))",
        ["item.note: sequence number", "item.note: default value for column n of table bill"],
        "postgres",
    ),
    "sequence of a table": ("CREATE SEQUENCE number OWNED BY tag.word", ["table tag: sequence number"], "postgres"),
    "its sequence in another table": (
        "CREATE TABLE other (id integer DEFAULT nextval('tag_id_seq'))",
        ["table tag: default value for column id of table other"],
        "postgres",
    ),
    "CLUSTER": ("ALTER TABLE item CLUSTER ON item_note", ["index item.item_note: CLUSTER of table item"], "postgres"),
}


@pytest.mark.parametrize(("driver", "case"), on_each(DEPENDENTS))
def test_what_others_built_on_it_refuses(request: pytest.FixtureRequest, driver: str, case: str) -> None:
    place = request.getfixturevalue(driver)
    db = place.connect()
    db.connect()
    statement, words, _ = DEPENDENTS[case]
    runner = migrated(db, new())
    if place.is_sqlite:
        work = "BEGIN SELECT 1; END"
    else:
        work = "FOR EACH ROW EXECUTE FUNCTION quiet()"
        run(db, "CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    run(db, statement.format(work=work, kind="VIRTUAL" if place.is_sqlite else "STORED"))
    before = schema(place)
    refused(runner, *words)
    assert schema(place) == before


# What SQLite itself takes, and what then fails or means something else: statements, the last one of which needs the
# object, how that is taken away again, and the words of the refusal.
NEEDED_BY_TEXT: dict[str, tuple[Sequence[str], str, str]] = {
    "reference to a unique column": (
        ["CREATE TABLE other (code text REFERENCES item (CODE))"],
        "DROP TABLE other",
        "index item.item_code: a foreign key of table other",
    ),
    "view INDEXED BY": (
        ["CREATE VIEW seen AS SELECT name FROM item INDEXED BY item_name_code WHERE name = 'a'"],
        "DROP VIEW seen",
        "index item.item_name_code: view seen",
    ),
    "trigger INDEXED BY": (
        [
            "CREATE TABLE log (a text)",
            "CREATE TRIGGER t AFTER INSERT ON log BEGIN "
            "SELECT name FROM item INDEXED BY item_code WHERE code = new.a; END",
        ],
        "DROP TRIGGER t",
        "index item.item_code: trigger t",
    ),
    "trigger ON CONFLICT": (
        [
            "CREATE TABLE log (a text)",
            "CREATE TRIGGER t AFTER INSERT ON log BEGIN "
            "INSERT INTO item (name) VALUES (new.a) ON  CONFLICT (name, code) DO NOTHING; END",
        ],
        "DROP TRIGGER t",
        "index item.item_name_code: trigger t",
    ),
    "trigger of a view OR REPLACE": (
        [
            "CREATE VIEW seen AS SELECT name FROM item",
            "CREATE TRIGGER t INSTEAD OF INSERT ON seen BEGIN INSERT OR REPLACE INTO item (name) VALUES (new.name); END",
        ],
        "DROP TRIGGER t",
        "index item.item_code: trigger t",
    ),
    "full text of a column": (
        ["CREATE VIRTUAL TABLE words USING fts5(name, c, content='item', content_rowid='id')"],
        "DROP TABLE words",
        "column item.code: virtual table words",
    ),
    "full text of a table": (
        ['CREATE VIRTUAL TABLE words USING fts5(word, content = "TAG", content_rowid=id)'],
        "DROP TABLE words",
        "table tag: virtual table words",
    ),
    "trigger of all columns": (
        [
            "CREATE TABLE log (a, b, c, d)",
            "CREATE TABLE source (a)",
            "CREATE TRIGGER t AFTER INSERT ON source BEGIN INSERT INTO log SELECT /* all */ * FROM item; END",
        ],
        "DROP TRIGGER t",
        "column item.code: trigger t",
    ),
    "trigger by the order of columns": (
        [
            "CREATE TABLE source (a)",
            "CREATE TRIGGER t AFTER INSERT ON source BEGIN REPLACE INTO [Item] VALUES (NULL, 'a', 'b', 'c'); END",
        ],
        "DROP TRIGGER t",
        "column item.code: trigger t",
    ),
    "own trigger by the order of columns": (
        ["CREATE TRIGGER t AFTER DELETE ON item BEGIN INSERT INTO item SELECT 1, 'a', 'b', 'c'; END"],
        "DROP TRIGGER t",
        "column item.code: trigger t",
    ),
    "view of a row IN the table": (
        ["CREATE VIEW seen AS SELECT (1, 'a', 'b', 'c') IN main.item AS found"],
        "DROP VIEW seen",
        "column item.code: view seen",
    ),
    "view NATURAL JOIN": (
        ["CREATE TABLE other (code text)", "CREATE VIEW seen AS SELECT name FROM item NATURAL JOIN other"],
        "DROP VIEW seen",
        "column item.code: view seen",
    ),
    "trigger that names a column in quotes": (
        [
            "CREATE TABLE source (a)",
            'CREATE TRIGGER t AFTER INSERT ON source BEGIN UPDATE item SET "A""b" = 1; END',
        ],
        "DROP TRIGGER t",
        'column item.a"b: trigger t',
    ),
    "temporary view": (
        ["CREATE TEMPORARY VIEW seen AS SELECT word FROM main.tag"],
        "DROP VIEW seen",
        "table tag: view seen",
    ),
    "view of a table in quotes": (
        ['CREATE VIEW seen AS SELECT 1 FROM "it\'s ""it"""'],
        "DROP VIEW seen",
        'table it\'s "it": view seen',
    ),
}


@pytest.mark.parametrize("case", NEEDED_BY_TEXT)
def test_what_sqlite_itself_does_not_ask_for(sqlite: Place, case: str) -> None:
    db = sqlite.connect()
    statements, away, words = NEEDED_BY_TEXT[case]
    fields = {
        "name": pw.TextField(),
        "code": pw.TextField(null=True, unique=True),
        "quoted": pw.TextField(null=True, column_name='a"b'),
    }
    later = [
        model("Item", "item", fields, indexes=((("name", "code"), True),)),
        model("Tag", "tag", {"word": pw.TextField()}),
        model("Quoted", 'it\'s "it"', {"word": pw.TextField()}),
    ]
    with db.connection_context():
        runner = migrated(db, later)
        run(db, *statements)
        before = schema(sqlite)
        refused(runner, f"cannot drop {words} depends on it")
        assert schema(sqlite) == before
        run(db, away)
        assert runner.undo().undone


def test_a_temporary_table_of_the_same_name_is_left_alone(sqlite: Place) -> None:
    db = sqlite.connect()
    with db.connection_context():
        runner = migrated(db, new())
        run(
            db,
            "CREATE TEMPORARY TABLE item (id integer PRIMARY KEY, name text NOT NULL, note text)",
            "CREATE INDEX temp.item_note ON item (note)",
            "CREATE TEMPORARY TABLE tag AS SELECT 1 AS one",
            "UPDATE main.item SET note = 'kept' WHERE id = 2",
            "INSERT INTO main.tag (item_id, word) VALUES (1, 'kept')",
        )
        refused(runner, "column item.note: 1 row holds a value", "table tag: it has 1 row")
        run(db, "UPDATE main.item SET note = NULL", "DELETE FROM main.tag")
        own = "SELECT type, name, sql FROM temp.sqlite_master ORDER BY name"
        before = db.execute_sql(own).fetchall()
        assert runner.undo().undone
        assert db.execute_sql(own).fetchall() == before
    assert not MigrationRunner(sqlite.connect(), old()).verify_schema()


def test_a_trigger_on_the_table_that_needs_nothing_of_it(sqlite: Place) -> None:
    """A star that multiplies or counts, and a conflict in another table."""
    db = sqlite.connect()
    with db.connection_context():
        runner = migrated(db, new())
        run(
            db,
            "CREATE TABLE log (a text UNIQUE)",
            "CREATE TRIGGER t AFTER INSERT ON item BEGIN "
            "INSERT OR IGNORE INTO log SELECT 2 * id || count(*) FROM item WHERE id IN (1, 2); END",
        )
        assert runner.undo().undone
        run(db, "INSERT INTO item (name) VALUES ('a')")


NOT_DEPENDENTS = {
    "count": "CREATE VIEW seen AS SELECT count(*) FROM item",
    "another column": "CREATE VIEW seen AS SELECT name FROM item",
    "heir": "CREATE TABLE heir (extra integer) INHERITS (item)",
    "function with a list of columns": (
        "CREATE FUNCTION adds() RETURNS void LANGUAGE sql AS $$ INSERT INTO item (name) VALUES ('a') $$"
    ),
    "function that counts": "CREATE FUNCTION n() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM item'",
    "trigger": (
        "CREATE FUNCTION quiet() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER noted AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION quiet()"
    ),
    "sequence of another column": "CREATE SEQUENCE number OWNED BY item.name",
}


@pytest.mark.parametrize("case", NOT_DEPENDENTS)
def test_what_does_without_it_stops_no_undo(postgres: Place, case: str) -> None:
    db = postgres.connect()
    with db.connection_context():
        more = {"number": pw.IntegerField(constraints=[pw.SQL("GENERATED BY DEFAULT AS IDENTITY")])}
        if case == "heir":
            more = {}  # PostgreSQL does not add one there
        size = pw.IntegerField(null=True, constraints=[pw.SQL("DEFAULT 5"), pw.Check("size > 0", "item_size")])
        up(db, old())
        run(db, NOT_DEPENDENTS[case])
        before = schema(postgres)
        runner = MigrationRunner(db, new(size=size, **more))
        runner.up()
        assert runner.undo().undone
        assert schema(postgres) == before


def test_the_index_that_is_the_replica_identity_refuses(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        later = [model("Item", "item", {"name": pw.TextField(unique=True)})]
        runner = migrated(db, later)
        run(db, "ALTER TABLE item REPLICA IDENTITY USING INDEX item_name")
        refused(runner, "cannot drop index item.item_name: the REPLICA IDENTITY of table item")


@pytest.mark.parametrize("hand_made", ["by_hand", "item_2_name_idx", None])
def test_an_index_of_a_partition_that_was_made_by_hand_refuses(postgres: Place, hand_made: str | None) -> None:
    """PostgreSQL takes it for a part of the new index where it equals that."""
    db = postgres.connect()
    with db.connection_context():
        run(
            db,
            "CREATE TABLE item (id integer NOT NULL, name text NOT NULL) PARTITION BY RANGE (id)",
            "CREATE TABLE item_1 PARTITION OF item FOR VALUES FROM (0) TO (30)",
            "CREATE TABLE item_2 PARTITION OF item FOR VALUES FROM (30) TO (99)",
        )
        if hand_made:
            run(db, f"CREATE INDEX {hand_made} ON item_2 (name)")
        before = schema(postgres)
        fields = {"id": pw.IntegerField(), "name": pw.TextField(index=True)}
        runner = MigrationRunner(db, [model("Item", "item", fields, primary_key=False)])
        runner.up()
        if hand_made:
            refused(runner, f"cannot drop index item.item_name: index {hand_made} depends on it")
        else:
            run(db, "CREATE TABLE item_3 PARTITION OF item FOR VALUES FROM (99) TO (200)")
            runner.undo()
            run(db, "DROP TABLE item_3")
            assert schema(postgres) == before


def test_a_column_of_a_partitioned_table(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        run(
            db,
            "CREATE TABLE item (id integer NOT NULL, name text NOT NULL) PARTITION BY RANGE (id)",
            "CREATE TABLE item_1 PARTITION OF item FOR VALUES FROM (0) TO (30)",
        )
        before = schema(postgres)
        size = pw.IntegerField(
            null=True, index=True, constraints=[pw.SQL("DEFAULT 5"), pw.Check("size > 0", "item_size_check")]
        )
        fields = {"id": pw.IntegerField(), "name": pw.TextField(), "size": size}
        runner = MigrationRunner(db, [model("Item", "item", fields, primary_key=False)])
        runner.up()
        run(db, "CREATE VIEW seen AS SELECT size FROM item_1")
        refused(runner, "cannot drop column item.size: view seen depends on it")
        run(db, "DROP VIEW seen")
        runner.undo()
        assert schema(postgres) == before


def test_a_name_that_no_word_begins_with_is_found_in_a_function(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        later = new(more=pw.TextField(null=True, column_name="#more?"))
        runner = migrated(db, later)
        run(db, """CREATE FUNCTION last() RETURNS text LANGUAGE sql AS 'SELECT "#more?" FROM item'""")
        refused(runner, "cannot drop column item.#more?: function public.last depends on it")


CHANGES = {
    "index": (["DROP INDEX item_note", "CREATE INDEX item_note ON item (note DESC)"], "index item.item_note", None),
    "column of the table": (["ALTER TABLE tag ADD COLUMN more text"], "table tag", None),
    "type": (["ALTER TABLE item ALTER note TYPE varchar(30)"], "column item.note", "postgres"),
    "default": (["ALTER TABLE item ALTER note SET DEFAULT 'x'"], "column item.note", "postgres"),
}


@pytest.mark.parametrize(("driver", "case"), on_each(CHANGES))
def test_what_was_changed_since_refuses(request: pytest.FixtureRequest, driver: str, case: str) -> None:
    place = request.getfixturevalue(driver)
    db = place.connect()
    db.connect()
    statements, title, _ = CHANGES[case]
    runner = migrated(db, new())
    run(db, *statements)
    refused(runner, f"cannot drop {title}: it is not as the run left it")


def test_a_broken_view_anywhere_stops_sqlite(sqlite: Place) -> None:
    db = sqlite.connect()
    with db.connection_context():
        runner = migrated(db, new())
        run(db, "CREATE VIEW broken AS SELECT 1 FROM gone")
        before = schema(sqlite)
        refused(runner, "the database refuses it: error in view broken")
        assert schema(sqlite) == before


def test_a_database_that_was_moved_is_not_changed(sqlite: Place) -> None:
    db = sqlite.connect()
    with db.connection_context():
        runner = migrated(db, new())
        fence.put_up(db, ["item", "tag"], SqliteTarget("other.db", "other.db"), utcnow())
        before = schema(sqlite)
        for verb in (runner.undo_plan, runner.undo):
            with pytest.raises(DatabaseMoved, match=r"this database was moved to .*other\.db"):
                verb()
        assert schema(sqlite) == before
        assert sqlite.run("undo").returncode == 4


@pytest.mark.parametrize("kind", ["FOREIGN KEY", "CHECK of the table"])
def test_columns_that_sqlite_cannot_drop(sqlite: Place, kind: str) -> None:
    db = sqlite.connect()
    with db.connection_context():
        (item,) = old()
        field = pw.ForeignKeyField(item, null=True)
        if kind != "FOREIGN KEY":
            field = pw.IntegerField(null=True)
        later = model("Tag", "tag", {"word": pw.TextField(), "of": field})
        up(db, [item, model("Tag", "tag", {"word": pw.TextField()})])
        up(db, [item, later])
        runner = MigrationRunner(db, [item, later])
        if kind == "FOREIGN KEY":
            refused(runner, "it is part of a FOREIGN KEY")
        else:
            assert runner.undo().undone


def test_a_column_comes_with_its_own_check(place: Place, db: pw.Database) -> None:
    up(db, old())
    before = schema(place)
    size = pw.IntegerField(null=True, constraints=[pw.Check("size > 0", "item_size")])
    runner = MigrationRunner(db, [model("Item", "item", {"name": pw.TextField(), "size": size})])
    runner.up()
    runner.undo()
    assert schema(place) == before


@pytest.mark.parametrize("rows", [0, 50])
def test_all_kinds_of_additions_of_postgres(postgres: Place, rows: int) -> None:
    """A schema, an extension, constraints of each kind, and what is built online on a large table."""
    db = postgres.connect()
    with db.connection_context():
        up(db, old())
        run(db, f"INSERT INTO item (name) SELECT n FROM generate_series(1, {rows}) AS n")
        before = schema(postgres)
        owner = model("Owner", "owner", {"name": pw.TextField()}, schema="shop", extensions=["vector"])
        fields = {
            "name": pw.TextField(),
            "owner": pw.ForeignKeyField(owner, null=True),
            "size": pw.IntegerField(null=True, constraints=[pw.Check("size > 0", "item_size")]),
            "twice": pw.IntegerField(null=True, constraints=[pw.SQL("GENERATED ALWAYS AS (size * 2) STORED")]),
        }
        if rows:
            del fields["twice"]  # it would rewrite a large table
        unique = pw.SQL("CONSTRAINT item_name_size UNIQUE (name, size)")
        later = [owner, model("Item", "item", fields, constraints=[unique])]
        runner = MigrationRunner(db, later, online_rows=10)
        runner.up()
        assert runner.status()[-1].added == {
            "schema": 1,
            "extension": 1,
            "table": 1,
            "column": 2 if rows else 3,
            "index": 1,
            "constraint": 3,
        }
        runner.undo()
        assert schema(postgres) == before
        assert db.execute_sql("SELECT count(*) FROM item").fetchone() == (rows,)


@pytest.mark.parametrize("type_", ["vector(3)", "vector(3)[]"])
def test_an_extension_that_others_use_refuses(postgres: Place, type_: str) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = MigrationRunner(db, [model("Owner", "owner", {"name": pw.TextField()}, extensions=["vector"])])
        runner.up()
        run(db, f"CREATE TABLE other (place {type_})")
        refused(runner, "cannot drop extension vector: column place of table other depends on it")


def test_a_schema_that_others_use_refuses(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = MigrationRunner(db, [model("Owner", "owner", {"name": pw.TextField()}, schema="shop")])
        runner.up()
        run(db, "CREATE FUNCTION shop.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
        refused(runner, "cannot drop schema shop: function shop.mine() depends on it")


def test_an_index_of_a_partitioned_table(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        run(
            db,
            "CREATE TABLE item (id integer NOT NULL, name text NOT NULL) PARTITION BY RANGE (id)",
            "CREATE TABLE item_1 PARTITION OF item FOR VALUES FROM (0) TO (30)",
            "CREATE TABLE item_2 PARTITION OF item FOR VALUES FROM (30) TO (99)",
            "INSERT INTO item SELECT n, n FROM generate_series(1, 50) AS n",
        )
        fields = {"id": pw.IntegerField(), "name": pw.TextField(index=True)}
        runner = MigrationRunner(db, [model("Item", "item", fields, primary_key=False)], online_rows=10)
        before = schema(postgres)
        runner.up()
        assert schema(postgres) != before
        runner.undo()
        assert schema(postgres) == before


def test_a_superuser_looks_at_no_table_of_another_role(server: Server, postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new())
        with role(server, postgres, "ALTER TABLE tag OWNER TO {role}"):
            with pytest.raises(Exception, match="would run code of"):
                runner.undo_plan()
            assert MigrationRunner(db, new(), trust_source=True).undo_plan().pending
            run(db, "ALTER TABLE tag OWNER TO postgres")


def test_a_superuser_runs_no_function_that_a_table_calls(server: Server, postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, new())
        run(db, "CREATE SCHEMA hers", "CREATE FUNCTION hers.fine(text) RETURNS boolean IMMUTABLE RETURN true")
        with role(server, postgres, "ALTER FUNCTION hers.fine(text) OWNER TO {role}"):
            assert runner.undo_plan().pending
            run(db, "ALTER TABLE item ADD CONSTRAINT calls CHECK (hers.fine(name))")
            with pytest.raises(Exception, match="would run code of"):
                runner.undo_plan()
            run(db, "ALTER TABLE item DROP CONSTRAINT calls", "ALTER FUNCTION hers.fine(text) OWNER TO postgres")


# With data


@pytest.mark.soak
def test_with_data_it_makes_a_backup_first(place: Place, db: pw.Database) -> None:
    (place.folder / "blog.py").write_text(
        "import peewee\nfrom whatspire_db import BaseModel\n\n\nclass Note(BaseModel):\n    text = peewee.TextField()\n"
    )
    models = ("--models", "blog", "--only-models")
    assert place.run(*models).returncode == 0
    db.execute_sql("INSERT INTO note (text) VALUES ('kept')")
    done = place.run("undo")
    assert done.returncode == 4
    assert done.stderr.startswith("error: cannot drop table note: it has 1 row (database: ")
    planned = place.run("undo", "--plan", "--with-data")
    assert planned.returncode == 3
    assert "instant, drops 1 row" in planned.stdout
    done = place.run(
        "undo", "--with-data", "--json", env={"WHATSAPP_DATABASE_BACKUP_DIR": str(place.folder / "backups")}
    )
    assert done.returncode == 0, done.stderr
    assert (place.folder / "backups").exists()
    assert json.loads(done.stdout)["backup"].startswith(str(place.folder / "backups"))
    assert "note" not in db.get_tables()


def test_with_data_and_no_backup_nothing_is_dropped(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    db.execute_sql("INSERT INTO tag (item_id, word) VALUES (1, 'a')")
    with pytest.raises(BackupFailed, match="no backup was made"):
        runner.undo(with_data=True)
    assert db.execute_sql("SELECT word FROM tag").fetchall() == [("a",)]


def test_with_data_it_drops_what_holds_rows(place: Place, db: pw.Database) -> None:
    up(db, old())
    before = schema(place)
    later = new()
    runner = MigrationRunner(db, later, before_changes=lambda: "a file")
    runner.up()
    db.execute_sql("INSERT INTO item (name, note) VALUES ('x', 'y')")
    db.execute_sql("INSERT INTO tag (item_id, word) VALUES (1, 'a')")
    report = runner.undo(with_data=True)
    assert report.backup == "a file"
    assert schema(place) == before
    assert db.execute_sql("SELECT name FROM item").fetchall() == [("x",)]


# Records


def test_a_start_with_nothing_to_do_records_nothing(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    before = db.execute_sql("SELECT * FROM whatspire_db_runs").fetchall()
    assert len(before) == 2
    runner.up()
    MigrationRunner(db, new(), record_all=True).up()
    assert db.execute_sql("SELECT * FROM whatspire_db_runs").fetchall() == before


TAKEN = {
    "view": "CREATE VIEW whatspire_db_runs AS SELECT 1 AS version",
    "table of another program": "CREATE TABLE whatspire_db_runs (id integer)",
}


@pytest.mark.parametrize("kind", TAKEN)
def test_a_name_that_is_taken_stops_no_run(
    place: Place, db: pw.Database, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(db, TAKEN[kind])
    runner = MigrationRunner(db, old())
    with caplog.at_level(logging.WARNING, "whatspire_db"):
        assert runner.up().applied
    assert "this run cannot be undone" in caplog.text
    assert [found.added for found in runner.status()] == [None]
    assert place.run("status").returncode == 0
    done = place.run("undo")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2)


@contextmanager
def role(server: Server, postgres: Place, *rights: str) -> Iterator[Place]:
    """Yield the database for a new role, which has the rights that are given as statements."""
    name = f"undo_{uuid.uuid4().hex[:8]}"
    server.execute(f"CREATE ROLE {name} LOGIN")
    try:
        run(postgres.connect(), *(right.format(role=name) for right in rights))
        dsn = postgres.dsn.replace("user='postgres'", f"user='{name}'")
        yield Place("postgres", dsn, postgres.folder)
    finally:
        run(postgres.connect(), f"DROP OWNED BY {name}")
        server.execute(f"DROP ROLE {name}")


def test_without_the_right_to_make_tables_a_run_is_not_undoable(
    server: Server, postgres: Place, caplog: pytest.LogCaptureFixture
) -> None:
    admin = postgres.connect()
    up(admin, old())
    run(admin, "DROP TABLE whatspire_db_runs")
    rights = ["ALTER TABLE item OWNER TO {role}", "ALTER TABLE migration_versions OWNER TO {role}"]
    with role(server, postgres, *rights) as place:
        db = place.connect()
        item = model("Item", "item", {"name": pw.TextField(), "note": pw.TextField(null=True)})
        with caplog.at_level(logging.WARNING, "whatspire_db"):
            assert MigrationRunner(db, [item]).up().applied
        said = [record.getMessage() for record in caplog.records if "cannot be undone" in record.getMessage()]
        assert len(said) == 1
        assert MigrationRunner(db, [item]).undo().runs == ()
        db.close_all()
    admin.close_all()


def test_a_superuser_runs_no_code_of_a_planted_table(
    server: Server, postgres: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with role(server, postgres, "GRANT CREATE ON SCHEMA public TO {role}; CREATE SCHEMA AUTHORIZATION {role}") as hers:
        run(
            hers.connect(),
            "CREATE TABLE public.whatspire_db_runs (version bigint PRIMARY KEY, content text, undone_by bigint)",
            "CREATE TABLE public.ran (a integer)",
            "CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO public.ran VALUES (1); RETURN NEW; END'",
            "CREATE TRIGGER trap BEFORE INSERT OR DELETE ON public.whatspire_db_runs "
            "FOR EACH ROW EXECUTE FUNCTION trap()",
        )
        db = postgres.connect()
        runner = MigrationRunner(db, old())
        with caplog.at_level(logging.WARNING, "whatspire_db"):
            runner.up()
        assert "this run cannot be undone: superuser" in caplog.text
        assert [found.added for found in runner.status()] == [None]
        with pytest.raises(Exception, match="would run code of"):
            runner.undo()
        with db.connection_context():
            assert db.execute_sql("SELECT count(*) FROM ran").fetchone() == (0,)
            assert db.execute_sql("SELECT count(*) FROM whatspire_db_runs").fetchone() == (0,)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[1]",
        '[{"kind": "table"}]',
        '[{"kind": "x", "schema": "", "table": "", "name": "", "sql": [], "definition": null}]',
        "[" * 100_000,
    ],
)
def test_a_record_that_was_not_written_by_us(place: Place, db: pw.Database, content: str) -> None:
    runner = migrated(db, new())
    records.RunRecord.update(content=content).where(records.RunRecord.version == runner.version()).execute(db)
    with pytest.raises(Exception, match="cannot be read from whatspire_db_runs"):
        runner.undo()
    assert all(found.added is None for found in runner.status())


# More than one at a time


def test_two_undos_at_once_undo_one_run(place: Place, db: pw.Database) -> None:
    runner = migrated(db, new())
    version = runner.version()
    begun = threading.Barrier(2)

    def undoes() -> tuple[int, ...]:
        own = place.connect()
        with own.connection_context():
            one = MigrationRunner(own, new())
            chosen = one._undoing(False).chosen(None)
            begun.wait()
            return one._patiently(lambda: one._connected(lambda: one._undoing(False).run(chosen))).runs

    assert sorted(at_once(undoes, undoes)) == [(), (version,)]
    assert db.execute_sql("SELECT count(*) FROM whatspire_db_runs WHERE undone_by IS NULL").fetchone() == (1,)


def test_beside_a_writer_no_value_is_lost(place: Place, db: pw.Database) -> None:
    """On PostgreSQL the table is large: the proof is a CHECK that keeps values out, and writers wait for no scan."""
    runner = migrated(db, new(), rows=500, online_rows=100)
    stop = threading.Event()

    def writes() -> int:
        """Return for how many rows a value was stored, and acknowledged."""
        own, stored = place.connect(), 0
        with own.connection_context():
            for number in range(1, 501):
                if stop.is_set():
                    break
                try:
                    own.execute_sql(f"UPDATE item SET note = 'written' WHERE id = {number}")
                    stored += 1
                except pw.DatabaseError:
                    continue
        return stored

    def undoes() -> bool:
        own = place.connect()
        try:
            with own.connection_context():
                return bool(MigrationRunner(own, new(), online_rows=100).undo().undone)
        except UndoRefused:
            return False
        finally:
            stop.set()

    stored, is_undone = at_once(writes, undoes)
    if is_undone:
        assert stored == 0
    else:
        assert db.execute_sql("SELECT count(*) FROM item WHERE note = 'written'").fetchone() == (stored,)
    assert runner.engine.name  # and nothing keeps writers out any more
    if not is_undone:
        db.execute_sql("UPDATE item SET note = 'after' WHERE id = 1")


class Meddling(Applying):
    """Lets somebody else do something before an online step."""

    between: Any

    def execute_online(self, step: Any) -> None:
        self.between(step)
        super().execute_online(step)


def meddled(runner: MigrationRunner, between: Any) -> Any:
    undoing = runner._undoing(False)
    applying = Meddling(undoing.applying.looking, undoing.applying.watcher, undoing.applying.patience, False)
    object.__setattr__(applying, "between", between)
    object.__setattr__(undoing, "applying", applying)
    return undoing


def large(db: pw.Database) -> MigrationRunner:
    return migrated(db, new(), rows=50, online_rows=10)


def test_large_tables_are_proved_and_their_indexes_dropped_online(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        plan = large(db).undo_plan()
        online = [step.sql[0] for step in plan.online]
        assert [sql for sql in online if sql.startswith("DROP INDEX CONCURRENTLY")]
        assert [sql for sql in online if sql.endswith("NOT VALID")]
        assert [sql for sql in online if "VALIDATE" in sql]
        assert online[-1].startswith("DROP INDEX CONCURRENTLY")
        before = db.execute_sql("SELECT count(*) FROM item").fetchone()
        large_runner = MigrationRunner(db, new(), online_rows=10)
        large_runner.undo()
        assert not MigrationRunner(db, old()).verify_schema()
        assert db.execute_sql("SELECT count(*) FROM item").fetchone() == before


def test_a_value_that_is_written_between_plan_and_proof_refuses(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    with db.connection_context():
        runner = large(db)
        before = schema(postgres)

        def writes(step: Any) -> None:
            if step.sql[0].endswith("NOT VALID"):
                run(other, "UPDATE item SET note = 'late' WHERE id = 7")

        undoing = meddled(runner, writes)
        with pytest.raises(UndoRefused, match="1 row holds a value") as error:
            runner._connected(lambda: undoing.run(undoing.chosen(None)))
        assert "--with-data" in error.value.hint
        assert schema(postgres) == before  # the CHECK that keeps writers out is gone


def test_a_value_that_is_written_after_the_proof_is_refused_by_the_database(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    failures = []
    with db.connection_context():
        runner = large(db)

        def writes(step: Any) -> None:
            if step.kind == "drop_index":
                with pytest.raises(psycopg2.IntegrityError) as failure:
                    run(other, "INSERT INTO item (name, note) VALUES ('late', 'value')")
                failures.append(failure.value)
                run(other, "INSERT INTO item (name) VALUES ('late')")

        undoing = meddled(runner, writes)
        runner._connected(lambda: undoing.run(undoing.chosen(None)))
    assert failures


KILLED = """
import os, signal, sys
from tests.migrate.test_undo import *
from whatspire_db import Settings, connect
from whatspire_db.migrate import Watcher

class Dying(Watcher):
    left = int(sys.argv[3])
    def step_started(self, step):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)

db = connect(Settings(driver=sys.argv[1], dsn=sys.argv[2]))
runner = MigrationRunner(db, new(), online_rows=10, watcher=Dying())
runner.undo() if sys.argv[4] == "undo" else runner.up()
"""


def killed(place: Place, step: int, verb: str = "undo") -> int:
    """Run a verb that kills itself at the start of a step, and return how it ended."""
    command = [sys.executable, "-c", KILLED, place.driver, place.dsn, str(step), verb]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


@pytest.mark.sampled
@pytest.mark.parametrize("step", range(1, 8))
def test_an_undo_that_is_killed_goes_on(place: Place, db: pw.Database, step: int) -> None:
    up(db, old())
    before = schema(place)
    runner = large(db)
    if killed(place, step) == 0:
        assert step > 3
    rows = db.execute_sql("SELECT name FROM item ORDER BY id").fetchall()
    report = MigrationRunner(db, new(), online_rows=10).undo_plan()
    if report.runs == (runner.version(),):
        MigrationRunner(db, new(), online_rows=10).undo()
    assert schema(place) == before
    assert len(rows) == 50
    assert db.execute_sql("SELECT name FROM item ORDER BY id").fetchall() == rows


@pytest.mark.soak
def test_a_refusal_after_a_kill_lets_writers_store_values_again(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = large(db)
        before = schema(postgres)
        step = next(n for n, s in enumerate(runner.undo_plan().online, 1) if "VALIDATE" in s.sql[0])
        assert killed(postgres, step) == -9
        assert "whatspire_db_undo_note" in schema(postgres)
        run(db, "CREATE VIEW seen AS SELECT note FROM item")
        with pytest.raises(UndoRefused):
            MigrationRunner(db, new(), online_rows=10).undo()
        run(db, "DROP VIEW seen", "UPDATE item SET note = 'x' WHERE id = 1")
        assert schema(postgres) == before


@pytest.mark.soak
def test_an_undo_of_fewer_runs_removes_what_a_killed_one_left(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = large(db)
        step = next(n for n, s in enumerate(runner.undo_plan().online, 1) if "VALIDATE" in s.sql[0])
        assert killed(postgres, step) == -9
        more = model("More", "more", {"name": pw.TextField()})
        version = up(db, [more])
        assert MigrationRunner(db, [more]).undo().runs == (version,)
        run(db, "UPDATE item SET note = 'x' WHERE id = 1")


@pytest.mark.soak
def test_a_proof_that_was_left_is_made_anew_on_a_table_that_is_no_longer_large(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = large(db)
        step = next(n for n, s in enumerate(runner.undo_plan().online, 1) if "VALIDATE" in s.sql[0])
        assert killed(postgres, step) == -9
        assert MigrationRunner(db, new()).undo().undone
        assert not MigrationRunner(db, old()).verify_schema()


@pytest.mark.soak
@pytest.mark.parametrize("finished", [False, True])
def test_a_run_that_was_killed_in_its_online_part_can_be_undone(postgres: Place, finished: bool) -> None:
    db = postgres.connect()
    with db.connection_context():
        up(db, old())
        before = schema(postgres)
        run(db, "INSERT INTO item (name) SELECT n FROM generate_series(1, 50) AS n")
        steps = MigrationRunner(db, new(), online_rows=10).plan().pending
        step = next(number for number, step in enumerate(steps, 1) if step.online)
        assert killed(postgres, step, "up") == -9
        runner = MigrationRunner(db, new(), online_rows=10)
        assert runner.undo_plan().runs == (0,)
        if finished:
            version = runner.up().version
            assert runner.undo_plan().runs == (version,)
        assert runner.undo().undone
        assert schema(postgres) == before
        assert not MigrationRunner(db, old()).plan()
        assert db.execute_sql("SELECT count(*) FROM whatspire_db_runs WHERE version = 0").fetchone() == (0,)


def test_an_undo_waits_for_a_lock_as_up_does(postgres: Place) -> None:
    db, other = postgres.connect(), postgres.connect()
    with db.connection_context(), other.connection_context():
        runner = migrated(db, new(), lock_timeout=0.3)
        before = schema(postgres)
        with other.atomic():
            other.execute_sql("SELECT * FROM item FOR UPDATE")
            with pytest.raises(Exception, match="held item|another session|locked"):
                runner.undo()
        assert schema(postgres) == before
        assert runner.undo().undone


# The command


def test_the_command(place: Place) -> None:
    body = (
        "import peewee\nfrom whatspire_db import BaseModel\n\n\nclass Note(BaseModel):\n    text = peewee.TextField()\n"
    )
    (place.folder / "one.py").write_text(body)
    (place.folder / "two.py").write_text(body + "    more = peewee.TextField(null=True)\n")

    def told(*arguments: str) -> tuple[int, Any]:
        done = place.run(*arguments, "--json", "--only-models", env={"WHATSAPP_DATABASE_MODELS": module})
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    for module in ("one", "two"):  # noqa: B007 - read by told()
        assert told()[0] == 0
    code, plan = told("undo", "--plan")
    assert (code, [step["kind"] for step in plan["pending"]], plan["refused"]) == (3, ["drop_column"], [])
    assert plan["database"] == place.named
    first, second = (found["version"] for found in told("status")[1]["runs"])
    assert plan["runs"] == [second]
    assert told("status")[1]["runs"][1]["added"] == {"column": 1}
    assert told("status")[1]["undo"]["runs"] == [second]
    code, report = told("undo")
    assert (code, report["runs"], [step["kind"] for step in report["undone"]]) == (0, [second], ["drop_column"])
    runs = told("status")[1]["runs"]
    assert (runs[1]["undone_by"], runs[2]["name"]) == (report["version"], "undo")
    assert told("undo", "--to", str(first))[1]["runs"] == []
    assert told("undo", "--to", "0")[1]["runs"] == [first]
    assert told("undo", "--plan")[0] == 0


@pytest.mark.soak
def test_the_command_refuses_in_two_lines_and_prints_a_script(place: Place, db: pw.Database) -> None:
    assert place.run().returncode == 0
    script = place.run("undo", "--sql")
    assert script.returncode == 3
    assert script.stdout.splitlines()[0] == f"-- database: {place.driver} {place.named}"
    assert 'DROP TABLE "sessions"' in script.stdout.replace('"public".', "").replace('"main".', "")
    db.execute_sql(
        "INSERT INTO receipts (id, message_id, session_id, from_jid, to_jid, type, created_at) "
        "VALUES ('1', 'm', 's', 'a', 'b', 'read', '2026-01-01 00:00:00+00:00')"
    )
    done = place.run("undo")
    assert (done.returncode, len(done.stderr.splitlines())) == (4, 2)
    assert done.stderr.startswith("error: cannot drop table receipts: it has 1 row (database: ")
    assert place.run("undo", "--plan").returncode == 4
    script = place.run("undo", "--sql")
    assert script.returncode == 4
    assert all(line.startswith("-- ") for line in script.stdout.splitlines())
    assert "-- refused: cannot drop table receipts: it has 1 row\n" in script.stdout
    assert "is refused: cannot drop table receipts: it has 1 row" in place.run("status").stdout
    document = json.loads(place.run("undo", "--json").stdout)
    assert (document["exit"], document["refused"][0]["name"]) == (4, "receipts")


@pytest.mark.parametrize(
    "arguments",
    [
        ("undo", "--to", "x"),
        ("undo", "--to", "-1"),
        ("undo", "--to", "5"),
        ("up", "--to", "5"),
        ("plan", "--with-data"),
    ],
)
def test_bad_input_is_two_lines(sqlite: Place, arguments: tuple[str, ...]) -> None:
    done = sqlite.run(*arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 2)


def test_a_file_that_is_not_there_is_not_made(sqlite: Place) -> None:
    done = sqlite.run("undo")
    assert done.returncode == 0
    assert "Nothing to undo" in done.stdout
    assert not (sqlite.folder / "whatspire.db").exists()


# Laws

TYPES: dict[str, tuple[type[pw.Field], str, str]] = {
    # field, default, another value
    "text": (pw.TextField, "'d'", "'other'"),
    "integer": (pw.IntegerField, "7", "8"),
    "bigint": (pw.BigIntegerField, "7", "9000000000"),
    "char": (pw.CharField, "'it''s'", "'it'"),
    "flag": (pw.BooleanField, "true", "false"),
    "float": (pw.FloatField, "0.5", "0.25"),
    "blob": (pw.TextField, "''", "' '"),
}
columns = st.fixed_dictionaries(
    {
        "type": st.sampled_from(sorted(TYPES)),
        "default": st.booleans(),
        "index": st.sampled_from(["", "index", "unique"]),
        "check": st.booleans(),
    }
)
tables = st.lists(st.tuples(columns, st.booleans()), min_size=1, max_size=3)
worlds = st.fixed_dictionaries(
    {
        "base": st.lists(columns, min_size=1, max_size=3),
        "added": st.lists(columns, min_size=1, max_size=3),
        "tables": st.lists(tables, max_size=2),
        "together": st.booleans(),
        "values": st.integers(0, 3),
        "rows": st.integers(0, 3),
        "refers": st.booleans(),
        "is_filled": st.booleans(),
    }
)


def field(column: dict[str, Any], name: str) -> pw.Field:
    kind, default, _ = TYPES[column["type"]]
    constraints: list[Any] = [pw.SQL(f"DEFAULT {default}")] if column["default"] else []
    if column["check"]:
        constraints.append(pw.Check(f"{name} IS NOT NULL OR {name} IS NULL", f"check_{name}"))
    unique = column["index"] == "unique" and not column["default"]
    return kind(null=True, index=column["index"] == "index", unique=unique, constraints=constraints)


def world(drawn: dict[str, Any]) -> tuple[Models, Models]:
    """Return the earlier models and the later ones."""
    first = {f"a{n}": field(column, f"a{n}") for n, column in enumerate(drawn["base"])}
    second = {f"b{n}": field(column, f"b{n}") for n, column in enumerate(drawn["added"])}
    indexes = ((("a0", "b0"), False),) if drawn["together"] else ()
    target = model("Target", "target", {"word": pw.TextField(null=True)})
    reference = {"target": pw.ForeignKeyField(target, null=True)} if drawn["refers"] else {}
    later = model("Thing", "thing", {**first, **second, **reference}, indexes=indexes)
    made = [later]
    for number, listed in enumerate(drawn["tables"]):
        fields = {f"c{n}": field(column, f"c{n}") for n, (column, _) in enumerate(listed)}
        if any(refers for _, refers in listed):
            fields["to"] = pw.ForeignKeyField(made[-1], null=True)
        made.append(model(f"Made{number}", f"made{number}", fields))
    made += [target] if drawn["refers"] else []
    return [model("Thing", "thing", {f"a{n}": field(c, f"a{n}") for n, c in enumerate(drawn["base"])})], made


@pytest.mark.parametrize("driver", ["sqlite", "postgres"])
@given(drawn=worlds)
def test_up_and_undo_give_the_earlier_schema_and_lose_no_row(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory, driver: str, drawn: Any
) -> None:
    with fresh(server, tmp_path_factory, driver) as place:
        db = place.connect()
        earlier, later = world(drawn)
        with db.connection_context():
            up(db, earlier)
            before = schema(place)
            for number in range(drawn["rows"]):
                db.execute_sql(f"INSERT INTO thing (id) VALUES ({number + 1})")
            runner = MigrationRunner(db, later, online_rows=drawn["values"])
            runner.up()
            with_values = min(drawn["values"], drawn["rows"])
            _, default, other = TYPES[drawn["added"][0]["type"]]
            for number in range(with_values):
                value = other if number or drawn["added"][0]["index"] == "unique" else default
                if drawn["added"][0]["index"] != "unique" or not number:
                    db.execute_sql(f"UPDATE thing SET b0 = {value} WHERE id = {number + 1}")
            rows = db.execute_sql("SELECT * FROM thing ORDER BY id").fetchall()
            column = len(drawn["base"]) + 1
            expected = default if drawn["added"][0]["default"] else "NULL"
            held = db.execute_sql(
                f"SELECT count(*) FROM thing WHERE b0 IS NOT NULL AND NOT coalesce(b0 = {expected}, false)"
            ).fetchone()[0]
            if is_filled := bool(drawn["is_filled"] and drawn["tables"]):
                db.execute_sql("INSERT INTO made0 (c0) VALUES (NULL)")
            plan = runner.undo_plan()
            is_refused = bool(held or is_filled or (drawn["refers"] and place.is_sqlite))
            assert bool(plan.refused) == is_refused, str(plan)
            if is_refused:
                with pytest.raises(UndoRefused):
                    runner.undo()
                assert db.execute_sql("SELECT * FROM thing ORDER BY id").fetchall() == rows
                assert not runner.verify_schema()
                return
            runner.undo()
            assert schema(place) == before
            assert db.execute_sql("SELECT * FROM thing ORDER BY id").fetchall() == [row[:column] for row in rows]
            assert not MigrationRunner(db, earlier).plan()
            assert runner.up().applied
            assert not runner.verify_schema()


@contextmanager
def fresh(server: Server, folders: pytest.TempPathFactory, driver: str) -> Iterator[Place]:
    """Yield a database of its own for an example."""
    folder = folders.mktemp("undo")
    if driver == "sqlite":
        yield Place("sqlite", str(folder / "whatspire.db"), folder)
        return
    name = f"u_{uuid.uuid4().hex[:12]}"
    server.execute(f"CREATE DATABASE {name}")
    try:
        yield Place("postgres", server.of_database(name), folder)
    finally:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.soak
def test_undos_that_are_killed_anywhere_lose_nothing(place: Place) -> None:
    """A kill at a random moment, not only at the start of a step."""
    import random
    import signal
    import time

    db = place.connect()
    with db.connection_context():
        runner = large(db)
        for number in range(KILLS):
            command = [sys.executable, "-c", KILLED, place.driver, place.dsn, "99", "undo"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(random.Random(number).uniform(0.3, 0.9))
            process.send_signal(signal.SIGKILL)
            process.wait()
            if runner.undo_plan().runs[:1] == (runner.status()[-1].version,):
                runner.undo()
            assert not MigrationRunner(db, old()).verify_schema()
            assert db.execute_sql("SELECT count(*) FROM item").fetchone() == (50,)
            runner.up()
