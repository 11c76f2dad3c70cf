"""Searches: a normal select whose rows carry their distance, the same on both engines."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import peewee as pw
import pytest
from playhouse.postgres_ext import ServerSide

from tests.conftest import Place
from tests.servers import opened
from tests.vectors.clusters import assert_same, clustered, nearest
from tests.vectors.models import MODELS, Indexed, Pair, Passage, Short, Topic
from whatspire_db import BaseModel, MigrationRunner, ModelError, ValueRefused, VectorField
from whatspire_db import nearest as search
from whatspire_db.models.queries import readable
from whatspire_db.vectors.engines import sqlite as on_sqlite
from whatspire_db.vectors.engines.postgres import extension_of

QUERY = [1.0, 0.5, 0.2]
COLUMNS = ["cosine", "l2", "product", "half"]


class Loose(BaseModel):
    cosine = VectorField(3)
    l2 = VectorField(3, "l2")
    product = VectorField(3, "inner_product")
    half = VectorField(3, type="halfvec")

    class Meta:
        abstract = True


@pytest.fixture
def rows(db: pw.Database) -> pw.Database:
    MigrationRunner(db, MODELS).up()
    topics = [Topic.create(name=name) for name in ("cats", "dogs")]
    with db.atomic():
        for number, vector in enumerate(clustered(60, 3, clusters=10)):
            empty = number % 10 == 9
            Passage.create(topic=topics[number % 2], text=f"t{number}", embedding=None if empty else vector)
            Indexed.create(topic=number % 2, embedding=None if empty else vector)
    return db


def keys(query: Any) -> list[int]:
    return [row.id for row in query]


def test_nearest_rows_come_first_and_carry_their_distance(rows: pw.Database) -> None:
    stored = np.array([row.embedding or [-1] * 3 for row in Passage.select().order_by(Passage.id)], np.float32)
    expected = [pair for pair in nearest("cosine", stored, QUERY, 60) if pair[0] % 10]
    for model in (Passage, Indexed):
        for exact in (True, False):
            found = [(row.id, row.distance) for row in model.nearest(model.embedding, QUERY, k=60, exact=exact)]
            assert len(found) == 54  # those without a vector are left out
            assert_same(found, expected)


def test_k_rows_are_found_and_ten_by_default(rows: pw.Database) -> None:
    assert len(Passage.nearest("embedding", QUERY)) == 10
    assert len(Indexed.nearest(Indexed.embedding, QUERY, k=3)) == 3
    assert keys(Passage.nearest("embedding", QUERY, 3)) == keys(Passage.nearest("embedding", QUERY))[:3]
    assert (
        keys(Indexed.nearest("embedding", QUERY).offset(3).limit(4)) == keys(Indexed.nearest("embedding", QUERY))[3:7]
    )


def test_filter_is_any_condition_and_may_join(rows: pw.Database) -> None:
    all_ = keys(Passage.nearest("embedding", QUERY, 60))
    dogs = {row.id for row in Passage.select().join(Topic).where(Topic.name == "dogs")}
    expected = [key for key in all_ if key in dogs][:7]
    topic = Topic.get(Topic.name == "dogs")
    assert keys(Passage.nearest("embedding", QUERY, 7, where=Passage.topic == topic)) == expected
    assert keys(Passage.nearest("embedding", QUERY, 7).join(Topic).where(Topic.name == "dogs")) == expected
    joined = Passage.nearest("embedding", QUERY, 7, where=[Topic.name == "dogs", Passage.id > 0])
    assert keys(joined.join(Topic)) == expected
    assert keys(Indexed.nearest("embedding", QUERY, 7, where=Indexed.topic == 1)) == expected


def test_search_is_a_normal_select(rows: pw.Database) -> None:
    query = Passage.nearest(Passage.embedding, QUERY, k=4)
    first = query.clone().first()
    assert query.count() == 4
    assert query.exists()
    assert query.get().id == first.id == keys(query)[0]
    assert [row["distance"] for row in query.dicts()] == [row.distance for row in query]
    texts = query.select(Passage.text)
    assert [(row.text, row.distance) for row in texts] == [(row.text, row.distance) for row in query]
    named = query.select(Passage.text, Topic.name).join(Topic)
    assert [set(row) for row in named.dicts()] == [{"text", "name", "distance"}] * 4
    assert named.get().topic.name in ("cats", "dogs")
    assert query.select_extend(Topic.name).join(Topic).get().distance == first.distance
    inner = Passage.nearest("embedding", QUERY, 4).select(Passage.id).alias("found")
    assert Passage.select().join(inner, on=Passage.id == inner.c.id).count() == 4
    first.text = "changed"
    assert first.save() == 1


def test_search_within_a_query_has_the_columns_that_were_asked_for(rows: pw.Database) -> None:
    for model in (Passage, Indexed):
        query = model.nearest("embedding", QUERY, k=7)
        found = sorted(keys(query))
        for inner in (query, query.select(model.id)):
            assert keys(model.select().where(model.id.in_(inner)).order_by(model.id)) == found
            assert model.select().where(model.id.not_in(inner)).count() == 60 - 7
        assert model.get(model.id == query.select(model.id).limit(1)).id == keys(query)[0]
        best = query.select(model.id).limit(1).alias("best")
        assert set(model.select(best).tuples()) == {(keys(query)[0],)}
        others = [field for field in model._meta.sorted_fields if field is not model.id]
        model.insert_from(query.select(*others), others).execute()
        assert model.delete().where(model.id > 60).execute() == 7
        assert model.delete().where(model.id.in_(query.select(model.id))).execute() == 7
        assert not model.select().where(model.id.in_(found)).exists()


def test_rows_at_the_same_distance_are_in_the_order_of_their_keys(db: pw.Database) -> None:
    MigrationRunner(db, MODELS).up()
    for number in (3, 1, 2):
        for second in ("b", "a"):
            Pair.create(first=number, second=second, product=[1, number, 0])
    same = [(row.first, row.second) for row in Pair.nearest("product", [1, 0, 0], k=5)]
    assert same == [(1, "a"), (1, "b"), (2, "a"), (2, "b"), (3, "a")]
    with db.atomic():
        Indexed.insert_many([{"id": number, "embedding": [1, 2, 3]} for number in range(50, 0, -1)]).execute()
    search = Indexed.nearest("embedding", [3, 2, 1], k=12, exact=not sorts_ties(db))
    assert keys(search) == list(range(1, 13))


def sorts_ties(db: pw.Database) -> bool:
    """Tell whether rows at one distance are sorted behind an HNSW index."""
    return not isinstance(db, pw.PostgresqlDatabase) or extension_of(db).sorts_ties


def test_distances_are_expressions_of_any_query(rows: pw.Database) -> None:
    stored = {row.id: row.embedding for row in Passage.select().where(Passage.embedding.is_null(False))}
    matrix = np.array(list(stored.values()), np.float32)
    for metric, expression in (
        ("cosine", Passage.embedding.cosine_distance(QUERY)),
        ("l2", Passage.embedding.l2_distance(np.array(QUERY))),
        ("inner_product", Passage.embedding.max_inner_product(tuple(QUERY))),
    ):
        query = Passage.select(Passage.id, expression.alias("d")).where(Passage.embedding.is_null(False))
        expected = nearest(metric, matrix, QUERY, len(stored))
        found = list(query.order_by(expression, Passage.id).tuples())
        by_place = {key: place for place, key in enumerate(stored, 1)}
        assert_same([(by_place[key], distance) for key, distance in found], expected)
        assert Passage.select().where(expression < found[5][1] - 1e-6).count() <= 5
    other = Passage.alias()
    pairs = Passage.select(Passage.embedding.l2_distance(Passage.embedding)).where(Passage.embedding.is_null(False))
    assert set(pairs.tuples()) == {(0.0,)}
    assert list(other.select(pw.fn.COUNT(other.embedding)).tuples()) == [(54,)]
    assert Passage.select(Passage.embedding.l2_distance(QUERY)).where(Passage.embedding.is_null()).tuples()[0] == (
        None,
    )


def test_search_of_halfvec_rounds_the_vector_too(db: pw.Database) -> None:
    MigrationRunner(db, MODELS).up()
    stored = clustered(40, 3)
    Short.insert_many([{"place": vector} for vector in stored]).execute()
    rounded = np.array([row.place for row in Short.select().order_by(Short.id)], np.float32)
    assert not (rounded == stored).all()
    query = np.array(QUERY, np.float16).astype(np.float32)
    found = [(row.id, row.distance) for row in Short.nearest("place", QUERY)]
    assert_same(found, nearest("l2", rounded, query, 10))


def test_search_for_what_is_no_vector_is_refused(rows: pw.Database) -> None:
    for vector, what in (([1], "3 dimensions, not 1"), ([0, 0, 0], "a length of zero"), ("abc", "type str")):
        with pytest.raises(ValueRefused, match=f"the distance from passage.embedding takes .*{what}"):
            Passage.nearest("embedding", vector)
    for field in ("text", "nothing", Passage.text, Indexed.embedding):
        with pytest.raises(ValueRefused, match="is not a VectorField of passage"):
            Passage.nearest(field, QUERY)
    with pytest.raises(ValueRefused, match="takes a model, not an alias of passage"):
        search(Passage.alias(), "embedding", QUERY)
    assert len(Passage.nearest("embedding", QUERY, np.int64(3))) == 3
    for k in (0, -1, 2.5, True, np.int64(0), "3"):
        with pytest.raises(ValueRefused, match="not a number of rows"):
            Passage.nearest("embedding", QUERY, k)


def test_model_with_a_distance_of_its_own_is_refused() -> None:
    class Trip(pw.Model):
        distance = pw.FloatField()
        route = VectorField(3)

    with pytest.raises(ValueRefused, match="trip has a column distance"):
        search(Trip, Trip.route, QUERY)


# PostgreSQL


def settings_of(db: pw.Database) -> list[Any]:
    names = ("ef_search", "iterative_scan", "max_scan_tuples", "scan_mem_multiplier")
    return [db.execute_sql(f"SHOW hnsw.{name}").fetchone()[0] for name in names]


NOTHING_BUT_INDEXES = """
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off
"""


def plan_of(query: Any) -> str:
    sql, params = query.sql()
    return str(Indexed._meta.database.execute_sql(f"EXPLAIN {sql}", params).fetchall())


def test_index_is_used_unless_the_search_is_exact(postgres: Place) -> None:
    with opened(postgres) as db:
        MigrationRunner(db, [Topic, Indexed, Passage]).up()
        Indexed.insert_many([{"embedding": vector} for vector in clustered(500, 3)]).execute()
        db.execute_sql("CREATE INDEX by_hand ON passage USING hnsw (embedding vector_cosine_ops); ANALYZE indexed")
        with db.atomic():
            db.execute_sql(NOTHING_BUT_INDEXES)
            assert "indexed_embedding_hnsw" in plan_of(Indexed.nearest("embedding", QUERY))
            assert "hnsw" not in plan_of(Indexed.nearest("embedding", QUERY, exact=True))
            assert "by_hand" not in plan_of(Passage.nearest("embedding", QUERY))  # no index is declared
            assert "by_hand" in plan_of(Passage.select().order_by(Passage.embedding.cosine_distance(QUERY)).limit(5))


def test_search_leaves_no_setting_behind(postgres: Place) -> None:
    with opened(postgres) as db:
        MigrationRunner(db, [Indexed]).up()
        Indexed.insert_many([{"embedding": vector} for vector in clustered(300, 3)]).execute()
        list(Indexed.nearest("embedding", QUERY))
        usual = settings_of(db)
        assert usual == ["40", "off", "20000", "1"]
        with db.atomic():
            assert len(Indexed.nearest("embedding", QUERY, k=200)) == 200
            assert settings_of(db) == usual
            db.execute_sql("SET LOCAL hnsw.ef_search = 77")
            with db.atomic():
                assert len(Indexed.nearest("embedding", QUERY)) == 10
            assert settings_of(db)[0] == "77"
        db.execute_sql("BEGIN")  # which Peewee does not know of
        assert len(Indexed.nearest("embedding", QUERY)) == 10
        assert settings_of(db) == usual
        db.execute_sql("COMMIT")
        db.execute_sql("SET hnsw.ef_search = 55")
        assert len(Indexed.nearest("embedding", QUERY)) == 10
        assert settings_of(db)[0] == "55"


def test_filtered_search_by_the_index_finds_every_row_there_is(postgres: Place) -> None:
    with opened(postgres) as db:
        MigrationRunner(db, [Indexed]).up()
        data = clustered(3000, 3)
        Indexed.insert_many([{"topic": n % 250, "embedding": vector} for n, vector in enumerate(data)]).execute()
        db.execute_sql("DROP INDEX indexed_topic; ANALYZE indexed")
        with db.atomic():
            db.execute_sql(NOTHING_BUT_INDEXES)
            query = Indexed.nearest("embedding", QUERY, k=10, where=Indexed.topic == 3)
            assert "indexed_embedding_hnsw" in plan_of(query)
            assert len(query) == 10
            assert len(Indexed.nearest("embedding", QUERY, k=20, where=Indexed.topic == 3)) == 12


def test_search_without_its_settings_loses_no_rows(postgres: Place) -> None:
    with opened(postgres) as db:
        MigrationRunner(db, [Indexed]).up()
        Indexed.insert_many([{"embedding": vector} for vector in clustered(500, 3)]).execute()
        db.execute_sql("ANALYZE indexed")
        query = Indexed.nearest("embedding", QUERY, k=100)
        ids = query.select(Indexed.id)
        expected = sorted(keys(Indexed.nearest("embedding", QUERY, k=100, exact=True)))
        with db.atomic():
            db.execute_sql(NOTHING_BUT_INDEXES)  # of which one ends after hnsw.ef_search rows, 40
            assert "indexed_embedding_hnsw" in plan_of(query)
            source, common = ids.alias("source"), ids.cte("common")
            queries = [
                Indexed.select().where(Indexed.id.in_(ids)),
                Indexed.select().join(source, on=source.c.id == Indexed.id),
                Indexed.select().join(common, on=common.c.id == Indexed.id).with_cte(common),
                query | query,
            ]
            for one in queries:
                assert sorted(keys(one)) == expected
            assert sorted(keys(ServerSide(query))) == expected
            assert len(query.limit(None)) == 500


def test_older_pgvector_without_iterative_scans_finds_every_row(postgres: Place) -> None:
    with opened(postgres) as db:
        MigrationRunner(db, [Indexed]).up()
        db.execute_sql("UPDATE pg_extension SET extversion = '0.7.4' WHERE extname = 'vector'")
        data = clustered(600, 3)
        Indexed.insert_many([{"topic": n % 100, "embedding": vector} for n, vector in enumerate(data)]).execute()
        with db.atomic():
            db.execute_sql(NOTHING_BUT_INDEXES)
            found = Indexed.nearest("embedding", QUERY, k=5, where=Indexed.topic == 3)
            assert len(found) == 5
            assert keys(found) == keys(Indexed.nearest("embedding", QUERY, k=5, where=Indexed.topic == 3, exact=True))
            assert len(Indexed.nearest("embedding", QUERY, k=500)) == 500


def test_extension_may_stand_in_any_schema(postgres: Place) -> None:
    with opened(postgres) as db:
        db.execute_sql('CREATE SCHEMA "Ex tra"; CREATE EXTENSION vector SCHEMA "Ex tra"')
        db.execute_sql(
            'CREATE TABLE passage (id serial PRIMARY KEY, topic_id int, text text, embedding "Ex tra".vector(3))'
        )
        Passage.insert_many([{"embedding": [1, n, 0]} for n in range(5)]).execute()
        assert keys(Passage.nearest("embedding", [1, 0, 0], 3)) == [1, 2, 3]
        rows = list(Passage.select())
        Passage.bulk_update(rows, [Passage.embedding])


def test_database_without_the_extension_says_what_to_do(postgres: Place) -> None:
    with opened(postgres), pytest.raises(ModelError, match="does not have the extension vector") as failed:
        list(Passage.nearest("embedding", QUERY))
    assert "CREATE EXTENSION vector" in failed.value.hint


# SQLite

PATHS = """
import json, logging, sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
import peewee as pw
from whatspire_db import VectorField, nearest
from whatspire_db.vectors.engines.sqlite import accelerator
db = pw.SqliteDatabase(sys.argv[1])
accelerator(db)
db.close()  # a Python without enable_load_extension has it from the next connection on
fields = {name: VectorField(8, metric, type=type) for name, metric, type in json.loads(sys.argv[3])}
meta = type("Meta", (), {"database": db, "table_name": "t"})
Model = type("T", (pw.Model,), {**fields, "Meta": meta})
queries = json.loads(sys.argv[4])
found = {name: [[(r.id, r.distance) for r in nearest(Model, name, q, 5)] for q in queries] for name in fields}
print(json.dumps([accelerator(db), found]))
"""


def store_what_is_no_vector(db: pw.Database, table: str, columns: list[str], dimensions: int) -> None:
    """Store what a program can that ignores the CHECK of a column, in rows from 1001 on."""
    full, half = (struct.pack(f"<{dimensions}{letter}", math.nan, *[1] * (dimensions - 1)) for letter in "fe")
    with db.atomic():
        db.execute_sql("PRAGMA ignore_check_constraints = 1")
        for key, value in enumerate([b"", b"12", "text", "x" * 32, 5, full + b"1234", full, half], 1001):
            marks = ", ".join(["?"] * (1 + len(columns)))
            db.execute_sql(
                f"INSERT INTO {table} (id, {', '.join(columns)}) VALUES ({marks})", [key, *[value] * len(columns)]
            )
        db.execute_sql("PRAGMA ignore_check_constraints = 0")


def test_row_that_holds_no_vector_comes_last_and_hides_no_other(sqlite: Place) -> None:
    with opened(sqlite) as db:
        MigrationRunner(db, [Loose]).up()
        Loose.insert_many([{key: [1, n, 0] for key in COLUMNS} for n in range(5)]).execute()
        store_what_is_no_vector(db, "loose", COLUMNS, 3)
        for column in COLUMNS:
            found = list(Loose.nearest(column, [1, 0, 0], k=20).select(Loose.id))
            assert sorted(keys(found[:5])) == [1, 2, 3, 4, 5]
            assert [(row.id, row.distance) for row in found[5:]] == [(key, None) for key in range(1001, 1009)]
            left_out: list[ValueRefused] = []
            query = Loose.nearest(column, [1, 0, 0], k=20).select(Loose.id, getattr(Loose, column))
            assert len(list(readable(query, left_out.append))) + len(left_out) == 13
            assert {1001, 1002, 1003, 1004, 1005} <= {int(str(error.fact).rsplit(" ", 1)[1]) for error in left_out}
        other = Loose.alias()
        pairs = Loose.select(Loose.l2.l2_distance(other.l2)).join(other, on=other.id == Loose.id).order_by(Loose.id)
        assert list(pairs.tuples()) == [(0.0,)] * 5 + [(None,)] * 8


def test_columns_of_different_types_have_no_distance() -> None:
    for other in (Short.place, Short.alias().place):
        with pytest.raises(ValueRefused, match=r"passage.embedding takes a column of vector\(3\), not halfvec\(3\)"):
            Passage.embedding.l2_distance(other)


@pytest.mark.soak
def test_sqlite_finds_the_same_by_extension_by_numpy_and_in_plain_python(sqlite: Place) -> None:
    fields = [(f"{m}_{t}", m, t) for m in ("cosine", "l2", "inner_product") for t in ("vector", "halfvec")]
    members: dict[str, Any] = {name: VectorField(8, metric, type=type_) for name, metric, type_ in fields}
    model: Any = type("T", (BaseModel,), {**members, "Meta": type("Meta", (), {"table_name": "t", "abstract": True})})
    data, queries = clustered(120, 8, clusters=12), clustered(9, 8, seed=2, clusters=12)
    with opened(sqlite) as db:
        MigrationRunner(db, [model]).up()
        model.insert_many([dict.fromkeys(members, vector) for vector in data]).execute()
        stored = {name: np.array([r[0] for r in model.select(getattr(model, name)).tuples()], "f4") for name in members}
        store_what_is_no_vector(db, "t", list(members), 8)
    results = {}
    for blocked in ("nothing", "sqlite_vec", "sqlite_vec,numpy"):
        arguments = [sqlite.dsn, blocked, json.dumps(fields), json.dumps(queries.tolist())]
        done = subprocess.run([sys.executable, "-c", PATHS, *arguments], capture_output=True, text=True, check=True)
        path, found = json.loads(done.stdout)
        results[path] = found
        for name, metric, type_ in fields:
            for query, rows in zip(queries, found[name], strict=True):
                asked = query.astype(np.float16) if type_ == "halfvec" else query
                assert_same([tuple(row) for row in rows], nearest(metric, stored[name], asked, 5))
        said = "pip install 'whatspire-db[vector]'" in done.stderr
        assert said == (path == "python")
    assert list(results) == ["sqlite-vec", "numpy", "python"]


def test_sqlite_connection_gets_its_functions_back_after_it_was_closed(sqlite: Place) -> None:
    db = sqlite.connect()
    MigrationRunner(db, [Passage, Topic]).up()
    for _ in range(3):
        with db.connection_context():
            assert keys(Passage.nearest("embedding", QUERY)) == []
            assert on_sqlite.accelerator(db) in ("sqlite-vec", "numpy")
