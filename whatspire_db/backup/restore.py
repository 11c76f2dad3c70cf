"""Bringing a database back: the backup is proved first, and what is overwritten is kept."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ..connection.patience import patient
from ..errors import BackupFailed, ConfigError
from ..settings import Settings
from ..settings.durations import seconds_of
from .archive import Backup, digest, free_stem
from .create import Wish, create_of, manifest_of, published, require_name, told
from .durable import LOCK_SECONDS, brought, locked, made_folder, publish, workspace
from .engines.base import Engine, Given, Outcome, Restoration, engine_at, engine_of, require_place, settings_for
from .manifest import SAFETY, Content, Progress, silent
from .verify import DAMAGED, backup_of, folder_of, require_engine, still_there, verified_file, work_for

logger = logging.getLogger("whatspire_db.backup")


@dataclass(frozen=True)
class Restored:
    """What a restore did: where to, from what, and what became of what was there before.

    `safety` is a backup of it; `kept` are the places that hold what was put aside: files, or a database.
    """

    target: str
    backup: Backup
    safety: Backup | None
    kept: tuple[str, ...]
    duration_ms: float

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "backup": str(self.backup.file),
            "schema_version": self.backup.manifest.content.schema_version,
            "rows": self.backup.manifest.content.rows,
            "safety_backup": str(self.safety.file) if self.safety else None,
            "kept": list(self.kept),
            "duration_ms": round(self.duration_ms, 1),
        }


def restore(
    backup: Backup | str | Path,
    settings: Given = None,
    folder: str | Path | None = None,
    *,
    to: str | None = None,
    name: str | None = None,
    force: bool = False,
    safety_backup: bool = True,
    trust_source: bool = False,
    lock_timeout: float | timedelta | str = LOCK_SECONDS,
    progress: Progress = silent,
) -> Restored:
    """Verify a backup and bring a database to what it holds. Whatever happens, the database is the old or the new one.

    :param backup: as `find` returns it, or what it takes: a path, or "latest".
    :param folder: for the backup of what is overwritten; default: that of WHATSAPP_DATABASE_BACKUP_DIR.
    :param to: another place: a file, or another database of the server.
    :param name: of the backup of what is overwritten; default: as of every backup of it.
    :param force: overwrite data.
    :param safety_backup: make a backup of the data before.
    :param trust_source: let a superuser's restore run the code of owners that are no superusers.
    :param lock_timeout: how long to wait for others' locks: seconds, a timedelta or a text like 5s.
    :raises BackupInvalid: when the backup is damaged, or the other engine's.
    :raises TargetRefused: when there is data without `force`, or others hold it.
    :raises LockTimeout: when others' transactions did not end in time.
    :raises SourceNotTrusted: when a superuser restores what other roles own, without `trust_source`.
    :raises VersionMismatch: when the server is older than the backup.
    """
    started = time.perf_counter()
    settings, wait = settings_for(settings, "restore"), seconds_of("lock_timeout", lock_timeout)
    backup = backup_of(backup, settings, folder, name)
    require_engine(backup, settings)
    with patient(wait):
        engine = _target(settings, to, settings.backup_name if name is None else name)
    place = folder_of(folder, settings) if safety_backup else None
    safety = _Safety(engine, place, wait, progress)
    outcome = _restored(engine, backup, safety, force=force, trust_source=trust_source)
    milliseconds = (time.perf_counter() - started) * 1000
    return Restored(engine.title, backup, outcome.safety, outcome.kept, milliseconds)


def _target(settings: Settings, to: str | None, name: str | None) -> Engine:
    """Return the engine for the place that a restore goes to; its backups have that name."""
    if to == "":
        raise ConfigError("--to is empty", "name a file, or another database of the server")
    if to is None:
        require_place(settings)
    engine = engine_of(settings) if to is None else engine_at(settings, to)
    engine.name = engine.name if name is None else require_name(name)
    engine.require_target()
    return engine


def _restored(engine: Engine, backup: Backup, safety: _Safety, *, force: bool, trust_source: bool) -> Outcome:
    """Restore; an interrupt that comes when all is done changes nothing."""
    outcome, wait, progress = Outcome(), safety.wait, safety.progress
    try:
        with patient(wait), told(engine.title), still_there(backup, wait), work_for(backup, wait) as work:
            file = verified_file(backup, work, progress)
            engine.restore(Restoration(backup, file, work, safety, force, wait, progress, trust_source, outcome))
    except KeyboardInterrupt:
        if not outcome.is_done:
            raise
        logger.warning("the restore was done when the interrupt came")
    return outcome


@dataclass(frozen=True)
class _Safety:
    """Keeps what a restore overwrites in a folder of backups; nothing without a folder."""

    engine: Engine
    folder: Path | None
    wait: float
    progress: Progress

    def make(self) -> Backup | None:
        if self.folder is None:
            return None
        try:
            return create_of(self.engine, self.folder, Wish(purpose=SAFETY), self.wait, self.progress)
        except BackupFailed as error:
            hint = f"{error.hint}; --no-safety-backup replaces it without"
            raise BackupFailed(f"what is there cannot be backed up: {error.fact}", hint) from None

    def adopt(self, copy: Path, content: Content) -> Backup | None:
        if self.folder is None:
            return None
        with made_folder(self.folder), workspace(self.folder, self.wait) as work:
            draft = brought(copy, work)
            manifest = manifest_of(self.engine, self.engine.name, draft, content, "none", SAFETY, silent)
            if digest(copy) != manifest.sha256:
                raise BackupFailed(
                    "the copy of what is to be overwritten differs", "look at the disk; nothing was changed"
                )
            return published(manifest, draft, self.folder, self.engine.suffix("none"), None, self.wait)

    def keep_damaged(self, copy: Path) -> Path | None:
        if self.folder is None:
            return None
        with made_folder(self.folder), workspace(self.folder, self.wait) as work, locked(self.folder, self.wait):
            stem = free_stem(self.folder, self.engine.name, datetime.now(timezone.utc))
            draft = brought(copy, work).rename(work / f"{stem}{DAMAGED}")
            publish([draft], self.folder)
        return self.folder / draft.name
