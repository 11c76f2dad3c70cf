"""An undo: chooses the runs, plans under the lock, proves that nothing is lost, drops, and records itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

import peewee

from ..errors import (
    BackupFailed,
    ConfigError,
    StepFailed,
    UndoRefused,
    VerificationFailed,
    WhatspireDBError,
)
from ..messages import sqlstate
from . import history, records
from .applying import Applying, naming_what_is_pending
from .ddl import execute
from .engines.base import Engine
from .engines.undoing import undo_engine
from .plan import Step
from .records import UNFINISHED, Record
from .schema import Key, Schema, label
from .undo_plan import UndoPlan, UndoReport
from .undo_planner import keys_of, make_undo_plan, parts_left, proofs_in

logger = logging.getLogger("whatspire_db.migrate")

UNDO_NAME = "undo"  # of its row in the history
CHECK_VIOLATION = "23514"


@dataclass(frozen=True)
class Undoing:
    """The walk of an undo.

    :param before_changes: is called under the lock before anything is changed, and returns the file of its backup.
    :param with_data: drop what holds rows too, after a backup.
    """

    applying: Applying
    before_changes: Callable[[], str | None]
    with_data: bool

    @property
    def engine(self) -> Engine:
        return self.applying.engine

    def plan(self, to: int | None, counts: bool = True) -> UndoPlan:
        """Return what an undo would do; changes nothing.

        :param counts: look at each row of a large table too.
        :raises ConfigError: when no run has the version.
        """
        with self.applying.looking.reading():
            return self._plan(self._chosen(to), counts)[0]

    def chosen(self, to: int | None) -> tuple[int, ...]:
        """Return the versions of the runs that an undo would take back.

        :raises ConfigError: when no run has the version.
        """
        with self.applying.looking.reading():
            return tuple(record.version for record in self._chosen(to))

    def run(self, versions: Sequence[int]) -> UndoReport:
        """Take back the runs of some versions, as far as nobody else did meanwhile.

        :raises UndoRefused: when rows would be lost, or something depends on what would be dropped.
        """
        started = time.perf_counter()
        if versions:
            with self.engine.lock(self.applying.wait_seconds):
                plan, version, backup = self._under_lock(versions)
        else:
            plan, backup = self._nothing(), None
            version = plan.version
            if plan.notes:  # on what a killed one left
                with self.engine.lock(self.applying.wait_seconds):
                    self._withdraw()
        milliseconds = (time.perf_counter() - started) * 1000
        return UndoReport(
            self.engine.name, plan.version, version, plan.runs, plan.pending, plan.notes, milliseconds, backup
        )

    # Looking

    def _chosen(self, to: int | None) -> list[Record]:
        """Return the records of the runs that are to be taken back, the newest first."""
        found = [record for record in records.read(self.engine) if record.undone_by is None]
        if to is None:
            return found[:1]
        if to and to not in {run.version for run in history.status(self.engine)}:
            raise ConfigError(
                f"--to is {to}, and no run has that version", "status lists them; 0 undoes all that is recorded"
            )
        return [record for record in found if record.version > to or record.version == UNFINISHED]

    def _nothing(self) -> UndoPlan:
        with self.applying.looking.reading():
            return self._plan(())[0]

    def _plan(self, chosen: Sequence[Record], counts: bool = True) -> tuple[UndoPlan, Schema]:
        """Return the plan to take runs back, and the schema that it was made for."""
        version = history.version_or_zero(self.engine)
        if fence := self.engine.fence():
            raise fence.refusal()
        left_over = tuple(self._left_over())
        if not chosen:
            return UndoPlan(self.engine.name, version, notes=left_over), Schema({})
        live = self.engine.snapshot(keys_of(chosen))
        if refused := self.engine.refuses_everything(live) or undo_engine(self.engine).untrusted(list(live.tables)):
            raise refused
        online_rows = self.applying.looking.online_rows
        plan = make_undo_plan(self.engine, chosen, live, version, online_rows, self.with_data, counts)
        notes = (*plan.notes, *left_over, *self._unrecorded(chosen))
        return replace(plan, notes=notes, settings=self.engine.script_settings()), live

    def _unrecorded(self, chosen: Sequence[Record]) -> Iterator[str]:
        """Yield a note on the versions in between of which nobody recorded what they added."""
        known = {record.version for record in records.read(self.engine)}
        oldest = min((record.version for record in chosen if record.version != UNFINISHED), default=None)
        others = [
            run.version
            for run in history.status(self.engine)
            if oldest is not None and run.version > oldest and run.version not in known and run.name != UNDO_NAME
        ]
        if others:
            shown = ", ".join(map(str, others[:3])) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            yield (
                f"nobody recorded what {shown} added (a start of the Go service, or a run of another release): "
                "if it added something, that stays"
            )

    # Doing

    def _under_lock(self, versions: Sequence[int]) -> tuple[UndoPlan, int, str | None]:
        with self.applying.looking.reading():
            found = [r for r in records.read(self.engine) if r.version in versions and r.undone_by is None]
            marks = undo_engine(self.engine).marks([key for key in keys_of(found) if key[1]])
            plan, live = self._plan(found)
        self.applying.watcher.started(plan.version)
        if not plan:  # another undo was faster
            return plan, plan.version, None
        with self._clearing(plan), naming_what_is_pending(plan):
            if plan.refused:
                raise UndoRefused(plan)
            backup = self._backed_up(plan)
            try:
                for step in plan.online:
                    self.applying.execute_online(step)
                version = self.engine.transact(
                    lambda: self._drop(plan, found, live, marks),
                    sorted({lock for step in plan.at_once for lock in step.locks}),
                    self.applying.wait_seconds,
                )
            except StepFailed as failed:
                words = self._in_words(failed, found)
                if words is failed:  # which must not become its own cause
                    raise
                raise words from failed
        return plan, version, backup

    def _backed_up(self, plan: UndoPlan) -> str | None:
        """Make the backup that is asked for, and return its file.

        :raises BackupFailed: when there is none, and rows would be lost.
        """
        backup = self.before_changes() if plan.pending else None
        if backup:
            self.applying.watcher.backed_up(backup)
        elif self.with_data and plan.pending:
            raise BackupFailed(
                "no backup was made, and this undo may drop rows; nothing was changed",
                "give before_changes something that makes one and returns its file",
            )
        return backup

    def _drop(self, plan: UndoPlan, found: Sequence[Record], live: Schema, marks: Mapping[Key, str]) -> int:
        """Drop everything, prove that the rest is as it was, and record it."""
        self._recognize(plan, marks)
        self.applying.execute_all(plan.at_once)
        self._verify(plan, found, live)
        version = history.record(self.engine, UNDO_NAME)
        records.mark_undone(self.engine, found, version)
        if any(record.version == UNFINISHED for record in found):
            stamping = self.applying.looking.stamping
            stamping.keep_undone(stamping.standing())
        return version

    def _recognize(self, plan: UndoPlan, marks: Mapping[Key, str]) -> None:
        """Make sure that the tables to drop are still those of the plan: of what is dropped no look can tell later."""
        going = {step.table for step in plan.at_once if step.kind == "drop_table"}
        keys = [key for key in marks if label(key) in going]
        now = undo_engine(self.engine).marks(keys)
        if changed := [label(key) for key in keys if marks[key] != now[key]]:
            raise VerificationFailed(
                f"{', '.join(changed)} was changed by somebody else since the undo was planned",
                "nothing was dropped there; run undo again, which makes a new plan",
            )

    def _verify(self, plan: UndoPlan, found: Sequence[Record], live: Schema) -> None:
        """Compare the tables with what they were, but for what was to go."""
        after = self.engine.snapshot(keys_of(found))
        wanted, got = parts_left(found, live), parts_left((), after)
        wrong = [label(key) for key in {*wanted, *got} if wanted.get(key) != got.get(key)]
        if wrong:
            raise VerificationFailed(
                f"after all steps these tables are not as they would be without what was added: {', '.join(wrong)}",
                "nothing was changed; look for event triggers, or report this with the output of undo --plan",
            )

    # Proofs

    @contextmanager
    def _clearing(self, plan: UndoPlan) -> Iterator[None]:
        """Remove, however it ends, the constraints that keep writers from storing values, also of a killed undo.

        What stays half done is reported: with the error, or in the log if there is none.
        """
        failed: WhatspireDBError | None = None
        is_done = False
        try:
            yield
            is_done = True
        except WhatspireDBError as error:
            failed = error
            raise
        finally:
            left: list[str] = []
            with suppress(peewee.PeeweeException, WhatspireDBError):
                self._withdraw()
            with suppress(peewee.PeeweeException, WhatspireDBError):
                left = list(self._left_behind(() if is_done else plan.online))
            if failed:
                failed.hint = "; ".join([*left, failed.hint])
            elif left:
                logger.warning("%s", "; ".join(left))

    def _left_behind(self, online: Sequence[Step]) -> Iterator[str]:
        """Yield what an undo has done that does not end with its transaction, and what comes of it."""
        if not self.engine.builds_online or self.engine.db.is_closed():
            return
        live = self.engine.snapshot(keys_of(records.read(self.engine)))
        found = {(label(key), index.name): index.valid for key, table in live.tables.items() for index in table.indexes}
        indexes = {step.name: found.get((step.table, step.name)) for step in online if step.kind == "drop_index"}
        if gone := [name for name, is_valid in indexes.items() if is_valid is None]:
            yield f"the indexes {', '.join(gone)} are dropped, and the next up makes them again"
        if broken := [name for name, is_valid in indexes.items() if is_valid is False]:
            yield f"the indexes {', '.join(broken)} are left INVALID: the next undo drops them, or up rebuilds them"
        for key, names in proofs_in(live).items():
            yield f"{', '.join(names)} could not be removed from {label(key)}, and refuses values: run undo again"

    def _withdraw(self) -> None:
        if not self.engine.builds_online or self.engine.db.is_closed():
            return
        undo = undo_engine(self.engine)
        for key, names in self._proofs().items():
            statements = [undo.withdraw(key, name) for name in names]
            locks = [(undo.name(key), undo.lock)]
            self.engine.transact(partial(self._execute, statements), locks, self.applying.wait_seconds)

    def _proofs(self) -> dict[Key, list[str]]:
        """Return the constraints that a killed undo left, by their tables."""
        if not self.engine.builds_online:
            return {}
        return proofs_in(self.engine.snapshot(keys_of(records.read(self.engine))))

    def _left_over(self) -> Iterator[str]:
        """Yield a note on each table that a killed undo left constraints on."""
        for key, names in self._proofs().items():
            yield (
                f"an undo that was killed left {', '.join(names)} on {label(key)}, which refuses values: run undo, "
                "which removes it even if there is nothing to undo"
            )

    def _execute(self, statements: Sequence[str]) -> None:
        for sql in statements:
            execute(self.engine.db, sql)

    def _in_words(self, failed: StepFailed, found: Sequence[Record]) -> UndoRefused | StepFailed:
        """Return the refusal of what a proof has found: a row that was written after the plan was made."""
        if failed.__cause__ is None or sqlstate(failed.__cause__) != CHECK_VIOLATION:
            return failed
        with self.applying.looking.reading():
            plan, _ = self._plan(found)
        return UndoRefused(plan) if plan.refused else failed
