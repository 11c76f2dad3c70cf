"""Retention: rows that are older than a rule says are deleted in batches, each followed by a pause as long as itself.

A batch takes about 50 ms at most, so others wait no longer for it; half of the time is theirs. Nothing is deleted
without a rule that somebody set.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import peewee
from peewee import Tuple

from ..dsn.redaction import shown
from ..errors import ConfigError, ModelError, TransactionError, WhatspireDBError
from ..fields import InstantField, utcnow
from ..messages import first_line
from ..migrate.progress import Throttle
from ..models.service import Event
from ..settings import Settings
from ..settings.durations import in_units, parse_duration, seconds_of
from .engines import engine_of
from .engines.base import RowEngine
from .pace import STALL_SECONDS, Pace

logger = logging.getLogger("whatspire_db.data")
Model = type[peewee.Model]

AGE = "an age like 30d, 12h or 90m"


@dataclass(frozen=True)
class Rule:
    """Rows of a model whose time in a field lies further back than an age are deleted; `source` says who set it.

    :raises ConfigError: when the age is not above 0, for then all rows would go.
    """

    model: Model
    field: InstantField[Any]
    age: timedelta
    source: str

    def __post_init__(self) -> None:
        if self.age <= timedelta(0):
            raise ConfigError(f"the age of the rule for {self.name} is not above 0", f"give {AGE}")

    @property
    def name(self) -> str:
        """The column, as TABLE.COLUMN."""
        return f"{self.model._meta.table_name}.{self.field.column_name}"

    def before(self, now: datetime) -> datetime:
        """Return the moment before which rows are deleted.

        :raises ConfigError: when it lies before the year 1, which no row does.
        """
        try:
            return now - self.age
        except OverflowError:
            raise ConfigError(
                f"the age of the rule for {self.name} leads back beyond the year 1 ({self.source})",
                f"give {AGE}, or leave the rule out to keep all rows",
            ) from None

    def __str__(self) -> str:
        return f"{self.name} older than {shown_age(self.age)}"


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
    """A run: what it may delete in all, and when it stops."""

    engine: RowEngine
    pace: Pace
    left: int | None
    stop: threading.Event
    tell: Callable[[Rule, int], None]

    def rest(self, seconds: float) -> bool:
        """Let others have their turn; False when the run shall stop."""
        return not self.stop.wait(seconds)


# Rules


def rules_of(models: Sequence[Model], settings: Settings, given: Sequence[str] = ()) -> list[Rule]:
    """Return the rules that somebody set: those given as TABLE.COLUMN=AGE alone, else of the settings and the models.

    The settings' rule is that of the service: its events are deleted after `events_retention_days`, where
    `events_enabled` is set. A model's is `retention = ("COLUMN", AGE)` in its Meta.

    :raises ConfigError: when a text is no rule, or names what no model has.
    :raises ModelError: when a model's rule is none.
    """
    if given:
        return [_read_rule(models, text) for text in given]
    rules = [rule for model in models if (rule := _declared(model)) is not None]
    if settings.events_enabled and settings.events_retention_days and Event in models:
        days = timedelta(days=settings.events_retention_days)
        rules.append(Rule(Event, Event.timestamp, days, settings.name_of("events_retention_days")))
    return rules


def _read_rule(models: Sequence[Model], text: str) -> Rule:
    place, _, age = text.partition("=")
    table, _, column = place.strip().rpartition(".")
    hint = f"write TABLE.COLUMN=AGE, with {AGE}"
    found = [model for model in models if model._meta.table_name == table]
    if not (age and column and table):
        raise ConfigError("--rule is not a rule", hint)
    if not found:
        raise ConfigError(f"--rule: no model has the table {shown(table)}", f"{hint}; --models names the models")
    if len(found) > 1:
        names = ", ".join(sorted(model.__name__ for model in found))
        hint = "declare retention in the Meta of the model that you mean"
        raise ConfigError(f"--rule: {names} all have a table {shown(table)}", hint)
    try:
        instant = _instant(found[0], column)
    except ValueError as error:
        fields = [field.column_name for field in found[0]._meta.sorted_fields if isinstance(field, InstantField)]
        hint = f"{table} has {', '.join(fields)}" if fields else "it needs an InstantField; see docs/retention.md"
        raise ConfigError(f"--rule for {shown(place.strip())}: {error}", hint) from None
    try:
        return Rule(found[0], instant, read_age(age), "--rule")
    except ValueError as error:
        raise ConfigError(f"--rule for {shown(place.strip())}: {error}", hint) from None


def _declared(model: Model) -> Rule | None:
    declared = getattr(model._meta, "retention", None)
    if declared is None:
        return None
    try:
        if not isinstance(declared, tuple | list) or len(declared) != 2:
            raise ValueError("it is not a pair")
        column, age = declared
        return Rule(model, _instant(model, column), age if isinstance(age, timedelta) else read_age(age), "Meta")
    except (ValueError, ConfigError) as error:
        why = error.fact if isinstance(error, ConfigError) else error
        hint = f'write retention = ("COLUMN", AGE) in its Meta, with a timedelta or {AGE}'
        raise ModelError(f"the retention of {model.__name__} is not a rule: {why}", hint) from None


def _instant(model: Model, column: str) -> InstantField[Any]:
    found = model._meta.columns.get(column) or model._meta.fields.get(column)
    if found is None:
        raise ValueError("there is no such column")
    if not isinstance(found, InstantField):
        raise ValueError("the column is not an InstantField, so the time zone of its values is not known")
    return found


def read_age(text: str) -> timedelta:
    """Read an age: days as 30d, else a duration like 12h.

    :raises ValueError: when it is none, or not above 0.
    """
    text = str(text).strip()
    is_days = text.endswith("d") and text[:-1].isdecimal() and text.isascii() and len(text) < 8
    try:
        age = timedelta(days=int(text[:-1])) if is_days else parse_duration(text)
    except ValueError:
        raise ValueError("that is not an age") from None
    if age <= timedelta(0):
        raise ValueError("the age is not above 0")
    return age


def shown_age(age: timedelta) -> str:
    """Return an age as `read_age` takes it."""
    return f"{age.days}d" if age.days and not age % timedelta(days=1) else in_units(age)


# Runs


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
    :param lock_timeout: how long to wait for another run, in seconds or as a timedelta.
    :param tell: is called with a rule and the number of rows that were deleted for it so far.
    :param trust_source: let a PostgreSQL superuser run code of other roles that is attached to the tables.
    :raises ConfigError: when the limit, a time or an age is wrong.
    :raises TransactionError: within a transaction, which would keep all that is deleted locked until its end.
    :raises LockTimeout: when another run takes longer.
    :raises DatabaseMoved: when the rows were moved to another database.
    :raises WhatspireDBError: when a table is missing, rows without a rule refer to those, or a superuser would run
        code of other roles.
    """
    _require_no_transaction(db)
    engine = engine_of(db, trust_source)
    run = _Run(engine, _pace(engine, stall), _checked_limit(limit), stop or threading.Event(), tell or _Log())
    wait_seconds = None if dry_run else seconds_of("lock_timeout", lock_timeout)
    with db.connection_context() if db.is_closed() else nullcontext():
        return _done(run, rules, wait_seconds)


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


