"""Additions that would fail or lose data: refused before anything is applied, with table, column and count."""

from __future__ import annotations

import json

import peewee as pw
import pytest
from peewee import SQL, Check

from tests.conftest import Place
from whatspire_db import MigrationRefused, MigrationRunner, ModelError, StepFailed, VerificationFailed, WhatspireDBError
from whatspire_db.migrate import Step
from whatspire_db.migrate.applying import Applying

pytestmark = pytest.mark.sampled


class Owner(pw.Model):
    code = pw.TextField(unique=True)

    class Meta:
        table_name = "owner"


OLD = {
    "sqlite": "CREATE TABLE item (id INTEGER NOT NULL PRIMARY KEY, name TEXT NOT NULL, owner_id INTEGER)",
    "postgres": "CREATE TABLE item (id serial PRIMARY KEY, name text NOT NULL, owner_id integer)",
}


def old(place: Place, db: pw.Database, rows: int = 12) -> None:
    """Make an older table `item` whose rows share one name and refer to owners that are not there."""
    db.execute_sql(OLD[place.driver])
    for number in range(rows):
        db.execute_sql("INSERT INTO item (name, owner_id) VALUES ('same', %d)" % (number + 100))


def item(**fields: pw.Field) -> type[pw.Model]:
    own = {"name": pw.TextField(), "owner_id": pw.IntegerField(null=True)} | fields
    meta = type("Meta", (), {"table_name": "item", "legacy_table_names": False})
    return type("Item", (pw.Model,), {**own, "Meta": meta})


def refusal(db: pw.Database, *models: type[pw.Model]) -> MigrationRefused:
    before = db.execute_sql("SELECT * FROM item").fetchall(), db.get_tables()
    runner = MigrationRunner(db, list(models))
    with pytest.raises(MigrationRefused) as refused:
        runner.up()
    assert (db.execute_sql("SELECT * FROM item").fetchall(), db.get_tables()) == before
    assert runner.version() == 0
    return refused.value


def test_not_null_without_default_onto_rows(place: Place, db: pw.Database) -> None:
    old(place, db)
    refused = refusal(db, item(weight=pw.IntegerField()))
    assert refused.fact == "cannot add column item.weight: NOT NULL without a default, and the table has 12 rows"
    assert "null=True" in refused.hint


def test_a_default_in_python_is_none_in_the_database(place: Place, db: pw.Database) -> None:
    old(place, db, rows=1)
    refused = refusal(db, item(weight=pw.IntegerField(default=5)))
    assert "the table has 1 row" in refused.fact


def test_database_default_fills_the_rows(place: Place, db: pw.Database) -> None:
    old(place, db)
    model = item(weight=pw.IntegerField(constraints=[SQL("DEFAULT 5")]), mark=pw.TextField(null=True))
    MigrationRunner(db, [model]).up()
    assert db.execute_sql("SELECT DISTINCT weight, mark FROM item").fetchall() == [(5, None)]


def test_not_null_without_default_onto_an_empty_table_is_added(place: Place, db: pw.Database) -> None:
    old(place, db, rows=0)
    runner = MigrationRunner(db, [item(weight=pw.IntegerField())])
    runner.up()
    assert not runner.verify_schema()


def test_unique_onto_duplicates(place: Place, db: pw.Database) -> None:
    old(place, db)
    refused = refusal(db, item(name=pw.TextField(unique=True)))
    assert refused.fact == "cannot make item (name) unique: 12 rows of 12 rows share their value"
    assert 'GROUP BY "name"' in refused.hint


def test_unique_constraint_onto_duplicates(place: Place, db: pw.Database) -> None:
    old(place, db)
    model = item()
    model._meta.constraints = [SQL("UNIQUE (name)")]
    assert "item (name)" in refusal(db, model).fact
    db.execute_sql("DELETE FROM item WHERE id > 1")
    runner = MigrationRunner(db, [model])
    runner.up()
    assert not runner.verify_schema()
    with pytest.raises(pw.IntegrityError):
        db.execute_sql("INSERT INTO item (name) VALUES ('same')")


