"""PostgreSQL: a database to fill and to look at, which is dropped at the end unless it took another one's place."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from whatspire_db.connection.patience import patient
from whatspire_db.sql import quoted

from .properties import locale_options
from .server import Session, session, unless_gone

SCRATCH = "whatspire_scratch_"
# A lock is of one database's sessions, but seen by all.
_LEFT = """
SELECT d.datname FROM pg_catalog.pg_database AS d
WHERE d.datname ~ %s AND pg_has_role(current_user, d.datdba, 'USAGE') AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_locks AS l WHERE l.locktype = 'advisory' AND l.objsubid = 1
        AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended(d.datname, 0)
)
"""


@contextmanager
def scratch(admin: Session, properties: Mapping[str, Any], template: str = "template0") -> Iterator[str]:
    """Make an empty database, and drop it after the block if it still has its name.

    Its name is locked as long as somebody works on it; those of dead processes that this role may drop are dropped
    first.

    :param properties: those of the database that it is to be like.
    """
    for (name,) in admin.rows(_LEFT, f"^{SCRATCH}[0-9a-f]{{12}}$"):
        if admin.value("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", name):
            with suppress(Exception):  # it stops nobody
                drop(admin, name)
            admin.rows("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", name)
    name = SCRATCH + uuid.uuid4().hex[:12]
    admin.rows("SELECT pg_advisory_lock(hashtextextended(%s, 0))", name)
    try:
        admin.rows(f"CREATE DATABASE {quoted(name)} TEMPLATE {template} {locale_options(admin, properties)}")
        yield name
    except BaseException:
        with patient(0), suppress(Exception):  # what went wrong is told, and the next restore drops it
            admin.rows("ROLLBACK")
            drop(admin, name)
        raise
    with unless_gone(admin):
        drop(admin, name)


def drop(admin: Session, name: str) -> None:
    """Drop a database that may not be there."""
    if admin.value("SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = %s AND datistemplate)", name):
        admin.rows(f"ALTER DATABASE {quoted(name)} IS_TEMPLATE false")
    _drop_subscriptions(admin, name)
    admin.rows(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")


def _drop_subscriptions(admin: Session, name: str) -> None:
    """Drop what stops a database from being dropped, and leave its slots alone: they serve the one that is restored."""
    names = admin.rows(
        "SELECT s.subname FROM pg_catalog.pg_subscription AS s "
        "JOIN pg_catalog.pg_database AS d ON d.oid = s.subdbid WHERE d.datname = %s",
        name,
    )
    if not names:
        return
    with session(admin.pinned(admin.target).to(name)) as inside:
        for (subscription,) in names:
            inside.rows(f"ALTER SUBSCRIPTION {quoted(subscription)} DISABLE")
            inside.rows(f"ALTER SUBSCRIPTION {quoted(subscription)} SET (slot_name = NONE)")
            inside.rows(f"DROP SUBSCRIPTION {quoted(subscription)}")
