"""How messages name a database: where it is, and nothing secret."""

from __future__ import annotations

import os

from ..errors import printable
from .targets import PostgresTarget, SqliteTarget

LIBPQ = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "service": "PGSERVICE"}


def describe(target: SqliteTarget | PostgresTarget) -> str:
    """Name a database without anything secret: a file by its whole path, or where the server is and its database."""
    if isinstance(target, SqliteTarget):
        return printable(_whole(target.path)) if target.path else ":memory:"
    given = {k: v for k, v in target.arguments.items() if k in ("host", "hostaddr", "port", "dbname", "service")}
    usual = {k: os.environ[v] for k, v in LIBPQ.items() if os.environ.get(v)}
    user = target.arguments.get("user") or os.environ.get("PGUSER")
    if user and not {"dbname", "service"} & (usual | given).keys():
        usual["dbname"] = user  # libpq's own default
    return printable(" ".join(f"{key}={value}" for key, value in (usual | given).items())) or target.describe()


def _whole(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError:  # the current folder is deleted, which the run says better
        return path
