"""Data migrations are run: one run at a time, each of them once, in batches whose transactions keep the position.

A batch takes about as long as others may wait, and is followed by a pause of the same length. The rows and the position
are changed in one transaction, so after a kill the next run continues after the last batch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import peewee

from ..errors import ConfigError, LockTimeout, ModelError, TransactionError, WhatspireDBError
from ..fields import utcnow
from ..migrate.engines.references import with_references
from ..migrate.progress import Watcher
from ..models.base import declared_data
from ..models.data_migrations import DataMigration
from ..settings.durations import seconds_of
from .calling import Attempts, Ended, Stopped, call, in_words
from .engines import engine_of
from .engines.base import RowEngine
from .keys import Keys
from .pace import STALL_SECONDS, Pace
from .records import DataState, Records

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("whatspire_db.data")

BUSY_SECONDS = 0.2  # longer than a start looks whether the lock is held
Calling = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class DataOutcome:
    """What a run of data migrations did, and what it left; `backup` is the file of the backup made before."""

    done: tuple[DataState, ...] = ()
    left: tuple[DataState, ...] = ()
    backup: str | None = None

    def to_json(self) -> list[dict[str, Any]]:
        return [state.to_json() for state in (*self.done, *self.left)]


@dataclass(frozen=True)
class DataRun:
    """A run of data migrations in one database.

    :param stall: how many seconds others may wait for a batch.
    :param wait_seconds: how long a batch waits for rows that others have locked, all its tries together.
    :param tell: is called with a data migration and the number of its rows that are done.
    :param stop: ends the run after the current batch when it is set.
    :param calling: gives the context in which a function is called.
    """

    engine: RowEngine
    declared: Sequence[DataMigration]
    stall: float
    wait_seconds: float
    tell: Callable[[DataMigration, int], None]
    stop: threading.Event
    calling: Calling

    @property
    def db(self) -> Any:
        return self.engine.db

    @property
    def records(self) -> Records:
        return Records(self.engine)

    @property
    def attempts(self) -> Attempts:
        return Attempts(self.engine, self.wait_seconds, self.stop)

    def states(self) -> list[DataState]:
        """Return how those that are declared stand."""
        return self.records.states(self.declared)[: len(self.declared)]

    def run(self, before: Sequence[DataState], before_changes: Callable[[], str | None]) -> DataOutcome:
        """Run what is left, in order, up to one that failed before.

        :param before: how they stand.
        """
        self.engine.require_rows_here()
        self._require_tables(before)
        self._require_trusted()
        may_begin = any(state.state in ("pending", "running") for state in before)
        backup = before_changes() if may_begin else None
        self.records.make()
        try:
            all(self._is_finished_by(migration) for migration in self.declared)  # up to the first that is not
        except Stopped:
            logger.info("the run of data migrations was stopped; the next one goes on")
        after = self.states()
        done = (new for old, new in zip(before, after, strict=True) if old.is_left and not new.is_left)
        return DataOutcome(tuple(done), tuple(state for state in after if state.is_left), backup)

    def _require_tables(self, states: Sequence[DataState]) -> None:
        for migration, state in zip(self.declared, states, strict=True):
            if state.is_left and not self.engine.has_table(migration.model):
                raise WhatspireDBError(
                    f"the data migration {migration.name} cannot begin: the table of {migration.model.__name__} is "
                    "not there",
                    "run python -m whatspire_db.migrate, which creates it and then runs the data migrations",
                )

    def _require_trusted(self) -> None:
        """Refuse to run code of roles with fewer rights than this one: triggers, and what the functions may call."""
        models = [migration.model for migration in self.declared]
        found = self.engine.schema.untrusted(models)
        if found := found or next(filter(None, map(self.engine.schema.untrusted_table, models)), None):
            raise found

    def _is_finished_by(self, migration: DataMigration) -> bool:
        """Run one; tell whether the next one may begin."""
        state, _ = self.attempts.until_unlocked(lambda: self._begun(migration))
        if state.state == "failed":
            logger.warning("data migration %s; run whatspire-db data retry or skip", state)
        if not state.is_left or state.state == "failed":
            return not state.is_left
        try:
            self._go_through(migration) if migration.in_batches else self._change_at_once(migration)
        except Ended:
            with self.engine.batch():
                return not self.records.locked(migration.name).is_left
        return True

    def _begun(self, migration: DataMigration) -> DataState:
        with self.engine.batch():
            self.engine.limit_waits(self.stall)
            state = self.records.locked(migration.name)
            if state.state == "pending":
                self.records.begin(migration.name)
            return state if state.state != "pending" else DataState(migration.name, "running")

    def _change_at_once(self, migration: DataMigration) -> None:
        def change() -> None:
            with self._transaction(self.wait_seconds):
                with self.engine.with_own_names():
                    self._current(migration)
                    self.records.change(migration.name, finished=utcnow())
                call(self.engine, self.calling, migration)

        with in_words(self.engine, self.records, migration):
            self.attempts.until_unlocked(change)

    def _go_through(self, migration: DataMigration) -> None:
        """Change batch after batch."""
        largest = min(self.engine.largest, migration.batch or self.engine.largest)
        pace = Pace(self.stall, min(self.engine.smallest, largest), largest)
        pause, size = seconds_of("pause", migration.pause), pace.smallest
        with in_words(self.engine, self.records, migration):
            keys = Keys(self.engine, migration.model)
            keys.require_no_nulls()
        rows = 1
        while rows:
            if self.stop.is_set():
                raise Stopped
            with in_words(self.engine, self.records, migration):
                (rows, total), seconds = self.attempts.until_unlocked(partial(self._batch, migration, keys, size))
            self.tell(migration, total)
            if rows:
                size = pace.after(rows, seconds)
                self.stop.wait(max(pause, seconds))

    def _batch(self, migration: DataMigration, keys: Keys, size: int) -> tuple[int, int]:
        """Change one batch; return how many rows it had, 0 after the last one, and how many are done in all."""
        with self._transaction(self.stall):
            with self.engine.with_own_names():
                record = self._current(migration)
                batch = keys.batch(record.position, size)
                if batch is None:
                    self.records.change(migration.name, finished=utcnow(), position=None)
                    return 0, record.rows
                # Before the function runs: if it should end the transaction, its rows are not changed again.
                total = record.rows + batch.rows
                self.records.change(migration.name, position=batch.position, rows=total)
            call(self.engine, self.calling, migration, batch.selected)
            return batch.rows, total

    def _current(self, migration: DataMigration) -> Any:
        record = self.records.current(migration.name)
        if record is None:
            raise Ended
        return record

    @contextmanager
    def _transaction(self, wait_seconds: float) -> Iterator[None]:
        """Run a block as one transaction in which the function's own names mean what they mean to its program."""
        with self.engine.transaction():
            self.engine.limit_waits(wait_seconds)
            yield


