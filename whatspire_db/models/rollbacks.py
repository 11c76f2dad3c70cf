"""Whether what an instance takes for saved was rolled back since."""

from __future__ import annotations

import peewee

from ..light import Any
from ..peewee_compat import open_blocks


class Outcome:
    """How a transaction or a savepoint ended; not undone while it is open."""

    __slots__ = ("undone",)

    def __init__(self) -> None:
        self.undone = False


def outcomes(db: Any) -> tuple[Outcome, ...] | None:
    """Return the outcomes that a statement of this thread depends on; None where its end cannot be observed.

    That is a transaction begun by a statement of the user's own or by db.begin(), and any of a database that connect()
    did not make: Peewee's own blocks do not report how they end, and do not know which savepoints are open.
    """
    blocks = open_blocks(db)
    if not blocks:
        return None if _is_in_transaction(db) else ()
    if not hasattr(db, "task_state"):
        return None
    savepoint = db.task_state.savepoint
    while savepoint is not None:
        blocks.append(savepoint)
        savepoint = savepoint.outer
    return tuple(block.outcome for block in blocks)


def _is_in_transaction(db: peewee.Database) -> bool:
    connection = db.connection()
    if isinstance(db, peewee.SqliteDatabase):
        return bool(connection.in_transaction)
    info = getattr(connection, "info", None)
    return info is not None and info.transaction_status != 0  # IDLE, in psycopg2 and psycopg alike
