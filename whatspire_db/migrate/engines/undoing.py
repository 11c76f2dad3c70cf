"""What differs between the engines where what a run added is taken back: who depends on it, and how that is proved."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import peewee

from whatspire_db.errors import WhatspireDBError

from ..added import Added
from ..ddl import ModelType
from ..schema import Column, Key, Schema
from .base import Engine

if TYPE_CHECKING:
    from ..plan import Lock


@dataclass(frozen=True)
class Dependent:
    """An object that depends on something that the undo would drop.

    :param of: what it depends on.
    :param identity: its kind, table and name, as of what was added.
    :param title: what a message calls it.
    """

    of: Added
    identity: tuple[str, Key, str]
    title: str


@dataclass(frozen=True)
class RecordsState:
    """Whether there is a table of records, and what this role may do with it."""

    exists: bool
    may_read: bool
    may_write: bool  # or make it, where there is none


class UndoEngine(abc.ABC):
    """The questions of an undo, and its statements.

    :param lock: the lock that its statements take.
    :param online_lock: the lock of those that run beside readers and writers.
    :param rewrites: whether a table is written anew when a column of it is dropped.
    """

    lock: Lock
    online_lock: Lock
    rewrites: bool

    def __init__(self, schema: Engine) -> None:
        self.schema = schema

    @property
    def db(self) -> peewee.Database:
        return self.schema.db

    @abc.abstractmethod
    def records_state(self, model: ModelType) -> RecordsState:
        """Tell whether the table of records is there, without running code of its owner."""

    def forgeable(self, model: ModelType) -> WhatspireDBError | None:
        """Return who with fewer rights than this role may write to the table of records, and what to do."""
        return None

    def untrusted(self, keys: Sequence[Key]) -> WhatspireDBError | None:
        """Return whose code a look at tables, or their end, would run with rights above theirs, and what to do."""
        return None

    def marks(self, keys: Sequence[Key]) -> dict[Key, str]:
        """Return what changes of a table when somebody puts another one in its place, or adds to it.

        Nothing where nobody can do so between a plan and its end.
        """
        return {}

    @abc.abstractmethod
    def name(self, key: Key) -> str:
        """Return a relation's name in full, as it stands in SQL."""

    @abc.abstractmethod
    def dependents(self, added: Sequence[Added], live: Schema) -> list[Dependent]:
        """Return what depends on objects that are there, but for their own parts."""

    @abc.abstractmethod
    def cannot_drop(self, column: Column, key: Key, live: Schema) -> str | None:
        """Return why the engine cannot drop a column from its table; None where it can."""

    def is_in_backup(self, key: Key) -> bool:
        """Tell whether a backup of the database holds the rows of a table."""
        return True

    @abc.abstractmethod
    def is_unused(self, column: Column, key: Key) -> str:
        """Return the condition that a row holds nothing in a column: NULL, or the constant that it was added with.

        :param key: the column's table.
        """

    @abc.abstractmethod
    def proof(self, key: Key, column: Column | None, left: str | None = None) -> str:
        """Return the statement that fails where a table has rows, or where a column holds something.

        :param left: the constraint that a killed run left there.
        """

    def online_proof(self, key: Key, column: Column) -> tuple[str, str]:
        """Return the two statements of a proof beside writers: what keeps them from storing values, and the proof."""
        raise NotImplementedError

    def proof_name(self, column: Column | None) -> str:
        """Return the name of the constraint that is such a proof for a column, or for a whole table."""
        return ""

    def withdraw(self, key: Key, name: str) -> str:
        """Return the statement that takes such a proof away again."""
        raise NotImplementedError

    @abc.abstractmethod
    def drop_column(self, key: Key, name: str) -> str:
        """Return the statement that drops a column."""

    def drop_index(self, key: Key, name: str, online: bool = False) -> str:
        """Return the statement that drops an index; `key` is its table's."""
        return f"DROP INDEX {self.name((key[0], name))}"

    def drop_constraint(self, key: Key, name: str) -> str:
        """Return the statement that drops a constraint."""
        raise NotImplementedError

    def trial(self, statements: Sequence[str]) -> str | None:
        """Return what the engine has against statements, where it can be asked without a lock; None for nothing."""
        return None


def undo_engine(schema: Engine) -> UndoEngine:
    """Return the engine of an undo."""
    if isinstance(schema.db, peewee.SqliteDatabase):
        from .sqlite.undoing import SqliteUndo

        return SqliteUndo(schema)
    from .postgres.undoing import PostgresUndo

    return PostgresUndo(schema)
