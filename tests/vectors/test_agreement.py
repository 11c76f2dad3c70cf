"""Both engines find what numpy finds, and the HNSW index nearly that; with many vectors of 384 dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
import peewee as pw
import pytest

from tests.conftest import Place
from tests.servers import opened
from tests.vectors.clusters import Matrix, assert_same, clustered, distances, first
from whatspire_db import MigrationRunner, VectorField, bulk_insert
from whatspire_db import nearest as search

METRICS = ("cosine", "l2", "inner_product")
DIMENSIONS = 384


def model_of(metric: str, index: str | None = None) -> Any:
    """Return a model of the one table `item`, by whose metric its rows are searched."""
    fields = {"part": pw.IntegerField(index=True), "embedding": VectorField(DIMENSIONS, metric, index)}
    meta = type("Meta", (), {"table_name": "item", "legacy_table_names": False})
    return type("Item", (pw.Model,), {**fields, "Meta": meta})


def fill(db: pw.Database, model: Any, data: Matrix) -> None:
    model.bind(db)
    MigrationRunner(db, [model]).up()
    bulk_insert(model, ({"part": n % 100, "embedding": vector} for n, vector in enumerate(data)), batch_rows=5000)
    db.execute_sql("ANALYZE")


def unit(vectors: Matrix) -> Matrix:
    """Return vectors of the length 1, as models give them."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def agree(place: Place, rows: int, queries: int) -> None:
    data, asked = unit(clustered(rows, DIMENSIONS)), unit(clustered(queries, DIMENSIONS, seed=2))
    kept = np.arange(rows) % 100 < 7
    places = np.flatnonzero(kept) + 1
    with opened(place) as db:
        fill(db, model_of("cosine"), data)
        for metric in METRICS:
            model = model_of(metric)
            model.bind(db)
            table = distances(metric, data, asked)
            for vector, all_ in zip(asked, table, strict=True):
                found = [(row.id, row.distance) for row in search(model, "embedding", vector).select(model.id)]
                assert_same(found, first(all_, 10))
                few = search(model, model.embedding, vector, where=model.part < 7).select(model.id)
                expected = [(int(places[n - 1]), distance) for n, distance in first(all_[kept], 10)]
                assert_same([(row.id, row.distance) for row in few], expected)


def test_both_engines_find_the_same_rows_as_numpy(place: Place) -> None:
    agree(place, 500, 5)


@pytest.mark.soak
def test_both_engines_find_the_same_rows_as_numpy_among_many(place: Place) -> None:
    agree(place, 20_000, 200)


def recall(found: list[list[int]], expected: list[list[int]]) -> float:
    return sum(len(set(a) & set(b)) for a, b in zip(found, expected, strict=True)) / sum(map(len, expected))


@pytest.mark.soak
def test_index_finds_nearly_all_of_the_nearest_rows(postgres: Place) -> None:
    asked = clustered(200, DIMENSIONS, seed=2)
    with opened(postgres) as db:
        fill(db, model_of("cosine"), clustered(20_000, DIMENSIONS))
        model = model_of("cosine", "hnsw")
        model.bind(db)
        MigrationRunner(db, [model]).up()
        db.execute_sql("ANALYZE item")
        assert "hnsw" in plan_of(db, search(model, "embedding", asked[0]))
        for where in (None, model.part == 3):
            found, expected = [], []
            for vector in asked:
                found.append([row.id for row in search(model, "embedding", vector, where=where).select(model.id)])
                exact = search(model, "embedding", vector, where=where, exact=True).select(model.id)
                expected.append([row.id for row in exact])
            assert {len(keys) for keys in found} == {10}
            assert recall(found, expected) >= 0.95
        # Without an index on the column of the filter, ten rows are found all the same.
        db.execute_sql("DROP INDEX item_part")
        for vector in asked[:20]:
            assert len(search(model, "embedding", vector, where=model.part == 3)) == 10


def plan_of(db: pw.Database, query: Any) -> str:
    sql, params = query.sql()
    return str(db.execute_sql(f"EXPLAIN {sql}", params).fetchall())
