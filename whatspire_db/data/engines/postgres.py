"""PostgreSQL: rows that others have locked are left for later; autovacuum uses the space again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import peewee

from .base import RowEngine


class PostgresRows(RowEngine):
    """Batches on PostgreSQL."""

    smallest, largest = 100, 10_000

    @contextmanager
    def with_own_names(self) -> Iterator[None]:
        with self.db.atomic():
            self.schema.search_first("pg_catalog")
            yield

    def batch(self) -> AbstractContextManager[Any]:
        return self.with_own_names()

    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query.for_update("FOR UPDATE SKIP LOCKED")
