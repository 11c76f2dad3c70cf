"""From whatever state a database is in, one run converges or refuses, and the next one has nothing to do."""

from __future__ import annotations

from dataclasses import replace

import peewee as pw
import pytest
from peewee import SQL

from tests.conftest import Place, Server
from tests.migrate.models import converges, model, run
from whatspire_db import MigrationRefused, MigrationRunner, ModelError
from whatspire_db.dsn.postgres import parse_postgres
from whatspire_db.models.service import MigrationVersion

# Names


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["a%b", "a%%b", "%s", "%(x)s", "100%", "sales.2024", 'a"b', "new\nline", "Ünï"])
def test_any_name(place: Place, name: str) -> None:
    db = place.connect()
    first = model("M", name, {"v": pw.IntegerField(column_name=name + " v", index=True)})
    converges(db, [first])
    more = {"v": pw.IntegerField(column_name=name + " v", index=True), "w": pw.TextField(column_name=name, null=True)}
    converges(db, [model("M", name, more)])
    with db.connection_context():
        assert name.lower() in {table.lower() for table in db.get_tables()}


def test_percent_signs_in_a_schema(postgres: Place) -> None:
    db = postgres.connect()
    run(db, 'CREATE SCHEMA "a%%b"')
    converges(db, [model("M", "%s", {"v": pw.IntegerField(index=True)}, schema="a%%b")])


def test_an_index_that_names_no_field_is_a_model_error(place: Place) -> None:
    invoice = model("Invoice", "invoices", {"n": pw.IntegerField()}, indexes=((("n", "customer"), False),))
    runner = MigrationRunner(place.connect(), [invoice])
    for call in (runner.plan, runner.up, runner.verify_schema):
        with pytest.raises(ModelError, match=r"Invoice: Meta\.indexes of table invoices names 'customer'"):
            call()


# Inherited indexes


@pytest.mark.parametrize("parent", ["a model too", "abstract"])
def test_an_inherited_index_goes_to_the_subclass_table(postgres: Place, parent: str) -> None:
    event = model("Event", "tenant_events", {"kind": pw.TextField(), "at": pw.IntegerField()})
    event.add_index(event.kind, event.at, name="idx_kind_at")
    event.add_index(SQL("CREATE INDEX idx_at ON tenant_events (at)"))
    tenant = type(pw.Model)(
        "Tenant", (event,), {"Meta": type("Meta", (), {"schema": "t1", "table_name": "tenant_events"})}
    )
    db = postgres.connect()
    run(db, "CREATE SCHEMA t1")
    models = [event, tenant] if parent == "a model too" else [tenant]
    converges(db, models)
    with db.connection_context():
        found = db.execute_sql("SELECT schemaname, indexname FROM pg_indexes WHERE indexname LIKE 'idx%%'").fetchall()
    schemas = ["public", "t1"] if parent == "a model too" else ["t1"]
    assert sorted(found) == [(schema, index) for schema in schemas for index in ("idx_at", "idx_kind_at")]


# Order


@pytest.mark.parametrize("live", ["CREATE TABLE p (id serial NOT NULL, note text)", "CREATE TABLE p (note text)"])
def test_a_lost_key_comes_back_before_the_table_that_refers_to_it(postgres: Place, live: str) -> None:
    p = model("P", "p", {"note": pw.TextField(null=True)})
    c = model("C", "c", {"p": pw.ForeignKeyField(p)})
    db = postgres.connect()
    run(db, live)
    converges(db, [p, c])


PARENT = model("P", "p", {"n": pw.IntegerField(null=True)}, constraints=[SQL("CONSTRAINT p_n UNIQUE (n)")])
CHILD = model("C", "c", {"p": pw.ForeignKeyField(PARENT, constraint_name="c_fk")})
UNFINISHED = {
    "a reference": [
        "ALTER TABLE c DROP CONSTRAINT c_fk",
        "ALTER TABLE c ADD CONSTRAINT c_fk FOREIGN KEY (p_id) REFERENCES p (id) NOT VALID",
    ],
    "an index": ["UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'c_p_id'::regclass"],
    "a constraint": ["ALTER TABLE p DROP CONSTRAINT p_n", "CREATE UNIQUE INDEX p_n ON p (n)"],
}


