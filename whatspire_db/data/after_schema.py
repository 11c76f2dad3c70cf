"""The data migrations of a run of the migrator, which come after the steps of the schema."""

from __future__ import annotations

import logging

import peewee

from ..messages import first_line, is_right_missing
from ..migrate.runner import MigrationRunner
from ..migrate.stamp import Standing
from ..migrate.stamping import Stamping
from .migrations import DataMigrations, DataOutcome
from .pace import STALL_SECONDS
from .records import DataState

logger = logging.getLogger("whatspire_db.data")


def change_rows(
    runner: MigrationRunner, stamping: Stamping, standing: Standing | None, backed_up: bool
) -> DataOutcome | None:
    """Run the data migrations that are left, unless somebody else does; None when there are none.

    :param backed_up: this run has made a backup, and makes no other.
    """
    data = _migrations(runner, backed_up)
    if standing and runner.engine.is_working(standing):
        return data.all_left()
    try:
        outcome = data.run_unless_busy()
    except peewee.PeeweeException as error:
        if not is_right_missing(error):
            raise
        logger.warning("this role may not run the data migrations; they are left to others: %s", first_line(error))
        return data.all_left()
    if outcome.backup:
        runner.watcher.backed_up(outcome.backup)
    if not outcome.left:
        stamping.keep_finished()
    return outcome if outcome.done or outcome.left else None


def states_of(runner: MigrationRunner, stamping: Stamping) -> list[DataState]:
    """Return how those stand; as "unknown" where this role may not read that."""
    try:
        return _migrations(runner).states()[: len(runner.data)]
    except peewee.PeeweeException as error:
        if not is_right_missing(error):
            raise
    state = "finished" if stamping.has_finished(stamping.standing()) else "unknown"
    return [DataState(migration.name, state) for migration in runner.data]


def _migrations(runner: MigrationRunner, backed_up: bool = False) -> DataMigrations:
    settings = getattr(runner.db, "settings", None)
    return DataMigrations(
        runner.db,
        runner.data,
        models=runner.models,
        stall=runner.stall if runner.stall is not None else settings.data_stall if settings else STALL_SECONDS,
        lock_timeout=runner.lock_timeout,
        tell=runner.watcher.data_progress,
        trust_source=runner.engine.trust_source,
        before_changes=(lambda: None) if backed_up else runner.before_changes,
        calling=runner.watcher.calling,
    )
