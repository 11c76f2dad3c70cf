"""Settings -> a Peewee database."""

from __future__ import annotations

import os

from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError
from ..models.base import database as models_database
from ..settings import Settings
from .database import Pooling
from .pool_state import Limits
from .query_log import QueryLog


def connect(
    settings: Settings | str | os.PathLike[str] | None = None,
    *,
    dsn: str | None = None,
    driver: str | None = None,
    bind: bool = True,
    read_only: bool = False,
) -> Pooling:
    """Return a database for the settings; it connects when it is first used.

    :param settings: Settings, or a DSN; default: the environment and .env.
    :param dsn: a DSN that goes over that of the environment, from which the other settings come.
    :param driver: "sqlite" or "postgres" for that DSN; default: what the DSN says.
    :param bind: point the models of this package at it.
    :param read_only: leave the journal mode and the missing file of a SQLite database as they are.
    :raises ConfigError: when a setting is wrong, or the folder of a SQLite database does not exist.
    """
    settings = settings_of(settings, dsn, driver)
    db = _open(settings, "dsn", settings.target, read_only)
    db.settings = settings
    if settings.replica_target is not None:
        db.replica_database = _open(settings, "replica_dsn", settings.replica_target, read_only)
    if bind:
        models_database.initialize(db)
    return db


def settings_of(
    given: Settings | str | os.PathLike[str] | None,
    dsn: str | None = None,
    driver: str | None = None,
    by: str = "connect()",
) -> Settings:
    """Return the settings that a caller gives, as such or as a DSN; default: those of the environment and .env.

    :param by: what the caller called, for messages.
    :raises ConfigError: when it is neither, or a setting is wrong.
    """
    if isinstance(given, Settings):
        if dsn or driver:
            raise ConfigError(
                f"{by} got Settings, and a DSN or a driver beside them",
                "put both into Settings(driver=..., dsn=...)",
            )
        return given
    if isinstance(given, str | os.PathLike) and not dsn:
        dsn, given = os.fspath(given), None
    for name, value in (("DSN", dsn), ("driver", driver)):
        if isinstance(value, str) and not value.strip():  # a variable that is unset must not mean the default file
            raise ConfigError(
                f"{by} is given an empty {name}", "give a value, or None for that of the environment and .env"
            )
    if given is None and (dsn is None or isinstance(dsn, str)):
        return Settings.from_environment(dsn=dsn, driver=driver)
    raise ConfigError(
        f"{by} takes Settings or one DSN, not a {type(given or dsn).__name__}",
        "give Settings(dsn=...) or dsn=..., or nothing: then the environment and .env say it",
    )


def _open(settings: Settings, field: str, target: SqliteTarget | PostgresTarget, read_only: bool) -> Pooling:
    replica = field == "replica_dsn"
    limits = Limits(
        settings.max_open_conns,
        settings.max_idle_conns,
        settings.conn_max_lifetime.total_seconds(),
        settings.pool_timeout.total_seconds(),
    )
    log = QueryLog(settings.log_level, settings.slow_threshold.total_seconds(), settings.log_parameters)
    # A worker loads the database of its own engine alone.
    if isinstance(target, SqliteTarget):
        from .engines.sqlite.database import open_sqlite
        from .engines.sqlite.folder import require_folder

        require_folder(settings.name_of(field), target, make=not read_only and not replica)
        return open_sqlite(target, limits, log, read_only or replica, refuse_writes=replica)
    from .engines.postgres.database import open_postgres

    return open_postgres(target, limits, log, read_only=replica)
