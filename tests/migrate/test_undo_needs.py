"""Undo drops nothing that a text of the database needs, and what goes together goes in an order that works."""

from __future__ import annotations

import json

import peewee as pw
import pytest

from tests.conftest import Place
from tests.migrate.models import model, run
from tests.migrate.test_undo import Models, migrated, of_type, old, refused, schema, up
from whatspire_db import MigrationRunner
from whatspire_db.migrate import records
from whatspire_db.migrate.added import parts_of
from whatspire_db.migrate.engines.postgres.undoing import TOGETHER

# What needs a column, a unique index or an extension by its text: how it is made and dropped, and what it needs.
FUNCTION = "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {}; END $$"
RULE = "CREATE RULE f AS ON INSERT TO log DO ALSO {}"
TEXTS: dict[str, tuple[str, str, str]] = {
    "a row by the order of columns": (FUNCTION.format("INSERT INTO item SELECT 1, 'a', 'b', 'c'"), "f()", "column"),
    "a row in parentheses": (
        FUNCTION.format("""INSERT INTO public."item" AS i\n--all\n(SELECT 1, 'a', 'b', 'c')"""),
        "f()",
        "column",
    ),
    "a whole table": (FUNCTION.format("CREATE TEMP TABLE copy AS TABLE ONLY item"), "f()", "column"),
    "ON CONFLICT": (
        FUNCTION.format("INSERT INTO item (name) VALUES ('a') ON CONFLICT (name) DO NOTHING"),
        "f()",
        "index",
    ),
    "ON CONFLICT in a tree": (
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql BEGIN ATOMIC "
        "INSERT INTO item (name) VALUES ('a') ON CONFLICT (name) DO NOTHING; END",
        "f()",
        "index",
    ),
    "ON CONFLICT in a rule": (
        RULE.format("INSERT INTO item (name) VALUES (new.a) ON CONFLICT (name) DO NOTHING"),
        "",
        "index",
    ),
    "a function of an extension": (FUNCTION.format("PERFORM l2_distance(a, b) FROM log"), "f()", "extension"),
}
NO_NEED = [
    FUNCTION.format("TRUNCATE TABLE item"),
    FUNCTION.format("INSERT INTO item (name) SELECT a FROM log"),
    FUNCTION.format("INSERT INTO log (a) VALUES ('a') ON CONFLICT (a) DO NOTHING"),
    FUNCTION.format("INSERT INTO item (id) VALUES (1) ON CONFLICT (id) DO NOTHING"),
    FUNCTION.format("PERFORM sum(id) FROM item"),  # a function that the extension has too
]


def with_a_unique_name() -> Models:
    fields = {"name": pw.TextField(unique=True), "code": pw.TextField(null=True)}
    return [model("Item", "item", fields, extensions=["vector"])]


