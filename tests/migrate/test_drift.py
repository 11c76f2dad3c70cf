"""Differences that adding cannot mend: each is named with both values, and none is touched."""

from __future__ import annotations

import peewee as pw
import pytest
from peewee import SQL, Check

from tests.conftest import Place, stamp
from whatspire_db import MigrationRunner

pytestmark = pytest.mark.sampled


class Parent(pw.Model):
    code = pw.CharField(max_length=20, unique=True)

    class Meta:
        table_name = "parent"


class Thing(pw.Model):
    name = pw.CharField(max_length=20)
    size = pw.DecimalField(max_digits=10, decimal_places=2, constraints=[SQL("DEFAULT 1")])
    note = pw.TextField(null=True)
    a = pw.IntegerField(constraints=[Check("a > 0", name="thing_a_positive")])
    b = pw.IntegerField()
    parent = pw.ForeignKeyField(Parent, on_delete="CASCADE", index=False, constraint_name="thing_parent")

    class Meta:
        table_name = "thing"
        constraints = [SQL("CONSTRAINT thing_b CHECK (b <> 7)")]
        indexes = [
            SQL("CREATE INDEX thing_ab ON thing (a, b DESC)"),
            SQL("CREATE UNIQUE INDEX thing_name ON thing (name)"),
            SQL("CREATE INDEX thing_part ON thing (b) WHERE b > 5"),
            SQL("CREATE INDEX thing_lower ON thing (lower(name))"),
        ]


MODELS = [Parent, Thing]
SQLITE_THING = (
    'CREATE TABLE "thing" ("id" INTEGER NOT NULL PRIMARY KEY, "name" VARCHAR(20) NOT NULL, '
    '"size" DECIMAL(10, 2) NOT NULL DEFAULT 1, "note" TEXT, '
    '"a" INTEGER NOT NULL CONSTRAINT "thing_a_positive" CHECK (a > 0), "b" INTEGER NOT NULL, '
    '"parent_id" INTEGER NOT NULL, CONSTRAINT "thing_parent" FOREIGN KEY ("parent_id") REFERENCES "parent" ("id") '
    "ON DELETE CASCADE, CONSTRAINT thing_b CHECK (b <> 7))"
)


def reindex(name: str, sql: str) -> list[str]:
    return [f"DROP INDEX {name}", sql]


# what is done to the live database; the kind, the name, and a part of the declared and of the live value
COMMON = {
    "index columns": (
        reindex("thing_ab", "CREATE INDEX thing_ab ON thing (b, a DESC)"),
        "index",
        "thing_ab",
        "a, b",
        "b, a",
    ),
    "index order": (
        reindex("thing_ab", "CREATE INDEX thing_ab ON thing (a, b)"),
        "index",
        "thing_ab",
        "b DESC",
        "(a, b)",
    ),
    "predicate dropped": (
        reindex("thing_part", "CREATE INDEX thing_part ON thing (b)"),
        "index",
        "thing_part",
        "WHERE",
        "(b)",
    ),
    "predicate changed": (
        reindex("thing_part", "CREATE INDEX thing_part ON thing (b) WHERE b > 6"),
        "index",
        "thing_part",
        "5",
        "6",
    ),
    "predicate added": (
        reindex("thing_ab", "CREATE INDEX thing_ab ON thing (a, b DESC) WHERE a > 1"),
        "index",
        "thing_ab",
        "DESC",
        "WHERE",
    ),
    "unique to plain": (
        reindex("thing_name", "CREATE INDEX thing_name ON thing (name)"),
        "index",
        "thing_name",
        "UNIQUE",
        "(name)",
    ),
    "plain to unique": (
        reindex("thing_part", "CREATE UNIQUE INDEX thing_part ON thing (b) WHERE b > 5"),
        "index",
        "thing_part",
        "(b)",
        "UNIQUE",
    ),
    "expression": (
        reindex("thing_lower", "CREATE INDEX thing_lower ON thing (upper(name))"),
        "index",
        "thing_lower",
        "lower",
        "upper",
    ),
}

