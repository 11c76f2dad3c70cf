"""SQLite: who writes has the whole file, so batches are short; free pages leave a file that allows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any

import peewee

from whatspire_db.fields import format_instant

from .base import RowEngine

INCREMENTAL = 2  # https://www.sqlite.org/pragma.html#pragma_auto_vacuum


LARGEST_OFFSET = timedelta(days=1)
PRECISION = timedelta(milliseconds=1)  # of SQLite's own functions
FORM = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][ T][0-9][0-9]:[0-9][0-9]:[0-9][0-9]*"


def _text(value: str) -> Any:
    return peewee.Value(value, converter=False)


class SqliteRows(RowEngine):
    """Batches on SQLite."""

    smallest, largest = 10, 1000

    def transaction(self) -> AbstractContextManager[Any]:
        # A transaction that reads first and then writes can fail at once, whatever the time for waiting.
        transaction: AbstractContextManager[Any] = self.db.atomic("IMMEDIATE")
        return transaction

    def batch(self) -> AbstractContextManager[Any]:
        return self.transaction()

    home = "main"

    def has_table(self, model: type[peewee.Model]) -> bool:
        schema = model._meta.schema or self.home
        return bool(self.db.table_exists(model._meta.table_name, schema=schema))

    def locked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query

    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        return query

    def is_before(self, field: peewee.Field, moment: datetime) -> Any:
        # By text alone, times of another offset sort wrongly, and numbers, which sort before all texts, would be older
        # than every moment. The two comparisons of texts are for an index.
        is_near = (field >= _text("0")) & (field < _text(format_instant(moment + LARGEST_OFFSET)))
        has_form = peewee.Expression(field, "GLOB", _text(FORM))
        earlier = peewee.fn.julianday(_text(format_instant(moment - PRECISION)))
        return is_near & has_form & (peewee.fn.julianday(field) < earlier)

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
