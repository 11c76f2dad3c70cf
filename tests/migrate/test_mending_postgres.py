"""verify --sql on PostgreSQL: kinds of drift that the common cases leave out, and those without a safe statement."""

from __future__ import annotations

from typing import Any

import peewee as pw
import pytest
from peewee import SQL

from tests.conftest import Place
from tests.migrate.mended import mending, run, with_failure
from whatspire_db import MigrationRunner
from whatspire_db.migrate.mending import is_comment


def model(table: str, *constraints: str, schema_indexes: tuple[str, ...] = (), **fields: Any) -> type[pw.Model]:
    """Return a model of a table; a text is the type and the constraints of a column."""
    options = {
        "table_name": table,
        "constraints": [SQL(c) for c in constraints],
        "indexes": [SQL(sql) for sql in schema_indexes],
        "legacy_table_names": False,
    }
    if not any(getattr(f, "primary_key", False) for f in fields.values()):
        fields = {"id": pw.IntegerField(primary_key=True), **fields}
    return type(table.title(), (pw.Model,), {**fields, "Meta": type("Meta", (), options)})


def null(kind: type[pw.Field], *constraints: str, **more: Any) -> pw.Field:
    return kind(null=True, constraints=[SQL(c) for c in constraints], **more)


class JSONB(pw.Field):
    field_type = "JSONB"


