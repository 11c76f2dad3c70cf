"""Data migrations are run: one run at a time, each of them once, in batches whose transactions keep the position.

A batch takes about as long as others may wait, and is followed by a pause of the same length. What was killed goes on
behind its last batch: the rows and the position were changed in one transaction.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import peewee

from ..connection.patience import is_loss
from ..errors import ConfigError, DataMigrationFailed, LockTimeout, TransactionError, WhatspireDBError
from ..fields import utcnow
from ..messages import first_line, is_right_missing
from ..models.base import declared_data
from ..models.data_migrations import DataMigration
from ..settings.durations import seconds_of
from .engines import engine_of
from .engines.base import RowEngine
from .keys import Keys, read, write
from .pace import LOG_SECONDS, STALL_SECONDS, Pace
from .records import DataState, Records

logger = logging.getLogger("whatspire_db.data")

RETRY = "correct the function, then run: whatspire-db data retry {name} (or data skip {name})"
LOCKED_PAUSE_SECONDS = 0.05
BUSY_SECONDS = 0.2  # longer than a start looks whether the lock is held


@dataclass(frozen=True)
class DataOutcome:
    """What a run of data migrations did, and what it left."""

    done: tuple[DataState, ...] = ()
    left: tuple[DataState, ...] = ()

    def to_json(self) -> list[dict[str, Any]]:
        return [state.to_json() for state in (*self.done, *self.left)]


@dataclass(frozen=True)
class DataRun:
    """A run of data migrations in one database.

    :param stall: how many seconds others may wait for a batch.
    :param wait_seconds: how long a batch waits for rows that others have locked, all its tries together.
    :param tell: is called with a data migration and the number of its rows that are done.
    :param stop: ends the run behind the current batch when it is set.
    """

    engine: RowEngine
    declared: Sequence[DataMigration]
    stall: float
    wait_seconds: float
    tell: Callable[[DataMigration, int], None]
    stop: threading.Event

    @property
    def db(self) -> Any:
        return self.engine.db

    @property
    def records(self) -> Records:
        return Records(self.engine)

    def run(self) -> DataOutcome:
        """Run what is left, in order, up to one that failed before.

        The caller holds the lock of such runs and a connection.

        :raises DataMigrationFailed: when one fails now; its last transaction was rolled back.
        :raises DatabaseMoved: when the rows were moved to another database.
        :raises RightMissing: when this role may not do it.
        """
        before = self._states()
        if not any(state.is_left for state in before):
            return DataOutcome()
        self.engine.require_rows_here()
        self._require_trusted()
        self.records.make()
        for migration in self.declared:
            with self._in_words(migration):
                if not self._is_finished_by(migration):
                    break
        after = self._states()
        done = (new for old, new in zip(before, after, strict=True) if old.is_left and not new.is_left)
        return DataOutcome(tuple(done), tuple(state for state in after if state.is_left))

    def _states(self) -> list[DataState]:
        return self.records.states(self.declared)[: len(self.declared)]

    def _require_trusted(self) -> None:
        """Refuse to run code of roles with fewer rights than this one: triggers, and what the functions may call."""
        if found := self.engine.schema.untrusted([migration.model for migration in self.declared]):
            raise found

    def _is_finished_by(self, migration: DataMigration) -> bool:
        """Run one; tell whether the next one may begin."""
        with self.engine.batch():
            state = self.records.locked(migration.name)
            if state.state == "pending":
                self.records.begin(migration.name)
        if not state.is_left:
            return True
        if state.state == "failed":
            logger.warning("data migration %s; run whatspire-db data retry or skip", state)
            return False
        if migration.in_batches:
            return self._go_through(migration)
        return self._change_at_once(migration)

    def _change_at_once(self, migration: DataMigration) -> bool:
        def change() -> bool:
            with self._transaction(self.wait_seconds):
                if self._is_current(migration):
                    migration.change()
                    self._keep(migration.name, finished=utcnow())
                return True

        return self._until_unlocked(change)

    def _go_through(self, migration: DataMigration) -> bool:
        """Change batch after batch; False where the run is to stop."""
        largest = min(self.engine.largest, migration.batch or self.engine.largest)
        pace = Pace(self.stall, min(self.engine.smallest, largest), largest)
        pause, size = seconds_of("pause", migration.pause), pace.smallest
        while not self.stop.is_set():
            started = time.monotonic()
            rows, total = self._until_unlocked(partial(self._batch, migration, size))
            seconds = time.monotonic() - started
            self.tell(migration, total)
            if not rows:
                return True
            size = pace.after(rows, seconds)
            self.stop.wait(max(pause, seconds))
        return False

    def _batch(self, migration: DataMigration, size: int) -> tuple[int, int]:
        """Change one batch; return how many rows it had, 0 behind the last one, and how many are done in all."""
        keys = Keys(migration.model)
        with self._transaction(self.stall):
            with self.engine.with_own_names():
                record = self.records.current(migration.name)
                if record is None:
                    return 0, 0
                rows, last = self._next(keys, record.position, size)
            if last is None:
                self._keep(migration.name, finished=utcnow(), position=None)
                return 0, record.rows
            migration.change(self._selected(keys, record.position, last))
            self._keep(migration.name, position=write(last), rows=record.rows + rows)
            return rows, record.rows + rows

    def _next(self, keys: Keys, position: str | None, size: int) -> tuple[int, Sequence[Any] | None]:
        """Return how many rows the next batch has, and its last key; None where there are no more rows."""
        query = keys.ordered(keys.fields[0].model.select(*keys.fields))
        query = query.where(keys.behind(read(position))) if position else query
        found = self._rows(query.limit(1).offset(size - 1))
        if found:
            return size, found[-1]
        found = self._rows(query.limit(size))
        return len(found), found[-1] if found else None

    def _rows(self, query: peewee.ModelSelect) -> list[Sequence[Any]]:
        """Return rows as the driver gives them: a field's own values may not be comparable."""
        return list(self.db.execute_sql(*self.db.get_sql_context().parse(query)).fetchall())

    def _selected(self, keys: Keys, position: str | None, last: Sequence[Any]) -> Any:
        upper = keys.up_to(last)
        return keys.behind(read(position)) & upper if position else upper

    def _is_current(self, migration: DataMigration) -> bool:
        with self.engine.with_own_names():
            return self.records.current(migration.name) is not None

    def _keep(self, name: str, **values: Any) -> None:
        with self.engine.with_own_names():
            self.records.change(name, **values)

    @contextmanager
    def _transaction(self, wait_seconds: float) -> Iterator[None]:
        """Run a block as one transaction in which the function's own names mean what they mean to its program."""
        with self.engine.transaction():
            self.engine.limit_waits(wait_seconds)
            yield

    def _until_unlocked(self, change: Callable[[], Any]) -> Any:
        """Run a transaction; again, and with a pause for others, where somebody's lock stops it."""
        deadline = time.monotonic() + self.wait_seconds
        while True:
            try:
                return change()
            except peewee.PeeweeException as error:
                if not self.engine.schema.is_lock_failure(error):
                    raise
                if time.monotonic() > deadline:
                    raise LockTimeout(
                        f"rows that are to be changed were locked by others for {self.wait_seconds:g} s",
                        "end the transactions that hold them, raise --lock-timeout, or run it again later",
                    ) from error
            self.stop.wait(LOCKED_PAUSE_SECONDS)

    @contextmanager
    def _in_words(self, migration: DataMigration) -> Iterator[None]:
        """Record why a function failed, and say it; what passes by itself is not recorded, and goes on next time."""
        try:
            yield
        except (LockTimeout, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except Exception as error:
            if is_loss(error) or is_right_missing(error) or self.db.is_closed():
                raise
            why = _why(error)
            self._record_failure(migration.name, why)
            raise DataMigrationFailed(
                f"data migration {migration.name} failed: {why}", RETRY.format(name=migration.name)
            ) from error

    def _record_failure(self, name: str, why: str) -> None:
        with self.engine.batch():
            state = self.records.locked(name)
            if state.is_left:
                self.records.change(name, error=why)


def _why(error: Exception) -> str:
    """Return what went wrong in a function and where, without values of its rows."""
    if isinstance(error, WhatspireDBError):
        return error.fact
    if isinstance(error, peewee.PeeweeException):
        return first_line(error)
    frames = traceback.extract_tb(error.__traceback__)
    at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}"


