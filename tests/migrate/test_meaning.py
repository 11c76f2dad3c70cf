"""What means the same is in sync, however it is written; what means something else is drift."""

from __future__ import annotations

import peewee as pw
import pytest
from peewee import SQL

from tests.conftest import Place
from whatspire_db import MigrationRunner
from whatspire_db.migrate.diff import Changes


def table(
    *constraints: str,
    columns: str = "",
    name: str = "t",
    indexes: tuple[str, ...] = (),
    meta: dict[str, object] | None = None,
) -> type[pw.Model]:
    """Return a model of a table with a text column `a`, which carries constraints, and table constraints."""
    return type(pw.Model)(
        "T",
        (pw.Model,),
        {
            "a": pw.TextField(null=True, constraints=[SQL(text) for text in constraints] or None),
            "Meta": type(
                "Meta",
                (),
                {
                    "table_name": name,
                    "constraints": [SQL(columns)] if columns else None,
                    "indexes": [SQL(sql) for sql in indexes],
                    **(meta or {}),
                },
            ),
        },
    )


def compared(place: Place, models: list[type[pw.Model]], *live: str) -> Changes:
    """Make a database by hand and compare it with models."""
    db = place.connect()
    with db.connection_context():
        for sql in live:
            db.execute_sql(sql)
        return MigrationRunner(db, models).verify_schema()


SAME = [
    ("CHECK (a != 1)", "CHECK (a <> 1)"),
    ("CHECK (a = 1)", "CHECK (a == 1)"),
    ("CHECK (a IS NULL OR a > 0x10)", "CHECK (a ISNULL OR a > 16)"),
    ("CHECK (a <> 'x')", "check (A <> 'x')"),
    ('CHECK (a <> "Gone")', "CHECK (A <> 'Gone')"),
    ("DEFAULT foo", "DEFAULT 'foo'"),
    ("DEFAULT foo", 'DEFAULT "foo"'),
    ("DEFAULT foo", "DEFAULT [foo]"),
    ("DEFAULT 1", "DEFAULT +1"),
    ("DEFAULT 16", "DEFAULT 0x10"),
    ("DEFAULT 1.5", "DEFAULT 1.50"),
    ("DEFAULT true", "DEFAULT 1"),
    ("DEFAULT NULL", ""),
    ("", "DEFAULT NULL"),
    ("", "DEFAULT (null)"),
    ("DEFAULT current_timestamp", "default CURRENT_TIMESTAMP"),
]
OTHER = [
    ("CHECK (a != 1)", "CHECK (a = 1)"),
    ("CHECK (a = '<>')", "CHECK (a = '!=')"),
    ('CHECK (a IN ("active"))', 'CHECK (a IN ("Active"))'),
    ("CHECK (a <> 'x')", "CHECK (a <> 'X')"),
    ("DEFAULT 1", "DEFAULT -1"),
    ("DEFAULT 1", "DEFAULT '+1'"),
    ("DEFAULT 1", "DEFAULT 1.5"),
    ("DEFAULT foo", "DEFAULT Foo"),
    ("DEFAULT 'null'", "DEFAULT NULL"),
]


@pytest.mark.parametrize(("declared", "live"), SAME)
def test_sqlite_takes_spellings_for_one(sqlite: Place, declared: str, live: str) -> None:
    changes = compared(sqlite, [table(declared)], f"CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT {live})")
    assert not changes, changes


@pytest.mark.parametrize(("declared", "live"), OTHER)
def test_sqlite_tells_texts_and_values_apart(sqlite: Place, declared: str, live: str) -> None:
    changes = compared(sqlite, [table(declared)], f"CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT {live})")
    assert [(drift.table, drift.name) for drift in changes.drift] == [("t", "a")]


@pytest.mark.parametrize("key", ["INTEGER PRIMARY KEY", "integer NOT NULL primary key", "INTEGER PRIMARY KEY ASC"])
def test_a_rowid_is_never_null_however_it_is_declared(sqlite: Place, key: str) -> None:
    assert not compared(sqlite, [table()], f"CREATE TABLE t (id {key}, a TEXT)")


@pytest.mark.parametrize("key", ["INT PRIMARY KEY", "INTEGER PRIMARY KEY DESC"])
def test_a_key_that_is_no_rowid_is_told(sqlite: Place, key: str) -> None:
    assert compared(sqlite, [table()], f"CREATE TABLE t (id {key}, a TEXT)").drift


KEYED = "CREATE TABLE t (a TEXT, b TEXT, PRIMARY KEY ({}))"


def keyed(columns: str) -> type[pw.Model]:
    class T(pw.Model):
        a = pw.TextField(null=True)
        b = pw.TextField(null=True)

        class Meta:
            table_name = "t"
            primary_key = False
            constraints = [SQL(f"PRIMARY KEY ({columns})")]

    return T