POSTGRES = {
    **COMMON,
    "type": (["ALTER TABLE thing ALTER b TYPE bigint"], "column_type", "b", "integer", "bigint"),
    "length": (["ALTER TABLE thing ALTER name TYPE varchar(50)"], "column_type", "name", "varying(20)", "varying(50)"),
    "precision": (["ALTER TABLE thing ALTER size TYPE numeric(12,3)"], "column_type", "size", "(10,2)", "(12,3)"),
    "nullable": (["ALTER TABLE thing ALTER b DROP NOT NULL"], "column_null", "b", "NOT NULL", "NULL"),
    "not nullable": (["ALTER TABLE thing ALTER note SET NOT NULL"], "column_null", "note", "NULL", "NOT NULL"),
    "default changed": (["ALTER TABLE thing ALTER size SET DEFAULT 2"], "column_default", "size", "1", "2"),
    "default dropped": (["ALTER TABLE thing ALTER size DROP DEFAULT"], "column_default", "size", "1", None),
    "default added": (["ALTER TABLE thing ALTER note SET DEFAULT 'x'"], "column_default", "note", None, "'x'"),
    "serial to none": (["ALTER TABLE thing ALTER id DROP DEFAULT"], "column_default", "id", "sequence", None),
    "serial to identity": (
        ["ALTER TABLE thing ALTER id DROP DEFAULT", "ALTER TABLE thing ALTER id ADD GENERATED ALWAYS AS IDENTITY"],
        "column_identity", "id", None, "ALWAYS",
    ),
    "collation": (['ALTER TABLE thing ALTER note TYPE text COLLATE "C"'], "column_collation", "note", None, '"C"'),
    "generated": (
        ["ALTER TABLE thing DROP COLUMN note", "ALTER TABLE thing ADD note text GENERATED ALWAYS AS ('x') STORED"],
        "column_generated", "note", None, "STORED",
    ),
    "check text": (
        ["ALTER TABLE thing DROP CONSTRAINT thing_b", "ALTER TABLE thing ADD CONSTRAINT thing_b CHECK (b <> 8)"],
        "check", "thing_b", "7", "8",
    ),
    "foreign key action": (
        ["ALTER TABLE thing DROP CONSTRAINT thing_parent",
         "ALTER TABLE thing ADD CONSTRAINT thing_parent FOREIGN KEY (parent_id) REFERENCES parent (id)"],
        "foreign_key", "thing_parent", "CASCADE", "REFERENCES",
    ),
    "foreign key renamed, other action": (
        ["ALTER TABLE thing DROP CONSTRAINT thing_parent",
         "ALTER TABLE thing ADD CONSTRAINT other FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE SET NULL"],
        "foreign_key", "thing_parent", "CASCADE", "SET NULL",
    ),
    "foreign key target": (
        ["ALTER TABLE parent ADD other int UNIQUE", "UPDATE parent SET other = id", "ALTER TABLE thing DROP CONSTRAINT thing_parent",
         "ALTER TABLE thing ADD CONSTRAINT thing_parent FOREIGN KEY (parent_id) REFERENCES parent (other) ON DELETE CASCADE"],
        "foreign_key", "thing_parent", '("id")', '("other")',
    ),
    "foreign key deferrable": (
        ["ALTER TABLE thing ALTER CONSTRAINT thing_parent DEFERRABLE"], "foreign_key", "thing_parent", "CASCADE", "DEFERRABLE"
    ),
    "primary key": (
        ["ALTER TABLE thing DROP CONSTRAINT thing_pkey", "ALTER TABLE thing ADD PRIMARY KEY (id, b)"],
        "primary_key", "thing_pkey", "(id)", "(id, b)",
    ),
    "primary key include": (
        ["ALTER TABLE thing DROP CONSTRAINT thing_pkey", "ALTER TABLE thing ADD PRIMARY KEY (id) INCLUDE (a)"],
        "primary_key", "thing_pkey", "(id)", "INCLUDE (a)",
    ),
    "primary key invalid": (
        ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'thing_pkey'::regclass"],
        "primary_key", "thing_pkey", "(id)", "NOT VALID",
    ),
    "foreign key action on some columns": (
        ["ALTER TABLE thing DROP CONSTRAINT thing_parent",
         "ALTER TABLE thing ADD CONSTRAINT thing_parent FOREIGN KEY (parent_id) REFERENCES parent (id)"
         " ON DELETE SET NULL (parent_id)"],
        "foreign_key", "thing_parent", "CASCADE", 'SET NULL ("parent_id")',
    ),
    "unlogged": (["ALTER TABLE thing SET UNLOGGED"], "table", "thing", "plain", "UNLOGGED"),
    "index method": (reindex("thing_part", "CREATE INDEX thing_part ON thing USING hash (b) WHERE b > 5"),
                     "index", "thing_part", "btree", "hash"),
    "index include": (reindex("thing_ab", "CREATE INDEX thing_ab ON thing (a, b DESC) INCLUDE (name)"),
                      "index", "thing_ab", "DESC", "INCLUDE"),
    "index nulls": (reindex("thing_ab", "CREATE INDEX thing_ab ON thing (a NULLS FIRST, b DESC)"),
                    "index", "thing_ab", "(a, b", "NULLS FIRST"),
    "index opclass": (reindex("thing_name", "CREATE UNIQUE INDEX thing_name ON thing (name text_pattern_ops)"),
                      "index", "thing_name", "(name)", "text_pattern_ops"),
    "index collation": (reindex("thing_name", 'CREATE UNIQUE INDEX thing_name ON thing (name COLLATE "C")'),
                        "index", "thing_name", "(name)", '"C"'),
    "nulls not distinct": (
        reindex("thing_name", "CREATE UNIQUE INDEX thing_name ON thing (name) NULLS NOT DISTINCT"),
        "index", "thing_name", "(name)", "NULLS NOT DISTINCT",
    ),
    "view in the place": (
        ["ALTER TABLE thing RENAME TO thing_old", "CREATE VIEW thing AS SELECT * FROM thing_old"],
        "table", "thing", "table", "view",
    ),
}  # fmt: skip


