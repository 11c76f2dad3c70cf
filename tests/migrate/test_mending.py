"""verify --sql: its output, run in the engine's own shell, mends the drift, and nothing is lost or half done."""

from __future__ import annotations

import json
from collections.abc import Sequence

import peewee as pw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peewee import SQL

from tests.conftest import Place
from tests.migrate import test_drift
from tests.migrate.mended import mending, objects, rows, run, with_failure
from tests.migrate.test_drift import SQLITE_THING, Thing, reindex
from whatspire_db import MigrationRunner
from whatspire_db.migrate.diff import Changes, Drift
from whatspire_db.migrate.mending import Mending, is_comment

MODELS = test_drift.MODELS
# What other programs have there beside the models, and what must stay; each engine says it in its own way.
BESIDE = {
    "sqlite": [
        "ALTER TABLE thing ADD COLUMN own TEXT COLLATE NOCASE DEFAULT 'o' CHECK (own <> 'bad')",
        "CREATE INDEX thing_own ON thing (own) WHERE a > 0",
        "CREATE TABLE seen (what TEXT)",
        "CREATE TABLE child (id INTEGER PRIMARY KEY, thing INTEGER REFERENCES thing (id) ON DELETE CASCADE)",
        "CREATE VIEW things AS SELECT id, a FROM thing",
        "CREATE VIEW broken AS SELECT gone FROM nowhere",
        "CREATE TRIGGER thing_seen AFTER INSERT ON thing BEGIN INSERT INTO seen VALUES (new.name || ';'); END",
        "CREATE TRIGGER child_seen AFTER INSERT ON child BEGIN INSERT INTO seen SELECT name FROM thing; END",
        "CREATE TRIGGER things_in INSTEAD OF INSERT ON things BEGIN INSERT INTO seen VALUES ('view'); END",
    ],
    "postgres": [
        "ALTER TABLE thing ADD COLUMN own TEXT DEFAULT 'o' CHECK (own <> 'bad')",
        "CREATE INDEX thing_own ON thing (own) WHERE own <> ''",
        "CREATE TABLE seen (what TEXT)",
        "CREATE VIEW things AS SELECT a FROM thing",
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO seen VALUES (new.name); RETURN new; END'",
        "CREATE TRIGGER thing_seen AFTER INSERT ON thing FOR EACH ROW EXECUTE FUNCTION see()",
    ],
}
TABLES = ("parent", "thing", "seen")


def fill(db: pw.Database, place: Place, statements: Sequence[str]) -> None:
    """Make the models' tables, damage them, and put rows and other programs' things beside."""
    with db.bind_ctx(MODELS):
        db.create_tables(MODELS)
        for statement in [*statements, *BESIDE[place.driver]]:
            db.execute_sql(statement)
        db.execute_sql("INSERT INTO parent (code) VALUES ('p'), ('q')")
    for number in (1, 2, 40):
        override = "" if place.is_sqlite else "OVERRIDING SYSTEM VALUE"
        db.execute_sql(
            f"INSERT INTO thing (id, name, size, note, a, b, parent_id) {override} "
            f"VALUES ({number}, 'n{number}', 1, 'x', 1, 6, 1)"
        )
    if not place.is_sqlite:
        db.execute_sql("SELECT setval(pg_get_serial_sequence('thing', 'id'), 40)")
    else:
        db.execute_sql("INSERT INTO child (thing) SELECT id FROM thing")
    db.execute_sql("DELETE FROM thing WHERE id = 40")


def remaining(place: Place, models: Sequence[type[pw.Model]] = MODELS) -> list[str]:
    db = place.connect()
    with db.connection_context():
        changes = MigrationRunner(db, list(models)).verify_schema()
    return [str(item) for item in (*changes.missing, *changes.drift)]


# What is gone because it was mended.
GONE = {("constraint", "other", ""), ("table", "sqlite_sequence", None), ("sequence", "thing", 40)}


def everything(place: Place) -> tuple[object, set[tuple[object, ...]]]:
    db = place.connect()
    with db.connection_context():
        return rows(db, *TABLES), objects(db)