# Each a table of its own: the model, what is there instead, and how many differences that makes.
CASES: dict[str, tuple[type[pw.Model], list[str], int]] = {
    "identity to serial": (
        model("a1", id=pw.AutoField()),
        ["CREATE TABLE a1 (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)", "INSERT INTO a1 DEFAULT VALUES"],
        2,
    ),
    "serial to identity": (
        model("a2", id=pw.IdentityField()),
        ["CREATE TABLE a2 (id serial PRIMARY KEY)", "INSERT INTO a2 DEFAULT VALUES"],
        2,
    ),
    "counting": (
        model("a3", id=pw.IdentityField()),
        [
            "CREATE TABLE a3 (id int GENERATED ALWAYS AS IDENTITY (START 5 INCREMENT 7 CYCLE) PRIMARY KEY)",
            "INSERT INTO a3 DEFAULT VALUES",
        ],
        1,
    ),
    "plain to identity": (
        model("a4", id=pw.IdentityField()),
        ["CREATE TABLE a4 (id int PRIMARY KEY)", "INSERT INTO a4 VALUES (41)"],
        1,
    ),
    "plain to serial of another type": (
        model("a5", id=pw.BigAutoField()),
        ["CREATE TABLE a5 (id int PRIMARY KEY)", "INSERT INTO a5 VALUES (41)"],
        2,
    ),
    "serial of another type": (
        model("a6", id=pw.BigAutoField()),
        ["CREATE TABLE a6 (id serial PRIMARY KEY)", "INSERT INTO a6 DEFAULT VALUES"],
        1,
    ),
    "identity to none": (
        model("a7", v=null(pw.IntegerField)),
        ["CREATE TABLE a7 (id int PRIMARY KEY, v int GENERATED ALWAYS AS IDENTITY)", "INSERT INTO a7 VALUES (1)"],
        2,
    ),
    "serial to a constant": (
        model("a8", v=pw.IntegerField(constraints=[SQL("DEFAULT 4")])),
        ["CREATE TABLE a8 (id int PRIMARY KEY, v serial)", "INSERT INTO a8 VALUES (1)"],
        1,
    ),
    "generated to plain": (
        model("b1", v=null(pw.IntegerField)),
        [
            "CREATE TABLE b1 (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id * 2) STORED)",
            "INSERT INTO b1 VALUES (1)",
        ],
        1,
    ),
    "both ends of a reference": (
        model("c1", v=pw.UUIDField(unique=True)),
        [
            "CREATE TABLE c1 (id int PRIMARY KEY, v text NOT NULL DEFAULT '' UNIQUE)",
            "INSERT INTO c1 VALUES (1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')",
        ],
        2,
    ),
    "the other end": (
        model("c2", 'CONSTRAINT c2_v FOREIGN KEY (v) REFERENCES "c1" (v)', v=pw.UUIDField()),
        [
            "CREATE TABLE c2 (id int PRIMARY KEY, v text NOT NULL CONSTRAINT c2_v REFERENCES c1 (v))",
            "INSERT INTO c2 VALUES (1, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11')",
        ],
        1,
    ),
    "key that others refer to": (
        model("d1", v=null(pw.IntegerField)),
        [
            "CREATE TABLE d1 (id int, v int, PRIMARY KEY (id) INCLUDE (v))",
            "CREATE TABLE d1_user (d int CONSTRAINT d1_user_d REFERENCES d1 ON DELETE CASCADE)",
            "INSERT INTO d1 VALUES (1, 2)",
            "INSERT INTO d1_user VALUES (1)",
        ],
        1,
    ),
    "unique index that others refer to": (
        model("d2", v=pw.IntegerField(unique=True)),
        [
            "CREATE TABLE d2 (id int PRIMARY KEY, v int NOT NULL)",
            "CREATE UNIQUE INDEX d2_v ON d2 (v) INCLUDE (id)",
            "ALTER TABLE d2 REPLICA IDENTITY USING INDEX d2_v",
            "CREATE TABLE d2_user (d int REFERENCES d2 (v))",
            "INSERT INTO d2 VALUES (1, 2)",
        ],
        1,
    ),
    "deferrable constraint": (
        model("e1", "CONSTRAINT e1_v UNIQUE (v) DEFERRABLE INITIALLY DEFERRED", v=null(pw.IntegerField)),
        ["CREATE TABLE e1 (id int PRIMARY KEY, v int CONSTRAINT e1_v UNIQUE)", "INSERT INTO e1 VALUES (1, 2)"],
        1,
    ),
    "index where a deferrable constraint is": (
        model("e2", v=null(pw.IntegerField, unique=True)),
        ["CREATE TABLE e2 (id int PRIMARY KEY, v int CONSTRAINT e2_v UNIQUE DEFERRABLE)", "INSERT INTO e2 VALUES (1)"],
        1,
    ),
    "constraint where an index is": (
        model("e3", "CONSTRAINT e3_v UNIQUE (v)", v=null(pw.IntegerField)),
        ["CREATE TABLE e3 (id int PRIMARY KEY, v int)", "CREATE UNIQUE INDEX e3_other ON e3 (v)"],
        1,
    ),
    "exclusion": (
        model("f1", "CONSTRAINT f1_x EXCLUDE USING btree (v WITH =) WHERE (v > 0)", v=null(pw.IntegerField)),
        ["CREATE TABLE f1 (id int PRIMARY KEY, v int, CONSTRAINT f1_x EXCLUDE USING btree (v WITH =))"],
        1,
    ),
    "time to instant": (
        model("g1", at=pw.DateTimeField(constraints=[SQL("DEFAULT now()")])),
        [
            "CREATE TABLE g1 (id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())",
            "INSERT INTO g1 VALUES (1, '2024-01-02 03:04:05+02')",
        ],
        1,
    ),
    "to boolean": (
        model("g2", flag=pw.BooleanField(constraints=[SQL("DEFAULT true")])),
        ["CREATE TABLE g2 (id int PRIMARY KEY, flag int NOT NULL DEFAULT 0)", "INSERT INTO g2 VALUES (1, 1)"],
        2,
    ),
    "check that is not valid": (
        model("h1", "CONSTRAINT h1_v CHECK (v > 0)", v=null(pw.IntegerField)),
        ["CREATE TABLE h1 (id int PRIMARY KEY, v int)", "ALTER TABLE h1 ADD CONSTRAINT h1_v CHECK (v > 0) NOT VALID"],
        1,
    ),
    "index that is invalid": (
        model("h2", v=null(pw.IntegerField, index=True)),
        [
            "CREATE TABLE h2 (id int PRIMARY KEY, v int)",
            "CREATE INDEX h2_v ON h2 (v)",
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'h2_v'::regclass",
        ],
        1,
    ),
    "partitioned": (
        model("i1", "CONSTRAINT i1_c CHECK (v > 0)", v=pw.IntegerField(index=True)),
        [
            "CREATE TABLE i1 (id int PRIMARY KEY, v bigint CONSTRAINT i1_c CHECK (v > 1)) PARTITION BY RANGE (id)",
            "CREATE TABLE i1_1 PARTITION OF i1 DEFAULT",
            "CREATE INDEX i1_v ON i1 (v DESC)",
            "INSERT INTO i1 VALUES (1, 2)",
        ],
        4,
    ),
}


