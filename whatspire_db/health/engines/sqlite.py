"""What a health check says of a SQLite database: its file, its pages, and its damage where that is asked for."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import replace

import peewee

from whatspire_db.connection.own_database import target_of
from whatspire_db.dsn.targets import SqliteTarget
from whatspire_db.errors import ConnectionFailed
from whatspire_db.messages import DAMAGED
from whatspire_db.peewee_compat import driver_connection, peewee_errors

from ..values import Health, SqliteFile

SHOWN = 5  # messages of a quick check

_FIGURES = "SELECT sqlite_version(), page_size, page_count, freelist_count FROM {}".format(
    ", ".join(f"pragma_{name}()" for name in ("page_size", "page_count", "freelist_count"))
)


def unopened(health: Health, db: peewee.Database) -> Health:
    """Add what the file system says of the file, before it is opened: to open it may make files.

    :raises ConnectionFailed: when there is no file.
    """
    target = target_of(db)
    path = target.path if isinstance(target, SqliteTarget) else None
    if path is None:
        return replace(health, file=SqliteFile(None, None, None))
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise ConnectionFailed(
            f"{path} cannot be opened: {error.strerror}",
            "point WHATSAPP_DATABASE_DSN at the database, or make one with python -m whatspire_db.migrate",
        ) from None
    wal = f"{path}-wal"
    return replace(health, file=SqliteFile(path, size, os.path.getsize(wal) if os.path.exists(wal) else 0))


def reached(health: Health, db: peewee.Database) -> Health:
    """Add SQLite's figures; to have its answer is to have reached it."""
    (mode,) = db.execute_sql("PRAGMA journal_mode").fetchone()
    version, page_size, pages, free = db.execute_sql(_FIGURES).fetchone()
    file = health.file or SqliteFile(None, None, None)
    file = replace(file, journal_mode=mode, page_size=page_size, pages=pages, free_pages=free)
    return replace(health, reachable=True, server_version=version, file=file)


def is_kept_open(health: Health) -> bool:
    """Return whether the database is in memory, and would be gone when its connection is closed."""
    return health.file is not None and health.file.path is None


def quick_checked(health: Health, db: peewee.Database) -> Health:
    """Add SQLite's first messages about damage, which is an error."""
    from whatspire_db.connection.engines.sqlite.damage import damage  # not for every check

    path = health.file.path if health.file else None
    with peewee_errors:
        if path is None:
            found = damage(db.connection(), "quick_check", SHOWN)
        else:
            with closing(driver_connection(db)) as reading:  # which may be lent stand-ins for another program's
                found = damage(reading, "quick_check", SHOWN)
    if not found:
        return replace(health, quick_check="ok")
    return replace(health, quick_check="; ".join(found), error=f"{path or ''} is damaged: {found[0]}", hint=DAMAGED)