def remade(old: str, new: str) -> list[str]:
    return ["DROP TABLE thing", SQLITE_THING.replace(old, new), *(i.sql for i in Thing._meta.indexes)]


SQLITE = {
    **COMMON,
    "type": (remade('"b" INTEGER', '"b" BIGINT'), "column_type", "b", "integer", "bigint"),
    "length": (remade("VARCHAR(20)", "VARCHAR(50)"), "column_type", "name", "varchar(20)", "varchar(50)"),
    "precision": (remade("DECIMAL(10, 2)", "DECIMAL(12, 3)"), "column_type", "size", "(10,2)", "(12,3)"),
    "nullable": (remade('"b" INTEGER NOT NULL', '"b" INTEGER'), "column_null", "b", "NOT NULL", "NULL"),
    "not nullable": (remade('"note" TEXT', '"note" TEXT NOT NULL'), "column_null", "note", "NULL", "NOT NULL"),
    "default changed": (remade("DEFAULT 1", "DEFAULT 2"), "column_default", "size", "1", "2"),
    "default dropped": (remade(" DEFAULT 1", ""), "column_default", "size", "1", None),
    "collation": (remade('"note" TEXT', '"note" TEXT COLLATE NOCASE'), "column_collation", "note", None, "nocase"),
    "check text": (remade("b <> 7", "b <> 8"), "check", "thing_b", "7", "8"),
    "check of a column": (remade("a > 0", "a >= 0"), "check", "thing_a_positive", "> 0", ">= 0"),
    "check dropped": (remade(", CONSTRAINT thing_b CHECK (b <> 7)", ""), "check", "thing_b", "7", None),
    "foreign key action": (remade(" ON DELETE CASCADE", ""), "foreign_key", "thing_parent", "CASCADE", "references"),
    "foreign key target": (remade('"parent" ("id")', '"parent" ("code")'), "foreign_key", "thing_parent", "(id)", "(code)"),
    "foreign key dropped": (
        remade(
            ', CONSTRAINT "thing_parent" FOREIGN KEY ("parent_id") REFERENCES "parent" ("id") ON DELETE CASCADE', ""
        ),
        "foreign_key", "thing_parent", "CASCADE", None,
    ),
    "foreign key deferrable": (
        remade("CASCADE", "CASCADE DEFERRABLE INITIALLY DEFERRED"), "foreign_key", "thing_parent", "CASCADE", "DEFERRED"
    ),
    "primary key": (
        remade(
            SQLITE_THING,
            SQLITE_THING.replace(" PRIMARY KEY", "").replace("CONSTRAINT thing_b", "PRIMARY KEY (id, b), CONSTRAINT thing_b"),
        ),
        "primary_key", "id", "(id)", "(id, b)",
    ),
    "on conflict of a column": (
        remade('"b" INTEGER NOT NULL', '"b" INTEGER NOT NULL ON CONFLICT IGNORE'), "table", "thing", "plain", "IGNORE",
    ),
    "on conflict of a table": (
        remade('"id" INTEGER NOT NULL PRIMARY KEY', '"id" INTEGER NOT NULL PRIMARY KEY ON CONFLICT REPLACE'),
        "table", "thing", "plain", "REPLACE",
    ),
    "primary key that is no rowid": (
        remade("PRIMARY KEY", "PRIMARY KEY DESC"), "table", "thing", "plain", "PRIMARY KEY DESC",
    ),
    "check with a quoted number": (remade("a > 0", 'a > "0"'), "check", "thing_a_positive", "a > 0", "a > '0'"),
    "autoincrement": (remade("PRIMARY KEY", "PRIMARY KEY AUTOINCREMENT"), "table", "thing", "plain", "AUTOINCREMENT"),
    "strict": (remade(SQLITE_THING, SQLITE_THING.replace("VARCHAR(20)", "TEXT").replace("DECIMAL(10, 2)", "REAL") + " STRICT"),
               "table", "thing", "plain", "STRICT"),
    "generated": (remade('"note" TEXT', '"note" TEXT AS (name) VIRTUAL'), "column_generated", "note", None, "VIRTUAL"),
    "index collation": (reindex("thing_name", "CREATE UNIQUE INDEX thing_name ON thing (name COLLATE NOCASE)"),
                        "index", "thing_name", "(name)", "nocase"),
    "view in the place": (
        ["ALTER TABLE thing RENAME TO thing_old", "CREATE VIEW thing AS SELECT * FROM thing_old"],
        "table", "thing", "table", "view",
    ),
}  # fmt: skip

