"""Columns of vectors in the migrator: made, compared, mended, and indexed beside writers."""

from __future__ import annotations

import threading
import uuid
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import peewee as pw
import psycopg2
import pytest

from tests.conftest import Place
from tests.migrate.mended import run
from tests.servers import opened
from tests.vectors.clusters import clustered
from whatspire_db import MigrationRunner, ModelError, VectorField, bulk_insert


class Unknown(pw.Field):  # type: ignore[type-arg]
    field_type = "nosuchtype"


def model_of(field: pw.Field | None = None, **more: pw.Field) -> Any:
    """Return a model of the table `item`, as another version of a program declares it."""
    fields = {"embedding": field} if field is not None else {}
    meta = type("Meta", (), {"table_name": "item", "legacy_table_names": False})
    return type("Item", (pw.Model,), {**fields, **more, "label": pw.TextField(null=True), "Meta": meta})


def runner(db: pw.Database, model: Any) -> MigrationRunner:
    model.bind(db)
    return MigrationRunner(db, [model])


def drift_of(db: pw.Database, model: Any) -> list[str]:
    return [drift.kind for drift in runner(db, model).verify_schema().drift]


def test_column_is_added_to_a_table_with_rows_and_in_sync_afterwards(db: pw.Database) -> None:
    first = model_of()
    runner(db, first).up()
    first.create(label="a")
    second = model_of(VectorField(3, null=True, index="hnsw"))
    runner(db, second).up()
    assert not runner(db, second).verify_schema()
    assert not runner(db, second).plan()
    assert second.get().embedding is None
    second.update(embedding=[1, 2, 3]).execute()
    assert [row.embedding for row in second.select()] == [[1.0, 2.0, 3.0]]


def test_index_is_made_on_postgres_alone(place: Place, db: pw.Database) -> None:
    model = model_of(VectorField(3, "l2", "hnsw", m=8, ef_construction=32))
    plan = runner(db, model).plan()
    made = [sql for step in plan.pending for sql in step.sql if "INDEX" in sql]
    written = 'USING hnsw ("embedding" vector_l2_ops) WITH (m = 8, ef_construction = 32)'
    assert made == ([] if place.is_sqlite else [f'CREATE INDEX "item_embedding_hnsw" ON "item" {written}'])


