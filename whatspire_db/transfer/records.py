"""What the target says of transfers: a row for each attempt, in a table of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import peewee

from ..data.records import DataMigrationRecord
from ..errors import TransferRefused
from ..fields import InstantField, JSONTextField, TextField, utcnow
from ..migrate.ddl import execute, qualified, quote
from ..migrate.engines.base import Engine
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.schema import TRANSFERS_TABLE
from ..sql import pinned

Finished = dict[str, Any]  # what is kept of a data migration that is finished, by field
_KEPT = [getattr(DataMigrationRecord, name) for name in ("name", "started", "finished", "rows", "error")]
_FINISHED = f"SELECT {', '.join(quote(field.column_name) for field in _KEPT)} FROM {{}} WHERE finished IS NOT NULL"
_CODE = pinned("""
SELECT 1 FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal
UNION ALL SELECT 1 FROM pg_rewrite WHERE ev_class = %s::regclass
""")
STARTED, COPIED, PROVED, FAILED = "started", "copied", "proved", "failed"


class Transfer(peewee.Model):
    """An attempt to fill this database: from where, when, how it ended, and each table's rows and fingerprint.

    `state` is started, copied, proved or failed. An attempt that was killed stays "started", and none of its rows are
    here, or "copied": the rows of a live transfer are here, and were not compared. `tables` has then the kinds of
    faults whose values were replaced.
    """

    source: TextField[str] = TextField()
    started: Any = InstantField(default=utcnow)
    finished: Any = InstantField(null=True)
    state: TextField[str] = TextField(default=STARTED)
    tables: Any = JSONTextField(null=True)
    error: TextField[str | None] = TextField(null=True)

    class Meta:
        table_name = TRANSFERS_TABLE


def begin(engine: Engine, source: str) -> int:
    """Note that an attempt begins; return its number.

    :raises TransferRefused: when the table has triggers or rules: a record is written after the proof.
    """
    with _own_names(engine) as db:
        if _has_code(engine):
            raise TransferRefused(
                f"{TRANSFERS_TABLE} has triggers or rules, which could change rows after the proof", "drop them"
            )
        return int(Transfer.insert(source=source).execute(db))


def _has_code(engine: Engine) -> bool:
    if isinstance(engine, PostgresEngine):
        place = qualified(engine.default_schema, TRANSFERS_TABLE)
        return engine.db.execute_sql(_CODE, (place, place)).fetchone() is not None
    sql = "SELECT 1 FROM main.sqlite_master WHERE type = 'trigger' AND tbl_name = ? COLLATE NOCASE"
    return engine.db.execute_sql(sql, (TRANSFERS_TABLE,)).fetchone() is not None


def end(engine: Engine, number: int, state: str, **facts: Any) -> None:
    """Note how an attempt ended."""
    with _own_names(engine) as db:
        Transfer.update(state=state, finished=utcnow(), **facts).where(Transfer.id == number).execute(db)


def copied(engine: Engine, number: int, kinds: Iterable[str]) -> None:
    """Note that the rows are here and not yet compared, and the kinds of faults whose values were replaced."""
    end(engine, number, COPIED, tables={"replaced": sorted(kinds)})


def unproved(engine: Engine, source: str) -> tuple[int, frozenset[str]] | None:
    """Return the number of the last attempt and what `copied` noted, where its rows were not compared; else None."""
    if not engine.has_table(engine.key(Transfer)):
        return None
    if found := engine.untrusted_table(Transfer):
        raise found
    with _own_names(engine) as db:
        last = Transfer.select().order_by(Transfer.id.desc()).limit(1).execute(db)
        found = next((each for each in last if each.state == COPIED and each.source == source), None)
    return None if found is None else (int(found.id), frozenset((found.tables or {}).get("replaced", ())))


def finished_in_sqlite(sqlite: Any) -> list[Finished] | None:
    """Return the data migrations that are finished in a SQLite source; None where none was ever begun."""
    name = DataMigrationRecord._meta.table_name
    if not sqlite.execute("SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = ?", [name]).fetchone():
        return None
    return [_read(row) for row in sqlite.execute(_FINISHED.format(f"main.{quote(name)}"))]


def finished_in_postgres(engine: PostgresEngine) -> list[Finished] | None:
    """Return the data migrations that are finished in a PostgreSQL source; None where none was ever begun."""
    key = engine.key(DataMigrationRecord)
    if not engine.has_table(key):
        return None
    if found := engine.untrusted_table(DataMigrationRecord):
        raise found
    return [_read(row) for row in execute(engine.db, _FINISHED.format(qualified(engine.default_schema, key[1])))]


def _read(row: Sequence[Any]) -> Finished:
    return {field.name: field.python_value(value) for field, value in zip(_KEPT, row, strict=True)}


def keep_finished(engine: Engine, finished: Sequence[Finished] | None) -> None:
    """Let what is finished at the source be finished at the target too; a position means nothing on another engine."""
    if finished is None:
        return
    with _own_names(engine) as db:
        DataMigrationRecord.delete().execute(db)
        for row in finished:
            DataMigrationRecord.insert(row).execute(db)


@contextmanager
def _own_names(engine: Engine) -> Iterator[peewee.Database]:
    """Run a block in a transaction in which names are the engine's own, or those of the schema of the tables."""
    with engine.db.atomic():
        engine.search_first("pg_catalog", getattr(engine, "default_schema", ""))
        yield engine.db
