"""Recorded migration runs."""

from __future__ import annotations

from peewee import SQL

from ...fields import InstantField, IntKeyField, TextField, utcnow
from ..base import BaseModel


class MigrationVersion(BaseModel):
    """One recorded run of a migrator, ours or the Go service's."""

    version = IntKeyField()
    name = TextField()
    applied_at = InstantField(default=utcnow)

    class Meta:
        table_name = "migration_versions"
        constraints = [SQL('PRIMARY KEY ("version")')]
