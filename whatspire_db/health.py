"""Whether a database can be used, and how it stands: python -m whatspire_db.health; changes nothing."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import peewee
from playhouse.pool import MaxConnectionsExceeded

from .command_line import (
    FAILED,
    OK,
    Parser,
    add_shared_options,
    configure_logging,
    guarded,
    load_models,
    print_json,
    read_settings,
)
from .database import connect
from .dsn import parse_sqlite, redact
from .errors import ConnectionFailed, WhatspireDBError
from .migrate.failures import database_failed, first_line, is_right_missing
from .migrate.runner import MigrationRunner, SchemaCheck

SHOWN = 5  # differences, and messages of a quick check

_SQLITE = "SELECT sqlite_version(), page_size, page_count, freelist_count FROM {}".format(
    ", ".join(f"pragma_{name}()" for name in ("page_size", "page_count", "freelist_count"))
)
# Other roles' sessions hide their backend_type from a plain one, but neither their user nor their database.
_POSTGRES = """
WITH clients (name, number) AS (
    SELECT coalesce(application_name, ''), count(*) FROM pg_catalog.pg_stat_activity
    WHERE backend_type = 'client backend' OR backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL
    GROUP BY 1
)
SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('max_connections')::int,
    current_setting('superuser_reserved_connections')::int,
    coalesce(current_setting('reserved_connections', true), '0')::int,
    (SELECT json_object_agg(name, number ORDER BY number DESC, name)::text FROM clients)
"""


@dataclass(frozen=True)
class PostgresServer:
    """A server's figures: `connections` are those of all clients to all its databases, this check's included."""

    in_recovery: bool
    max_connections: int
    superuser_reserved_connections: int
    reserved_connections: int
    connections: int
    connections_by_application: dict[str, int]


@dataclass(frozen=True)
class SqliteFile:
    """A file's figures; sizes are in bytes and None in memory, what its pages say is None where it was not opened."""

    path: str | None
    size: int | None
    wal_size: int | None
    journal_mode: str | None = None
    page_size: int | None = None
    pages: int | None = None
    free_pages: int | None = None


@dataclass(frozen=True)
class Health:
    """What a check found; None where something was not asked, does not apply or cannot be known.

    `error` and `hint` say why a database is not healthy. `in_sync` is None too where names alone could be compared
    and agree; `note` tells why. `quick_check` is "ok", or SQLite's first messages.
    """

    driver: str | None
    reachable: bool = False
    error: str | None = None
    hint: str | None = None
    server_version: str | None = None
    schema_version: int | None = None
    in_sync: bool | None = None
    missing: int | None = None
    drift: int | None = None
    differences: tuple[str, ...] = ()
    note: str | None = None
    quick_check: str | None = None
    pool: dict[str, Any] | None = None
    server: PostgresServer | None = None
    file: SqliteFile | None = None

    @property
    def healthy(self) -> bool:
        """Tell whether the database was reached and nothing was found wrong."""
        return self.reachable and self.error is None

    def to_json(self) -> dict[str, Any]:
        return {"healthy": self.healthy, **asdict(self)}

    def __str__(self) -> str:
        rows = list(_rows(self))
        if self.error:
            rows += [("error", self.error), ("hint", self.hint or "")]
        return _aligned(rows)


