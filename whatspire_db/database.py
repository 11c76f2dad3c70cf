"""Settings -> a peewee Database: pragmas, pool, query log."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peewee
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase

from . import models
from .dsn import PostgresTarget, SqliteTarget, redact
from .errors import ConnectionFailed
from .settings import Settings

logger = logging.getLogger("whatspire_db")

SLOW_SECONDS = 0.2
POOL_WAIT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 10
SQLITE_PRAGMAS = {"foreign_keys": "1", "synchronous": "NORMAL", "journal_mode": "WAL"}
SQLITE_BUSY_SECONDS = 5.0


def connect(settings: Settings | None = None, *, bind: bool = True, read_only: bool = False) -> peewee.Database:
    """Return a database for the settings; it connects when it is first used.

    :param settings: default: the environment and .env.
    :param bind: point the models of this package at it.
    :param read_only: leave the journal mode and the missing file of a SQLite database as they are.
    :raises ConfigError: when a setting is wrong.
    """
    settings = settings or Settings.from_environment()
    target = settings.target
    db = _sqlite(target, read_only) if isinstance(target, SqliteTarget) else _postgres(settings, target)
    db.query_hooks.extend(_query_log(settings.log_level))
    if bind:
        models.database.initialize(db)
    return db


class SqliteDatabase(peewee.SqliteDatabase):
    """peewee's, whose journal mode is set patiently and whose failure to open says why."""

    target: SqliteTarget

    def _connect(self) -> Any:
        path = self.target.path
        if path is not None and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise ConnectionFailed(f"{path} is not a regular file", "point WHATSAPP_DATABASE_DSN at a database file")
        try:
            return super()._connect()
        except sqlite3.OperationalError as error:
            raise _cannot_open(self.target, error) from None
        except sqlite3.DatabaseError as error:
            raise ConnectionFailed(
                f"{self.target.path or self.database} is not a SQLite database: {error}",
                "point WHATSAPP_DATABASE_DSN at the database, or move the file away",
            ) from None

    def _set_pragmas(self, conn: sqlite3.Connection) -> None:
        for name, value in self._pragmas:
            if name == "journal_mode":
                _set_journal_mode(conn, value, self._timeout)
            else:
                conn.execute(f"PRAGMA {name} = {value}")
        conn.execute("SELECT count(*) FROM sqlite_master")  # a file that is no database is found here


def _set_journal_mode(conn: sqlite3.Connection, mode: str, patience: float) -> None:
    """Switch where the file has another mode; SQLite does not wait for this lock, so wait for it here."""
    if conn.execute("PRAGMA journal_mode").fetchone()[0].lower() in (mode.lower(), "memory"):
        return
    deadline = time.monotonic() + patience
    while True:
        try:
            conn.execute(f"PRAGMA journal_mode = {mode}")
            return
        except sqlite3.OperationalError as error:
            if "readonly" in str(error):
                return
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _sqlite(target: SqliteTarget, read_only: bool) -> SqliteDatabase:
    pragmas = SQLITE_PRAGMAS | dict(target.pragmas)
    busy = float(pragmas.pop("busy_timeout", SQLITE_BUSY_SECONDS * 1000)) / 1000
    if read_only or target.read_only:
        del pragmas["journal_mode"]
    name, uri = target.database, target.uri
    if read_only and target.path is not None and not os.path.lexists(target.path):
        name, uri = ":memory:", False  # nothing there yet: looking must not make a file
    db = SqliteDatabase(name, pragmas=list(pragmas.items()), timeout=busy, lock_type="IMMEDIATE", uri=uri)
    db.target = target
    if target.path is not None and not read_only and not target.read_only:
        _make_folder(Path(target.path).parent)
    return db


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConnectionFailed(
            f"the folder {folder} cannot be made: {error.strerror}",
            "make it, give this user the right to, or point WHATSAPP_DATABASE_DSN elsewhere",
        ) from None


