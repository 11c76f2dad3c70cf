"""PostgreSQL: rows that others have locked are left for later; autovacuum uses the space again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import peewee

from whatspire_db.migrate.ddl import execute, qualified
from whatspire_db.migrate.engines.postgres.limits import lift_in_transaction, lock_limit
from whatspire_db.sql import pinned

from .base import RowEngine

# Whether pg_catalog has the operators of some columns of a table; those of enums are for all of them.
_ARE_BUILTIN = pinned("""
SELECT bool_and(t.oid < 16384 OR (t.typbasetype > 0 AND t.typbasetype < 16384) OR t.typtype = 'e')
FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
WHERE a.attrelid = to_regclass(%s) AND a.attname = ANY (%s)
""")


class PostgresRows(RowEngine):
    """Batches on PostgreSQL."""

    smallest, largest = 100, 10_000

    @property
    def home(self) -> str:
        schema: Any = self.schema
        return str(schema.default_schema)

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

    def operator_of_key(self, model: type[peewee.Model], symbol: str) -> str:
        key = self.schema.key(model)
        columns = [field.column_name for field in model._meta.get_primary_keys()]
        are_builtin = self.schema.ask(_ARE_BUILTIN, [qualified(key[0] or self.home, key[1]), columns])
        # The type of an extension has its operators where the extension is.
        return self.schema.operator(symbol) if are_builtin else symbol

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
        self.schema.see_every_row()

    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query.for_update("FOR UPDATE SKIP LOCKED")
