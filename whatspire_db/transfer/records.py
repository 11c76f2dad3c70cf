"""What the target says of transfers: a row for each attempt, in a table of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peewee

from ..fields import InstantField, JSONTextField, TextField, utcnow
from ..migrate.engines.base import Engine

STARTED, COPIED, PROVED, FAILED = "started", "copied", "proved", "failed"


class Transfer(peewee.Model):
    """An attempt to fill this database: from where, when, how it ended, and each table's rows and fingerprint.

    `state` is started, copied, proved or failed. An attempt that was killed stays "started", and none of its rows are
    here, or "copied": the rows of a live transfer are here, and were not compared.
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


def unproved(engine: Engine, source: str) -> int | None:
    """Return the number of the last attempt, where its rows are here and were not compared; None where not."""
    with _own_names(engine) as db:
        last = Transfer.select().order_by(Transfer.id.desc()).limit(1).execute(db)
        return next((int(each.id) for each in last if each.state == COPIED and each.source == source), None)


@contextmanager
def _own_names(engine: Engine) -> Iterator[peewee.Database]:
    """Run a block in a transaction in which names are the engine's own, or those of the schema of the tables."""
    with engine.db.atomic():
        engine.search_first("pg_catalog", getattr(engine, "default_schema", ""))
        yield engine.db
