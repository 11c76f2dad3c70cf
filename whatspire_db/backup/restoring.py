"""Bringing a database back: the backup is proved first, and what is overwritten is kept."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import BackupFailed, BackupInvalid, ConfigError, TargetRefused, WhatspireDBError
from ..settings import Settings
from . import sqlite
from .archive import (
    STAMP,
    Backup,
    Content,
    Progress,
    digest,
    free_stem,
    read,
    silent,
)
from .durable import LOCK_SECONDS, locked, make_folder, new_file, publish, workspace
from .engines import PostgresEngine, SqliteEngine, check, engine_at, engine_of
from .making import SAFETY, create_of, manifest_of, published, require_name, told
from .proving import DAMAGED, folder_of, require_engine, still_there, verify_file, work_for

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
    backup: Backup,
    settings: Settings | None = None,
    folder: str | Path | None = None,
    *,
    to: str | None = None,
    name: str | None = None,
    force: bool = False,
    safety_backup: bool = True,
    lock_timeout: float = LOCK_SECONDS,
    progress: Progress = silent,
) -> Restored:
    """Verify a backup and bring a database to what it holds. Whatever happens, the database is the old or the new one.

    :param folder: for the backup of what is overwritten; default: that of WHATSAPP_DATABASE_BACKUP_DIR.
    :param to: another place: a file, or another database of the server.
    :param name: of the backup of what is overwritten; default: as of every backup of it.
    :param force: overwrite data.
    :param safety_backup: make a backup of the data before.
    :raises BackupInvalid: when the backup is damaged, or the other engine's.
    :raises TargetRefused: when there is data without `force`, or others hold it.
    :raises VersionMismatch: when the server is older than the backup.
    """
    started = time.perf_counter()
    settings = settings or Settings.from_environment()
    require_engine(backup, settings)
    if to == "":
        raise ConfigError("--to is empty", "name a file, or another database of the server")
    engine = engine_of(settings) if to is None else engine_at(settings, to)
    given = settings.backup_name if name is None else name
    engine.name = engine.name if given is None else require_name(given)
    if isinstance(engine, SqliteEngine):
        _require_file(engine.path)
    place = folder_of(folder, settings) if safety_backup else None
    done: list[tuple[Backup | None, tuple[str, ...]]] = []
    try:
        with told(), still_there(backup), work_for(backup) as work:
            verify_file(backup, progress)
            if isinstance(engine, SqliteEngine):
                done.append(_restore_sqlite(engine, backup, place, work, force, lock_timeout, progress))
            else:
                done.append(_restore_postgres(engine, backup, place, work, force, lock_timeout, progress))
    except KeyboardInterrupt:
        if not done:
            raise
        logger.warning("the restore was done when the interrupt came")
    safety, kept = done[0]
    return Restored(engine.title, backup, safety, kept, (time.perf_counter() - started) * 1000)


def _require_file(path: Path) -> None:
    """Refuse what is no place for a database: a directory, or a backup, which would be overwritten."""
    if path.is_dir():
        raise ConfigError(f"{path} is a directory", "name a file by --to or WHATSAPP_DATABASE_DSN")
    try:
        read(path)
    except WhatspireDBError:
        return
    raise TargetRefused(f"{path} is a backup itself", "name another file by --to")


def _restore_sqlite(
    engine: SqliteEngine, backup: Backup, place: Path | None, work: Path, force: bool, wait: float, progress: Progress
) -> tuple[Backup | None, tuple[str, ...]]:
    made: list[Backup] = []
    damaged: list[str] = []

    def keep(old: Path) -> None:
        if not old.stat().st_size:
            return  # a file that SQLite opened, and nobody wrote
        try:
            content = sqlite.examine(old, named=engine.path)
        except BackupInvalid as error:
            if not force:
                raise TargetRefused(error.fact, "--force keeps a copy, and overwrites it") from None
            if place is not None:
                damaged.append(str(_kept_damaged(engine, old, place)))
            return
        holds_rows = any(table.rows for name, table in content.tables.items() if _is_for_data(name))
        if holds_rows and not force:
            raise TargetRefused(f"{engine.path} holds data", "--force makes a backup of it, and overwrites it")
        if place is not None:
            made.append(_adopted(engine, old, content, place))

    plain = sqlite.plain_file(backup.file, backup.manifest, work, progress)
    sqlite.require_same(backup.file, backup.manifest, plain, progress)
    stamp = datetime.now(timezone.utc).strftime(STAMP)
    outcome = sqlite.restore(
        plain,
        backup.manifest.content,
        engine.path,
        force=force,
        wait=wait,
        moved_name=f"moved-{stamp}",
        keep=keep,
        progress=progress,
    )
    return (made[0] if made else None), (*damaged, *map(str, outcome.moved))


def _is_for_data(table: str) -> bool:
    """Tell a table from one for notes: the package's of its migrations, or SQLite's of statistics and counters."""
    return table != "migration_versions" and not table.startswith(("sqlite_stat", "sqlite_sequence"))


def _adopted(engine: SqliteEngine, copy: Path, content: Content, folder: Path) -> Backup:
    """Make a backup of a copy that was made and looked at before."""
    make_folder(folder)
    with workspace(folder) as work:
        draft = new_file(work / "data")
        shutil.copyfile(copy, draft)
        manifest = manifest_of(engine, engine.name, draft, content, "none", SAFETY, silent)
        if digest(copy) != manifest.sha256:
            raise BackupFailed("the copy of what is to be overwritten differs", "look at the disk; nothing was changed")
        return published(manifest, draft, folder, engine.suffix("none"), None)


def _kept_damaged(engine: SqliteEngine, copy: Path, folder: Path) -> Path:
    """Keep a copy of what is no backup because it is damaged."""
    make_folder(folder)
    with workspace(folder) as work, locked(folder):
        stem = free_stem(folder, engine.name, datetime.now(timezone.utc))
        draft = new_file(work / f"{stem}{DAMAGED}")
        shutil.copyfile(copy, draft)
        publish([draft], folder)
    return folder / draft.name


def _restore_postgres(
    engine: PostgresEngine, backup: Backup, place: Path | None, work: Path, force: bool, wait: float, progress: Progress
) -> tuple[Backup | None, tuple[str, ...]]:
    from . import postgres

    keep: Callable[[], Backup] | None = None
    if place is not None:
        folder = place

        def keep() -> Backup:
            try:
                return create_of(engine, folder, purpose=SAFETY, wait=wait, progress=progress)
            except BackupFailed as error:
                hint = f"{error.hint}; --no-safety-backup replaces it without"
                raise BackupFailed(f"what is there cannot be backed up: {error.fact}", hint) from None

    check(backup.file, backup.manifest, work, progress)
    outcome = postgres.restore(
        engine.target.to(engine.database),
        backup.file,
        backup.manifest.content,
        force=force,
        keep=keep,
        work=work,
        progress=progress,
        wait=wait,
    )
    return outcome.safety, (outcome.kept_database,) if outcome.kept_database else ()