@pytest.mark.parametrize("what", UNFINISHED)
def test_a_run_that_only_finishes_something_is_recorded(postgres: Place, what: str) -> None:
    db = postgres.connect()
    MigrationRunner(db, [PARENT, CHILD]).up()
    run(db, "DROP TABLE migration_versions", *UNFINISHED[what])
    runner = MigrationRunner(db, [PARENT, CHILD])
    assert {step.table for step in runner.plan().pending} > {"migration_versions"}
    assert runner.up().version == runner.version() > 0
    assert not runner.verify_schema()


def test_rows_in_the_way_of_all_that_could_be_finished_make_no_history(postgres: Place) -> None:
    db = postgres.connect()
    MigrationRunner(db, [PARENT, CHILD]).up()
    run(
        db,
        "DROP TABLE migration_versions",
        UNFINISHED["a reference"][0],
        "INSERT INTO c (p_id) VALUES (7)",
        UNFINISHED["a reference"][1],
    )
    assert not MigrationRunner(db, [PARENT, CHILD]).plan()


# Domains


class Mail(pw.Field):
    field_type = "mail"


@pytest.mark.parametrize(
    ("domain", "default", "is_refused"),
    [
        ("text NOT NULL", "", True),
        ("text CHECK (VALUE IS NOT NULL)", "", True),
        ("text CHECK (VALUE LIKE '%@%')", "DEFAULT 'nobody'", True),
        ("text NOT NULL", "DEFAULT 'nobody'", False),
        ("text DEFAULT 'nobody' NOT NULL", "", False),
        ("text CHECK (VALUE LIKE '%@%')", "", False),
    ],
)
def test_what_a_domain_refuses_is_known_beforehand(
    postgres: Place, domain: str, default: str, is_refused: bool
) -> None:
    person = model("Person", "person", {"mail": Mail(null=True, constraints=[SQL(default)] if default else None)})
    db = postgres.connect()
    run(
        db,
        f"CREATE DOMAIN mail AS {domain}",
        "CREATE TABLE person (id serial PRIMARY KEY)",
        "INSERT INTO person DEFAULT VALUES",
    )
    plan = MigrationRunner(db, [person]).plan()
    assert [(r.table, r.name) for r in plan.refused] == ([("person", "mail")] if is_refused else [])
    if is_refused:
        with pytest.raises(MigrationRefused):
            MigrationRunner(db, [person]).up()
    else:
        converges(db, [person])


# Partitioned tables

METRICS = [
    "CREATE TABLE metrics (id bigint NOT NULL, day date NOT NULL, name text NOT NULL, PRIMARY KEY (id, day)) "
    "PARTITION BY RANGE (day)",
    "CREATE TABLE metrics_1 PARTITION OF metrics FOR VALUES FROM ('2026-01-01') TO ('2026-02-01')",
    "CREATE TABLE metrics_2 PARTITION OF metrics FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') "
    "PARTITION BY RANGE (id)",
    "CREATE TABLE metrics_2_a PARTITION OF metrics_2 FOR VALUES FROM (0) TO (100)",
    "CREATE TABLE metrics_2_b PARTITION OF metrics_2 DEFAULT",
    "INSERT INTO metrics SELECT g, date '2026-01-01' + g % 50, 'n' || g FROM generate_series(1, 300) AS g",
]
BEGUN = {
    "new": [],
    "the table's own": ["CREATE INDEX metrics_name ON ONLY metrics (name)"],
    "some partitions": [
        "CREATE INDEX metrics_name ON ONLY metrics (name)",
        "CREATE INDEX metrics_1_name ON metrics_1 (name)",
        "ALTER INDEX metrics_name ATTACH PARTITION metrics_1_name",
        "CREATE INDEX metrics_2_a_name ON metrics_2_a (name)",
    ],
    "an INVALID one": [
        "CREATE INDEX metrics_name ON ONLY metrics (name)",
        "CREATE INDEX metrics_1_name ON metrics_1 (name)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'metrics_1_name'::regclass",
    ],
}


def metric(**options: object) -> type[pw.Model]:
    fields = {"id": pw.BigIntegerField(), "day": pw.DateField(), "name": pw.TextField(index=not options)}
    return model("Metrics", "metrics", fields, primary_key=pw.CompositeKey("id", "day"), **options)


