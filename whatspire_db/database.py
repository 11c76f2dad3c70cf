"""Settings -> a Peewee database."""

from __future__ import annotations

from . import models
from .dsn import PostgresTarget, SqliteTarget
from .pool_state import Limits
from .pooling import Pooling
from .postgres import open_postgres
from .query_log import QueryLog
from .settings import Settings
from .sqlite import open_sqlite


def connect(settings: Settings | None = None, *, bind: bool = True, read_only: bool = False) -> Pooling:
    """Return a database for the settings; it connects when it is first used.

    :param settings: default: the environment and .env.
    :param bind: point the models of this package at it.
    :param read_only: leave the journal mode and the missing file of a SQLite database as they are.
    :raises ConfigError: when a setting is wrong.
    """
    settings = settings or Settings.from_environment()
    db = _open(settings, settings.target, read_only)
    db.settings = settings
    if settings.replica_target is not None:
        db.replica_database = _open(settings, settings.replica_target, read_only, replica=True)
    if bind:
        models.database.initialize(db)
    return db


def _open(settings: Settings, target: SqliteTarget | PostgresTarget, read_only: bool, replica: bool = False) -> Pooling:
    limits = Limits(
        settings.max_open_conns,
        settings.max_idle_conns,
        settings.conn_max_lifetime.total_seconds(),
        settings.pool_timeout.total_seconds(),
    )
    log = QueryLog(settings.log_level, settings.slow_threshold.total_seconds(), settings.log_parameters)
    if isinstance(target, SqliteTarget):
        return open_sqlite(target, limits, log, read_only or replica, refuse_writes=replica)
    return open_postgres(target, limits, log, read_only=replica)
