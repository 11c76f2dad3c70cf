"""What a run tells while it goes on: to a log, or to whoever watches."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext

from ..light_stdlib import TYPE_CHECKING, Any, dataclass

if TYPE_CHECKING:
    from ..models.data_migrations import DataMigration
    from .plan import Step

logger = logging.getLogger("whatspire_db.migrate.progress")

LOG_SECONDS = 10.0


class Throttle:
    """Lets a line into the log every ten seconds, the first after as long."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Tell whether it is time for a line, and wait as long again for the next one."""
        is_due = time.monotonic() - self._last > LOG_SECONDS
        if is_due:
            self._last = time.monotonic()
        return is_due


@dataclass(frozen=True)
class Progress:
    """How far a long step is: the server's own name of the phase, and blocks or rows of how many; 0 is not known."""

    phase: str
    done: int
    total: int
    waiting_for: str = ""  # the sessions, where it waits

    def __str__(self) -> str:
        share = f" {self.done / self.total:.0%}" if self.total else ""
        waiting = f", waiting for {self.waiting_for}" if self.waiting_for else ""
        return f"{self.phase or 'running'}{share}{waiting}"


class Watcher:
    """Hears of what a run does; override what is of interest. This one writes long steps to the log."""

    def __init__(self) -> None:
        self._logged: tuple[str, str, float] = ("", "", 0.0)
        self._throttle = Throttle()

    def started(self, version: int) -> None:
        """Hear the version that is recorded before the run."""

    def backed_up(self, file: str) -> None:
        """Hear of the backup that was made before anything is changed."""
        logger.info("backup made: %s", file)

    def step_started(self, step: Step) -> None:
        """Hear of a step before it runs; it is told again when its transaction is tried again."""

    def step_progress(self, step: Step, progress: Progress) -> None:
        """Hear of a step that takes long, some times a second, from another thread."""
        title, phase, when = self._logged
        now = time.monotonic()
        if (title, phase) != (step.title, progress.phase) or now - when > LOG_SECONDS:
            self._logged = (step.title, progress.phase, now)
            logger.info("%s: %s", step.title, progress)

    def data_progress(self, migration: DataMigration, rows: int) -> None:
        """Hear how many rows of a data migration are done, after each of its batches."""
        if self._throttle.is_due():
            logger.info("data migration %s: %s rows done", migration.name, f"{rows:,}")

    def calling(self) -> AbstractContextManager[Any]:
        """Return the context in which the function of a data migration is called."""
        return nullcontext()

    def step_done(self, step: Step) -> None:
        """Hear of an online step that is done."""
