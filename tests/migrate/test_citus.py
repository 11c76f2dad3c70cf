"""PostgreSQL with Citus, a toy of it: which node may be migrated, what a cluster would refuse, and what goes along."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peewee as pw
import pytest
from peewee import SQL

from tests.citus import TO_WORKER
from tests.conftest import Place, stamp
from tests.servers import opened, psql
from whatspire_db import MigrationRefused, MigrationRunner, WrongNode
from whatspire_db.migrate.plan import Plan

ROWS = 20_000  # above the limit over which steps go online


def model(name: str, *constraints: str, indexes: tuple[Any, ...] = (), **fields: pw.Field) -> type[pw.Model]:
    """Return a model of a tenant's table, whose key contains the tenant."""
    meta = {"table_name": name, "constraints": [SQL(c) for c in constraints], "indexes": indexes}
    key = {"tenant": pw.IntegerField(), "id": pw.IntegerField()}
    inner = type("Meta", (), {**meta, "primary_key": pw.CompositeKey("tenant", "id"), "legacy_table_names": False})
    return type(name.title(), (pw.Model,), {**key, **fields, "Meta": inner})


DISTRIBUTED = "SELECT create_distributed_table('{}', 'tenant')"
REFERENCE = "SELECT create_reference_table('{}')"


@pytest.fixture
def db(citus: Place) -> Iterator[pw.PostgresqlDatabase]:
    """A cluster's coordinator with tables of each kind: orders and items by tenant, countries, and plain notes."""
    database = citus.connect()
    with database.connection_context():
        MigrationRunner(database, [model(name) for name in ("orders", "items", "countries", "notes")]).up()
        for table in ("orders", "items"):
            database.execute_sql(DISTRIBUTED.format(table))
        database.execute_sql(REFERENCE.format("countries"))
        yield database
    database.close_all()


def plan(db: pw.Database, *models: type[pw.Model]) -> Plan:
    return MigrationRunner(db, list(models)).plan()


def refusal(db: pw.Database, *models: type[pw.Model]) -> str:
    """Return the reason and the hint of the one refusal, which a run repeats without having changed anything."""
    (refused,) = plan(db, *models).refused
    before = db.get_tables(), db.execute_sql("SELECT count(*) FROM pg_constraint").fetchone()
    with pytest.raises(MigrationRefused) as caught:
        MigrationRunner(db, list(models)).up()
    assert caught.value.fact == refused.reason
    assert (db.get_tables(), db.execute_sql("SELECT count(*) FROM pg_constraint").fetchone()) == before
    return f"{refused.reason} ({refused.hint})"


# Which node


@pytest.mark.parametrize("verb", ["up", "plan", "verify", "status"])
def test_worker_is_refused_and_names_the_coordinator(citus: Place, verb: str) -> None:
    psql(citus.dsn, TO_WORKER)
    done = citus.run(verb, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["exit"]) == (4, 4)
    assert "worker of a Citus cluster" in said["error"]
    assert "coordinator:5432" in said["hint"]
    with opened(citus) as db:
        assert db.get_tables() == []


def test_worker_without_a_known_coordinator_says_what_to_do(citus: Place) -> None:
    psql(citus.dsn, f"{TO_WORKER}; DELETE FROM pg_dist_node WHERE groupid = 0")
    with opened(citus) as db, pytest.raises(WrongNode) as refused:
        MigrationRunner(db).verify_schema()
    assert "citus_set_coordinator_host" in refused.value.hint


def test_stamped_server_that_becomes_a_worker_is_refused(citus: Place) -> None:
    with opened(citus) as db:
        stamp(db, [model("orders")])
    psql(citus.dsn, TO_WORKER)
    with opened(citus) as db, pytest.raises(WrongNode):
        MigrationRunner(db, [model("orders")]).up()


