"""PostgreSQL: the session settings that change what DDL means or how the server shows it, and one value for each."""

from __future__ import annotations

import peewee

from whatspire_db.migrate.ddl import execute
from whatspire_db.sql import pinned

from .limits import set_all

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
    "jit": "off",  # it takes longer to compile the statement that reads a schema than to run it
}
# Those that decide how a script's constants are read.
_READING = (
    "TimeZone",
    "DateStyle",
    "IntervalStyle",
    "lc_monetary",
    "array_nulls",
    "standard_conforming_strings",
    "transform_null_equals",
)
_CURRENT = pinned("SELECT name, current_setting(name) FROM unnest(%s::text[]) AS s (name)")


def pin(db: peewee.PostgresqlDatabase) -> None:
    """Let what this transaction declares and reads mean the same in every session."""
    set_all(db, PINNED, in_transaction=True)


def statements() -> list[str]:
    """Return what makes any session read a script as a migration's own session would."""
    return [f"SET {name} TO '{PINNED[name]}'" for name in _READING]


def current(db: peewee.PostgresqlDatabase) -> dict[str, str]:
    """Return what this session has for the settings that are pinned."""
    return dict(execute(db, _CURRENT, [list(PINNED)]).fetchall())
