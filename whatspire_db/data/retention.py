"""Retention: rows that are older than a rule says are deleted in batches, each followed by a pause as long as itself.

A batch takes about 50 ms at most, so others wait no longer for it; half of the time is theirs. Nothing is deleted
without a rule that somebody set.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial, reduce
from operator import or_
from typing import Any, TypeVar

import peewee
from peewee import Tuple

from ..errors import ConfigError, ModelError, TransactionError, WhatspireDBError
from ..fields import utcnow
from ..messages import CONSTRAINT, CONSTRAINT_TRIGGER, first_line, hint, sqlite_code
from ..migrate.progress import Throttle
from ..settings.durations import seconds_of
from .calling import Attempts, Stopped
from .engines import engine_of
from .engines.base import RowEngine
from .pace import STALL_SECONDS, Pace
from .rules import Rule

logger = logging.getLogger("whatspire_db.data")
T = TypeVar("T")


@dataclass(frozen=True)
class Retained:
    """What a rule did: how many rows were deleted, or would be; `is_done` is False where the run ended before.

    Without an index that begins with the column, which `is_indexed` tells, each batch reads the table from its start.
    """

    rule: Rule
    before: datetime
    rows: int
    is_done: bool
    is_indexed: bool


@dataclass
class _Run:
    """A run: what it may delete in all, how long it waits for the locks of others, and when it stops."""

    engine: RowEngine
    pace: Pace
    left: int | None
    stop: threading.Event
    tell: Callable[[Rule, int], None]
    wait_seconds: float

    def take(self, rows: int) -> None:
        """Note rows that are deleted, or would be."""
        self.left = None if self.left is None else self.left - rows

    def rest(self, seconds: float) -> bool:
        """Let others have their turn; False when the run shall stop."""
        return not self.stop.wait(seconds)


def retain(
    db: peewee.Database,
    rules: Sequence[Rule],
    *,
    dry_run: bool = False,
    limit: int | None = None,
    stall: float | timedelta = STALL_SECONDS,
    stop: threading.Event | None = None,
    lock_timeout: float | timedelta = 60.0,
    tell: Callable[[Rule, int], None] | None = None,
    trust_source: bool = False,
) -> list[Retained]:
    """Delete the rows that rules say are too old, and return what was deleted for each rule.

    A run that ends midway has deleted whole batches; the next one goes on. Rows that refer to others go before those.

    :param dry_run: count the rows, and delete none.
    :param limit: how many rows to delete in all; None is no limit.
    :param stall: how long others may wait for a batch, above 0, in seconds or as a timedelta.
    :param stop: ends the run after the current batch when it is set, in whatever thread.
    :param lock_timeout: how long to wait for another run, and for locks of others, in seconds or as a timedelta.
    :param tell: is called with a rule and the number of rows that were deleted for it so far.
    :param trust_source: let a PostgreSQL superuser run code of other roles that is attached to the tables.
    :raises ConfigError: when the limit, a time or an age is wrong.
    :raises TransactionError: within a transaction, which would keep all that is deleted locked until its end.
    :raises LockTimeout: when another run takes longer, or rows stay locked.
    :raises DatabaseMoved: when the rows were moved to another database.
    :raises ModelError: when a table has no primary key, or old rows have NULL in it.
    :raises WhatspireDBError: when a table is missing, rows without a rule refer to those, a trigger keeps them, or a
        superuser would run code of other roles.
    """
    _require_no_transaction(db)
    engine = engine_of(db, trust_source)
    pace, left, wait_seconds = _pace(engine, stall), _checked_limit(limit), seconds_of("lock_timeout", lock_timeout)
    run = _Run(engine, pace, left, stop or threading.Event(), tell or _Log(), wait_seconds)
    with db.connection_context() if db.is_closed() else nullcontext():
        return _done(run, rules, dry_run)


def _pace(engine: RowEngine, stall: float | timedelta) -> Pace:
    seconds = seconds_of("stall", stall)
    if not seconds:
        raise ConfigError("stall is 0", "give a time above 0")
    return Pace(seconds, engine.smallest, engine.largest)


def _checked_limit(limit: int | None) -> int | None:
    # SQLite takes a LIMIT below 0 for none.
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError("limit is not a number of rows", "give a whole number, 1 or more, or None for no limit")
    return limit


def _require_tables(engine: RowEngine, rules: Sequence[Rule]) -> None:
    for rule in rules:
        if not engine.has_table(rule.model):
            fact = f"nothing can be deleted: the table of {rule.model.__name__} is not there"
            raise WhatspireDBError(fact, "name the right database, or run python -m whatspire_db.migrate first")


def _require_trusted(engine: RowEngine, rules: Sequence[Rule]) -> None:
    """Refuse to run triggers, and what else is attached to a table, of roles with fewer rights than this one."""
    for rule in rules:
        if found := engine.schema.untrusted_table(rule.model):
            raise found


def _require_no_transaction(db: peewee.Database) -> None:
    if db.in_transaction():
        raise TransactionError(
            "retain() within a transaction would keep all that it deletes locked", "end the transaction before"
        )


def _children_first(rules: Sequence[Rule]) -> list[tuple[Rule, datetime]]:
    """Return rules and the moments before which rows go, those first whose rows refer to others."""
    now, order = utcnow(), peewee.sort_models([rule.model for rule in rules])
    return [(rule, rule.before(now)) for rule in sorted(rules, key=lambda rule: -order.index(rule.model))]


def _require_keys(run: _Run, todo: Sequence[tuple[Rule, datetime]]) -> None:
    """Refuse old rows that no key finds, before anything is deleted."""
    for rule, before in todo:
        keys = rule.model._meta.get_primary_keys()
        if not keys:
            fact = f"{rule.model.__name__} has no primary key, by which rows are deleted in batches"
            raise ModelError(fact, "give it one, or delete its rows yourself")
        is_null = reduce(or_, (key.is_null() for key in keys))
        old = run.engine.is_before(rule.field, before)
        query = rule.model.select(peewee.SQL("1")).where(old, is_null).limit(1)
        if _asked(run, partial(query.scalar, run.engine.db)):
            fact = f"old rows of {rule.model._meta.table_name} have NULL in their primary key"
            raise ModelError(fact, "rows are deleted by key: give them keys, or delete them yourself")


def _asked(run: _Run, question: Callable[[], T]) -> T:
    """Return the answer to a question; fail where a policy hides rows, or a lock stays."""

    def ask() -> T:
        with run.engine.with_own_names():
            run.engine.limit_waits(run.wait_seconds)
            return question()

    return Attempts(run.engine, run.wait_seconds, threading.Event()).until_unlocked(ask)[0]


def _is_indexed(run: _Run, rule: Rule) -> bool:
    return _asked(run, partial(run.engine.begins_an_index, rule.field))


def _counted(run: _Run, rule: Rule, before: datetime) -> Retained:
    query = rule.model.select(peewee.fn.COUNT(peewee.SQL("*"))).where(run.engine.is_before(rule.field, before))
    found = int(_asked(run, partial(query.scalar, run.engine.db)))
    rows = found if run.left is None else min(found, run.left)
    run.take(rows)
    return Retained(rule, before, rows, rows == found, _is_indexed(run, rule))


def _done(run: _Run, rules: Sequence[Rule], dry_run: bool) -> list[Retained]:
    """Do what the rules say, or count what that would be."""
    run.engine.require_rows_here()
    todo = _children_first(rules)
    _require_tables(run.engine, rules)
    _require_trusted(run.engine, rules)
    _require_keys(run, todo)
    if dry_run:
        done = [_counted(run, rule, before) for rule, before in todo]
    else:
        with run.engine.alone(run.wait_seconds):
            done = [_delete(run, rule, before) for rule, before in todo]
            if any(each.rows for each in done):
                run.engine.give_back(run.pace.seconds, run.rest)
    return sorted(done, key=lambda each: rules.index(each.rule))


def _delete(run: _Run, rule: Rule, before: datetime) -> Retained:
    rows, size, attempts = 0, run.engine.smallest, Attempts(run.engine, run.wait_seconds, run.stop)
    is_indexed = _is_indexed(run, rule)
    while not run.stop.is_set():
        wanted = size if run.left is None else min(size, run.left)
        if not wanted:
            break
        batch = _Batch(run.engine, rule, before, wanted, is_indexed)
        try:
            deleted, seconds = attempts.until_unlocked(partial(batch.delete, run.pace.seconds))
        except Stopped:
            break
        except peewee.PeeweeException as error:
            raise _failed(rule, error) from error
        if not deleted:
            return Retained(rule, before, rows, True, is_indexed)
        rows += deleted
        run.take(deleted)
        run.tell(rule, rows)
        size = run.pace.after(deleted, seconds)
        run.rest(seconds)
    return Retained(rule, before, rows, False, is_indexed)


def _failed(rule: Rule, error: peewee.PeeweeException) -> WhatspireDBError:
    """Return what to say of a batch that was rolled back; those before it stay deleted."""
    todo = hint(error, "correct what the database names, and run it again; the rows that are gone stay so")
    code = sqlite_code(error)
    if isinstance(error, peewee.IntegrityError) and code != CONSTRAINT_TRIGGER:
        why = ", or a trigger refuses" if code == CONSTRAINT else ""  # Python 3.10 does not keep which of them
        todo = f"others refer to them{why}: give those a rule that deletes them first; the rows that are gone stay so"
    return WhatspireDBError(f"rows of {rule.model._meta.table_name} cannot be deleted: {first_line(error)}", todo)


@dataclass(frozen=True)
class _Batch:
    """The next rows that a rule deletes, at most `size`."""

    engine: RowEngine
    rule: Rule
    before: datetime
    size: int
    is_indexed: bool

    def delete(self, wait_seconds: float) -> int:
        """Delete them in one transaction, and return how many they were."""
        with self.engine.batch():
            self.engine.limit_waits(wait_seconds)
            return self._delete() or self._delete_locked()

    def _delete(self) -> int:
        model = self.rule.model
        keys = model._meta.get_primary_keys()
        key = keys[0] if len(keys) == 1 else Tuple(*keys)
        # By a name, the rows are chosen once. As a subquery alone, PostgreSQL may choose others for each row of the
        # table, and one statement would delete all of them.
        chosen = self._chosen().cte("whatspire_db_chosen")
        columns = [getattr(chosen.c, field.column_name) for field in keys]
        is_chosen = key.in_(peewee.Select((chosen,), columns).with_cte(chosen))
        # A key that is unique in the model alone may be that of a young row too.
        query = model.delete().where(is_chosen, self._is_old)
        return int(query.execute(self.engine.db))

    def _delete_locked(self) -> int:
        """Delete rows of which nothing was deleted, and fail where that is not because there are none."""
        if not self._chosen().tuples().execute(self.engine.db):  # which keeps others from them, so they are there
            return 0
        if not (deleted := self._delete()):
            fact = f"rows of {self.rule.model._meta.table_name} were not deleted: a trigger or a rule of it keeps them"
            raise WhatspireDBError(fact, "drop it, or leave the retention of this table to it")
        return deleted

    @property
    def _is_old(self) -> Any:
        return self.engine.is_before(self.rule.field, self.before)

    def _chosen(self) -> peewee.ModelSelect:
        model = self.rule.model
        keys = model._meta.get_primary_keys()
        old = model.select(*keys).where(self._is_old).limit(self.size)
        if any(field.rel_model is model for field in model._meta.refs):
            old = old.order_by(self.rule.field.desc(), *(key.desc() for key in keys))  # those that refer are younger
        elif self.is_indexed:  # else the whole table would be sorted for each batch
            old = old.order_by(self.rule.field)
        return self.engine.unlocked(old)


class _Log:
    """Tells the log every ten seconds how far a run is."""

    def __init__(self) -> None:
        self.throttle = Throttle()

    def __call__(self, rule: Rule, rows: int) -> None:
        if self.throttle.is_due():
            logger.info("%s: %s rows deleted", rule, f"{rows:,}")
