"""SQLite into PostgreSQL while the service writes: a copy, what changed meanwhile, then a short lock and the fence.

A change log notes the keys of changed rows. The copy is taken from a second file, and the log is followed in rounds
until one is small. The last round runs while the source's write lock is held: then the target commits, the source gets
its fence, and its lock goes. Both sides are compared afterwards, for the fenced file does not change any more.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import peewee

from ..errors import NotProved, TransferRefused, WhatspireDBError
from ..fields import utcnow
from ..messages import first_line
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.schema import folded_ascii
from . import change_log, fence, live_source, postgres_load, records
from .copying import apply_changes
from .faults import REPLACE
from .opening import Ends, connected, sqlite_source
from .progress import logger
from .proof import TableProof, prove
from .reports import Lock, Report
from .steps import Wishes, recorded, require_proved, snapshot, teller
from .tables import TransferTable, transfer_tables
from .to_postgres import fill, finish, live_schema, naming, prepared, shortened, stamp, table_reports

SMALL = 50  # changed rows that are left for the time of the lock
UNCOMPARED = "the rows are at the target and the source has its fence, but both sides were not compared"
COMPARE = "run it again with --live and the same --to, which compares them"
MOST_ROUNDS = 50  # where writers are faster than the copy, the lock has to come all the same


@dataclass
class _Live:
    """A live transfer: the source and its schema, the target, the tables by their names on SQLite."""

    source: Any
    schema: live_source.Schema
    engine: PostgresEngine
    tables: dict[str, TransferTable]
    position: int

    @property
    def sqlite(self) -> Any:
        return self.source.connection()

    def follow(self) -> int:
        """Bring the target's rows up to one state of the source; return how many keys that were.

        The caller holds a transaction on the source: rows of several states could be in each other's way.
        """
        live_source.require_schema(self.source, self.schema)
        changed = change_log.changed(self.source, self.position)
        keys = defaultdict(list)
        for table, key in changed.keys:
            keys[table].append(key)
        for name, some in keys.items():
            with naming(name):
                apply_changes(self.sqlite, self.engine.db.connection(), self.tables[name], some)
        self.position = changed.position
        return len(changed.keys)

    def catch_up(self) -> None:
        """Follow the log until little is left."""
        for _ in range(MOST_ROUNDS):
            with self.source.atomic("DEFERRED"):
                followed = self.follow()
            if followed <= SMALL:
                return


def transfer(ends: Ends, wishes: Wishes) -> Report:
    """Do a live transfer and return its report; see `whatspire_db.transfer.transfer`.

    One that was killed when the source had its fence already is proved, and that is all that was left.
    """
    started = time.monotonic()
    with connected(ends.target, "--to") as db:
        engine = PostgresEngine(db, wishes.trust_source)
        with engine.work_lock(wishes.wait_seconds):
            moved = _left_unproved(ends, wishes, engine) or _move(ends, wishes, engine)
            with _saying_what_is_left():
                tables, proofs = _proved(ends, wishes, engine, moved)
                reports = table_reports(proofs, moved.seconds or [0.0] * len(proofs))
                records.end(engine, moved.number, records.PROVED, tables=[report.to_json() for report in reports])
        stamp(db, wishes)
    return Report(
        ends, tuple(reports), time.monotonic() - started, shortened(tables), moved.replaced, locked=moved.locked
    )


@contextmanager
def _saying_what_is_left() -> Iterator[None]:
    """Say how far the transfer is if something ends the comparison: by now no program can write to the source."""
    try:
        yield
    except NotProved:
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted: {UNCOMPARED}", COMPARE) from None
    except Exception:
        logger.error("%s; %s", UNCOMPARED, COMPARE)
        raise


@dataclass(frozen=True)
class _Moved:
    """Rows that are at the target, and not yet proved: the number of their record, and how they came there.

    `kinds` are the kinds of faults whose values were replaced.
    """

    number: int
    kinds: frozenset[str]
    tables: tuple[TransferTable, ...] = ()
    seconds: tuple[float, ...] = ()
    locked: Lock | None = None
    replaced: int = 0


def _left_unproved(ends: Ends, wishes: Wishes, engine: PostgresEngine) -> _Moved | None:
    """Return what a transfer moved that was killed before its proof; None where the source has no fence."""
    with sqlite_source(ends.source, may_be_fenced=True) as sqlite:
        moved = fence.find(sqlite)
    if moved is None:
        return None
    left = records.unproved(engine, ends.source_name)
    if left is None:
        raise moved.refusal()
    with live_source.opened(ends.source, wishes.wait_seconds) as source:
        live_source.clear(source, ends.source)
    return _Moved(*left)


def _move(ends: Ends, wishes: Wishes, engine: PostgresEngine) -> _Moved:
    """Bring the rows over while others write, and put the fence around the source."""
    kinds = frozenset(kind for kind, choice in wishes.choices.items() if choice == REPLACE)
    with live_source.opened(ends.source, wishes.wait_seconds) as source:
        live_source.clear(source, ends.source)
        with (
            live_source.logged(source, wishes) as (position, schema),
            live_source.copied(source, ends.source) as copy,
            sqlite_source(copy) as sqlite,
        ):
            checked, found = prepared(sqlite, engine, wishes, may_set_aside=False)
            _require_keys(source, found)
            tables = [table.with_replaced(kinds) for table in found]  # such values may come meanwhile
            live = _Live(source, schema, engine, {table.source: table for table in tables}, position)
            with recorded(engine, ends) as number:
                seconds, locked = _switch(live, sqlite, ends, wishes, _Moved(number, kinds))
    return _Moved(number, kinds, tuple(tables), tuple(seconds), locked, checked.replaced)


def _require_keys(source: Any, tables: Sequence[TransferTable]) -> None:
    """Refuse a table whose rows the log tells apart by something that the target does not have."""
    for table in tables:
        noted = [folded_ascii(name) for name in change_log.key_of(source, table.source)]
        if noted != [folded_ascii(name) for name in table.key]:
            raise TransferRefused(
                f"{table.name} has no primary key that both sides share, so its changes cannot be followed",
                "transfer it without --live, while nothing writes",
            )


def _switch(live: _Live, sqlite: Any, ends: Ends, wishes: Wishes, moved: _Moved) -> tuple[list[float], Lock]:
    """Fill the target from the copy and follow the log; under the source's lock commit the one and fence the other."""
    tables = list(live.tables.values())
    with ExitStack() as lock:  # which ends after the target's transaction
        with live.engine.db.atomic():
            postgres = live.engine.db.connection()
            seconds, removed = fill(sqlite, live.engine, tables, wishes)
            postgres_load.analyze(postgres, tables)
            live.catch_up()
            lock.enter_context(live_source.locked(live.source, wishes.wait_seconds))
            began = utcnow()
            live.follow()
            finish(live.sqlite, live.engine, tables, removed)
            change_log.stop(live.source)
            fence.put_up(live.source, [table.source for table in tables], ends.target.target, utcnow())
            records.copied(live.engine, moved.number, moved.kinds)
        try:
            lock.close()
        except peewee.PeeweeException as error:
            raise WhatspireDBError(
                f"the rows are at the target, but the source got no fence: {first_line(error)}",
                "the source takes writes as before: empty the target's tables, then run it again",
            ) from error
    return seconds, Lock(began, utcnow())


