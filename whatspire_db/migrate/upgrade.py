"""A run whose stamp does not fit: looks, and where there is something to do takes the lock, looks again and does it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import peewee

from ..errors import LockTimeout, MigrationRefused, RightMissing, StepFailed, WhatspireDBError
from ..messages import first_line
from .applying import Applying, naming_what_is_pending
from .engines.base import Engine
from .failures import right_missing
from .full_look import Look, Looking, warn_of_names
from .plan import Plan
from .reports import Done
from .schema import Schema
from .stamp import Standing
from .stamping import Stamping

logger = logging.getLogger("whatspire_db.migrate")

QUICK_LOOK_SECONDS = 1.0  # after another migration was waited for in vain


@dataclass(frozen=True)
class Upgrade:
    """The walk of `up` behind the stamp.

    :param before_changes: is called under the lock before anything is changed, and returns the file of its backup.
    :param as_stamped: returns what a run has done that finds its stamp; None where it has to look.
    """

    applying: Applying
    before_changes: Callable[[], str | None]
    as_stamped: Callable[[Standing | None], Done | None]

    @property
    def engine(self) -> Engine:
        return self.looking.engine

    @property
    def looking(self) -> Looking:
        return self.applying.looking

    @property
    def stamping(self) -> Stamping:
        return self.looking.stamping

    @property
    def wait_seconds(self) -> float:
        """How long to wait for another migration."""
        return self.stamping.wait_seconds

    def run(self, standing: Standing | None) -> Done:
        """Look in full and apply what is pending; one run at a time, where the look costs the server something."""
        if self.stamping.is_other_online(standing) or not self.engine.looks_alone(standing):
            look = self.looking.look(standing)
            return self._take_lock_and_apply(look) if self._has_work(look) else self._in_sync(look)
        is_alone = False
        self.stamping.fingerprint()  # takes a moment for many models, and is kept with them: not under the lock
        try:
            with self.engine.lock(self.wait_seconds):
                is_alone = True
                return self._run_alone()
        except LockTimeout as timeout:
            if is_alone:
                raise
            return self._without_lock(standing, timeout)

    def _run_alone(self) -> Done:
        standing = self.stamping.standing()
        if done := self.as_stamped(standing):  # another run was faster
            return done
        look = self.looking.look(standing)
        if not self._has_work(look):
            return self._adopt(look, looked_alone=True) or self._nothing_to_do(look)
        self.applying.watcher.started(look.plan.version)
        _check(look.plan, look.declared)
        return self._apply(look, looked_alone=True)

    def _in_sync(self, look: Look) -> Done:
        """Return what a run has done that finds nothing to do; it adopts a database that has no history."""
        if not look.plan.adoption:
            return self._nothing_to_do(look)
        try:
            with self.engine.lock(self.wait_seconds):
                adopted = self._adopt(look)
        except (LockTimeout, peewee.PeeweeException) as error:  # the next start does
            logger.info("this database is in sync, and was not adopted: %s", first_line(error))
            adopted = None
        return adopted or self._nothing_to_do(look)

    def _adopt(self, look: Look, *, looked_alone: bool = False) -> Done | None:
        """Create the history of a database in sync and record a version; None if that is not wanted or fails."""
        if not look.plan.adoption:
            return None
        work = replace(look, plan=replace(look.plan, pending=look.plan.adoption, adoption=()))
        try:
            return self._apply(work, looked_alone=looked_alone)
        except (RightMissing, StepFailed) as error:
            logger.info("this database is in sync, and was not adopted: %s (%s)", error.fact, error.hint)
            return None

    def _without_lock(self, standing: Standing | None, timeout: LockTimeout) -> Done:
        """Return what a run has done that has nothing to do, while another one builds an index for hours.

        :raises LockTimeout: when there is something to do, or no way to find out.
        """
        try:
            look = self.looking.look(standing, min(self.wait_seconds, QUICK_LOOK_SECONDS))
        except (peewee.PeeweeException, WhatspireDBError):
            raise timeout from None
        if self._has_work(look):
            raise timeout
        return self._nothing_to_do(look)

    def _has_work(self, look: Look) -> bool:
        return bool(look.plan) or self.applying.record_all or self.stamping.is_unrecorded(look.after)

    def _nothing_to_do(self, look: Look) -> Done:
        self.applying.watcher.started(look.plan.version)
        # What an undo has left keeps values out: each start is to tell that.
        if look.is_of_one_schema and not look.declared.unproved and not look.plan.left:
            self.stamping.keep_found(look.after, look.plan.drift)
        warn_of_names(look.declared)
        return Done(look.plan, look.plan.version)

    def _take_lock_and_apply(self, look: Look) -> Done:
        self.applying.watcher.started(look.plan.version)
        _check(look.plan, look.declared)
        with naming_what_is_pending(look.plan), self.engine.lock(self.wait_seconds):
            return self._apply(look)

    def _apply(self, look: Look, *, looked_alone: bool = False) -> Done:
        """Do the work, holding the lock; look again first, unless nothing has changed since.

        :param looked_alone: the look was taken under the lock, so no other run can have changed the schema since.
        """
        declared, plan = look.declared, look.plan
        builds = sorted({s.repairs for s in plan.pending if s.repairs})
        self.engine.wait_for_builds(builds, self.wait_seconds)
        now = look.after if looked_alone and not builds else self.stamping.standing()
        if not _is_as_seen(look, now, looked_alone):
            with self.looking.reading():
                plan = self.looking.plan(declared, plan.version)
            _check(plan, declared)
        plan = replace(plan, version=now.version) if now else plan  # somebody may just have recorded one
        backup = self.before_changes() if plan.pending else None
        if backup:
            self.applying.watcher.backed_up(backup)
        version = self.applying.apply(declared, plan, now)
        warn_of_names(declared)
        return Done(plan, version, backup)


def _is_as_seen(look: Look, now: Standing | None, looked_alone: bool) -> bool:
    if now is None or look.before is None:
        return looked_alone and now is look.before is None
    return now.mark == look.before.mark


def _check(plan: Plan, declared: Schema) -> None:
    """Refuse what must not be begun."""
    if plan.refused:
        raise MigrationRefused(plan)
    if plan.pending and declared.unproved:
        raise right_missing(plan, *declared.unproved)
