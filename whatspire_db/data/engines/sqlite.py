"""SQLite: who writes has the whole file, so batches are short; free pages leave a file that allows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import peewee

from .base import RowEngine

INCREMENTAL = 2  # https://www.sqlite.org/pragma.html#pragma_auto_vacuum


class SqliteRows(RowEngine):
    """Batches on SQLite."""

    smallest, largest = 10, 1000

    def transaction(self) -> AbstractContextManager[Any]:
        # A transaction that reads first and then writes can fail at once, whatever the time for waiting.
        transaction: AbstractContextManager[Any] = self.db.atomic("IMMEDIATE")
        return transaction

    def batch(self) -> AbstractContextManager[Any]:
        return self.transaction()

    def has_table(self, model: type[peewee.Model]) -> bool:
        return bool(self.db.table_exists(model._meta.table_name))

    def locked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query

    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query

    def give_back(self, seconds: float, rest: Callable[[float], bool]) -> None:
        while self._pragma("auto_vacuum") == INCREMENTAL and self._pragma("freelist_count"):
            started = time.monotonic()
            with self.batch():
                while time.monotonic() - started < seconds and self._pragma("freelist_count"):
                    self.db.execute_sql("PRAGMA incremental_vacuum(1)")  # the driver frees one page a statement
            if not rest(time.monotonic() - started):
                return

    def _pragma(self, name: str) -> int:
        return int(self.db.execute_sql(f"PRAGMA {name}").fetchone()[0])
