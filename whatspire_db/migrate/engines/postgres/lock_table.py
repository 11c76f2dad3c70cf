"""PostgreSQL: how much of the server's lock table a transaction takes, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import peewee

from whatspire_db.errors import WhatspireDBError
from whatspire_db.migrate.ddl import execute
from whatspire_db.migrate.plan import Step
from whatspire_db.migrate.schema import Column, Schema, Table, label
from whatspire_db.sql import pinned

FEW = 100  # locks that every server has room for
_OF_A_TABLE = 3  # the table, its TOAST table and the index of that
_STEP_OF_SETTING = 16

# One row: the setting, how many processes and prepared transactions it is multiplied with, and what other sessions
# hold. What a session holds on its fast path takes no room.
_ROOM = pinned("""
SELECT current_setting('max_locks_per_transaction')::int,
    current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int
        + current_setting('max_worker_processes')::int + current_setting('max_wal_senders')::int
        + coalesce(current_setting('autovacuum_worker_slots', true), current_setting('autovacuum_max_workers'))::int
        + 1,
    (SELECT count(*) FROM pg_locks WHERE NOT fastpath AND coalesce(pid <> pg_backend_pid(), true))
""")


def locks_of(steps: Sequence[Step], declared: Schema) -> int:
    """Return how many locks a transaction holds in the end that runs these steps."""
    tables = {label(key): table for key, table in declared.tables.items()}
    made = sum(_of_a_table(tables[step.table]) for step in steps if step.kind == "create_table")
    indexes = sum(step.kind == "create_index" for step in steps)
    return made + indexes + len({table for step in steps for table, _ in step.locks})


def _of_a_table(table: Table) -> int:
    sequences = sum(map(_has_sequence, table.columns.values()))
    return (
        _OF_A_TABLE
        + sequences
        + sum(c.has_index for c in table.constraints)
        + sum(bool(i.constraint) for i in table.indexes)
    )


def _has_sequence(column: Column) -> bool:
    return column.is_serial or column.identity is not None


def room(setting: int, processes: int) -> int:
    """Return how many locks a server has room for at least.

    PostgreSQL promises the product. It usually finds more in its shared memory, the less of it the smaller the server:
    1.24 to 2.6 times as much were measured on versions 16 and 18, with settings of 10 to 256, with 20 to 300
    connections and with other settings that share that memory.
    """
    promised = setting * processes
    return int(max(promised, 1.45 * promised - 150))


def refuses(db: peewee.PostgresqlDatabase, locks: int) -> WhatspireDBError | None:
    """Return why a transaction of so many locks would not end well, and what to do; None where there is room."""
    if locks <= FEW:
        return None
    setting, processes, in_use = execute(db, _ROOM).fetchone()
    has = room(setting, processes)
    if locks + in_use <= has:
        return None
    needed = next(n for n in count(_STEP_OF_SETTING, _STEP_OF_SETTING) if room(n, processes) >= locks + in_use)
    return WhatspireDBError(
        f"cannot apply this in one transaction: it takes {locks} locks, and the server has room for about {has}, of "
        f"which {in_use} are in use (max_locks_per_transaction = {setting})",
        f"set max_locks_per_transaction to {needed} on the server and restart it; a run is never split into several "
        "transactions",
    )
