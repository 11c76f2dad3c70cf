"""PostgreSQL: rows that others have locked are left for later; autovacuum uses the space again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import peewee

from whatspire_db.migrate.engines.postgres.engine import PostgresEngine

from .base import RowEngine


class PostgresRows(RowEngine):
    """Batches on PostgreSQL."""

    smallest, largest = 100, 10_000

    def alone(self, wait_seconds: float) -> AbstractContextManager[None]:
        return PostgresEngine(self.db).work_lock(wait_seconds)

    def batch(self) -> AbstractContextManager[Any]:
        batch: AbstractContextManager[Any] = self.db.atomic()
        return batch

    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query.for_update("FOR UPDATE SKIP LOCKED")
