"""The service's nine tables, to the letter as the Go service makes them."""

from __future__ import annotations

from collections.abc import Callable

from peewee import SQL, ModelIndex

from ..fields import (
    FlagField,
    InstantField,
    IntKeyField,
    JSONBytesField,
    JSONTextField,
    NaiveInstantField,
    TextField,
    TextKeyField,
    utcnow,
)
from ..light_stdlib import TYPE_CHECKING, TypeVar
from .base import BaseModel

if TYPE_CHECKING:
    from datetime import datetime

    from .event_pages import EventPage

M = TypeVar("M", bound=BaseModel)

_KEY = SQL('PRIMARY KEY ("id")')


def _one_of(table: str, column: str, *values: str) -> SQL:
    listed = ",".join(f"'{value}'" for value in values)
    return SQL(f'CONSTRAINT "chk_{table}_{column}" CHECK ({column} IN ({listed}))')


def _indexed(*columns: str, unique: str = "") -> Callable[[type[M]], type[M]]:
    """Give a model one index a column, named as GORM names it."""

    def add(model: type[M]) -> type[M]:
        for column in columns:
            name = f"idx_{model._meta.table_name}_{column}"
            model.add_index(ModelIndex(model, [model._meta.columns[column]], unique=column == unique, name=name))
        return model

    return add


@_indexed("status", "jid")
class Session(BaseModel):
    """A WhatsApp session."""

    id = TextKeyField()
    name = TextField()
    jid = TextField(null=True)
    status = TextField()
    created_at = InstantField(default=utcnow)
    updated_at = InstantField(default=utcnow)

    class Meta:
        table_name = "sessions"
        constraints = [
            _KEY,
            _one_of(
                "sessions",
                "status",
                *("disconnected", "connecting", "connected", "qr_pending", "authenticating"),
                *("authenticated", "failed", "pending", "logged_out"),
            ),
        ]


@_indexed("session_id", "message_id")
class Reaction(BaseModel):
    """A reaction to a message."""

    id = TextKeyField()
    message_id = TextField()
    session_id = TextField()
    from_jid = TextField()
    to_jid = TextField()
    emoji = TextField()
    created_at = InstantField(default=utcnow)

    class Meta:
        table_name = "reactions"
        constraints = [_KEY]


@_indexed("session_id", "message_id")
class Receipt(BaseModel):
    """A receipt: a message was delivered or read."""

    id = TextKeyField()
    message_id = TextField()
    session_id = TextField()
    from_jid = TextField()
    to_jid = TextField()
    type = TextField()
    created_at = InstantField(default=utcnow)

    class Meta:
        table_name = "receipts"
        constraints = [_KEY, _one_of("receipts", "type", "delivered", "read")]


@_indexed("user_jid", "session_id")
class Presence(BaseModel):
    """What a user was seen doing in a chat."""

    id = TextKeyField()
    session_id = TextField()
    user_jid = TextField()
    chat_jid = TextField()
    state = TextField()
    created_at = InstantField(default=utcnow)

    class Meta:
        table_name = "presence"
        constraints = [_KEY, _one_of("presence", "state", "typing", "paused", "online", "offline")]


@_indexed("is_active", "created_at", "key_hash", unique="key_hash")
class ApiKey(BaseModel):
    """A key to the service's API; only its hash is kept."""

    id = TextKeyField()
    key_hash = TextField()
    role = TextField()
    description = TextField(null=True)
    created_at = InstantField(default=utcnow)
    last_used_at = NaiveInstantField(null=True)
    is_active = FlagField(default=True, constraints=[SQL("DEFAULT true")])
    revoked_at = NaiveInstantField(null=True)
    revoked_by = TextField(null=True)
    revocation_reason = TextField(null=True)

    class Meta:
        table_name = "api_keys"
        constraints = [_KEY, _one_of("api_keys", "role", "read", "write", "admin")]

    @classmethod
    def issue(cls, role: str, description: str | None = None) -> tuple[ApiKey, str]:
        """Make a key that the service accepts, and return its row and the key itself, which is stored nowhere.

        :param role: "read", "write" or "admin".
        :raises peewee.IntegrityError: for another role.
        """
        from .api_keys import issue

        return issue(cls, role, description)

    @classmethod
    def find(cls, key: str) -> ApiKey | None:
        """Return the row of a key that is active; None for one that is unknown or revoked."""
        from .api_keys import find

        return find(cls, key)

    def revoke(self, by: str, reason: str | None = None) -> bool:
        """Let the service accept the key no longer; False when somebody revoked it before, whose note stays.

        :param by: who revokes it.
        """
        from .api_keys import revoke

        return revoke(self, by, reason)


@_indexed("created_at", "api_key_id", "event_type")
class AuditLog(BaseModel):
    """One entry of the audit trail."""

    id = TextKeyField()
    event_type = TextField()
    api_key_id = TextField(null=True)
    session_id = TextField(null=True)
    endpoint = TextField(null=True)
    action = TextField(null=True)
    details = JSONTextField(null=True)
    ip_address = TextField(null=True)
    created_at = InstantField(default=utcnow)

    class Meta:
        table_name = "audit_logs"
        constraints = [_KEY]


@_indexed("timestamp", "session_id", "type")
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
        constraints = [_KEY]

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


@_indexed("session_id", unique="session_id")
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
        constraints = [_KEY]


class MigrationVersion(BaseModel):
    """One recorded run of a migrator, ours or the Go service's."""

    version = IntKeyField()
    name = TextField()
    applied_at = InstantField(default=utcnow)

    class Meta:
        table_name = "migration_versions"
        constraints = [SQL('PRIMARY KEY ("version")')]


SERVICE_MODELS: tuple[type[BaseModel], ...] = (
    Session,
    Reaction,
    Receipt,
    Presence,
    ApiKey,
    AuditLog,
    Event,
    WebhookConfig,
    MigrationVersion,
)