def counts(place: Place, models: list[type[pw.Model]]) -> dict[str, int]:
    db = place.connect()
    with db.connection_context():
        changes = MigrationRunner(db, models).verify_schema()
    assert not changes.missing, str(changes.missing)
    found: dict[str, int] = {}
    for drift in changes.drift:
        found[drift.table] = found.get(drift.table, 0) + 1
    return found


@pytest.mark.parametrize("stops", [True, False])
def test_kinds_of_drift_that_are_mended(postgres: Place, stops: bool) -> None:
    db = postgres.connect()
    models = [m for m, _, _ in CASES.values()]
    for _, statements, _ in CASES.values():
        for sql in statements:
            db.execute_sql(sql)
    db.execute_sql("SET TimeZone TO 'UTC'")
    before = {m: db.execute_sql(f"SELECT * FROM {m._meta.table_name} ORDER BY id").fetchall() for m in models}
    assert counts(postgres, models) == {m._meta.table_name: number for m, _, number in CASES.values()}
    script = str(mending(postgres, models))
    assert run(postgres, script, stops=stops) == "", script
    assert counts(postgres, models) == {}, script
    for m, was in before.items():
        found = db.execute_sql(f"SELECT * FROM {m._meta.table_name} ORDER BY id").fetchall()
        assert [tuple(map(comparable, row)) for row in found] == [tuple(map(comparable, row)) for row in was]
    for table, key in {"a1": 2, "a2": 2, "a3": 6, "a4": 42, "a5": 42, "a6": 2}.items():
        assert db.execute_sql(f"INSERT INTO {table} DEFAULT VALUES RETURNING id").fetchone() == (key,), table
    assert (
        len(db.execute_sql("SELECT FROM pg_constraint WHERE conname ~ '^d._user_d' AND convalidated").fetchall()) == 2
    )
    assert db.execute_sql("SELECT FROM pg_index WHERE indexrelid = 'd2_v'::regclass AND indisreplident").fetchall()
    db.close()


def comparable(value: Any) -> Any:
    """A time without a zone, and a text of a uuid, are what they were before."""
    return str(value).removesuffix("+00:00") if not isinstance(value, bool) else int(value) and str(int(value))


WITHOUT_STATEMENT: dict[str, tuple[type[pw.Model], list[str], str]] = {
    "a view uses the column": (
        model("j1", v=pw.IntegerField()),
        ["CREATE TABLE j1 (id int PRIMARY KEY, v bigint NOT NULL)", "CREATE VIEW j1_view AS SELECT v FROM j1"],
        "view j1_view",
    ),
    "a generated column uses it": (
        model("j2", v=pw.IntegerField()),
        ["CREATE TABLE j2 (id int PRIMARY KEY, v bigint NOT NULL, g bigint GENERATED ALWAYS AS (v + 1) STORED)"],
        "generated column g",
    ),
    "no cast": (
        model("j3", v=pw.IntegerField()),
        ["CREATE TABLE j3 (id int PRIMARY KEY, v date NOT NULL)"],
        "date was tried to be made integer",
    ),
    "plain to generated": (
        model("j4", v=null(pw.IntegerField, "GENERATED ALWAYS AS (id + 1) STORED")),
        ["CREATE TABLE j4 (id int PRIMARY KEY, v int)"],
        "a plain column cannot become STORED",
    ),
    "a view in the place": (
        model("j5", v=pw.IntegerField()),
        ["CREATE VIEW j5 AS SELECT 1 AS id, 2 AS v"],
        "it is a view",
    ),
    "inherited": (
        model("j7", v=pw.IntegerField()),
        ["CREATE TABLE j7_of (id int, v bigint NOT NULL)", "CREATE TABLE j7 (PRIMARY KEY (id)) INHERITS (j7_of)"],
        "inherited from j7_of",
    ),
    "what it refers to is missing": (
        model("j6", "CONSTRAINT j6_v CHECK (v < w)", v=pw.IntegerField(), w=null(pw.IntegerField)),
        ["CREATE TABLE j6 (id int PRIMARY KEY, v int NOT NULL CONSTRAINT j6_v CHECK (v > 0))"],
        "run up first",
    ),
}


def test_kinds_of_drift_without_a_safe_statement_say_why(postgres: Place) -> None:
    db = postgres.connect()
    for _, statements, _ in WITHOUT_STATEMENT.values():
        for sql in statements:
            db.execute_sql(sql)
    found = mending(postgres, [m for m, _, _ in WITHOUT_STATEMENT.values()])
    assert not any(fix.is_safe for fix in found.fixes), str(found)
    for m, _, why in WITHOUT_STATEMENT.values():
        (fix,) = (fix for fix in found.fixes if fix.drift[0].table == m._meta.table_name)
        assert fix.sql[0].startswith("-- no safe statement: ")
        assert why in "\n".join(fix.sql)
    assert run(postgres, str(found)) == ""
    db.close()


