"""A missing column beside an extra one of its type: a remark with the statement, and no reason to refuse a start."""

from __future__ import annotations

import json
import logging
import textwrap

import peewee as pw
import pytest

from tests.conftest import Place
from whatspire_db import MigrationRunner


def model(**fields: pw.Field) -> type[pw.Model]:
    return type("Item", (pw.Model,), {**fields, "Meta": type("Meta", (), {"table_name": "item"})})


NEW = model(Title=pw.CharField(max_length=20, null=True), size=pw.IntegerField(null=True))
OLD = {
    "CREATE TABLE item (id {key} NOT NULL PRIMARY KEY, name varchar(20), size integer)": ["name"],
    "CREATE TABLE item (id {key} NOT NULL PRIMARY KEY, name varchar(30), size integer)": [],
    "CREATE TABLE item (id {key} NOT NULL PRIMARY KEY, a varchar(20), b varchar(20), size integer)": ["a", "b"],
}


@pytest.mark.parametrize("sql", OLD)
def test_remark_is_in_plan_and_verify_and_a_warning_of_up(
    place: Place, db: pw.Database, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    db.execute_sql(sql.format(key="INTEGER" if place.is_sqlite else "serial"))
    runner = MigrationRunner(db, [NEW])
    statements = [f'ALTER TABLE "item" RENAME COLUMN "{old}" TO "Title"' for old in OLD[sql]]
    changes, plan = runner.verify_schema(), runner.plan()
    assert [r.sql for r in changes.renamed] == [r.sql for r in plan.renamed] == statements
    assert str(plan).count("renamed? item.Title is missing") == len(statements)
    assert [r["sql"] for r in plan.to_json().get("renamed", [])] == statements
    if statements:  # run in time, it is the column
        with db.atomic() as transaction:
            db.execute_sql(statements[0])
            transaction.rollback()
    with caplog.at_level(logging.WARNING, "whatspire_db.migrate"):
        assert runner.up().applied
    assert [m for m in caplog.messages if m.startswith("renamed? ")] == [str(r) for r in plan.renamed]
    assert not runner.verify_schema().renamed
    assert not runner.plan().renamed


def test_statement_keeps_the_rows(place: Place, db: pw.Database) -> None:
    db.execute_sql(next(iter(OLD)).format(key="INTEGER" if place.is_sqlite else "serial"))
    db.execute_sql("INSERT INTO item (id, name) VALUES (1, 'kept')")
    runner = MigrationRunner(db, [NEW])
    (renaming,) = runner.verify_schema().renamed
    db.execute_sql(renaming.sql)
    assert not runner.verify_schema()
    with db.bind_ctx([NEW]):
        assert NEW.get().Title == "kept"


def test_refused_run_says_so_too(place: Place, db: pw.Database, caplog: pytest.LogCaptureFixture) -> None:
    from whatspire_db import MigrationRefused

    db.execute_sql(next(iter(OLD)).format(key="INTEGER" if place.is_sqlite else "serial"))
    db.execute_sql("INSERT INTO item (id, name) VALUES (1, 'kept')")
    strict = model(title=pw.CharField(max_length=20), size=pw.IntegerField(null=True))
    with caplog.at_level(logging.WARNING, "whatspire_db.migrate"), pytest.raises(MigrationRefused, match="NOT NULL"):
        MigrationRunner(db, [strict]).up()
    assert [m for m in caplog.messages if m.startswith("renamed? ")]


@pytest.mark.soak
def test_command_line_shows_it(place: Place, db: pw.Database) -> None:
    db.execute_sql('CREATE TABLE "item" (id integer NOT NULL PRIMARY KEY, "na\nme" varchar(20))')
    (place.folder / "itemmodels.py").write_text(
        textwrap.dedent("""
        import peewee
        class Item(peewee.Model):
            id = peewee.IntegerField(primary_key=True)
            title = peewee.CharField(max_length=20, null=True)
            class Meta:
                table_name = "item"
        """)
    )
    options = ("--models", "itemmodels", "--only-models")
    for verb, code in (("plan", 3), ("verify", 3)):
        done = place.run(verb, *options)
        assert done.returncode == code, done.stderr
        assert "renamed? item.title is missing" in done.stdout
        script = place.run(verb, "--sql", *options).stdout
        assert any(line.startswith("-- renamed? ") for line in script.split("\n"))
        assert not any(line.startswith('me"') for line in script.split("\n"))
        (renaming,) = json.loads(place.run(verb, "--json", *options).stdout)["renamed"]
        assert (renaming["table"], renaming["from"], renaming["to"]) == ("item", "na\nme", "title")
    done = place.run("up", *options)
    assert done.returncode == 0
    assert "renamed? item.title" in done.stderr