def _counted(engine: RowEngine, rule: Rule, before: datetime) -> Retained:
    query = rule.model.select(peewee.fn.COUNT(peewee.SQL("*"))).where(rule.field < before)
    is_indexed = engine.begins_an_index(rule.field)
    with engine.with_own_names():
        return Retained(rule, before, int(query.scalar(engine.db)), True, is_indexed)


def _done(run: _Run, rules: Sequence[Rule], wait_seconds: float | None) -> list[Retained]:
    """Do what the rules say, or, without a time to wait for other runs, count what that would be."""
    run.engine.require_rows_here()
    todo = _children_first(rules)
    _require_tables(run.engine, rules)
    _require_trusted(run.engine, rules)
    if wait_seconds is None:
        done = [_counted(run.engine, rule, before) for rule, before in todo]
    else:
        with run.engine.alone(wait_seconds):
            done = [_delete(run, rule, before) for rule, before in todo]
            if any(each.rows for each in done):
                run.engine.give_back(run.pace.seconds, run.rest)
    return sorted(done, key=lambda each: rules.index(each.rule))


def _delete(run: _Run, rule: Rule, before: datetime) -> Retained:
    rows, size = 0, run.engine.smallest
    is_indexed = run.engine.begins_an_index(rule.field)
    while not run.stop.is_set():
        wanted = size if run.left is None else min(size, run.left)
        if not wanted:
            break
        started = time.monotonic()
        deleted = _delete_batch(run.engine, rule, before, wanted, is_indexed)
        seconds = time.monotonic() - started
        if not deleted:
            return Retained(rule, before, rows, True, is_indexed)
        rows += deleted
        run.left = None if run.left is None else run.left - deleted
        run.tell(rule, rows)
        size = run.pace.after(deleted, seconds)
        run.rest(seconds)
    return Retained(rule, before, rows, False, is_indexed)


def _delete_batch(engine: RowEngine, rule: Rule, before: datetime, size: int, is_indexed: bool) -> int:
    keys = rule.model._meta.get_primary_keys()
    if not keys:
        fact = f"{rule.model.__name__} has no primary key, by which rows are deleted in batches"
        raise ModelError(fact, "give it one, or delete its rows yourself")
    old = rule.model.select(*keys).where(rule.field < before).limit(size)
    if is_indexed:  # else the whole table would be sorted for each batch
        old = old.order_by(rule.field)
    key = keys[0] if len(keys) == 1 else Tuple(*keys)
    query = rule.model.delete().where(key.in_(engine.unlocked(old)))
    try:
        with engine.batch():
            return int(query.execute(engine.db))
    except peewee.IntegrityError as error:
        raise WhatspireDBError(
            f"rows of {rule.model._meta.table_name} cannot be deleted: {first_line(error)}",
            "others refer to them: give those a rule that deletes them first; the rows that are gone stay so",
        ) from error


class _Log:
    """Tells the log every ten seconds how far a run is."""

    def __init__(self) -> None:
        self.throttle = Throttle()

    def __call__(self, rule: Rule, rows: int) -> None:
        if self.throttle.is_due():
            logger.info("%s: %s rows deleted", rule, f"{rows:,}")
