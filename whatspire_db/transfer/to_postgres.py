"""SQLite into PostgreSQL: check, schema, then rows, indexes, sequences, proof and record in one transaction.

Whatever ends a transfer before its commit, a kill included, leaves the schema at the target and no row. The next
attempt starts over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from peewee import sqlite3

from ..data.records import DataMigrationRecord
from ..errors import TransferRefused, WhatspireDBError
from ..messages import first_line, sqlstate
from ..migrate.ddl import qualified
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.schema import Schema, label
from . import change_log, postgres_load, records, side_file
from .checking import Checked, asks_postgres, check
from .copying import copy_table
from .faults import REFUSE, ways_out
from .opening import Ends, connected, sqlite_source
from .progress import Watcher
from .proof import TableProof, prove
from .records import Transfer
from .reports import Report, TableReport
from .steps import Wishes, migrate, recorded, require_proved, runner, teller
from .tables import TransferTable, require_models, transfer_tables, transferred


def check_only(ends: Ends, wishes: Wishes) -> Checked:
    """Return what a check finds; nothing is changed at either side, and nothing is written."""
    with sqlite_source(ends.source) as sqlite, connected(ends.target, "--to") as db:
        return _checked(sqlite, PostgresEngine(db, wishes.trust_source), wishes)


def transfer(ends: Ends, wishes: Wishes) -> Report:
    """Do a transfer and return its report; see `whatspire_db.transfer.transfer`."""
    started = time.monotonic()
    with sqlite_source(ends.source) as sqlite, connected(ends.target, "--to") as db:
        engine = PostgresEngine(db, wishes.trust_source)
        with engine.work_lock(wishes.wait_seconds):
            checked, tables = prepared(sqlite, engine, wishes)
            with _written_aside(sqlite, checked, wishes), recorded(engine, ends) as number:
                done, shortened = _load(sqlite, engine, tables, wishes, number)
        stamp(db, wishes)
    file = wishes.side_file if checked.set_aside else ""
    seconds = time.monotonic() - started
    return Report(
        ends, tuple(done), seconds, shortened, checked.replaced, checked.set_aside, file, has_log=checked.has_log
    )


def prepared(
    sqlite: sqlite3.Connection, engine: PostgresEngine, wishes: Wishes, may_set_aside: bool = True
) -> tuple[Checked, list[TransferTable]]:
    """Check the source, and bring the empty target to the models; return what was found and the tables."""
    require_empty(engine, wishes)
    checked = _checked(sqlite, engine, wishes)
    _require_held(checked, may_set_aside)
    migrate(engine.db, wishes, with_data=records.finished_in_sqlite(sqlite) is not None)
    _require_trusted(engine, wishes)
    return checked, _tables(sqlite, engine, wishes, live_schema(engine, wishes), checked)


def live_schema(engine: PostgresEngine, wishes: Wishes) -> Schema:
    """Return the tables of the target as they are."""
    return engine.snapshot(_keys(engine, wishes))


def _keys(engine: PostgresEngine, wishes: Wishes) -> list[tuple[str, str]]:
    return [engine.key(model) for model in transferred(wishes.models)]


def _require_trusted(engine: PostgresEngine, wishes: Wishes) -> None:
    for model in [*transferred(wishes.models), Transfer, DataMigrationRecord]:
        if found := engine.untrusted_table(model):
            raise found


def require_empty(engine: PostgresEngine, wishes: Wishes) -> None:
    """Refuse a target whose tables have rows, whoever made them."""
    places = [
        (label(key), qualified(key[0] or engine.default_schema, key[1]))
        for key, table in sorted(live_schema(engine, wishes).tables.items())
        if table.kind == "table"  # a view could run code of others, and is refused later
    ]
    if filled := postgres_load.filled(engine.db.connection(), places):
        raise TransferRefused(
            f"the target has rows already: {', '.join(filled)}",
            "name a database whose tables are empty; a transfer does not mix rows",
        )


def _checked(sqlite: sqlite3.Connection, engine: PostgresEngine, wishes: Wishes) -> Checked:
    require_models(sqlite, wishes.models, wishes.leave)
    _require_utf8(engine)
    with engine.reading(wishes.wait_seconds):
        models = transferred(wishes.models)
        declared, live = engine.declared(models), live_schema(engine, wishes)
    tables = transfer_tables(sqlite, engine, Schema({**declared.tables, **live.tables}), wishes.models)
    if not tables:
        raise TransferRefused("the source has no table of the models", "name the right file in --from, or --models")
    tell = wishes.watcher.progress
    asks = asks_postgres(engine.db)
    checked = check(sqlite, tables, wishes.choices, asks, lambda table: tell("check", table, 0, None))
    checked.has_log = change_log.is_there(sqlite)
    return checked


def _require_utf8(engine: PostgresEngine) -> None:
    found = engine.db.execute_sql("SELECT pg_catalog.current_setting('server_encoding')").fetchone()[0]
    if found != "UTF8":
        raise TransferRefused(
            f"the target's encoding is {found}, which does not hold every text",
            "create the database again: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0",
        )


def _require_held(checked: Checked, may_set_aside: bool) -> None:
    if checked.refused:
        first = next(finding for finding in checked.findings if finding.choice == REFUSE)
        more = checked.refused - 1
        raise TransferRefused(
            f"PostgreSQL cannot hold what is in {first}" + (f"; and {more:,} more" if more else ""),
            f"--check lists them; correct the rows, or {ways_out(first, may_set_aside)}",
        )


def stamp(db: Any, wishes: Wishes) -> None:
    """Let the next start find its stamp: indexes that were made anew changed the catalog's mark."""
    with suppress(WhatspireDBError):  # the rows are there and proved; the next start looks in full
        runner(db, wishes.models, wishes).up()


