"""Finds, before anything is copied, every value and row of SQLite that PostgreSQL cannot hold or would change."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import peewee
from peewee import sqlite3

from ..errors import printable
from ..messages import sqlstate
from ..migrate.ddl import quote
from ..migrate.engines.base import discarded
from ..migrate.schema import Constraint, Index, label
from . import faults
from .chunks import chunks
from .faults import REFUSE, REPLACE, SET_ASIDE, Finding
from .kinds import BytesKind, IntegerKind, Kind, TextKind
from .tables import Column, TransferTable, joined

SHOWN = 20  # findings of one kind and choice in one column that are listed; the others are counted
LONGEST_KEY = 80  # characters
# An index takes rows of 2704 bytes, and long values are compressed first: whether one fits, the server says.
INDEX_BYTES = 2600
PROGRAM_LIMIT = "54000"


@dataclass(frozen=True)
class Fault:
    """A row with a fault: the kind, the column, and what the row's identity and its key are."""

    kind: str
    column: str
    identity: tuple[Any, ...]
    key: tuple[Any, ...]
    is_replaceable: bool = True


@dataclass
class Checked:
    """What a check found. `findings` has the first ones, and `more` counts the others.

    `tables` are those to transfer, with the columns in which values are replaced and the rows that are set aside.
    `has_log`: the source has the change log of a live transfer, which runs, or was killed.
    """

    tables: list[TransferTable] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[str, str, str, str, bool]] = field(default_factory=Counter)  # as in a Finding, without keys
    refused: int = 0
    replaced: int = 0
    set_aside: int = 0
    has_log: bool = False

    @property
    def more(self) -> int:
        return sum(self.counts.values()) - len(self.findings)


def check(
    sqlite: sqlite3.Connection,
    tables: Sequence[TransferTable],
    choices: Mapping[str, str],
    fits_index: Callable[[TransferTable, Index, Sequence[Any]], bool],
    tell: Callable[[str], None],
) -> Checked:
    """Look at all rows in the transaction that is open on SQLite, and return what was found.

    :param choices: what to do about each kind of fault.
    :param fits_index: asks PostgreSQL whether it takes values of an index's columns.
    :param tell: is called with the name of each table.
    """
    checking = _Checking(sqlite, choices)
    for number, table in enumerate(tables):
        tell(table.name)
        checking.begin(number, table)
        for look in (_values, _texts):
            checking.note(table, look(sqlite, checking.current(table)))
        for index, are_nulls_equal in _unique(table):
            checking.note(table, _duplicates(sqlite, checking.current(table), index, are_nulls_equal))
        checking.note(table, _too_long(sqlite, checking.current(table), fits_index))
    by_name = {table.name: table for table in tables}
    while True:  # a row that is set aside may leave others without the row that they refer to
        before = checking.checked.set_aside
        for table in tables:
            checking.note(table, _orphans(sqlite, checking, table, by_name))
        if checking.checked.set_aside == before:
            break
    checking.checked.tables = [checking.current(table) for table in tables]
    return checking.checked


