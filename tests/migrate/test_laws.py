"""Laws of the comparison: a dump and restore changes nothing, and random drift is reported as it was made."""

from __future__ import annotations

import sqlite3
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import peewee as pw
import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peewee import SQL
from playhouse.postgres_ext import ArrayField, BinaryJSONField, IntervalField

from tests.conftest import Place, Server, postgres_programs
from tests.migrate.mended import mending, run
from whatspire_db import MigrationRunner, Settings, backup

QUIET = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), database=None)

# A field class with its arguments; a CHECK on its column, one of which PostgreSQL shows in two ways; defaults.
FIELDS: dict[str, tuple[type[pw.Field], dict[str, Any], list[str], list[str]]] = {
    "char": (
        pw.CharField,
        {"max_length": 12},
        ["{0} IN ('a', 'b')", "{0} NOT IN ('x', 'y')", "{0} LIKE 'a%%'"],
        ["'a'"],
    ),
    "fixed": (pw.FixedCharField, {"max_length": 3}, ["{0} IN ('abc', 'abd')", "{0} <> ''"], ["'abc'"]),
    "text": (pw.TextField, {}, ["{0} IN ('a', 'b')", "length({0}) < 9", "{0} = 'It''s'"], ["''", "'a b'"]),
    "integer": (pw.IntegerField, {}, ["{0} > 0", "{0} BETWEEN 1 AND 9", "{0} IN (1, 2)", "{0} <> -1"], ["0", "-1"]),
    "bigint": (pw.BigIntegerField, {}, ["{0} > 0", "{0} NOT IN (1, 2)"], ["5000000000"]),
    "smallint": (pw.SmallIntegerField, {}, ["{0} IN (1, 2)"], ["1"]),
    "float": (pw.FloatField, {}, ["{0} > 0.5"], ["0.1", "1e10"]),
    "double": (pw.DoubleField, {}, ["{0} > 0.5 OR {0} IS NULL"], ["0.25"]),
    "decimal": (pw.DecimalField, {"max_digits": 8, "decimal_places": 3}, ["{0} > 0.5"], ["1.50"]),
    "boolean": (pw.BooleanField, {}, ["{0} IS NOT NULL"], ["true"]),
    "date": (pw.DateField, {}, ["{0} > '2020-01-01'"], ["'2024-02-29'"]),
    "datetime": (pw.DateTimeField, {}, ["{0} > '2020-01-01 10:00:00'"], ["'2024-01-01 00:00:00'", "CURRENT_TIMESTAMP"]),
    "time": (pw.TimeField, {}, ["{0} < '10:00:00'"], ["'10:00:00'"]),
    "uuid": (pw.UUIDField, {}, [], []),
    "blob": (pw.BlobField, {}, ["length({0}) < 9"], []),
    "bits": (pw.BitField, {}, [], []),
    "ip": (pw.IPField, {}, [], []),
}
OF_POSTGRES: dict[str, tuple[type[pw.Field], dict[str, Any], list[str], list[str]]] = {
    "jsonb": (BinaryJSONField, {"index": False}, ["{0} ? 'a'", "{0} ->> 'a' IN ('x', 'y')"], ["'{{}}'"]),
    "array": (ArrayField, {"field_class": pw.TextField, "index": False}, ["'a' = ANY ({0})"], ["'{{a,b}}'"]),
    "interval": (IntervalField, {}, ["{0} > interval '1 day'"], ["'1 day 02:00'"]),
}


