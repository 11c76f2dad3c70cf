"""PostgreSQL: the migration lock, transactions that wait politely, and builds that stop nobody."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import peewee
from playhouse.pool import PooledDatabase

from ...errors import LockTimeout
from ..ddl import execute
from ..progress import Progress
from . import sqlstate

T = TypeVar("T")
logger = logging.getLogger("whatspire_db.migrate")

# Who waits for the first lock stops nobody, and one of 3 s outlasts the second after which autovacuum gives way. Who
# waits for the second stops everybody who comes after, so it waits no longer than this in all.
WEAK_LOCK = "SHARE UPDATE EXCLUSIVE"
WEAK_LOCK_MILLISECONDS = 3000
STRONG_LOCK_MILLISECONDS = 50
LOCK_STRENGTH = (WEAK_LOCK, "SHARE", "SHARE ROW EXCLUSIVE", "ACCESS EXCLUSIVE")
# The manual's table of conflicting lock modes, for those that a migration takes; ACCESS EXCLUSIVE conflicts with all.
CONFLICTS = {
    WEAK_LOCK: ("ShareUpdateExclusive", "Share", "ShareRowExclusive", "Exclusive", "AccessExclusive"),
    "SHARE": ("RowExclusive", "ShareUpdateExclusive", "ShareRowExclusive", "Exclusive", "AccessExclusive"),
    "SHARE ROW EXCLUSIVE": (
        "RowExclusive",
        "ShareUpdateExclusive",
        "Share",
        "ShareRowExclusive",
        "Exclusive",
        "AccessExclusive",
    ),
}
LOCK_FAILURES = ("55P03", "40P01")  # lock_not_available, deadlock_detected
QUIET_SECONDS = 1.0  # a statement that is done by then is watched by nobody

_PERSON = """a.pid, a.application_name, coalesce(a.client_hostname, host(a.client_addr), 'local socket'), a.usename,
    to_char(coalesce(a.xact_start, a.backend_start) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"""

_HOLDER = f"""
SELECT {_PERSON}
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32 | l.objid::bigint) = %s
"""

_BLOCKERS = f"""
SELECT {_PERSON}
FROM (SELECT DISTINCT pid FROM pg_locks
    WHERE granted AND pid <> pg_backend_pid() AND relation IN (SELECT to_regclass(t) FROM unnest(%s::text[]) AS t)
        AND (%s::text[] IS NULL OR replace(mode, 'Lock', '') = ANY (%s::text[]))) AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
ORDER BY a.xact_start LIMIT 3
"""

_PEOPLE = f"SELECT {_PERSON} FROM pg_stat_activity AS a WHERE a.pid = ANY (%s) ORDER BY a.xact_start LIMIT 3"

# What another role builds shows no table, so the lock that a build holds tells it.
_BUILDERS = f"""
SELECT {_PERSON}
FROM pg_stat_progress_create_index AS p JOIN pg_stat_activity AS a ON a.pid = p.pid
WHERE p.datname = current_database() AND (p.relid = to_regclass(%s) OR (p.relid IS NULL AND EXISTS (
    SELECT FROM pg_locks AS l
    WHERE l.pid = p.pid AND l.relation = to_regclass(%s) AND l.mode = 'ShareUpdateExclusiveLock')))
"""

_TRANSACTIONS = """
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'virtualxid' AND pid = ANY (%s) AND (%s::text[] IS NULL OR virtualtransaction = ANY (%s))
"""

# For a transaction that only holds the lock; transaction_timeout is there from PostgreSQL 17 on.
_NO_TIME_LIMIT = """
SELECT set_config(name, '0', true) FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout')
"""

_STATEMENT = """
SELECT a.pid, a.wait_event_type = 'Lock', pg_blocking_pids(a.pid), p.phase,
    greatest(p.blocks_done, p.tuples_done), greatest(p.blocks_total, p.tuples_total)
