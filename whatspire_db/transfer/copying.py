"""Rows of SQLite into PostgreSQL by COPY: whole tables, and single rows that changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from peewee import sqlite3

from ..copy_in import copy_in, lines_of
from ..errors import TransferRefused
from .checking import shown_key
from .chunks import Chunk, Row, chunks
from .faults import REPLACE, Finding
from .kinds import TextKind
from .tables import Column, TransferTable

KEYS = 200  # rows that one query asks for
Tell = Callable[[str, int], None]  # a table, and how many of its rows are done


def copy_table(sqlite: sqlite3.Connection, postgres: Any, table: TransferTable, tell: Tell) -> int:
    """Copy the rows of a table, in the transactions that are open on both connections; return how many.

    :param postgres: a connection of psycopg2.
    """
    rows = sqlite.execute(table.select(table.written))
    return _copy(postgres, table, chunks(rows.fetchmany, table.most), tell)


def apply_changes(
    sqlite: sqlite3.Connection, postgres: Any, table: TransferTable, keys: Sequence[tuple[Any, ...]]
) -> int:
    """Bring rows that were copied before up to what SQLite has now; return how many of them are there.

    :param keys: values of the primary key, as SQLite has them; a row of that key may be there or not.
    :raises TransferRefused: for a value that PostgreSQL cannot hold, and that nothing is to replace.
    """
    columns = [table.column(name) for name in table.key]
    # A key with a fault is not at the target: whoever brought it was refused.
    held = [key for key in keys if next(_faults(table, columns, [key]), None) is None]
    names = ", ".join(column.quoted for column in columns)
    with closing(postgres.cursor()) as cursor:
        cursor.execute(f"CREATE TEMPORARY TABLE whatspire_db_keys AS SELECT {names} FROM {table.postgres} WITH NO DATA")
        _send(cursor, "pg_temp.whatspire_db_keys", columns, _lines(columns, table, [held] if held else []))
        same = " AND ".join(f"t.{c.quoted} OPERATOR(pg_catalog.=) k.{c.quoted}" for c in columns)
        cursor.execute(f"DELETE FROM {table.postgres} AS t USING pg_temp.whatspire_db_keys AS k WHERE {same}")
        cursor.execute("DROP TABLE pg_temp.whatspire_db_keys")
    done = 0
    for start in range(0, len(keys), KEYS):
        some = keys[start : start + KEYS]
        condition, parameters = _any_of(columns, some)
        rows = sqlite.execute(table.select(table.written, condition), parameters)
        done += _copy(postgres, table, _held(table, chunks(rows.fetchmany, table.most)), lambda *_: None)
    return done


def _held(table: TransferTable, some: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield chunks of rows that came after the check; refuse what it would have refused."""
    for chunk in some:
        for column, kind, row in _faults(table, table.written, chunk):
            values = {each.name: value for each, value in zip(table.written, row, strict=True)}
            key = shown_key([values[name] for name in table.key])
            raise TransferRefused(
                f"PostgreSQL cannot hold what was written meanwhile in {Finding(kind, table.name, column, key)}",
                f"nothing was copied; correct the row in the source, or give --on {kind}={REPLACE}, and run it again",
            )
        yield chunk


def _faults(table: TransferTable, columns: Sequence[Column], rows: Iterable[Row]) -> Iterator[tuple[str, str, Row]]:
    """Yield the values with a fault that nothing replaces: the column, the kind of the fault and the row."""
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            kind = None if value is None else column.kind.fault(value)
            if kind is not None and not (column.name in table.mended and kind in table.kinds):
                yield column.name, kind, row


def _any_of(columns: Sequence[Column], keys: Sequence[tuple[Any, ...]]) -> tuple[str, list[Any]]:
    """Return the condition for a row to have one of some keys, for each of which SQLite uses the index; its parameters.

    A value that is compared twice is given twice: Python 3.12.0 and 3.12.1 warn of numbered parameters.
    """
    # A column without case finds the row of another key too.
    ways = [("", " COLLATE BINARY") if isinstance(column.kind, TextKind) else ("",) for column in columns]
    parts = [f"{column.quoted} = ?{way}" for column, some in zip(columns, ways, strict=True) for way in some]
    values = [value for key in keys for value, some in zip(key, ways, strict=True) for _ in some]
    same = f"({' AND '.join(parts)})"
    return f"({' OR '.join([same] * len(keys))})", values


def _copy(postgres: Any, table: TransferTable, some: Iterable[Chunk], tell: Tell) -> int:
    count = 0

    def told() -> Iterator[Chunk]:
        nonlocal count
        for chunk in some:
            yield chunk
            count += len(chunk)
            tell(table.name, count)

    with closing(postgres.cursor()) as cursor:
        _send(cursor, table.postgres, table.written, _lines(table.written, table, told()))
    return count


def _send(cursor: Any, place: str, columns: Sequence[Column], lines: Iterable[bytes]) -> None:
    copy_in(cursor, place, [column.quoted for column in columns], lines)


def _lines(columns: Sequence[Column], table: TransferTable, some: Iterable[Chunk]) -> Iterator[bytes]:
    """Yield chunks of rows as COPY takes them, each column converted by itself."""
    for chunk in some:
        texts = [
            column.kind.texts(mend(table, column, values))
            for column, values in zip(columns, zip(*chunk, strict=True), strict=True)
        ]
        yield lines_of(texts)


def mend(table: TransferTable, column: Column, values: Sequence[Any]) -> Sequence[Any]:
    """Return values of a column of a table with those replaced that are to be."""
    if column.name not in table.mended:
        return values
    kind, kinds = column.kind, table.kinds
    return [value if value is None or kind.fault(value) not in kinds else kind.mended(value) for value in values]