def test_unique_of_a_new_column(place: Place, db: pw.Database) -> None:
    old(place, db)
    constant = item(code=pw.TextField(unique=True, constraints=[SQL("DEFAULT 'x'")]))
    assert "item (code)" in refusal(db, constant).fact
    runner = MigrationRunner(db, [item(code=pw.TextField(unique=True, null=True))])
    runner.up()
    assert not runner.verify_schema()


def test_unique_looks_only_at_the_rows_of_a_partial_index(place: Place, db: pw.Database) -> None:
    old(place, db)
    db.execute_sql("UPDATE item SET name = 'only' WHERE id = 1")
    model = item()
    model._meta.indexes = [SQL("CREATE UNIQUE INDEX item_part ON item (name) WHERE name = 'only'")]
    MigrationRunner(db, [model]).up()
    assert not MigrationRunner(db, [model]).verify_schema()


def test_collation_of_a_unique_index_counts(sqlite: Place) -> None:
    db = sqlite.connect()
    old(sqlite, db, rows=0)
    db.execute_sql("INSERT INTO item (name) VALUES ('a'), ('A')")
    model = item()
    model._meta.indexes = [SQL("CREATE UNIQUE INDEX item_nocase ON item (name COLLATE NOCASE)")]
    assert "2 rows of 2 rows" in refusal(db, model).fact
    db.close()


def test_foreign_key_onto_orphans(postgres: Place) -> None:
    db = postgres.connect()
    old(postgres, db)
    with db.bind_ctx([Owner]):
        db.create_tables([Owner])
    db.execute_sql("INSERT INTO owner (id, code) VALUES (100, 'a')")
    model = item(owner_id=pw.ForeignKeyField(Owner, column_name="owner_id", null=True, index=False))
    refused = refusal(db, Owner, model)
    assert refused.fact == "cannot add foreign key item (owner_id): 11 rows of 12 rows refer to no row of owner"
    db.execute_sql("DELETE FROM item WHERE owner_id > 100")
    runner = MigrationRunner(db, [Owner, model])
    assert [step.kind for step in runner.up().applied if step.table == "item"] == ["add_constraint"]
    assert not runner.verify_schema()
    db.close()


def test_check_onto_rows_that_violate_it(postgres: Place) -> None:
    db = postgres.connect()
    old(postgres, db)
    model = item(owner_id=pw.IntegerField(null=True, constraints=[Check("owner_id > 103", name="high")]))
    assert "item (owner_id): 4 rows of 12 rows violate it" in refusal(db, model).fact
    db.execute_sql("DELETE FROM item WHERE owner_id <= 103")
    assert [step.kind for step in MigrationRunner(db, [model]).up().applied][-1] == "add_constraint"
    db.close()


def test_reference_to_a_table_that_nobody_makes(place: Place, db: pw.Database) -> None:
    old(place, db, rows=0)
    model = item(of=pw.ForeignKeyField(Owner, null=True))
    assert "table owner does not exist" in refusal(db, model).fact
    runner = MigrationRunner(db, [model, Owner])
    runner.up()
    assert not runner.verify_schema()


def test_name_of_an_index_is_taken(place: Place, db: pw.Database) -> None:
    old(place, db)
    db.execute_sql("CREATE TABLE elsewhere (x integer)")
    db.execute_sql("CREATE INDEX item_name ON elsewhere (x)")
    assert "elsewhere has something of that name" in refusal(db, item(name=pw.TextField(index=True))).fact


def test_what_sqlite_cannot_add(sqlite: Place) -> None:
    db = sqlite.connect()
    old(sqlite, db)
    cases = {
        "STORED": pw.IntegerField(null=True, constraints=[SQL("GENERATED ALWAYS AS (id * 2) STORED")]),
        "current_timestamp": pw.DateTimeField(constraints=[SQL("DEFAULT CURRENT_TIMESTAMP")]),
        "random": pw.IntegerField(constraints=[SQL("DEFAULT (random())")]),
        "foreign key": pw.ForeignKeyField(Owner, constraints=[SQL("DEFAULT 1")]),
    }
    for word, field in cases.items():
        assert word in refusal(db, Owner, item(added=field)).fact
    virtual = item(added=pw.IntegerField(null=True, constraints=[SQL("GENERATED ALWAYS AS (id * 2) VIRTUAL")]))
    MigrationRunner(db, [virtual]).up()
    assert not MigrationRunner(db, [virtual]).verify_schema()
    db.close()