def test_type_says_whether_it_rewrites_and_what_stops_it(postgres: Place) -> None:
    shorter, longer = model("k1", v=pw.CharField(max_length=3)), model("k2", v=pw.TextField())
    db = postgres.connect()
    db.execute_sql("CREATE TABLE k1 (id int PRIMARY KEY, v varchar(9) NOT NULL)")
    db.execute_sql("CREATE TABLE k2 (id int PRIMARY KEY, v varchar(9) NOT NULL)")
    db.execute_sql("INSERT INTO k1 VALUES (1, 'long')")
    narrow, wide = (next(iter(mending(postgres, [m]).fixes)).sql for m in (shorter, longer))
    assert narrow[:2] == (
        "-- rewrites the table; readers and writers wait meanwhile (ACCESS EXCLUSIVE)",
        '-- values that are too long stop it: SELECT * FROM "k1" WHERE length("v"::text) > 3',
    )
    assert wide[0].startswith("-- does not rewrite the table")
    assert wide[1] == "BEGIN"
    assert "too long" in run(postgres, str(mending(postgres, [shorter])))
    assert db.execute_sql("SELECT v FROM k1").fetchall() == [("long",)]
    db.close()


@pytest.mark.parametrize("column", ["v", "order", 'o"d%d'])
def test_a_check_that_a_failed_script_left_is_taken_away(postgres: Place, column: str) -> None:
    m, db = model("m1", v=pw.IntegerField(column_name=column)), postgres.connect()
    quoted = '"' + column.replace('"', '""') + '"'
    db.execute_sql(f"CREATE TABLE m1 (id int PRIMARY KEY, {quoted.replace('%', '%%')} int)")
    (fix,) = mending(postgres, [m]).fixes
    (number,) = (n for n, sql in enumerate(s for s in fix.sql if not is_comment(s)) if "VALIDATE" in sql)
    assert "nowhere" in run(postgres, with_failure(fix.sql, number))
    assert run(postgres, str(mending(postgres, [m]))) == ""
    assert counts(postgres, [m]) == {}
    assert (
        db.execute_sql("SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = 'm1'::regclass").fetchall()
        == []
    )
    db.close()


def test_other_work_on_the_table_is_not_held_up_for_long(postgres: Place) -> None:
    """A statement that waits for its lock gives up, and leaves all as it was."""
    m = model("l1", v=pw.IntegerField(constraints=[SQL("DEFAULT 1")]))
    db = postgres.connect()
    db.execute_sql("CREATE TABLE l1 (id int PRIMARY KEY, v int NOT NULL)")
    script = str(mending(postgres, [m])).replace("'5s'", "'50ms'")
    with db.atomic():
        db.execute_sql("SELECT * FROM l1")
        assert "lock timeout" in run(postgres, script, stops=False)
    assert counts(postgres, [m]) == {"l1": 1}
    db.close()


def test_a_key_that_a_reference_needs_leaves_it_as_valid_as_it_was(postgres: Place) -> None:
    class Sold(pw.Model):
        day = pw.DateField()
        number = pw.IntegerField()

        class Meta:
            table_name = "sold"
            primary_key = pw.CompositeKey("number", "day")

    db = postgres.connect()
    for sql in (
        "CREATE TABLE sold (day date, number int, PRIMARY KEY (day, number)) PARTITION BY RANGE (day)",
        "CREATE TABLE sold_1 PARTITION OF sold DEFAULT",
        "CREATE TABLE paid (day date, number int, CONSTRAINT paid_sold FOREIGN KEY (day, number) REFERENCES sold)",
        "CREATE TABLE sent (day date, number int, CONSTRAINT sent_sold FOREIGN KEY (day, number) REFERENCES sold) "
        "PARTITION BY RANGE (day)",
        "CREATE TABLE sent_1 PARTITION OF sent DEFAULT",
        "INSERT INTO sold VALUES ('2024-01-01', 1)",
        "INSERT INTO paid SELECT * FROM sold",
        "INSERT INTO sent SELECT * FROM sold",
    ):
        db.execute_sql(sql)
    assert run(postgres, str(mending(postgres, [Sold]))) == ""
    assert counts(postgres, [Sold]) == {}
    found = "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND convalidated ORDER BY 1"
    assert db.execute_sql(found).fetchall() == [("paid_sold",), ("sent_sold",)]
    db.close()


