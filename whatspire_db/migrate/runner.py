"""The walk of a migration: lock, snapshot, declared, diff, plan, apply, verify, record, unlock."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import peewee

from .. import errors
from ..errors import MigrationRefused, ModelError, ScratchUnavailable, StepFailed, VerificationFailed
from ..models import MigrationVersion, registered_models
from . import history
from .ddl import ModelType, execute
from .diff import Changes, Drift, diff
from .engines import declared_names, discarded, engine_for
from .history import MigrationStatus
from .plan import Plan, Step, make_plan
from .schema import Schema, label

logger = logging.getLogger("whatspire_db.migrate")

LOCK_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Report:
    """What a run did. `applied` is empty when there was nothing to do."""

    driver: str
    previous_version: int
    version: int
    applied: tuple[Step, ...]
    drift: tuple[Drift, ...]
    duration_ms: float

    def to_json(self) -> dict[str, Any]:
        return {
            "driver": self.driver,
            "previous_version": self.previous_version,
            "version": self.version,
            "applied": [step.to_json() for step in self.applied],
            "drift": [drift.to_json() for drift in self.drift],
            "duration_ms": round(self.duration_ms, 1),
        }


class MigrationRunner:
    """Brings a database to the schema that models declare, by adding what is missing.

    :param db: any peewee database for SQLite or PostgreSQL.
    :param models: default: the service's, and every other subclass of BaseModel that was imported.
    :param lock_timeout: seconds to wait for another migration to end.
    :param record_all: record runs that changed nothing too, as the Go service does.
    :raises ModelError: when the database is of another kind, or two models declare one table.
    """

    def __init__(
        self,
        db: peewee.Database,
        models: Sequence[ModelType] | None = None,
        *,
        record_all: bool = False,
        lock_timeout: float = LOCK_TIMEOUT_SECONDS,
    ) -> None:
        self.engine = engine_for(db)
        self.db = self.engine.db
        self.models: list[ModelType] = list(dict.fromkeys(registered_models() if models is None else models))
        self.record_all = record_all
        self.lock_timeout = lock_timeout
        for model in self.models:
            if not peewee.is_model(model):
                raise ModelError(f"{model!r} is not a peewee model", "give model classes")
        # A temporary table is gone with its session: nothing to migrate.
        self.models = [model for model in self.models if not model._meta.temporary]

    def plan(self) -> Plan:
        """Return what `up` would do, with the SQL of every step; changes nothing."""
        with self._connection(), self._reading():
            declared = self._declared()
            return self._plan(declared)

    def verify_schema(self) -> Changes:
        """Compare the whole schema: what is missing, what drifted, what is extra. Falsy when in sync."""
        with self._connection(), self._reading():
            declared = self._declared()
            _warn_of_names(declared)
            changes = self._changes(declared, self._snapshot())
            keys = {self.engine.key(model) for model in self.models}
            return replace(changes, missing=[m for m in changes.missing if not m.table[1] or m.table in keys])

    def version(self) -> int:
        """Return the recorded version, in epoch seconds; 0 before the first run."""
        with self._connection():
            return history.version(self.db)

    def status(self) -> list[MigrationStatus]:
        """Return the recorded runs, oldest first."""
        with self._connection():
            return history.status(self.db)

    def up(self) -> Report:
        """Apply what is pending, in one transaction, verify the outcome and record the run.

        :raises MigrationRefused: when an addition would fail or lose data; nothing was applied.
        :raises StepFailed: when the database refused a statement; everything was rolled back.
        :raises VerificationFailed: when the outcome was not the declared schema; everything was rolled back.
        :raises LockTimeout: when another migration went on for too long.
        """
        started = time.perf_counter()
        with self._connection():
            with self._reading():
                declared = self._declared()
                plan = self._plan(declared)
            version = plan.version
            if plan or self.record_all:
                plan, version = self._apply(declared, plan)
            for drift in plan.drift:
                logger.warning("drift, left as it is: %s", drift)
            milliseconds = (time.perf_counter() - started) * 1000
            return Report(self.engine.name, plan.version, version, plan.pending, plan.drift, milliseconds)

    def _apply(self, declared: Schema, plan: Plan) -> tuple[Plan, int]:
        """Do the work under the lock and return what was done and the version since; look again first."""
        if plan.refused:
            raise MigrationRefused(plan)
        with self.engine.transaction(self.lock_timeout):
            plan = self._plan(declared)
            if plan.refused:
                raise MigrationRefused(plan)
            for step in plan.pending:
                self._execute(step)
            if plan.pending:
                self._verify(declared, plan)
            if plan.pending or (self.record_all and history.exists(self.db)):
                return plan, self._record()
            return plan, plan.version

    def _execute(self, step: Step) -> None:
        for sql in step.sql:
            logger.info("%s: %s", step.title, sql)
            try:
                execute(self.db, sql)
            except peewee.PeeweeException as error:
                raise _step_failed(step, error) from error

    def _record(self) -> int:
        try:
            return history.record(self.db)
        except peewee.PeeweeException as error:
            raise StepFailed(
                f"the run cannot be recorded in migration_versions: {_first_line(error)}",
                "compare that table with the model MigrationVersion; nothing was changed",
            ) from error

    def _verify(self, declared: Schema, plan: Plan) -> None:
        changes = self._changes(declared, self._snapshot())
        left = [f"{m.kind} {label(m.table)}.{m.name}" for m in changes.missing]
        left += [str(drift) for drift in changes.drift if drift not in plan.drift]
        if left:
            raise VerificationFailed(
                f"after all steps the schema still differs: {'; '.join(left)}",
                "nothing was changed; look for event triggers, or report this with the output of plan",
            )

    def _plan(self, declared: Schema) -> Plan:
        live = self._snapshot()
        version = history.version(self.db)
        changes = self._changes(declared, live)
        if declared.unproved and changes.missing:
            names = ", ".join(str(item) for item in changes.missing)
            fact, hint = declared.unproved
            raise ModelError(f"{names}: the SQL cannot be worked out: {fact}", hint)
        _warn_of_names(declared)
        return make_plan(self.engine, self._all_models(), changes, declared, live, version)

    def _all_models(self) -> list[ModelType]:
        """Return the models and the one of the history, which a run that changes something needs."""
        key = self.engine.key
        if key(MigrationVersion) in {key(m) for m in self.models}:
            return self.models
        return [*self.models, MigrationVersion]

    def _snapshot(self) -> Schema:
        return self.engine.snapshot([self.engine.key(model) for model in self._all_models()])

    def _declared(self) -> Schema:
        keys: dict[tuple[str, str], ModelType] = {}
        for model in self.models:
            other = keys.setdefault(self.engine.key(model), model)
            if other is not model:
                raise ModelError(
                    f"{other.__name__} and {model.__name__} both declare table {model._meta.table_name}",
                    "give one of them another table_name, or leave it out",
                )
        models = self._all_models()
        try:
            schema = self.engine.declared(models)
        except ScratchUnavailable as error:
            schema = replace(declared_names(self.engine, models), unproved=(error.fact, error.hint))
        # In the order of the models, so that two plans of one schema are equal.
        return replace(schema, tables={key: schema.tables[key] for key in map(self.engine.key, models)})

    def _changes(self, declared: Schema, live: Schema) -> Changes:
        changes = diff(declared, live, self.engine.constraints_can_be_added)
        if len(self._all_models()) == len(self.models):
            return changes
        # The history is not the user's own table: it is made only with something to record.
        own = self.engine.key(MigrationVersion)
        others = [m for m in changes.missing if m.table != own]
        return replace(
            changes,
            missing=changes.missing if others else [],
            drift=[d for d in changes.drift if d.table != label(own)],
            extra=[e for e in changes.extra if e.table != label(own)],
        )

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Use the connection of this thread, or open one for as long as needed; put driver errors in words."""
        if self.db.in_transaction():
            raise errors.WhatspireDBError(
                "a migration cannot run inside a transaction", "commit first; the migration opens its own"
            )
        opened = self.db.connect(reuse_if_open=True) and not self.engine.is_in_memory()
        try:
            yield
        except peewee.PeeweeException as error:
            raise _database_failed(error) from error
        finally:
            if opened and not self.db.is_closed():
                self.db.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Look in a transaction that is rolled back on PostgreSQL, where looking makes temporary tables."""
        if not self.engine.constraints_can_be_added:
            yield
            return
        with discarded(self.db):
            yield


def _warn_of_names(declared: Schema) -> None:
    if declared.unproved:
        logger.warning("compared by names alone: %s (%s)", *declared.unproved)


def _first_line(error: BaseException) -> str:
    # Lines after the first can repeat values of a row.
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _hint(text: str) -> str:
    hints = {
        "permission denied": "use a role that owns the tables, or let their owner run the statements of plan",
        "must be owner": "use a role that owns the tables, or let their owner run the statements of plan",
        "readonly": "give this user the right to write the file and its folder",
        "read-only": "connect to the primary, or to a database that can be written",
        "not a database": "point WHATSAPP_DATABASE_DSN at the database, or move the file away",
        "locked": "find who writes to it for that long, or try again when it is quiet",
        "already exists": "something of that name stands there; rename it, or the declared one",
        "disk": "make room on the disk and try again",
        "No space": "make room on the disk and try again",
    }
    default = "nothing was changed; correct what the database names and try again"
    return next((hint for mark, hint in hints.items() if mark in text), default)


def _step_failed(step: Step, error: Exception) -> StepFailed:
    text = _first_line(error)
    return StepFailed(f"{step.title} failed and everything was rolled back: {text}", _hint(text))


def _database_failed(error: Exception) -> errors.WhatspireDBError:
    text = _first_line(error)
    return errors.WhatspireDBError(f"the database failed: {text}", _hint(text))
