"""Peewee databases that a user's code made itself: where each is, and the DSN that names the same place."""

from __future__ import annotations

import os
from collections.abc import Mapping

import peewee

from ..dsn.redaction import looks_like_dsn
from ..dsn.targets import PostgresTarget, SqliteTarget
from ..errors import ConfigError
from ..light_stdlib import Any

_LOCAL = ("", "localhost", "127.0.0.1", "::1")


def target_of(db: peewee.Database) -> SqliteTarget | PostgresTarget:
    """Return where a database for SQLite or PostgreSQL is, whoever made it.

    :raises ConfigError: when it is for another engine.
    """
    target: SqliteTarget | PostgresTarget | None = getattr(db, "target", None)  # a database of ours
    if target is not None:
        return target
    name = str(db.database or "")
    if isinstance(db, peewee.SqliteDatabase):
        is_uri = name[:5].lower() == "file:"
        from ..dsn.sqlite import parse_sqlite

        return parse_sqlite(name) if is_uri else SqliteTarget(name, None if name in ("", ":memory:") else name)
    if not isinstance(db, peewee.PostgresqlDatabase):
        raise ConfigError(f"{type(db).__name__} is not supported", "use a database for SQLite or PostgreSQL")
    from ..dsn.postgres import parse_postgres

    given = parse_postgres(name).arguments if looks_like_dsn(name) else {"dbname": name}
    texts = {k: str(v) for k, v in db.connect_params.items() if isinstance(v, str | int)}
    return PostgresTarget({**given, **texts})


def is_same(one: SqliteTarget | PostgresTarget, other: SqliteTarget | PostgresTarget) -> bool:
    """Return whether two targets name the same file, or the same database of the same server."""
    if isinstance(one, SqliteTarget) and isinstance(other, SqliteTarget):
        if one.path is None or other.path is None:
            return False
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    if isinstance(one, PostgresTarget) and isinstance(other, PostgresTarget):
        return _place(one.arguments) == _place(other.arguments)
    return False


def _place(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    host = arguments.get("host") or arguments.get("hostaddr") or ""
    server = "localhost" if host in _LOCAL else host
    name = arguments.get("dbname") or arguments.get("user") or ""
    return server, arguments.get("port") or "5432", name, arguments.get("service") or ""


def dsn_of(target: SqliteTarget | PostgresTarget) -> str:
    """Return a DSN for a target.

    :raises ValueError: when it is in memory.
    """
    if isinstance(target, SqliteTarget):
        if target.path is None:
            raise ValueError
        from urllib.parse import quote

        return target.database if target.uri else f"file:{quote(target.path).replace('~', '%7E')}"
    return " ".join(f"{key}={_quoted(value)}" for key, value in target.arguments.items() if value)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
