"""whatspire_db_data_migrations: which data migrations were begun in a database, and how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import peewee
from peewee import SQL

from ..errors import RightMissing, WhatspireDBError, bounded, printable
from ..fields import InstantField, Int64Field, TextField, TextKeyField, utcnow
from ..messages import first_line, hint, is_right_missing
from ..migrate.schema import DATA_TABLE
from ..models.data_migrations import DataMigration
from .engines.base import RowEngine
from .keys import read


class DataMigrationRecord(peewee.Model):
    """A data migration that was begun; a skipped one is finished and has an error."""

    name = TextKeyField(default=None)
    started = InstantField()
    finished = InstantField(null=True)
    position = TextField(null=True)  # the key of the last row that is done, valid on this engine alone
    rows = Int64Field()
    error = TextField(null=True)

    class Meta:
        table_name = DATA_TABLE
        constraints = [SQL('PRIMARY KEY ("name")')]


@cache
def record_model(schema: str) -> type[DataMigrationRecord]:
    """Return the model with its schema: a temporary table, or one of another schema, is not meant."""
    meta = {"schema": schema, "table_name": DATA_TABLE, "constraints": DataMigrationRecord._meta.constraints}
    return type("DataMigrationRecord", (DataMigrationRecord,), {"Meta": type("Meta", (), meta)})


@dataclass(frozen=True)
class DataState:
    """How a data migration stands: pending, running, failed, finished or skipped; times are aware and in UTC.

    A run that ended midway leaves one as running, and the next run goes on with it. `position` is the key of the last
    row that is done, as text.
    """

    name: str
    state: str = "pending"
    rows: int = 0
    started: datetime | None = None
    finished: datetime | None = None
    position: str | None = None
    error: str | None = None

    @property
    def is_left(self) -> bool:
        """Tell whether something is left to do."""
        return self.state in ("pending", "running", "failed")

    def to_json(self) -> dict[str, Any]:
        times = {"started": self.started, "finished": self.finished}
        return {
            "name": self.name,
            "state": self.state,
            "rows": self.rows,
            **{name: value.isoformat() if value else None for name, value in times.items()},
            "position": self.position,
            "error": self.error,
        }

    def __str__(self) -> str:
        rows = f", {self.rows:,} rows done" if self.rows else ""
        position = f" up to the key {self.position}" if self.position and self.is_left else ""
        error = f" ({self.error})" if self.error else ""
        return bounded(printable(f"{self.name}: {self.state}{rows}{position}{error}"))  # a key comes from elsewhere


class Records:
    """The records of one database, read and written through its engine; they run no code of other roles."""

    def __init__(self, engine: RowEngine) -> None:
        self.engine, self.db = engine, engine.db

    @property
    def model(self) -> type[DataMigrationRecord]:
        """The model of the table in the schema of the database."""
        return record_model(self.engine.home)

    def make(self) -> None:
        """Create the table where it is missing.

        :raises RightMissing: when this role may not.
        """
        self._require_trusted()
        if self.exists():
            return
        try:
            with self.engine.transaction(), self.db.bind_ctx([self.model], False, False):
                self.model.create_table(safe=True)
        except peewee.PeeweeException as error:
            if not is_right_missing(error):
                raise
            raise RightMissing(
                f"the table {DATA_TABLE} cannot be made: {first_line(error)}",
                f"let a role that may create tables run the data migrations; {hint(error)}",
            ) from error

    def exists(self) -> bool:
        """Tell whether the table is there."""
        return self.engine.has_table(self.model)

    def _require_trusted(self) -> None:
        if found := self.engine.schema.untrusted_table(self.model):
            raise found

    def states(self, declared: Sequence[DataMigration]) -> list[DataState]:
        """Return how those stand that are declared, in that order, and after them others that were begun."""
        found = {state.name: state for state in self._all()} if self.exists() else {}
        names = [migration.name for migration in declared]
        others = (state for name, state in found.items() if name not in names)
        return [*(found.get(name, DataState(name)) for name in names), *others]

    def _all(self) -> list[DataState]:
        self._require_trusted()
        with self.engine.with_own_names():
            query = self.model.select().order_by(self.model.started, self.model.name)
            return [_state(row) for row in query.execute(self.db)]

    def locked(self, name: str) -> DataState:
        """Return how one stands, and keep others from changing that until the end of the transaction."""
        row = self._locked_row(name)
        return DataState(name) if row is None else _state(row)

    def current(self, name: str) -> DataMigrationRecord | None:
        """Return the record of one that is begun and not ended, locked as by `locked`; None for any other."""
        row = self._locked_row(name)
        return row if row is not None and _state(row).state == "running" else None

    def _locked_row(self, name: str) -> DataMigrationRecord | None:
        query = self.model.select().where(self.model.name == name)
        return next(iter(self.engine.locked(query).execute(self.db)), None)

    def begin(self, name: str) -> None:
        """Record that one is begun, if it is not yet."""
        self.model.insert(name=name, started=utcnow(), rows=0).on_conflict(
            action="NOTHING", conflict_target=["name"]
        ).execute(self.db)

    def change(self, name: str, **values: Any) -> None:
        """Change what is recorded of one."""
        self.model.update(**values).where(self.model.name == name).execute(self.db)

    def change_failed(self, name: str, **values: Any) -> None:
        """Change the record of one that failed, in a transaction of its own.

        :raises WhatspireDBError: when that one has not failed.
        """
        self._require_trusted()
        with self.engine.batch():
            if (state := self.locked(name).state) != "failed":
                hint = "whatspire-db data status lists those that have; a new name runs the function again"
                raise WhatspireDBError(f"the data migration {name} has not failed: it is {state}", hint)
            self.change(name, **values)


def _state(row: Any) -> DataState:
    if row.finished is not None:
        state = "skipped" if row.error else "finished"
    else:
        state = "failed" if row.error else "running"
    position = None if row.position is None else ", ".join(map(str, read(row.position)))
    return DataState(row.name, state, row.rows, row.started, row.finished, position, row.error)