@pytest.mark.parametrize("suffix", ["", " WITHOUT ROWID"])
@pytest.mark.parametrize("key", ["a DESC, b", "a, b DESC", "a COLLATE NOCASE, b", "a, b COLLATE RTRIM"])
def test_order_and_collation_within_a_key_of_sqlite(sqlite: Place, key: str, suffix: str) -> None:
    live = KEYED.format(key) + suffix
    (drift,) = (d for d in compared(sqlite, [keyed("a, b")], live).drift if d.kind == "primary_key")
    assert drift.declared == "PRIMARY KEY (a, b)"
    assert drift.live == f"PRIMARY KEY ({key.replace('NOCASE', 'nocase').replace('RTRIM', 'rtrim')})"


def test_order_and_collation_within_a_key_as_declared(sqlite: Place) -> None:
    key = "a COLLATE NOCASE DESC, b"
    assert not compared(sqlite, [keyed(key)], KEYED.format(key))


def test_names_that_differ_beyond_ascii_are_two_to_sqlite(sqlite: Place) -> None:
    class T(pw.Model):
        upper = pw.TextField(column_name="Ö", null=True)
        lower = pw.TextField(column_name="ö", null=True, index=True)
        plain = pw.TextField(column_name="Note", null=True)

        class Meta:
            table_name = "Ä"

    live = 'CREATE TABLE "Ä" (id INTEGER NOT NULL PRIMARY KEY, "Ö" TEXT, "NOTE" TEXT)'
    changes = compared(sqlite, [T], live, 'CREATE TABLE "ä" (id INTEGER)')
    assert [(m.kind, m.name) for m in changes.missing] == [("column", "ö"), ("index", "t_ö")]
    assert not changes.drift
    assert [(e.kind, e.name) for e in changes.extra] == [("table", "ä")]


LATE = " DEFERRABLE INITIALLY DEFERRED"


class First(pw.Model):
    class Meta:
        table_name = "first"


class Second(pw.Model):
    class Meta:
        table_name = "second"


@pytest.mark.parametrize("change", [LATE, " ON DELETE CASCADE"])
@pytest.mark.parametrize("changed", ["first", "second", None])
def test_each_reference_of_a_column_is_compared_with_its_own(place: Place, changed: str | None, change: str) -> None:
    references = ["FOREIGN KEY (n) REFERENCES first (id)", "FOREIGN KEY (n) REFERENCES second (id)"]

    class T(pw.Model):
        n = pw.IntegerField(null=True)

        class Meta:
            table_name = "t"
            constraints = [SQL(reference) for reference in references]

    lines = [text + (change if changed and changed in text else "") for text in references]
    tables = [f"CREATE TABLE {name} (id INTEGER NOT NULL PRIMARY KEY)" for name in ("first", "second")]
    models = [First, Second, T]
    key = "serial" if place.driver == "postgres" else "INTEGER NOT NULL"
    tables = [sql.replace("INTEGER NOT NULL", key) for sql in tables]
    changes = compared(place, models, *tables, f"CREATE TABLE t (id {key} PRIMARY KEY, n INTEGER, {', '.join(lines)})")
    found = [drift for drift in changes.drift if drift.kind == "foreign_key"]
    assert len(changes.drift) == len(found) == (1 if changed else 0)
    assert all(f"REFERENCES {changed}" in str(drift.declared).replace('"', "") for drift in found)


@pytest.mark.parametrize("target", ["p", "p (id)", "P (ID)"])
def test_a_reference_without_columns_leads_to_the_primary_key(sqlite: Place, target: str) -> None:
    model = table(columns="FOREIGN KEY (a) REFERENCES p")
    live = f"CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT, FOREIGN KEY (a) REFERENCES {target})"
    assert not compared(sqlite, [model], "CREATE TABLE p (id INTEGER PRIMARY KEY, code TEXT UNIQUE)", live)


def test_a_reference_without_columns_leads_to_no_other_key(sqlite: Place) -> None:
    model = table(columns="FOREIGN KEY (a) REFERENCES p")
    live = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT, FOREIGN KEY (a) REFERENCES p (code))"
    changes = compared(sqlite, [model], "CREATE TABLE p (id INTEGER PRIMARY KEY, code TEXT UNIQUE)", live)
    assert [drift.kind for drift in changes.drift] == ["foreign_key"]


def test_a_column_that_is_unique_twice_converges(sqlite: Place) -> None:
    class T(pw.Model):
        c = pw.IntegerField(null=True, unique=True, constraints=[SQL("UNIQUE")])
        other = pw.IntegerField(null=True)

        class Meta:
            table_name = "t"

    db = sqlite.connect()
    with db.connection_context():
        db.execute_sql("CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, c INTEGER)")
        db.execute_sql("CREATE INDEX t_c ON t (c)")
        runner = MigrationRunner(db, [T])
        assert runner.up().applied
        assert not runner.up().applied
        assert [(drift.kind, drift.name) for drift in runner.verify_schema().drift] == [("index", "t_c")]
        with pytest.raises(pw.IntegrityError):
            db.execute_sql("INSERT INTO t (c) VALUES (1), (1)")
