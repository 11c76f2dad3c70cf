"""What the target says of transfers: a row for each attempt, in a table of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peewee

from ..fields import InstantField, JSONTextField, TextField, utcnow
from ..migrate.engines.base import Engine

STARTED, PROVED, FAILED = "started", "proved", "failed"


class Transfer(peewee.Model):
    """An attempt to fill this database: from where, when, how it ended, and each table's rows and fingerprint.

    `state` is started, proved or failed. An attempt that was killed stays "started", and none of its rows are here.
    """

    source: TextField[str] = TextField()
    started: Any = InstantField(default=utcnow)
    finished: Any = InstantField(null=True)
    state: TextField[str] = TextField(default=STARTED)
    tables: Any = JSONTextField(null=True)
    error: TextField[str | None] = TextField(null=True)

    class Meta:
        table_name = "whatspire_db_transfers"


def begin(engine: Engine, source: str) -> int:
    """Note that an attempt begins; return its number."""
    with _own_names(engine) as db:
        return int(Transfer.insert(source=source).execute(db))


def end(engine: Engine, number: int, state: str, **facts: Any) -> None:
    """Note how an attempt ended."""
    with _own_names(engine) as db:
        Transfer.update(state=state, finished=utcnow(), **facts).where(Transfer.id == number).execute(db)


@contextmanager
def _own_names(engine: Engine) -> Iterator[peewee.Database]:
    """Run a block in a transaction in which names are the engine's own, or those of the schema of the tables."""
    with engine.db.atomic():
        engine.search_first("pg_catalog", getattr(engine, "default_schema", ""))
        yield engine.db