def test_references_that_are_not_enforced_do_not_stop_another_type_of_both_ends(postgres: Place) -> None:
    class Base(pw.Model):
        class Meta:
            legacy_table_names = False

    class Owner(Base):
        id = pw.BigAutoField()

    class Pet(Base):
        owner = pw.ForeignKeyField(Owner)

    db = postgres.connect()
    with db.bind_ctx([Owner, Pet]):
        db.create_tables([Owner, Pet])
    for sql in (
        "ALTER TABLE pet ADD CONSTRAINT own FOREIGN KEY (owner_id) REFERENCES owner ON DELETE CASCADE",
        "ALTER TABLE pet ALTER owner_id TYPE int",
        "ALTER TABLE owner ALTER id TYPE int",
        "ALTER TABLE pet DISABLE TRIGGER ALL",
        "INSERT INTO owner VALUES (1)",
        "INSERT INTO pet (owner_id) VALUES (1)",
    ):
        db.execute_sql(sql)
    if (db.server_version or 0) >= 180000:
        db.execute_sql("ALTER TABLE pet ADD CONSTRAINT loose FOREIGN KEY (owner_id) REFERENCES owner NOT ENFORCED")
    script = str(mending(postgres, [Owner, Pet]))
    assert '-- the triggers of "pet"."own" are disabled now, and enabled afterwards' in script
    assert run(postgres, script) == ""
    assert counts(postgres, [Owner, Pet]) == {}
    kept = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conrelid = 'pet'::regclass"
    assert db.execute_sql(kept).fetchone() == ((3 if (db.server_version or 0) >= 180000 else 2),)
    db.close()


@pytest.mark.parametrize("key", ["int PRIMARY KEY", "int GENERATED ALWAYS AS IDENTITY PRIMARY KEY"])
def test_who_inserts_rows_may_still_do_so_where_a_sequence_is_new(postgres: Place, key: str) -> None:
    m, db = model("served", id=pw.AutoField(), v=null(pw.IntegerField)), postgres.connect()
    (number,) = db.execute_sql("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
    owner, writer, other = (f'"{who} {number}"' for who in ("owner", "writer", "other"))
    try:
        for sql in (
            *(f"CREATE ROLE {role}" for role in (owner, writer, other)),
            f"CREATE TABLE served (id {key}, v int)",
            f"GRANT INSERT (v) ON served TO {writer}",
            f"GRANT SELECT ON served TO {other}, {writer}",
            f"GRANT CREATE ON SCHEMA public TO {owner}",
            f"ALTER TABLE served OWNER TO {owner}",
        ):
            db.execute_sql(sql)
        script = str(mending(postgres, [m]))
        assert script.index("LOCK TABLE") < script.index("CREATE SEQUENCE") < script.index("setval")
        assert run(postgres, script) == ""
        assert counts(postgres, [m]) == {}
        for role in (owner, writer):
            db.execute_sql(f"SET ROLE {role}")
            db.execute_sql("INSERT INTO served (v) VALUES (1)")
        db.execute_sql("RESET ROLE")
        usage = "SELECT has_sequence_privilege(%s, pg_get_serial_sequence('served', 'id'), 'USAGE')"
        assert db.execute_sql(usage, [other.strip('"')]).fetchone() == (False,)
    finally:
        db.execute_sql("RESET ROLE")
        for role in (owner, writer, other):
            db.execute_sql(f"DROP OWNED BY {role} CASCADE")
            db.execute_sql(f"DROP ROLE {role}")
        db.close()


def test_values_without_an_equality_are_found_by_their_text(postgres: Place) -> None:
    m, db = model("k3", v=JSONB()), postgres.connect()
    db.execute_sql("CREATE TABLE k3 (id int PRIMARY KEY, v json NOT NULL)")
    db.execute_sql("""INSERT INTO k3 VALUES (1, '{"a": 1}'), (2, '{"a": 1, "a": 2}')""")
    (fix,) = mending(postgres, [m]).fixes
    (remark,) = (sql for sql in fix.sql if "SELECT" in sql)
    assert [row[0] for row in db.execute_sql(remark.partition(": ")[2]).fetchall()] == [2]
    db.close()
