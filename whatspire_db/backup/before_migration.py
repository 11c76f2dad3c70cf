"""A backup under the migration lock, before a run changes anything."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import NothingToBackUp
from ..settings import Settings
from .create import create
from .engines.base import is_open_to_others


def before_migration(settings: Settings) -> Callable[[], str | None]:
    """Return what makes a backup of a database, for a MigrationRunner's `before_changes`.

    It returns the backup's file; None where there is nothing in the database yet.
    """

    def make() -> str | None:
        if not is_open_to_others(settings):
            return None
        try:
            return str(create(settings, purpose="before a migration").file)
        except NothingToBackUp:
            return None

    return make
