"""A PostgreSQL server's databases: what belongs to one besides its tables, scratch ones, and the swap of two names."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from typing import Any

from whatspire_db import interruption, messages
from whatspire_db.backup.durable import undisturbed
from whatspire_db.connection.engines.postgres.database import arguments_of
from whatspire_db.connection.engines.postgres.failures import cannot_connect
from whatspire_db.connection.patience import patience
from whatspire_db.dsn.redaction import redact
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import (
    BackupFailed,
    ConnectionFailed,
    LockTimeout,
    WhatspireDBError,
)

MAINTENANCE = ("postgres", "template1")  # databases to be connected to while another one is renamed
POLL_SECONDS = 0.1
# The first statement of each session: until it has run, a name without a schema can mean what somebody planted in a
# schema of the search_path, and a superuser would run it. Afterwards such a name means pg_catalog's.
PIN = "SELECT pg_catalog.set_config('search_path', '', false)"
# What is asked must come out alike on every server and for every role.
SESSION = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "quote_all_identifiers": "off",
    "row_security": "off",  # rows that a policy hides are an error, and not missing
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
}
# The server ends a statement that waits when the process that asked is gone.
WATCHED = {"client_connection_check_interval": "1000"}
WAIT_HINT = "wait for that session to end, raise --lock-timeout, or end it with pg_terminate_backend(pid)"
_HOLDER = """
SELECT coalesce(c.oid::regclass::text, 'an object'), l.pid, coalesce(nullif(a.application_name, ''), 'unnamed')
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid LEFT JOIN pg_class AS c ON c.oid = l.relation
WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND l.locktype = 'relation' AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND c.relpersistence IS DISTINCT FROM 't'
ORDER BY coalesce(c.relkind = ANY ('{r,p,v,m,S}'), false) DESC, a.xact_start LIMIT 1
"""

_SET = """
SELECT pg_catalog.set_config(s.name, given.value, false)
FROM pg_catalog.json_each_text(%s) AS given (name, value)
JOIN pg_catalog.pg_settings AS s ON pg_catalog.lower(s.name) = pg_catalog.lower(given.name)
"""
# By SQLSTATE, where a backup has better advice than other commands.
HINTS = {"42501": "use a role that has this right, such as the owner of the database"}


class Session:
    """A connection in autocommit, that answers in rows."""

    def __init__(self, connection: Any, target: PostgresTarget, pool: ThreadPoolExecutor) -> None:
        self.connection = connection
        self.target = target
        self._pool = pool

    def rows(self, sql: str | bytes, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows, none where it gives none; an interrupt ends it."""
        if threading.current_thread() is not threading.main_thread():
            return self._rows(sql, *values)
        # The driver waits for the server in C, where no handler of a signal runs, so it does in another thread.
        try:
            future = self._pool.submit(self._rows, sql, *values)
        except RuntimeError:  # no thread can be started, for want of memory or by a limit
            raise MemoryError from None
        try:
            return future.result()
        finally:
            if not future.done():
                with undisturbed():
                    self.cancel(future)

    def _rows(self, sql: str | bytes, *values: Any) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def copy(self, sql: str, file: Any) -> None:
        """Run COPY ... TO STDOUT, in a thread of the caller's, and write its output to a file as bytes."""
        with self.connection.cursor() as cursor:
            cursor.copy_expert(sql, file)

    def set(self, settings: Mapping[str, str]) -> None:
        """Set those settings that the server has, until the session ends."""
        self.rows(_SET, json.dumps(dict(settings)))

    def cancel(self, future: Future[Any]) -> None:
        """End the statements that run in another thread until that is done."""
        while not future.done():  # between two statements there is nothing to cancel
            with suppress(Exception):
                self.connection.cancel()
            wait([future], POLL_SECONDS)

    def value(self, sql: str, *values: Any) -> Any:
        """Return the first column of the first row."""
        return self.rows(sql, *values)[0][0]

    def pinned(self, target: PostgresTarget) -> PostgresTarget:
        """Return a target that leads to this very server, where it names several."""
        if "," not in target.arguments.get("host", ""):
            return target
        info = self.connection.info
        return PostgresTarget({**target.arguments, "host": info.host, "port": str(info.port)})

    @property
    def major(self) -> int:
        """The major version of the server."""
        return int(self.connection.server_version) // 10000

    @property
    def is_superuser(self) -> bool:
        """Whether its role may do all."""
        return bool(self.value("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"))


