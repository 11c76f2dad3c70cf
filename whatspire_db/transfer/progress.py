"""How far a transfer is: a watcher hears of each table; the usual one tells the log."""

from __future__ import annotations

import logging

from ..migrate.progress import Throttle

logger = logging.getLogger("whatspire_db.transfer")


class Watcher:
    """Hears how far a transfer is. This one logs a line every ten seconds.

    `phase` is one of check, copy, index and prove.
    """

    def __init__(self) -> None:
        self._throttle = Throttle()

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        """Hear that so many rows of a table are done; without a total that is not known."""
        if self._throttle.is_due():
            of = f" of {total:,}" if total else ""
            logger.info("%s %s: %s%s rows", phase, table, f"{done:,}", of)

    def ended(self) -> None:
        """Hear that a phase of a table is over."""
