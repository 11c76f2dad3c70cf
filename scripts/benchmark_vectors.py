"""Measure bulk inserts and searches of vectors on both engines, against numpy and the same SQL by hand.

    python scripts/benchmark_vectors.py [--rows N] [--queries N] [--dsn POSTGRES_DSN]

The vectors have 384 dimensions and are in clusters, as embeddings are. Prints the rows a second of bulk_insert() and of
inserts by hand, the latency of searches for the 10 nearest (median and 99th percentile), the recall of HNSW, and how
long writers wait while the index is built. Ours and those by hand search for the same vectors, each first in its turn:
the first reads from the disk what the others find in memory. Without a DSN it starts the PostgreSQL of the test extra.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import peewee as pw
import psycopg2
from peers.surroundings import postgres, progress
from peewee import sqlite3

from tests.vectors.clusters import Matrix, clustered
from whatspire_db import MigrationRunner, Settings, VectorField, bulk_insert, connect
from whatspire_db import nearest as search

DIMENSIONS, K = 384, 10
Search = Callable[[Matrix], list[int]]


def model_of(index: str | None) -> Any:
    """Return a model of the table `item`, with an index of its vectors or without one."""
    fields = {"part": pw.IntegerField(index=True), "embedding": VectorField(DIMENSIONS, index=index)}
    meta = type("Meta", (), {"table_name": "item", "legacy_table_names": False})
    return type("Item", (pw.Model,), {**fields, "Meta": meta})


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--dsn", help="of a PostgreSQL database whose schema public may be emptied")
    options = parser.parse_args()
    data, asked = clustered(options.rows, DIMENSIONS), clustered(options.queries, DIMENSIONS, seed=2)
    print("| p50, p99 in ms | ours | in Peewee | by the driver | p50, ours to Peewee; to the driver |")
    print("| --- | ---: | ---: | ---: | ---: |")
    shown("numpy, all vectors in memory", asked, brute_force(data))
    with tempfile.TemporaryDirectory() as folder:
        on_sqlite(f"{folder}/vectors.db", data, asked)
    with postgres(options.dsn) as (server, _):
        on_postgres(server, data, asked)


def brute_force(data: Matrix) -> Search:
    """Return a search of all vectors by numpy, whose lengths are known."""
    unit = data / np.linalg.norm(data, axis=1, keepdims=True)

    def run(vector: Matrix) -> list[int]:
        found = unit @ vector
        some = np.argpartition(-found, K)[:K]
        return [int(place) + 1 for place in some[np.argsort(-found[some])]]

    return run


def shown(title: str, asked: Matrix, *searches: Search) -> None:
    """Measure searches, of which the first is ours, and print a line; all must find the same rows."""
    progress(title)
    times: list[list[float]] = [[] for _ in searches]
    for one in searches:
        one(asked[0])  # loads what the first search loads
    for number, vector in enumerate(asked):
        turns = [(number + turn) % len(searches) for turn in range(len(searches))]
        found = {turn: timed(searches[turn], vector) for turn in turns}
        assert "HNSW" in title or len({tuple(keys) for _, keys in found.values()}) == 1, title
        for turn, (seconds, _) in found.items():
            times[turn].append(seconds * 1000)
    columns = [", ".join(f"{np.percentile(one, p):.2f}" for p in (50, 99)) for one in times]
    ratios = "; ".join(f"{np.median(times[0]) / np.median(one):.2f}" for one in times[1:])
    print(f"| {title} | {' | '.join([*columns, '', ''][:3])} | {ratios} |", flush=True)


def timed(one: Search, vector: Matrix) -> tuple[float, list[int]]:
    """Return the seconds of a search, and what it found."""
    started = time.perf_counter()
    found = one(vector)
    return time.perf_counter() - started, found


def inserted(title: str, rows: int, insert: Callable[[], object]) -> None:
    """Measure inserts and print a line."""
    progress(title)
    started = time.perf_counter()
    insert()
    print(f"| {title} | {rows / (time.perf_counter() - started):,.0f} rows/s | | | |", flush=True)


def rows_of(data: Matrix) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    return ({"part": number % 100, "embedding": vector} for number, vector in enumerate(data))


def by_model(model: Any, **more: Any) -> Search:
    """Return a search through the package."""
    return lambda vector: [row.id for row in search(model, "embedding", vector, K, **more).select(model.id)]


def in_peewee(model: Any, distance: Callable[..., Any], filtered: bool, value: Callable[[Matrix], Any]) -> Search:
    """Return the same search as one writes it in Peewee."""

    def run(vector: Matrix) -> list[int]:
        found = distance(model.embedding, pw.Value(value(vector), converter=False)).alias("d")
        query = model.select(model.id, found).where(model.embedding.is_null(False))
        query = query.where(model.part == 3) if filtered else query
        return [row.id for row in query.order_by(found, model.id).limit(K)]

    return run


def operator(column: Any, vector: Any) -> Any:
    """Return pgvector's distance as Peewee renders operators."""
    return pw.Expression(column, "<=>", vector)


