"""Events a page at a time, in the order of their timestamp and, among equal ones, of their id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from peewee import ColumnBase, Context, Field, Value

from ...errors import ValueRefused
from ...fields import on_postgres, parse_instant

if TYPE_CHECKING:
    from . import Event

LARGEST = 10_000


@dataclass(frozen=True)
class EventPage:
    """The events of a page, and what `Event.page(after=...)` takes to give the next one; None behind the last event."""

    events: list[Event]
    after: str | None


@dataclass(frozen=True)
class Filter:
    """Which events are asked for, and in which order; `since` is the first moment, `until` the first one too late."""

    session: str | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    newest_first: bool = False


def page(model: type[Event], wanted: Filter, after: str | None, limit: int) -> EventPage:
    """Return the events that follow a place in their order.

    :param after: the `after` of the page before; None for the first one.
    :raises ValueRefused: when that is none, or the limit is not from 1 to 10,000.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= LARGEST:
        raise ValueRefused("limit is not a number of events for a page", f"give a whole number from 1 to {LARGEST}")
    query = model.select(model, _Exact(model.timestamp).alias("exact"))
    if conditions := _conditions(model, wanted):
        query = query.where(*conditions)
    if after is not None:
        query = query.where(*_behind(model, _read(after), wanted.newest_first))
    order = (model.timestamp, _ByBytes(model.id))
    query = query.order_by(*((each.desc() for each in order) if wanted.newest_first else order))
    found = list(query.limit(limit + 1))
    events = found[:limit]
    return EventPage(events, _written(events[-1]) if len(found) > limit else None)


class _ByBytes(ColumnBase):
    """A text that sorts by its bytes, as SQLite sorts it, whatever the language of a PostgreSQL database."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def __sql__(self, ctx: Context) -> Context:
        ctx = ctx.sql(self.field)
        return ctx.literal(' COLLATE pg_catalog."C"') if on_postgres(ctx) else ctx


class _Exact(ColumnBase):
    """A time as it is stored: on SQLite Go's have nanoseconds, which a datetime lacks."""

    def __init__(self, field: Field) -> None:
        self.field = field

    def __sql__(self, ctx: Context) -> Context:
        if on_postgres(ctx):
            return ctx.sql(self.field)
        return ctx.literal("CAST(").sql(self.field).literal(" AS TEXT)")


def _conditions(model: type[Event], wanted: Filter) -> list[Any]:
    asked = (
        (wanted.session, model.session_id == wanted.session),
        (wanted.type, model.type == wanted.type),
        (wanted.since, model.timestamp >= wanted.since),
        (wanted.until, model.timestamp < wanted.until),
    )
    return [condition for value, condition in asked if value is not None]


def _behind(model: type[Event], place: tuple[str, str], newest_first: bool) -> list[Any]:
    moment, key = Value(place[0], converter=False), place[1]
    if newest_first:
        return [model.timestamp <= moment, (model.timestamp < moment) | (_ByBytes(model.id) < key)]
    return [model.timestamp >= moment, (model.timestamp > moment) | (_ByBytes(model.id) > key)]


def _written(event: Any) -> str:
    exact = event.exact.isoformat() if isinstance(event.exact, datetime) else event.exact
    return json.dumps([exact, event.id])


def _read(after: str) -> tuple[str, str]:
    """Read the place that `_written` wrote; it may have been in the hands of others.

    :raises ValueRefused: for anything else.
    """
    try:
        moment, key = json.loads(after)
        parse_instant(moment, "after")
        if "\0" in key.encode().decode():
            raise ValueError
    except (TypeError, ValueError, AttributeError, RecursionError, ValueRefused):
        hint = "pass on the `after` of the page before, unchanged"
        raise ValueRefused("after does not come from a page of events", hint) from None
    return moment, key
