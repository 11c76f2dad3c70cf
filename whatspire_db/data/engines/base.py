"""The questions about rows that the engines answer in their own ways."""

from __future__ import annotations

import abc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

import peewee

from whatspire_db.migrate.engines.base import Engine


class RowEngine(abc.ABC):
    """Changes many rows in batches, of which none holds others up for long.

    `smallest` and `largest` are how many rows a batch has at least and at most.
    """

    smallest: int
    largest: int

    def __init__(self, schema: Engine) -> None:
        self.schema = schema
        self.db: Any = schema.db

    def alone(self, wait_seconds: float) -> AbstractContextManager[None]:
        """Hold the lock that only one run of long work on the rows has; it is gone with its process.

        :raises LockTimeout: when another run holds it for longer.
        """
        return self.schema.work_lock(wait_seconds)

    def is_before(self, field: peewee.Field, moment: datetime) -> Any:
        """Return the condition that the time in a field lies before a moment; a value that is no time does not."""
        return field < moment

    def require_rows_here(self) -> None:
        """Refuse to change rows that were moved to another database, which has the current ones.

        :raises DatabaseMoved: when they were.
        """
        if fence := self.schema.fence():
            raise fence.refusal()

    def begins_an_index(self, field: peewee.Field) -> bool:
        """Tell whether a column stands first in an index of the live table, by which its rows are found in order."""
        key = self.schema.key(field.model)
        table = self.schema.snapshot([key]).tables.get(key)
        column = self.schema.fold(field.column_name)
        return table is not None and any(
            index.valid and not index.predicate and index.keys[0].column == column for index in table.indexes
        )

    @property
    @abc.abstractmethod
    def home(self) -> str:
        """The schema in which tables without one are."""

    @abc.abstractmethod
    def has_table(self, model: type[peewee.Model]) -> bool:
        """Tell whether a model's table is there."""

    def with_own_names(self) -> AbstractContextManager[Any]:
        """Run a block in which functions and operators are the engine's own, whatever the search_path leads to."""
        return nullcontext()

    @abc.abstractmethod
    def batch(self) -> AbstractContextManager[Any]:
        """Run a block as one transaction that may write, in which functions and operators are the engine's own."""

    @abc.abstractmethod
    def unlocked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        """Return a query for rows to change that waits for no other transaction's rows."""

    def operator_of_key(self, model: type[peewee.Model], symbol: str) -> str:
        """Return how a condition compares a model's key, so that nothing in the search_path is called instead."""
        return symbol

    @abc.abstractmethod
    def transaction(self) -> AbstractContextManager[Any]:
        """Run a block as one transaction that may write."""

    @abc.abstractmethod
    def locked(self, query: peewee.ModelSelect) -> peewee.ModelSelect:
        """Return a query whose rows nobody else changes until the end of the transaction."""

    def limit_waits(self, seconds: float) -> None:  # noqa: B027 - nothing to wait for under a write lock
        """Limit waits for locks in this transaction; lift its time limits, and fail where a policy hides rows."""

    def give_back(self, seconds: float, rest: Callable[[float], bool]) -> None:  # noqa: B027 - nothing to do on a server
        """Return the space of deleted rows to the file system.

        :param seconds: how long one transaction of it may take.
        :param rest: waits for so many seconds; False when the run is to stop.
        """
