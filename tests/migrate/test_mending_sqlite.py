"""verify --sql on SQLite: what the rebuild of a table keeps, and the kinds of drift without a safe statement."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from typing import Any

import peewee as pw
import pytest
from peewee import SQL

from tests.conftest import Place
from tests.migrate.mended import mending, run
from whatspire_db import MigrationRunner


def model(table: str, *constraints: str, **fields: Any) -> type[pw.Model]:
    """Return a model of a table."""
    meta = {"table_name": table, "constraints": [SQL(c) for c in constraints], "legacy_table_names": False}
    meta |= {name: fields.pop(name) for name in ("strict_tables", "without_rowid", "primary_key") if name in fields}
    return type(table.title(), (pw.Model,), {**fields, "Meta": type("Meta", (), meta)})


def null(kind: type[pw.Field], *constraints: str) -> pw.Field:
    return kind(null=True, constraints=[SQL(c) for c in constraints])


KEEPS_KEYS = model("kept", id=pw.AutoField(constraints=[SQL("AUTOINCREMENT")]), v=pw.IntegerField())
# Each a table of its own: the model, what is there instead with its rows, and what is read afterwards.
CASES: dict[str, tuple[type[pw.Model], str, str, list[tuple[Any, ...]]]] = {
    "the highest key": (
        KEEPS_KEYS,
        "CREATE TABLE kept (id INTEGER PRIMARY KEY AUTOINCREMENT, v BIGINT NOT NULL); INSERT INTO kept VALUES (1, 1), "
        "(70, 1); DELETE FROM kept WHERE id = 70",
        "SELECT seq, count(*) FROM sqlite_sequence WHERE name = 'kept'",
        [(70, 1)],
    ),
    "the highest key of an empty table": (
        model("emptied", id=pw.AutoField(constraints=[SQL("AUTOINCREMENT")]), v=pw.IntegerField()),
        "CREATE TABLE emptied (id INTEGER PRIMARY KEY AUTOINCREMENT, v BIGINT NOT NULL); "
        "INSERT INTO emptied VALUES (9, 1); DELETE FROM emptied",
        "SELECT seq, count(*) FROM sqlite_sequence WHERE name = 'emptied'",
        [(9, 1)],
    ),
    "rowids": (
        model("texts", name=pw.TextField(primary_key=True), v=pw.IntegerField()),
        "CREATE TABLE texts (name TEXT NOT NULL PRIMARY KEY, v BIGINT NOT NULL); "
        "INSERT INTO texts VALUES ('a', 1), ('b', 2), ('c', 3); DELETE FROM texts WHERE name = 'b'",
        "SELECT rowid, name FROM texts ORDER BY rowid",
        [(1, "a"), (3, "c")],
    ),
    "WITHOUT ROWID": (
        model("bare", name=pw.TextField(primary_key=True), without_rowid=True),
        "CREATE TABLE bare (name TEXT NOT NULL PRIMARY KEY, own INT); INSERT INTO bare VALUES ('a', 1)",
        "SELECT name, own, (SELECT wr FROM pragma_table_list('bare')) FROM bare",
        [("a", 1, 1)],
    ),
    "STRICT": (
        model("exact", v=pw.IntegerField(), strict_tables=True),
        "CREATE TABLE exact (id INTEGER NOT NULL PRIMARY KEY, v BIGINT NOT NULL); INSERT INTO exact VALUES (1, 2)",
        "SELECT v, (SELECT strict FROM pragma_table_list('exact')) FROM exact",
        [(2, 1)],
    ),
    "generated columns": (
        model("made", a=pw.IntegerField(), b=null(pw.IntegerField, "GENERATED ALWAYS AS (a + 1) STORED")),
        "CREATE TABLE made (id INTEGER NOT NULL PRIMARY KEY, a INTEGER NOT NULL, b INTEGER AS (a + 2), "
        "own INTEGER AS (a * 10) STORED); INSERT INTO made VALUES (1, 2)",
        "SELECT a, b, own FROM made",
        [(2, 3, 20)],
    ),
    "a column that was generated": (
        model("was", a=pw.IntegerField(), b=null(pw.IntegerField)),
        "CREATE TABLE was (id INTEGER NOT NULL PRIMARY KEY, a INTEGER NOT NULL, b INTEGER AS (a + 2)); "
        "INSERT INTO was VALUES (1, 2)",
        "SELECT a, b FROM was",
        [(2, 4)],
    ),
    "rows that refer to rows": (
        model("node", 'FOREIGN KEY (up) REFERENCES "node" (id)', up=null(pw.IntegerField)),
        "CREATE TABLE node (id INTEGER NOT NULL PRIMARY KEY, up INTEGER REFERENCES node ON DELETE CASCADE); "
        "INSERT INTO node VALUES (1, NULL), (2, 1)",
        "SELECT id, up, (SELECT count(*) FROM pragma_foreign_key_list('node') WHERE \"table\" = 'node') FROM node",
        [(1, None, 1), (2, 1, 1)],
    ),
    "another column's key": (
        model("keyed", code=pw.TextField(primary_key=True)),
        "CREATE TABLE keyed (code TEXT NOT NULL, own INTEGER CONSTRAINT k PRIMARY KEY ON CONFLICT FAIL CHECK (own > 0), "
        "other TEXT DEFAULT ('a' || ')'), CHECK (other <> code), UNIQUE (own, other COLLATE NOCASE)); "
        "INSERT INTO keyed VALUES ('c', 5, 'd')",
        "SELECT code, own, other, (SELECT count(*) FROM pragma_index_list('keyed')) FROM keyed",
        [("c", 5, "d", 3)],
    ),
    "checks of one column within it and beside it": (
        model("checked", v=pw.IntegerField()),
        "CREATE TABLE checked (id INTEGER NOT NULL PRIMARY KEY, v BIGINT NOT NULL, own TEXT CHECK (own <> 'a'), "
        "CHECK (own <> 'b'), CONSTRAINT c CHECK (own <> 'c')); INSERT INTO checked VALUES (1, 2, 'd')",
        "SELECT v, (SELECT length(sql) - length(replace(sql, '<>', '-')) FROM sqlite_master WHERE name = 'checked') "
        "FROM checked",
        [(2, 3)],
    ),
    "a constraint where an index is declared": (
        model("served", v=pw.IntegerField(unique=True)),
        "CREATE TABLE served (id INTEGER NOT NULL PRIMARY KEY, v BIGINT NOT NULL UNIQUE); INSERT INTO served VALUES (1, 2)",
        "SELECT v FROM served",
        [(2,)],
    ),
    "the columns' order and the name's case": (
        model("mixed", b=pw.IntegerField(), a=pw.IntegerField()),
        'CREATE TABLE "MiXed" (a BIGINT NOT NULL, own TEXT, id INTEGER NOT NULL PRIMARY KEY, b INTEGER NOT NULL); '
        "INSERT INTO mixed VALUES (1, 'o', 2, 3)",
        "SELECT *, (SELECT name FROM sqlite_master WHERE name = 'MiXed') FROM mixed",
        [(1, "o", 2, 3, "MiXed")],
    ),
}


def left(place: Place, models: list[type[pw.Model]]) -> list[str]:
    db = place.connect()
    with db.connection_context():
        changes = MigrationRunner(db, models).verify_schema()
    return [str(item) for item in (*changes.drift, *changes.missing)]


def made(place: Place) -> pw.Database:
    db = place.connect()
    for _, sql, _, _ in CASES.values():
        for statement in sql.split("; "):
            db.execute_sql(statement)
    return db


def test_what_a_rebuild_keeps(sqlite: Place) -> None:
    db = made(sqlite)
    models = [case[0] for case in CASES.values()]
    assert {line.split()[2].strip(":").split(".")[0] for line in left(sqlite, models)} == {
        m._meta.table_name for m in models
    }
    script = str(mending(sqlite, models))
    assert run(sqlite, script) == "", script
    assert left(sqlite, models) == []
    for name, (_, _, query, rows) in CASES.items():
        assert db.execute_sql(query).fetchall() == rows, name
    db.close()


@pytest.mark.parametrize("options", [["-bail"], []])
def test_the_shell_runs_it(sqlite: Place, options: list[str]) -> None:
    shell = shutil.which("sqlite3")
    if shell is None:
        pytest.skip("there is no sqlite3")
    made(sqlite).close()
    models = [case[0] for case in CASES.values()]
    script = str(mending(sqlite, models))
    done = subprocess.run([shell, *options, sqlite.dsn], input=script, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert left(sqlite, models) == []


def test_a_table_that_changed_since_is_left_alone(sqlite: Place) -> None:
    db = made(sqlite)
    script = str(mending(sqlite, [KEEPS_KEYS]))
    db.execute_sql("ALTER TABLE kept ADD COLUMN later TEXT DEFAULT 'x'")
    before = db.execute_sql("SELECT * FROM kept").fetchall()
    for stops in (True, False):
        assert "not as it was seen" in run(sqlite, script, stops=stops) or not stops
        assert db.execute_sql("SELECT * FROM kept").fetchall() == before
    db.close()


SINCE = {
    "type": (
        "DROP TRIGGER kept_t; CREATE TRIGGER kept_t AFTER INSERT ON kept BEGIN DELETE FROM kept WHERE v = 2; END",
        "DROP INDEX kept_i; CREATE INDEX kept_i ON kept (v, id)",
        "DROP TABLE kept; CREATE TABLE kept (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT NOT NULL CHECK (v > 0)); "
        "CREATE INDEX kept_v ON kept (v); CREATE INDEX kept_i ON kept (v) WHERE v > 7; "
        "CREATE TRIGGER kept_t AFTER INSERT ON kept BEGIN DELETE FROM kept WHERE v = 1; END",
    ),
    "index": (
        "DROP INDEX kept_v; CREATE INDEX kept_v ON kept (v, id)",
        "DROP INDEX kept_v; CREATE INDEX kept_v ON a (v)",
    ),
}


@pytest.mark.parametrize(("drift", "since"), [(drift, since) for drift, texts in SINCE.items() for since in texts])
def test_what_got_another_text_since_is_left_alone(sqlite: Place, drift: str, since: str) -> None:
    m = model("kept", id=pw.AutoField(constraints=[SQL("AUTOINCREMENT")]), v=pw.BigIntegerField(index=True))
    db = sqlite.connect()
    for sql in (
        f"CREATE TABLE kept (id INTEGER PRIMARY KEY AUTOINCREMENT, v {'TEXT' if drift == 'type' else 'BIGINT'} NOT NULL)",
        f"CREATE INDEX kept_v ON kept (v {'DESC' if drift == 'index' else ''})",
        "CREATE INDEX kept_i ON kept (v) WHERE v > 7",
        "CREATE TRIGGER kept_t AFTER INSERT ON kept BEGIN DELETE FROM kept WHERE v = 1; END",
        "CREATE TABLE a (v)",
    ):
        db.execute_sql(sql)
    script = str(mending(sqlite, [m]))
    for sql in re.split("; (?=CREATE)", since):
        db.execute_sql(sql)
    before = db.execute_sql("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
    for stops in (True, False):
        assert "not as it was seen" in run(sqlite, script, stops=stops) or not stops
        assert db.execute_sql("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall() == before
    db.close()


@pytest.mark.parametrize("stops", [True, False])
def test_a_table_that_came_since_under_the_name_for_the_meantime_stays(sqlite: Place, stops: bool) -> None:
    m, db = model("moved", v=pw.IntegerField()), sqlite.connect()
    db.execute_sql("CREATE TABLE moved (id INTEGER NOT NULL PRIMARY KEY, v BIGINT NOT NULL)")
    script = str(mending(sqlite, [m]))
    db.execute_sql("CREATE TABLE moved_before_1 AS SELECT 1 AS id, 2 AS v")
    run(sqlite, script, stops=stops)
    assert db.execute_sql("SELECT * FROM moved_before_1").fetchall() == [(1, 2)]
    assert db.execute_sql("SELECT * FROM moved").fetchall() == []
    db.close()


def test_a_missing_column_is_left_to_up(sqlite: Place) -> None:
    m = model("later", "CHECK (v < w)", v=pw.IntegerField(), w=null(pw.IntegerField))
    db = sqlite.connect()
    db.execute_sql("CREATE TABLE later (id INTEGER NOT NULL PRIMARY KEY, v BIGINT NOT NULL)")
    db.execute_sql("INSERT INTO later VALUES (1, 2)")
    script = str(mending(sqlite, [m]))
    assert "run up afterwards" in script
    assert run(sqlite, script) == ""
    assert not any("drift" in line for line in left(sqlite, [m]))
    MigrationRunner(db, [m]).up()
    assert left(sqlite, [m]) == []
    assert db.execute_sql("SELECT id, v, w FROM later").fetchall() == [(1, 2, None)]
    db.close()


def test_kinds_of_drift_without_a_safe_statement_say_why(sqlite: Place) -> None:
    class There(pw.Model):
        v = pw.IntegerField()

        class Meta:
            schema = "there"
            table_name = "there"

    first = model("first", a=pw.IntegerField(), b=null(pw.IntegerField), primary_key=pw.CompositeKey("a", "b"))
    viewed, strict = model("viewed", v=pw.IntegerField()), model("strict", v=pw.IntegerField(), strict_tables=True)
    db = sqlite.connect()
    with db.connection_context():
        db.attach(str(sqlite.folder / "there.db"), "there")
        for sql in (
            "CREATE TABLE there.there (id INTEGER NOT NULL PRIMARY KEY, v BIGINT NOT NULL)",
            "CREATE TABLE first (a INTEGER NOT NULL PRIMARY KEY)",
            "CREATE VIEW viewed AS SELECT 1 AS id, 2 AS v",
            "CREATE TABLE strict (id INTEGER NOT NULL PRIMARY KEY, v INTEGER NOT NULL, own VARCHAR(9))",
        ):
            db.execute_sql(sql)
        found = MigrationRunner(db, [There, first, viewed, strict]).mending()
    assert not any(fix.is_safe for fix in found.fixes), str(found)
    said = {fix.drift[0].table: " ".join(fix.sql) for fix in found.fixes}
    assert "attached file" in said["there.there"]
    assert "run up first" in said["first"]
    assert "viewed is a view" in said["viewed"]
    assert "VARCHAR(9)" in said["strict"]
    assert run(sqlite, str(found)) == ""


def test_a_row_without_a_key_is_not_given_one(sqlite: Place) -> None:
    m, db = model("unkeyed", v=pw.IntegerField()), sqlite.connect()
    db.execute_sql("CREATE TABLE unkeyed (id INT PRIMARY KEY, v INTEGER NOT NULL)")
    db.execute_sql("INSERT INTO unkeyed VALUES (NULL, 1), (5, 2)")
    script = str(mending(sqlite, [m]))
    for stops in (True, False):
        assert "without a key" in run(sqlite, script, stops=stops) or not stops
        assert db.execute_sql("SELECT id, v FROM unkeyed").fetchall() == [(None, 1), (5, 2)]
    db.execute_sql("UPDATE unkeyed SET id = 9 WHERE id IS NULL")
    assert run(sqlite, script) == ""
    assert left(sqlite, [m]) == []
    assert db.execute_sql("SELECT id, v FROM unkeyed ORDER BY id").fetchall() == [(5, 2), (9, 1)]
    db.close()


FIELDS: dict[str, type[pw.Field]] = {
    "TEXT": pw.TextField,
    "INTEGER": pw.IntegerField,
    "REAL": pw.FloatField,
    "DATETIME": pw.DateTimeField,
    "BLOB": pw.BlobField,
    "": pw.BareField,
}
VALUES = (
    *("'007'", "'abc'", "' 7 '", "'1.50'", "'1e3'", "'9007199254740993'", "'12345678901234567890'", "'0x10'", "''"),
    *("'2024-01-01'", "'2024'", "5", "9007199254740993", "9223372036854775807", "-9223372036854775808"),
    *("0.1", "0.1234567890123456789", "123456789012345.678", "1e300", "3.0", "x'30'", "NULL"),
)


def values(db: pw.Database, table: str) -> dict[int, Any]:
    return dict(db.execute_sql(f"SELECT id, v FROM {table}").fetchall())


def is_other(db: pw.Database, was: Any, now: Any) -> bool:
    """Tell whether the value that was there cannot be told from the one that is there now."""
    if isinstance(was, str):
        return was != db.execute_sql("SELECT CAST(? AS text)", (now,)).fetchone()[0]
    return was is not None and type(was)(now) != was


def test_remarks_find_exactly_the_values_that_another_type_changes(sqlite: Place) -> None:
    db, models = sqlite.connect(), {}
    for number, (old, new) in enumerate(itertools.permutations(FIELDS, 2)):
        models[f"t{number}"] = model(f"t{number}", v=FIELDS[new](null=True))
        db.execute_sql(f"CREATE TABLE t{number} (id INTEGER NOT NULL PRIMARY KEY, v {old})")
        db.execute_sql(f"INSERT INTO t{number} (v) VALUES {', '.join(f'({value})' for value in VALUES)}")
    before = {table: values(db, table) for table in models}
    script = str(mending(sqlite, list(models.values())))
    found: dict[str, set[int]] = {table: set() for table in models}
    for query, table in re.findall(r'^-- .*: (SELECT \* FROM "(t\d+)" WHERE .*)$', script, re.MULTILINE):
        found[table] |= {row[0] for row in db.execute_sql(query).fetchall()}
    assert run(sqlite, script) == ""
    assert left(sqlite, list(models.values())) == []
    for table, was in before.items():
        now = values(db, table)
        changed = {key for key in was if is_other(db, was[key], now[key])}
        assert found[table] == changed, (table, [(was[key], now[key]) for key in found[table] ^ changed])
    db.close()
