"""SQLite: times whose texts hold another offset than UTC's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import peewee

from whatspire_db.fields import InstantField
from whatspire_db.migrate.ddl import ModelType, execute, quote
from whatspire_db.migrate.times import TimeNote

from ..base import Engine

# How drivers write offsets: +02:00, +0200 or +02, and Go's own text with the zone's name behind it.
_FORMS = (
    ("GLOB '*:*[+-][0-9][0-9]:[0-9][0-9]'", 6, "'+00:00', '-00:00'"),
    ("GLOB '*:*[+-][0-9][0-9][0-9][0-9]'", 5, "'+0000', '-0000'"),
    ("GLOB '*:[0-9][0-9]*[+-][0-9][0-9]'", 3, "'+00', '-00'"),
)
_NAMED = "{0} GLOB '*:* [+-][0-9][0-9][0-9][0-9] *' AND {0} NOT GLOB '*:* [+-]0000 *'"
_COLUMNS = """
SELECT t.name, c.name, EXISTS (
    SELECT 1 FROM pragma_index_list(t.name) AS l, pragma_index_info(l.name) AS k
    WHERE NOT l.partial AND k.seqno = 0 AND k.name = c.name
) FROM sqlite_master AS t, pragma_table_info(t.name) AS c
WHERE t.type = 'table' AND t.name COLLATE NOCASE IN ({}) AND c.name COLLATE NOCASE IN ({})
"""


def _offset(column: str) -> str:
    """Return the SQL for the offset of a text that is not UTC's; NULL for all others."""
    cases = [
        f"WHEN {column} {form} AND substr({column}, -{length}) NOT IN ({utc}) THEN substr({column}, -{length})"
        for form, length, utc in _FORMS
    ]
    named = f"WHEN {_NAMED.format(column)} THEN substr({column}, instr({column}, ' +') + instr({column}, ' -') + 1, 5)"
    return f"CASE WHEN typeof({column}) <> 'text' THEN NULL {' '.join(cases)} {named} END"


def offsets(engine: Engine, models: Sequence[ModelType], newest: int | None) -> Iterator[TimeNote]:
    """Yield the columns whose texts hold times with another offset than UTC's."""
    declared = engine.fields_of(models, (InstantField, peewee.DateTimeField))
    names = sorted({column for columns in declared.values() for column in columns})
    tables = [key[1] for key, columns in declared.items() if columns and not key[0]]
    if not tables:
        return
    marks = [", ".join("?" * len(given)) for given in (tables, names)]
    found = execute(engine.db, _COLUMNS.format(*marks), [*tables, *names]).fetchall()
    for key, columns in declared.items():
        if key[0]:  # an attached file
            continue
        live = {name: leads for table, name, leads in found if engine.fold(table) == key[1]}
        there = {name: leads for name, leads in live.items() if engine.fold(name) in columns}
        for names_read, source in _sources(key[1], there, newest):
            yield from _offsets_of(engine, key[1], names_read, source)


def _sources(table: str, columns: dict[str, bool], newest: int | None) -> Iterator[tuple[list[str], str]]:
    """Return which columns to read from where: each from its own index, or else from the newest rows of another's."""
    if newest is None:
        if columns:
            yield list(columns), quote(table)
        return
    leading = [name for name, leads in columns.items() if leads]
    for name in leading:
        yield [name], f"(SELECT {quote(name)} FROM {quote(table)} ORDER BY {quote(name)} DESC LIMIT {newest})"
    if others := [name for name in columns if name not in leading]:
        listed, order = ", ".join(map(quote, others)), quote(leading[0]) if leading else "rowid"
        yield others, f"(SELECT {listed} FROM {quote(table)} ORDER BY {order} DESC LIMIT {newest})"


def _offsets_of(engine: Engine, table: str, columns: list[str], source: str) -> Iterator[TimeNote]:
    asked = ", ".join(f"count({offset}), max({offset})" for offset in map(_offset, map(quote, columns)))
    try:
        total, *counts = execute(engine.db, f"SELECT count(*), {asked} FROM {source}").fetchone()
    except peewee.OperationalError:
        if "rowid" in source and not _has_rowid(engine, table):
            return
        raise
    for column, rows, example in zip(columns, counts[::2], counts[1::2], strict=True):
        if rows:
            yield TimeNote(table, column, "offset", rows, total, example)


def _has_rowid(engine: Engine, table: str) -> bool:
    wr = execute(engine.db, "SELECT max(wr) FROM pragma_table_list WHERE name = ? COLLATE NOCASE", [table])
    return not wr.fetchone()[0]