def check_health(
    db: peewee.Database,
    models: Sequence[type[peewee.Model]] | None = None,
    *,
    schema: bool = True,
    quick_check: bool = False,
) -> Health:
    """Return how a database stands; a database that cannot be reached is an answer and no error.

    On a stamped database in sync the schema costs one statement, else a full look. A connection of this thread is
    used where there is one; the one that is opened else is opened as the database always does.

    :param models: default: the service's, and every other subclass of BaseModel that was imported.
    :param schema: compare the schema too.
    :param quick_check: let SQLite look for damage, which reads the whole file.
    :raises ModelError: when the database is of another kind, or the models are none.
    :raises WhatspireDBError: within a transaction, whose view and locks the answer would depend on.
    """
    runner = MigrationRunner(db, models)
    db = runner.db
    if db.in_transaction():
        raise WhatspireDBError("health cannot be checked inside a transaction", "commit first")
    stats = getattr(db, "pool_stats", None)  # plain peewee databases have none
    health = Health(runner.engine.name, pool=stats()._asdict() if stats else None)
    opened = False
    try:
        health = _with_file(health, db)
        # What is in memory is gone when its connection is closed.
        opened = db.connect(reuse_if_open=True) and not (health.file and health.file.path is None)
        health = _with_figures(health, db)
        health = _with_schema(health, runner) if schema else replace(health, schema_version=_version(runner))
        return _with_quick_check(health, db) if quick_check and health.file else health
    except (WhatspireDBError, peewee.PeeweeException, MaxConnectionsExceeded) as error:
        return _failing(health, _in_words(error), _secrets(db))
    finally:
        if opened and not db.is_closed():
            db.close()


def _in_words(error: Exception) -> WhatspireDBError:
    if isinstance(error, WhatspireDBError):
        return error
    if isinstance(error, MaxConnectionsExceeded):
        return ConnectionFailed(
            f"no connection of the pool came free: {first_line(error)}",
            "give connections back (with db.connection_context():), or raise WHATSAPP_DATABASE_MAX_OPEN_CONNS",
        )
    return database_failed(error)


def _secrets(db: peewee.Database) -> tuple[str, ...]:
    password = db.connect_params.get("password")
    return getattr(getattr(db, "target", None), "secrets", ()) or ((password,) if password else ())


def _failing(health: Health, error: WhatspireDBError, secrets: tuple[str, ...]) -> Health:
    return replace(health, error=redact(error.fact, secrets), hint=redact(error.hint, secrets))


def _with_file(health: Health, db: peewee.Database) -> Health:
    """Add what the file system says of a SQLite database, before it is opened: to open it may make files.

    :raises ConnectionFailed: when there is no file.
    """
    if health.driver != "sqlite":
        return health
    path = _path_of(db)
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


def _path_of(db: peewee.Database) -> str | None:
    """Return the path of a SQLite database's file; None where it is in memory."""
    target = getattr(db, "target", None)
    if target is not None:
        return target.path
    name = str(db.database)
    path = parse_sqlite(name).path if name.startswith("file:") else name
    return None if path in ("", ":memory:") else path


def _with_figures(health: Health, db: peewee.Database) -> Health:
    """Ask the engine for its figures; to have its answer is to have reached it."""
    if health.file is not None:
        (mode,) = db.execute_sql("PRAGMA journal_mode").fetchone()
        version, page_size, pages, free = db.execute_sql(_SQLITE).fetchone()
        file = replace(health.file, journal_mode=mode, page_size=page_size, pages=pages, free_pages=free)
        return replace(health, reachable=True, server_version=version, file=file)
    version, in_recovery, most, superuser, reserved, text = db.execute_sql(_POSTGRES).fetchone()
    clients = json.loads(text or "{}")
    server = PostgresServer(in_recovery, most, superuser, reserved, sum(clients.values()), clients)
    return replace(health, reachable=True, server_version=version.partition(" ")[0], server=server)


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


def _difference(found: SchemaCheck) -> str:
    differences = [str(difference) for difference in (*found.missing, *found.drift)]
    also = f", and {len(differences) - 1} more" if differences[1:] else ""
    return f"the schema is not the declared one: {differences[0]}{also}"


def _version(runner: MigrationRunner) -> int | None:
    """Return the recorded version; None where this role may not read it."""
    try:
        return runner.version()
    except WhatspireDBError as error:
        if is_right_missing(error.__cause__ or error):
            return None
        raise


