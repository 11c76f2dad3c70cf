"""The walk of a migration: stamp, lock, snapshot, declared, diff, plan, apply, verify, record, stamp, unlock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import peewee

from .. import errors
from ..dsn import SqliteTarget
from ..errors import (
    ConfigError,
    MigrationRefused,
    ModelError,
    NothingToBackUp,
    ScratchUnavailable,
    StepFailed,
    VerificationFailed,
)
from ..models import MigrationVersion, registered_models
from . import history
from .ddl import ModelType, execute
from .engines import declared_names, discarded, engine_for
from .failures import (
    database_failed,
    first_line,
    is_right_missing,
    is_there_already,
    online_step_failed,
    right_missing,
    step_failed,
)
from .history import MigrationStatus
from .plan import Plan, Step
from .progress import Watcher
from .schema import Schema, label
from .stamp import Stamps, Standing, fingerprint

if TYPE_CHECKING:
    from ..settings import Settings
    from .diff import Changes, Drift, Missing

logger = logging.getLogger("whatspire_db.migrate")

LOCK_TIMEOUT_SECONDS = 60.0
LOOKS = 5  # tries to see a schema that stands still
# An index on so many rows is built in some 10 ms, about as long as a commit takes; writers wait no longer than that.
ONLINE_ROWS = 10_000


@dataclass(frozen=True)
class Report:
    """What a run did. `applied` is empty when there was nothing to do."""

    driver: str
    previous_version: int
    version: int
    applied: tuple[Step, ...]
    drift: tuple[Drift, ...]
    duration_ms: float
    backup: str | None = None  # the file of the backup that was made before

    def to_json(self) -> dict[str, Any]:
        made = {"backup": self.backup} if self.backup else {}
        return {
            "driver": self.driver,
            "previous_version": self.previous_version,
            "version": self.version,
            "applied": [step.to_json() for step in self.applied],
            "drift": [drift.to_json() for drift in self.drift],
            "duration_ms": round(self.duration_ms, 1),
            **made,
        }


@dataclass(frozen=True)
class SchemaCheck:
    """How a database stands beside the models; `version` is None where no history can be read.

    `unproved` says why names alone could be compared, and what to do about it.
    """

    version: int | None
    missing: tuple[Missing, ...] = ()
    drift: tuple[Drift, ...] = ()
    unproved: tuple[str, str] | None = None

    @property
    def in_sync(self) -> bool | None:
        """Tell whether nothing is missing and nothing drifted; None where names alone agree."""
        if self.missing or self.drift:
            return False
        return None if self.unproved else True


@dataclass(frozen=True)
class _Look:
    """What is declared and what there is to do, and how the database stood before and after that was found out."""

    declared: Schema
    plan: Plan
    before: Standing | None
    after: Standing | None

    @property
    def is_of_one_schema(self) -> bool:
        return bool(self.before and self.after and self.before.mark == self.after.mark)


class MigrationRunner:
    """Brings a database to the schema that models declare, by adding what is missing.

    :param db: any peewee database for SQLite or PostgreSQL.
    :param models: default: the service's, and every other subclass of BaseModel that was imported.
    :param lock_timeout: seconds to wait for another migration to end, and for sessions that stand in a step's way.
    :param online_rows: tables with more rows get indexes concurrently, and constraints in two steps (PostgreSQL);
        an addition that would rewrite or scan them while they are locked is refused.
    :param watcher: hears how far the run is; default: long steps go to the log.
    :param record_all: record runs that changed nothing too, as the Go service does.
    :param before_changes: is called under the lock before anything is changed, and returns the file of the backup that
        it made, if it did; default: a backup, where the settings of `connect` ask for one.
    :raises ModelError: when the database is of another kind, or two models declare one table.
    """

    def __init__(
        self,
        db: peewee.Database,
        models: Sequence[ModelType] | None = None,
        *,
        record_all: bool = False,
        before_changes: Callable[[], str | None] | None = None,
        lock_timeout: float = LOCK_TIMEOUT_SECONDS,
        online_rows: int = ONLINE_ROWS,
        watcher: Watcher | None = None,
    ) -> None:
        self.engine = engine_for(db)
        self.db = self.engine.db
        self.models: list[ModelType] = list(dict.fromkeys(registered_models() if models is None else models))
        self.record_all = record_all
        self.before_changes = before_changes or _configured_backup(self.db)
        self.lock_timeout = lock_timeout
        self.online_rows = online_rows
        self.watcher = watcher or Watcher()
        for model in self.models:
            if not peewee.is_model(model):
                raise ModelError(f"{model!r} is not a peewee model", "give model classes")
        # A temporary table is gone with its session: nothing to migrate.
        self.models = [model for model in self.models if not model._meta.temporary]

    def plan(self) -> Plan:
        """Return what `up` would do, with the SQL of every step; changes nothing."""
        with self._connection():
            look = self._look(self._standing())
            _warn_of_names(look.declared)
            return look.plan

    def verify_schema(self) -> Changes:
        """Compare the whole schema: what is missing, what drifted, what is extra. Falsy when in sync."""
        with self._connection(), self._reading():
            declared, changes = self._compared()
            _warn_of_names(declared)
            return changes

    def check(self) -> SchemaCheck:
        """Tell whether the schema is in sync: one question where its stamp fits, else a full look; changes nothing."""
        with self._connection():
            standing = self._standing()
            version = standing.version if standing else None
            if self._is_stamped(standing):
                return SchemaCheck(version)
            with self._reading():
                declared, changes = self._compared()
            return SchemaCheck(version, tuple(changes.missing), tuple(changes.drift), declared.unproved)

    def version(self) -> int:
        """Return the recorded version, in epoch seconds; 0 before the first run."""
        with self._connection():
            return history.version(self.db)

    def status(self) -> list[MigrationStatus]:
        """Return the recorded runs, oldest first."""
        with self._connection():
            return history.status(self.db)

    def up(self) -> Report:
        """Apply what is pending, verify the outcome and record the run; one question and no lock when it is in sync.

        What can be done at once is done in one transaction, or not at all. What takes long on a large table
        follows, each step by itself; a run that ends in between leaves a schema that the next one completes.

        :raises MigrationRefused: when an addition would fail, lose data or stop the service; nothing was applied.
        :raises RightMissing: when something is pending that this role or server does not let us do.
        :raises StepFailed: when the database refused a statement; its transaction was rolled back.
        :raises VerificationFailed: when the outcome was not the declared schema; it was rolled back.
        :raises LockTimeout: when another migration, or a session in the way, went on for too long.
        """
        started = time.perf_counter()
        with self._connection():
            standing = self._standing()
            if standing and not self.record_all and self._is_stamped(standing):
                self.watcher.started(standing.version)
                plan, version, backup = Plan(self.engine.name, standing.version), standing.version, None
            else:
                plan, version, backup = self._up(standing)
            milliseconds = (time.perf_counter() - started) * 1000
            return Report(self.engine.name, plan.version, version, plan.pending, plan.drift, milliseconds, backup)

    def _up(self, standing: Standing | None) -> tuple[Plan, int, str | None]:
        """Look in full, apply what is pending, and return what was done, the version since, and the backup before."""
        look = self._look(standing)
        declared, plan, now = look.declared, look.plan, look.after
        self.watcher.started(plan.version)
        version, backup = plan.version, None
        if plan or self.record_all or self._is_unrecorded(now):
            plan, version, backup = self._apply(declared, plan, look.before)
        elif now and look.is_of_one_schema and not (plan.drift or declared.unproved):
            self._stamp(now)
        _warn_of_names(declared)
        for drift in plan.drift:
            logger.warning("drift, left as it is: %s", drift)
        return plan, version, backup

    def _look(self, before: Standing | None) -> _Look:
        """Look in full; again where somebody changed the schema meanwhile, for then the parts do not fit together."""
        for _ in range(LOOKS - 1):
            try:
                look = self._look_once(before)
                if not look.plan.refused or look.is_of_one_schema:
                    return look
                before = look.after
            except (peewee.PeeweeException, ModelError):
                after = self._standing()
                if before and after and before.mark == after.mark:
                    raise
                before = after
        return self._look_once(before)

    def _look_once(self, before: Standing | None) -> _Look:
        with self._reading():
            declared = self._declared()
            plan = self._plan(declared)
            # Another run may have changed the schema since the first question, and not have recorded it yet.
            after = self._standing()
        return _Look(declared, replace(plan, version=after.version) if after else plan, before, after)

    def _apply(self, declared: Schema, plan: Plan, standing: Standing | None) -> tuple[Plan, int, str | None]:
        """Do the work under the lock; look again first, unless nothing has changed since."""
        _check(plan, declared)
        try:
            with self.engine.lock(self.lock_timeout):
                self.engine.wait_for_builds(sorted({s.repairs for s in plan.pending if s.repairs}), self.lock_timeout)
                now = self._standing()
                if now is None or standing is None or now.mark != standing.mark:
                    with self._reading():
                        plan = self._plan(declared)
                    _check(plan, declared)
                plan = replace(plan, version=now.version) if now else plan  # somebody may just have recorded one
                backup = self.before_changes() if plan.pending else None
                if backup:
                    self.watcher.backed_up(backup)
                return plan, self._apply_locked(declared, plan, now), backup
        except peewee.PeeweeException as error:
            if is_right_missing(error):
                raise right_missing(plan, first_line(error)) from error
            raise

    def _apply_locked(self, declared: Schema, plan: Plan, standing: Standing | None) -> int:
        instant = [step for step in plan.pending if not step.online]
        online = [step for step in plan.pending if step.online]
        recording = bool(plan.pending) or self._is_unrecorded(standing) or (self.record_all and history.exists(self.db))

        def unlocked() -> None:
            for step in instant:
                if step.free:
                    self._execute(step)

        def at_once() -> int:
            for step in instant:
                if not step.free:
                    self._execute(step)
            now = self._standing() if instant or online else standing
            if instant:
                self._verify(declared, plan, online)
            if online:
                self._keep(now, replace(now.stamps, unrecorded=self._fingerprint()) if now and now.stamps else None)
                return plan.version
            return self._record(plan, now) if recording else plan.version

        locks = sorted({lock for step in instant for lock in step.locks})
        version = self.engine.transact(at_once, locks, self.lock_timeout, before=unlocked)
        if not online:
            return version
        return self._apply_online(declared, plan, online)

    def _apply_online(self, declared: Schema, plan: Plan, left: list[Step]) -> int:
        try:
            while left:
                self._execute_online(left[0])
                del left[0]
            now = self._standing()
            self._verify(declared, plan, ())
            return self.engine.transact(lambda: self._record(plan, now), (), self.lock_timeout)
        except peewee.PeeweeException as error:
            if is_right_missing(error):  # what was applied before it stays, and is not shown as pending
                raise right_missing(replace(plan, pending=tuple(left)), first_line(error)) from error
            raise

    def _execute(self, step: Step) -> None:
        self.watcher.step_started(step)
        for sql in step.sql:
            logger.info("%s: %s", step.title, sql)
            try:
                execute(self.db, sql)
            except peewee.PeeweeException as error:
                if self.engine.is_lock_failure(error) or is_right_missing(error):
                    raise
                raise step_failed(step, error) from error

    def _execute_online(self, step: Step) -> None:
        if step.repairs and not self.engine.is_invalid(step.builds):
            return  # who built it has just finished
        self.watcher.step_started(step)
        try:
            for sql in step.sql:
                logger.info("%s: %s", step.title, sql)
                self.engine.run_online(
                    sql, step.locks, self.lock_timeout, lambda progress: self.watcher.step_progress(step, progress)
                )
        except (peewee.PeeweeException, errors.LockTimeout) as error:
            if step.builds and not self.db.is_closed() and not is_there_already(error):
                with suppress(peewee.PeeweeException, errors.LockTimeout):  # the next run finds what is left
                    self.engine.discard_failed_build(step.builds)
            if isinstance(error, errors.LockTimeout) or is_right_missing(error):
                raise
            raise online_step_failed(step, error) from error
        finally:
            self.watcher.step_done(step)

    def _record(self, plan: Plan, standing: Standing | None) -> int:
        """Record the run, and stamp the schema that was verified with the mark of `standing`."""
        try:
            version = history.record(self.db)
        except peewee.PeeweeException as error:
            if self.engine.is_lock_failure(error) or is_right_missing(error):
                raise
            raise StepFailed(
                f"the run cannot be recorded in migration_versions: {first_line(error)}",
                "compare that table with the model MigrationVersion; nothing was changed",
            ) from error
        if standing and standing.stamps:
            stamps = replace(standing.stamps, unrecorded="")
            self._keep(standing, stamps if plan.drift else stamps.adding(self._fingerprint(), standing.mark))
        return version

    def _verify(self, declared: Schema, plan: Plan, later: Collection[Step]) -> None:
        """Compare again; `later` are steps that are not done yet."""
        outcome = (
            "what was applied stays" if any(s.online for s in plan.pending) and not later else "nothing was changed"
        )
        expected = {(step.table, step.name) for step in later}
        changes = self._changes(declared, self._snapshot())
        left = [
            f"{m.kind} {label(m.table)}.{m.name}" for m in changes.missing if (label(m.table), m.name) not in expected
        ]
        left += [str(d) for d in changes.drift if d not in plan.drift and (d.table, d.name) not in expected]
        if left:
            raise VerificationFailed(
                f"after all steps the schema still differs: {'; '.join(left)}",
                f"{outcome}; look for event triggers, or report this with the output of plan",
            )

    # The stamp

    def _stamped_models(self) -> list[ModelType]:
        # Not _all_models(), which asks for the default schema.
        return list(dict.fromkeys([*self.models, MigrationVersion]))

    def _fingerprint(self) -> str:
        return fingerprint(self.db, self._stamped_models())

    def _standing(self) -> Standing | None:
        return self.engine.standing(self._stamped_models())

    def _is_stamped(self, standing: Standing | None) -> bool:
        """Tell whether these models were found in this very schema before."""
        stamps = standing.stamps if standing else None
        return bool(standing and stamps and stamps.hold(self._fingerprint(), standing.mark))

    def _stamp(self, standing: Standing | None) -> None:
        if standing and standing.stamps is not None:
            self._keep(standing, standing.stamps.adding(self._fingerprint(), standing.mark))

    def _is_unrecorded(self, standing: Standing | None) -> bool:
        """Tell whether a run of these models was not recorded yet; who may not note that it is leaves it to others."""
        stamps = standing.stamps if standing and standing.may_write else None
        return bool(stamps and stamps.unrecorded and stamps.unrecorded == self._fingerprint())

    def _keep(self, standing: Standing | None, stamps: Stamps | None) -> None:
        if standing and standing.may_write and stamps is not None and stamps != standing.stamps:
            self.engine.keep(stamps)

    def _plan(self, declared: Schema) -> Plan:
        live = self._snapshot()
        version = history.version(self.db)
        changes = self._changes(declared, live)
        from .planner import make_plan  # not for a start that has nothing to find out

        return make_plan(self.engine, self._all_models(), changes, declared, live, version, self.online_rows)

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

    def _compared(self) -> tuple[Schema, Changes]:
        """Return the declared schema and all that the live one differs in, but for the history nobody has asked for."""
        declared = self._declared()
        changes = self._changes(declared, self._snapshot())
        keys = {self.engine.key(model) for model in self.models}
        return declared, replace(changes, missing=[m for m in changes.missing if not m.table[1] or m.table in keys])

    def _changes(self, declared: Schema, live: Schema) -> Changes:
        from .diff import diff

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
            raise database_failed(error) from error
        finally:
            if opened and not self.db.is_closed():
                self.db.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Look in a transaction that is rolled back: one state of things on SQLite, temporary tables on PostgreSQL."""
        with discarded(self.db, *self.engine.reading_mode):
            yield