@st.composite
def models(draw: st.DrawFn, driver: str, name: str) -> type[pw.Model]:
    """Draw a model: fields of any class, with CHECKs, defaults, indexes and a generated column."""
    known = FIELDS if driver == "sqlite" else FIELDS | OF_POSTGRES
    fields: dict[str, pw.Field] = {}
    indexes = []
    for number, kind in enumerate(draw(st.lists(st.sampled_from(sorted(known)), min_size=2, max_size=6))):
        column = f"{kind}_{number}"
        class_, arguments, checks, defaults = known[kind]
        texts = [
            f"CHECK ({check.format(column)})"
            for check in draw(st.lists(st.sampled_from(checks), max_size=2) if checks else st.just([]))
        ]
        texts += [
            f"DEFAULT {text.format()}"
            for text in draw(st.lists(st.sampled_from(defaults), max_size=1) if defaults else st.just([]))
        ]
        null = draw(st.booleans())
        fields[column] = class_(null=null, constraints=[SQL(text) for text in texts] or None, **arguments)
        if checks and draw(st.booleans()):
            where = draw(st.sampled_from(checks)).format(column)
            indexes.append(SQL(f"CREATE INDEX {name}_p{number} ON {name} (id) WHERE {where}"))
        if kind in ("char", "text", "fixed") and draw(st.booleans()):
            expression = draw(st.sampled_from(["lower({0})", "({0} IN ('a', 'b'))", "coalesce({0}, '')"])).format(
                column
            )
            indexes.append(SQL(f"CREATE INDEX {name}_e{number} ON {name} ({expression})"))
        if kind in ("integer", "char") and draw(st.booleans()):
            expression = f"{column} + 1" if kind == "integer" else f"{column} IN ('a', 'b')"
            type_ = pw.IntegerField if kind == "integer" or driver == "sqlite" else pw.BooleanField
            stored = SQL(f"GENERATED ALWAYS AS ({expression}) STORED")
            fields[f"made_{number}"] = type_(null=True, constraints=[stored])
    meta = type("Meta", (), {"table_name": name, "indexes": indexes})
    return type(pw.Model)(name.title(), (pw.Model,), {**fields, "Meta": meta})


def drawn(driver: str) -> st.SearchStrategy[tuple[type[pw.Model], ...]]:
    return st.tuples(*(models(driver, f"law_{number}") for number in range(4)))


def in_sync(place: Place, chosen: tuple[type[pw.Model], ...]) -> None:
    db = place.connect()
    runner = MigrationRunner(db, list(chosen))
    changes = runner.verify_schema()
    assert not changes, [str(item) for item in (*changes.missing, *changes.drift)]
    assert not runner.plan()
    if hasattr(db, "close_all"):
        db.close_all()


def made(place: Place, chosen: tuple[type[pw.Model], ...]) -> None:
    db = place.connect()
    with db.bind_ctx(list(chosen)), db.connection_context():
        db.create_tables(list(chosen))


def by_backup(place: Place, copy: Place) -> None:
    """Copy a database by a backup of this package."""
    folder = place.folder / "law-backups"
    file = backup.create(Settings(driver=place.driver, dsn=place.dsn, backup_dir=str(folder)))
    backup.restore(
        file, Settings(driver=copy.driver, dsn=copy.dsn, backup_dir=str(folder)), force=True, safety_backup=False
    )


@pytest.mark.parametrize("by", ["dump", "backup"])
def test_a_dump_and_restore_of_sqlite_is_in_sync(tmp_path: Path, by: str) -> None:
    counter = iter(range(1000))

    @QUIET
    @given(drawn("sqlite"))
    def law(chosen: tuple[type[pw.Model], ...]) -> None:
        number = next(counter)
        place, copy = (Place("sqlite", str(tmp_path / f"{what}{number}.db"), tmp_path) for what in ("from", "to"))
        made(place, chosen)
        in_sync(place, chosen)
        if by == "backup":
            by_backup(place, copy)
        else:
            with closing(sqlite3.connect(place.dsn)) as source, closing(sqlite3.connect(copy.dsn)) as target:
                target.executescript("\n".join(source.iterdump()))
        in_sync(copy, chosen)

    law()