def _cannot_open(target: SqliteTarget, error: Exception) -> ConnectionFailed:
    path = Path(target.path or target.database)
    hint = "point WHATSAPP_DATABASE_DSN at a database file"
    if "locked" in str(error):
        return ConnectionFailed(
            f"{path} is locked by another process",
            "wait for it to end, or raise --lock-timeout, or _busy_timeout in the DSN",
        )
    if path.is_dir():
        return ConnectionFailed(f"{path} is a directory", hint)
    if path.exists() and not os.access(path, os.R_OK):
        return ConnectionFailed(f"{path} cannot be read", "give this user the right to read and write it")
    if not path.exists() and target.read_only:
        return ConnectionFailed(f"{path} does not exist", hint)
    if not os.access(path.parent, os.W_OK):
        return ConnectionFailed(
            f"{path} cannot be opened: no right to write in {path.parent}",
            "give this user that right, or where nobody writes open it as file:PATH?immutable=1",
        )
    return ConnectionFailed(f"{path} cannot be opened: {error}", hint)


class PostgresqlDatabase(PooledPostgresqlDatabase):
    """peewee's pool, whose failure to connect says what to do."""

    target: PostgresTarget

    def _connect(self) -> Any:
        try:
            return super()._connect()
        except MaxConnectionsExceeded:
            raise
        except Exception as error:
            # The driver's own error class, without importing a driver that SQLite users do not need.
            raise _cannot_connect(self.target, error) from None


def _postgres(settings: Settings, target: PostgresTarget) -> PostgresqlDatabase:
    arguments = dict(target.arguments)
    if "service" not in arguments and "PGCONNECT_TIMEOUT" not in os.environ:
        arguments.setdefault("connect_timeout", str(CONNECT_TIMEOUT_SECONDS))
    arguments.setdefault("fallback_application_name", "whatspire_db")
    # peewee takes an empty URL as: whatever libpq finds in its service file, its variables and its defaults.
    database = arguments.pop("dbname", "") or "postgresql://"
    db = PostgresqlDatabase(
        database,
        max_connections=settings.max_open_conns or None,
        stale_timeout=settings.conn_max_lifetime.total_seconds() or None,
        timeout=POOL_WAIT_SECONDS,
        **arguments,
    )
    db.target = target
    return db


def _cannot_connect(target: PostgresTarget, error: Exception) -> ConnectionFailed:
    text = redact(" ".join(str(error).split()), target.secrets)
    hints = {
        "password authentication failed": "check user and password in WHATSAPP_DATABASE_DSN",
        "no password supplied": "add the password to WHATSAPP_DATABASE_DSN",
        "does not exist": "create it, or correct its name in WHATSAPP_DATABASE_DSN",
        "translate host name": "check the host in WHATSAPP_DATABASE_DSN",
        "refused": "start the server, or check host and port in WHATSAPP_DATABASE_DSN",
        "No such file": "start the server, or check host and port in WHATSAPP_DATABASE_DSN",
        "too many": "close connections, or lower WHATSAPP_DATABASE_MAX_OPEN_CONNS",
        "unrecognized configuration parameter": "correct the parameter's name in WHATSAPP_DATABASE_DSN",
        "unsupported startup parameter": "take the run-time parameters out of WHATSAPP_DATABASE_DSN and set them for "
        "the role (ALTER ROLE ... SET): the pooler in between does not pass them on",
        "pg_hba.conf": "allow this host and user in the server's pg_hba.conf, or change sslmode",
        "SSL": "check sslmode in WHATSAPP_DATABASE_DSN",
    }
    hint = next((h for mark, h in hints.items() if mark in text), "check that the server runs and can be reached")
    return ConnectionFailed(f"cannot connect to PostgreSQL at {target.describe()}: {text}", hint)


def _query_log(level: str) -> list[Callable[[Any], None]]:
    """Return the hook for a log level, as GORM has them; parameters are never logged."""
    if level == "silent":
        return []

    def log(event: Any) -> None:
        if event.exception is not None:
            logger.error("failed after %.1f ms: %s", event.duration * 1000, event.sql)
        elif level != "error" and event.duration >= SLOW_SECONDS:
            logger.warning("slow, %.1f ms: %s", event.duration * 1000, event.sql)
        elif level == "info":
            logger.info("%.1f ms: %s", event.duration * 1000, event.sql)

    return [log]