def _configured_backup(db: peewee.Database) -> Callable[[], str | None]:
    """Return what makes a backup before a run changes anything, where a database's settings ask for that."""
    settings = getattr(db, "settings", None)
    return backup_before(settings) if settings and settings.backup_before_migrate else lambda: None


def backup_before(settings: Settings) -> Callable[[], str | None]:
    """Return what makes a backup of a database and returns its file; None where there is nothing in it yet."""

    def make() -> str | None:
        from ..backup import create  # not for a run that makes none

        if isinstance(settings.target, SqliteTarget):
            if settings.target.path is None:
                return None  # what is in memory only is gone with this process
            _require_shared(settings.target)
        try:
            return str(create(settings, purpose="before a migration").file)
        except NothingToBackUp:
            return None

    return make


def _require_shared(target: SqliteTarget) -> None:
    """Refuse what would wait for itself: a backup reads the file beside the run, which then holds it alone."""
    if target.pragmas.get("locking_mode", "").lower() == "exclusive":
        raise ConfigError(
            "no backup can be made beside this run, whose DSN says _locking_mode=exclusive",
            "leave that out of the DSN for the migration; or run python -m whatspire_db.backup create before, and then "
            "migrate without --backup and WHATSAPP_DATABASE_BACKUP_BEFORE_MIGRATE",
        )


def _warn_of_names(declared: Schema) -> None:
    if declared.unproved:
        logger.warning("compared by names alone: %s (%s)", *declared.unproved)


def _check(plan: Plan, declared: Schema) -> None:
    """Refuse what must not be begun."""
    if plan.refused:
        raise MigrationRefused(plan)
    if plan.pending and declared.unproved:
        raise right_missing(plan, *declared.unproved)
