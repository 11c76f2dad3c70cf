"""A Peewee database on a pool: who connects is lent a connection, and a connection that is lost costs one statement."""

from __future__ import annotations

import atexit
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import peewee

from .errors import TransactionError
from .pool import Pool
from .pool_state import Lease, Limits, PoolStats
from .query_log import QueryLog
from .settings import Settings

T = TypeVar("T")

# Written by hand, the end or the beginning of a transaction: what was open before is over.
_BEGINS_ANEW = re.compile(
    r"\s*(?:BEGIN|START|ABORT|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?(?:TO|PREPARED)\b))\b", re.I
)
_COMMITS = re.compile(r"\s*(?:COMMIT|END)\b", re.I)

_databases: weakref.WeakSet[Pooling] = weakref.WeakSet()


class _State(peewee._ConnectionLocal):
    """Peewee's state of a thread, with the lease of its connection and the database that lent it."""

    lease: Lease | None = None
    lender: Pooling | None = None
    beginning = False
    reading = False  # within replica()
    guarded: Lease | None = None  # the lease whose connection refuses writes meanwhile
    permit: Callable[[], None] | None = None  # has it take them again


class Pooling(peewee.Database):
    """What the databases of both engines have in common. A thread holds one connection, as with Peewee's own.

    Peewee connects and closes under a lock of the database; here threads wait for nothing but their own connection.
    """

    pool: Pool
    log: QueryLog
    settings: Settings | None = None  # those that it was made of
    replica_database: Pooling | None = None
    may_close_elsewhere = True  # a connection that another thread uses

    def __init__(self, *args: Any, limits: Limits, log: QueryLog, **kwargs: Any) -> None:
        self.log = log
        self.pool = Pool(limits, self._close_raw)
        super().__init__(*args, **kwargs)
        self._state = _State()
        _databases.add(self)

    # What an engine says of its connections

    @staticmethod
    def _close_raw(connection: Any) -> None:
        connection.close()

    def _is_usable(self, connection: Any) -> bool:
        """Tell whether an idle connection is, as far as it is known here, still that of its server."""
        return True

    def _answers(self, connection: Any) -> bool:
        """Ask the server of a connection whether it is there."""
        return True

    def _refuse_writes(self, connection: Any) -> Callable[[], None]:
        """Have the database refuse what writes, and return what ends that."""
        raise NotImplementedError

    def _is_lost(self, connection: Any) -> bool:
        """Tell whether a connection in use is known to be closed."""
        return False

    def _was_in_transaction(self, connection: Any) -> bool:
        """Tell of a lost connection whether a transaction was open, by whatever statement."""
        return False

    def _is_clean(self, connection: Any) -> bool:
        """Make a connection that is given back as good as new; False where it cannot be."""
        return False

    def _leave(self, connection: Any) -> None:
        """Let go of a connection of the parent process, without a word to its server."""
        raise NotImplementedError

    def _before_fork(self) -> None:
        """Close, of this thread, what a child must not inherit."""

    def _open(self) -> Any:
        connection = self._connect()
        try:
            if self.server_version is None:
                self._set_server_version(connection)
            self._initialize_connection(connection)
        except BaseException:  # whoever keeps the error would keep the session
            with suppress(Exception):
                self._close_raw(connection)
            raise
        return connection

    # A thread's connection

    def connect(self, reuse_if_open: bool = False) -> bool:
        """Get this thread a connection; return False when it has one and `reuse_if_open`.

        :raises PoolTimeout: when none came free in time.
        :raises ConnectionFailed: when the database cannot be reached.
        """
        state = self._state
        if not state.closed:
            if reuse_if_open:
                return False
            raise peewee.OperationalError("Connection already opened.")
        if self._in_block():
            raise TransactionError(
                "the session of this transaction is gone, and what was done in it is rolled back",
                "let the error leave the transaction's block, then do the whole of it again",
            )
        lender = state.lender or self
        lease = lender.pool.acquire(lender._open, lender._is_usable)
        contexts, blocks = state.ctx, state.transactions  # those of a connection that was lost go on
        state.set_connection(lease.connection)
        state.ctx, state.transactions, state.lease = contexts, blocks, lease
        return True

    def close(self) -> bool:
        """Give this thread's connection back; return False when it has none."""
        if self.in_transaction():
            raise peewee.OperationalError("Attempting to close database while transaction is open.")
        return self._give_back(keep=True)

    def manual_close(self) -> bool:
        """Close this thread's connection for good; return False when it has none."""
        if self.in_transaction():
            raise peewee.OperationalError("Attempting to close database while transaction is open.")
        return self._give_back(keep=False)

    def _give_back(self, keep: bool) -> bool:
        state = self._state
        lease, state.lease = state.lease, None
        state.reset()
        if lease is None:
            return False
        lease.reusable = False
        lease.reusable = keep and (state.lender or self)._is_clean(lease.connection)
        lease.pool.release(lease)
        return True

    def _is_session_lost(self) -> bool:
        state = self._state
        return state.closed or self._is_lost(state.conn)

    def _drop(self) -> None:
        state = self._state
        contexts, blocks = state.ctx, state.transactions  # which go on with the next connection
        self._give_back(keep=False)
        state.ctx, state.transactions = contexts, blocks

    def _in_block(self) -> bool:
        """Tell whether this thread is in a transaction's block; that of manual_commit() is none by itself."""
        return any(not isinstance(block, peewee._manual) for block in self._state.transactions)

    def _drop_lost(self, ended: bool = False) -> None:
        """Forget a lost connection, so that the next statement gets another.

        Not while its transaction has not `ended` for the caller, who would go on in it without one.
        """
        state = self._state
        if state.closed or not self._is_lost(state.conn) or self._in_block():
            return
        if ended or not self._was_in_transaction(state.conn):
            self._drop()

    def _prove(self) -> None:
        """Have this thread's connection answer before its first statement, which would be lost with a dead one.

        A BEGIN needs no such question: it can be repeated on another connection.
        """
        state = self._state
        begins = state.beginning and not state.reading  # where it reads only, that is said before
        while state.lease is not None and not (state.lease.proved or begins or self._in_block()):
            state.lease.proved = self._answers(state.conn)
            if not state.lease.proved:
                self._drop()
                self.connect()

    # Statements

    def connection(self) -> Any:
        """Return this thread's connection of the driver, which is opened first where it has none or lost it."""
        self._drop_lost()
        super().connection()
        self._prove()
        if self._state.reading:
            self._guard()
        return self._state.conn

    def _guard(self) -> None:
        """Have every connection refuse writes that this thread gets within a block that only reads."""
        state = self._state
        if state.lender is None and state.guarded is not state.lease:
            state.permit, state.guarded = self._refuse_writes(state.conn), state.lease

    def cursor(self, named_cursor: Any = None) -> Any:
        """Return a cursor of this thread's connection, as `connection` does."""
        self._drop_lost()
        if not self.is_closed() or self.autoconnect:
            self.connection()
        return super().cursor(named_cursor)

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Run a statement and return the driver's cursor."""
        state = self._state
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
        state = self._state
        while True:
            state.beginning = True
            try:
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

    def savepoint(self) -> peewee._savepoint:
        """Return a savepoint, as Peewee's; with a session that is lost, its rollback hides no error."""
        return _Savepoint(self)

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
        state = self._state
        state.lease, state.conn, state.closed = None, None, True
        self._lock = threading.Lock()

    # Reads elsewhere

    @contextmanager
    def replica(self) -> Iterator[Pooling]:
        """Run the statements of a block on WHATSAPP_DATABASE_REPLICA_DSN, read-only; without one, on this database.

        :raises TransactionError: within a transaction, of which reads elsewhere are no part.
        :raises ConnectionFailed: when the replica cannot be reached.
        """
        state, lender = self._state, self.replica_database
        if state.reading:
            yield self
            return
        if self.in_transaction():
            raise TransactionError(
                "the replica cannot be read within a transaction of the primary",
                "end the transaction before `with db.replica():`",
            )
        with self._reading_here() if lender is None else self._reading_from(lender):
            yield self

    @contextmanager
    def _reading_here(self) -> Iterator[None]:
        state, opened = self._state, self.connect(reuse_if_open=True)
        state.reading = True
        try:
            self.connection()
            yield
        finally:
            state.reading = False
            self._permit_writes()
            if opened:
                self.close()

    def _permit_writes(self) -> None:
        state = self._state
        permit, guarded = state.permit, state.guarded
        state.permit = state.guarded = None
        if permit is None or state.lease is not guarded:  # closed or lost within the block
            return
        try:
            permit()
        except Exception:  # the session is gone, and the caller is to see his own error
            self._drop()

    @contextmanager
    def _reading_from(self, lender: Pooling) -> Iterator[None]:
        state = self._state
        outside = dict(state.__dict__)
        process, thread = os.getpid(), threading.get_ident()
        state.__dict__.clear()
        state.reset()
        state.lender, state.reading = lender, True
        try:
            self.connect()
            yield
        finally:
            if threading.get_ident() == thread:  # a generator that was dropped can end in any
                with suppress(Exception):
                    self._give_back(keep=True)
                state.__dict__.clear()
                state.__dict__.update(outside)
            if os.getpid() != process:  # what was held outside is the parent's
                state.lease, state.conn, state.closed = None, None, True


class _Savepoint(peewee._savepoint):
    def rollback(self, begin: bool = True) -> None:
        try:
            if not self.db._is_session_lost():
                super().rollback(begin)
        except peewee.PeeweeException:
            if not self.db._is_session_lost():
                raise


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