def test_type_that_came_after_the_installed_version_says_how_to_get_it(postgres: Place) -> None:
    """As in a database that was made before its server got a later pgvector."""
    model = model_of(VectorField(3, type="halfvec"))
    with opened(postgres) as db:
        db.execute_sql("CREATE EXTENSION vector")
        db.execute_sql("ALTER EXTENSION vector DROP TYPE halfvec; ALTER TYPE halfvec RENAME TO came_later")
        db.execute_sql("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
        with pytest.raises(ModelError, match="halfvec") as failed:
            runner(db, model).up()
        assert failed.value.hint == (
            'halfvec came with vector 0.7, and the database has 0.6.2: run ALTER EXTENSION "vector" UPDATE;'
        )
        other = model_of(VectorField(3), other=Unknown())
        with pytest.raises(ModelError, match="nosuchtype") as failed:
            runner(db, other).up()
        assert "check the name" in failed.value.hint


def test_subclass_has_an_index_of_its_own(postgres: Place) -> None:
    base = model_of(VectorField(3, index="hnsw"))
    meta = type("Meta", (), {"table_name": "special", "legacy_table_names": False})
    special = type("Special", (base,), {"Meta": meta})
    with opened(postgres) as db, db.bind_ctx([base, special]):
        runner = MigrationRunner(db, [base, special])
        runner.up()
        assert not runner.verify_schema()
        found = db.execute_sql("SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%%USING hnsw%%' ORDER BY 1")
        assert found.fetchall() == [("item_embedding_hnsw",), ("special_embedding_hnsw",)]


def test_peewees_own_create_tables_makes_the_same(place: Place, db: pw.Database) -> None:
    model = model_of(VectorField(3, index="hnsw"), half=VectorField(2, type="halfvec", null=True))
    if not place.is_sqlite:
        db.execute_sql("CREATE EXTENSION vector")
    model.bind(db)
    db.create_tables([model])
    assert not runner(db, model).plan()
    assert not runner(db, model).verify_schema()


def test_strict_tables_of_sqlite_take_vectors(sqlite: Place) -> None:
    model = model_of(VectorField(3))
    model._meta.strict_tables = True
    with opened(sqlite) as db:
        runner(db, model).up()
        assert not runner(db, model).verify_schema()
        model.create(embedding=[1, 2, 3])
        assert model.get().embedding == [1.0, 2.0, 3.0]
        other = model_of(VectorField(4))
        other._meta.strict_tables = True
        assert drift_of(db, other)


@pytest.mark.parametrize("null", [True, False])
def test_other_dimension_is_drift_with_a_way_out(place: Place, db: pw.Database, null: bool) -> None:
    old, new = (model_of(VectorField(n, null=null, index="hnsw")) for n in (3, 4))
    runner(db, old).up()
    old.insert_many([{"embedding": [1, 2, n], "label": str(n)} for n in range(5)]).execute()
    assert "column_type" in drift_of(db, new)
    script = str(runner(db, new).mending())
    if not null:
        assert "no safe statement: the vectors of " in script
        assert "declare it null=True and fill it afterwards, or delete the rows" in script
        old.delete().execute()
        script = str(runner(db, new).mending())
    assert ("are lost, and NULL afterwards" in script) == null
    run(place, script)
    assert not runner(db, new).verify_schema()
    assert [(row.label, row.embedding) for row in new.select().order_by(new.id)] == (
        [(str(n), None) for n in range(5)] if null else []
    )
    new.insert(embedding=[1, 2, 3, 4]).execute()


WATCHER = """
CREATE ROLE {role} LOGIN; GRANT SELECT ON {table} TO {role};
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; CREATE POLICY hides ON {table} USING (false)
"""
# The planner evaluates what is constant in an index, whoever asks for rows of the table.
OWNER = """
CREATE ROLE {role}; GRANT ALL ON SCHEMA public TO {role}; ALTER TABLE {table} OWNER TO {role}; SET ROLE {role};
CREATE FUNCTION trap() RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$BEGIN ASSERT NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user); RETURN 1; END$$;
CREATE INDEX trapped ON {table} (id) WHERE id > trap(); RESET ROLE
"""


@pytest.mark.parametrize("sql", [WATCHER, OWNER], ids=["hidden rows", "another owner"])
def test_vectors_that_cannot_be_looked_at_may_be_lost(postgres: Place, sql: str) -> None:
    role = f"r_{uuid.uuid4().hex[:12]}"
    with opened(postgres) as db:
        old, new = (model_of(VectorField(n, null=True)) for n in (3, 4))
        runner(db, old).up()
        old.create(embedding=[1, 2, 3])
        db.execute_sql(sql.format(role=role, table=old._meta.table_name))
    try:
        dsn = f"{postgres.dsn} user={role}" if sql == WATCHER else postgres.dsn
        with opened(replace(postgres, dsn=dsn)) as db:
            assert "are lost, and NULL afterwards" in str(runner(db, new).mending())
    finally:
        with opened(postgres) as db:
            db.execute_sql(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


def test_other_type_of_numbers_is_drift_with_a_way_out(place: Place, db: pw.Database) -> None:
    old, new = (model_of(VectorField(3, type=type_, null=True)) for type_ in ("vector", "halfvec"))
    runner(db, old).up()
    old.create(embedding=[1, 2, 0.1])
    assert "column_type" in drift_of(db, new)
    script = str(runner(db, new).mending())
    assert ("are lost, and NULL afterwards" in script) == place.is_sqlite  # which has no casts of vectors
    run(place, script)
    assert not runner(db, new).verify_schema()
    assert [row.embedding for row in new.select()] == [None if place.is_sqlite else [1.0, 2.0, np.float16(0.1).item()]]


def test_indexes_with_long_names_are_told_apart(postgres: Place) -> None:
    fields = {f"embedding_{'ü' * 25}{n}": VectorField(3, index="hnsw") for n in (1, 2)}
    with opened(postgres) as db:
        model = model_of(None, **fields)
        runner(db, model).up()
        assert not runner(db, model).verify_schema()
        assert not runner(db, model).plan()


def test_column_that_may_be_null_now_gets_its_other_dimension(place: Place, db: pw.Database) -> None:
    old, new = model_of(VectorField(3)), model_of(VectorField(4, null=True))
    runner(db, old).up()
    old.create(embedding=[1, 2, 3])
    run(place, str(runner(db, new).mending()))
    assert not runner(db, new).verify_schema()
    assert [row.embedding for row in new.select()] == [None]


@pytest.mark.parametrize(
    "other",
    [
        VectorField(3, "l2", index="hnsw", m=8),
        VectorField(3, index="hnsw", m=9),
        VectorField(3, index="hnsw", m=8, ef_construction=99),
    ],
    ids=["metric", "m", "ef_construction"],
)
def test_other_index_is_drift_with_a_way_out(postgres: Place, other: Any) -> None:
    with opened(postgres) as db:
        old, new = model_of(VectorField(3, index="hnsw", m=8)), model_of(other)
        runner(db, old).up()
        old.create(embedding=[1, 2, 3])
        assert drift_of(db, old) == []
        assert drift_of(db, new) == ["index"]
        run(postgres, str(runner(db, new).mending()))
        assert drift_of(db, new) == []
        assert [row.embedding for row in new.select()] == [[1.0, 2.0, 3.0]]


def test_options_that_are_not_declared_are_not_compared(postgres: Place) -> None:
    with opened(postgres) as db:
        runner(db, model_of(VectorField(3, index="hnsw", m=8))).up()
        assert drift_of(db, model_of(VectorField(3, index="hnsw"))) == []


def test_index_that_is_no_longer_declared_is_extra(postgres: Place) -> None:
    with opened(postgres) as db:
        runner(db, model_of(VectorField(3, index="hnsw"))).up()
        changes = runner(db, model_of(VectorField(3))).verify_schema()
        assert [extra.name for extra in changes.extra] == ["item_embedding_hnsw"]


SETTINGS = ("maintenance_work_mem", "max_parallel_maintenance_workers", "lock_timeout")


def filled(db: pw.Database, rows: int, dimensions: int) -> Any:
    """Return a model with an index of a table that has rows and no index."""
    bare = model_of(VectorField(dimensions))
    runner(db, bare).up()
    bulk_insert(bare, ({"embedding": vector} for vector in clustered(rows, dimensions)))
    db.execute_sql("ANALYZE item")
    return model_of(VectorField(dimensions, index="hnsw"))


@pytest.mark.soak
def test_index_of_a_filled_table_is_built_online_with_memory_and_leaves_the_session_as_it_was(
    postgres: Place,
) -> None:
    with opened(postgres) as db:
        model = filled(db, 1200, 384)
        db.execute_sql("SET maintenance_work_mem = '1MB'")
        before = [db.execute_sql(f"SHOW {name}").fetchone() for name in SETTINGS]
        ran: list[str] = []
        db.query_hooks.append(lambda event: ran.append(f"{event.sql} {event.params}"))
        plan = runner(db, model).plan()
        (step,) = plan.online
        assert step.sql == (
            'CREATE INDEX CONCURRENTLY "item_embedding_hnsw" ON "item" USING hnsw ("embedding" vector_cosine_ops)',
        )
        runner(db, model).up()
        assert [db.execute_sql(f"SHOW {name}").fetchone() for name in SETTINGS] == before
        assert not runner(db, model).verify_schema()
        (given,) = {int(text.split("kB")[0].rsplit("'", 1)[1]) for text in ran if "kB" in text}
        assert 2 * 1200 * 384 * 4 // 1024 < given < 16 * 1024  # twice the table


LOCKED = """
SELECT l.mode, l.granted, a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
WHERE l.relation = 'item'::regclass AND a.datname = current_database()
"""
UNDISTURBED = {"ShareUpdateExclusiveLock", "AccessShareLock", "RowExclusiveLock"}  # none of which stops a writer


def test_writers_go_on_while_an_index_is_built(postgres: Place) -> None:
    with opened(postgres) as db:
        model = filled(db, 3000, 128)
        seen: set[tuple[str, bool]] = set()
        written = {"before": 0, "during": 0}
        is_building = ended = False

        def write() -> None:
            nonlocal is_building
            with closing(psycopg2.connect(postgres.dsn)) as connection, connection.cursor() as cursor:
                connection.autocommit = True
                while not ended:
                    cursor.execute("UPDATE item SET label = 'x' WHERE id = 1")
                    cursor.execute(LOCKED)
                    found = cursor.fetchall()
                    seen.update((mode, granted) for mode, granted, _ in found)
                    is_building = any(mode == "ShareUpdateExclusiveLock" for mode, *_ in found)
                    written["during" if is_building else "before"] += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            runner(db, model).up()
        finally:
            ended = True
            writer.join()
        assert written["during"] > 10
        assert {mode for mode, _ in seen} <= UNDISTURBED
        assert {granted for _, granted in seen} == {True}
        assert not runner(db, model).verify_schema()