def mend(place: Place) -> None:
    """Run what verify --sql says, and compare what was there with what is."""
    before = everything(place)
    assert remaining(place)
    assert run(place, str(mending(place, MODELS))) == ""
    assert remaining(place) == []
    found = everything(place)
    assert found[0] == before[0]
    assert before[1] - found[1] - GONE == set()
    db = place.connect()
    if place.is_sqlite:
        assert db.execute_sql("PRAGMA integrity_check").fetchall() == [("ok",)]
    (key,) = db.execute_sql(
        "INSERT INTO thing (name, size, note, a, b, parent_id) VALUES ('new', 1, 'x', 1, 6, 1) RETURNING id"
    ).fetchone()
    assert key > 2
    db.close()


# Those of test_drift that make no row, or that have no safe statement.
WITHOUT_STATEMENT = {"view in the place"}
NO_ROWS = {"foreign key target", "generated", "primary key", "primary key that is no rowid", "plain to unique"}
CASES = [case for case in test_drift.CASES if case.values[1] not in WITHOUT_STATEMENT | NO_ROWS]


@pytest.mark.sampled
@pytest.mark.parametrize(("engine", "case"), CASES)
def test_each_kind_of_drift_is_mended(request: pytest.FixtureRequest, engine: str, case: str) -> None:
    place: Place = request.getfixturevalue(engine)
    db = place.connect()
    fill(db, place, (test_drift.SQLITE if place.is_sqlite else test_drift.POSTGRES)[case][0])
    db.close()
    mend(place)


OF_ENGINES = {"sqlite": test_drift.SQLITE, "postgres": test_drift.POSTGRES}


@pytest.mark.parametrize(
    ("engine", "case"),
    [(engine, case) for engine in OF_ENGINES for case in sorted(NO_ROWS) if case in OF_ENGINES[engine]],
)
def test_drift_of_keys_and_generated_columns_is_mended(request: pytest.FixtureRequest, engine: str, case: str) -> None:
    place: Place = request.getfixturevalue(engine)
    cases = OF_ENGINES[engine]
    db = place.connect()
    test_drift.fill(db, place)
    for statement in cases[case][0]:
        db.execute_sql(statement)
    before = rows(db, "parent")
    assert run(place, str(mending(place, MODELS))) == ""
    assert remaining(place) == []
    assert rows(db, "parent") == before
    db.close()


DAMAGE = {
    "sqlite": [
        ('"b" INTEGER', '"b" BIGINT'),
        ("VARCHAR(20)", "VARCHAR(50)"),
        ("DECIMAL(10, 2)", "TEXT"),
        ('"a" INTEGER NOT NULL', '"a" INTEGER NOT NULL ON CONFLICT IGNORE'),
        ('"b" INTEGER NOT NULL', '"b" INTEGER'),
        ('"note" TEXT', '"note" TEXT COLLATE NOCASE NOT NULL'),
        ("DEFAULT 1", "DEFAULT (2 + 3)"),
        ("b <> 7", "b <> 8"),
        ("a > 0", "a >= 0"),
        (" ON DELETE CASCADE", " DEFERRABLE INITIALLY DEFERRED"),
        ("PRIMARY KEY", "PRIMARY KEY AUTOINCREMENT"),
        ('"b" INTEGER', '"more" TEXT UNIQUE CHECK (more > \'\') REFERENCES parent (code), "b" INTEGER'),
        (", CONSTRAINT thing_b", ", CONSTRAINT mine CHECK (a < 99), UNIQUE (name, b), CONSTRAINT thing_b"),
    ],
    "postgres": [
        "ALTER TABLE thing ALTER b TYPE bigint",
        "ALTER TABLE thing ALTER name TYPE text",
        "ALTER TABLE thing ALTER size TYPE numeric(12, 3), ALTER size SET DEFAULT 2",
        'ALTER TABLE thing ALTER note TYPE text COLLATE "C"',
        "ALTER TABLE thing ALTER note SET NOT NULL",
        "ALTER TABLE thing ALTER a DROP NOT NULL",
        "ALTER TABLE thing ALTER id DROP DEFAULT, ALTER id TYPE bigint",
        "ALTER TABLE parent ALTER id DROP DEFAULT, ALTER id ADD GENERATED ALWAYS AS IDENTITY (INCREMENT 3)",
        "ALTER TABLE parent ALTER id TYPE bigint",
        "ALTER TABLE thing ALTER parent_id TYPE bigint",
        "ALTER TABLE thing DROP CONSTRAINT thing_b, ADD CONSTRAINT thing_b CHECK (b <> 8) NOT VALID",
        "ALTER TABLE thing ALTER CONSTRAINT thing_parent DEFERRABLE",
        "ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (id, a)",
        "ALTER TABLE thing SET UNLOGGED",
    ],
}
INDEXES = [
    "CREATE INDEX thing_ab ON thing (b, a DESC)",
    "CREATE INDEX thing_name ON thing (name)",
    "CREATE INDEX thing_part ON thing (b)",
    "CREATE INDEX thing_lower ON thing (upper(name))",
]


