"""Events and webhooks."""

from __future__ import annotations

from peewee import SQL

from ...fields import FlagField, InstantField, JSONBytesField, JSONTextField, TextField, TextKeyField, utcnow
from ...light_stdlib import TYPE_CHECKING
from ..base import BaseModel
from . import KEY, indexed

if TYPE_CHECKING:
    from datetime import datetime

    from .event_pages import EventPage


@indexed("timestamp", "session_id", "type")
class Event(BaseModel):
    """An event of a session, as it came in."""

    id = TextKeyField()
    type = TextField()
    session_id = TextField()
    data = JSONBytesField(null=True)
    timestamp = InstantField()
    created_at = InstantField(default=utcnow)

    class Meta:
        table_name = "events"
        constraints = [KEY]

    @classmethod
    def page(
        cls,
        after: str | None = None,
        *,
        limit: int = 100,
        session: str | None = None,
        type: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        newest_first: bool = False,
    ) -> EventPage:
        """Return a page of events in the order of timestamp and id, with `events` and, for the next page, `after`.

        Events that are added or deleted meanwhile shift nothing: no other event is skipped or told twice.

        :param after: the `after` of the page before; None begins.
        :param session: the `session_id` of the events.
        :param since: the first moment.
        :param until: the first moment that is too late.
        :raises ValueRefused: when `after` is none, or `limit` is not from 1 to 10,000.
        """
        from .event_pages import Filter
        from .event_pages import page as page_of

        return page_of(cls, Filter(session, type, since, until, newest_first), after, limit)


# The Go service declares the three composite ones too, but its migrator never makes them.
Event.add_index(Event.session_id, Event.timestamp.desc(), name="idx_events_session_timestamp")
Event.add_index(Event.type, Event.timestamp.desc(), name="idx_events_type_timestamp")
Event.add_index(Event.session_id, Event.type, name="idx_events_session_type")


@indexed("session_id", unique="session_id")
class WebhookConfig(BaseModel):
    """Where a session's events are sent."""

    id = TextKeyField()
    session_id = TextField()
    enabled = FlagField(default=False, constraints=[SQL("DEFAULT false")])
    url = TextField(null=True)
    secret = TextField(null=True)
    events = JSONTextField(null=True)
    ignore_groups = FlagField(default=False, constraints=[SQL("DEFAULT false")])
    ignore_broadcasts = FlagField(default=False, constraints=[SQL("DEFAULT false")])
    ignore_channels = FlagField(default=False, constraints=[SQL("DEFAULT false")])
    created_at = InstantField(default=utcnow)
    updated_at = InstantField(default=utcnow)

    class Meta:
        table_name = "webhook_configs"
        constraints = [KEY]
