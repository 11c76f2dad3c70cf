"""Carrying out a plan under the lock: the transaction, the online steps after it, the proof and the record."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import peewee

from ..connection.patience import Patience, is_loss
from ..errors import LockTimeout, StepFailed, VerificationFailed
from ..messages import first_line, hint, is_right_missing, is_there_already
from ..models.service import MigrationVersion
from . import history, records
from .added import Added, additions, described, joined
from .ddl import execute
from .engines.base import Engine
from .failures import online_step_failed, right_missing, step_failed
from .full_look import Looking
from .plan import Plan, Step
from .progress import Watcher
from .schema import Schema, label
from .stamp import Standing
from .undo_plan import UndoPlan

logger = logging.getLogger("whatspire_db.migrate")

TOGETHER = 30  # steps in one message


@dataclass(frozen=True)
class Applying:
    """Applies plans, while the migration lock is held.

    What can be done at once is done in one transaction, or not at all; what takes long on a large table follows, each
    step by itself.

    :param record_all: record a run that changed nothing too.
    :param patience: is told the step that is being applied, for the message of a lost session.
    """

    looking: Looking
    watcher: Watcher
    patience: Patience
    record_all: bool

    @property
    def engine(self) -> Engine:
        return self.looking.engine

    @property
    def db(self) -> peewee.Database:
        return self.engine.db

    @property
    def wait_seconds(self) -> float:
        """How long a step waits for locks."""
        return self.looking.stamping.wait_seconds

    def apply(self, declared: Schema, plan: Plan, standing: Standing | None) -> int:
        """Apply a plan, verify the outcome and record the run; return the version since.

        :param standing: how the database stands before.
        """
        with naming_what_is_pending(plan):
            version = self._apply_at_once(declared, plan, standing)
            return self._apply_online(declared, plan) if plan.online else version

    def _apply_at_once(self, declared: Schema, plan: Plan, standing: Standing | None) -> int:
        """Run the transaction."""
        is_recorded = bool(plan.pending) or self._is_recorded_anyway(standing)
        return self.engine.transact(
            lambda: self._change(declared, plan, standing, is_recorded),
            sorted({lock for step in plan.at_once for lock in step.locks}),
            self.wait_seconds,
            before=lambda: self._execute_free([step for step in plan.at_once if step.free]),
        )

    def _change(self, declared: Schema, plan: Plan, standing: Standing | None, is_recorded: bool) -> int:
        """Do all that needs locks, and what ends the transaction: prove it, then record it or note what is left."""
        self.execute_all(step for step in plan.at_once if not step.free)
        now = self.looking.stamping.standing() if plan.pending else standing
        live = self._verify(declared, plan, plan.online) if plan.at_once else None
        if plan.online:  # it may be killed before it has recorded itself
            records.write(self.engine, records.UNFINISHED, self._added(declared, plan, now, live))
            self.looking.stamping.keep_unrecorded(now)
            return plan.version
        return self._record(plan, now, self._added(declared, plan, now, live)) if is_recorded else plan.version

    def _is_recorded_anyway(self, standing: Standing | None) -> bool:
        """Tell whether a run that changes nothing is recorded all the same."""
        is_due = self.looking.stamping.is_unrecorded(standing) or (self.record_all and history.exists(self.engine))
        return is_due and self._may_record()

    def _apply_online(self, declared: Schema, plan: Plan) -> int:
        left = plan.online
        try:
            while left:
                self.execute_online(left[0])
                left = left[1:]
            now = self.looking.stamping.standing()
            with self.looking.reading():  # what is shown of a constant depends on the session's settings
                live = self._verify(declared, plan, ())
            return self.engine.transact(
                lambda: self._record(plan, now, self._added(declared, plan, now, live)), (), self.wait_seconds
            )
        except peewee.PeeweeException as error:
            if is_right_missing(error):  # what was applied before it stays, and is not shown as pending
                raise right_missing(replace(plan, pending=left), first_line(error), hint(error)) from error
            raise

    def _execute_free(self, steps: Sequence[Step]) -> None:
        """Run steps that take no lock of others: many to a message, where the engine takes that."""
        # One of them may have crashed the server: each by itself shows which.
        size = TOGETHER if self.engine.takes_many_statements and not self.patience.has_lost_a_step else 1
        for start in range(0, len(steps), size):
            chunk = steps[start : start + size]
            self._announce(chunk)
            if len(chunk) == 1 or not self._is_done_together(chunk):
                for step in chunk:
                    self._execute(step)

    def _is_done_together(self, steps: Sequence[Step]) -> bool:
        """Run steps as one message; tell whether that went well, for each by itself says which one fails."""
        try:
            with self.db.atomic():
                execute(self.db, ";\n".join(sql for step in steps for sql in step.sql))
        except peewee.PeeweeException as error:
            if self.engine.is_lock_failure(error) or is_right_missing(error) or is_loss(error):
                raise
            return False
        return True

    def execute_all(self, steps: Iterable[Step]) -> None:
        """Run steps within the transaction that is open."""
        for step in steps:
            self._announce([step])
            self._execute(step)

    def _announce(self, steps: Sequence[Step]) -> None:
        self.patience.doing = [step.title for step in steps]
        for step in steps:
            self.watcher.step_started(step)
            for sql in step.sql:
                logger.info("%s: %s", step.title, sql)

    def _execute(self, step: Step) -> None:
        for sql in step.sql:
            try:
                execute(self.db, sql)
            except peewee.PeeweeException as error:
                if self.engine.is_lock_failure(error) or is_right_missing(error):
                    raise
                raise step_failed(step, error) from error

    def execute_online(self, step: Step) -> None:
        """Run a step outside of the transaction."""
        if step.repairs and not self.engine.is_invalid(step.builds):
            return  # who built it has just finished
        self.patience.doing = [step.title]
        self.watcher.step_started(step)
        try:
            for sql in step.sql:
                logger.info("%s: %s", step.title, sql)
                self.engine.run_online(
                    sql, step.locks, self.wait_seconds, lambda progress: self.watcher.step_progress(step, progress)
                )
        except (peewee.PeeweeException, LockTimeout) as error:
            if step.builds and not self.db.is_closed() and not is_there_already(error):
                with suppress(peewee.PeeweeException, LockTimeout):  # the next run finds what is left
                    self.engine.discard_failed_build(step.builds)
            if isinstance(error, LockTimeout) or is_right_missing(error):
                raise
            raise online_step_failed(step, error) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*self._left_by_interrupt(step)) from None
        finally:
            self.watcher.step_done(step)

    def _may_record(self) -> bool:
        """Tell whether a row of the history runs no code of others; without one, a run that changes nothing goes on."""
        found = self.engine.untrusted_table(MigrationVersion)
        if found:
            logger.warning("this run is not recorded in migration_versions: %s (%s)", found.fact, found.hint)
        return not found

    def _left_by_interrupt(self, step: Step) -> tuple[str, str]:
        """Return fact and hint about an online step that was interrupted."""
        is_left = False
        with suppress(peewee.PeeweeException):
            is_left = bool(step.builds) and not self.db.is_closed() and self.engine.is_invalid(step.builds)
        left = f"; the index {step.builds} is left INVALID" if is_left else ""
        return (
            f"interrupted during {step.title}; what was applied before it stays{left}",
            "run it again: it goes on from there" + (", and builds the index anew" if is_left else ""),
        )

    def _added(self, declared: Schema, plan: Plan, standing: Standing | None, live: Schema | None) -> list[Added]:
        """Return what a run has added, with what one that was killed has noted, and how it all stands."""
        noted = records.take_unfinished(self.engine) if _may_be_unfinished(standing) else []
        added = joined(noted, additions(plan.pending, declared))
        seen = {self.engine.key(model) for model in self.looking.all_models} | {("", "")}
        others = [each for each in added if each.table not in seen]  # of a run of other models
        mine = [each for each in added if each.table in seen]
        return [*others, *described(mine, live or self.looking.snapshot())] if mine else others

    def _record(self, plan: Plan, standing: Standing | None, added: Sequence[Added]) -> int:
        """Record the run, and stamp the schema that was verified with the mark of `standing`."""
        try:
            version = history.record(self.engine, newest=standing.version if standing else None)
            if added:
                records.write(self.engine, version, [each for each in added if each.definition is not None])
        except peewee.PeeweeException as error:
            if self.engine.is_lock_failure(error) or is_right_missing(error):
                raise
            raise StepFailed(
                f"the run cannot be recorded in migration_versions: {first_line(error)}",
                "compare that table with the model MigrationVersion; nothing was changed",
            ) from error
        self.looking.stamping.keep_recorded(standing, plan.drift, is_found=not plan.left)
        return version

    def _verify(self, declared: Schema, plan: Plan, later: Collection[Step]) -> Schema:
        """Compare again, and return the live schema; `later` are steps that are not done yet."""
        outcome = "what was applied stays" if plan.online and not later else "nothing was changed"
        expected = {(step.table, step.name) for step in later}
        live = self.looking.snapshot()
        changes = self.looking.changes(declared, live)
        left = [
            f"{m.kind} {label(m.table)}.{m.name}" for m in changes.missing if (label(m.table), m.name) not in expected
        ]
        drift = (d for d in changes.drift if d not in plan.drift)
        left += [str(d) for d in drift if expected.isdisjoint({(d.table, name) for name in d.names})]
        if left:
            raise VerificationFailed(
                f"after all steps the schema still differs: {'; '.join(left)}",
                f"{outcome}; look for event triggers, or report this with the output of plan",
            )
        return live


def _may_be_unfinished(standing: Standing | None) -> bool:
    """Tell whether a run may have noted what it added without having recorded itself."""
    return standing is None or standing.stamps is None or bool(standing.stamps.unrecorded)


@contextmanager
def naming_what_is_pending(plan: Plan | UndoPlan) -> Iterator[None]:
    """Let a right that is missing be reported with what somebody else has to do."""
    try:
        yield
    except peewee.PeeweeException as error:
        if is_right_missing(error):
            raise right_missing(plan, first_line(error), hint(error)) from error
        raise
