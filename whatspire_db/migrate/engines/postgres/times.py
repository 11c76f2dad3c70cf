"""PostgreSQL: wall-clock times, which may be those of another zone than UTC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import peewee

from whatspire_db.fields import NaiveInstantField
from whatspire_db.migrate.ddl import ModelType, execute, qualified, quote
from whatspire_db.migrate.schema import Key, label
from whatspire_db.migrate.times import TimeNote
from whatspire_db.sql import SAFE_TO_QUERY, pinned

from ..base import Engine, discarded

IN_UTC = frozenset({"UTC", "Etc/UTC", "GMT", "Etc/GMT", "Etc/Universal", "Etc/Zulu", "Universal", "Zulu", "UCT"})

# A superuser reads no tables of other roles, whose code could run.
_COLUMNS = pinned(f"""
SELECT n.nspname::text, c.relname::text, a.attname::text, a.atttypid = 1114, EXISTS (
    SELECT FROM pg_index AS i
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] = a.attnum
), row_security_active(c.oid)
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE a.atttypid = ANY (ARRAY[1114, 1184]::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    AND {SAFE_TO_QUERY} AND c.relname::text = ANY (%s)
    AND has_column_privilege(c.oid, a.attnum, 'SELECT')
""")
_DEFAULT_SCHEMA = pinned("SELECT current_schema()::text")
_ZONE = pinned("SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'TimeZone'")
# A minute, for clocks that differ.
_FUTURE = pinned("""
SELECT count(*), count(*) FILTER (WHERE looked.moment > (timezone('UTC', now()) + '1 minute'::interval))
FROM (SELECT {column} AS moment FROM {table}{newest}) AS looked
""")


def wall_clocks(engine: Engine, models: Sequence[ModelType], newest: int | None) -> Iterator[TimeNote]:
    """Yield the columns of wall-clock times that may be another zone's."""
    declared = engine.fields_of(models, (NaiveInstantField, peewee.DateTimeField))
    tables = [key[1] for key, columns in declared.items() if columns]
    if not tables:
        return
    found = execute(engine.db, _COLUMNS, [tables]).fetchall()
    zone, default_schema = engine.ask(_ZONE), engine.ask(_DEFAULT_SCHEMA)
    for key, columns in declared.items():
        place = (key[0] or default_schema, key[1])
        live = [column[2:] for column in found if column[:2] == place]
        order = next((name for name, _, leads, _ in live if leads), None)
        for name, is_wall, _, hidden in live:
            if not is_wall or name not in columns:
                continue
            if zone not in IN_UTC:
                yield TimeNote(label(key), name, "time_zone", example=zone)
            if not isinstance(columns[name], NaiveInstantField):
                continue
            if hidden and newest is None:  # not for health, which runs as roles that are to see a part
                yield TimeNote(label(key), name, "hidden")
            elif not hidden and (newest is None or order is not None):
                yield from _futures(engine, key, name, order, newest)


def _futures(engine: Engine, key: Key, column: str, order: str | None, newest: int | None) -> Iterator[TimeNote]:
    ordered = f" ORDER BY {quote(order)} DESC LIMIT {newest}" if newest is not None and order is not None else ""
    sql = _FUTURE.format(column=quote(column), table=qualified(*key), newest=ordered)
    with discarded(engine.db):  # which gives the locks on the table and its indexes back
        total, rows = execute(engine.db, sql).fetchone()
    if rows:
        yield TimeNote(label(key), column, "future", rows, total)
