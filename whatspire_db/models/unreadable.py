"""A value that cannot be read: which column of a row it is, and the error that names its table, column and key."""

from __future__ import annotations

from collections.abc import Iterable

import peewee

from ..errors import ValueRefused
from ..fields import UNREADABLE, UNREADABLE_TYPES, Unreadable, UnreadableText, UnreadableTime
from ..light_stdlib import Any

LONGEST_KEY = 100  # characters of a key in a message


def failing(converters: Any, row: Any) -> int | None:
    """Return which column of a row cannot be read; None when all can."""
    for place, converter in enumerate(converters):
        try:
            if type(row[place]) in UNREADABLE_TYPES:
                return place
            if converter is not None:
                converter(row[place])
        except UNREADABLE:
            return place
    return None


def refused(rows: Any, row: Any, place: int) -> ValueRefused:
    """Return the error for a value that cannot be read. It names table, column and key, and never the value."""
    field = rows.fields[place]
    source = field.model if field is not None else rows.model
    table = _model(source)._meta.table_name
    # What the driver calls an expression without an alias is a piece of SQL on SQLite.
    name = field.column_name if field is not None else rows.columns[place]
    column = f"{table}.{name}" if name.isidentifier() or field is not None else f"an expression of {table}"
    fact = f"{column} holds {_kind(rows.converters[place], row[place])}"
    keys = [(f.column_name, n) for n, f in enumerate(rows.fields) if f is not None and f.model is source and _is_key(f)]
    where = in_the_row((key, row[n]) for key, n in keys) or "in the row with a key that was not selected"
    return ValueRefused(f"{fact}, {where}", "correct that row, or read past it with whatspire_db.readable(query)")


def _kind(converter: Any, value: Any) -> str:
    """Say what a value is not; never what it is."""
    if type(value) is UnreadableTime:
        return "a time that Python has no value for: infinity, BC, 24:00, or after the year 9999"
    if type(value) is UnreadableText:
        return "a text that is not UTF-8"
    try:
        converter(value)
    except Unreadable as error:
        return error.kind
    except UNREADABLE:
        pass
    return "a value that is not of the field's kind"


def _model(source: Any) -> Any:
    return source.model if isinstance(source, peewee.ModelAlias) else source


def _is_key(field: Any) -> bool:
    return field.name in {key.name for key in _model(field.model)._meta.get_primary_keys()}


def _shown(key: Any) -> str:
    """Return a key as it may stand in a message: printable, and not too long."""
    text = ascii(bytes(key) if isinstance(key, memoryview) else key)
    return text if len(text) <= LONGEST_KEY else text[: LONGEST_KEY - 3] + "..."


def in_the_row(keys: Iterable[tuple[str, Any]]) -> str:
    """Return how a message names a row by the columns of its key and their values; "" where all of them are None."""
    given = ", ".join(f"{name} {_shown(value)}" for name, value in keys if value is not None)
    return given and f"in the row with {given}"
