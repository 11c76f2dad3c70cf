"""PostgreSQL: rows that others have locked are left for later; autovacuum uses the space again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import peewee

from whatspire_db.migrate.ddl import execute
from whatspire_db.migrate.engines.postgres.limits import lift_in_transaction, lock_limit

from .base import RowEngine


class PostgresRows(RowEngine):
    """Batches on PostgreSQL."""

    smallest, largest = 100, 10_000

    def has_table(self, model: type[peewee.Model]) -> bool:
        return self.schema.has_table(self.schema.key(model))

    @contextmanager
    def with_own_names(self) -> Iterator[None]:
        with self.db.atomic():
            usual = self.schema.ask("SELECT pg_catalog.current_setting('search_path')")
            self.schema.search_first("pg_catalog")
            yield
            # A block may be part of a transaction that goes on with the user's own names.
            self.schema.ask("SELECT pg_catalog.set_config('search_path', %s, true)", [usual])

    def transaction(self) -> AbstractContextManager[Any]:
        transaction: AbstractContextManager[Any] = self.db.atomic()
        return transaction

    def batch(self) -> AbstractContextManager[Any]:
        return self.with_own_names()

    def locked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query.for_update()

    def limit_waits(self, seconds: float) -> None:
        lift_in_transaction(self.db)
        execute(self.db, lock_limit(seconds))

    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query.for_update("FOR UPDATE SKIP LOCKED")