class _Checking:
    """Notes faults, and for each table which columns need mending and which rows are set aside."""

    def __init__(self, sqlite: sqlite3.Connection, choices: Mapping[str, str]) -> None:
        self.sqlite, self.choices = sqlite, choices
        self.checked = Checked()
        self._mended: defaultdict[str, set[str]] = defaultdict(set)
        self._left_out: dict[str, tuple[str, int]] = {}

    def begin(self, number: int, table: TransferTable) -> None:
        """Make the temporary table for the rows of a table that are set aside; the source's file stays as it is."""
        name = f"temp.whatspire_db_left_out_{number}"
        columns = ", ".join(f"c{place}" for place in range(len(table.identity)))
        self.sqlite.execute(f"DROP TABLE IF EXISTS {name}")
        self.sqlite.execute(f"CREATE TEMP TABLE {name[5:]} ({columns}, PRIMARY KEY ({columns}))")
        self._left_out[table.name] = (name, 0)

    def current(self, table: TransferTable) -> TransferTable:
        """Return a table with what is known of it so far."""
        name, rows = self._left_out.get(table.name, ("", 0))
        return table.with_faults(frozenset(self._mended[table.name]), name if rows else "")

    def note(self, table: TransferTable, found: Iterable[Fault]) -> None:
        """Count faults, list the first of them, and do what was chosen about their kinds."""
        for fault in found:
            choice = self.choices[fault.kind]
            if choice == REPLACE and not fault.is_replaceable:  # NULL alone could be put there, and is refused
                choice = REFUSE
            if choice == SET_ASIDE and not self._set_aside(table, fault):
                continue  # the row is out already, for another fault
            alike = (fault.kind, table.name, fault.column, choice, fault.is_replaceable)
            self.checked.counts[alike] += 1
            if self.checked.counts[alike] <= SHOWN:
                self.checked.findings.append(Finding(*alike[:3], shown_key(fault.key), *alike[3:]))
            self.checked.refused += choice == REFUSE
            self.checked.replaced += choice == REPLACE
            if choice == REPLACE:
                self._mended[table.name].add(fault.column)

    def _set_aside(self, table: TransferTable, fault: Fault) -> bool:
        name, rows = self._left_out[table.name]
        marks = ", ".join("?" * len(fault.identity))
        added = self.sqlite.execute(f"INSERT OR IGNORE INTO {name} VALUES ({marks})", fault.identity).rowcount
        self._left_out[table.name] = (name, rows + added)
        self.checked.set_aside += added
        return bool(added)

    def remaining(self, table: TransferTable | None, alias: str) -> str:
        """Return the condition for a row of the other table of a reference that is not set aside."""
        name, rows = self._left_out[table.name] if table else ("", 0)
        if not (table and rows):
            return "1"
        return f"({', '.join(f'{alias}.{each}' for each in table.identity)}) NOT IN (SELECT * FROM {name})"


def shown_key(key: Sequence[Any]) -> str:
    """Return a key as messages show it: one line, not too long."""
    parts = (each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in key)
    text = printable(", ".join(parts)).encode(errors="replace").decode()
    return text if len(text) <= LONGEST_KEY else f"{text[:LONGEST_KEY]}..."


def _read(
    sqlite: sqlite3.Connection, table: TransferTable, columns: Sequence[str], where: str
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]]:
    """Yield identity, key and the values of columns, for the rows that a condition holds for."""
    key = [quote(name) for name in table.key] or list(table.identity)
    first, second = len(table.identity), len(table.identity) + len(key)
    names = ", ".join([*table.identity, *key, *columns])
    cursor = sqlite.execute(f"SELECT {names} FROM {table.sqlite} WHERE {table.remaining} AND ({where})")
    for chunk in chunks(cursor.fetchmany, table.most):  # of some kinds of columns every row is looked at
        for row in chunk:
            yield row[:first], row[first:second], row[second:]


def _values(sqlite: sqlite3.Connection, table: TransferTable) -> Iterator[Fault]:
    """Yield the faults of single values: SQLite picks the rows that need a look."""
    doubts = [_doubt(column.kind, column.quoted) for column in table.written]
    names = [column.quoted for column in table.written]
    for identity, key, values in _read(sqlite, table, names, joined((f"({doubt})" for doubt in doubts), " OR ")):
        for column, value in zip(table.written, values, strict=True):
            kind = column.kind.fault(value) if value is not None else faults.NULL if column.kind.not_null else None
            if kind is not None and kind != faults.ENCODING:  # which `_texts` finds, in these rows too
                is_replaceable = not column.kind.not_null or column.kind.mended(value) is not None
                yield Fault(kind, column.name, identity, key, is_replaceable)


def _doubt(kind: Any, column: str) -> str:
    return f"{kind.doubt(column)} OR {column} IS NULL" if kind.not_null else str(kind.doubt(column))


def _texts(sqlite: sqlite3.Connection, table: TransferTable) -> Iterator[Fault]:
    """Yield the texts that are not UTF-8, which no function of SQLite's tells."""
    columns = [column for column in table.written if column.kind.reads_text]
    if not columns:
        return
    cursor = sqlite.execute(table.select(columns))
    if not any(map(_has_wrong_bytes, chunks(cursor.fetchmany, table.most))):
        return
    for identity, key, values in _read(sqlite, table, [column.quoted for column in columns], "1"):
        for column, value in zip(columns, values, strict=True):
            if isinstance(value, str) and column.kind.fault(value) == faults.ENCODING:
                yield Fault(faults.ENCODING, column.name, identity, key)