def test_constraints_come_with_a_new_column(place: Place, db: pw.Database) -> None:
    old(place, db)
    model = item(
        of=pw.ForeignKeyField(Owner, null=True, on_delete="CASCADE", constraint_name="item_of"),
        size=pw.IntegerField(null=True, constraints=[Check("size > 1", name="item_size"), SQL("UNIQUE")]),
        width=pw.IntegerField(null=True),
    )
    model._meta.constraints = [SQL("CONSTRAINT item_width CHECK (width > 0 AND name <> '')")]
    runner = MigrationRunner(db, [Owner, model])
    runner.up()
    assert not runner.verify_schema(), str(runner.verify_schema())
    for bad in ("size = 0", "width = 0", "of_id = 77"):
        with pytest.raises(pw.IntegrityError):
            db.execute_sql(f"UPDATE item SET {bad} WHERE id = 1")


def test_primary_key_is_added_where_values_allow(postgres: Place) -> None:
    db = postgres.connect()
    db.execute_sql("CREATE TABLE item (id integer, name text NOT NULL, owner_id integer)")
    db.execute_sql("INSERT INTO item VALUES (1, 'a', 1), (1, 'b', 1)")
    model = item(id=pw.IntegerField(primary_key=True))
    assert "cannot add primary key item (id): 1 row of 2 rows" in refusal(db, model).fact
    db.close()


def test_command_line_refuses_with_exit_4_and_two_lines(place: Place, db: pw.Database) -> None:
    old(place, db)
    (place.folder / "shop.py").write_text(
        "import peewee\nclass Item(peewee.Model):\n    name = peewee.TextField()\n    weight = peewee.IntegerField()\n"
    )
    for verb in ("up", "plan"):
        done = place.run(verb, "--models", "shop", "--only-models")
        assert done.returncode == 4, done.stderr
        assert "cannot add column item.weight" in done.stderr + done.stdout
        assert "12 rows" in done.stderr + done.stdout
        assert "Traceback" not in done.stderr
    as_json = place.run("plan", "--json", "--models", "shop", "--only-models")
    refused = json.loads(as_json.stdout)["refused"]
    assert [(r["kind"], r["table"], r["name"]) for r in refused] == [("add_column", "item", "weight")]


def test_models_that_make_no_schema(place: Place, db: pw.Database) -> None:
    one, two = item(), item(other=pw.TextField(null=True))
    with pytest.raises(ModelError, match="both declare table item"):
        MigrationRunner(db, [one, two]).plan()
    with pytest.raises(ModelError, match="not defined"):
        MigrationRunner(db, [item(x=pw.DeferredForeignKey("Nowhere", null=True))]).plan()
    with pytest.raises(ModelError, match="makes no table"):
        MigrationRunner(db, [item(x=pw.TextField(constraints=[SQL("CHECK (")]))]).plan()
    with pytest.raises(ModelError, match="not a peewee model"):
        MigrationRunner(db, [object])  # type: ignore[list-item]
    with pytest.raises(ModelError, match="not supported"):
        MigrationRunner(pw.MySQLDatabase("x"))


# What new columns will hold is part of the question.


def added(place: Place, db: pw.Database, *constraints: str, **fields: pw.Field) -> type[pw.Model]:
    model = item(**fields)
    model._meta.constraints = [SQL(text) for text in constraints]
    return model


def converges(db: pw.Database, *models: type[pw.Model]) -> None:
    runner = MigrationRunner(db, list(models))
    runner.up()
    assert not runner.verify_schema(), str(runner.verify_schema())
    assert not runner.plan()