CASES = [pytest.param("sqlite", case, id=f"sqlite-{case}") for case in SQLITE]
CASES += [pytest.param("postgres", case, id=f"postgres-{case}") for case in POSTGRES]


def fill(db: pw.Database, place: Place) -> None:
    with db.bind_ctx(MODELS):
        db.create_tables(MODELS)
        parent = Parent.create(code="p")
        if place.is_sqlite:
            assert db.execute_sql("SELECT sql FROM sqlite_master WHERE name = 'thing'").fetchone()[0] == SQLITE_THING
        else:
            Thing.create(name="n", size=1, note="x", a=1, b=6, parent=parent)


@pytest.mark.parametrize(("engine", "case"), CASES)
def test_drift_is_named_and_left_alone(request: pytest.FixtureRequest, engine: str, case: str) -> None:
    place: Place = request.getfixturevalue(engine)
    statements, kind, name, declared, live = (SQLITE if place.is_sqlite else POSTGRES)[case]
    db = place.connect()
    fill(db, place)
    runner = MigrationRunner(db, MODELS)
    assert not runner.verify_schema()
    stamp(db, MODELS)
    for statement in statements:
        db.execute_sql(statement)
    before = snapshot(db)
    changes = runner.verify_schema()
    found = [d for d in changes.drift if (d.kind, d.name) == (kind, name)]
    assert len(found) == 1, str(changes)
    for shown, part in ((found[0].declared, declared), (found[0].live, live)):
        assert (shown is None) if part is None else (part.lower() in str(shown).lower()), str(found[0])
    assert found[0].declared != found[0].live
    assert runner.plan().pending == ()
    assert found[0] in runner.up().drift
    assert snapshot(db) == before
    assert found[0] in runner.verify_schema().drift
    db.close()


def snapshot(db: pw.Database) -> object:
    if isinstance(db, pw.SqliteDatabase):
        return db.execute_sql("SELECT * FROM sqlite_master ORDER BY name").fetchall()
    return db.execute_sql(
        "SELECT 'c', conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace "
        "UNION ALL SELECT 'i', indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' "
        "UNION ALL SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public' "
        "ORDER BY 1, 2, 3"
    ).fetchall()


def test_command_line_names_drift_and_exits_4(place: Place, db: pw.Database) -> None:
    MigrationRunner(db).up()
    db.execute_sql("DROP INDEX idx_sessions_status")
    db.execute_sql("CREATE INDEX idx_sessions_status ON sessions (name)")
    done = place.run("verify")
    assert done.returncode == 4
    assert "index sessions.idx_sessions_status: declared" in done.stdout
    assert "(status), live" in done.stdout
    up = place.run("up")
    assert up.returncode == 0
    assert "1 difference that adding cannot mend" in up.stdout


def test_unknown_things_are_extra_and_in_sync(place: Place, db: pw.Database) -> None:
    MigrationRunner(db).up()
    db.execute_sql("ALTER TABLE sessions ADD COLUMN mine integer")
    db.execute_sql("CREATE INDEX mine ON sessions (mine)")
    db.execute_sql("CREATE TABLE mine_too (id integer)")
    changes = MigrationRunner(db).verify_schema()
    assert not changes
    assert {(e.kind, e.name) for e in changes.extra} == {("column", "mine"), ("index", "mine"), ("table", "mine_too")}
    assert place.run("verify").returncode == 0


