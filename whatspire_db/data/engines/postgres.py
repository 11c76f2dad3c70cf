"""PostgreSQL: rows that others have locked are left for later; autovacuum uses the space again."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import peewee

from .base import RowEngine


class PostgresRows(RowEngine):
    """Batches on PostgreSQL."""

    smallest, largest = 100, 10_000

    def batch(self) -> AbstractContextManager[Any]:
        batch: AbstractContextManager[Any] = self.db.atomic()
        return batch

    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query.for_update("FOR UPDATE SKIP LOCKED")