# A catalog that does not say which group this node is of.
NO_GROUP = """
CREATE OR REPLACE FUNCTION pg_catalog.citus_is_coordinator() RETURNS boolean LANGUAGE sql STABLE AS 'SELECT false';
SET allow_system_table_mods = on; ALTER EXTENSION citus DROP TABLE pg_dist_local_group; DROP TABLE pg_dist_local_group;
"""


@pytest.mark.parametrize(
    "nodes",
    [
        "DELETE FROM pg_dist_node",
        "UPDATE pg_dist_node SET isactive = false",
        f"DELETE FROM pg_dist_node; {NO_GROUP}",
    ],
    ids=["none", "none active", "none, and no group"],
)
def test_coordinator_without_active_nodes_is_migrated(citus: Place, nodes: str) -> None:
    psql(citus.dsn, nodes)
    with opened(citus) as db:
        MigrationRunner(db).up()
        assert not MigrationRunner(db).verify_schema()


def test_coordinator_is_stamped_and_has_no_extras(db: pw.PostgresqlDatabase) -> None:
    db.execute_sql(
        "CREATE TRIGGER truncate_trigger_16405 AFTER TRUNCATE ON orders EXECUTE FUNCTION citus_truncate_trigger()"
    )
    models = [model(name) for name in ("orders", "items", "countries", "notes")]
    runner = MigrationRunner(db, models)
    changes = runner.verify_schema()
    assert (changes.missing, changes.drift, changes.extra) == ([], [], [])
    stamp(db, models)


# What a plan says


def test_plan_says_where_the_tables_stand(db: pw.PostgresqlDatabase) -> None:
    more = {"more": pw.TextField(null=True)}
    tables = [model(name, **more) for name in ("orders", "countries", "notes")] + [model("new")]
    notes = [note for note in plan(db, *tables).notes if "prepared" not in note]
    assert len(notes) == 3
    assert notes[0].startswith("orders is distributed by tenant: ")
    assert notes[1].startswith("countries is a reference table: ")
    assert notes[2].startswith("new stands on the coordinator alone until ")


def test_plan_says_of_a_target_where_it_stands(db: pw.PostgresqlDatabase) -> None:
    referring = model("notes", "CONSTRAINT r FOREIGN KEY (tenant, id) REFERENCES countries (tenant, id)")
    assert [note.partition(":")[0] for note in plan(db, referring, model("countries")).notes] == [
        "countries is a reference table"
    ]


def test_plan_of_a_plain_server_says_nothing_of_places(postgres: Place) -> None:
    with opened(postgres) as db:
        assert plan(db, model("orders")).notes == ()


# What a cluster would refuse


def test_unique_key_without_the_distribution_column_is_refused(db: pw.PostgresqlDatabase) -> None:
    a = pw.IntegerField(null=True)
    for changed in (
        model("orders", a=pw.IntegerField(null=True, unique=True)),
        model("orders", indexes=((("a",), True),), a=a),
        model("orders", indexes=((("a", "id"), True),), a=a),
        model("orders", "CONSTRAINT u UNIQUE (a)", a=a),
        model("orders", "CONSTRAINT u EXCLUDE USING btree (a WITH =)", a=a),
    ):
        said = refusal(db, changed)
        assert "orders, which is distributed by tenant, without that column" in said
        assert "add tenant to its columns" in said


@pytest.mark.parametrize("table", ["orders", "countries", "notes"])
def test_unique_key_with_the_distribution_column_or_elsewhere_is_added(db: pw.PostgresqlDatabase, table: str) -> None:
    columns = ("tenant", "a") if table == "orders" else ("a",)
    changed = model(table, indexes=((columns, True),), a=pw.IntegerField(null=True))
    assert MigrationRunner(db, [changed]).up().applied
    assert not MigrationRunner(db, [changed]).verify_schema()


def test_primary_key_without_the_distribution_column_is_refused(db: pw.PostgresqlDatabase) -> None:
    db.execute_sql("CREATE TABLE keyless (id integer NOT NULL, tenant integer NOT NULL)")
    db.execute_sql(DISTRIBUTED.format("keyless"))
    keyed = type("Keyless", (pw.Model,), {"id": pw.IntegerField(primary_key=True), "tenant": pw.IntegerField()})
    assert "keyless, which is distributed by tenant" in refusal(db, keyed)