@pytest.mark.parametrize("begun", BEGUN)
def test_an_index_of_a_large_partitioned_table_is_built_by_partitions(postgres: Place, begun: str) -> None:
    db = postgres.connect()
    run(db, *METRICS, *BEGUN[begun])
    runner = MigrationRunner(db, [metric()], online_rows=100)
    steps = runner.up().applied
    assert all(step.online for step in steps if step.table.startswith("metrics"))
    assert "attach_index" in {step.kind for step in steps}
    with db.connection_context():
        found = db.execute_sql(
            "SELECT count(*), bool_and(indisvalid) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE relname LIKE 'metrics%%name'"
        ).fetchone()
    assert found == (5, True)
    assert not runner.verify_schema()
    assert not runner.up().applied


def test_a_unique_index_without_the_partition_key_is_refused(postgres: Place) -> None:
    db = postgres.connect()
    run(db, *METRICS)
    unique = metric(indexes=((("id", "name"), True),))
    for rows in (100, 10_000):
        (refusal,) = MigrationRunner(db, [unique], online_rows=rows).plan().refused
        assert "it lacks day, which metrics is partitioned by" in refusal.reason
    converges(db, [metric(indexes=((("id", "name", "day"), True),))])


def test_a_primary_key_without_the_partition_key_is_refused(postgres: Place) -> None:
    db = postgres.connect()
    run(db, *METRICS, "ALTER TABLE metrics DROP CONSTRAINT metrics_pkey")
    fields = {"id": pw.BigIntegerField(primary_key=True), "day": pw.DateField(), "name": pw.TextField()}
    (refusal,) = MigrationRunner(db, [model("Metrics", "metrics", fields)]).plan().refused
    assert "it lacks day, which metrics is partitioned by" in refusal.reason
    assert not MigrationRunner(db, [metric()]).plan().refused


# Adoption


def test_a_database_in_sync_is_adopted_once(place: Place) -> None:
    db = place.connect()
    with db.bind_ctx([PARENT]):
        PARENT.create_table()
    runner = MigrationRunner(db, [PARENT])
    plan = runner.plan()
    assert not plan
    assert "adopts this database" in str(plan)
    report = runner.up()
    assert [step.name for step in report.applied] == ["migration_versions"]
    assert runner.version() == report.version > 0
    assert len(runner.status()) == 1
    assert "adopts" not in str(runner.plan())
    assert not runner.up().applied
    assert len(runner.status()) == 1


def test_a_database_with_a_history_gets_the_stamp_alone(place: Place) -> None:
    db = place.connect()
    with db.bind_ctx([PARENT, MigrationVersion]):
        db.create_tables([PARENT, MigrationVersion])
    runner = MigrationRunner(db, [PARENT])
    assert not runner.up().applied
    assert runner.version() == 0


def test_a_role_that_may_not_create_finds_the_database_in_sync(postgres: Place, server: Server) -> None:
    db = postgres.connect()
    with db.bind_ctx([PARENT]):
        PARENT.create_table()
    run(db, "CREATE ROLE adopter LOGIN", "GRANT SELECT ON p TO adopter")
    try:
        name = parse_postgres(postgres.dsn).arguments["dbname"]
        other = replace(postgres, dsn=server.of_database(name, user="adopter")).connect()
        runner = MigrationRunner(other, [PARENT])
        assert "adopts" not in str(runner.plan())
        assert not runner.up().applied
        other.close_all()
    finally:
        run(db, "DROP OWNED BY adopter", "DROP ROLE adopter")


def test_a_file_that_cannot_get_a_history_is_stamped_beside_it(sqlite: Place) -> None:
    db = sqlite.connect()
    with db.bind_ctx([PARENT]):
        PARENT.create_table()
    run(db, "PRAGMA query_only = on")
    db.close()
    db = pw.SqliteDatabase(sqlite.dsn, pragmas={"query_only": 1})
    runner = MigrationRunner(db, [PARENT])
    assert not runner.up().applied
    with db.connection_context():
        standing = runner.engine.standing([PARENT, MigrationVersion])
    assert standing is not None
    assert standing.stamps is not None
    assert [mark for _, mark in standing.stamps.verified] == [standing.mark]


def partitioned(*, small: bool, **more: pw.Field) -> list[type[pw.Model]]:
    """Return models of a partitioned table and of one of its partitions."""
    fields = {"id": pw.BigIntegerField(), "day": pw.DateField(), "name": pw.TextField(index=True), **more}
    return [
        model(name, table, dict(fields), primary_key=pw.CompositeKey("id", "day"))
        for name, table in (("Metrics", "metrics"), ("Metrics1", "metrics_1"))
    ][:: 1 if small else -1]


