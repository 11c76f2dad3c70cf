"""The questions about rows that the engines answer in their own ways."""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import peewee

from whatspire_db.migrate.engines.base import engine_for


class RowEngine(abc.ABC):
    """Changes many rows in batches, of which none holds others up for long.

    `smallest` and `largest` are how many rows a batch has at least and at most.
    """

    smallest: int
    largest: int

    def __init__(self, db: Any) -> None:
        self.db = db
        self.schema = engine_for(db)

    def alone(self, wait_seconds: float) -> AbstractContextManager[None]:
        """Hold the lock that only one run of long work on the rows has; it is gone with its process.

        :raises LockTimeout: when another run holds it for longer.
        """
        return self.schema.work_lock(wait_seconds)

    def begins_an_index(self, field: peewee.Field) -> bool:
        """Tell whether a column stands first in an index of the live table, by which its rows are found in order."""
        key = self.schema.key(field.model)
        table = self.schema.snapshot([key]).tables.get(key)
        column = self.schema.fold(field.column_name)
        return table is not None and any(
            index.valid and not index.predicate and index.keys[0].column == column for index in table.indexes
        )

    @abc.abstractmethod
    def batch(self) -> AbstractContextManager[Any]:
        """Run a block as one transaction that may write."""

    @abc.abstractmethod
    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        """Return a query for rows to change that waits for no other transaction's rows."""

    def give_back(self, seconds: float, rest: Callable[[float], bool]) -> int:
        """Return the space of deleted rows to the file system, and how many bytes that was.

        :param seconds: how long one transaction of it may take.
        :param rest: waits for so many seconds; False when no more shall be done.
        """
        return 0