@pytest.mark.soak
def test_what_only_a_text_needs_stays(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        runner = migrated(db, with_a_unique_name())
        run(db, "CREATE TABLE log (a text UNIQUE)")
        for statement, arguments, kind in TEXTS.values():
            run(db, statement)
            plan = runner.undo_plan()
            assert [refusal.kind for refusal in plan.refused] == [f"drop_{kind}"], (statement, str(plan))
            run(db, f"DROP FUNCTION {arguments}" if arguments else "DROP RULE f ON log")
        for statement in NO_NEED:
            run(db, statement)
            assert not runner.undo_plan().refused, (statement, str(runner.undo_plan()))
            run(db, "DROP FUNCTION f()")
        assert runner.undo().undone


@pytest.mark.sampled
@pytest.mark.parametrize("rows", [50, 3])
def test_a_reference_goes_before_the_index_that_it_needs(postgres: Place, rows: int) -> None:
    """Also where the index is one of a large table, which would go first, beside readers and writers."""
    db = postgres.connect()
    with db.connection_context():
        tag = model("Tag", "tag", {"word": pw.TextField()})
        up(db, [*old(), tag])
        run(db, f"INSERT INTO item (name) SELECT n FROM generate_series(1, {rows}) AS n")
        before = schema(postgres)
        item = model("Item", "item", {"name": pw.TextField(unique=True)})
        fields = {"word": pw.TextField(), "item": pw.ForeignKeyField(item, field="name", null=True)}
        runner = MigrationRunner(db, [item, model("Tag", "tag", fields)], online_rows=10)
        runner.up()
        assert runner.undo().undone
        assert schema(postgres) == before


def test_an_index_and_a_check_of_one_name(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        up(db, old())
        before = schema(postgres)
        size = pw.IntegerField(null=True, index=True, constraints=[pw.Check("size > 0", "item_size")])
        runner = MigrationRunner(db, [model("Item", "item", {"name": pw.TextField(), "size": size})])
        runner.up()
        assert runner.status()[-1].added == {"column": 1, "index": 1, "constraint": 1}
        runner.undo()
        assert schema(postgres) == before


def test_an_index_of_others_with_the_name_of_a_check(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        size = pw.IntegerField(null=True, constraints=[pw.Check("size > 0", "item_size")])
        runner = migrated(db, [model("Item", "item", {"name": pw.TextField(), "size": size})])
        run(db, "CREATE INDEX item_size ON item (size)")
        refused(runner, "cannot drop column item.size: index item_size depends on it")


def test_no_record_makes_an_undo_drop_the_history(place: Place, db: pw.Database) -> None:
    """Not even with its data."""
    runner = migrated(db, old(), before_changes=lambda: "a file")
    for table in ("migration_versions", "whatspire_db_runs"):
        live = runner.engine.snapshot([("", table)]).tables["", table]
        facts = {"kind": "table", "schema": "", "table": table, "name": "", "sql": []}
        content = json.dumps([{**facts, "definition": list(parts_of(live))}])
        records.RunRecord.update(content=content).execute(db)
        assert runner.undo_plan(with_data=True).pending == ()
    assert runner.undo(with_data=True).undone == ()
    assert {"migration_versions", "whatspire_db_runs"} <= set(db.get_tables())


def test_a_value_of_a_strict_table_that_its_type_leaves_alone(sqlite: Place) -> None:
    """To the type ANY the number 1 and the text '1' are one in every other table."""
    db = sqlite.connect()
    with db.connection_context():
        fields = {"name": pw.TextField()}
        up(db, [model("Item", "item", fields, strict_tables=True)])
        run(db, "INSERT INTO item (name) VALUES ('a'), ('b')")
        fields["what"] = of_type("ANY")(null=True, constraints=[pw.SQL("DEFAULT '1'")])
        runner = MigrationRunner(db, [model("Item", "item", fields, strict_tables=True)])
        runner.up()
        run(db, "INSERT INTO item (name) VALUES ('c')")
        assert runner.undo_plan().pending
        run(db, "UPDATE item SET what = 1 WHERE id = 2")
        refused(runner, "cannot drop column item.what: 1 row holds a value")


def test_the_default_as_rows_have_it_that_are_older_than_the_column(sqlite: Place) -> None:
    """They keep a constant as it is written, the number 0 here; later rows have what the type makes of it."""
    db = sqlite.connect()
    with db.connection_context():
        what = of_type("blob")(null=True, constraints=[pw.SQL("DEFAULT 0.0")])
        runner = migrated(db, [model("Item", "item", {"name": pw.TextField(), "what": what})])
        run(db, "INSERT INTO item (name) VALUES ('later')")
        assert db.execute_sql("SELECT count(DISTINCT typeof(what)) FROM item").fetchone() == (2,)
        assert runner.undo().undone


def test_status_looks_at_no_more_rows_than_a_start(place: Place, db: pw.Database) -> None:
    """What it did not look at it names; undo --plan looks at all."""
    fields = {"name": pw.TextField(), "note": pw.TextField(null=True)}
    tag = model("Tag", "tag", {"word": pw.TextField()})
    runner = migrated(db, [model("Item", "item", fields), tag], rows=6, online_rows=5)
    run(db, "UPDATE item SET note = 'x' WHERE id = 6")
    quick = runner.undo_plan(counts=False)
    assert quick.notes == ("item.note: undo --plan finds out whether rows hold a value there",)
    assert not quick.refused
    assert runner.undo_plan().refused
    run(db, "INSERT INTO tag (word) VALUES ('a'), ('b'), ('c'), ('d'), ('e')")
    assert "table tag: it has 5 rows" in runner.undo_plan(counts=False).refused[0].reason
    run(db, "INSERT INTO tag (word) VALUES ('f'), ('g')")
    assert "table tag: it has more than 5 rows" in runner.undo_plan(counts=False).refused[0].reason
    assert "table tag: it has 7 rows" in runner.undo_plan().refused[0].reason


def test_a_reference_that_came_with_a_column_goes_with_the_table(place: Place, db: pw.Database) -> None:
    """SQLite drops no such column, and so it goes where the run that made the table is undone too."""
    (item,) = old()
    tag = {"word": pw.TextField()}
    up(db, [item, model("Tag", "tag", tag)])
    runner = MigrationRunner(db, [item, model("Tag", "tag", {**tag, "of": pw.ForeignKeyField(item, null=True)})])
    runner.up()
    assert runner.undo(0).undone
    assert sorted(db.get_tables()) == ["migration_versions", "whatspire_db_runs"]


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["table", "column"])
def test_with_data_drops_nothing_that_no_backup_holds(sqlite: Place, kind: str) -> None:
    """The file of an attached database is not in the backup of the main one."""
    db = sqlite.connect()
    db.attach(str(sqlite.folder / "beside.db"), "beside")
    with db.connection_context():
        first = model("Item", "item", {"name": pw.TextField()}, schema="beside")
        later = model("Item", "item", {"name": pw.TextField(), "note": pw.TextField(null=True)}, schema="beside")
        for models in ([first], [later])[: 1 if kind == "table" else 2]:
            runner = MigrationRunner(db, models, before_changes=lambda: "a file")
            runner.up()
        run(db, "INSERT INTO beside.item (name) VALUES ('kept')")
        if kind == "column":
            run(db, "UPDATE beside.item SET note = 'kept'")
        error = refused(runner, f"cannot drop {kind} beside.item", with_data=True)
        assert "a backup does not hold what is attached" in error.hint
        run(db, "DELETE FROM beside.item")
        plan = runner.undo_plan(with_data=True)
        assert (
            plan.pending[0].title == {"table": "drop table beside.item", "column": "drop column beside.item.note"}[kind]
        )
        assert any("SELECT CASE" in sql for sql in plan.pending[0].sql)  # another one may write meanwhile
        assert runner.undo(with_data=True).undone


def test_a_table_with_a_function_that_only_the_connection_knows(sqlite: Place) -> None:
    """The copy on which an undo is tried does not know it: the undo itself shows what SQLite says."""
    db = sqlite.connect()
    with db.connection_context():
        db.connection().create_function("shout", 1, str.upper, deterministic=True)
        made = "CREATE TABLE item (id integer NOT NULL PRIMARY KEY, name text NOT NULL, loud AS (shout(name)))"
        db.execute_sql(made)
        later = [model("Item", "item", {"name": pw.TextField(), "note": pw.TextField(null=True)})]
        runner = MigrationRunner(db, later)
        runner.up()
        assert runner.undo().undone
        assert [column.name for column in db.get_columns("item")] == ["id", "name"]


def test_more_objects_than_the_server_is_asked_about_at_once(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        count = TOGETHER + 5
        later = [
            model("Item", "item", {"name": pw.TextField(), **{f"c{n}": pw.TextField(null=True) for n in range(count)}})
        ]
        runner = migrated(db, later)
        run(db, f"CREATE VIEW first AS SELECT c0 FROM item; CREATE VIEW last AS SELECT c{count - 1} FROM item")
        plan = runner.undo_plan()
        assert {refusal.name for refusal in plan.refused} == {"c0", f"c{count - 1}"}
