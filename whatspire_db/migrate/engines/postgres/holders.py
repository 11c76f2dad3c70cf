"""PostgreSQL: who holds a lock that somebody waits for, in the words of a message."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import peewee

from whatspire_db.errors import LockTimeout
from whatspire_db.light_stdlib import Any
from whatspire_db.messages import sqlstate
from whatspire_db.migrate.ddl import execute
from whatspire_db.peewee_compat import driver_connection
from whatspire_db.sql import pinned

from .limits import lift_in_own_session

WEAK_LOCK = "SHARE UPDATE EXCLUSIVE"
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

# A role sees of other roles' sessions neither the address nor the times: they are NULL, as is the user of a process of
# the server's own. A local socket has no address either, but a port of -1.
_PERSON = """a.pid, a.application_name,
    CASE WHEN a.client_port = (-1) THEN 'local socket' ELSE coalesce(a.client_hostname, host(a.client_addr)) END,
    coalesce(a.usename::text, a.backend_type),
    to_char(coalesce(a.xact_start, a.backend_start) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')"""

_HOLDER = pinned(f"""
SELECT {_PERSON}
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32 | l.objid::bigint) = %s
""")

_BLOCKERS = pinned(f"""
SELECT {_PERSON}
FROM (SELECT DISTINCT pid FROM pg_locks
    WHERE granted AND pid <> pg_backend_pid() AND relation = ANY (SELECT to_regclass(t) FROM unnest(%s::text[]) AS t)
        AND (%s::text[] IS NULL OR replace(mode, 'Lock', '') = ANY (%s::text[]))) AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
ORDER BY a.xact_start LIMIT 3
""")

# Sessions that wrote something, or hold a lock that stops writers: a name that is taken, or a row, has no lock to find.
_SUSPECTS = pinned(f"""
SELECT {_PERSON} FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND EXISTS (SELECT FROM pg_locks AS l
    WHERE l.pid = a.pid AND l.granted AND (l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock'
        OR l.locktype = 'relation' AND l.mode = ANY (
            '{{ShareLock,ShareRowExclusiveLock,ExclusiveLock,AccessExclusiveLock}}')))
ORDER BY a.xact_start LIMIT 3
""")

_PREPARED = pinned("""
SELECT DISTINCT quote_literal(p.gid) FROM pg_locks AS l
JOIN pg_locks AS own ON own.pid IS NULL AND own.virtualtransaction = l.virtualtransaction
JOIN pg_prepared_xacts AS p ON p.transaction = own.transactionid
WHERE l.granted AND l.pid IS NULL AND l.relation = ANY (SELECT to_regclass(t) FROM unnest(%s::text[]) AS t)
""")

PEOPLE = pinned(f"SELECT {_PERSON} FROM pg_stat_activity AS a WHERE a.pid = ANY (%s) ORDER BY a.xact_start LIMIT 3")

# What another role builds shows no table, so the lock that a build holds tells it.
BUILDERS = pinned(f"""
SELECT {_PERSON}
FROM pg_stat_progress_create_index AS p JOIN pg_stat_activity AS a ON a.pid = p.pid
WHERE p.datname = current_database() AND (p.relid = to_regclass(%s) OR (p.relid IS NULL AND EXISTS (
    SELECT FROM pg_locks AS l
    WHERE l.pid = p.pid AND l.relation = to_regclass(%s) AND l.mode = 'ShareUpdateExclusiveLock')))
""")

# Sessions whose ACCESS EXCLUSIVE lock stops a look, those on its own tables first. A temporary table of another
# session stops nobody, and a prepared transaction has no session.
_EXCLUSIVE = pinned(f"""
SELECT l.relation::regclass::text, l.pid IS NULL, {_PERSON}
FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.granted AND l.mode = 'AccessExclusiveLock' AND coalesce(l.pid <> pg_backend_pid(), true)
    AND (l.database = 0 OR l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
    AND c.relpersistence <> 't'
ORDER BY EXISTS (SELECT FROM unnest(%s::text[]) AS t LEFT JOIN pg_index AS i ON i.indrelid = to_regclass(t)
    WHERE c.oid = to_regclass(t) OR c.oid = i.indexrelid) DESC, c.relkind = ANY ('{{r,p}}') DESC, a.xact_start LIMIT 1
""")


def is_lock_failure(error: BaseException) -> bool:
    """Tell whether a statement failed for somebody else's lock and may be tried again."""
    return isinstance(error, peewee.PeeweeException) and sqlstate(error) in LOCK_FAILURES


def separate_connection(db: peewee.PostgresqlDatabase) -> Any:
    """Open a driver's connection of our own, in autocommit, beside the one of this thread and outside of any pool."""
    connection = driver_connection(db)
    lift_in_own_session(connection)
    return connection


def rows(connection: Any, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run a query on a driver's connection."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else []


def described(people: Sequence[tuple[Any, ...]]) -> str:
    """Name sessions, as far as this role may see them."""
    return "; ".join(_described(*person) for person in people)


def _described(pid: int, application: str | None, host: str | None, user: str | None, since: str | None) -> str:
    known = [f"pid {pid}", f"application {application or 'unnamed'}"]
    known += [f"user {user}"] if user else []
    known += [f"from {host}"] if host else []
    known.append(f"since {since} UTC" if since else "the rest is hidden from this role")
    return ", ".join(known)


def pauses() -> Iterator[float]:
    """Yield seconds to wait between tries, with jitter, so that many who wait do not ask in step."""
    pause = 0.01
    while True:
        yield pause * random.uniform(0.5, 1)  # noqa: S311
        pause = min(pause * 2, 0.25)


def holder_of(db: peewee.PostgresqlDatabase, number: int) -> str:
    """Name who holds the migration lock."""
    return described(execute(db, _HOLDER, [number]).fetchall()) or "it has just ended"


def locked_out(db: peewee.PostgresqlDatabase, tables: Sequence[str], wait_seconds: float) -> LockTimeout:
    """Return the error for a look that stood behind a lock, with the table and the session that holds it."""
    found = execute(db, _EXCLUSIVE, [list(tables)]).fetchall()
    hint = "wait for that session to end, raise --lock-timeout, or end it with pg_terminate_backend(pid)"
    if not found:
        return LockTimeout(
            f"the schema was locked for {wait_seconds:g} s by a session that has just ended", "try again"
        )
    table, is_prepared, *person = found[0]
    if is_prepared:
        holder, hint = "a prepared transaction", "commit it or roll it back: pg_prepared_xacts lists them"
    else:
        holder = described([tuple(person)])
    return LockTimeout(f"{table} was locked (ACCESS EXCLUSIVE) for {wait_seconds:g} s by {holder}", hint)


def stopped(db: peewee.PostgresqlDatabase, tables: Sequence[str], mode: str, wait_seconds: float) -> LockTimeout:
    """Return the error for a transaction that others' locks stopped, with the sessions that hold them."""
    modes = list(CONFLICTS[mode]) if mode in CONFLICTS else None
    holders = described(execute(db, _BLOCKERS, [list(tables), modes, modes]).fetchall()) or _prepared(db, tables)
    if holders:
        fact = f"{', '.join(tables)} was locked for {wait_seconds:g} s by {holders}"
    else:  # a statement waited for a lock that is not one of these tables'
        suspects = described(execute(db, _SUSPECTS).fetchall())
        by = f"most likely held by {suspects}" if suspects else "whose holder has just ended"
        fact = f"a lock was waited for {wait_seconds:g} s, {by}"
    return LockTimeout(
        f"{fact}; what this transaction had changed was rolled back",
        "wait for that session to end, raise --lock-timeout, or end it with pg_terminate_backend(pid)",
    )


def _prepared(db: peewee.PostgresqlDatabase, tables: Sequence[str]) -> str:
    """Name the prepared transactions that hold locks on tables, which no session does."""
    found = execute(db, _PREPARED, [tables]).fetchall()
    return "; ".join(
        f"the prepared transaction {gid} (COMMIT PREPARED or ROLLBACK PREPARED ends it)" for (gid,) in found
    )
