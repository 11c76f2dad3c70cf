"""Reactions, receipts and presence."""

from __future__ import annotations

from ...fields import InstantField, TextField, TextKeyField, utcnow
from ..base import BaseModel
from . import KEY, indexed, one_of


@indexed("session_id", "message_id")
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
        constraints = [KEY]


@indexed("session_id", "message_id")
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
        constraints = [KEY, one_of("receipts", "type", "delivered", "read")]


@indexed("user_jid", "session_id")
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
        constraints = [KEY, one_of("presence", "state", "typing", "paused", "online", "offline")]