def _has_wrong_bytes(rows: Sequence[tuple[Any, ...]]) -> bool:
    try:
        for column in zip(*rows, strict=True):
            "\n".join([value for value in column if isinstance(value, str)]).encode()
    except UnicodeEncodeError:
        return True
    return False


def _duplicates(
    sqlite: sqlite3.Connection, table: TransferTable, index: Sequence[str], are_nulls_equal: bool
) -> Iterator[Fault]:
    """Yield the rows behind the first of those that share the values of a unique index."""
    columns = [table.column(name) for name in index]
    if not all(_is_equal_alike(column.kind) and column.name not in table.mended for column in columns):
        yield from _equal_values(sqlite, table, index, are_nulls_equal)
        return
    if not are_nulls_equal and frozenset(index) in _unique_already(sqlite, table):
        return
    names = [column.quoted for column in columns]
    parts = ", ".join(f"{name} COLLATE BINARY" for name in names)
    filled = "1" if are_nulls_equal else " AND ".join(f"{name} IS NOT NULL" for name in names)
    identity, key = ", ".join(table.identity), ", ".join(quote(name) for name in table.key)
    rows = sqlite.execute(
        f"SELECT * FROM (SELECT {', '.join(filter(None, [identity, key]))}, row_number() OVER (PARTITION BY {parts} "
        f"ORDER BY {identity}) AS place FROM {table.sqlite} WHERE {table.remaining} AND {filled}) WHERE place > 1"
    ).fetchall()
    width = len(table.identity)
    for row in rows:
        yield Fault(faults.DUPLICATE, ", ".join(index), row[:width], row[width:-1] or row[:width])


def _replaced(table: TransferTable, column: Column, value: Any) -> Any:
    """Return a value, or what takes its place."""
    if value is None or column.name not in table.mended or column.kind.fault(value) is None:
        return value
    return column.kind.mended(value)


def _is_equal_alike(kind: Kind) -> bool:
    """Tell whether SQLite itself finds those values equal, byte by byte, that PostgreSQL finds equal."""
    return isinstance(kind, TextKind | IntegerKind | BytesKind) and kind.name != "character"


def _unique_already(sqlite: sqlite3.Connection, table: TransferTable) -> set[frozenset[str]]:
    """Return the columns that SQLite itself keeps unique, byte by byte."""
    found = sqlite.execute(
        "SELECT i.name, json_group_array(x.name), min(x.coll = 'BINARY') FROM pragma_index_list(?) AS i, "
        'pragma_index_xinfo(i.name) AS x WHERE i."unique" AND NOT i.partial AND x.key GROUP BY i.name',
        [table.source],
    )
    names = {column.name.lower(): column.name for column in table.columns}
    columns = (json.loads(listed) for _, listed, is_binary in found if is_binary)
    return {frozenset(names.get(str(name).lower(), "") for name in each) for each in columns}


def _equal_values(
    sqlite: sqlite3.Connection, table: TransferTable, index: Sequence[str], are_nulls_equal: bool
) -> Iterator[Fault]:
    """Yield duplicates among values that PostgreSQL reads alike although they are written differently, or replaced."""
    columns = [table.column(name) for name in index]
    seen = set()
    for identity, key, given in _read(sqlite, table, [column.quoted for column in columns], "1"):
        values = [_replaced(table, column, value) for column, value in zip(columns, given, strict=True)]
        pairs = [(column.kind, value) for column, value in zip(columns, values, strict=True)]
        if any(kind.fault(value) if value is not None else not are_nulls_equal for kind, value in pairs):
            continue
        read = tuple(None if value is None else kind.of_sqlite(value) for kind, value in pairs)
        if read in seen:
            yield Fault(faults.DUPLICATE, ", ".join(index), identity, key)
        seen.add(read)


def _unique(table: TransferTable) -> list[tuple[tuple[str, ...], bool]]:
    """Return the columns of what PostgreSQL keeps unique, where no expression or condition is part of it.

    With each goes whether one NULL there is equal to another.
    """
    names = {column.name for column in table.columns}
    found = [(index.columns, index.nulls_not_distinct) for index in table.indexes if index.unique and not index.is_text]
    found += [(each.columns, False) for each in table.constraints if each.kind == "primary_key"]
    return [each for each in dict.fromkeys(found) if each[0] and names.issuperset(each[0])]


