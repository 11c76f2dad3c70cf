"""Backups before a run over many databases changes them: one at a time, of a database with many schemas once."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

from ..errors import WhatspireDBError
from ..settings import Settings
from .targets import Target


class Backups:
    """What makes a backup before a database is changed: one at a time, of a database with many schemas once.

    :param in_main_thread: has the main thread make one, which hears signals meanwhile.
    """

    def __init__(self, options: Any, settings: Settings, in_main_thread: Callable[[Callable[[], Any]], Any]) -> None:
        self.wanted = options.verb == "up" and bool(options.backup or settings.backup_before_migrate)
        self.settings, self.in_main_thread = settings, in_main_thread
        self._lock = threading.Lock()
        self._made: list[tuple[str | None, WhatspireDBError | None]] = []

    def of(self, target: Target, settings: Settings) -> Callable[[], str | None] | None:
        """Return what a run calls before it changes a database."""
        if not self.wanted:
            return None
        return self._once if target.path else lambda: self._make(settings)

    def _make(self, settings: Settings) -> str | None:
        from ..backup.before_migration import before_migration

        with self._lock:
            return self.in_main_thread(before_migration(settings))

    def _once(self) -> str | None:
        """Return the backup of the whole database, which the first schema that changes has made."""
        from ..backup.before_migration import before_migration

        with self._lock:
            if not self._made:
                try:
                    self._made.append((self.in_main_thread(before_migration(self.settings)), None))
                except WhatspireDBError as error:
                    self._made.append((None, error))
        made, failed = self._made[0]
        if failed is not None:
            raise copy.copy(failed)
        return made
