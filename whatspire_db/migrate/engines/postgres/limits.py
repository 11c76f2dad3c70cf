"""PostgreSQL: time limits. Those of a role or a database are meant for others, and must not end a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import peewee

from whatspire_db.light_stdlib import Any
from whatspire_db.migrate.ddl import execute
from whatspire_db.sql import pinned

# lock_timeout is not among them: each statement that waits for a lock has a limit of its own.
_NAMES = "'{idle_in_transaction_session_timeout,idle_session_timeout,statement_timeout,transaction_timeout}'"
# A server knows those of its version. The view pg_settings would make a row of each of some 380 settings.
_KNOWN = f"FROM unnest({_NAMES}::text[]) AS s (name) WHERE current_setting(name, true) IS NOT NULL"
_CURRENT = f"SELECT name, current_setting(name) {_KNOWN}"
# Its parameter: whether for the transaction alone.
LIFT = f"SELECT set_config(name, '0', %s) {_KNOWN}"
# Behind a pooler, whose server process is not the one that answered first, a session's settings are not ours to change.
_LIFT_IN_OWN_SESSION = f"SELECT set_config(name, '0', false) {_KNOWN} AND pg_backend_pid() = %s"

_SET = "SELECT set_config(name, value, %s) FROM ROWS FROM (unnest(%s::text[]), unnest(%s::text[])) AS s (name, value)"


def set_all(db: peewee.PostgresqlDatabase, settings: Mapping[str, str], *, in_transaction: bool = False) -> None:
    """Set what a session has, until it is set again or, if so wanted, until the transaction ends."""
    execute(db, pinned(_SET), [in_transaction, list(settings), list(settings.values())])


def lock_limit(wait_seconds: float) -> str:
    """Return the statement after which none of its transaction waits longer for a lock."""
    return f"SET LOCAL lock_timeout = {max(1, int(wait_seconds * 1000))}"


def lift_in_transaction(db: peewee.PostgresqlDatabase) -> None:
    """Let the transaction of this thread take as long as it needs; the next one has its limits again."""
    execute(db, pinned(LIFT), [True])


def lift_in_own_session(connection: Any) -> None:
    """Let a driver's connection that nobody else uses stay open however long it idles."""
    with connection.cursor() as cursor:
        cursor.execute(pinned(_LIFT_IN_OWN_SESSION), [connection.info.backend_pid])


@contextmanager
def lifted(db: peewee.PostgresqlDatabase) -> Iterator[None]:
    """Let the session of this thread live, idle or not, as long as the block takes."""
    before = dict(execute(db, pinned(_CURRENT)).fetchall())
    execute(db, pinned(LIFT), [False])
    try:
        yield
    finally:
        if not db.is_closed() and db.is_connection_usable():
            with suppress(peewee.PeeweeException):  # they are gone with their session
                set_all(db, before)
