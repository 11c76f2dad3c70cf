"""Waiting for a server that is full, starting or failing over, and beginning again after a lost session."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ..errors import ConnectionFailed, DataMigrationFailed
from ..light_stdlib import TypeVar
from ..messages import first_line, is_connection_lost, passes_by_itself, sqlstate

T = TypeVar("T")
logger = logging.getLogger("whatspire_db.patience")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 1.0
USUAL_SECONDS = 10.0
# admin_shutdown, crash_shutdown, cannot_connect_now: the server ends sessions, and accepts others later.
_SERVER_ENDS = ("57P01", "57P02", "57P03")


class Patience:
    """How long one run goes on trying, and what it has met so far.

    A server that answers but is full, starting, shutting down or failing over is tried again for as long as the run
    waits for locks, and so is everything that fails for the connection once the run has had one. Before that, a server
    that does not answer is waited for only as long as the caller says: a wrong host should be reported at once.

    :param seconds: for a server that answers, and after the first connection.
    :param unanswered_seconds: for a server that does not answer at all.
    """

    def __init__(self, seconds: float, unanswered_seconds: float = 0) -> None:
        self._began = time.monotonic()
        self._seconds, self._unanswered_seconds = seconds, unanswered_seconds
        self._pause = FIRST_PAUSE_SECONDS
        self._lost_at: set[str] = set()
        self.has_connected = False
        self.doing: Sequence[str] = ()  # the steps that are being applied

    def run(self, attempt: Callable[[], T], let_go: Callable[[], bool]) -> T:
        """Return what an attempt returns; make another one where its error passes by itself.

        :param let_go: gives back what a failed attempt holds of a full server, and returns whether the next one can
            get another session.
        """
        while True:
            self.doing = ()
            try:
                return attempt()
            except Exception as error:
                if not (self._may_try_again(error) and let_go()):
                    raise
                logger.warning("%s; trying again", first_line(error))
            from random import uniform  # only where a server is waited for

            time.sleep(min(self._pause * uniform(0.5, 1.5), max(self._left(), 0)))  # noqa: S311
            self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)

    @property
    def has_lost_a_step(self) -> bool:
        """Tell whether a session was lost while a step was applied."""
        return bool(self._lost_at)

    def _left(self) -> float:
        seconds = self._seconds if self.has_connected else max(self._seconds, self._unanswered_seconds)
        return self._began + seconds - time.monotonic()

    def _may_try_again(self, error: Exception) -> bool:
        if isinstance(error, DataMigrationFailed):  # of whatever its function met
            return False
        waited = time.monotonic() - self._began
        if isinstance(error, ConnectionFailed):
            if self.has_connected or passes_by_itself(error):
                return waited < max(self._seconds, self._unanswered_seconds)
            return error.is_unanswered and waited < self._unanswered_seconds
        return is_loss(error) and waited < self._seconds and self._is_first_loss()

    def _is_first_loss(self) -> bool:
        """Return False when the same step lost its session before: it may be the step that crashes the server."""
        is_first = self._lost_at.isdisjoint(self.doing)
        self._lost_at.update(self.doing)
        return is_first


_seconds = ContextVar("_seconds", default=USUAL_SECONDS)


@contextmanager
def patient(seconds: float) -> Iterator[None]:
    """During the block, have what asks for `patience` wait so long; not so in threads that are started in it."""
    token = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(token)


def patience() -> Patience:
    """Return the patience for one thing of a run, such as a connection, which may have waited for others before."""
    return Patience(_seconds.get())


def is_loss(error: BaseException | None) -> bool:
    """Return whether an error, or the one that it was made of, is that of a lost session."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if is_connection_lost(error) or (sqlstate(error) or "") in _SERVER_ENDS:
            return True
        seen.append(error)
        error = error.__cause__
    return False