class DataMigrations:
    """The data migrations of one database, to run them, to see how they stand, and to deal with one that failed.

    :param db: any peewee database for SQLite or PostgreSQL.
    :param declared: default: all that were declared.
    :param stall: how long others may wait for a batch, above 0: seconds, a timedelta or a text like 50ms.
    :param lock_timeout: how long to wait for another run that changes many rows, and for locks of others.
    :param tell: is called with a data migration and the number of its rows that are done; default: the log hears it.
    :param stop: ends the run behind the current batch when it is set, in whatever thread.
    :param trust_source: let a PostgreSQL superuser run code of other roles that a function could reach.
    """

    def __init__(
        self,
        db: peewee.Database,
        declared: Sequence[DataMigration] | None = None,
        *,
        stall: float | timedelta | str = STALL_SECONDS,
        lock_timeout: float | timedelta | str = 60.0,
        tell: Callable[[DataMigration, int], None] | None = None,
        stop: threading.Event | None = None,
        trust_source: bool = False,
    ) -> None:
        self.engine = engine_of(db, trust_source)
        self.declared = tuple(declared_data.values()) if declared is None else tuple(declared)
        self.stall, self.wait_seconds = seconds_of("stall", stall), seconds_of("lock_timeout", lock_timeout)
        if not self.stall:
            raise ConfigError("stall is 0", "give a time above 0")
        self.tell, self.stop = tell or _Log(), stop or threading.Event()

    @property
    def db(self) -> Any:
        return self.engine.db

    def run(self) -> DataOutcome:
        """Run what is left, in order, up to one that failed before.

        :raises DataMigrationFailed: when one fails now; its last transaction was rolled back.
        :raises LockTimeout: when another run takes longer, or rows stay locked.
        :raises RightMissing: when this role may not do it.
        :raises TransactionError: within a transaction.
        :raises DatabaseMoved: when the rows were moved to another database.
        """
        with self._connection(), self._alone(self.wait_seconds):
            return self._run()

    def run_unless_busy(self) -> DataOutcome:
        """Run what is left; where another run that changes many rows is at work, all is left to that."""
        with self._connection(), ExitStack() as stack:
            try:
                stack.enter_context(self._alone(BUSY_SECONDS))
            except LockTimeout:
                return self.all_left()
            return self._run()

    def _run(self) -> DataOutcome:
        with self.db.bind_ctx([migration.model for migration in self.declared]):
            run = DataRun(self.engine, self.declared, self.stall, self.wait_seconds, self.tell, self.stop)
            return run.run()

    def all_left(self) -> DataOutcome:
        """Return what a run has done that leaves all to others, and does not ask how far they are."""
        return DataOutcome(left=tuple(DataState(migration.name, "left to others") for migration in self.declared))

    def states(self) -> list[DataState]:
        """Return how those stand that are declared, in that order, and behind them others that were begun."""
        with self._connection():
            return Records(self.engine).states(self.declared)

    def retry(self, name: str) -> DataOutcome:
        """Run one that failed again, from where it stopped, and those behind it.

        :raises WhatspireDBError: when it has not failed, and as `run` does.
        """
        self._change_failed(name, error=None)
        return self.run()

    def skip(self, name: str) -> None:
        """Leave one that failed as it is, so that those behind it can run.

        :raises WhatspireDBError: when it has not failed.
        """
        self._change_failed(name, finished=utcnow())

    def _change_failed(self, name: str, **values: Any) -> None:
        with self._connection(), self._alone(self.wait_seconds):
            self.engine.require_rows_here()
            records = Records(self.engine)
            if not records.exists():
                raise WhatspireDBError(
                    f"the data migration {name} has not failed", "none was begun yet; whatspire-db data run begins"
                )
            records.change_failed(name, **values)

    def _alone(self, seconds: float) -> AbstractContextManager[None]:
        return self.engine.alone(seconds)

    @contextmanager
    def _connection(self) -> Iterator[None]:
        if self.db.in_transaction():
            raise TransactionError(
                "a data migration within a transaction would keep all that it changes locked",
                "end the transaction before",
            )
        with self.db.connection_context() if self.db.is_closed() else nullcontext():
            yield


class _Log:
    """Tells the log every ten seconds how far a data migration is."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, migration: DataMigration, rows: int) -> None:
        if time.monotonic() - self.last > LOG_SECONDS:
            self.last = time.monotonic()
            logger.info("data migration %s: %s rows done", migration.name, rows)