@pytest.mark.parametrize("rows", [100, 10_000])
@pytest.mark.parametrize("small", [True, False])
def test_a_column_and_an_index_of_a_table_and_of_its_partition(postgres: Place, rows: int, small: bool) -> None:
    db = postgres.connect()
    run(db, *METRICS)
    models = partitioned(small=small, more=pw.IntegerField(null=True))
    MigrationRunner(db, models, online_rows=rows).up()
    runner = MigrationRunner(db, models)
    assert not runner.verify_schema()
    assert not runner.up().applied


def test_a_column_of_a_partition_alone_is_refused(postgres: Place) -> None:
    db = postgres.connect()
    run(db, *METRICS)
    only = partitioned(small=True, more=pw.IntegerField(null=True))[1]
    (refusal,) = MigrationRunner(db, [only]).plan().refused
    assert "a partition of metrics" in refusal.reason


def test_a_column_that_a_table_inherits_comes_with_its_parent(postgres: Place) -> None:
    db = postgres.connect()
    run(db, "CREATE TABLE up (id serial PRIMARY KEY)", "CREATE TABLE down (PRIMARY KEY (id)) INHERITS (up)")
    names = ("up", "down")
    models = [model(name.title(), name, {"a": pw.TextField(null=True)}) for name in names]
    steps = MigrationRunner(db, models).up().applied
    assert [step.table for step in steps if step.kind == "add_column"] == ["up"]
    assert not [m for m in MigrationRunner(db, models).verify_schema().missing if m.kind == "column"]


def test_references_in_sql_that_form_a_circle_are_refused(postgres: Place) -> None:
    models = [
        model("A", "a", {"b": pw.IntegerField(null=True)}, constraints=[SQL("FOREIGN KEY (b) REFERENCES b (id)")]),
        model("B", "b", {"a": pw.IntegerField(null=True)}, constraints=[SQL("FOREIGN KEY (a) REFERENCES a (id)")]),
    ]
    db = postgres.connect()
    (refusal,) = MigrationRunner(db, models).plan().refused
    assert "which refers back to it" in refusal.reason


def test_periods_that_do_not_overlap(postgres: Place) -> None:
    db = postgres.connect()
    with db.connection_context():
        db.connection()
        if (db.server_version or 0) < 180000:
            return  # older servers know none
        db.execute_sql("CREATE TABLE p (id int4range NOT NULL, at daterange NOT NULL)")
        db.execute_sql("CREATE TABLE c (id int4range NOT NULL, at daterange NOT NULL)")

    class Range(pw.Field):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.field_type = name

    def of_ranges(name: str, constraint: str) -> type[pw.Model]:
        fields = {"id": Range("int4range"), "at": Range("daterange")}
        return model(name, name, fields, primary_key=False, constraints=[SQL(constraint)])

    parent = of_ranges("p", "CONSTRAINT p_key UNIQUE (id, at WITHOUT OVERLAPS)")
    child = of_ranges("c", "CONSTRAINT c_p FOREIGN KEY (id, PERIOD at) REFERENCES p (id, PERIOD at)")
    converges(db, [parent, child])


def checked(names: dict[str, str]) -> type[pw.Model]:
    """Return a model of columns each of which has a CHECK that names another column."""
    return model(
        "T", "t", {a: pw.IntegerField(null=True, constraints=[pw.Check(f"{b} > 0")]) for a, b in names.items()}
    )


@pytest.mark.parametrize("circle", [{"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "a"}])
def test_columns_whose_checks_name_each_other_are_refused_by_sqlite(sqlite: Place, circle: dict[str, str]) -> None:
    db = sqlite.connect()
    run(db, "CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY)")
    plan = MigrationRunner(db, [checked(circle)]).plan()
    assert sorted(refusal.name for refusal in plan.refused) == sorted(circle)
    assert all("name each other" in refusal.reason for refusal in plan.refused)


def test_columns_whose_checks_form_a_chain_come_in_its_order(place: Place) -> None:
    db = place.connect()
    run(db, f"CREATE TABLE t (id {'INTEGER NOT NULL' if place.is_sqlite else 'serial'} PRIMARY KEY)")
    converges(db, [checked({"a": "b", "b": "c", "c": "d", "d": "d"})])