FROM pg_stat_activity AS a LEFT JOIN pg_stat_progress_create_index AS p ON p.pid = a.pid
WHERE a.datname = current_database() AND a.state = 'active' AND a.pid <> pg_backend_pid()
    AND left(a.query, 900) = left(%s, 900)
"""


def is_lock_failure(error: BaseException) -> bool:
    """Tell whether a statement failed for somebody else's lock and may be tried again."""
    return isinstance(error, peewee.PeeweeException) and sqlstate(error) in LOCK_FAILURES


def separate_connection(db: peewee.PostgresqlDatabase) -> Any:
    """Open a driver's connection of our own, in autocommit, beside the one of this thread and outside of any pool."""
    return super(PooledDatabase, db)._connect() if isinstance(db, PooledDatabase) else db._connect()


def rows(connection: Any, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run a query on a driver's connection."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else []


def described(people: Sequence[tuple[Any, ...]]) -> str:
    """Name sessions, as far as this role may see them."""
    return "; ".join(
        f"pid {pid}, application {application or 'unnamed'}, user {user}, from {host}, since {since} UTC"
        for pid, application, host, user, since in people
    )


def pauses() -> Iterator[float]:
    """Yield seconds to wait between tries, with jitter, so that many who wait do not ask in step."""
    pause = 0.01
    while True:
        yield pause * random.uniform(0.5, 1)  # noqa: S311
        pause = min(pause * 2, 0.25)


# The migration lock


@contextmanager
def migration_lock(db: peewee.PostgresqlDatabase, schema: str, wait_seconds: float) -> Iterator[None]:
    """Hold the migration lock of a schema, on the session of this thread.

    Behind a pooler a session is not ours beyond a transaction: there the lock is a transaction's, on a connection of
    its own, whose read-committed transaction holds no snapshot that a concurrent build would wait for.
    """
    key = hashlib.sha256(f"whatspire_db migrate {schema}".encode()).digest()[:8]
    number = int.from_bytes(key, "big", signed=True)
    if is_pooled(db):
        with _transaction_lock(db, number, wait_seconds):
            yield
        return
    _wait_for_lock(lambda: _try(db.connection(), "pg_try_advisory_lock", number), db, number, wait_seconds)
    try:
        yield
    finally:
        if not db.is_closed() and db.is_connection_usable():
            with suppress(peewee.PeeweeException):  # it is gone with its session
                execute(db, "SELECT pg_advisory_unlock(%s)", [number])


def is_pooled(db: peewee.PostgresqlDatabase) -> bool:
    """Tell whether a pooler like PgBouncer stands between: the server's process is not the one that answered first."""
    return bool(execute(db, "SELECT pg_backend_pid()").fetchone()[0] != db.connection().info.backend_pid)


@contextmanager
def _transaction_lock(db: peewee.PostgresqlDatabase, number: int, wait_seconds: float) -> Iterator[None]:
    connection = separate_connection(db)

    def attempt() -> bool:
        # A transaction for each try: who waits inside of one would hold a connection of the pooler's all the time.
        rows(connection, "BEGIN ISOLATION LEVEL READ COMMITTED")
        rows(connection, _NO_TIME_LIMIT)
        if _try(connection, "pg_try_advisory_xact_lock", number):
            return True
        rows(connection, "ROLLBACK")
        return False

    try:
        _wait_for_lock(attempt, db, number, wait_seconds)
        yield
        rows(connection, "ROLLBACK")  # so that the pooler can keep its own connection
    finally:
        connection.close()


def _try(connection: Any, function: str, number: int) -> bool:
    return bool(rows(connection, f"SELECT {function}(%s)", number)[0][0])


def _wait_for_lock(
    attempt: Callable[[], bool], db: peewee.PostgresqlDatabase, number: int, wait_seconds: float
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
                f"another migration held the lock for {wait_seconds:g} s: {_holder(db, number)}",
                "wait for it to end, raise --lock-timeout, or end it with pg_terminate_backend(pid)",
            )
        if waited > QUIET_SECONDS and not told:
            logger.info("waiting for another migration: %s", _holder(db, number))
            told = True
        time.sleep(pause)


def _holder(db: peewee.PostgresqlDatabase, number: int) -> str:
    return described(execute(db, _HOLDER, [number]).fetchall()) or "it has just ended"


# Transactions


def transact(
    db: peewee.PostgresqlDatabase,
    body: Callable[[], T],
    locks: Sequence[tuple[str, str]],
    wait_seconds: float,
    before: Callable[[], None] | None = None,
    settings: Sequence[tuple[str, str]] = (),
) -> T:
    """Run a body in a transaction that holds table locks; roll back, wait and try again while others hold them.

    :param locks: pairs of a quoted table and the mode that the body needs.
    :param before: what needs none of the locks, run in the transaction before anybody is stopped by them.
    :param settings: run-time parameters for the transaction.
    :raises LockTimeout: names who held them when the time was over.
    """
    deadline = time.monotonic() + wait_seconds
    tables, mode = sorted({table for table, _ in locks}), "ACCESS EXCLUSIVE"
    for pause in pauses():
        try:
            with db.transaction():
                for name, value in settings:
                    _set(db, name, value)
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
            modes = list(CONFLICTS[mode]) if mode in CONFLICTS else None
            found = execute(db, _BLOCKERS, [tables, modes, modes]).fetchall()
            blockers = described(found) or "somebody who has just ended"
            raise LockTimeout(
                f"{', '.join(tables) or 'something'} was locked for {wait_seconds:g} s by {blockers}; "
                "what this transaction had changed was rolled back",
                "wait for that session to end, raise --lock-timeout, or end it with pg_terminate_backend(pid)",
            )
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


def _set(db: peewee.PostgresqlDatabase, name: str, value: object) -> None:
    execute(db, "SELECT set_config(%s, %s, true)", [name, str(value)])


def _take_weakly(db: peewee.PostgresqlDatabase, locks: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Lock tables so that nobody is stopped who reads or writes; return the mode that each is needed in."""
    strongest: dict[str, str] = {}
    for table, mode in sorted(locks, key=lambda pair: LOCK_STRENGTH.index(pair[1])):
        strongest[table] = mode
    _set(db, "lock_timeout", WEAK_LOCK_MILLISECONDS)
    for table in sorted(strongest):
        _lock(db, table, WEAK_LOCK)
    return strongest


def _take_strongly(db: peewee.PostgresqlDatabase, strongest: Mapping[str, str]) -> None:
    deadline = time.monotonic() + STRONG_LOCK_MILLISECONDS / 1000
    for table, mode in sorted(strongest.items()):
        if mode != WEAK_LOCK:
            left = (deadline - time.monotonic()) * 1000
            _set(db, "lock_timeout", max(1, int(left)))
            _lock(db, table, mode)
    if strongest:
        _set(db, "lock_timeout", STRONG_LOCK_MILLISECONDS)


# Statements outside of a transaction


def time_limits(db: peewee.PostgresqlDatabase) -> list[str]:
    """Return the names of the settings that end what takes long."""
    return ["statement_timeout", *(["transaction_timeout"] if (db.server_version or 0) >= 170000 else [])]


def wait_for_builds(db: peewee.PostgresqlDatabase, tables: Sequence[str], wait_seconds: float) -> None:
    """Wait until nobody builds an index on the tables.

    :raises LockTimeout: names who still does when the time is over.
    """
    deadline = time.monotonic() + wait_seconds
    seen: set[int] = set()
    for table in tables:
        for pause in pauses():
            builders = execute(db, _BUILDERS, [table, table]).fetchall()
            if not builders:
                break
            seen.update(pid for pid, *_ in builders)
            if time.monotonic() > deadline:
                raise LockTimeout(
                    f"an index on {table} was being built for {wait_seconds:g} s by {described(builders)}",
                    "wait for it to end, raise --lock-timeout, or end it with pg_cancel_backend(pid)",
                )
            time.sleep(pause)
    if not seen:
        return
    # A build is told as done a moment before the transaction ends in which its index becomes valid.
    pids = sorted(seen)
    last = [row[0] for row in execute(db, _TRANSACTIONS, [pids, None, None]).fetchall()]
    for pause in pauses():
        if time.monotonic() > deadline or not execute(db, _TRANSACTIONS, [pids, last, last]).fetchall():
            return
        time.sleep(pause)


def run_online(
    db: peewee.PostgresqlDatabase,
    sql: str,
    wait_seconds: float,
    tell: Callable[[Progress], None],
) -> None:
    """Run a statement that waits for others without stopping them, and tell how far it is.

    :param wait_seconds: how long it may wait for one and the same session.
    :raises LockTimeout: names the session.
    """
    # A timeout in the middle would leave an INVALID index. Behind a pooler a session's settings are not ours to change.
    timeouts = [] if is_pooled(db) else ["lock_timeout", *time_limits(db)]
    before = [execute(db, f"SELECT current_setting('{name}')").fetchone()[0] for name in timeouts]
    watch = _Watch(db, sql, wait_seconds, tell)
    thread = threading.Thread(target=watch.run, name="whatspire_db progress", daemon=True)
    try:
        for name in timeouts:
            execute(db, f"SET {name} = 0")
        thread.start()
        execute(db, sql)
    except peewee.PeeweeException as error:
        watch.finish(thread)
        if watch.given_up:
            raise LockTimeout(
                f"{sql.partition(' ON ')[0]} waited {wait_seconds:g} s for {watch.given_up}",
                "let that transaction end, or raise --lock-timeout; the next run builds what this one could not",
            ) from None
        raise error
    finally:
        watch.finish(thread)
        if not db.is_closed() and db.is_connection_usable():
            for name, value in zip(timeouts, before, strict=True):
                execute(db, "SELECT set_config(%s, %s, false)", [name, value])


@dataclass
class _Watch:
    """Looks at a running statement from a connection of its own, and ends it when it waits for too long."""

    db: peewee.PostgresqlDatabase
    sql: str
    wait_seconds: float
    tell: Callable[[Progress], None]
    given_up: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        if self.done.wait(min(QUIET_SECONDS, self.wait_seconds)):
            return
        with suppress(Exception):  # without a connection to spare the statement runs on unwatched
            connection = separate_connection(self.db)
            try:
                self._look(connection)
            finally:
                connection.close()

    def finish(self, thread: threading.Thread) -> None:
        self.done.set()
        if thread.ident is not None:
            thread.join()

    def _look(self, connection: Any) -> None:
        waiting_for: tuple[int, ...] = ()
        since = time.monotonic()
        while not self.done.wait(0.2):
            found = rows(connection, _STATEMENT, self.sql)
            if not found:
                continue
            pid, waits, blockers, phase, done, total = found[0]
            if not waits or tuple(blockers) != waiting_for:
                waiting_for, since = tuple(blockers) if waits else (), time.monotonic()
            people = described(rows(connection, _PEOPLE, list(blockers))) if waits else ""
            self.tell(Progress(phase or "", done or 0, total or 0, people))
            if waits and time.monotonic() - since > self.wait_seconds:
                self.given_up = people or "a session that has just ended"
                rows(connection, "SELECT pg_cancel_backend(%s)", pid)


def planned_rows(db: peewee.PostgresqlDatabase, table: str) -> int:
    """Return the planner's estimate of a table's rows, from its present size."""
    plan = execute(db, f"EXPLAIN (FORMAT JSON) SELECT FROM {table}").fetchone()[0]
    document = json.loads(plan) if isinstance(plan, str) else plan
    return int(document[0]["Plan"]["Plan Rows"])