def _tables(
    sqlite: sqlite3.Connection, engine: PostgresEngine, wishes: Wishes, live: Schema, checked: Checked
) -> list[TransferTable]:
    """Return the tables as they are at the target now, with what the check made of their rows."""
    found = {table.name: table for table in checked.tables}
    tables = transfer_tables(sqlite, engine, live, wishes.models)
    return [table.with_faults(found[table.name].mended, found[table.name].left_out) for table in tables]


@contextmanager
def _written_aside(sqlite: sqlite3.Connection, checked: Checked, wishes: Wishes) -> Iterator[None]:
    """Write the side file; it goes again if the transfer fails, for then no row was left out."""
    if not checked.set_aside:
        yield
        return
    side_file.write(wishes.side_file, sqlite, checked.tables)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            os.unlink(wishes.side_file)
        raise


def fill(
    sqlite: sqlite3.Connection, engine: PostgresEngine, tables: Sequence[TransferTable], wishes: Wishes
) -> tuple[list[float], list[postgres_load.Removed]]:
    """Copy the rows of empty tables, which stay locked until the transaction ends, and make their indexes.

    Returns the seconds that each table took, and what is to be brought back of its references.
    """
    postgres = engine.db.connection()
    engine.search_first("pg_catalog")
    engine.see_every_row()
    postgres_load.lock(postgres, tables, wishes.wait_seconds)
    require_empty(engine, wishes)
    removed = postgres_load.remove(postgres, tables)
    seconds = [_copied(sqlite, postgres, table, wishes.watcher) for table in tables]
    # Triggers that wait for the commit run now: they would keep indexes from being made, and change what is proved.
    postgres_load.statement(postgres, "SET CONSTRAINTS ALL IMMEDIATE")
    for place, each in enumerate(removed):
        wishes.watcher.progress("index", each.table, 0, None)
        seconds[place] += _brought_back(postgres, each)
    return seconds, removed


def finish(
    sqlite: sqlite3.Connection,
    engine: PostgresEngine,
    tables: Sequence[TransferTable],
    removed: Sequence[postgres_load.Removed],
) -> None:
    """Bring back the references, set the sequences, and let finished data migrations stay finished."""
    postgres = engine.db.connection()
    for each in removed:
        with naming(each.table):
            postgres_load.bring_back_references(postgres, each)
    for table in tables:
        with naming(table.name):
            postgres_load.set_sequences(postgres, sqlite, table)
    records.keep_finished(engine, records.finished_in_sqlite(sqlite))


def table_reports(proofs: Sequence[TableProof], seconds: Sequence[float]) -> list[TableReport]:
    """Return what is to be told of tables that are proved."""
    return [
        TableReport(proof.table, proof.postgres.rows, str(proof.postgres), taken)
        for proof, taken in zip(proofs, seconds, strict=True)
    ]


def _load(
    sqlite: sqlite3.Connection,
    engine: PostgresEngine,
    tables: Sequence[TransferTable],
    wishes: Wishes,
    number: int,
) -> tuple[list[TableReport], int]:
    """Bring the rows over and prove them, in one transaction of the target; return tables and shortened times."""
    with engine.db.atomic():
        postgres = engine.db.connection()
        seconds, removed = fill(sqlite, engine, tables, wishes)
        finish(sqlite, engine, tables, removed)
        postgres_load.analyze(postgres, tables)
        proofs = [prove(sqlite, postgres, table, teller(wishes.watcher, "prove")) for table in tables]
        require_proved(proofs)
        reports = table_reports(proofs, seconds)
        records.end(engine, number, records.PROVED, tables=[report.to_json() for report in reports])
    return reports, shortened(tables)


def shortened(tables: Sequence[TransferTable]) -> int:
    """Return how many times were cut to microseconds."""
    return sum(column.kind.shortened for table in tables for column in table.columns)


def _copied(sqlite: sqlite3.Connection, postgres: Any, table: TransferTable, watcher: Watcher) -> float:
    """Copy a table and return the seconds that it took."""
    started = time.monotonic()
    (total,) = sqlite.execute(f"SELECT count(*) FROM {table.sqlite} WHERE {table.remaining}").fetchone()
    with naming(table.name):
        copy_table(sqlite, postgres, table, lambda name, done: watcher.progress("copy", name, done, total))
    return time.monotonic() - started


def _brought_back(postgres: Any, removed: postgres_load.Removed) -> float:
    started = time.monotonic()
    with naming(removed.table):
        postgres_load.bring_back_indexes(postgres, removed)
    return time.monotonic() - started


@contextmanager
def naming(table: str) -> Iterator[None]:
    """Say which table's rows PostgreSQL refused, and why, without repeating any."""
    from psycopg2 import Error

    try:
        yield
    except Error as error:
        if not (sqlstate(error) or "").startswith(("22", "23", "54")):
            raise
        constraint = getattr(error.diag, "constraint_name", None)
        by = f" by {constraint}" if constraint else ""
        raise TransferRefused(
            f"PostgreSQL refused rows of {table}{by}: {first_line(error)}",
            "nothing was copied; correct the rows in the source, or what the target's table asks of them",
        ) from error
