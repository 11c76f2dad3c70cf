"""API keys, and the audit log."""

from __future__ import annotations

from peewee import SQL

from ...fields import FlagField, InstantField, JSONTextField, NaiveInstantField, TextField, TextKeyField, utcnow
from ..base import BaseModel
from . import KEY, indexed, one_of


@indexed("is_active", "created_at", "key_hash", unique="key_hash")
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
        constraints = [KEY, one_of("api_keys", "role", "read", "write", "admin")]

    @classmethod
    def issue(cls, role: str, description: str | None = None) -> tuple[ApiKey, str]:
        """Create a key that the service accepts; return its row and the key itself, of which only a hash is stored.

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
        """Revoke the key; return False when it was revoked before, and leave who did so and why as they are.

        :param by: who revokes it.
        """
        from .api_keys import revoke

        return revoke(self, by, reason)


@indexed("created_at", "api_key_id", "event_type")
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
        constraints = [KEY]