def on_sqlite(path: str, data: Matrix, asked: Matrix) -> None:
    """Measure SQLite."""
    db = connect(Settings(dsn=path, log_level="silent"), bind=False)
    model = model_of(None)
    model.bind(db)
    with db.connection_context():
        MigrationRunner(db, [model]).up()
        list(search(model, "embedding", asked[0]))  # has sqlite-vec for the connections that follow
    with db.connection_context():
        inserted("SQLite, bulk_insert()", len(data), lambda: bulk_insert(model, rows_of(data)))
        connection = db.connection()
        for title, where in (("", ""), (", 1 % by an index", "AND part = 3")):
            sql = f"SELECT id, vec_distance_cosine(embedding, ?) AS d FROM item WHERE embedding IS NOT NULL {where}"
            sql += " ORDER BY d, id LIMIT 10"
            shown(
                f"SQLite{title}",
                asked,
                by_model(model, where=model.part == 3 if where else None),
                in_peewee(model, pw.fn.vec_distance_cosine, bool(where), lambda vector: vector.tobytes()),
                lambda vector, sql=sql: [row[0] for row in connection.execute(sql, [vector.tobytes()])],
            )
    with closing(sqlite3.connect(":memory:")) as memory:
        memory.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, part INT, embedding BLOB)")
        rows = [(n % 100, vector.tobytes()) for n, vector in enumerate(data)]
        many = "INSERT INTO item (part, embedding) VALUES (?, ?)"
        inserted("SQLite in memory, executemany of bytes by hand", len(data), lambda: memory.executemany(many, rows))


def text_of(vector: Matrix) -> str:
    """Return a vector as pgvector's own Python package writes it."""
    return "[" + ",".join(map(str, vector.tolist())) + "]"


def copied(cursor: Any, data: Matrix) -> None:
    """Copy all rows in one transaction, as one does by hand."""
    lines = (f"{number % 100}\t{text_of(vector)}\n" for number, vector in enumerate(data))
    cursor.copy_expert("COPY item (part, embedding) FROM STDIN", io.StringIO("".join(lines)))


def on_postgres(dsn: str, data: Matrix, asked: Matrix) -> None:
    """Measure PostgreSQL."""
    db = connect(Settings(dsn=dsn, driver="postgres", log_level="silent"), bind=False)
    with db.connection_context(), closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        model, indexed = model_of(None), model_of("hnsw")
        model.bind(db)
        MigrationRunner(db, [model]).up()
        part = data[:2000]
        many = "INSERT INTO item (part, embedding) VALUES (%s, %s)"
        rows = [(n % 100, text_of(vector)) for n, vector in enumerate(part)]
        inserted("PostgreSQL, executemany by hand (2,000 rows)", len(part), lambda: cursor.executemany(many, rows))
        cursor.execute("TRUNCATE item RESTART IDENTITY")
        inserted("PostgreSQL, COPY by hand (2,000 rows)", len(part), lambda: copied(cursor, part))
        cursor.execute("TRUNCATE item RESTART IDENTITY")
        inserted("PostgreSQL, bulk_insert()", len(data), lambda: bulk_insert(model, rows_of(data)))
        cursor.execute("ANALYZE item")

        searches(db, dsn, cursor, (model, indexed), (data, asked))


