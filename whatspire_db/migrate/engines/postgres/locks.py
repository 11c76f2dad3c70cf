"""PostgreSQL: the migration lock, transactions that wait politely, and builds that stop nobody."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import peewee

from whatspire_db.errors import LockTimeout
from whatspire_db.light_stdlib import Any, TypeVar
from whatspire_db.migrate.ddl import execute
from whatspire_db.sql import pinned

from .holders import QUIET_SECONDS, WEAK_LOCK, holder_of, is_lock_failure, pauses, rows, separate_connection, stopped
from .limits import LIFT, lift_in_transaction, lifted, lock_limit

T = TypeVar("T")
logger = logging.getLogger("whatspire_db.migrate")

# Who waits for the first lock stops nobody, and one of 3 s outlasts the second after which autovacuum gives way. Who
# waits for the second stops everybody who comes after, so it waits no longer than this in all.
WEAK_LOCK_MILLISECONDS = 3000
STRONG_LOCK_MILLISECONDS = 50
LOCK_STRENGTH = (WEAK_LOCK, "SHARE", "SHARE ROW EXCLUSIVE", "ACCESS EXCLUSIVE")


# The locks of runs

MIGRATE, ROWS = ("migrate", "another migration"), ("rows", "another run that changes many rows")


@contextmanager
def run_lock(
    db: peewee.PostgresqlDatabase, schema: str, wait_seconds: float, kind: tuple[str, str] = MIGRATE
) -> Iterator[None]:
    """Hold the lock of a schema that one run of a kind has at a time, on the session of this thread.

    Behind a pooler a session is not ours beyond a transaction: there the lock is a transaction's, on a connection of
    its own, whose read-committed transaction holds no snapshot that a concurrent build would wait for.
    """
    name, other = kind
    key = hashlib.sha256(f"whatspire_db {name} {schema}".encode()).digest()[:8]
    number = int.from_bytes(key, "big", signed=True)
    if is_pooled(db):
        with _transaction_lock(db, number, wait_seconds, other):
            yield
        return
    with lifted(db):
        _wait_for_lock(lambda: _try(db.connection(), "pg_try_advisory_lock", number), db, number, wait_seconds, other)
        try:
            yield
        finally:
            if not db.is_closed() and db.is_connection_usable():
                with suppress(peewee.PeeweeException):  # it is gone with its session
                    execute(db, "SELECT pg_catalog.pg_advisory_unlock(%s)", [number])


def is_pooled(db: peewee.PostgresqlDatabase) -> bool:
    """Tell whether a pooler like PgBouncer stands between: the server's process is not the one that answered first."""
    return bool(execute(db, "SELECT pg_catalog.pg_backend_pid()").fetchone()[0] != db.connection().info.backend_pid)


@contextmanager
def _transaction_lock(db: peewee.PostgresqlDatabase, number: int, wait_seconds: float, other: str) -> Iterator[None]:
    connection = separate_connection(db)

    def attempt() -> bool:
        # A transaction for each try: who waits inside of one would hold a connection of the pooler's all the time.
        rows(connection, "BEGIN ISOLATION LEVEL READ COMMITTED")
        rows(connection, pinned(LIFT), True)
        if _try(connection, "pg_try_advisory_xact_lock", number):
            return True
        rows(connection, "ROLLBACK")
        return False

    try:
        _wait_for_lock(attempt, db, number, wait_seconds, other)
        yield
        rows(connection, "ROLLBACK")  # so that the pooler can keep its own connection
    finally:
        connection.close()


def _try(connection: Any, function: str, number: int) -> bool:
    return bool(rows(connection, f"SELECT pg_catalog.{function}(%s)", number)[0][0])


def _wait_for_lock(
    attempt: Callable[[], bool], db: peewee.PostgresqlDatabase, number: int, wait_seconds: float, other: str
) -> None:
    # Polled, for a blocking wait deadlocks with CREATE INDEX CONCURRENTLY of the holder.
    started = time.monotonic()
    told = False
    for pause in pauses():
        if attempt():
            return
        waited = time.monotonic() - started
        if waited > wait_seconds:
            raise LockTimeout(
                f"{other} held the lock for {wait_seconds:g} s: {holder_of(db, number)}",
                "wait for it to end, raise --lock-timeout, or end it with pg_terminate_backend(pid)",
            )
        if waited > QUIET_SECONDS and not told:
            logger.info("waiting for %s: %s", other, holder_of(db, number))
            told = True
        time.sleep(pause)