def test_what_does_the_same_under_another_name_is_no_difference(place: Place, db: pw.Database) -> None:
    MigrationRunner(db).up()
    db.execute_sql("DROP INDEX idx_sessions_status")
    db.execute_sql("CREATE INDEX by_status ON sessions (status)")
    runner = MigrationRunner(db)
    assert not runner.verify_schema()
    assert not runner.plan()
    db.execute_sql("CREATE INDEX idx_sessions_status ON sessions (status)")
    assert [e.name for e in runner.verify_schema().extra] == ["by_status"]


def test_another_unique_constraint_of_sqlite_is_not_ours(sqlite: Place) -> None:
    class Pair(pw.Model):
        a = pw.IntegerField()
        b = pw.IntegerField()

        class Meta:
            table_name = "pair"
            constraints = [SQL("UNIQUE (a, b)")]

    db = sqlite.connect()
    db.execute_sql(
        "CREATE TABLE pair (id INTEGER NOT NULL PRIMARY KEY, a INTEGER NOT NULL, b INTEGER NOT NULL, UNIQUE (b))"
    )
    runner = MigrationRunner(db, [Pair])
    assert [step.name for step in runner.up().applied if step.table == "pair"] == ["pair_a_b_unique"]
    changes = runner.verify_schema()
    assert not changes
    assert [extra.kind for extra in changes.extra] == ["index"]
    db.close()


def test_counting_of_an_identity(postgres: Place) -> None:
    class Counted(pw.Model):
        id = pw.IdentityField()

        class Meta:
            table_name = "counted"

    db = postgres.connect()
    with db.bind_ctx([Counted]):
        db.create_tables([Counted])
        runner = MigrationRunner(db, [Counted])
        assert not runner.verify_schema()
        db.execute_sql("ALTER TABLE counted ALTER id SET INCREMENT BY 5")
        (drift,) = runner.verify_schema().drift
        assert (drift.kind, drift.declared) == ("column_identity", "BY DEFAULT")
        assert "INCREMENT 5" in str(drift.live)


def test_spellings_that_sqlite_reads_alike_are_no_difference(sqlite: Place) -> None:
    class Spelled(pw.Model):
        name = pw.TextField(constraints=[SQL("DEFAULT 'x'"), Check("spelled.name <> ''")], collation="NOCASE")
        on = pw.IntegerField(column_name="on", constraints=[SQL("DEFAULT true")])
        small = pw.FloatField(constraints=[SQL("DEFAULT 1e-5"), Check('"on" > 0 AND small < 1E5')])

        class Meta:
            table_name = "spelled"

    db = sqlite.connect()
    db.execute_sql(
        "create table 'spelled' ('id' integer not null /* , ( */ primary key, -- a comment, with (\n"
        "[name] text NOT NULL default \"x\" check (\"spelled\".[name]<>'') collate 'nocase',"
        "`on` integer not null default 1, small real not null default 1E-5 check ([ON] > 0 and small < 1e5))"
    )
    changes = MigrationRunner(db, [Spelled]).verify_schema()
    assert not changes, str(changes)
    db.close()


def test_unique_constraint_and_unique_index(postgres: Place) -> None:
    """A constraint does all that a unique index does, unless it is deferrable; an index is no constraint."""

    def model(*constraints: str, **name: object) -> type[pw.Model]:
        meta = {"table_name": "one", "constraints": [SQL(c) for c in constraints]}
        return type("One", (pw.Model,), {"name": pw.TextField(**name), "Meta": type("Meta", (), meta)})

    db = postgres.connect()
    with_index, with_constraint = model(unique=True), model("CONSTRAINT one_name UNIQUE (name)")
    MigrationRunner(db, [with_index]).up()
    (drift,) = MigrationRunner(db, [with_constraint]).verify_schema().drift
    assert (drift.kind, "as constraint UNIQUE" in str(drift.declared)) == ("index", True)
    db.execute_sql("DROP TABLE one")
    MigrationRunner(db, [with_constraint]).up()
    assert not MigrationRunner(db, [with_index]).verify_schema()
    db.execute_sql("ALTER TABLE one DROP CONSTRAINT one_name, ADD CONSTRAINT one_name UNIQUE (name) DEFERRABLE")
    (drift,) = MigrationRunner(db, [with_index]).verify_schema().drift
    assert "DEFERRABLE" in str(drift.live)
    db.close()
