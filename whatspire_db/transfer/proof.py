"""The proof that both sides hold the same rows: counts, and fingerprints of the values as the models read them.

A fingerprint is the sum of a hash of each row, modulo 2^128, so the order of the rows does not matter; unlike XOR, it
notices a row that is there twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from peewee import sqlite3

from .checking import shown_key
from .chunks import Chunk, chunks
from .copying import Tell, mend
from .kinds import BytesKind, IntegerKind, Kind, TextKind, UuidKind
from .tables import Column, TransferTable

MODULUS = 1 << 128
SHOWN = 10  # keys of a table that differ
SORTED_ALIKE = (TextKind, IntegerKind, BytesKind, UuidKind)  # in byte order, or as numbers
Rows = Iterator[Chunk]


@dataclass(frozen=True)
class Print:
    """The rows of a table: how many, and the sum of their hashes."""

    rows: int
    sum: int

    def __str__(self) -> str:
        return f"{self.sum:032x}"


@dataclass(frozen=True)
class TableProof:
    """What a table holds on both sides; `keys` are some of the rows that differ, `differing` how many do."""

    table: str
    sqlite: Print
    postgres: Print
    keys: tuple[str, ...] = ()
    differing: int = 0

    @property
    def is_equal(self) -> bool:
        return self.sqlite == self.postgres

    def __str__(self) -> str:
        if self.is_equal:
            return f"{self.table}: {self.sqlite.rows:,} rows, equal"
        keys = f": {'; '.join(self.keys)}" if self.keys else ""
        counts = f"{self.sqlite.rows:,} rows in SQLite and {self.postgres.rows:,} in PostgreSQL"
        return f"{self.table}: {counts}, {self.differing:,} keys differ{keys}"


def prove(sqlite: sqlite3.Connection, postgres: Any, table: TransferTable, tell: Tell) -> TableProof:
    """Compare a table, each side in the transaction that is open on its connection."""
    ours = _print(table, _of_sqlite(sqlite, table, ""), lambda kind: kind.of_sqlite, tell)
    theirs = _print(table, of_postgres(postgres, table, table.columns), lambda kind: kind.of_postgres, tell)
    if ours == theirs:
        return TableProof(table.name, ours, theirs)
    keys, count = _differences(sqlite, postgres, table)
    return TableProof(table.name, ours, theirs, keys, count)


def _of_sqlite(sqlite: sqlite3.Connection, table: TransferTable, order: str) -> Rows:
    cursor = sqlite.execute(table.select(table.columns) + order)
    for chunk in chunks(cursor.fetchmany, table.most):
        columns = zip(table.columns, zip(*chunk, strict=True), strict=True)
        mended = [mend(table, column, values) for column, values in columns]
        yield list(zip(*mended, strict=True))


def of_postgres(postgres: Any, table: TransferTable, columns: Sequence[Column], order: str = "") -> Rows:
    """Yield chunks of a table's rows, in the transaction that is open on a connection of psycopg2's."""
    names = ", ".join(column.kind.at_postgres(column.quoted) for column in columns)
    # The rows stay at the server, which sends a chunk at a time.
    with closing(postgres.cursor()) as cursor:
        cursor.execute("SET LOCAL extra_float_digits = 1")  # else a role may have set that doubles are rounded
        cursor.execute(f"DECLARE whatspire_db_proof NO SCROLL CURSOR FOR SELECT {names} FROM {table.postgres}{order}")
        yield from chunks(partial(_fetched, cursor), table.most)
        cursor.execute("CLOSE whatspire_db_proof")


def _fetched(cursor: Any, size: int) -> Chunk:
    cursor.execute(f"FETCH {size} FROM whatspire_db_proof")
    rows: Chunk = cursor.fetchall()
    return rows


def _print(table: TransferTable, some: Rows, reader: Callable[[Kind], Callable[[Any], Any]], tell: Tell) -> Print:
    total = rows = 0
    for chunk in some:
        hashes = map(_hash, _read(table.columns, chunk, reader))
        total = (total + sum(int.from_bytes(each, "big") for each in hashes)) % MODULUS
        rows += len(chunk)
        tell(table.name, rows)
    return Print(rows, total)


def _hash(row: tuple[Any, ...]) -> bytes:
    return hashlib.blake2b(repr(row).encode(), digest_size=16).digest()


def _read(
    columns: Sequence[Column], chunk: Sequence[tuple[Any, ...]], reader: Callable[[Kind], Callable[[Any], Any]]
) -> Iterable[tuple[Any, ...]]:
    """Return rows with each value as both sides must read it."""
    read = []
    for column, values in zip(columns, zip(*chunk, strict=True), strict=True):
        of = reader(column.kind)
        read.append([None if value is None else of(value) for value in values])
    return zip(*read, strict=True)


def _differences(sqlite: sqlite3.Connection, postgres: Any, table: TransferTable) -> tuple[tuple[str, ...], int]:
    """Merge both sides in the order of the key, and return some keys that differ, and how many."""
    columns = [table.column(name) for name in table.key]
    if not columns or not all(isinstance(column.kind, SORTED_ALIKE) for column in columns):
        return (), 0
    places = [table.columns.index(column) for column in columns]
    ours = _of_sqlite(sqlite, table, _order(columns, "COLLATE BINARY"))
    theirs = of_postgres(postgres, table, table.columns, _order(columns, 'COLLATE pg_catalog."C"'))
    shown, count = [], 0
    for key in _merged(
        _keyed(table, ours, lambda kind: kind.of_sqlite, places),
        _keyed(table, theirs, lambda kind: kind.of_postgres, places),
    ):
        count += 1
        if count <= SHOWN:
            shown.append(shown_key(key))
    return tuple(shown), count


def _order(columns: Sequence[Column], collate: str) -> str:
    return " ORDER BY " + ", ".join(
        f"{column.quoted} {collate if isinstance(column.kind, TextKind) else ''}" for column in columns
    )


def _keyed(
    table: TransferTable, some: Rows, reader: Callable[[Kind], Callable[[Any], Any]], places: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], bytes]]:
    for chunk in some:
        for row in _read(table.columns, chunk, reader):
            yield tuple(row[place] for place in places), _hash(row)


def _merged(
    ours: Iterator[tuple[tuple[Any, ...], bytes]], theirs: Iterator[tuple[tuple[Any, ...], bytes]]
) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that one side alone has, and those whose rows differ."""
    left, right = next(ours, None), next(theirs, None)
    while left is not None or right is not None:
        if right is None or (left is not None and _sortable(left[0]) < _sortable(right[0])):
            assert left is not None
            yield left[0]
            left = next(ours, None)
        elif left is None or _sortable(right[0]) < _sortable(left[0]):
            yield right[0]
            right = next(theirs, None)
        else:
            if left[1] != right[1]:
                yield left[0]
            left, right = next(ours, None), next(theirs, None)


def _sortable(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.encode(errors="surrogateescape") if isinstance(each, str) else each for each in key)
