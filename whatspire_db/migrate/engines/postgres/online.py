"""PostgreSQL: statements that wait for others without stopping them, and how far they are."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress

import peewee

from whatspire_db.errors import LockTimeout
from whatspire_db.light_stdlib import Any, dataclass, field
from whatspire_db.migrate.ddl import execute, table_of_index
from whatspire_db.migrate.progress import Progress
from whatspire_db.sql import pinned

from . import limits, session
from .holders import BUILDERS, PEOPLE, QUIET_SECONDS, described, pauses, rows, separate_connection
from .locks import is_pooled

_TRANSACTIONS = pinned("""
SELECT virtualtransaction FROM pg_locks
WHERE locktype = 'virtualxid' AND pid = ANY (%s) AND (%s::text[] IS NULL OR virtualtransaction = ANY (%s))
""")


_FOR_A_BUILD = {"lock_timeout": "0", "client_connection_check_interval": "1000"}
# Of an HNSW index: one whose graph does not fit into this memory takes several times as long. Without workers the
# graph needs no shared memory, of which a container has little, and other sessions keep their processors.
_HNSW = re.compile(r"\bUSING\s+hnsw\b", re.IGNORECASE)
_MOST_MEMORY = 512 << 20  # bytes, or half of shared_buffers where that is more
_MEMORY = pinned(f"""
SELECT greatest(pg_size_bytes(current_setting('maintenance_work_mem')), least(pg_table_size(to_regclass(%s)) * 2,
    greatest({_MOST_MEMORY}, pg_size_bytes(current_setting('shared_buffers')) / 2))) / 1024
""")

_STATEMENT = pinned("""
SELECT a.pid, a.wait_event_type = 'Lock', pg_blocking_pids(a.pid), p.phase,
    greatest(p.blocks_done, p.tuples_done), greatest(p.blocks_total, p.tuples_total)
FROM pg_stat_activity AS a LEFT JOIN pg_stat_progress_create_index AS p ON p.pid = a.pid
WHERE a.datname = current_database() AND a.state = 'active' AND a.pid <> pg_backend_pid()
    AND left(a.query, 900) = left(%s, 900) AND a.pid = coalesce(%s, a.pid)
