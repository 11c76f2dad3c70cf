"""API keys of the service: issued, found and revoked as the service does it."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from typing import TYPE_CHECKING

from ...fields import utcnow

if TYPE_CHECKING:
    from . import ApiKey

BYTES = 32  # random ones, whose base64url is the key


def issue(model: type[ApiKey], role: str, description: str | None) -> tuple[ApiKey, str]:
    """Store a new key's hash; return the row and the key."""
    key = secrets.token_urlsafe(BYTES)
    row = model.create(id=f"key_{uuid.uuid4()}", key_hash=hash_of(key), role=role, description=description)
    return row, key


def find(model: type[ApiKey], key: str) -> ApiKey | None:
    """Return the row of an active key."""
    # The index finds the hash, whose digits tell nothing about those of a key.
    return model.get_or_none(model.key_hash == hash_of(key), model.is_active == True)  # noqa: E712


def revoke(row: ApiKey, by: str, reason: str | None) -> bool:
    """Mark a key as revoked, unless it is already; the row gets what the database then holds."""
    model = type(row)
    now = utcnow()
    changed = {"is_active": False, "revoked_at": now, "revoked_by": by, "revocation_reason": reason}
    is_ours = bool(model.update(changed).where(model.id == row.id, model.is_active == True).execute())  # noqa: E712
    if is_ours:
        for name, value in changed.items():
            setattr(row, name, value)
        row._note_saved(changed)  # so that save() does not write them over what others write later
    return is_ours


def hash_of(key: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
