"""SQLite into PostgreSQL while the service writes: a copy, what changed meanwhile, then a short lock and the fence.

A change log notes the keys of changed rows. The copy is taken from a second file, and the log is followed in rounds
until one is small. The last round runs while the source's write lock is held: then the target commits, the source gets
its fence, and its lock goes. Both sides are compared afterwards, for the fenced file does not change any more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import peewee

from ..connection.connecting import connect
from ..dsn.targets import SqliteTarget
from ..errors import NotProved, TransferRefused
from ..fields import utcnow
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.schema import folded_ascii
from ..settings import Settings
from . import change_log, fence, postgres_load, records
from .copying import apply_changes
from .kinds import TEXTS
from .opening import Ends, connected, sqlite_source
from .proof import TableProof, prove
from .reports import Lock, Report
from .steps import Wishes, recorded, require_proved, snapshot, teller
from .tables import TransferTable, require_models, transfer_tables, transferred
from .to_postgres import fill, finish, live_schema, naming, prepared, shortened, stamp, table_reports

SMALL = 50  # changed rows that are left for the time of the lock
MOST_ROUNDS = 50  # where writers are faster than the copy, the lock has to come all the same


@dataclass
class _Live:
    """A live transfer: the source that is written to, the target, the tables by their names on SQLite."""

    source: Any
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
            number = _left_unproved(ends, engine)
            moved = _move(ends, wishes, engine) if number is None else _Moved(number)
            tables, proofs = _proved(ends, wishes, engine, moved)
            reports = table_reports(proofs, moved.seconds or [0.0] * len(proofs))
            records.end(engine, moved.number, records.PROVED, tables=[report.to_json() for report in reports])
        stamp(db, wishes)
    return Report(
        ends, tuple(reports), time.monotonic() - started, shortened(tables), moved.replaced, locked=moved.locked
    )


@dataclass(frozen=True)
class _Moved:
    """Rows that are at the target, and not yet proved: the number of their record, and how they came there."""

    number: int
    tables: tuple[TransferTable, ...] = ()
    seconds: tuple[float, ...] = ()
    locked: Lock | None = None
    replaced: int = 0


def _left_unproved(ends: Ends, engine: PostgresEngine) -> int | None:
    """Return the record of a transfer that was killed before its proof; None where the source has no fence."""
    with sqlite_source(ends.source, may_be_fenced=True) as sqlite:
        moved = fence.find(sqlite)
    if moved is None:
        return None
    number = records.unproved(engine, ends.source_name)
    if number is None:
        raise moved.refusal()
    return number


def _move(ends: Ends, wishes: Wishes, engine: PostgresEngine) -> _Moved:
    """Bring the rows over while others write, and put the fence around the source."""
    with _source(ends, wishes) as source, ExitStack() as stack:
        position = _logged(source, ends, wishes, stack)
        with _copy(source, ends) as copy, sqlite_source(copy) as sqlite:
            checked, tables = prepared(sqlite, engine, wishes)
            _require_keys(source, tables)
            live = _Live(source, engine, {table.source: table for table in tables}, position)
            with recorded(engine, ends) as number:
                seconds, locked = _switch(live, sqlite, ends, wishes, number)
    return _Moved(number, tuple(tables), tuple(seconds), locked, checked.replaced)


@contextmanager
def _source(ends: Ends, wishes: Wishes) -> Iterator[Any]:
    """Connect to the source, which gets its log and its fence."""
    db: Any = connect(ends.source, bind=False, read_only=True)
    db.timeout = wishes.wait_seconds  # its writers have the lock most of the time
    with db.connection_context():
        db.connection().text_factory = TEXTS
        yield db


def _logged(source: Any, ends: Ends, wishes: Wishes, stack: ExitStack) -> int:
    """Begin the change log, which goes again whatever happens; return the position of its last note."""
    own = {folded_ascii(model._meta.table_name) for model in transferred(wishes.models)}
    with sqlite_source(ends.source) as sqlite:
        require_models(sqlite, wishes.models, wishes.leave)
        names = [name for (name,) in sqlite.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'")]
    log = change_log.start(source, [name for name in names if folded_ascii(name) in own])

    def stop() -> None:
        with suppress(peewee.PeeweeException):
            change_log.stop(source)

    stack.callback(stop)
    return log.position


@contextmanager
def _copy(source: Any, ends: Ends) -> Iterator[Settings]:
    """Copy the source as of one moment into a file beside it that nobody else can read; return its settings."""
    target = ends.source.target
    assert isinstance(target, SqliteTarget)
    folder = tempfile.mkdtemp(prefix=".whatspire-transfer-", dir=os.path.dirname(os.path.abspath(str(target.path))))
    try:
        file = os.path.join(folder, "copy.db")
        source.execute_sql("VACUUM INTO ?", (file,))
        yield replace(ends.source, dsn=f"file:{quote(file)}?mode=ro")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_keys(source: Any, tables: Sequence[TransferTable]) -> None:
    """Refuse a table whose rows the log tells apart by something that the target does not have."""
    for table in tables:
        noted = [folded_ascii(name) for name in change_log.key_of(source, table.source)]
        if noted != [folded_ascii(name) for name in table.key]:
            raise TransferRefused(
                f"{table.name} has no primary key that both sides share, so its changes cannot be followed",
                "transfer it without --live, while nothing writes",
            )


def _switch(live: _Live, sqlite: Any, ends: Ends, wishes: Wishes, number: int) -> tuple[list[float], Lock]:
    """Fill the target from the copy and follow the log; under the source's lock commit the one and fence the other."""
    tables = list(live.tables.values())
    with ExitStack() as lock, live.engine.db.atomic():  # the lock ends after the target's transaction
        postgres = live.engine.db.connection()
        seconds, removed = fill(sqlite, live.engine, tables, wishes)
        postgres_load.analyze(postgres, tables)
        live.catch_up()
        lock.enter_context(live.source.atomic("IMMEDIATE"))
        began = utcnow()
        live.follow()
        finish(live.sqlite, live.engine, tables, removed)
        change_log.stop(live.source)
        fence.put_up(live.source, [table.source for table in tables], ends.target.target, utcnow())
        records.end(live.engine, number, records.COPIED)
    return seconds, Lock(began, utcnow())


def _proved(
    ends: Ends, wishes: Wishes, engine: PostgresEngine, moved: _Moved
) -> tuple[Sequence[TransferTable], list[TableProof]]:
    """Compare both sides, of which the source does not change any more.

    :raises NotProved: when they differ. The fence goes then, unless the comparison comes after a kill, when others may
        have begun to write to the target.
    """
    with sqlite_source(ends.source, may_be_fenced=True) as sqlite, snapshot(engine):
        tables = moved.tables or transfer_tables(sqlite, engine, live_schema(engine, wishes), wishes.models)
        tell = teller(wishes.watcher, "prove")
        proofs = [prove(sqlite, engine.db.connection(), table, tell) for table in tables]
    try:
        require_proved(proofs)
    except NotProved as error:
        records.end(engine, moved.number, records.FAILED, error=error.fact)
        error.hint = "the source keeps its fence, and the target its rows: others may write to the target by now"
        if moved.tables:
            with _source(ends, wishes) as source:
                fence.remove(source)
            error.hint = (
                "the source takes writes again; the target keeps these rows: empty its tables, then run the transfer "
                "without --live, while nothing writes"
            )
        raise
    return tables, proofs