""")


# Statements outside of a transaction


def build_statements(index_sql: str, broken: str | None) -> list[str]:
    """Return the statements that build an index beside readers and writers.

    :param index_sql: CREATE INDEX without IF NOT EXISTS, which would accept an INVALID one.
    :param broken: the quoted name of an INVALID index that stands in the way.
    """
    drop = [drop_statement(broken)] if broken else []
    return [*drop, re.sub(r"\bINDEX\s+", "INDEX CONCURRENTLY ", index_sql, count=1, flags=re.IGNORECASE)]


def drop_statement(index: str) -> str:
    """Return the statement that drops an index beside readers and writers.

    IF EXISTS is for what a build left on some of the nodes of a cluster alone.
    """
    return f"DROP INDEX CONCURRENTLY IF EXISTS {index}"


def wait_for_builds(db: peewee.PostgresqlDatabase, tables: Sequence[str], wait_seconds: float) -> None:
    """Wait until nobody builds an index on the tables.

    :raises LockTimeout: names who still does when the time is over.
    """
    deadline = time.monotonic() + wait_seconds
    seen: set[int] = set()
    for table in tables:
        for pause in pauses():
            builders = execute(db, BUILDERS, [table, table]).fetchall()
            if not builders:
                break
            seen.update(pid for pid, *_ in builders)
            if time.monotonic() > deadline:
                raise LockTimeout(
                    f"an index on {table} was being built for {wait_seconds:g} s by {described(builders)}",
                    "wait for it to end, raise --lock-timeout, or end it with pg_cancel_backend(pid)",
                )
            time.sleep(pause)
    if not seen:
        return
    # A build is told as done a moment before the transaction ends in which its index becomes valid.
    pids = sorted(seen)
    last = [row[0] for row in execute(db, _TRANSACTIONS, [pids, None, None]).fetchall()]
    for pause in pauses():
        if time.monotonic() > deadline or not execute(db, _TRANSACTIONS, [pids, last, last]).fetchall():
            return
        time.sleep(pause)


def run_online(
    db: peewee.PostgresqlDatabase,
    sql: str,
    wait_seconds: float,
    tell: Callable[[Progress], None],
) -> None:
    """Run a statement that waits for others without stopping them, and tell how far it is.

    :param wait_seconds: how long it may wait for one and the same session.
    :raises LockTimeout: names the session.
    """
    # Another session may run the same text in another schema. Behind a pooler no number names ours.
    pid = None if is_pooled(db) else db.connection().info.backend_pid
    watch = _Watch(db, sql, pid, wait_seconds, tell)
    thread = threading.Thread(target=watch.run, name="whatspire_db progress", daemon=True)
    try:
        # Behind a pooler a session's settings are not ours to change.
        with nullcontext() if pid is None else _set_for_a_build(db, _FOR_A_BUILD | _memory(db, sql)):
            thread.start()
            execute(db, sql)
    except peewee.PeeweeException as error:
        watch.finish(thread)
        if watch.given_up:
            raise LockTimeout(
                f"{sql.partition(' ON ')[0]} waited {wait_seconds:g} s for {watch.given_up}",
                "let that transaction end, or raise --lock-timeout; the next run does what this one could not",
            ) from None
        raise error
    finally:
        watch.finish(thread)


def memory_for(sql: str, ask: Callable[[str, list[str]], int | None]) -> dict[str, str]:
    """Return the settings for the memory of a build, where the usual ones make it slow.

    :param ask: runs a query and returns its one value.
    """
    if not _HNSW.search(sql):
        return {}
    kilobytes = ask(_MEMORY, [table_of_index(sql)])
    return {"maintenance_work_mem": f"{kilobytes}kB", "max_parallel_maintenance_workers": "0"} if kilobytes else {}


def _memory(db: peewee.PostgresqlDatabase, sql: str) -> dict[str, str]:
    return memory_for(sql, lambda query, params: execute(db, query, params).fetchone()[0])


@contextmanager
def _set_for_a_build(db: peewee.PostgresqlDatabase, settings: Mapping[str, str]) -> Iterator[None]:
    """Set what a build needs in this session, and what was set before behind it.

    A lock timeout in its middle would leave an INVALID index, and a session whose client is gone would build on, or
    wait for others, while it holds the migration lock.
    """
    names = ", ".join(f"current_setting({name!r}, true)" for name in settings)
    before = execute(db, pinned(f"SELECT {names}")).fetchone()
    pairs = [(name, value) for name, value in zip(settings, before, strict=False) if value is not None]
    meaning = session.current(db)
    try:
        limits.set_all(db, session.PINNED)
        for name, _ in pairs:
            _set_if_possible(db, name, settings[name])
        yield
    finally:
        if not db.is_closed() and db.is_connection_usable():
            for name, value in pairs:
                _set_if_possible(db, name, value)
            limits.set_all(db, meaning)


def _set_if_possible(db: peewee.PostgresqlDatabase, name: str, value: str) -> None:
    with suppress(peewee.PeeweeException):  # some systems cannot watch a connection
        execute(db, "SELECT pg_catalog.set_config(%s, %s, false)", [name, value])


@dataclass
class _Watch:
    """Looks at a running statement from a connection of its own, and ends it when it waits for too long."""

    db: peewee.PostgresqlDatabase
    sql: str
    pid: int | None  # of the session that runs it
    wait_seconds: float
    tell: Callable[[Progress], None]
    given_up: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        if self.done.wait(min(QUIET_SECONDS, self.wait_seconds)):
            return
        with suppress(Exception):  # without a connection to spare the statement runs on unwatched
            connection = separate_connection(self.db)
            try:
                self._look(connection)
            finally:
                connection.close()

    def finish(self, thread: threading.Thread) -> None:
        self.done.set()
        if thread.ident is not None:
            thread.join()

    def _look(self, connection: Any) -> None:
        waiting_for: tuple[int, ...] = ()
        since = time.monotonic()
        while not self.done.wait(0.2):
            found = rows(connection, _STATEMENT, self.sql, self.pid)
            if not found:
                continue
            pid, waits, blockers, phase, done, total = found[0]
            if not waits or tuple(blockers) != waiting_for:
                waiting_for, since = tuple(blockers) if waits else (), time.monotonic()
            people = described(rows(connection, PEOPLE, list(blockers))) if waits else ""
            if waits and 0 in blockers:  # it has no session
                people = "; ".join(filter(None, [people, "a prepared transaction, see pg_prepared_xacts"]))
            self.tell(Progress(phase or "", done or 0, total or 0, people))
            if waits and time.monotonic() - since > self.wait_seconds:
                self.given_up = people or "a session that has just ended"
                rows(connection, "SELECT pg_catalog.pg_cancel_backend(%s)", pid)


def planned_rows(db: peewee.PostgresqlDatabase, table: str) -> int:
    """Return the planner's estimate of a table's rows, from its present size."""
    plan = execute(db, f"EXPLAIN (FORMAT JSON) SELECT FROM {table}").fetchone()[0]
    document = json.loads(plan) if isinstance(plan, str) else plan
    return int(document[0]["Plan"]["Plan Rows"])
