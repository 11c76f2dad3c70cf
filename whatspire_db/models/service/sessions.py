"""WhatsApp sessions."""

from __future__ import annotations

from ...fields import InstantField, TextField, TextKeyField, utcnow
from ..base import BaseModel
from . import KEY, indexed, one_of


@indexed("status", "jid")
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
            KEY,
            one_of(
                "sessions",
                "status",
                *("disconnected", "connecting", "connected", "qr_pending", "authenticating"),
                *("authenticated", "failed", "pending", "logged_out"),
            ),
        ]