class DataMigrations:
    """The data migrations of one database, to run them, to see how they stand, and to deal with one that failed.

    :param db: any peewee database for SQLite or PostgreSQL.
    :param declared: default: all that were declared.
    :param models: which the functions use, beside those that they are declared for; they are bound to the database
        during a run, if they are not yet.
    :param stall: how long others may wait for a batch, above 0: seconds, a timedelta or a text like 50ms.
    :param lock_timeout: how long to wait for another run that changes many rows, and for locks of others.
    :param tell: is called with a data migration and the number of its rows that are done; default: the log hears it.
    :param stop: ends the run after the current batch when it is set, in any thread.
    :param trust_source: let a PostgreSQL superuser run code of other roles that a function could reach.
    :param before_changes: is called before anything is changed, and returns the file of the backup that it made.
    :param calling: gives the context in which a function is called.
    :raises ModelError: when two have one name.
    """

    def __init__(
        self,
        db: peewee.Database,
        declared: Sequence[DataMigration] | None = None,
        *,
        models: Sequence[type[peewee.Model]] = (),
        stall: float | timedelta | str = STALL_SECONDS,
        lock_timeout: float | timedelta | str = 60.0,
        tell: Callable[[DataMigration, int], None] | None = None,
        stop: threading.Event | None = None,
        trust_source: bool = False,
        before_changes: Callable[[], str | None] = lambda: None,
        calling: Calling = nullcontext,
    ) -> None:
        self.engine = engine_of(db, trust_source)
        self.declared = tuple(declared_data.values()) if declared is None else tuple(declared)
        if len({migration.name for migration in self.declared}) < len(self.declared):
            raise ModelError("two data migrations have one name", "give each a name of its own")
        self.models = [*models, *(migration.model for migration in self.declared)]
        self.stall, self.wait_seconds = seconds_of("stall", stall), seconds_of("lock_timeout", lock_timeout)
        if not self.stall:
            raise ConfigError("stall is 0", "give a time above 0")
        self.tell, self.stop = tell or Watcher().data_progress, stop or threading.Event()
        self.before_changes, self.calling = before_changes, calling

    @property
    def db(self) -> Any:
        return self.engine.db

    def run(self) -> DataOutcome:
        """Run what is left, in order, up to one that failed before.

        :raises DataMigrationFailed: when one fails now; its last transaction was rolled back.
        :raises DatabaseMoved: when the rows were moved to another database.
        :raises LockTimeout: when another run takes longer, or rows stay locked.
        :raises RightMissing: when this role may not do it.
        :raises TransactionError: within a transaction.
        :raises WhatspireDBError: when a table is missing, or a superuser would run code of other roles.
        """
        with self._connection(), self.engine.alone(self.wait_seconds):
            self.engine.require_rows_here()  # also where nothing is left to do
            return self._run()

    def run_unless_busy(self) -> DataOutcome:
        """Run what is left; where another run that changes many rows is at work, all is left to that."""
        with self._connection(), ExitStack() as stack:
            try:
                stack.enter_context(self.engine.alone(BUSY_SECONDS))
            except LockTimeout:
                return self.all_left()
            return self._run()

    def _run(self) -> DataOutcome:
        run = DataRun(
            self.engine, self.declared, self.stall, self.wait_seconds, self.tell, self.stop, calling=self.calling
        )
        before = run.states()
        if not any(state.is_left for state in before):
            return DataOutcome()
        with self._bound():
            return run.run(before, self.before_changes)

    def _bound(self) -> AbstractContextManager[Any]:
        """Bind the models that are bound to another database, or to none, while the run goes on."""
        elsewhere = [
            model for model in dict.fromkeys(with_references(self.models)) if _database_of(model) is not self.db
        ]
        bound: AbstractContextManager[Any] = self.db.bind_ctx(elsewhere, False, False)
        return bound

    def all_left(self) -> DataOutcome:
        """Return what a run has done that leaves all to others, and does not ask how far they are."""
        return DataOutcome(left=tuple(DataState(migration.name, "left to others") for migration in self.declared))

    def states(self) -> list[DataState]:
        """Return how those stand that are declared, in that order, and after them others that were begun."""
        with self._connection():
            return Records(self.engine).states(self.declared)

    def retry(self, name: str) -> DataOutcome:
        """Run one that failed again, from where it stopped, and those after it.

        :raises WhatspireDBError: when it has not failed, and as `run` does.
        """
        self._change_failed(name, error=None)
        return self.run()

    def skip(self, name: str) -> None:
        """Leave one that failed as it is, so that those after it can run.

        :raises WhatspireDBError: when it has not failed.
        """
        self._change_failed(name, finished=utcnow())

    def _change_failed(self, name: str, **values: Any) -> None:
        with self._connection(), self.engine.alone(self.wait_seconds):
            self.engine.require_rows_here()
            records = Records(self.engine)
            if not records.exists():
                raise WhatspireDBError(
                    f"the data migration {name} has not failed", "none was begun yet; whatspire-db data run begins"
                )
            records.change_failed(name, **values)

    @contextmanager
    def _connection(self) -> Iterator[None]:
        if self.db.in_transaction():
            raise TransactionError(
                "a data migration within a transaction would keep all that it changes locked",
                "end the transaction before",
            )
        with self.db.connection_context() if self.db.is_closed() else nullcontext():
            yield


def _database_of(model: type[peewee.Model]) -> Any:
    db = model._meta.database
    while isinstance(db, peewee.Proxy):
        db = db.obj
    return db