def by_driver(cursor: Any, where: str = "", settings: str = "") -> Search:
    """Return the same search as SQL by hand."""
    sql = f"{settings} SELECT id, embedding <=> %s AS d FROM item WHERE embedding IS NOT NULL {where}"

    def run(vector: Matrix) -> list[int]:
        cursor.execute(f"{sql} ORDER BY d, id LIMIT 10", [text_of(vector)])
        return [row[0] for row in cursor.fetchall()]

    return run


def searches(db: Any, dsn: str, cursor: Any, models: tuple[Any, Any], vectors: tuple[Matrix, Matrix]) -> None:
    """Measure searches on PostgreSQL, without an index and with one."""
    (model, indexed), (data, asked) = models, vectors
    peewees = [in_peewee(model, operator, filtered, text_of) for filtered in (False, True)]
    shown("PostgreSQL, exact", asked, by_model(model), peewees[0], by_driver(cursor))
    few = by_model(model, where=model.part == 3)
    shown("PostgreSQL, exact, 1 % by an index", asked, few, peewees[1], by_driver(cursor, "AND part = 3"))
    building(db, dsn, indexed, len(data))
    tuning = "SET LOCAL hnsw.ef_search = {}; SET LOCAL hnsw.iterative_scan = strict_order;"
    cursor.execute("ANALYZE item")
    tuned = [within(db, tuning.format(ef), one) for ef, one in zip((200, 400), peewees, strict=True)]
    shown("PostgreSQL, HNSW", asked, by_model(indexed), tuned[0], by_driver(cursor, settings=tuning.format(200)))
    few = by_model(indexed, where=indexed.part == 3)
    shown(
        "PostgreSQL, HNSW, 1 % by an index", asked, few, tuned[1], by_driver(cursor, "AND part = 3", tuning.format(400))
    )
    print(f"\nrecall at 10 of HNSW: {recall(indexed, asked, None):.3f}", end="; ")
    print(f"with a filter that keeps 1 %: {recall(indexed, asked, indexed.part == 3):.3f}")


def within(db: Any, settings: str, one: Search) -> Search:
    """Return a search in a transaction with settings."""

    def run(vector: Matrix) -> list[int]:
        with db.atomic():
            db.execute_sql(settings)
            return one(vector)

    return run


def recall(model: Any, asked: Matrix, where: Any) -> float:
    """Return the share of the nearest rows that the index finds."""
    pairs = [(by_model(model, where=where)(v), by_model(model, where=where, exact=True)(v)) for v in asked]
    return sum(len(set(one) & set(other)) for one, other in pairs) / sum(len(other) for _, other in pairs)


def building(db: Any, dsn: str, model: Any, rows: int) -> None:
    """Build the index beside a writer, and print how long that took and how long the writer waited."""
    progress("building the index")
    with writing(dsn, rows) as alone:
        time.sleep(30)
    with writing(dsn, rows) as beside:
        model.bind(db)
        started = time.perf_counter()
        MigrationRunner(db, [model]).up()
        seconds = time.perf_counter() - started
    waits = "; ".join(
        f"{name}: {len(one):,} writes, p99.9 {np.percentile(one, 99.9):.0f} ms, longest {max(one):.0f} ms"
        for name, one in (("alone", alone), ("beside", beside))
    )
    print(f"| PostgreSQL, HNSW built in {seconds:.1f} s; a writer {waits} | | | | |", flush=True)


@contextmanager
def writing(dsn: str, rows: int) -> Iterator[list[float]]:
    """Write rows from another thread until the block ends; yield how many milliseconds each write took."""
    took: list[float] = []
    ended = threading.Event()

    def write() -> None:
        with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not ended.wait(0.002):
                started = time.perf_counter()
                cursor.execute("UPDATE item SET part = part WHERE id = %s", [1 + len(took) % rows])
                took.append((time.perf_counter() - started) * 1000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield took
    finally:
        ended.set()
        writer.join()


if __name__ == "__main__":
    main()