def test_generated_column_comes_after_what_it_needs(place: Place, db: pw.Database) -> None:
    old(place, db)
    kind = "VIRTUAL" if place.is_sqlite else "STORED"
    double = pw.IntegerField(null=True, constraints=[SQL(f"GENERATED ALWAYS AS (later * 2) {kind}")])
    converges(db, item(double=double, later=pw.IntegerField(constraints=[SQL("DEFAULT 4")])))
    assert db.execute_sql("SELECT DISTINCT double FROM item").fetchall() == [(8,)]


def test_check_of_a_column_may_name_a_later_one(place: Place, db: pw.Database) -> None:
    old(place, db)
    low = pw.IntegerField(null=True, constraints=[Check("low < high", name="low_high")])
    converges(db, item(low=low, high=pw.IntegerField(null=True)))


@pytest.mark.parametrize("table_level", [False, True])
def test_default_that_violates_its_own_check(place: Place, db: pw.Database, table_level: bool) -> None:
    old(place, db)
    check = [] if table_level else [Check("n > 0", name="n_positive")]
    model = item(n=pw.IntegerField(constraints=[SQL("DEFAULT 0"), *check]))
    if table_level:
        model._meta.constraints = [SQL("CONSTRAINT n_positive CHECK (n > 0 OR owner_id > 103)")]
    count = 4 if table_level else 12
    assert f"{count} rows of 12 rows violate it" in refusal(db, model).fact


def test_default_that_refers_to_no_parent(postgres: Place) -> None:
    db = postgres.connect()
    old(postgres, db)
    model = item(of=pw.ForeignKeyField(Owner, constraints=[SQL("DEFAULT 7")]))
    assert "cannot add foreign key item (of_id): 12 rows of 12 rows" in refusal(db, Owner, model).fact
    db.close()


def test_unique_generated_column(place: Place, db: pw.Database) -> None:
    old(place, db)
    kind = "VIRTUAL" if place.is_sqlite else "STORED"
    same = pw.IntegerField(null=True, unique=True, constraints=[SQL(f"GENERATED ALWAYS AS (length(name)) {kind}")])
    assert "12 rows of 12 rows" in refusal(db, item(same=same)).fact
    own = pw.IntegerField(null=True, unique=True, constraints=[SQL(f"GENERATED ALWAYS AS (id + 1) {kind}")])
    converges(db, item(own=own))


def test_unique_index_whose_predicate_names_a_new_column(place: Place, db: pw.Database) -> None:
    old(place, db)
    model = item(b=pw.TextField(constraints=[SQL("DEFAULT 'x'")]))
    model._meta.indexes = [SQL("CREATE UNIQUE INDEX item_b ON item (name) WHERE b = 'x'")]
    assert "12 rows of 12 rows" in refusal(db, model).fact


def test_null_is_no_default(place: Place, db: pw.Database) -> None:
    old(place, db)
    for default in ("DEFAULT NULL", "DEFAULT (NULL)"):
        assert "NOT NULL without a default" in refusal(db, item(n=pw.IntegerField(constraints=[SQL(default)]))).fact


def test_not_null_generated_column_that_would_be_null(place: Place, db: pw.Database) -> None:
    old(place, db)
    db.execute_sql("UPDATE item SET owner_id = NULL WHERE id < 4")
    kind = "VIRTUAL" if place.is_sqlite else "STORED"
    field = pw.IntegerField(constraints=[SQL(f"GENERATED ALWAYS AS (owner_id + 1) {kind}")])
    assert "its expression is NULL for 3 rows" in refusal(db, item(n=field)).fact


def test_forms_of_unique_in_a_column(place: Place, db: pw.Database) -> None:
    old(place, db, rows=1)
    fields = {
        "a": pw.IntegerField(null=True, constraints=[SQL("CONSTRAINT a_is_unique UNIQUE")]),
        "b": pw.IntegerField(null=True, constraints=[SQL("DEFAULT 5 UNIQUE")]),
    }
    converges(db, item(**fields))