def _with_quick_check(health: Health, db: peewee.Database) -> Health:
    try:
        with peewee.__exception_wrapper__:  # the rows are found while they are fetched
            rows = db.execute_sql(f"PRAGMA quick_check({SHOWN})").fetchall()
        lines = "\n".join(row[0] for row in rows).splitlines()
        messages = [line for line in lines if not line.startswith("***")][:SHOWN]  # *** in database main ***
    except peewee.OperationalError:
        raise
    except peewee.DatabaseError as error:  # damaged so far that it cannot be looked through
        messages = [first_line(error)]
    health = replace(health, quick_check="; ".join(messages))
    if health.quick_check == "ok":
        return health
    path = health.file.path if health.file else ""
    hint = "stop what writes to it, keep a copy, and restore a backup or try sqlite3's .recover"
    return replace(health, error=f"{path} is damaged: {messages[0]}", hint=hint)


# Output


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in rows)


def _rows(health: Health) -> Iterator[tuple[str, str]]:
    """Give what is known, for people, without the error."""
    yield "healthy", _yes(health.healthy)
    if health.driver:
        yield "driver", health.driver
    yield "reachable", _yes(health.reachable)
    if health.server_version:
        yield "server version", health.server_version
    if health.schema_version is not None:
        yield "schema version", str(health.schema_version)
    if health.missing is not None:
        counts = f"no: {health.missing} missing, {health.drift} drift"
        yield "in sync", counts if health.in_sync is False else "yes" if health.in_sync else "not known"
        for difference in health.differences:
            yield "", difference
    if health.note:
        yield "note", health.note
    yield from _figures(health)
    if health.quick_check:
        yield "quick check", health.quick_check


def _figures(health: Health) -> Iterator[tuple[str, str]]:
    if (pool := health.pool) is not None:
        yield "pool", "{open_connections} of {max_open_connections} open, {in_use} in use, {idle} idle".format(**pool)
        yield "pool waits", "{wait_count}, {wait_duration:.1f} s in all".format(**pool)
    if (server := health.server) is not None:
        yield "in recovery", _yes(server.in_recovery)
        kept = f"{server.superuser_reserved_connections} for superusers, {server.reserved_connections} reserved"
        yield "connections", f"{server.connections} of {server.max_connections} ({kept})"
        for name, number in server.connections_by_application.items():
            yield "", f"{number} {name or 'unnamed'}"
    if (file := health.file) is not None:
        yield "file", f"{file.path}, {file.size} bytes, -wal {file.wal_size} bytes" if file.path else "in memory"
        if file.journal_mode:
            pages = f"{file.pages} pages of {file.page_size} bytes, {file.free_pages} free"
            yield "journal mode", f"{file.journal_mode}, {pages}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


# The command


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m whatspire_db.health",
        description="Tell whether a database can be used, and how it stands. Exit 0 when healthy, else 1.",
    )
    parser.add_argument("--no-schema", action="store_true", help="do not compare the schema with the models")
    parser.add_argument(
        "--quick-check", action="store_true", help="SQLite: look for damage too, which reads the whole file"
    )
    add_shared_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Check the health and return 0 when it is good, else 1 whatever went wrong, as a container's check wants it."""
    given = sys.argv[1:] if argv is None else argv
    return OK if guarded(lambda: _run(given)) == OK else FAILED


def _run(argv: list[str]) -> int:
    try:
        options = _parser().parse_args(argv)
        health = _check(options)
    except WhatspireDBError as error:
        if "--json" in argv:
            print_json(Health(None, error=error.fact, hint=error.hint).to_json())
        raise
    if options.json:
        print_json(health.to_json())
    elif not options.quiet:
        print(_aligned(list(_rows(health))))
    if health.error is not None:
        raise WhatspireDBError(health.error, health.hint or "")
    return OK


def _check(options: argparse.Namespace) -> Health:
    configure_logging(options)
    settings = read_settings(options)
    if options.verbose:
        settings = replace(settings, log_level="info")
    models = load_models(options.models or settings.models, with_service=not options.only_models)
    db = connect(settings, read_only=True)
    return check_health(db, models, schema=not options.no_schema, quick_check=options.quick_check)


if __name__ == "__main__":
    sys.exit(main())
