"""The functions of data migrations are called: their locks are waited for, and their failures put in words."""

from __future__ import annotations

import shlex
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import peewee

from ..errors import DataMigrationFailed, LockTimeout, TransactionError, WhatspireDBError
from ..messages import (
    BUSY,
    ERROR,
    FULL,
    INTERRUPT,
    IOERR,
    NOMEM,
    first_line,
    is_disk_full,
    is_right_missing,
    primary,
    sqlstate,
)
from ..models.data_migrations import DataMigration
from .engines.base import RowEngine
from .records import Records

T = TypeVar("T")

RETRY = "correct the function, then run: whatspire-db data retry {0} (or data skip {0})"
RETRY_ENDED = (
    "use atomic() in the function instead of commit and rollback, and check the rows that it changed, because a retry "
    "{1}; then run: whatspire-db data retry {0} (or data skip {0})"
)
LOCKED_PAUSE_SECONDS = 0.05
SAVEPOINT = "whatspire_db_batch"
SERIALIZATION_FAILURE, IN_FAILED_TRANSACTION = "40001", "25P02"
NO_SAVEPOINT = ("3B001", "25P01")  # invalid_savepoint_specification, no_active_sql_transaction
# After these SQLite itself may have rolled the transaction back: https://www.sqlite.org/lang_transaction.html
ENDED_BY_SQLITE = (FULL, IOERR, NOMEM, BUSY, INTERRUPT)
# Errors whose words name columns, tables and functions alone; those of other classes can repeat a value.
_PLAIN_STATES = ("42703", "42P01", "42883", "42501")


class Stopped(Exception):
    """The run is to end after its current batch."""


class EndedItself(TransactionError):
    """The function ended the transaction that it was called in."""


class Ended(Exception):
    """Somebody else has ended the data migration that this run works on."""


@dataclass(frozen=True)
class Attempts:
    """Transactions that are tried again where somebody's lock stops them.

    :param wait_seconds: for all tries together.
    :param stop: ends the tries.
    """

    engine: RowEngine
    wait_seconds: float
    stop: threading.Event

    def until_unlocked(self, change: Callable[[], T]) -> tuple[T, float]:
        """Return what a transaction returns, and how many seconds its last try took.

        :raises LockTimeout: when the locks of others were there for too long.
        :raises Stopped: when the run is to end.
        """
        deadline = time.monotonic() + self.wait_seconds
        while True:
            started = time.monotonic()
            try:
                return change(), time.monotonic() - started
            except peewee.PeeweeException as error:
                if not _passes(self.engine, error):
                    raise
                if time.monotonic() > deadline:
                    raise LockTimeout(
                        f"rows that are to be changed were locked by others for {self.wait_seconds:g} s",
                        "end the transactions that hold them, raise --lock-timeout, or run it again later",
                    ) from error
            if self.stop.wait(LOCKED_PAUSE_SECONDS):
                raise Stopped


def _passes(engine: RowEngine, error: Exception) -> bool:
    return engine.schema.is_lock_failure(error) or sqlstate(error) == SERIALIZATION_FAILURE


def call(
    engine: RowEngine, calling: Callable[[], AbstractContextManager[Any]], migration: DataMigration, *batch: Any
) -> None:
    """Call a function within the transaction.

    :raises EndedItself: when it ended the transaction.
    """
    engine.db.execute_sql(f"SAVEPOINT {SAVEPOINT}")
    try:
        with calling():
            migration.change(*batch)
        engine.db.execute_sql(f"RELEASE SAVEPOINT {SAVEPOINT}")
    except Exception as error:
        if primary(error) not in ENDED_BY_SQLITE:
            _require_transaction(engine, error)
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # an exit or a cancellation would end the run without a word
        raise WhatspireDBError(f"it raised {type(error).__name__}", "let it return, or raise an error") from error


def _require_transaction(engine: RowEngine, error: Exception) -> None:
    """Tell an error of a function from its having ended the transaction: then the savepoint is gone."""
    try:
        engine.db.execute_sql(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
    except (peewee.PeeweeException, TransactionError) as gone:
        is_gone = isinstance(gone, TransactionError) or sqlstate(gone) in NO_SAVEPOINT or primary(gone) == ERROR
        if engine.db.is_closed() or not is_gone:
            return  # the connection is lost, and with it the transaction
        raise EndedItself(
            "it ended the transaction of its batch, whose rows may be changed in part",
            "leave commit and rollback to the run; use atomic() within the function",
        ) from error


@contextmanager
def in_words(engine: RowEngine, records: Records, migration: DataMigration) -> Iterator[None]:
    """Record why a function failed, and say it; what passes by itself is not recorded, and goes on next time."""
    try:
        yield
    except (LockTimeout, Stopped, Ended):
        raise
    except Exception as error:
        if is_right_missing(error) or is_disk_full(error) or _is_lost(engine):
            raise
        first = _first(error)
        why = _why(first, migration)
        with engine.batch():
            # One that ended its transaction may have kept what was recorded for its end.
            if isinstance(first, EndedItself) or records.locked(migration.name).is_left:
                records.change(migration.name, finished=None, error=why)
        raise DataMigrationFailed(f"data migration {migration.name} failed: {why}", _to_do(first, migration)) from error


def _to_do(error: Exception, migration: DataMigration) -> str:
    """Return the hint for a function that failed."""
    again = "begins after them" if migration.in_batches else "calls it again"
    return (RETRY_ENDED if isinstance(error, EndedItself) else RETRY).format(shlex.quote(migration.name), again)


def _first(error: BaseException) -> Exception:
    """Return the error of a function that ended its transaction, in whose place its end fails too; else the error."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, EndedItself):
        found = found.__context__
    return found or error  # type: ignore[return-value]


def _is_lost(engine: RowEngine) -> bool:
    """Tell whether the connection of the run itself is gone."""
    return bool(engine.db.is_closed()) or not engine.db.is_connection_usable()


def _why(error: Exception, migration: DataMigration) -> str:
    """Return what went wrong in a function and where, without values of its rows."""
    if isinstance(error, WhatspireDBError):
        return error.fact
    place = _place(error, migration)
    if not isinstance(error, peewee.PeeweeException):
        return f"{type(error).__name__}{place}"
    state = sqlstate(error)
    if state == IN_FAILED_TRANSACTION:
        return "it caught an error of the database and went on; what may fail belongs in a block of atomic()"
    if state and not state.startswith("23") and state not in _PLAIN_STATES:
        return f"{type(getattr(error, 'orig', error)).__name__} (SQLSTATE {state}){place}"
    return f"{first_line(error)}{place}"


def _place(error: Exception, migration: DataMigration) -> str:
    """Return the last line of the function's own file that the error passed."""
    file = migration.change.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" at {file}:{lines[-1]}" if lines else ""