def test_unique_column_with_a_default_of_its_own_for_each_row(postgres: Place) -> None:
    db = postgres.connect()
    old(postgres, db)
    fields = {
        "uuid": pw.UUIDField(unique=True, constraints=[SQL("DEFAULT gen_random_uuid()")]),
        "number": pw.IntegerField(unique=True, constraints=[SQL("GENERATED ALWAYS AS IDENTITY (START WITH 5)")]),
    }
    converges(db, item(**fields))
    assert db.execute_sql("SELECT min(number) FROM item").fetchone() == (5,)
    db.close()


def test_names_of_constraints_are_taken(postgres: Place) -> None:
    db = postgres.connect()
    old(postgres, db, rows=0)
    db.execute_sql("CREATE TABLE elsewhere (x integer CONSTRAINT uq UNIQUE)")
    db.execute_sql("ALTER TABLE item ADD CONSTRAINT cc UNIQUE (id, name)")
    for text, word in (
        ("CONSTRAINT uq UNIQUE (name)", "elsewhere"),
        ("CONSTRAINT cc CHECK (id > 0)", "another of that"),
    ):
        assert word in refusal(db, added(postgres, db, text)).fact
    db.execute_sql("DROP TABLE item")
    model = added(postgres, db, "CONSTRAINT uq UNIQUE (name)")
    (refused,) = MigrationRunner(db, [model]).plan().refused
    assert "elsewhere has something of that name" in refused.reason
    db.close()


def test_parent_that_is_a_view(postgres: Place) -> None:
    db = postgres.connect()
    old(postgres, db, rows=0)
    db.execute_sql("CREATE VIEW owner AS SELECT 1 AS id, 'x'::text AS code")
    model = item(of=pw.ForeignKeyField(Owner, null=True))
    assert "table owner is a view" in refusal(db, Owner, model).fact
    db.close()


def test_history_that_does_not_take_the_run(place: Place, db: pw.Database) -> None:
    """A conflict that is not of the version ends the run; it is not tried for ever."""
    old(place, db, rows=1)
    db.execute_sql(
        "CREATE TABLE migration_versions (version bigint primary key, name text not null unique, applied_at timestamp, "
        "other integer not null default 1 CHECK (other > 0))"
    )
    db.execute_sql("INSERT INTO migration_versions (version, name) VALUES (5, 'auto_migration')")
    with pytest.raises(StepFailed, match="cannot be recorded"):
        MigrationRunner(db, [item(extra=pw.TextField(null=True))]).up()
    assert "extra" not in [column.name for column in db.get_columns("item")]


def test_version_that_is_no_number(place: Place, db: pw.Database) -> None:
    db.execute_sql("CREATE TABLE migration_versions (version varchar(9) primary key, name text, applied_at text)")
    db.execute_sql("INSERT INTO migration_versions VALUES ('v1.2', 'x', NULL)")
    with pytest.raises(WhatspireDBError, match="not a number"):
        MigrationRunner(db).version()


