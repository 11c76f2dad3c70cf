"""A health check: whether a database can be used, and how it stands; changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from importlib import import_module

import peewee
from playhouse.pool import MaxConnectionsExceeded

from ..connection.own_database import target_of
from ..dsn.naming import describe
from ..dsn.redaction import redact
from ..errors import ConnectionFailed, LockTimeout, RightMissing, WhatspireDBError
from ..messages import database_failed, first_line, in_words, is_right_missing
from ..migrate.reports import SchemaCheck
from ..migrate.runner import MigrationRunner
from ..migrate.stamp import ForeignHistory
from ..settings import variable
from ..settings.durations import seconds_of
from .values import Health

SHOWN = 5  # differences
NEWEST = 1000  # rows of each table whose times are looked at
LOCK_SECONDS = 5.0  # a check waits no longer for a lock


def check_health(
    db: peewee.Database,
    models: Sequence[type[peewee.Model]] | None = None,
    *,
    schema: bool = True,
    quick_check: bool = False,
    timeout: float | timedelta | str = LOCK_SECONDS,
) -> Health:
    """Return how a database stands; a database that cannot be reached is an answer and no error.

    On a stamped database in sync the schema costs one statement, else a full look. A connection of this thread is
    used where there is one; the one that is opened else is opened as the database always does.

    :param models: default: the service's, and every other subclass of BaseModel that was imported.
    :param schema: compare the schema too.
    :param quick_check: let SQLite look for damage, which reads the whole file.
    :param timeout: how long to wait for another session's lock: seconds, a timedelta or a text like 5s; a database
        that stays locked is not healthy.
    :raises ModelError: when the database is of another kind, or the models are none.
    :raises WhatspireDBError: within a transaction, whose view and locks the answer would depend on.
    """
    runner = MigrationRunner(db, models, lock_timeout=seconds_of("timeout", timeout))
    if (db := runner.db).in_transaction():
        raise WhatspireDBError("health cannot be checked inside a transaction", "commit first")
    stats = getattr(db, "pool_stats", None)  # plain peewee databases have none
    engine = import_module(f".engines.{runner.engine.name}", __package__)
    health = Health(runner.engine.name, describe(target_of(db)), pool=stats()._asdict() if stats else None)
    opened = False
    try:
        health = engine.unopened(health, db)
        opened = db.connect(reuse_if_open=True) and not engine.is_kept_open(health)
        health = engine.reached(health, db)
        health = _compared(health, runner) if schema else replace(health, schema_version=_version(runner))
        health = _with_fence(health, runner)
        return engine.quick_checked(health, db) if quick_check else health
    except (WhatspireDBError, peewee.PeeweeException, UnicodeError, MaxConnectionsExceeded) as error:
        return _failing(health, _in_words(error, runner), _secrets(db))
    finally:
        if opened and not db.is_closed():
            db.close()


def _in_words(error: Exception, runner: MigrationRunner) -> WhatspireDBError:
    if isinstance(error, WhatspireDBError):
        return error
    if isinstance(error, MaxConnectionsExceeded):
        return ConnectionFailed(
            f"no connection of the pool came free: {first_line(error)}",
            "give connections back (with db.connection_context():), or raise WHATSAPP_DATABASE_MAX_OPEN_CONNS",
        )
    if runner.engine.is_lock_failure(error) and not runner.db.is_closed():
        return runner.engine.locked_out(runner.models, runner.lock_timeout)
    return in_words(error) or database_failed(error)


def _secrets(db: peewee.Database) -> tuple[str, ...]:
    password = db.connect_params.get("password")
    return getattr(getattr(db, "target", None), "secrets", ()) or ((password,) if password else ())


def _failing(health: Health, error: WhatspireDBError, secrets: tuple[str, ...]) -> Health:
    hint = error.hint.replace("--lock-timeout", variable("health_timeout"))  # an option of the other commands
    return replace(health, error=redact(error.fact, secrets), hint=redact(hint, secrets))


def _compared(health: Health, runner: MigrationRunner) -> Health:
    return _with_data(_with_times(_with_schema(health, runner), runner), runner)


def _with_schema(health: Health, runner: MigrationRunner) -> Health:
    """Compare the schema, by its stamp first."""
    found = runner.check()
    version = _version(runner) if found.version is None else found.version
    health = replace(
        health,
        schema_version=version,
        in_sync=found.in_sync,
        missing=len(found.missing),
        drift=len(found.drift),
        differences=tuple(str(d) for d in (*found.missing, *found.drift))[:SHOWN],
        note="compared by names alone: {} ({})".format(*found.unproved) if found.unproved else None,
    )
    if found.in_sync is not False:
        return health
    hint = "see python -m whatspire_db.migrate verify; up adds what is missing"
    return replace(health, error=_difference(found), hint=hint)


def _with_fence(health: Health, runner: MigrationRunner) -> Health:
    """Name the database that has the rows by now, before all else that is wrong with this one."""
    fence = runner.fence()
    return replace(health, error=fence.fact, hint=fence.hint) if fence else health


def _with_times(health: Health, runner: MigrationRunner) -> Health:
    """Look at the newest rows of each table; a table that another session has locked is no news here."""
    with suppress(LockTimeout):
        return replace(health, times=runner.time_notes(NEWEST))
    return health


def _with_data(health: Health, runner: MigrationRunner) -> Health:
    """See how the data migrations stand; one that failed makes the database unhealthy."""
    if not runner.data:
        return health
    states = tuple(runner.data_migrations().states()[: len(runner.data)])
    health = replace(health, data=states)
    failed = [state for state in states if state.state == "failed"]
    if not failed or health.error:
        return health
    hint = f"correct its function, then run whatspire-db data retry {failed[0].name}, or data skip"
    return replace(health, error=f"data migration {failed[0]}", hint=hint)


def _difference(found: SchemaCheck) -> str:
    differences = [str(difference) for difference in (*found.missing, *found.drift)]
    also = f", and {len(differences) - 1} more" if differences[1:] else ""
    return f"the schema is not the declared one: {differences[0]}{also}"


def _version(runner: MigrationRunner) -> int | None:
    """Return the recorded version; None where this role may not read it, or another program made its table."""
    try:
        return runner.version()
    except (ForeignHistory, RightMissing):
        return None
    except WhatspireDBError as error:
        if is_right_missing(error.__cause__ or error):
            return None
        raise
