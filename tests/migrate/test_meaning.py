"""What means the same is in sync, however it is written; what means something else is drift."""

from __future__ import annotations

import peewee as pw
import pytest
from peewee import SQL
from playhouse.sqlite_ext import FTS5Model, SearchField

from tests.conftest import POSTGRES_VERSION, Place, stamp
from tests.migrate.models import converges, model, run
from tests.servers import psql
from whatspire_db import MigrationRunner, ModelError
from whatspire_db.migrate.diff import Changes


def table(*constraints: str, columns: str = "") -> type[pw.Model]:
    """Return a model of a table with a text column `a`, which carries constraints, and a table constraint."""
    a = pw.TextField(null=True, constraints=[SQL(text) for text in constraints] or None)
    return model("T", "t", {"a": a}, constraints=[SQL(columns)] if columns else None)


def compared(place: Place, models: list[type[pw.Model]], *live: str) -> Changes:
    """Make a database by hand and compare it with models."""
    db = place.connect()
    run(db, *live)
    return MigrationRunner(db, models).verify_schema()


SAME = [
    ("CHECK (a != 1)", "CHECK (a <> 1)"),
    ("CHECK (a = 1)", "CHECK (a == 1)"),
    ("CHECK (a IS NULL OR a > 0x10)", "CHECK (a ISNULL OR a > 16)"),
    ("CHECK (a <> 'x')", "check (A <> 'x')"),
    ("CHECK (a NOT NULL)", "CHECK (a IS NOT NULL)"),
    ("CHECK (length(a) NOT NULL OR 1)", "CHECK (length(a) notnull OR 1)"),
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
    referring = table(columns="FOREIGN KEY (a) REFERENCES p")
    live = f"CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT, FOREIGN KEY (a) REFERENCES {target})"
    assert not compared(sqlite, [referring], "CREATE TABLE p (id INTEGER PRIMARY KEY, code TEXT UNIQUE)", live)


def test_a_reference_without_columns_leads_to_no_other_key(sqlite: Place) -> None:
    referring = table(columns="FOREIGN KEY (a) REFERENCES p")
    live = "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT, FOREIGN KEY (a) REFERENCES p (code))"
    changes = compared(sqlite, [referring], "CREATE TABLE p (id INTEGER PRIMARY KEY, code TEXT UNIQUE)", live)
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


# PostgreSQL


class Ticket(pw.Model):
    state = pw.CharField(constraints=[pw.Check("state IN ('open', 'done')")])
    kind = pw.CharField(constraints=[SQL("CONSTRAINT kinds CHECK (kind NOT IN ('x', 'y'))")])
    n = pw.IntegerField()

    class Meta:
        table_name = "tickets"
        indexes = [
            SQL("CREATE INDEX tickets_open ON tickets (n) WHERE state IN ('open', 'done')"),
            SQL("CREATE INDEX tickets_is ON tickets ((kind IN ('a', 'b')))"),
        ]


def read_back(place: Place, table: str) -> None:
    """Give a table's CHECKs and indexes the texts that the server shows of them, as a dump and restore does."""
    db = place.connect()
    with db.connection_context():
        checks = db.execute_sql(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass "
            "AND contype = 'c'",
            (table,),
        ).fetchall()
        for name, text in checks:
            text = text.replace("%", "%%")
            db.execute_sql(f'ALTER TABLE {table} DROP CONSTRAINT "{name}", ADD CONSTRAINT "{name}" {text}')
        indexes = db.execute_sql(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
            "WHERE indrelid = %s::regclass AND NOT indisprimary",
            (table,),
        ).fetchall()
        for name, text in indexes:
            db.execute_sql(f"DROP INDEX {name}")
            db.execute_sql(text.replace("%", "%%"))


def test_texts_that_a_dump_brings_back_in_another_form_are_the_same(postgres: Place) -> None:
    db = postgres.connect()
    runner = MigrationRunner(db, [Ticket])
    runner.up()
    read_back(postgres, "tickets")
    assert not runner.verify_schema()
    assert not runner.up().applied
    run(db, "ALTER TABLE tickets DROP CONSTRAINT kinds, ADD CONSTRAINT kinds CHECK (kind NOT IN ('x', 'w'))")
    assert [(drift.kind, drift.name) for drift in runner.verify_schema().drift] == [("check", "kinds")]


@pytest.mark.parametrize(("declared", "live"), [("", "DEFAULT NULL"), ("DEFAULT NULL", "")])
def test_null_is_no_default_to_postgres(postgres: Place, declared: str, live: str) -> None:
    class T(pw.Model):
        a = pw.CharField(max_length=9, null=True, constraints=[SQL(declared)] if declared else None)

        class Meta:
            table_name = "t"

    assert not compared(postgres, [T], f"CREATE TABLE t (id serial PRIMARY KEY, a varchar(9) {live})")


class OfDomain(pw.Field):
    field_type = "seven"


def test_null_before_the_default_of_a_domain_is_one(postgres: Place) -> None:
    class T(pw.Model):
        a = OfDomain(null=True)

        class Meta:
            table_name = "t"

    domain = "CREATE DOMAIN seven AS integer DEFAULT 7"
    changes = compared(postgres, [T], domain, "CREATE TABLE t (id serial PRIMARY KEY, a seven DEFAULT NULL)")
    assert [drift.kind for drift in changes.drift] == ["column_default"]


class Big(pw.Model):
    id = pw.BigAutoField()

    class Meta:
        table_name = "t"


SEQUENCES = {
    "AS integer": True,
    "MAXVALUE 3": True,
    "INCREMENT BY 10": True,
    "CYCLE": True,
    "MINVALUE 5 START WITH 5 RESTART": True,
    "CACHE 20": False,
    "RESTART WITH 700": False,
}


@pytest.mark.parametrize("change", SEQUENCES)
def test_how_the_sequence_of_a_key_counts_is_compared(postgres: Place, change: str) -> None:
    db = postgres.connect()
    stamp(db, [Big])
    run(db, f"ALTER SEQUENCE t_id_seq {change}")
    runner = MigrationRunner(db, [Big])
    assert [d.kind for d in runner.up().drift] == (["column_default"] if SEQUENCES[change] else [])


def test_a_sequence_made_by_hand_that_goes_further_than_its_column_is_as_good(postgres: Place) -> None:
    sequence = "CREATE SEQUENCE t_id_seq"
    owned = "ALTER SEQUENCE t_id_seq OWNED BY t.id"
    live = "CREATE TABLE t (id integer PRIMARY KEY DEFAULT nextval('t_id_seq'), a text)"
    assert not compared(postgres, [table()], sequence, live, owned)


class Metric(pw.Model):
    id = pw.BigIntegerField()
    day = pw.DateField()

    class Meta:
        table_name = "metrics"
        primary_key = pw.CompositeKey("id", "day")


class FirstMetric(Metric):
    class Meta:
        table_name = "metrics_1"
        primary_key = pw.CompositeKey("id", "day")


class Ref(pw.Model):
    mid = pw.BigIntegerField(null=True)
    mday = pw.DateField(null=True)

    class Meta:
        table_name = "refs"
        constraints = [SQL("CONSTRAINT fk_m FOREIGN KEY (mid, mday) REFERENCES metrics (id, day)")]


PARTITIONED = (
    "CREATE TABLE metrics (id bigint NOT NULL, day date NOT NULL, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)"
)


def partition(number: int) -> str:
    """Return the statement that makes the partition of a day in January."""
    bounds = f"FROM ('2026-01-{number:02}') TO ('2026-01-{number + 1:02}')"
    return f"CREATE TABLE metrics_{number} PARTITION OF metrics FOR VALUES {bounds}"


def test_partitions_come_and_go_and_the_stamp_stays(postgres: Place) -> None:
    db = postgres.connect()
    run(db, PARTITIONED, partition(1), partition(2))
    models = [Metric, Ref]
    stamp(db, models)
    runner = MigrationRunner(db, models)
    extra = [(e.kind, e.table) for e in runner.verify_schema().extra]
    assert extra == [("partitioning", "metrics")]
    with db.connection_context():
        before = runner.engine.standing(models)
        db.execute_sql(partition(3))
        db.execute_sql("ALTER TABLE metrics DETACH PARTITION metrics_1")
        after = runner.engine.standing(models)
    assert before is not None and after is not None  # noqa: PT018
    assert before.mark == after.mark


def test_a_model_of_a_partition_is_of_the_table_that_it_is(postgres: Place) -> None:
    db = postgres.connect()
    run(db, PARTITIONED, partition(1))
    runner = MigrationRunner(db, [FirstMetric, Second])
    assert sorted(step.table for step in runner.up().applied) == ["migration_versions", "second"]
    assert [e.kind for e in runner.verify_schema().extra if e.table == "metrics_1"] == ["partition"]


@pytest.mark.parametrize("target", ["ext (id)", "other.ext (id)", "other.ext", '"other"."ext" ("id")'])
def test_a_reference_to_a_table_without_a_model(postgres: Place, target: str) -> None:
    reference = SQL(f"CONSTRAINT a_to FOREIGN KEY (a) REFERENCES {target}")
    referring = model("A", "a", {"a": pw.IntegerField(null=True)}, constraints=[reference])
    db = postgres.connect()
    name = target.partition(" ")[0]
    run(db, "CREATE SCHEMA other", f"CREATE TABLE {name} (id int PRIMARY KEY)")
    converges(db, [referring])
    run(db, "ALTER TABLE a DROP CONSTRAINT a_to", f"INSERT INTO {name} VALUES (1)", "INSERT INTO a (a) VALUES (1)")
    runner = MigrationRunner(db, [referring])
    assert [step.kind for step in runner.up().applied] == ["add_constraint"]
    assert not runner.verify_schema()


@pytest.mark.parametrize("made", ["fresh", "before"])
def test_a_default_of_another_models_sequence(postgres: Place, made: str) -> None:
    class A(pw.Model):
        n = pw.IntegerField(constraints=[SQL("DEFAULT nextval('zed_id_seq')")])

        class Meta:
            table_name = "a"

    class Z(pw.Model):
        class Meta:
            table_name = "zed"

    db = postgres.connect()
    if made == "before":
        with db.bind_ctx([A, Z]):
            Z.create_table()
            A.create_table()
    runner = MigrationRunner(db, [A, Z])
    runner.up()
    assert not runner.verify_schema()
    run(db, "CREATE SEQUENCE other", "ALTER TABLE a ALTER n SET DEFAULT nextval('other')")
    assert [drift.kind for drift in runner.verify_schema().drift] == ["column_default"]


@pytest.mark.parametrize(
    ("made", "text", "renamed"),
    [
        ("CREATE SEQUENCE counted", "nextval('counted')::text", "ALTER SEQUENCE counted RENAME TO c2"),
        (
            "CREATE COLLATION german (provider = libc, locale = 'C')",
            "('a' COLLATE german)",
            "ALTER COLLATION german RENAME TO g2",
        ),
        ("CREATE TYPE mood AS ENUM ('sad', 'ok')", "'sad'::mood::text", "ALTER TYPE mood RENAME VALUE 'sad' TO 'low'"),
        ("CREATE TYPE mood AS ENUM ('sad', 'ok')", "'sad'::mood::text", "ALTER TYPE mood RENAME TO m2"),
    ],
)
def test_the_next_start_sees_that_what_a_default_names_was_renamed(
    postgres: Place, made: str, text: str, renamed: str
) -> None:
    db, models = postgres.connect(), [table(f"DEFAULT {text}")]
    run(db, made)
    stamp(db, models)
    run(db, renamed)
    with pytest.raises(ModelError, match="makes no table that PostgreSQL takes"):
        MigrationRunner(db, models).up()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_a_moment_in_a_default_is_the_same_in_every_session(postgres: Place, zone: str) -> None:
    class Stamped(pw.Field):
        field_type = "timestamptz"

    class T(pw.Model):
        at = Stamped(constraints=[SQL("DEFAULT '2024-01-01 00:00'")])

        class Meta:
            table_name = "t"

    there = Place("postgres", f"{postgres.dsn} options='-c TimeZone={zone} -c DateStyle=German'", postgres.folder)
    MigrationRunner(there.connect(), [T]).up()
    for other in (postgres, there):
        assert not MigrationRunner(other.connect(), [T]).verify_schema()


def test_a_script_means_the_same_in_every_session(postgres: Place) -> None:
    class Stamped(pw.Field):
        field_type = "timestamptz"

    stamped = model("T", "t", {"at": Stamped(index=True, constraints=[SQL("DEFAULT '2024-01-01 00:00'")])})
    run(postgres.connect(), "CREATE SCHEMA app")
    db = Place("postgres", f"{postgres.dsn} search_path='app'", postgres.folder).connect()
    runner = MigrationRunner(db, [stamped])
    elsewhere = "SET client_min_messages TO warning; SET TimeZone TO 'Europe/Berlin'; SET search_path TO public;"
    psql(postgres.dsn, f"{elsewhere}\n{runner.plan().sql()}")
    assert not runner.verify_schema()
    run(db, "ALTER TABLE t ALTER at SET DEFAULT '2023-01-01'", "DROP INDEX t_at", "CREATE INDEX t_at ON t (id)")
    psql(postgres.dsn, f"{elsewhere}\n{runner.mending()}")
    assert not runner.verify_schema()


@pytest.mark.parametrize(
    ("field", "text"),
    [(pw.DateTimeField, "DEFAULT 'now()'"), (pw.DateField, "DEFAULT 'today'"), (pw.DateField, "CHECK (at > 'now')")],
)
def test_a_moment_of_create_table_is_refused_by_name(postgres: Place, field: type[pw.Field], text: str) -> None:
    log = model("Log", "log", {"at": field(null=True, constraints=[SQL(text)])})
    with pytest.raises(ModelError, match=r"Log\.at: '(now|today)") as caught:
        MigrationRunner(postgres.connect(), [log]).up()
    assert "now()" in caught.value.hint


def test_words_that_are_a_text_are_no_moment(postgres: Place) -> None:
    converges(postgres.connect(), [table("DEFAULT 'now'", "CHECK (a <> 'today')")])


def test_a_reference_whose_triggers_are_disabled_is_drift(postgres: Place) -> None:
    class T(pw.Model):
        first = pw.ForeignKeyField(First, null=True)

        class Meta:
            table_name = "t"

    db = postgres.connect()
    stamp(db, [First, T])
    for switched in ("t", "first"):
        with db.connection_context():
            db.execute_sql(f"ALTER TABLE {switched} DISABLE TRIGGER ALL")
        (drift,) = MigrationRunner(db, [First, T]).up().drift
        assert (drift.kind, str(drift.live).split()[-1]) == ("foreign_key", "DISABLED")
        with db.connection_context():
            db.execute_sql(f"ALTER TABLE {switched} ENABLE TRIGGER ALL")
        assert not MigrationRunner(db, [First, T]).up().drift


def test_parameters_of_an_operator_class_are_compared(postgres: Place) -> None:
    class T(pw.Model):
        a = pw.TextField(null=True)

        class Meta:
            table_name = "t"
            indexes = [
                SQL("CREATE INDEX t_a ON t USING gist (to_tsvector('simple'::regconfig, a) tsvector_ops (siglen = 32))")
            ]

    db = postgres.connect()
    stamp(db, [T])
    with db.connection_context():
        db.execute_sql("DROP INDEX t_a")
        db.execute_sql(
            "CREATE INDEX t_a ON t USING gist (to_tsvector('simple'::regconfig, a) tsvector_ops (siglen = 64))"
        )
    (drift,) = MigrationRunner(db, [T]).up().drift
    assert ("siglen=32" in str(drift.declared), "siglen=64" in str(drift.live)) == (True, True)


def test_a_collation_of_the_same_name_in_another_schema_is_another(postgres: Place) -> None:
    class T(pw.Model):
        a = pw.TextField(null=True, collation="one.german")

        class Meta:
            table_name = "t"

    make = ("CREATE SCHEMA one", "CREATE SCHEMA two")
    collations = [f"CREATE COLLATION {schema}.german (provider = libc, locale = 'C')" for schema in ("one", "two")]
    live = "CREATE TABLE t (id serial PRIMARY KEY, a text COLLATE {}.german)"
    changes = compared(postgres, [T], *make, *collations, live.format("two"))
    assert [(d.kind, d.declared, d.live) for d in changes.drift] == [("column_collation", "one.german", "two.german")]


def test_what_can_change_or_reject_rows_is_listed(place: Place) -> None:
    if place.driver == "sqlite":
        live = ["CREATE TRIGGER keep BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'no'); END"]
        wanted = [("trigger", "keep")]
    else:
        live = [
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER keep BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION no()",
            "CREATE RULE off AS ON INSERT TO t DO INSTEAD NOTHING",
            "CREATE POLICY mine ON t USING (true)",
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
            "CREATE TABLE parent (a text)",
            "ALTER TABLE t INHERIT parent",
        ]
        wanted = [
            ("inheritance", "of parent"),
            ("policy", "mine"),
            ("row_security", ""),
            ("rule", "off"),
            ("trigger", "keep"),
        ]
    db = place.connect()
    MigrationRunner(db, [table()]).up()
    run(db, *live)
    changes = MigrationRunner(db, [table()]).verify_schema()
    assert not changes
    assert [(e.kind, e.name) for e in changes.extra if e.table == "t"] == wanted


def test_a_reference_in_sql_to_a_model_of_another_schema(postgres: Place) -> None:
    class There(pw.Model):
        class Meta:
            table_name = "there"
            schema = "other"

    referring = table(columns='FOREIGN KEY (id) REFERENCES "other"."there" (id)')
    db = postgres.connect()
    run(db, "CREATE SCHEMA other")
    converges(db, [referring, There])


@pytest.mark.parametrize("constraint", ["UNIQUE (n) DEFERRABLE", "EXCLUDE USING btree (n WITH =) DEFERRABLE"])
def test_a_deferrable_constraint_whose_triggers_are_disabled_is_drift(postgres: Place, constraint: str) -> None:
    class T(pw.Model):
        n = pw.IntegerField(null=True)

        class Meta:
            table_name = "t"
            constraints = [SQL(f"CONSTRAINT t_n {constraint}")]

    db = postgres.connect()
    stamp(db, [T])
    run(db, "ALTER TABLE t DISABLE TRIGGER ALL")
    (drift,) = MigrationRunner(db, [T]).up().drift
    assert "DISABLED" in str(drift.live)


def test_a_not_null_that_is_not_valid_is_finished(postgres: Place) -> None:
    class T(pw.Model):
        a = pw.TextField()

        class Meta:
            table_name = "t"

    db = postgres.connect()
    with db.connection_context():
        db.connection()
        if (db.server_version or 0) < 180000:
            return  # older servers know no such constraint
        db.execute_sql("CREATE TABLE t (id serial PRIMARY KEY, a text)")
        db.execute_sql("ALTER TABLE t ADD CONSTRAINT nn NOT NULL a NOT VALID")
    runner = MigrationRunner(db, [T])
    assert "validate_constraint" in {step.kind for step in runner.up().applied}
    assert not runner.verify_schema()


def test_what_a_reference_without_columns_leads_to_is_part_of_the_mark(sqlite: Place) -> None:
    referring = table(columns="FOREIGN KEY (id) REFERENCES other (id)")
    db = sqlite.connect()
    run(
        db,
        "CREATE TABLE other (id INTEGER PRIMARY KEY, code INTEGER UNIQUE)",
        "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, a TEXT, FOREIGN KEY (id) REFERENCES other)",
    )
    stamp(db, [referring])
    run(db, "DROP TABLE other", "CREATE TABLE other (id INTEGER UNIQUE, code INTEGER PRIMARY KEY)")
    assert [drift.kind for drift in MigrationRunner(db, [referring]).up().drift] == ["foreign_key"]


def test_names_beyond_words_are_read_whole_by_sqlite(sqlite: Place) -> None:
    class T(pw.Model):
        a = pw.TextField(column_name="😀x", null=True)
        b = pw.IntegerField(column_name="€", null=True, constraints=[SQL("CHECK (€ > 0)")])

        class Meta:
            table_name = "t"

    live = 'CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, 😀x TEXT {}, € INTEGER CHECK ("€" > 0))'
    assert not compared(sqlite, [T], live.format(""))
    other = Place("sqlite", sqlite.dsn + "2", sqlite.folder)
    assert [d.kind for d in compared(other, [T], live.format("COLLATE NOCASE")).drift] == ["column_collation"]


@pytest.mark.parametrize("unique", ["a COLLATE NOCASE, b", "a DESC, b", "a, b"])
def test_a_missing_unique_of_a_table_is_made_as_it_is_declared(sqlite: Place, unique: str) -> None:
    class T(pw.Model):
        a = pw.TextField(null=True)
        b = pw.TextField(null=True)

        class Meta:
            table_name = "t"
            constraints = [SQL(f"UNIQUE ({unique})")]

    db = sqlite.connect()
    run(db, "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY)")
    converges(db, [T])


@pytest.mark.parametrize("text", ["DEFAULT 'x' UNIQUE", "CONSTRAINT u UNIQUE CHECK (\"unique\" <> 'UNIQUE')"])
def test_a_new_column_with_unique_in_its_sql(sqlite: Place, text: str) -> None:
    class T(pw.Model):
        a = pw.TextField(column_name="unique", null=True, constraints=[SQL(text)])

        class Meta:
            table_name = "t"

    db = sqlite.connect()
    run(db, "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY)")
    converges(db, [T])


@pytest.mark.parametrize(
    "text",
    [
        "CHECK (a <> 'see REFERENCES other')",
        "CHECK (a <> 'now' OR a = 'x') /* REFERENCES other */",
        "DEFAULT E'now\\n'",
    ],
)
def test_words_in_a_text_or_a_comment_are_no_sql(postgres: Place, text: str) -> None:
    class T(pw.Model):
        a = pw.TextField(null=True, constraints=[SQL(text)])
        today = pw.TextField(null=True, constraints=[SQL("DEFAULT 'y'")], index=True)

        class Meta:
            table_name = "t"

    db = postgres.connect()
    run(db, "CREATE TABLE other (id int PRIMARY KEY)")
    converges(db, [T])


@pytest.mark.parametrize("how", ["/* x */ other (id)", "-- c\n other", "Ünï (id)", '"q""uo" (id)'])
def test_a_reference_in_sql_however_it_is_written(postgres: Place, how: str) -> None:
    class T(pw.Model):
        n = pw.IntegerField(null=True)

        class Meta:
            table_name = "t"
            constraints = [SQL(f"FOREIGN KEY (n) REFERENCES {how}\n")]

    db = postgres.connect()
    with db.connection_context():
        for name in ("other", '"Ünï"', '"q""uo"'):
            db.execute_sql(f"CREATE TABLE {name} (id int PRIMARY KEY)")
    converges(db, [T])


def test_long_names_and_dots_do_not_collide_in_the_scratch(postgres: Place) -> None:
    long = "x" * 62
    made = [model(f"M{n}", f"{long}{n}", {}, schema="app") for n in (1, 2)]
    dotted = model("Dotted", f"app.{long}1"[:63], {})
    fields = {f"m{n}": pw.ForeignKeyField(target, null=True) for n, target in enumerate([*made, dotted])}
    last = model("Last", "last", fields)
    db = postgres.connect()
    run(db, "CREATE SCHEMA app")
    converges(db, [last, dotted, *made])


def test_a_moment_in_an_index_that_is_built_online_is_the_same_in_every_session(postgres: Place) -> None:
    class Stamped(pw.Field):
        field_type = "timestamptz"

    class T(pw.Model):
        at = Stamped(null=True)

        class Meta:
            table_name = "t"
            indexes = [SQL("CREATE INDEX t_late ON t (at) WHERE at > '2024-01-01 00:00'")]

    there = Place("postgres", f"{postgres.dsn} options='-c TimeZone=Europe/Berlin'", postgres.folder)
    db = there.connect()
    with db.connection_context():
        db.execute_sql("CREATE TABLE t (id serial PRIMARY KEY, at timestamptz)")
        db.execute_sql("INSERT INTO t (at) VALUES (now()), (now())")
        zone = db.execute_sql("SHOW TimeZone").fetchone()
        steps = MigrationRunner(db, [T], online_rows=1).up().applied
        assert [step.online for step in steps if step.name == "t_late"] == [True]
        assert db.execute_sql("SHOW TimeZone").fetchone() == zone
    assert not MigrationRunner(postgres.connect(), [T]).verify_schema()


# Spellings that a person chooses, and what only looks like one.

WRITTEN = {
    "conflict, named": ("a TEXT NOT NULL ON CONFLICT IGNORE", "a TEXT CONSTRAINT nn NOT NULL ON CONFLICT IGNORE"),
    "conflict, of the table": ("a TEXT UNIQUE ON CONFLICT IGNORE", 'a TEXT, CONSTRAINT u UNIQUE ("A") ON CONFLICT IGNORE'),
    "conflict, more beside": ("a TEXT UNIQUE ON CONFLICT FAIL", "a TEXT DEFAULT NULL UNIQUE ON CONFLICT FAIL"),
    "conflict of a key": (
        "a INTEGER PRIMARY KEY ON CONFLICT REPLACE",
        "a INTEGER, PRIMARY KEY (a ASC) ON CONFLICT REPLACE",
    ),
    "conflict of a check does nothing": ("a TEXT, CHECK (a > 1)", "a TEXT, CHECK (a > 1) ON CONFLICT IGNORE"),
    "conflict of null does nothing": ("a TEXT", "a TEXT NULL ON CONFLICT IGNORE"),
    "order of a key": ("a TEXT PRIMARY KEY DESC", "a TEXT, PRIMARY KEY (a DESC)"),
    "comment in a type": ("a VARCHAR(10)", "a VARCHAR /* of ten */ (10)"),
    "pairs of a reference": (
        "a INT, b INT, FOREIGN KEY (a, b) REFERENCES p (x, y) ON DELETE CASCADE",
        "a INT, b INT, FOREIGN KEY (b, a) REFERENCES p (y, x) ON DELETE CASCADE",
    ),
}  # fmt: skip
UNLIKE = {
    "conflict": ("a TEXT UNIQUE ON CONFLICT IGNORE", "a TEXT UNIQUE ON CONFLICT FAIL", "table"),
    "type beside a conflict": (
        "a TEXT NOT NULL ON CONFLICT IGNORE",
        "a VARCHAR(3) NOT NULL ON CONFLICT IGNORE",
        "column_type",
    ),
    "order of a key": ("a TEXT PRIMARY KEY", "a TEXT PRIMARY KEY DESC", "primary_key"),
    "pairs of a reference": (
        "a INT, b INT, FOREIGN KEY (a, b) REFERENCES p (x, y)",
        "a INT, b INT, FOREIGN KEY (b, a) REFERENCES p (x, y)",
        "foreign_key",
    ),
}


class Pair(pw.Model):
    x = pw.IntegerField()
    y = pw.IntegerField()

    class Meta:
        table_name = "p"
        primary_key = pw.CompositeKey("x", "y")


class Written(pw.Field):
    """A column as it is written, with all that follows it in CREATE TABLE."""

    def __init__(self, text: str) -> None:
        super().__init__(null=True)
        self.text = text

    def ddl(self, context: pw.Context) -> pw.Node:
        return SQL(self.text)


def as_written(text: str) -> list[type[pw.Model]]:
    """Return models of a table `t` with this text, and of what it refers to."""
    return [Pair, model("T", "t", {"a": Written(text)}, primary_key=False)]


def made(text: str) -> tuple[str, ...]:
    pair = 'CREATE TABLE p (x INTEGER NOT NULL, y INTEGER NOT NULL, PRIMARY KEY ("x", "y"))'
    return pair, f"CREATE TABLE t ({text})"


@pytest.mark.parametrize("case", WRITTEN)
def test_sqlite_takes_ways_to_write_a_table_for_one(sqlite: Place, case: str) -> None:
    declared, live = WRITTEN[case]
    changes = compared(sqlite, as_written(declared), *made(live))
    assert not changes, changes


@pytest.mark.parametrize("case", UNLIKE)
def test_sqlite_tells_what_differs_once(sqlite: Place, case: str) -> None:
    declared, live, kind = UNLIKE[case]
    assert [drift.kind for drift in compared(sqlite, as_written(declared), *made(live)).drift] == [kind]


KEYS = {
    "of an operand": ("(b = 'x' COLLATE NOCASE)", "(b = 'x')", "((b = 'x' collate nocase))"),
    "of an operand, the usual one": ("(a = 'x' COLLATE BINARY)", "(a = 'x')", "(a='x' COLLATE binary ASC)"),
    "of the key": ("((b || 'x') COLLATE NOCASE)", "(b || 'x')", "(((b || 'x') COLLATE NOCASE))"),
    "of a call": ("(lower(b) COLLATE BINARY)", "(lower(b) COLLATE NOCASE)", "(lower(b))"),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_collation_within_a_key_of_an_index_is_compared(sqlite: Place, case: str) -> None:
    declared, other, same = (f"CREATE UNIQUE INDEX i ON t {keys}" for keys in KEYS[case])
    fields = {"a": pw.TextField(null=True, collation="NOCASE"), "b": pw.TextField(null=True)}
    indexed = model("T", "t", fields, primary_key=False, indexes=[SQL(declared)])
    db = sqlite.connect()
    stamp(db, [indexed])
    runner = MigrationRunner(db, [indexed])
    run(db, "DROP INDEX i", same)
    assert not runner.verify_schema()
    run(db, "DROP INDEX i", other)
    assert [drift.kind for drift in runner.up().drift] == ["index"]


def test_letters_within_the_arguments_of_a_virtual_table_are_compared(sqlite: Place) -> None:
    class Doc(FTS5Model):
        title = SearchField()

        class Meta:
            table_name = "doc"
            options = {"tokenize": "unicode61 tokenchars 'X'"}

    live = """CREATE VIRTUAL TABLE doc USING fts5 ("Title", tokenize="unicode61 tokenchars '{}'")"""
    db = sqlite.connect()
    run(db, live.format("X"))
    assert not MigrationRunner(db, [Doc]).verify_schema()
    run(db, "DROP TABLE doc", live.format("x"))
    assert [drift.kind for drift in MigrationRunner(db, [Doc]).verify_schema().drift] == ["table"]


REFERRING = "CREATE TABLE t (a integer, b integer, CONSTRAINT f FOREIGN KEY {})"


@pytest.mark.parametrize(
    ("reference", "kinds"),
    [
        ("(b, a) REFERENCES p (y, x) ON DELETE SET NULL (b, a)", []),
        ("(b, a) REFERENCES p (x, y) ON DELETE SET NULL (a, b)", ["foreign_key"]),
        ("(b, a) REFERENCES p (y, x) ON DELETE SET NULL (b)", ["foreign_key"]),
    ],
)
def test_a_reference_pairs_its_columns_in_any_order(postgres: Place, reference: str, kinds: list[str]) -> None:
    declared = "a integer, b integer, CONSTRAINT f FOREIGN KEY (a, b) REFERENCES p (x, y) ON DELETE SET NULL (a, b)"
    live = (made("")[0], REFERRING.format(reference))
    changes = compared(postgres, as_written(declared), *live)
    assert [drift.kind for drift in changes.drift] == kinds
    assert not changes.missing
    script = str(MigrationRunner(postgres.connect(), as_written(declared)).mending())
    psql(postgres.dsn, script)
    assert not MigrationRunner(postgres.connect(), as_written(declared)).verify_schema()


def test_a_default_that_a_dump_brings_back_in_another_form_is_the_same(postgres: Place) -> None:
    declared = table("DEFAULT CASE WHEN 'x'::varchar IN ('x', 'y') THEN 'p' ELSE 'q' END")
    db = postgres.connect()
    runner = MigrationRunner(db, [declared])
    runner.up()
    text = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 't'::regclass AND adnum = 2"
    with db.connection_context():
        (shown,) = db.execute_sql(text).fetchone()
    run(db, f"ALTER TABLE t ALTER a SET DEFAULT {shown}")
    with db.connection_context():
        assert db.execute_sql(text).fetchone() != (shown,)
    assert not runner.verify_schema()
    other = shown.replace("'y'", "'z'")
    run(db, f"ALTER TABLE t ALTER a SET DEFAULT {other}")
    assert [drift.kind for drift in runner.verify_schema().drift] == ["column_default"]
    psql(postgres.dsn, str(runner.mending()))
    assert not runner.verify_schema()


def test_an_operator_class_of_the_same_name_in_another_schema_is_another(postgres: Place) -> None:
    operators = ", ".join(f"OPERATOR {number} {symbol}" for number, symbol in enumerate(("<", "<=", "=", ">=", ">"), 1))
    classes = [
        f"CREATE OPERATOR CLASS {schema}.own FOR TYPE text USING btree AS {operators}, FUNCTION 1 bttextcmp(text, text)"
        for schema in ("one", "two")
    ]
    indexed = model("T", "t", {"a": pw.TextField()}, indexes=[SQL("CREATE INDEX t_a ON t (a one.own)")])
    db = postgres.connect()
    run(db, "CREATE SCHEMA one", "CREATE SCHEMA two", *classes)
    converges(db, [indexed])
    stamp(db, [indexed])
    run(db, "DROP INDEX t_a", "CREATE INDEX t_a ON t (a two.own)")
    (drift,) = MigrationRunner(db, [indexed]).up().drift
    assert ("one.own" in str(drift.declared), "two.own" in str(drift.live)) == (True, True)


def test_the_next_start_sees_that_a_reference_leads_to_a_column_of_another_name(postgres: Place) -> None:
    reference = SQL("CONSTRAINT a_to FOREIGN KEY (a) REFERENCES ext (code)")
    referring = model("A", "a", {"a": pw.IntegerField(null=True)}, constraints=[reference])
    db = postgres.connect()
    run(db, "CREATE TABLE ext (code integer UNIQUE)")
    stamp(db, [referring])
    run(db, "ALTER TABLE ext RENAME code TO was", "ALTER TABLE ext ADD code integer UNIQUE")
    assert [(drift.kind, drift.name) for drift in MigrationRunner(db, [referring]).up().drift] == [
        ("foreign_key", "a_to")
    ]


@pytest.mark.parametrize("type_", ["address", "address[]"])
def test_the_next_start_sees_that_a_column_has_a_composite_type_of_another_name(postgres: Place, type_: str) -> None:
    db, models = postgres.connect(), [Pair, model("T", "t", {"a": Written(f"a {type_}")}, primary_key=False)]
    run(db, "CREATE TYPE address AS (street text)")
    stamp(db, models)
    run(db, "ALTER TYPE address RENAME TO was", "CREATE TYPE address AS (city text)")
    assert [(drift.kind, drift.name) for drift in MigrationRunner(db, models).up().drift] == [("column_type", "a")]


# WITHOUT OVERLAPS came with PostgreSQL 18.
RANGES = "(a, b WITHOUT OVERLAPS)" if POSTGRES_VERSION >= 18 else "NULLS NOT DISTINCT (a, b)"


def test_a_unique_constraint_of_ranges_is_mended(postgres: Place) -> None:
    text = "a int4range, b int4range, CONSTRAINT u UNIQUE {}"
    changes = compared(postgres, as_written(text.format(RANGES)), *made(text.format("(a, b)")))
    assert [drift.kind for drift in changes.drift] == ["index"]
    runner = MigrationRunner(postgres.connect(), as_written(text.format(RANGES)))
    psql(postgres.dsn, f"SET client_min_messages TO warning;\n{runner.mending()}")
    assert not runner.verify_schema()


@pytest.mark.parametrize("online_rows", [10_000, 0])
def test_backslashes_mean_the_same_in_a_session_that_reads_them_otherwise(postgres: Place, online_rows: int) -> None:
    class T(pw.Model):
        a = pw.TextField(column_name="a\\b")

        class Meta:
            table_name = 't\\b"q'

    T.add_index(T.index(T.a, where=T.a != "x\\n'y", name="t\\i"))
    odd = Place("postgres", f"{postgres.dsn} options='-c standard_conforming_strings=off'", postgres.folder)
    runners = [MigrationRunner(place.connect(), [T], online_rows=online_rows) for place in (odd, postgres)]
    runners[0].up()
    run(postgres.connect(), 'INSERT INTO "t\\b""q" VALUES (1, \'a\')', 'DROP INDEX "t\\i"')
    assert [step.name for step in runners[0].up().applied] == ["t\\i"]
    for runner in runners:
        assert not runner.verify_schema()
        assert not runner.up().applied
        assert [step.kind for step in runner.undo_plan().pending] == ["drop_index"]


def test_a_stamp_of_drift_is_kept_by_a_session_that_reads_backslashes_otherwise(postgres: Place) -> None:
    quoted = model("T", 't"q', {"a": pw.IntegerField(null=True)})
    odd = Place("postgres", f"{postgres.dsn} options='-c standard_conforming_strings=off'", postgres.folder)
    runner = MigrationRunner(odd.connect(), [quoted])
    runner.up()
    run(postgres.connect(), 'ALTER TABLE "t""q" ALTER a TYPE bigint')
    assert runner.up().drift
    with runner.db.connection_context():
        assert runner._stamping.drift(runner._stamping.standing())


LETTERS = "н" * 40


@pytest.mark.parametrize(
    ("place", "index"),
    [
        ("sqlite", f"CREATE INDEX t_i ON {LETTERS} (a) WHERE a <> \"{LETTERS} {LETTERS}\""),
        ("sqlite", f"CREATE INDEX t_i ON {LETTERS} (a)"),
        ("postgres", f"CREATE INDEX t_i ON {LETTERS[:30]} (a)"),
    ],
    indirect=["place"],
)  # fmt: skip
def test_many_letters_beyond_ascii_are_read_at_once(place: Place, index: str) -> None:
    fields = {"a": pw.TextField(null=True)}
    named = model("T", LETTERS if place.is_sqlite else LETTERS[:30], fields, indexes=[SQL(index)])
    converges(place.connect(), [named])


def test_many_letters_beyond_ascii_in_a_reference_are_read_at_once(place: Place) -> None:
    target, name = model("P", LETTERS[:30], {"a": pw.IntegerField(unique=True)}), LETTERS[:30]
    reference = SQL(f"FOREIGN KEY (a) REFERENCES {name} (a)")
    converges(place.connect(), [target, model("T", "t", {"a": pw.IntegerField(null=True)}, constraints=[reference])])