def test_outcome_that_is_not_the_declared_schema_is_rolled_back(
    place: Place, db: pw.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    old(place, db, rows=1)

    def something_else(self: Applying, step: Step) -> None:
        self.db.execute_sql("CREATE TABLE IF NOT EXISTS other (id integer)")

    monkeypatch.setattr(Applying, "_execute", something_else)
    with pytest.raises(VerificationFailed, match="column item.extra"):
        MigrationRunner(db, [item(extra=pw.TextField(null=True))]).up()
    assert "other" not in db.get_tables()


# Names that need quotes, and what the engines make of a value.


@pytest.mark.soak
@pytest.mark.parametrize("name", ["order", "group", "my col", 'a"b', "it's", "Select"])
def test_names_that_need_quotes(place: Place, db: pw.Database, name: str) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    db.execute_sql(f"CREATE TABLE item (id INTEGER NOT NULL PRIMARY KEY, {quoted} text NOT NULL)")
    db.execute_sql(f"INSERT INTO item (id, {quoted}) VALUES (1, 'a'), (2, 'a')")

    def model(*indexes: str, **more: object) -> type[pw.Model]:
        own = {"table_name": "item", "legacy_table_names": False, "indexes": [SQL(i) for i in indexes]}
        fields = {"id": pw.IntegerField(primary_key=True), "value": pw.TextField(column_name=name), **more}
        return type("Item", (pw.Model,), {**fields, "Meta": type("Meta", (), own)})

    for index in (f"({quoted})", f"(lower({quoted}))", f"(({quoted} || 'x'))", f"({quoted}) WHERE {quoted} = 'a'"):
        assert "2 rows of 2 rows" in refusal(db, model(f"CREATE UNIQUE INDEX item_u ON item {index}")).fact
    kind = "VIRTUAL" if place.is_sqlite else "STORED"
    generated = pw.TextField(null=True, unique=True, constraints=[SQL(f"GENERATED ALWAYS AS (lower({quoted})) {kind}")])
    assert "2 rows of 2 rows" in refusal(db, model(more=generated)).fact
    checked = pw.IntegerField(constraints=[SQL("DEFAULT 0"), Check(f"{quoted} = 'b' OR n > 0")])
    assert "violate it" in refusal(db, model(n=checked)).fact
    converges(db, model(f"CREATE INDEX item_u ON item ({quoted})", n=pw.IntegerField(null=True)))


@pytest.mark.parametrize("default", ["'abc'", '"abc"', "1e-5", "0x10", "-1.5", "x'0aff'", "(7)", "TRUE"])
def test_constants_that_sqlite_adds(sqlite: Place, default: str) -> None:
    db = sqlite.connect()
    old(sqlite, db, rows=1)
    converges(db, item(n=pw.BareField(null=True, constraints=[SQL(f"DEFAULT {default}")])))
    db.close()


def test_expression_that_starts_and_ends_like_a_text(sqlite: Place) -> None:
    db = sqlite.connect()
    old(sqlite, db, rows=1)
    assert "cannot add the default" in refusal(db, item(n=pw.TextField(constraints=[SQL("DEFAULT ('a' || 'b')")]))).fact
    db.close()


def test_default_is_checked_as_the_column_holds_it(sqlite: Place) -> None:
    db = sqlite.connect()
    old(sqlite, db, rows=1)
    fields = {
        "a": pw.TextField(constraints=[SQL("DEFAULT 5"), Check("a IN ('5', '6')")]),
        "b": pw.TextField(collation="NOCASE", constraints=[SQL("DEFAULT 'ABC'"), Check("b = 'abc'")]),
    }
    converges(db, item(**fields))
    db.close()


def test_planning_moves_no_sequence(postgres: Place) -> None:
    db = postgres.connect()
    old(postgres, db)
    db.execute_sql("CREATE SEQUENCE sq")
    model = item(n=pw.IntegerField(unique=True, constraints=[SQL("DEFAULT nextval('sq')"), Check("n > 0")]))
    assert MigrationRunner(db, [model]).plan()
    assert db.execute_sql("SELECT is_called FROM sq").fetchone() == (False,)
    converges(db, model)
    assert db.execute_sql("SELECT last_value FROM sq").fetchone() == (12,)
    db.close()


def test_types_and_functions_of_another_schema(postgres: Place) -> None:
    db = postgres.connect()
    db.execute_sql("CREATE SCHEMA app")
    db.execute_sql("CREATE TYPE app.mood AS ENUM ('a', 'b')")
    db.execute_sql("CREATE FUNCTION app.f(x int) RETURNS bool IMMUTABLE LANGUAGE sql RETURN x > 0")
    db.execute_sql("CREATE TABLE app.item (id serial PRIMARY KEY, name text NOT NULL, owner_id integer)")
    db.execute_sql("INSERT INTO app.item (name) VALUES ('x'), ('y')")

    class Mood(pw.Field):
        field_type = "app.mood"

    model = item(mood=Mood(constraints=[SQL("DEFAULT 'b'"), Check("mood = 'b'::app.mood")]))
    model._meta.schema = "app"
    model._meta.constraints = [SQL("CONSTRAINT positive CHECK (app.f(id))")]
    planned = MigrationRunner(db, [model]).plan().sql()
    converges(db, model)
    assert "SET LOCAL search_path" in planned
    assert db.execute_sql("SHOW search_path").fetchone() == ('"$user", public',)
    db.close()


def test_reference_written_as_text(place: Place, db: pw.Database) -> None:
    class Zparent(pw.Model):
        a = pw.IntegerField()
        b = pw.IntegerField()

        class Meta:
            table_name = "zp"
            primary_key = pw.CompositeKey("a", "b")

    class Kid(pw.Model):
        x = pw.IntegerField()
        y = pw.IntegerField()

        class Meta:
            table_name = "kid"
            constraints = [SQL('FOREIGN KEY (x, y) REFERENCES "zp" (a, b)')]

    converges(db, Zparent, Kid)
    with pytest.raises(pw.IntegrityError):
        db.execute_sql("INSERT INTO kid (x, y) VALUES (1, 2)")


def test_null_keys_are_counted_once(postgres: Place) -> None:
    db = postgres.connect()
    db.execute_sql("CREATE TABLE item (id integer, name text NOT NULL, owner_id integer)")
    db.execute_sql("INSERT INTO item VALUES (NULL, 'a', 1), (NULL, 'b', 1), (3, 'c', 1)")
    assert "2 rows of 3 rows" in refusal(db, item(id=pw.IntegerField(primary_key=True))).fact
    db.close()


@pytest.mark.parametrize("written", ["Item_By_Name", '"Item_By_Name"', '"item ""by"" name"'])
def test_index_is_made_under_its_name_however_that_is_written(place: Place, db: pw.Database, written: str) -> None:
    old(place, db)
    model = item()
    model._meta.indexes = [SQL(f"CREATE INDEX {written} ON item (name)")]
    converges(db, model)


TAKEN = {
    "a check has the name of a unique constraint": ("UNIQUE (b)", "CONSTRAINT taken CHECK (b > 5)"),
    "a unique constraint has the name of a check": ("CHECK (b > 5)", "CONSTRAINT taken UNIQUE (b)"),
    "a primary key has the name of a unique constraint": ("UNIQUE (b)", "CONSTRAINT taken PRIMARY KEY (b)"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_constraint_whose_name_another_of_the_table_has_is_refused(postgres: Place, case: str) -> None:
    declared, live = TAKEN[case]

    class T(pw.Model):
        b = pw.IntegerField(null=True)

        class Meta:
            table_name = "t"
            primary_key = False
            constraints = [SQL(f"CONSTRAINT taken {declared}")]

    db = postgres.connect()
    with db.connection_context():
        db.execute_sql(f"CREATE TABLE t (b integer, {live})")
        (refusal,) = MigrationRunner(db, [T]).plan().refused
    assert "another" in refusal.hint


def test_an_index_whose_name_another_of_the_table_has_is_refused(place: Place) -> None:
    class T(pw.Model):
        a = pw.IntegerField(index=True)
        b = pw.IntegerField(index=True)

        class Meta:
            table_name = "t"

    db = place.connect()
    key = "INTEGER NOT NULL PRIMARY KEY" if place.is_sqlite else "serial PRIMARY KEY"
    with db.connection_context():
        db.execute_sql(f"CREATE TABLE t (id {key}, a integer NOT NULL, b integer NOT NULL)")
        db.execute_sql("CREATE INDEX t_a ON t (b)")
        (refusal,) = MigrationRunner(db, [T]).plan().refused
    assert (refusal.name, refusal.hint) == ("t_a", "give the index another name")


def test_a_trigger_may_have_the_name_of_an_index(sqlite: Place) -> None:
    class T(pw.Model):
        a = pw.IntegerField(index=True)

        class Meta:
            table_name = "t"

    db = sqlite.connect()
    with db.connection_context():
        db.execute_sql("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a INTEGER NOT NULL)")
        db.execute_sql("CREATE TABLE other (id INTEGER)")
        db.execute_sql("CREATE TRIGGER t_a AFTER DELETE ON other BEGIN SELECT 1; END")
        assert [step.name for step in MigrationRunner(db, [T]).up().applied if step.table == "t"] == ["t_a"]
