"""migration_versions: which runs were recorded, by this package or by the Go service."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import peewee
from peewee import fn

from ..errors import WhatspireDBError
from ..fields import utcnow
from ..models import MigrationVersion

RUN_NAME = "auto_migration"


@dataclass(frozen=True)
class MigrationStatus:
    """One recorded run: `version` in epoch seconds, `applied_at` aware and in UTC."""

    version: int
    name: str
    applied_at: datetime | None
    applied: bool = True

    def to_json(self) -> dict[str, Any]:
        applied_at = self.applied_at.isoformat() if self.applied_at else None
        return {"version": self.version, "name": self.name, "applied_at": applied_at, "applied": self.applied}


def exists(db: peewee.Database) -> bool:
    """Tell whether anything was ever recorded there."""
    return bool(db.table_exists(MigrationVersion._meta.table_name))


def version(db: peewee.Database) -> int:
    """Return the newest recorded version; 0 before the first run."""
    if not exists(db):
        return 0
    newest = MigrationVersion.select(fn.MAX(MigrationVersion.version)).scalar(db)
    try:
        return int(newest or 0)
    except (TypeError, ValueError):
        raise WhatspireDBError(
            f"migration_versions.version holds {newest!r}, which is not a number",
            "compare that table with the model MigrationVersion",
        ) from None


def status(db: peewee.Database) -> list[MigrationStatus]:
    """Return the recorded runs, oldest first."""
    if not exists(db):
        return []
    rows = MigrationVersion.select().order_by(MigrationVersion.version).execute(db)
    return [MigrationStatus(row.version, row.name, row.applied_at) for row in rows]


def record(db: peewee.Database, name: str = RUN_NAME) -> int:
    """Add a row and return its version: the later of now and the last one + 1.

    The Go service takes no lock when it records its start, so a version that it takes meanwhile is passed over.
    """
    number = max(int(time.time()), version(db) + 1)
    while True:
        insert = MigrationVersion.insert(version=number, name=name, applied_at=utcnow())
        # Only a version that is taken is passed over; any other conflict is an error of its own.
        do_nothing = insert.on_conflict(action="NOTHING", conflict_target=["version"])
        if db.rows_affected(db.execute(do_nothing)):
            return number
        number += 1
