"""PostgreSQL's programs and waiting: for a server that is full, and for locks no longer than is said."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from whatspire_db.connection.patience import patience, patient
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import BackupFailed, LockTimeout

from . import tools as pg_tools
from .server import WAIT_HINT, session

QUIET_SECONDS = 1.0  # a dump that is done by then is watched by nobody
POLL_SECONDS = 0.2
_WAITING = """
SELECT pid, pg_blocking_pids(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name = %s AND wait_event_type = 'Lock'
"""
_PEOPLE = """
SELECT string_agg(format('pid %%s, application %%s', pid, coalesce(nullif(application_name, ''), 'unnamed')), '; ')
FROM pg_stat_activity WHERE pid = ANY (%s)
"""


def run(
    tool: pg_tools.Tool,
    arguments: Sequence[str],
    target: PostgresTarget,
    is_at_the_start: Callable[[pg_tools.ToolFailed], bool],
    tick: Callable[[], None] = lambda: None,
) -> str:
    """Run a program as `pg_tools.run` does; again, as long as it fails because the server has no connection for it.

    A program tells no SQLSTATE, but a session of our own, asked for as soon as it failed, does. Where that is to be
    had, it may have failed for the same reason a moment before, so it has one more try.

    :param is_at_the_start: tells of a failure whether nothing can have been done before it.
    """
    more = 1

    def attempt() -> str:
        nonlocal more
        while True:
            try:
                return pg_tools.run(tool, arguments, target, tick)
            except pg_tools.ToolFailed as failure:
                if not is_at_the_start(failure):
                    raise
                with patient(0), session(target):
                    if not more:
                        raise
                more -= 1

    return patience().run(attempt, lambda: True)


class Guard:
    """Ends a program's statement once it has waited too long for the same sessions.

    :param target: what the program connects to.
    :param wait: seconds.
    """

    def __init__(self, target: PostgresTarget, wait: float) -> None:
        name = f"whatspire_db pg_dump {secrets.token_hex(4)}"
        self.target = PostgresTarget({**target.arguments, "application_name": name})
        self._name, self._source, self._wait = name, target, wait
        self._held_by = ""
        self._done = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[PostgresTarget]:
        """Watch during the block, which gives the target to the program.

        :raises LockTimeout: in place of the program's failure, with the sessions that it waited for.
        """
        thread = threading.Thread(target=self._run, name="whatspire_db dump", daemon=True)
        with suppress(RuntimeError):  # no thread can be started: the program's own limit is left
            thread.start()
        try:
            yield self.target
        except BackupFailed:
            if not self._held_by:
                raise
            fact = f"pg_dump waited {self._wait:g} s for a lock, held by {self._held_by}"
            raise LockTimeout(fact, WAIT_HINT) from None
        finally:
            self._done.set()

    def _run(self) -> None:
        if self._done.wait(min(QUIET_SECONDS, self._wait)):
            return
        with (
            suppress(Exception),
            patient(0),
            session(self._source) as asked,
        ):  # without a connection to spare it runs on unwatched
            waiting_for: list[int] | None = None
            since = time.monotonic()
            while not self._done.wait(POLL_SECONDS):
                found = asked.rows(_WAITING, self._name)
                now = found[0][1] if found else None
                if now is None or now != waiting_for:
                    waiting_for, since = now, time.monotonic()
                elif time.monotonic() - since >= self._wait:
                    people = asked.value(_PEOPLE, now)
                    self._held_by = people or "a prepared transaction, see pg_prepared_xacts"
                    asked.rows("SELECT pg_cancel_backend(%s)", found[0][0])
