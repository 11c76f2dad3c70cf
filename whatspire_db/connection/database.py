"""A Peewee database on a pool: each thread, task or greenlet borrows a connection; a lost one costs one statement."""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
import weakref
from collections.abc import Callable

import peewee

from ..errors import TransactionError
from ..light_stdlib import TYPE_CHECKING, Any, TypeVar, pattern
from ..settings import Settings
from .borrowing import State, notice_tasks
from .query_log import QueryLog
from .replica import ReadsElsewhere
from .tasks import PlainFunctionsOnly, current_task
from .transactions import Atomic, ConnectionContext, Savepoint, Transaction

if TYPE_CHECKING:
    from .pool_stats import PoolStats

T = TypeVar("T")

# Written by hand, the end or the beginning of a transaction: what was open before is over.
_BEGINS_ANEW = pattern(r"\s*(?:BEGIN|START|ABORT|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?(?:TO|PREPARED)\b))\b", re.I)
_COMMITS = pattern(r"\s*(?:COMMIT|END)\b", re.I)

_databases: weakref.WeakSet[Pooling] = weakref.WeakSet()


class Pooling(PlainFunctionsOnly, ReadsElsewhere):
    """What the databases of both engines have in common: statements and transactions over the pool's connections."""

    log: QueryLog
    settings: Settings | None = None  # those that it was made of
    may_close_elsewhere = True  # a connection that another thread uses
    keeps_journal_mode = False  # of a SQLite file that is not empty

    def __init__(self, *args: Any, log: QueryLog, **kwargs: Any) -> None:
        self.log = log
        super().__init__(*args, **kwargs)
        _databases.add(self)

    def _leave(self, connection: Any) -> None:
        """Let go of a connection of the parent process, without a word to its server."""
        raise NotImplementedError

    def _before_fork(self) -> None:
        """Close, of this thread, what a child must not inherit."""

    def settle_journal_mode(self) -> None:
        """Give a SQLite file the journal mode that `keeps_journal_mode` left out so far, unless others hold it."""

    # Statements

    def connection(self) -> Any:
        """Return this thread's connection of the driver, which is opened first where it has none or lost it."""
        state = self.task_state
        if state.closed or self._is_lost(state.conn):
            self._drop_lost()
            super().connection()
        self._prove(state)
        if state.reading:
            self._guard(state)
        return state.conn

    def cursor(self, named_cursor: Any = None) -> Any:
        """Return a cursor of this thread's connection, as `connection` does.

        :raises TransactionError: in the transaction of another task that shares the connection.
        """
        notice_tasks()
        state = self.task_state
        if state.transactions and not self._states.per_task:
            self._refuse_other_task(state)
        if not self.autoconnect:
            self._drop_lost()
        if self.autoconnect or not state.closed:
            self.connection()
        return super().cursor(named_cursor)

    def push_transaction(self, transaction: Any) -> None:
        """Note that a block of a transaction was entered, and by which task."""
        state = self.task_state
        if not self._states.per_task and not state.transactions:
            state.task = current_task()
        super().push_transaction(transaction)

    def _refuse_other_task(self, state: State) -> None:
        if state.task is not current_task():
            raise TransactionError(
                "another task of this thread has a transaction open on this connection",
                "end a transaction before the task awaits; a database in memory has one connection for all tasks",
            )

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Run a statement and return the driver's cursor."""
        state = self.task_state
        if not state.closed and self._is_lost(state.conn) and _BEGINS_ANEW.match(str(sql)):
            self._drop_lost(ended=True)
        try:
            return self._logged(sql, params, lambda: super(Pooling, self).execute_sql(sql, params))
        except peewee.PeeweeException:
            if _COMMITS.match(str(sql)):
                self._drop_lost(ended=True)
            raise

    def begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin a transaction, with Peewee's arguments of this engine."""
        self._drop_lost(ended=True)
        self._logged("BEGIN", None, lambda: self._begin(lambda: super(Pooling, self).begin(*args, **kwargs)))

    def _begin(self, begin: Callable[[], None]) -> None:
        state, since = self.task_state, time.monotonic()
        while True:
            state.beginning = True
            try:
                if state.closed:
                    self.connection()
                with self._limit_begin(since):
                    begin()
                if state.lease is not None:
                    state.lease.proved = True
                return
            except peewee.PeeweeException:
                if state.lease is None or state.lease.proved or not self._is_session_lost():
                    raise
                self._drop()
            finally:
                state.beginning = False

    def commit(self) -> None:
        """Commit the transaction. When the session is lost meanwhile, it may have been committed or not."""
        try:
            if self._is_session_lost():
                raise peewee.OperationalError(
                    "the session of this transaction is gone, and nothing of it was committed"
                )
            self._logged("COMMIT", None, super().commit)
        except peewee.PeeweeException:
            self._drop_lost(ended=True)
            raise

    def rollback(self) -> None:
        """Roll the transaction back; with a session that is lost, the server has done so."""
        try:
            if not self._is_session_lost():
                self._logged("ROLLBACK", None, super().rollback)
        except peewee.PeeweeException:
            if not self._is_session_lost():
                raise
        self._drop_lost(ended=True)

    def connection_context(self) -> ConnectionContext:
        """Return a block with a connection, which is given back at its end."""
        return ConnectionContext(self)

    def atomic(self, *args: Any, **kwargs: Any) -> Atomic:
        """Return a block that is a transaction, or a savepoint within one, as Peewee's."""
        return Atomic(self, *args, **kwargs)

    def transaction(self, *args: Any, **kwargs: Any) -> Transaction:
        """Return the block of a transaction, as Peewee's; it ends where it began, whichever task leaves it."""
        notice_tasks()
        return Transaction(self, *args, **kwargs)

    def savepoint(self) -> Savepoint:
        """Return a savepoint, as Peewee's; with a session that is lost, its rollback hides no error."""
        return Savepoint(self)

    def _logged(self, sql: str, params: Any, run: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            result = run()
        except Exception as error:
            self.log.failed(sql, params, time.perf_counter() - started, error)
            raise
        self.log.done(sql, params, time.perf_counter() - started, getattr(result, "rowcount", -1))
        return result

    def _log_query(self, sql: str, params: Any) -> None:
        # Peewee's own log has every parameter.
        super()._log_query(sql, params if self.log.parameters else None)

    # All connections

    def pool_stats(self) -> PoolStats:
        """Return the figures of the pool; `replica_database.pool_stats()` those of the replica's."""
        return self.pool.stats()

    def close_idle(self) -> None:
        """Close the connections that nobody uses."""
        self.pool.close_idle()

    def close_all(self) -> None:
        """Close every connection, those to the replica included, and of PostgreSQL those in use by other threads.

        SQLite's are closed when they are given back: its library does not bear that under a statement.
        """
        if not self.in_transaction():
            self.close()
        self.pool.close_all(in_use=self.may_close_elsewhere)
        if self.replica_database is not None:
            self.replica_database.close_all()

    def dispose(self) -> None:
        """Forget every connection without closing it. After a fork this is done by itself."""
        for connection in self.pool.abandon():
            self._leave(connection)
        for state in self._states.of_thread():
            state.forget()


def _prepare_fork() -> None:
    for database in list(_databases):
        database._before_fork()


def _begin_anew() -> None:
    for database in list(_databases):
        database.dispose()


def _name_forgotten() -> None:
    for database in list(_databases):
        database.pool.warn_of_unreturned(threading.main_thread(), "which the program ended without")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_prepare_fork, after_in_child=_begin_anew)
atexit.register(_name_forgotten)
