"""Logical replication slots of a PostgreSQL database, which end with it and are in no dump."""

from __future__ import annotations

from whatspire_db.errors import TargetRefused
from whatspire_db.sql import literal

from .server import Session

# A temporary one ends with the session that made it.
_SLOTS = """
SELECT slot_name FROM pg_catalog.pg_replication_slots
WHERE slot_type = 'logical' AND database = %s AND NOT temporary ORDER BY 1
"""


def slots_of(admin: Session, name: str) -> list[str]:
    """Return the names of a database's logical replication slots."""
    return [slot for (slot,) in admin.rows(_SLOTS, name)]


def require_no_slots(admin: Session, name: str) -> None:
    """Refuse to replace a database whose changes another system reads.

    :raises TargetRefused: when it has a logical replication slot: dropping the database would drop the slot with it.
    """
    if slots := slots_of(admin, name):
        drops = "; ".join(f"SELECT pg_drop_replication_slot({literal(slot)})" for slot in slots)
        raise TargetRefused(
            f"database {name} has logical replication slots, which would end with it: {', '.join(slots)}",
            f"restore --to another database; or stop the readers of the slots, drop these ({drops}), restore, and let "
            "the readers begin anew with a copy; nothing was changed",
        )
