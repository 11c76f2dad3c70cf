"""What a user calls: MigrationRunner, whose start finds its stamp and is done, or has the rest of the walk imported."""

from __future__ import annotations

import functools
import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import peewee

from ..connection.database import Pooling
from ..connection.patience import Patience
from ..errors import MigrationRefused, WhatspireDBError
from ..light_stdlib import TYPE_CHECKING, Any, TypeVar, replace
from ..messages import database_failed, in_words
from ..models.base import data_migrations_of, listed, usual_models
from ..models.service import MigrationVersion
from ..settings.durations import seconds_of
from . import history
from .ddl import ModelType
from .engines.base import LOOK_SECONDS, engine_for
from .history import MigrationStatus
from .plan import Plan
from .progress import Watcher
from .reports import Done, Report, SchemaCheck
from .stamp import Standing
from .stamping import Stamping, accepted_differences

if TYPE_CHECKING:
    from ..data import DataOutcome, DataState
    from ..models.data_migrations import DataMigration
    from ..transfer.fence import Fence
    from .applying import Applying
    from .diff import Changes
    from .full_look import Comparison, Looking
    from .mending import Mending
    from .schema import Schema
    from .times import TimeNote
    from .undo_plan import UndoPlan, UndoReport
    from .undoing import Undoing

logger = logging.getLogger("whatspire_db.migrate")
T = TypeVar("T")

LOCK_TIMEOUT_SECONDS = LOOK_SECONDS
# An index on so many rows is built in some 10 ms, about as long as a commit takes; writers wait no longer than that.
ONLINE_ROWS = 10_000
MANY = 300  # tables


def _patient(verb: Callable[[MigrationRunner], T]) -> Callable[[MigrationRunner], T]:
    """Have a verb wait for a server that is full, starting or failing over, and begin again after a lost session."""

    @functools.wraps(verb)
    def run(self: MigrationRunner) -> T:
        return self._patiently(lambda: verb(self))

    return run


@contextmanager
def _uncollected(is_large: bool) -> Iterator[None]:
    """Pause the garbage collector during a large run: it would scan values that all live until the end."""
    pauses = is_large and gc.isenabled()
    if pauses:
        gc.disable()
    try:
        yield
    finally:
        if pauses:
            gc.enable()


