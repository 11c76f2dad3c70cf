"""PostgreSQL into a SQLite file that is new, or whose tables are empty: a copy for a laptop, with the same proof.

All rows come in one transaction of the file, and from one snapshot of the server.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from peewee import sqlite3

from ..data.records import DataMigrationRecord
from ..errors import TransferRefused, ValueRefused
from ..messages import CONSTRAINT, first_line, primary
from ..migrate.ddl import quote
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.engines.sqlite.engine import SqliteEngine
from ..migrate.schema import Schema, folded_ascii, label
from . import records
from .checking import shown_key
from .faults import ORPHAN, Finding
from .opening import Ends, connected
from .proof import of_postgres, prove
from .reports import Report, TableReport
from .steps import Wishes, migrate, recorded, require_proved, snapshot, teller
from .tables import Column, TransferTable, is_ours, require_left, transfer_tables, transferred
from .time_kinds import InstantKind

NOT_HELD = "SQLite does not hold NaN, or decimals with more than 15 digits; else look for triggers on its tables"

NO_INSTANT = "a time that is infinite, or not of the years 1 to 9999"
CORRECT = "nothing was copied; correct the row in the source"
_ORPHANS = """
SELECT "rowid", fkid, (SELECT count(*) FROM pragma_foreign_key_check(?1, 'main'))
FROM pragma_foreign_key_check(?1, 'main') LIMIT 1
"""
_REFERENCE = "SELECT \"from\" FROM pragma_foreign_key_list(?, 'main') WHERE id = ? ORDER BY seq LIMIT 1"


def transfer(ends: Ends, wishes: Wishes) -> Report:
    """Do a transfer and return its report; see `whatspire_db.transfer.transfer`."""
    started = time.monotonic()
    with connected(ends.source, "--from") as source:
        postgres = PostgresEngine(source, wishes.trust_source)
        with connected(ends.target, "--to") as target:
            sqlite = SqliteEngine(target)
            with sqlite.work_lock(wishes.wait_seconds):
                _require_empty(target, wishes)
                migrate(target, wishes, with_data=postgres.has_table(postgres.key(DataMigrationRecord)))
                with recorded(sqlite, ends) as number, snapshot(postgres):
                    done = _load(sqlite, postgres, wishes, number)
    return Report(ends, tuple(done), time.monotonic() - started)


def _require_empty(target: Any, wishes: Wishes) -> None:
    """Refuse a file whose tables have rows, whoever made them."""
    there = {folded_ascii(name) for name in target.get_tables()}
    names = [model._meta.table_name for model in transferred(wishes.models)]
    found = [name for name in names if folded_ascii(name) in there]
    if filled := [name for name in found if target.execute_sql(f"SELECT 1 FROM {quote(name)} LIMIT 1").fetchone()]:
        raise TransferRefused(
            f"the target has rows already: {', '.join(filled)}",
            "name a new file, or one whose tables are empty; a transfer does not mix rows",
        )


def _load(sqlite: SqliteEngine, postgres: PostgresEngine, wishes: Wishes, number: int) -> list[TableReport]:
    """Bring the rows over and prove them, in one transaction of the file."""
    target, source = sqlite.db, postgres.db.connection()
    live = postgres.snapshot([postgres.key(model) for model in transferred(wishes.models)])
    _require_known(postgres, live, wishes)
    with target.atomic("IMMEDIATE"):
        target.execute_sql("PRAGMA defer_foreign_keys = ON")  # rows may refer to later ones, until the commit
        tables = transfer_tables(target.connection(), postgres, live, wishes.models)
        seconds = [_copied(source, target.connection(), table, wishes) for table in tables]
        _require_parents(target, tables)
        proofs = [prove(target.connection(), source, table, teller(wishes.watcher, "prove")) for table in tables]
        require_proved(proofs, NOT_HELD)
        reports = [
            TableReport(proof.table, proof.sqlite.rows, str(proof.sqlite), taken)
            for proof, taken in zip(proofs, seconds, strict=True)
        ]
        records.keep_finished(sqlite, records.finished_in_postgres(postgres))
        records.end(sqlite, number, records.PROVED, tables=[report.to_json() for report in reports])
    return reports


def _require_known(postgres: PostgresEngine, live: Schema, wishes: Wishes) -> None:
    """Refuse a source with tables or columns without a model, and code that a superuser would run."""
    models = {postgres.key(model): model for model in transferred(wishes.models)}
    strangers = [label(key) for key in live.others if not is_ours(key[1])]
    for key, table in live.tables.items():
        fields = {postgres.fold(field.column_name) for field in models[key]._meta.sorted_fields}
        strangers += [f"{label(key)}.{name}" for name in table.columns if name not in fields]
        if found := postgres.untrusted_table(models[key]):
            raise found
    require_left(strangers, wishes.leave)


def _copied(source: Any, target: Any, table: TransferTable, wishes: Wishes) -> float:
    """Copy a table and return the seconds that it took."""
    started, done = time.monotonic(), 0
    columns = table.written
    marks = ", ".join("?" * len(columns))
    insert = f"INSERT INTO {table.sqlite} ({', '.join(c.quoted for c in columns)}) VALUES ({marks})"
    try:
        for chunk in of_postgres(source, table, columns):
            target.executemany(insert, _readable(table, chunk))
            done += len(chunk)
            wishes.watcher.progress("copy", table.name, done, None)
    except sqlite3.DatabaseError as error:
        if primary(error) != CONSTRAINT:
            raise
        raise TransferRefused(
            f"SQLite refused rows of {table.name}: {first_line(error)}",
            "nothing was copied; correct the rows in the source, or what the target's table asks of them",
        ) from error
    return time.monotonic() - started


def _require_parents(target: Any, tables: Sequence[TransferTable]) -> None:
    """Refuse references to rows that are not there, which PostgreSQL keeps where a constraint is NOT VALID.

    The commit would refuse them too, and name none.
    """
    if not target.execute_sql("PRAGMA foreign_keys").fetchone()[0]:
        return
    for table in tables:
        if orphan := target.execute_sql(_ORPHANS, (table.source,)).fetchone():
            rowid, reference, count = orphan
            (column,) = target.execute_sql(_REFERENCE, (table.source, reference)).fetchone()
            finding = Finding(ORPHAN, table.name, column, _key_of(target, table, rowid))
            more = f"; and {count - 1:,} more" if count > 1 else ""
            raise TransferRefused(f"SQLite cannot hold what is in {finding}{more}", CORRECT)


def _key_of(target: Any, table: TransferTable, rowid: int | None) -> str:
    """Return the key of a row as messages show it; a table WITHOUT ROWID does not tell it."""
    if rowid is None or not table.key:
        return "not known"
    names = ", ".join(map(quote, table.key))
    sql = f"SELECT {names} FROM {table.sqlite} WHERE {table.identity[0]} = ?"
    return shown_key(target.execute_sql(sql, (rowid,)).fetchone())


def _readable(table: TransferTable, chunk: Sequence[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    """Return rows as SQLite stores them.

    :raises TransferRefused: for a value that the model does not read, on either engine.
    """
    try:
        return _stored(table.written, chunk)
    except ValueRefused:
        for row in chunk:
            _require_readable(table, row)
        raise


def _require_readable(table: TransferTable, row: tuple[Any, ...]) -> None:
    for column, value in zip(table.written, row, strict=True):
        try:
            _ = value is None or column.kind.stored(value)
        except ValueRefused as error:
            what = NO_INSTANT if isinstance(column.kind, InstantKind) else error.fact
            values = {each.name: part for each, part in zip(table.written, row, strict=True)}
            key = shown_key([values.get(name) for name in table.key])
            place = f"{table.name}.{column.name}, key {key or 'not known'}"
            raise TransferRefused(f"SQLite cannot hold what is in {place}: {what}", CORRECT) from error


def _stored(columns: Sequence[Column], chunk: Sequence[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    """Return rows with each value as SQLite stores it."""
    stored = []
    for column, values in zip(columns, zip(*chunk, strict=True), strict=True):
        of = column.kind.stored
        stored.append([None if value is None else of(value) for value in values])
    return zip(*stored, strict=True)