def reference(source: str, target: str, columns: str = "tenant, id", more: str = "") -> list[type[pw.Model]]:
    """Return models of two tables, of which one has a new foreign key to the other."""
    constraint = f"CONSTRAINT r FOREIGN KEY ({columns}) REFERENCES {target} (tenant, id) {more}"
    return [model(source, constraint), *([model(target)] if target != source else [])]


REFUSED = {
    ("countries", "orders"): "countries is a reference table, and orders is distributed by tenant",
    ("notes", "orders"): "notes is kept on the coordinator alone, and orders is distributed by tenant",
    ("new", "orders"): "new is kept on the coordinator alone, and orders is distributed by tenant",
    ("orders", "notes"): "orders is distributed by tenant, and notes is kept on the coordinator alone",
    ("orders", "apart"): "orders is distributed by tenant and apart is distributed by tenant, which are not colocated",
    ("orders", "single"): "orders is distributed by tenant and single belongs to a distributed schema, which are not",
}
TAKEN = [
    *(
        ("orders", "items"),
        ("orders", "countries"),
        ("countries", "notes"),
        ("notes", "countries"),
        ("new", "countries"),
    ),
    *(("single", "countries"), ("orders", "orders")),
]


@pytest.mark.soak
def test_reference_that_no_cluster_takes_is_refused(db: pw.PostgresqlDatabase) -> None:
    for table, call in {"apart": "'tenant', 7", "single": "NULL, 8"}.items():
        MigrationRunner(db, [model(table)]).up()
        db.execute_sql(f"SELECT create_distributed_table('{table}', {call})")
    for (source, target), why in REFUSED.items():
        assert why in refusal(db, *reference(source, target))
    for source, target in TAKEN:
        models = reference(source, target)
        assert MigrationRunner(db, models).up().applied
        assert not MigrationRunner(db, models).verify_schema()
        db.execute_sql(f"ALTER TABLE {source} DROP CONSTRAINT r")


def test_reference_that_pairs_other_columns_than_the_distribution_columns_is_refused(db: pw.PostgresqlDatabase) -> None:
    assert "does not pair these columns" in refusal(db, *reference("orders", "items", "id, tenant"))


@pytest.mark.parametrize("action", ["ON UPDATE CASCADE", "ON DELETE SET NULL"])
def test_reference_whose_action_changes_the_distribution_column_is_refused(
    db: pw.PostgresqlDatabase, action: str
) -> None:
    assert f"{action} would change tenant" in refusal(db, *reference("orders", "countries", more=action))


def test_table_of_another_schema_is_known_by_its_schema(db: pw.PostgresqlDatabase) -> None:
    db.execute_sql("CREATE SCHEMA other")
    elsewhere = model("orders")
    elsewhere._meta.schema = "other"
    MigrationRunner(db, [elsewhere]).up()
    changed = model("orders", indexes=((("a",), True),), a=pw.IntegerField(null=True))
    changed._meta.schema = "other"
    assert not plan(db, changed).refused
    db.execute_sql(DISTRIBUTED.format("other.orders"))
    assert "other.orders, which is distributed by tenant" in refusal(db, changed)


def test_column_with_a_sequence_is_refused(db: pw.PostgresqlDatabase) -> None:
    serial = type("Serial", (pw.IntegerField,), {"field_type": "SERIAL"})
    assert "no column with a sequence to orders" in refusal(db, model("orders", n=serial()))


def test_constraint_that_is_made_of_an_index_is_refused(db: pw.PostgresqlDatabase) -> None:
    db.execute_sql(f"INSERT INTO orders (tenant, id) SELECT 1, n FROM generate_series(1, {ROWS}) AS n")
    constrained = model("orders", "CONSTRAINT u UNIQUE (id, tenant)")
    assert "makes no constraint of an index of orders" in refusal(db, constrained)
    assert not plan(db, constrained).pending