def _proved(
    ends: Ends, wishes: Wishes, engine: PostgresEngine, moved: _Moved
) -> tuple[Sequence[TransferTable], list[TableProof]]:
    """Compare both sides, of which the source does not change any more.

    :raises NotProved: when they differ. The fence goes then, unless the comparison comes after a kill, when others may
        have begun to write to the target.
    """
    with sqlite_source(ends.source, may_be_fenced=True) as sqlite, snapshot(engine):
        tables = moved.tables or [
            table.with_replaced(moved.kinds)
            for table in transfer_tables(sqlite, engine, live_schema(engine, wishes), wishes.models)
        ]
        tell = teller(wishes.watcher, "prove")
        proofs = [prove(sqlite, engine.db.connection(), table, tell) for table in tables]
    try:
        require_proved(proofs)
    except NotProved as error:
        records.end(engine, moved.number, records.FAILED, error=error.fact)
        error.hint = "the source keeps its fence, and the target its rows: others may write to the target by now"
        if moved.tables:
            with live_source.opened(ends.source, wishes.wait_seconds) as source:
                fence.remove(source)
            error.hint = (
                "the source takes writes again; the target keeps these rows: empty its tables, then run the transfer "
                "without --live, while nothing writes"
            )
        raise
    return tables, proofs