class MigrationRunner:
    """Brings a database to the schema that models declare, by adding what is missing.

    :param db: any peewee database for SQLite or PostgreSQL.
    :param models: default: the service's, unless the settings of `connect` leave them out, and every other subclass
        of BaseModel that was imported.
    :param lock_timeout: how long to wait for another migration to end, and for a lock that stops a look or a step:
        seconds, a timedelta or a text like 5s.
    :param online_rows: tables with more rows get indexes concurrently, and constraints in two steps (PostgreSQL);
        an addition that would rewrite or scan them while they are locked is refused.
    :param wait_for_server: how long to wait for a server that does not answer at all; one that answers but is full,
        starting or failing over is waited for as long as `lock_timeout`, and so is one that was lost during the run.
    :param watcher: hears how far the run is; default: long steps go to the log.
    :param record_all: record runs that changed nothing too, as the Go service does.
    :param before_changes: is called under the lock before anything is changed, and returns the file of the backup that
        it made, if it did; default: a backup, where the settings of `connect` ask for one.
    :param trust_source: let a PostgreSQL superuser run code of other roles that a step could reach: functions,
        triggers, checks of their tables; default: such a run is refused.
    :param data: data migrations, which `up` runs after the steps; default: those declared for the models.
    :param stall: how long others may wait for a batch of a data migration; default: as the settings of `connect` say.
    :param accepted_drift: differences that count as none, as `verify --json` lists them under drift; each covers
        exactly that difference. Default: those of the settings of `connect`.
    :raises ModelError: when the database is of another kind, or two models declare one table.
    :raises ConfigError: when what is accepted is no list of differences.
    """

    def __init__(
        self,
        db: peewee.Database,
        models: Sequence[ModelType] | None = None,
        *,
        record_all: bool = False,
        before_changes: Callable[[], str | None] | None = None,
        lock_timeout: float | timedelta | str = LOCK_TIMEOUT_SECONDS,
        online_rows: int = ONLINE_ROWS,
        watcher: Watcher | None = None,
        wait_for_server: float | timedelta | str = 0,
        trust_source: bool = False,
        accepted_drift: Iterable[Mapping[str, Any]] | None = None,
        data: Sequence[DataMigration] | None = None,
        stall: float | timedelta | str | None = None,
    ) -> None:
        self.engine = engine_for(db, trust_source)
        self.db = self.engine.db
        found = usual_models(self.db) if models is None else listed(models)
        # A temporary table is gone with its session: nothing to migrate.
        self.models: list[ModelType] = [model for model in found if not model._meta.temporary]
        self.data = data_migrations_of(self.models) if data is None else tuple(data)
        self.stall = stall
        self.record_all = record_all
        self.before_changes = before_changes or _configured_backup(self.db)
        self.lock_timeout = seconds_of("lock_timeout", lock_timeout)
        self.online_rows = online_rows
        self.accepted_drift = accepted_differences(self.db, accepted_drift)
        self.watcher = watcher or Watcher()
        self.wait_for_server = seconds_of("wait_for_server", wait_for_server)
        self._patience = Patience(self.lock_timeout, self.wait_for_server)

    def _patiently(self, verb: Callable[[], T]) -> T:
        self._patience = Patience(self.lock_timeout, self.wait_for_server)
        try:
            with _uncollected(len(self.models) > MANY):
                return self._patience.run(verb, self._let_go)
        finally:
            self.engine.forget()

    @property
    def _stamping(self) -> Stamping:
        names = frozenset(migration.name for migration in self.data)
        return Stamping(self.engine, self.models, self.lock_timeout, self.accepted_drift, names)

    @property
    def _looking(self) -> Looking:
        from .full_look import Looking  # not for a start that finds its stamp

        return Looking(self._stamping, self.online_rows)

    @property
    def stamped_models(self) -> list[ModelType]:
        """The models that a stamp is about: the runner's, and the one of the history."""
        return self._stamping.stamped_models

    def fence(self) -> Fence | None:
        """Return where the rows of this database were moved to, and when; None if they are here."""
        with self._connection():
            return self.engine.fence()

    @_patient
    def plan(self) -> Plan:
        """Return what `up` would do, with the SQL of every step; changes nothing."""
        from .full_look import warn_of_names

        with self._connection():
            look = self._looking.look(self._stamping.standing())
            warn_of_names(look.declared)
            return replace(look.plan, settings=self.engine.script_settings())

    @_patient
    def verify_schema(self) -> Changes:
        """Compare the whole schema: what is missing, what drifted, what is extra. Falsy when in sync."""
        from .full_look import warn_of_names

        with self._connection(), self._looking.reading():
            declared, changes = self._looking.compared()
            warn_of_names(declared)
            return changes

    @_patient
    def mending(self) -> Mending:
        """Return what `verify_schema` finds, with the statements that would mend the drift; runs none of them."""
        from .full_look import warn_of_names

        with self._connection(), self._looking.reading():
            declared, mending = self._looking.mending()
            warn_of_names(declared)
            return mending

    @_patient
    def comparison(self) -> Comparison:
        """Return both schemas, how they differ, what would mend that, and what `up` would do; changes nothing."""
        with self._connection(), self._looking.reading():
            return self._looking.comparison()

    @_patient
    def live_schema(self) -> Schema:
        """Return the live schema with all of its tables, also those that no model stands for."""
        with self._connection(), self._looking.reading():
            return self._looking.whole()

    def time_notes(self, newest: int | None = None) -> tuple[TimeNote, ...]:
        """Return what the rows say of times that are not UTC, which no difference of the schema shows.

        :param newest: look at that many rows of each table, the newest that an index gives; default: at all.
        """
        with self._connection(), self._looking.reading():
            return self.engine.time_notes(self.models, newest)

    def check(self) -> SchemaCheck:
        """Tell whether the schema is in sync: one question where its stamp fits, else a full look; changes nothing."""
        with self._connection():
            standing = self._stamping.standing()
            version = standing.version or None if standing else None  # 0 may be what a policy left to see
            if (drift := self._stamping.drift(standing)) is not None:
                return SchemaCheck(version, drift=drift)
            with self._looking.reading():
                declared, changes = self._looking.compared()
            return SchemaCheck(version, tuple(changes.missing), tuple(changes.drift), declared.unproved)

    @_patient
    def version(self) -> int:
        """Return the recorded version, in epoch seconds; 0 before the first run."""
        with self._connection():
            standing = self.engine.standing([MigrationVersion], self.lock_timeout)
            if standing is not None and standing.version:
                return standing.version
            with self._looking.reading():
                return history.version(self.engine)

    @_patient
    def status(self) -> list[MigrationStatus]:
        """Return the recorded runs, oldest first, with what each added where that was recorded too."""
        from .records import with_added

        with self._connection(), self._looking.reading():
            return with_added(self.engine, history.status(self.engine))

    @_patient
    def up(self) -> Report:
        """Apply what is pending, verify the outcome and record the run; one question and no lock when it is in sync.

        Data migrations come last. While another worker runs them, they are reported as left, and not waited for.

        What can be done at once is done in one transaction, or not at all. What takes long on a large table
        follows, each step by itself; a run that ends in between leaves a schema that the next one completes.

        :raises MigrationRefused: when an addition would fail, lose data or stop the service; nothing was applied.
        :raises RightMissing: when something is pending that this role or server does not let us do.
        :raises StepFailed: when the database refused a statement; its transaction was rolled back.
        :raises VerificationFailed: when the outcome was not the declared schema; it was rolled back.
        :raises LockTimeout: when another migration, or a session in the way, went on for too long.
        :raises DataMigrationFailed: when the function of a data migration failed; the schema is done then.
        """
        started = time.perf_counter()
        with self._connection():
            standing = self._stamping.standing()
            try:
                done = self._as_stamped(standing) or self._upgrade(standing)
            except MigrationRefused as refused:
                _warn_of_renamings(refused.plan)
                raise
            data = self._change_rows(standing, backed_up=bool(done.backup))
            return replace(self._reported(done, started), data=data)

    def _change_rows(self, standing: Standing | None, backed_up: bool) -> DataOutcome | None:
        """Run the data migrations that are left, unless somebody else does."""
        if not self.data or self._stamping.has_finished(standing):
            return None
        from ..data.after_schema import change_rows  # not for a start without any

        return change_rows(self, self._stamping, standing, backed_up)

    def data_states(self) -> list[DataState]:
        """Return how the data migrations of this run stand; as "unknown" where this role may not read that."""
        if not self.data:
            return []
        from ..data.after_schema import states_of

        with self._connection():
            return states_of(self, self._stamping)

    def undo_plan(self, to: int | None = None, *, with_data: bool = False, counts: bool = True) -> UndoPlan:
        """Return what `undo` would do, with the SQL of every step; changes nothing.

        :param counts: look at each row of the tables that have more than `online_rows` too; without, a note names the
            columns that were not looked at.
        :raises ConfigError: when no run has the version `to`.
        """
        return self._patiently(lambda: self._connected(lambda: self._undoing(with_data).plan(to, counts)))

    def undo(self, to: int | None = None, *, with_data: bool = False) -> UndoReport:
        """Drop what the last recorded run added, or all runs that are newer than a version, and record that.

        Nothing that holds rows is dropped, nothing that was changed since, and nothing that others depend on.

        :param to: the version that becomes the newest one that is not undone; 0 undoes all that is recorded.
        :param with_data: drop what holds rows too, after the backup that `before_changes` makes.
        :raises UndoRefused: when it would lose or break something; nothing was dropped.
        :raises ConfigError: when no run has the version `to`.
        :raises StepFailed: when the database refused a statement; its transaction was rolled back.
        :raises LockTimeout: when another migration, or a session in the way, went on for too long.
        """
        # What is chosen before a session is lost stays what is undone.
        chosen = self._patiently(lambda: self._connected(lambda: self._undoing(with_data).chosen(to)))
        return self._patiently(lambda: self._connected(lambda: self._undoing(with_data).run(chosen)))

    def _connected(self, work: Callable[[], T]) -> T:
        with self._connection():
            return work()

    def _undoing(self, with_data: bool) -> Undoing:
        from .undoing import Undoing

        return Undoing(self._applying(), self.before_changes, with_data)

    def up_as_stamped(self, standing: Standing | None) -> Report | None:
        """Return what `up` reports for an answer that fits the stamp; None where a run has to look.

        :param standing: the answer to a question that the caller asked, also of another schema than the session's.
        """
        started = time.perf_counter()
        done = self._as_stamped(standing)
        return self._reported(done, started) if done else None

    def _reported(self, done: Done, started: float) -> Report:
        plan, version, backup = done
        for drift in plan.drift:
            logger.warning("drift, left as it is: %s", drift)
        for left in plan.left:
            logger.warning("%s", left)
        _warn_of_renamings(plan)
        milliseconds = (time.perf_counter() - started) * 1000
        return Report(self.engine.name, plan.version, version, plan.pending, plan.drift, milliseconds, backup)

    def _as_stamped(self, standing: Standing | None) -> Done | None:
        """Return what a run has done that finds its stamp: nothing; None where it has to look."""
        plan = None if self.record_all else self._stamping.plan(standing)
        if plan is None:
            return None
        self.watcher.started(plan.version)
        return Done(plan, plan.version)

    def _upgrade(self, standing: Standing | None) -> Done:
        from .upgrade import Upgrade

        return Upgrade(self._applying(), self.before_changes, self._as_stamped).run(standing)

    def _applying(self) -> Applying:
        from .applying import Applying

        return Applying(self._looking, self.watcher, self._patience, self.record_all)

    def _let_go(self) -> bool:
        """Hold no place on a server that is full or gone; return whether a next attempt gets another session.

        A plain Peewee database goes on with the dead connection that its caller holds.
        """
        if isinstance(self.db, Pooling):
            self.db.close_idle()
            return True
        return bool(self.db.is_closed())

    @contextmanager
    def _connection(self) -> Iterator[None]:
        """Use the connection of this thread, or open one for as long as needed; put driver errors in words."""
        if self.db.in_transaction():
            raise WhatspireDBError(
                "a migration cannot run inside a transaction", "commit first; the migration opens its own"
            )
        opened = self.db.connect(reuse_if_open=True) and not self.engine.is_in_memory()
        self._patience.has_connected = True
        try:
            yield
        except peewee.PeeweeException as error:
            if self.engine.is_lock_failure(error) and not self.db.is_closed():
                raise self.engine.locked_out(self._stamping.stamped_models, self.lock_timeout) from error
            raise database_failed(error) from error
        except UnicodeError as error:
            raise in_words(error) or error from error
        finally:
            if opened and not self.db.is_closed():
                self.db.close()


def _warn_of_renamings(plan: Plan) -> None:
    for renaming in plan.renamed:
        logger.warning("%s", renaming)


def _configured_backup(db: peewee.Database) -> Callable[[], str | None]:
    """Return what a database's settings ask for before a run changes anything."""
    settings = getattr(db, "settings", None)
    return (settings.before_migration() if settings else None) or (lambda: None)