# Looks


def bound_look(db: peewee.PostgresqlDatabase, wait_seconds: float) -> None:
    """Let no statement of this transaction wait longer for a lock, and the server end it when this process is gone."""
    execute(db, lock_limit(wait_seconds))
    lift_in_transaction(db)
    if (db.server_version or 0) >= 140000:
        with suppress(peewee.PeeweeException), db.atomic():  # some systems cannot watch a connection
            execute(db, "SET LOCAL client_connection_check_interval = 1000")


# Transactions


def transact(
    db: peewee.PostgresqlDatabase,
    body: Callable[[], T],
    locks: Sequence[tuple[str, str]],
    wait_seconds: float,
    before: Callable[[], None] | None = None,
    settings: Sequence[str] = (),
) -> T:
    """Run a body in a transaction that holds table locks; roll back, wait and try again while others hold them.

    :param locks: pairs of a quoted table and the mode that the body needs.
    :param before: what needs none of the locks, run in the transaction before anybody is stopped by them.
    :param settings: statements that each try begins with.
    :raises LockTimeout: names who held them when the time was over.
    """
    deadline = time.monotonic() + wait_seconds
    tables, mode = sorted({table for table, _ in locks}), "ACCESS EXCLUSIVE"
    for pause in pauses():
        try:
            with db.transaction():
                lift_in_transaction(db)
                for sql in settings:
                    execute(db, sql)
                strongest = _take_weakly(db, locks)
                if before is not None:
                    before()
                _take_strongly(db, strongest)
                return body()
        except peewee.PeeweeException as error:
            if not is_lock_failure(error):
                raise
        except _LockFailed as failure:
            tables, mode = [failure.table], failure.mode
        if time.monotonic() > deadline:
            raise stopped(db, tables, mode, wait_seconds)
        time.sleep(pause * 4)  # longer than the wait itself, for those who queued behind it to get through
    raise AssertionError("pauses() does not end")


class _LockFailed(Exception):
    """A table that somebody else holds in a mode which conflicts with the one that is needed."""

    def __init__(self, table: str, mode: str) -> None:
        super().__init__(table, mode)
        self.table, self.mode = table, mode


def _lock(db: peewee.PostgresqlDatabase, table: str, mode: str) -> None:
    try:
        execute(db, f"LOCK TABLE {table} IN {mode} MODE")
    except peewee.PeeweeException as error:
        if not is_lock_failure(error):
            raise
        raise _LockFailed(table, mode) from error


def _limit(db: peewee.PostgresqlDatabase, milliseconds: int) -> None:
    # As a statement of its own, for set_config() reaches no other node of a cluster.
    execute(db, f"SET LOCAL lock_timeout = {milliseconds}")


def _take_weakly(db: peewee.PostgresqlDatabase, locks: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Lock tables so that nobody is stopped who reads or writes; return the mode that each is needed in."""
    strongest: dict[str, str] = {}
    for table, mode in sorted(locks, key=lambda pair: LOCK_STRENGTH.index(pair[1])):
        strongest[table] = mode
    _limit(db, WEAK_LOCK_MILLISECONDS)
    for table in sorted(strongest):
        _lock(db, table, WEAK_LOCK)
    return strongest


def _take_strongly(db: peewee.PostgresqlDatabase, strongest: Mapping[str, str]) -> None:
    deadline = time.monotonic() + STRONG_LOCK_MILLISECONDS / 1000
    for table, mode in sorted(strongest.items()):
        if mode != WEAK_LOCK:
            left = (deadline - time.monotonic()) * 1000
            _limit(db, max(1, int(left)))
            _lock(db, table, mode)
    if strongest:
        _limit(db, STRONG_LOCK_MILLISECONDS)