@pytest.mark.soak
@pytest.mark.parametrize("by", ["dump", "backup"])
def test_a_dump_and_restore_of_postgres_is_in_sync(
    postgres: Place, server: Server, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHATSPIRE_PG_BIN", postgres_programs())

    def schema_of(dsn: str, *statements: str) -> None:
        with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
            for sql in statements:
                cursor.execute(sql)

    server.execute("CREATE DATABASE law_copy")
    copy = replace(postgres, dsn=server.of_database("law_copy"))
    fresh = "DROP SCHEMA public CASCADE", "CREATE SCHEMA public"

    @QUIET
    @given(drawn("postgres"))
    def law(chosen: tuple[type[pw.Model], ...]) -> None:
        for place in (postgres, copy):
            schema_of(place.dsn, *fresh)
        made(postgres, chosen)
        in_sync(postgres, chosen)
        if by == "backup":
            by_backup(postgres, copy)
        else:
            program = Path(postgres_programs())
            dump = subprocess.run([program / "pg_dump", postgres.dsn], capture_output=True, check=True).stdout
            text = b"\n".join(line for line in dump.splitlines() if b"SCHEMA public" not in line)
            done = subprocess.run(
                [program / "psql", "-q", "-v", "ON_ERROR_STOP=1", copy.dsn],
                input=text,
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        in_sync(copy, chosen)

    try:
        law()
    finally:
        server.execute("DROP DATABASE IF EXISTS law_copy WITH (FORCE)")


# Drift

KEY = "id INTEGER NOT NULL PRIMARY KEY"


class Far(pw.Model):
    class Meta:
        table_name = "far"


class Near(pw.Model):
    class Meta:
        table_name = "near"


class Mixed(pw.Model):
    name = pw.CharField(max_length=20, collation='"C"')
    note = pw.TextField(null=True, constraints=[SQL("DEFAULT 'Foo'")])
    size = pw.IntegerField(constraints=[SQL("CONSTRAINT mixed_size CHECK (size > 0)")])
    word = pw.TextField(null=True)
    tall = pw.TextField(null=True)

    class Meta:
        table_name = "mixed"
        constraints = [
            SQL("CONSTRAINT to_far FOREIGN KEY (size) REFERENCES far (id)"),
            SQL("CONSTRAINT to_near FOREIGN KEY (size) REFERENCES near (id)"),
        ]
        indexes = [
            SQL("CREATE INDEX mixed_name ON mixed (name)"),
            SQL("CREATE INDEX mixed_word ON mixed USING gist (to_tsvector('simple'::regconfig, word))"),
        ]


# For each kind of drift: the statements that cause it, and what verify must report.
KINDS = {
    "type": (["ALTER TABLE mixed ALTER tall TYPE varchar(9)"], ("column_type", "tall")),
    "length": (['ALTER TABLE mixed ALTER name TYPE varchar(21) COLLATE "C"'], ("column_type", "name")),
    "null": (["ALTER TABLE mixed ALTER word SET NOT NULL"], ("column_null", "word")),
    "case of a default": (["ALTER TABLE mixed ALTER note SET DEFAULT 'foo'"], ("column_default", "note")),
    "sequence": (["ALTER SEQUENCE mixed_id_seq INCREMENT BY 7"], ("column_default", "id")),
    "check": (
        ["ALTER TABLE mixed DROP CONSTRAINT mixed_size, ADD CONSTRAINT mixed_size CHECK (size > 1)"],
        ("check", "mixed_size"),
    ),
    "deferrability": (["ALTER TABLE mixed ALTER CONSTRAINT to_near DEFERRABLE"], ("foreign_key", "to_near")),
    "triggers": (["ALTER TABLE far DISABLE TRIGGER ALL"], ("foreign_key", "to_far")),
    "index": (["DROP INDEX mixed_name", "CREATE INDEX mixed_name ON mixed (name DESC)"], ("index", "mixed_name")),
    "parameters of an operator class": (
        [
            "DROP INDEX mixed_word",
            "CREATE INDEX mixed_word ON mixed USING gist (to_tsvector('simple'::regconfig, word) tsvector_ops (siglen = 64))",
        ],
        ("index", "mixed_word"),
    ),
}


@pytest.mark.soak
def test_random_drift_is_reported_as_it_was_made_and_mended(postgres: Place) -> None:
    chosen = [Far, Near, Mixed]
    db = postgres.connect()

    @QUIET
    @given(st.sets(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5))
    def law(kinds: set[str]) -> None:
        with db.connection_context():
            db.execute_sql("DROP TABLE IF EXISTS mixed, far, near, migration_versions")
        MigrationRunner(db, chosen).up()
        with db.connection_context():
            for kind in sorted(kinds):
                for sql in KINDS[kind][0]:
                    db.execute_sql(sql)
        changes = MigrationRunner(db, chosen).verify_schema()
        found = {(drift.kind, drift.name) for drift in (*changes.drift, *MigrationRunner(db, chosen).up().drift)}
        assert (found, changes.missing) == ({KINDS[kind][1] for kind in kinds}, [])
        assert run(postgres, str(mending(postgres, chosen))) == ""
        assert not MigrationRunner(db, chosen).verify_schema()

    law()


class Keyed(pw.Model):
    k = pw.TextField()
    b = pw.IntegerField()
    name = pw.CharField(max_length=20)
    note = pw.TextField(null=True, constraints=[SQL("DEFAULT 'Foo'")])
    word = pw.TextField(null=True)

    class Meta:
        table_name = "keyed"
        primary_key = False
        constraints = [
            SQL("PRIMARY KEY (k, b)"),
            SQL("CONSTRAINT small CHECK (name <> 'X')"),
            SQL("CONSTRAINT to_far FOREIGN KEY (b) REFERENCES far (id)"),
            SQL("CONSTRAINT to_near FOREIGN KEY (b) REFERENCES near (id)"),
            SQL("UNIQUE (word, note)"),
        ]


# Of each part of the table: as it is declared, as it may be instead, and the drift that this is.
PARTS = {
    "k": ("k TEXT NOT NULL", "k TEXT NOT NULL COLLATE RTRIM", ("column_collation", "k")),
    "b": ("b INTEGER NOT NULL", "b INTEGER", ("column_null", "b")),
    "name": ("name VARCHAR(20) NOT NULL", "name VARCHAR(21) NOT NULL", ("column_type", "name")),
    "note": ("note TEXT DEFAULT 'Foo'", "note TEXT DEFAULT Foo2", ("column_default", "note")),
    "word": ("word TEXT", "word TEXT DEFAULT x", ("column_default", "word")),
    "key": ("PRIMARY KEY (k, b)", "PRIMARY KEY (k DESC, b COLLATE NOCASE)", ("primary_key", "k, b")),
    "check": ("CONSTRAINT small CHECK (name != 'X')", "CONSTRAINT small CHECK (name != 'x')", ("check", "small")),
    "far": (
        "CONSTRAINT to_far FOREIGN KEY (b) REFERENCES far",
        "CONSTRAINT to_far FOREIGN KEY (b) REFERENCES far ON DELETE CASCADE",
        ("foreign_key", "to_far"),
    ),
    "near": (
        "CONSTRAINT to_near FOREIGN KEY (b) REFERENCES near (id)",
        "CONSTRAINT to_near FOREIGN KEY (b) REFERENCES near (id) DEFERRABLE INITIALLY DEFERRED",
        ("foreign_key", "to_near"),
    ),
}


@pytest.mark.soak
def test_random_drift_of_sqlite_is_reported_as_it_was_made_and_mended(tmp_path: Path) -> None:
    counter = iter(range(1000))

    @settings(QUIET, max_examples=25)
    @given(st.sets(st.sampled_from(sorted(PARTS))))
    def law(drifted: set[str]) -> None:
        place = Place("sqlite", str(tmp_path / f"{next(counter)}.db"), tmp_path)
        chosen = [Far, Near, Keyed]
        parts = [PARTS[part][part in drifted] for part in PARTS]
        with closing(sqlite3.connect(place.dsn)) as connection:
            for table in ("far", "near"):
                connection.execute(f"CREATE TABLE {table} ({KEY})")
            connection.execute(f"CREATE TABLE keyed ({', '.join(parts)}, UNIQUE (word, note))")
        db = place.connect()
        changes = MigrationRunner(db, chosen).verify_schema()
        assert ({(d.kind, d.name) for d in changes.drift}, changes.missing) == ({PARTS[p][2] for p in drifted}, [])
        db.close()
        if drifted:
            assert run(place, str(mending(place, chosen))) == ""
        in_sync(place, tuple(chosen))

    law()