def damaged_sqlite(chosen: set[int]) -> list[str]:
    sql = SQLITE_THING
    for number in chosen:
        sql = sql.replace(*DAMAGE["sqlite"][number])
    return ["DROP TABLE thing", sql, *(index.sql for index in Thing._meta.indexes)]


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
@settings(max_examples=max(1, settings.default.max_examples // 2))
@given(data=st.data())
def test_any_drift_together_is_mended(request: pytest.FixtureRequest, engine: str, data: st.DataObject) -> None:
    place: Place = request.getfixturevalue(engine)
    chosen = data.draw(st.sets(st.integers(0, len(DAMAGE[engine]) - 1)))
    indexes = data.draw(st.sets(st.sampled_from(INDEXES), min_size=0 if chosen else 1))
    again = [sql for index in sorted(indexes) for sql in reindex(index.split()[2], index)]
    made = damaged_sqlite(chosen) if place.is_sqlite else [DAMAGE["postgres"][n] for n in sorted(chosen)]
    db = place.connect()
    db.connect(reuse_if_open=True)
    wipe(db, place)
    fill(db, place, [*made, *again])
    db.close()
    if remaining(place):  # a column that no model declares is none
        mend(place)


def wipe(db: pw.Database, place: Place) -> None:
    if not place.is_sqlite:
        db.execute_sql("DROP SCHEMA public CASCADE")
        db.execute_sql("CREATE SCHEMA public")
        return
    db.execute_sql("PRAGMA foreign_keys = OFF")
    for kind, name in db.execute_sql("SELECT type, name FROM sqlite_master WHERE type IN ('view', 'table')").fetchall():
        if not name.startswith("sqlite_"):
            db.execute_sql(f'DROP {kind} "{name}"')
    db.execute_sql("PRAGMA foreign_keys = ON")


ROWS_IN_THE_WAY = {
    "sqlite": (['"b" INTEGER NOT NULL', '"b" INTEGER'], "UPDATE thing SET b = NULL", "IS NULL"),
    "postgres": (["ALTER TABLE thing ALTER b DROP NOT NULL"], "UPDATE thing SET b = NULL", "IS NULL"),
    "sqlite unique": (None, "UPDATE thing SET name = 'same'", "HAVING count(*) > 1"),
    "postgres unique": (None, "UPDATE thing SET name = 'same'", "HAVING pg_catalog.count(*) OPERATOR(pg_catalog.>) 1"),
    "sqlite check": (["a > 0", "a < 9"], "UPDATE thing SET a = -1", "WHERE NOT (a > 0)"),
    "postgres check": (
        ["ALTER TABLE thing DROP CONSTRAINT thing_b, ADD CONSTRAINT thing_b CHECK (b <> 8)"],
        "UPDATE thing SET b = 7",
        "WHERE NOT ((b <> 7))",
    ),
    "sqlite reference": (
        ['REFERENCES "parent" ("id")', 'REFERENCES "elsewhere" ("id")'],
        "UPDATE thing SET parent_id = 77",
        "foreign_key_check",
    ),
    "postgres reference": (
        [
            "ALTER TABLE thing DROP CONSTRAINT thing_parent",
            "CREATE TABLE elsewhere (id integer PRIMARY KEY)",
            "INSERT INTO elsewhere VALUES (1), (77)",
            "ALTER TABLE thing ADD CONSTRAINT thing_parent FOREIGN KEY (parent_id) REFERENCES elsewhere (id)",
        ],
        "UPDATE thing SET parent_id = 77",
        "NOT EXISTS",
    ),
}


@pytest.mark.sampled
@pytest.mark.parametrize("stops", [True, False])
@pytest.mark.parametrize("case", ROWS_IN_THE_WAY)
def test_rows_in_the_way_are_named_and_nothing_is_half_done(
    request: pytest.FixtureRequest, case: str, stops: bool
) -> None:
    place: Place = request.getfixturevalue(case.split()[0])
    damage, violation, query = ROWS_IN_THE_WAY[case]
    made = damage or reindex("thing_name", "CREATE INDEX thing_name ON thing (name)")
    if damage and place.is_sqlite:
        made = ["DROP TABLE thing", SQLITE_THING.replace(*damage), *(index.sql for index in Thing._meta.indexes)]
        made += ["CREATE TABLE elsewhere (id INTEGER PRIMARY KEY)", "INSERT INTO elsewhere VALUES (1), (77)"]
    db = place.connect()
    fill(db, place, made)
    if place.is_sqlite:
        db.execute_sql("PRAGMA foreign_keys = OFF")
        db.execute_sql("PRAGMA ignore_check_constraints = ON")
    db.execute_sql(violation)
    db.close()
    before, drift = everything(place), remaining(place)
    script = str(mending(place, MODELS))
    (comment,) = (line for line in script.split("\n") if is_comment(line) and query in line)
    assert comment.startswith("-- rows in the way: ")
    assert run(place, script, stops=stops) != "" or not stops
    assert everything(place) == before
    assert remaining(place) == drift


@pytest.mark.soak
def test_a_failure_anywhere_leaves_sqlite_as_it_was_or_mended(sqlite: Place) -> None:
    """Also in a shell that goes on after a failure, as sqlite3 does with a script."""
    db = sqlite.connect()
    fill(db, sqlite, damaged_sqlite({0, 4, 11, 12}))
    before = everything(sqlite)
    (fix,) = mending(sqlite, MODELS).fixes
    count = sum(not is_comment(sql) for sql in fix.sql)
    assert count > 20
    db.close()
    original = open(sqlite.dsn, "rb").read()  # noqa: SIM115
    for number in range(count):
        for kept in ("", "-wal", "-shm"):
            if kept:
                (sqlite.folder / f"whatspire.db{kept}").unlink(missing_ok=True)
        (sqlite.folder / "whatspire.db").write_bytes(original)
        run(sqlite, with_failure(fix.sql, number), stops=False)
        found = everything(sqlite)
        assert found[0] == before[0], fix.sql[number]
        assert before[1] - found[1] == set(), fix.sql[number]


@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(data=st.data())
def test_a_failure_anywhere_leaves_postgresql_for_the_next_script(postgres: Place, data: st.DataObject) -> None:
    """Also in a psql that goes on: rows, names and constraints stay, and what verify --sql says then mends the rest."""
    db = postgres.connect()
    db.connect(reuse_if_open=True)
    wipe(db, postgres)
    made = [DAMAGE["postgres"][n] for n in (0, 1, 5, 6, 8, 9, 10, 12)]
    fill(db, postgres, [*made, *(sql for index in INDEXES[:2] for sql in reindex(index.split()[2], index))])
    fixes = mending(postgres, MODELS).fixes
    sql = [one for fix in sorted(fixes, key=lambda fix: fix.rank) for one in fix.sql]
    number = data.draw(st.integers(0, sum(not is_comment(one) for one in sql) - 1))
    before = everything(postgres)
    run(postgres, with_failure(sql, number), stops=data.draw(st.booleans()))
    found = everything(postgres)
    assert found[0] == before[0]
    assert before[1] - found[1] == set()
    if remaining(postgres):
        assert run(postgres, str(mending(postgres, MODELS))) == ""
    assert remaining(postgres) == []
    db.close()


class Odd(pw.Model):
    """Names that need quotes, and would end a comment or a statement."""

    key = pw.AutoField(column_name='Ke"y')
    value = pw.IntegerField(column_name='a.b\n"; DROP TABLE odd; --')
    text = pw.CharField(
        column_name="100%s %(x)s $mending$ '", max_length=9, constraints=[SQL("DEFAULT 'it''s -- \\ x'")]
    )

    class Meta:
        table_name = 'Odd\n"; SELECT * FROM nowhere; -- %'


Odd.add_index(Odd.index(Odd.text, unique=True, name="i.%\n'\";"))
ODD = """
CREATE TABLE {table} ("Ke""y" {key}, "a.b
""; DROP TABLE odd; --" bigint, "100%s %(x)s $mending$ '" varchar(5) NOT NULL);
CREATE INDEX "i.%
'"";" ON {table} ("Ke""y");
INSERT INTO {table} VALUES (1, 2, 'three');
"""


def test_any_name_is_quoted(place: Place) -> None:
    key = "INTEGER NOT NULL PRIMARY KEY" if place.is_sqlite else "serial PRIMARY KEY"
    assert run(place, ODD.format(table='"Odd\n""; SELECT * FROM nowhere; -- %"', key=key)) == ""
    assert len(remaining(place, [Odd])) == 5
    assert run(place, str(mending(place, [Odd]))) == ""
    assert remaining(place, [Odd]) == []
    db = place.connect()
    read = 'SELECT * FROM "Odd\n""; SELECT * FROM nowhere; -- %"'
    assert db.execute_sql(read if place.is_sqlite else read.replace("%", "%%")).fetchall() == [(1, 2, "three")]
    db.close()


def test_a_table_of_another_schema_is_mended_there(postgres: Place) -> None:
    class There(pw.Model):
        kind = pw.IntegerField(index=True, constraints=[SQL("DEFAULT one()"), SQL("CHECK (kind < limit_of())")])

        class Meta:
            schema = "Oth er"
            table_name = "there"

    db = postgres.connect()
    for sql in (
        'CREATE SCHEMA "Oth er"',
        "CREATE FUNCTION \"Oth er\".one() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 1'",
        "CREATE FUNCTION \"Oth er\".limit_of() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 10'",
        "CREATE FUNCTION limit_of() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 0'",
    ):
        db.execute_sql(sql)
    with db.bind_ctx([There]):
        db.execute_sql('SET search_path TO "Oth er", public')
        db.create_tables([There])
        db.execute_sql("SET search_path TO public")
    table = '"Oth er".there'
    for sql in (
        f"ALTER TABLE {table} ALTER kind DROP DEFAULT, ALTER kind TYPE bigint, ALTER kind DROP NOT NULL",
        f"ALTER TABLE {table} DROP CONSTRAINT there_kind_check, ADD CONSTRAINT there_kind_check CHECK (kind < 5)",
        'DROP INDEX "Oth er".there_kind',
        f"CREATE INDEX there_kind ON {table} (kind DESC)",
        f"INSERT INTO {table} (kind) VALUES (3)",
    ):
        db.execute_sql(sql)
    assert len(remaining(postgres, [There])) == 5
    assert run(postgres, str(mending(postgres, [There]))) == ""
    assert remaining(postgres, [There]) == []
    db.close()


def test_drift_of_a_kind_that_nobody_knows_gets_a_comment() -> None:
    drift = Drift("new kind", "thing", "a\nDROP TABLE thing", "x", "y")
    found = Mending.of_changes(Changes(drift=[drift]), [])
    assert found.of(drift)[0] == "-- no safe statement: none is known for drift of the kind new kind"
    assert all(is_comment(line) for line in str(found).split("\n") if line)


def test_command_line_prints_a_script(place: Place, db: pw.Database) -> None:
    MigrationRunner(db).up()
    db.execute_sql("DROP INDEX idx_sessions_status")
    db.execute_sql("CREATE INDEX idx_sessions_status ON sessions (name)")
    done = place.run("verify", "--sql")
    assert (done.returncode, done.stderr) == (4, "")
    assert done.stdout.startswith(f"-- database: {place.driver} {place.named}\n")
    document = json.loads(place.run("verify", "--json").stdout)
    assert [sql for sql in document["drift"][0]["sql"] if not is_comment(sql)]
    assert run(place, done.stdout) == ""
    assert place.run("verify").returncode == 0
    again = place.run("verify", "--sql", "-q")
    assert (again.returncode, again.stdout.splitlines()[1:]) == (0, ["-- no drift"])
