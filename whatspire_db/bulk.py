"""Many rows at once into the table of a model: by COPY where there is COPY, in batches that are transactions."""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import peewee
from peewee import Node

from .copy_in import ESCAPES, NULL_TEXT, copy_in, lines_of
from .errors import ValueRefused
from .models.unreadable import in_the_row
from .peewee_compat import peewee_errors
from .sql import quoted

BATCH_ROWS = 1000
MOST_PARAMETERS = 32_000  # of a statement: SQLite takes 32,766, and PostgreSQL 65,535
Row = Sequence[Any]
Progress = Callable[[int], object]


def bulk_insert(
    model: Any,
    rows: Iterable[Any],
    fields: Sequence[Any] | None = None,
    *,
    batch_rows: int = BATCH_ROWS,
    progress: bool | Progress = False,
) -> int:
    """Insert many rows and return how many; defaults and values are those of the model's fields, as for insert_many().

    Each batch is a transaction: whatever ends the call, a kill included, leaves whole batches. Within a transaction of
    the caller's, it all depends on that one. Instances get no keys.

    :param rows: dicts by field, or instances, or sequences of values in the order of `fields`; a generator will do.
    :param fields: the fields, or their names; default: those of the first row. What a dict or an instance has beside
        them is refused.
    :param batch_rows: how many rows a transaction has.
    :param progress: True draws a bar on stderr; a function is called with the number of rows done after each batch.
    :raises ValueRefused: for a value that its column cannot hold; names column and row. Batches before it stay.
    """
    if isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1:
        raise ValueRefused(f"batch_rows is {batch_rows!r}, which is not a number of rows", "give a number from 1 on")
    given = iter(rows)
    first = next(given, None)
    if first is None:
        return 0
    db = model._meta.get_database_instance()
    load = _Load(db, model, _columns(model, first, fields))
    done = 0
    with _told(progress, rows) as tell:
        values = load.values(_chained(first, given))
        while batch := list(islice(values, batch_rows)):
            with db.atomic():
                load.insert(batch)
            done += len(batch)
            tell(done)
    return done


