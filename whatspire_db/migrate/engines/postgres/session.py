"""PostgreSQL: settings of a session that change what DDL means, or how the server shows it, are set alike for all."""

from __future__ import annotations

import peewee

from whatspire_db.migrate.ddl import execute
from whatspire_db.sql import pinned

# Constants are read and shown by these: '2024-01-01 00:00' is another moment in each time zone.
PINNED = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "array_nulls": "on",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
}
_PIN = pinned(
    "SELECT set_config(name, value, %s) FROM ROWS FROM (unnest(%s::text[]), unnest(%s::text[])) AS s (name, value)"
)
_CURRENT = pinned("SELECT name, current_setting(name) FROM unnest(%s::text[]) AS s (name)")


def pin(db: peewee.PostgresqlDatabase) -> None:
    """Let what this transaction declares and reads mean the same in every session."""
    execute(db, _PIN, [True, list(PINNED), list(PINNED.values())])


def set_all(db: peewee.PostgresqlDatabase, settings: dict[str, str]) -> None:
    """Set what a session has, until it is set again."""
    execute(db, _PIN, [False, list(settings), list(settings.values())])


def current(db: peewee.PostgresqlDatabase) -> dict[str, str]:
    """Return what this session has for the settings that are pinned."""
    return dict(execute(db, _CURRENT, [list(PINNED)]).fetchall())
