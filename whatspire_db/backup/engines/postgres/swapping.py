"""PostgreSQL: one database in the place of another, by rename, while sessions come and go."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

from whatspire_db.backup.archive import STAMP
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import (
    BackupFailed,
    ConfigError,
    ConnectionFailed,
    TargetRefused,
)
from whatspire_db.sql import quoted

from .server import Session, maintenance, milliseconds, unless_gone

RESTORING = "whatspire_db restore"  # the application name of the program that fills a database
NAME_BYTES = 63
OLD_BYTES = len("_old_20260102T030405Z")
STEM_BYTES = NAME_BYTES - OLD_BYTES
LOST_LOOKS, LOST_LOOK_SECONDS = 100, 0.1  # at a session that was lost, until it has ended
_END = """
SELECT pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity AS a
WHERE EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l
    WHERE l.pid = %s AND l.classid = 'pg_catalog.pg_database'::regclass AND l.objid = %s
        AND l.mode = 'AccessExclusiveLock' AND l.granted
) AND a.datid = %s AND a.backend_type = 'client backend'
"""
# Of the server's names none is asked for but those that matter: others can be in any encoding, and not be read.
IS_OLD = "d.datname ~ '_old_[0-9]{8}T[0-9]{6}Z$'"
_OLD = f"""
SELECT d.datname FROM (SELECT %s::text AS stem) AS given, pg_catalog.pg_database AS d
WHERE {IS_OLD} AND starts_with(d.datname, stem || '_old_')
    AND octet_length(d.datname::text) = octet_length(stem) + {OLD_BYTES}
ORDER BY 1
"""
# A character has four bytes at most, so that what has three less may be the rest of a longer name.
_ALIKE = f"""
SELECT 1 FROM (SELECT %s::text AS stem, %s::text AS name, {STEM_BYTES} AS most) AS given, pg_catalog.pg_database AS d
WHERE octet_length(stem) > most - 4 AND starts_with(d.datname, stem) AND d.datname <> name AND NOT {IS_OLD}
    AND (octet_length(d.datname::text) > most OR d.datname = stem)
"""


def old_name(admin: Session, name: str, moment: datetime) -> str:
    """Return a free name under which a database is kept that another one takes the place of."""
    taken = {old for (old,) in admin.rows(_OLD, _stem(name))}
    while (old := f"{_stem(name)}_old_{moment.strftime(STAMP)}") in taken:
        moment += timedelta(seconds=1)
    return old


def replaced(asked: Session, name: str) -> list[str]:
    """Return the databases that restores of a database put aside, and that are there still.

    Where they could be another database's too, whose name is as long and begins alike, there are none.
    """
    stem = _stem(name)
    if asked.rows(_ALIKE, stem, name):
        return []
    return [old for (old,) in asked.rows(_OLD, stem)]


def _stem(name: str) -> str:
    return name.encode()[:STEM_BYTES].decode(errors="ignore")


def require_direct(admin: Session) -> None:
    """Refuse a session that is not one of the server's own: its locks would be another's, and soon nobody's.

    :raises ConfigError: when it goes through a pooler.
    """
    if admin.value("SELECT pg_backend_pid()") != admin.connection.info.backend_pid:
        raise ConfigError(
            "a restore takes a direct connection, and this one goes through a pooler",
            "name the server itself in WHATSAPP_DATABASE_DSN",
        )


@contextmanager
def alone(admin: Session, name: str) -> Iterator[None]:
    """Be the only restore of a database, and end what a killed one left at work in it.

    :raises ConfigError: when that cannot be told, behind a pooler.
    :raises TargetRefused: when there is another one.
    """
    require_direct(admin)
    key = f"whatspire_db restore {name}"
    if not admin.value("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", key):
        raise TargetRefused(f"another restore of database {name} is under way", "wait for it to end")
    try:
        end_restoring(admin, name)  # a program outlives the process that started it and was killed
        yield
    finally:
        with unless_gone(admin):
            admin.rows("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", key)


def end_restoring(admin: Session, name: str) -> None:
    """End what fills a database, and wait until it has ended."""
    admin.rows(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_catalog.pg_stat_activity "
        "WHERE datname = %s AND application_name = %s",
        name,
        RESTORING,
    )


def swap(admin: Session, ender: Session, target: PostgresTarget, new: str, name: str, old: str, wait: float) -> None:
    """Give a database another one's name, in one transaction: whoever is killed, one of them has it.

    The first rename holds off new sessions and waits for five seconds for those that are there, which are ended
    meanwhile from a second connection.

    :param ender: that connection.
    :param wait: seconds to wait for others that alter the database; 0 for ever.
    :raises TargetRefused: when some of them could not be ended; nothing was changed.
    """
    import psycopg2

    pid = admin.value("SELECT pg_backend_pid()")
    oid = admin.value("SELECT oid FROM pg_catalog.pg_database WHERE datname = %s", name)
    with suppress(psycopg2.Error):  # where the server can: it lets new sessions in as soon as this process is killed
        admin.rows("SET client_connection_check_interval = '100ms'")
    ended = threading.Event()
    thread = threading.Thread(target=_end_sessions, args=(ender, pid, oid, ended))
    admin.rows("BEGIN")
    admin.rows(f"SET LOCAL lock_timeout = {milliseconds(wait)}")
    thread.start()
    try:
        admin.rows(f"ALTER DATABASE {quoted(name)} RENAME TO {quoted(old)}")
        admin.rows(f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(name)}")
        admin.rows("COMMIT")
    except psycopg2.errors.ObjectInUse as error:
        admin.rows("ROLLBACK")
        detail = " ".join(str(error.diag.message_detail or "").split())
        raise TargetRefused(
            f"database {name} is in use: {detail or 'others are connected'}",
            "end those sessions and prepared transactions (of a subscription by ALTER SUBSCRIPTION ... DISABLE), "
            "or restore with a role that may; nothing was changed",
        ) from None
    except psycopg2.Error:
        if not admin.connection.closed or not _was_renamed(target, pid, oid, name, old):
            raise
    finally:
        ended.set()
        thread.join()


def _was_renamed(target: PostgresTarget, lost: int, oid: int, name: str, old: str) -> bool:
    """Tell whether a transaction that renames was committed, when the session that ran it was lost.

    :param lost: the process of that session.
    :raises BackupFailed: when the server does not tell.
    """
    try:
        with maintenance(target, name) as asked:
            for _ in range(LOST_LOOKS):
                if not asked.rows("SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = %s", lost):
                    return bool(
                        asked.rows("SELECT 1 FROM pg_catalog.pg_database WHERE oid = %s AND datname = %s", oid, old)
                    )
                time.sleep(LOST_LOOK_SECONDS)
    except (BackupFailed, ConnectionFailed):
        pass
    raise BackupFailed(
        f"the connection was lost while database {name} was replaced",
        f"{name} is whole: the new one if there is a database {old}, which then is the old one; else the old one",
    )


def _end_sessions(ender: Session, renaming: int, oid: int, ended: threading.Event) -> None:
    """End a database's sessions as long as another session renames it."""
    while not ended.wait(0.02):
        with suppress(Exception):  # of those that it may not end the rename itself will tell
            ender.rows(_END, renaming, oid, oid)


def rename(admin: Session, new: str, name: str) -> None:
    """Give a database a name that none has.

    :raises TargetRefused: when one has it by now.
    """
    import psycopg2

    try:
        admin.rows(f"ALTER DATABASE {quoted(new)} RENAME TO {quoted(name)}")
    except psycopg2.errors.DuplicateDatabase:
        raise TargetRefused(f"database {name} was made meanwhile", "restore again") from None