def _chained(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


@contextmanager
def _told(progress: bool | Progress, rows: Any) -> Iterator[Progress]:
    if progress is not True:
        yield progress or (lambda done: None)
        return
    from tqdm import tqdm  # only where a bar is drawn

    with tqdm(total=len(rows) if hasattr(rows, "__len__") else None, unit=" rows", unit_scale=True) as bar:
        yield lambda done: bar.update(done - bar.n)


def _columns(model: Any, first: Any, fields: Sequence[Any] | None) -> list[peewee.Field]:
    """Return the fields that are written: those of the first row, and those that have a default."""
    named = fields if fields is not None else list(_named(first))
    if not named:
        raise ValueRefused(
            f"a row for {model._meta.table_name} is a {type(first).__name__}, which names no fields",
            "give dicts by field, or instances, or the list of fields",
        )
    combined = model._meta.combined
    found: list[peewee.Field] = []
    for name in named:
        field = combined.get(name if isinstance(name, str) else getattr(name, "name", None))
        if field is None:
            raise ValueRefused(f"{model._meta.table_name} has no field {name!r}", "name the fields of the model")
        if any(field is one for one in found):
            raise ValueRefused(f"{model._meta.table_name} is given {field.name} twice", "name each field once")
        found.append(field)
    given = {field.name for field in found}
    return found + [f for f in model._meta.sorted_fields if f.default is not None and f.name not in given]


def _named(row: Any) -> Iterable[Any]:
    if isinstance(row, peewee.Model):
        fields = row._meta.fields
        return [name for name, value in row.__data__.items() if value is not None or fields[name].null]
    return row if isinstance(row, Mapping) else ()


@dataclass
class _Load:
    """The rows of one call: into which columns, and how."""

    db: Any
    model: Any
    columns: list[peewee.Field]

    @property
    def _names(self) -> list[str]:
        return [quoted(field.column_name) for field in self.columns]

    @property
    def _table(self) -> str:
        meta = self.model._meta
        return ".".join(quoted(part) for part in (meta.schema, meta.table_name) if part)

    def values(self, rows: Iterable[Any]) -> Iterator[Row]:
        """Yield the values of rows as the driver takes them; expressions as they are."""
        for number, row in enumerate(rows, 1):
            plain = self._given(row, number)
            try:
                yield [self._stored(field, value) for field, value in zip(self.columns, plain, strict=True)]
            except ValueRefused as error:
                raise ValueRefused(f"{error.fact}, {self._place(plain, number)}", error.hint) from None

    def _given(self, row: Any, number: int) -> list[Any]:
        if isinstance(row, (Mapping, peewee.Model)):
            named = self._by_name(row, number)
            return [named[f.name] if f.name in named else self._default(f, number) for f in self.columns]
        given = list(row)
        if len(given) > len(self.columns):
            raise ValueRefused(f"row {number:,} has {len(given)} values", f"give the {len(self.columns)} of the fields")
        return given + [self._default(field, number) for field in self.columns[len(given) :]]

    def _by_name(self, row: Any, number: int) -> dict[str, Any]:
        """Return the values of a row by the names of their fields."""
        combined, found = self.model._meta.combined, {}
        if isinstance(row, peewee.Model):
            known = {field.name for field in self.columns}
            found = {name: value for name, value in row.__data__.items() if value is not None or name in known}
        else:
            for key, value in row.items():
                field = combined.get(key if isinstance(key, str) else getattr(key, "name", None))
                found[key if field is None else field.name] = value
        if more := found.keys() - {field.name for field in self.columns}:
            raise ValueRefused(
                f"row {number:,} for {self.model._meta.table_name} has a field {min(map(str, more))}, and the first "
                "row does not",
                "give every row the same fields, or the list of fields",
            )
        return found

    def _default(self, field: Any, number: int) -> Any:
        if field.default is None and not field.null:
            raise ValueRefused(f"row {number:,} lacks {field.name}, which the first row has", "give it in every row")
        return field.default() if callable(field.default) else field.default

    def _stored(self, field: Any, value: Any) -> Any:
        stored = value if isinstance(value, Node) else field.db_value(value)
        if not isinstance(stored, Node):
            return stored
        sql, params = self.db.get_sql_context().sql(stored).query()
        return params[0] if sql == self.db.param and len(params) == 1 else stored

    def _place(self, plain: Row, number: int) -> str:
        keys = {key.name for key in self.model._meta.get_primary_keys()}
        pairs = zip(self.columns, plain, strict=True)
        known = in_the_row((field.column_name, value) for field, value in pairs if field.name in keys)
        return known or f"in row {number:,} of those given"

    def insert(self, batch: Sequence[Row]) -> None:
        """Insert rows in the transaction that is open: what neither COPY nor executemany takes by INSERT."""
        if any(isinstance(value, Node) for row in batch for value in row):
            return self._by_query(batch)
        if not isinstance(self.db, peewee.SqliteDatabase):
            return self._by_copy(batch)
        marks = ", ".join(self.db.param for _ in self.columns)
        sql = f"INSERT INTO {self._table} ({', '.join(self._names)}) VALUES ({marks})"
        with peewee_errors, closing(self.db.cursor()) as cursor:
            cursor.executemany(sql, batch)
        return None

    def _by_query(self, batch: Sequence[Row]) -> None:
        rows = [[value if isinstance(value, Node) else _AsIs(value) for value in row] for row in batch]
        at_once = max(1, MOST_PARAMETERS // len(self.columns))
        for start in range(0, len(rows), at_once):
            self.model.insert_many(rows[start : start + at_once], fields=self.columns).as_rowcount().execute()

    def _by_copy(self, batch: Sequence[Row]) -> None:
        with peewee_errors, closing(self.db.cursor()) as cursor:
            try:
                lines = lines_of([[_text(value) for value in column] for column in zip(*batch, strict=True)])
            except _NoText:
                return self._by_query(batch)
            if not hasattr(cursor, "copy_expert"):  # another driver than psycopg2
                return self._by_query(batch)
            copy_in(cursor, self._table, self._names, [lines])
        return None


class _AsIs(peewee.Value):
    """A value that a field has converted already."""

    def __init__(self, value: Any) -> None:
        super().__init__(value, converter=False, unpack=False)


class _NoText(Exception):
    """A value of a kind whose text only the driver knows."""


def _text(value: Any) -> str:
    """Return a value as COPY takes it."""
    if value is None:
        return NULL_TEXT
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, str):
        return value.translate(ESCAPES)
    if type(value) in (int, float, decimal.Decimal, uuid.UUID):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):  # datetimes are dates
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "\\\\x" + bytes(value).hex()
    raise _NoText
