"""Searches of an index behind PgBouncer, where the next transaction gets another session."""

from __future__ import annotations

from collections.abc import Iterator

import peewee as pw
import pytest

from tests.conftest import Place, Server
from tests.pooler import PGBOUNCER, POOL, bouncer, through
from tests.servers import opened
from tests.vectors.clusters import clustered
from tests.vectors.models import MODELS, Indexed
from whatspire_db import MigrationRunner, bulk_insert
from whatspire_db import nearest as search

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

QUERY = [1.0, 0.5, 0.2]
ROWS = 2000  # of an index whose own default ends after 40
SETTINGS = ("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "hnsw.scan_mem_multiplier")


@pytest.fixture
def db(postgres: Place, server: Server) -> Iterator[pw.Database]:
    """A database with an index of vectors, reached through a pooler in transaction mode."""
    with bouncer(server, "transaction") as folder, opened(through(postgres, folder)) as db:
        MigrationRunner(db, MODELS).up()
        bulk_insert(Indexed, ({"topic": n % 2, "embedding": v} for n, v in enumerate(clustered(ROWS, 3, clusters=10))))
        db.execute_sql("ANALYZE indexed")
        yield db


def settings(db: pw.Database) -> set[tuple[str, ...]]:
    """Return what the sessions behind the pooler have set; each question gets the next one."""
    query = "SELECT " + ", ".join(f"current_setting('{name}', true)" for name in SETTINGS)
    return {db.execute_sql(query).fetchone() for _ in range(2 * POOL)}


def test_search_behind_a_pooler_finds_as_many_rows_and_leaves_every_session_as_it_was(db: pw.Database) -> None:
    before = settings(db)
    exact = {row.id for row in search(Indexed, "embedding", QUERY, 100, exact=True)}
    for _ in range(2 * POOL):
        found = {row.id for row in search(Indexed, "embedding", QUERY, 100)}
        assert len(found) == 100
        assert len(found & exact) >= 95
    # A session that has loaded the extension knows its settings' defaults, another one knows none.
    assert settings(db) <= before | {("40", "off", "20000", "1")}


def test_search_in_a_transaction_behind_a_pooler_gives_it_its_settings_back(db: pw.Database) -> None:
    with db.atomic():
        db.execute_sql("SET LOCAL hnsw.ef_search = 77")
        assert len(list(search(Indexed, "embedding", QUERY, 100))) == 100
        assert db.execute_sql("SHOW hnsw.ef_search").fetchone() == ("77",)
    assert ("77", *("off", "20000", "1")) not in settings(db)
