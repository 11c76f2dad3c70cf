"""SQLite: what a comment says of drift that is mended: what may be lost, and which rows are in the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.migrate.ddl import quote
from whatspire_db.migrate.diff import Drift
from whatspire_db.migrate.mending import DriftedTable, loses_vectors, vectors_lost
from whatspire_db.migrate.schema import Column, Constraint, Index, Table

if TYPE_CHECKING:
    from .engine import SqliteEngine


def duplicates(table: str, columns: Sequence[str]) -> str:
    """Return the remark on rows that a unique key or index would refuse as duplicates."""
    listed = ", ".join(columns)
    return f"rows in the way: SELECT {listed}, count(*) FROM {table} GROUP BY {listed} HAVING count(*) > 1"


def lost_vectors(table: DriftedTable) -> dict[str, tuple[Column, Column]]:
    """Return the columns whose vectors cannot be kept, as declared and as they are, by their names."""
    pairs = ((d.name, d.wanted, d.got) for d in table.of_kind("column_type"))
    return {
        name: (wanted, got)
        for name, wanted, got in pairs
        if isinstance(wanted, Column) and isinstance(got, Column) and loses_vectors(wanted, got, casts=False)
    }


def has_values(engine: SqliteEngine, table: str, column: str) -> bool:
    """Return whether a column holds anything but NULL."""
    return bool(engine.ask(f"SELECT EXISTS (SELECT 1 FROM {quote(table)} WHERE {quote(column)} IS NOT NULL)"))


def remarks(engine: SqliteEngine, table: DriftedTable, made: Table, name: str) -> Iterator[str]:
    """Yield what may be lost, and which rows may be in the way."""
    yield "the table is made anew under the database's write lock: all its rows are copied"
    lost = lost_vectors(table)
    for column, (wanted, got) in lost.items():
        if has_values(engine, name, column):
            yield vectors_lost(f"{quote(name)}.{quote(column)}", wanted, got)
    for drift in table.drift:
        if not (isinstance(drift.wanted, Constraint) and lost.keys() & set(drift.wanted.columns)):
            yield from _remark(engine, quote(name), drift)
    if "AUTOINCREMENT" in table.live.options and "AUTOINCREMENT" not in made.options:
        yield "without AUTOINCREMENT, the highest key that was ever used is forgotten: keys of deleted rows come again"


def _changed(old: str, new: str, column: str) -> Iterator[tuple[str, str]]:
    """Yield which values of a column another affinity changes (https://sqlite.org/datatype3.html), and how."""
    if new == "text" and old != "text":
        lost = f"CAST(CAST({column} AS text) AS real) <> {column}"
        yield "a text of a real number can have fewer digits", f"typeof({column}) = 'real' AND {lost}"
    if new == "real" and old != "real":
        inexact = f"CAST({column} AS real) <> {column}"
        yield "integers beyond 2^53 are rounded", f"typeof({column}) = 'integer' AND {inexact}"
    if new in ("integer", "number", "real") and old in ("text", "blob"):
        is_number = f"typeof({column}) = 'text' AND CAST({column} AS numeric) = {column}"
        as_new = f"CAST(CAST({column} AS {'real' if new == 'real' else 'numeric'}) AS text)"
        yield "texts that are numbers become numbers, '007' becomes 7", f"{is_number} AND {as_new} <> {column}"


def _remark(engine: SqliteEngine, name: str, drift: Drift) -> Iterator[str]:
    wanted, got = drift.wanted, drift.got
    column = quote(drift.name)
    if isinstance(wanted, Column) and isinstance(got, Column):
        if drift.kind == "column_null" and wanted.not_null:
            yield f"rows in the way: SELECT * FROM {name} WHERE {column} IS NULL"
        if drift.kind == "column_type":
            changed = _changed(engine.family(str(got.type)), engine.family(str(wanted.type)), column)
            yield from (f"{what}: SELECT * FROM {name} WHERE {which}" for what, which in changed)
        if drift.kind == "column_generated" and wanted.generated:
            yield f"what {column} holds now is lost: its expression takes the place of each value"
    elif isinstance(wanted, Constraint) and wanted.kind == "check":
        yield f"rows in the way: SELECT * FROM {name} WHERE NOT {wanted.definition.removeprefix('CHECK ')}"
    elif isinstance(wanted, Constraint) and wanted.kind == "foreign_key":
        yield f"rows in the way: PRAGMA foreign_key_check({name}); those that were so before do not count"
    elif isinstance(wanted, Constraint):
        yield duplicates(name, list(map(quote, wanted.columns)))
    elif isinstance(wanted, Index) and wanted.unique:
        yield duplicates(name, [k.expression for k in wanted.keys])
    elif isinstance(wanted, Table) and "STRICT" in wanted.options and "STRICT" not in getattr(got, "options", ()):
        yield "values that are not of their column's type are in the way: STRICT refuses them"