@contextmanager
def session(*targets: PostgresTarget) -> Iterator[Session]:
    """Open a connection whose answers do not depend on its role's settings.

    :param targets: the first of them that can be connected to is taken.
    :raises ConnectionFailed: when there is none to be had.
    :raises BackupFailed: when the server refuses a statement.
    :raises LockTimeout: when others hold a lock for too long.
    """
    import psycopg2

    connection, target = patience().run(lambda: _connected(targets), lambda: True)
    with closing(connection), ThreadPoolExecutor(1) as pool:
        connection.autocommit = True
        opened = Session(connection, target, pool)
        try:
            connection.set_client_encoding("UTF8")  # a server without an encoding names none
            opened.rows(PIN)
            opened.set(SESSION)
            with suppress(psycopg2.Error):  # some systems cannot watch a connection
                opened.set(WATCHED)
            yield opened
        except psycopg2.Error as error:
            raise _refused(error, target, opened) from None


def _connected(targets: Sequence[PostgresTarget]) -> tuple[Any, PostgresTarget]:
    """Return a connection to the first target that has one to give, and that target."""
    import psycopg2

    failures: list[ConnectionFailed] = []
    for target in targets:
        arguments = arguments_of(target)
        try:
            return interruption.cancellable(interruption.aside(partial(psycopg2.connect, **arguments))), target
        except psycopg2.Error as error:
            refused = cannot_connect(target, error, arguments)
            if refused.sqlstate == "08P01" and "options" in target.arguments:
                refused.hint += "; a restore takes a direct connection, without a pooler"
            failures.append(refused)
    raise next(filter(messages.passes_by_itself, failures), failures[0]) from None


def _refused(error: Exception, target: PostgresTarget, asked: Session) -> WhatspireDBError:
    """Return the error for a statement that a server refused, without a row's values or anything secret."""
    fact = f"{target.describe()}: {redact(messages.first_line(error), target.secrets)}"
    if messages.is_locked(error):
        holder = _holder(asked)
        return LockTimeout(fact + holder, WAIT_HINT if holder else "run it again, or raise --lock-timeout")
    own = HINTS.get(messages.sqlstate(error) or "")
    return BackupFailed(fact, own or messages.hint(error, "see the server's log; nothing was changed"))


def _holder(asked: Session) -> str:
    """Name the session that holds the lock, to follow an error; nothing where it has ended or cannot be known."""
    with suppress(Exception):
        asked.rows("ROLLBACK")
        for relation, pid, application in asked.rows(_HOLDER):
            return f"; {relation} is locked by pid {pid}, application {application}"
    return ""


def milliseconds(wait: float) -> int:
    """Return seconds as a limit of PostgreSQL's, for which 0 would be none."""
    return max(1, int(wait * 1000))


def database_of(target: PostgresTarget) -> str:
    """Return the name of the database that a DSN leads to; asks the server where the DSN does not say."""
    if name := target.arguments.get("dbname"):
        return name
    with session(target) as asked:
        return str(asked.value("SELECT current_database()"))


def maintenance(target: PostgresTarget, other_than: str = "") -> AbstractContextManager[Session]:
    """Open a connection to a database of the server that is none of those in question."""
    return session(*(target.to(name) for name in MAINTENANCE if name != other_than))


@contextmanager
def unless_gone(admin: Session) -> Iterator[None]:
    """Leave undone in the block what a session that was ended cannot do: it was of no weight any more."""
    import psycopg2

    try:
        yield
    except psycopg2.Error:
        if not admin.connection.closed:
            raise