def _too_long(
    sqlite: sqlite3.Connection,
    table: TransferTable,
    fits_index: Callable[[TransferTable, Index, Sequence[Any]], bool],
) -> Iterator[Fault]:
    """Yield the rows that a B-tree index of PostgreSQL has no room for."""
    names = {column.name for column in table.columns}
    keys = [Index(each.name, (), method="btree") for each in table.constraints if each.kind == "primary_key"]
    for index in [*table.indexes, *keys]:
        wanted = index.columns or next((c.columns for c in table.constraints if c.name == index.name), ())
        if index.method not in ("", "btree") or not wanted or not names.issuperset(wanted):
            continue
        quoted = [table.column(name).quoted for name in wanted]
        size = " + ".join(f"coalesce(length(CAST({name} AS BLOB)), 0)" for name in quoted)
        for identity, key, values in _read(sqlite, table, quoted, f"{size} > {INDEX_BYTES}"):
            columns = [table.column(name) for name in wanted]
            if any(value is not None and c.kind.fault(value) for c, value in zip(columns, values, strict=True)):
                continue
            if not fits_index(table, Index(index.name, index.keys, include=wanted), values):
                yield Fault(faults.INDEX, ", ".join(wanted), identity, key)


def asks_postgres(db: peewee.Database) -> Callable[[TransferTable, Index, Sequence[Any]], bool]:
    """Return what asks a server whether an index takes values; it tries, in a transaction that is rolled back."""

    def fits(table: TransferTable, index: Index, values: Sequence[Any]) -> bool:
        columns = [table.column(name) for name in index.include]
        are_bytes = [isinstance(column.kind, BytesKind) for column in columns]
        types = ", ".join(f"c{n} pg_catalog.{'bytea' if is_ else 'text'}" for n, is_ in enumerate(are_bytes))
        names = ", ".join(f"c{place}" for place in range(len(columns)))
        read = [v if v is None or is_ else str(v) for v, is_ in zip(values, are_bytes, strict=True)]
        marks = ", ".join(["%s"] * len(columns))
        try:
            with discarded(db):
                db.execute_sql(f"CREATE TEMPORARY TABLE whatspire_db_probe ({types})")
                db.execute_sql(f"CREATE INDEX ON pg_temp.whatspire_db_probe ({names})")
                db.execute_sql(f"INSERT INTO pg_temp.whatspire_db_probe VALUES ({marks})", read)
        except peewee.PeeweeException as error:
            if sqlstate(error) != PROGRAM_LIMIT:
                raise
            return False
        return True

    return fits


def _orphans(
    sqlite: sqlite3.Connection, checking: _Checking, child: TransferTable, by_name: Mapping[str, TransferTable]
) -> Iterator[Fault]:
    """Yield the rows that refer to a row that is not there, or is set aside."""
    table = checking.current(child)
    for constraint in table.constraints:
        if constraint.kind == "foreign_key" and constraint.references:
            parent = by_name.get(label(constraint.references))
            yield from _orphans_of(sqlite, table, constraint, parent, checking.remaining(parent, "p"))


def _orphans_of(
    sqlite: sqlite3.Connection,
    table: TransferTable,
    constraint: Constraint,
    parent: TransferTable | None,
    remaining: str,
) -> Iterator[Fault]:
    """Yield the rows of a table that a foreign key of PostgreSQL's would refuse.

    :param remaining: the condition for a row of the other table, p, that is not set aside.
    """
    own = [table.column(name).quoted for name in constraint.columns]
    missing = "1"
    if parent is not None:
        pairs = zip((f"p.{quote(name)}" for name in constraint.referenced_columns), own, strict=True)
        # By the column's own collation for its index, and byte by byte, as PostgreSQL compares.
        same = " AND ".join(f"{there} = o.{here} AND {there} = o.{here} COLLATE BINARY" for there, here in pairs)
        missing = f"NOT EXISTS (SELECT 1 FROM {parent.sqlite} AS p WHERE {same} AND {remaining})"
    identity = ", ".join(f"o.{each}" for each in table.identity)
    filled = " AND ".join(f"o.{name} IS NOT NULL" for name in own)
    where = (
        f"({', '.join(table.identity)}) IN (SELECT {identity} FROM {table.sqlite} AS o WHERE {filled} AND {missing})"
    )
    for identity_, key, _ in _read(sqlite, table, [], where):
        yield Fault(faults.ORPHAN, ", ".join(constraint.columns), identity_, key)