GROWING = Path(__file__).parents[2] / "docs" / "growing.md"
DISTRIBUTION = """
SELECT create_reference_table('country');
SELECT create_distributed_table('customer', 'tenant'); SELECT create_distributed_table('orders', 'tenant');
"""
NAMES = ("orders_customer", "orders_pkey", "customer_country", "customer_tenant_email")
LOST = """
ALTER TABLE orders DROP CONSTRAINT orders_customer, DROP CONSTRAINT orders_pkey;
ALTER TABLE customer DROP CONSTRAINT customer_country; DROP INDEX customer_tenant_email
"""


def test_models_of_the_page_are_taken_by_a_cluster(citus: Place) -> None:
    (example,) = re.findall(r"^```python\n(# myapp/models.py\n.*?)^```", GROWING.read_text(), re.M | re.S)
    named: dict[str, Any] = {}
    # Of plain models the other tests see nothing.
    exec(example.replace("from whatspire_db import BaseModel", "from peewee import Model as BaseModel"), named)  # noqa: S102
    models = [named[name] for name in ("Country", "Customer", "Order")]
    with opened(citus) as db:
        MigrationRunner(db, models).up()
        for statement in (DISTRIBUTION, LOST):
            db.execute_sql(statement)
        assert {step.name for step in MigrationRunner(db, models).up().applied} == set(NAMES)
        assert not MigrationRunner(db, models).verify_schema()


# What a run sets, and drops


def statements(db: pw.PostgresqlDatabase, runner: MigrationRunner, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a run sends."""
    sent: list[str] = []
    execute = type(db).execute_sql

    def noting(self: pw.Database, sql: str, *arguments: Any, **options: Any) -> Any:
        sent.append(sql)
        return execute(self, sql, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(db), "execute_sql", noting)
        runner.up()
    return sent


def test_limits_go_along_to_the_workers(db: pw.PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = statements(db, MigrationRunner(db, [model("orders", a=pw.IntegerField(null=True))]), monkeypatch)
    propagated = sent.index("SET LOCAL citus.propagate_set_commands = 'local'")
    limits = [number for number, sql in enumerate(sent) if sql.startswith("SET LOCAL lock_timeout = ")]
    added = next(number for number, sql in enumerate(sent) if "ADD COLUMN" in sql and "probe" not in sql)
    assert [number for number in limits if propagated < number < added]
    assert not [sql for sql in sent if "set_config" in sql and "lock_timeout" in sql]


def test_plain_server_is_told_nothing_of_a_cluster(postgres: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(postgres) as db:
        sent = statements(db, MigrationRunner(db, [model("orders")]), monkeypatch)
    assert [sql for sql in sent if "CREATE TABLE" in sql]
    assert not [sql for sql in sent if "citus." in sql or "pg_dist" in sql]


def test_failed_build_is_dropped_where_it_exists(db: pw.PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed = model("orders", indexes=((("tenant",), False),))
    db.execute_sql(f"INSERT INTO orders (tenant, id) SELECT 1, n FROM generate_series(1, {ROWS}) AS n")
    MigrationRunner(db, [indexed]).up()
    db.execute_sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'orders_tenant'::regclass")
    sent = statements(db, MigrationRunner(db, [indexed]), monkeypatch)
    assert 'DROP INDEX CONCURRENTLY IF EXISTS "orders_tenant"' in sent
    assert not MigrationRunner(db, [indexed]).verify_schema()


def test_start_with_nothing_to_do_is_one_statement(db: pw.PostgresqlDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [model("orders")]
    stamp(db, models)
    asked: list[str] = []
    quiet = MigrationRunner(db, models)
    ask = quiet.engine.ask_quietly
    monkeypatch.setattr(quiet.engine, "ask_quietly", lambda *given: asked.append(given[0]) or ask(*given))
    assert statements(db, quiet, monkeypatch) == []
    assert len(asked) == 1
