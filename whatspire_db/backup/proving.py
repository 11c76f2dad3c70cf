"""Finding backups, and proving that they are what their manifests tell."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..dsn import SqliteTarget
from ..errors import BackupFailed, BackupInvalid, ConnectionFailed
from ..settings import Settings
from .archive import (
    ENGINES,
    Backup,
    NotABackup,
    Progress,
    digest,
    read,
    read_folder,
    silent,
)
from .durable import locked, workspace
from .engines import Engine, SqliteEngine, check, engine_of
from .making import SAFETY, as_folder, tested, told

LATEST = "latest"
DAMAGED = ".damaged"

logger = logging.getLogger("whatspire_db.backup")


def list_backups(
    folder: str | Path | None = None, settings: Settings | None = None
) -> tuple[list[Backup], list[NotABackup]]:
    """Return the backups of a folder, the latest first, and what looks like one and is none."""
    return read_folder(folder_of(folder, settings))


def folder_of(folder: str | Path | None, settings: Settings | None) -> Path:
    """Return the folder of backups, that of the settings where none is given."""
    return as_folder(folder or (settings or Settings.from_environment()).backup_dir)


def find(
    reference: str | Path,
    folder: str | Path | None = None,
    settings: Settings | None = None,
    *,
    name: str | None = None,
) -> Backup:
    """Return the backup that a path names, or the latest one of the settings' database.

    The latest is never what a restore put aside: who restores twice gets the same twice.

    :param name: of the backups to choose from; default: the database's.
    :raises BackupInvalid: when there is none, or it has no manifest that fits.
    """
    settings = settings or Settings.from_environment()
    place = folder_of(folder, settings)
    if str(reference) != LATEST:
        path = Path(reference)
        return read(path if os.path.exists(path) or path.parent != Path() else place / path)
    engine = engine_of(settings)
    wanted = name or engine.name
    backups, others = read_folder(place)
    named = [
        backup
        for backup in backups
        if (backup.manifest.name, backup.manifest.content.engine) == (wanted, engine.kind)
        and backup.manifest.purpose != SAFETY
    ]
    if not named:
        raise BackupInvalid(f"{place} holds no backup of {wanted}", "name a file, or another folder by --dir")
    source = _source(engine)
    own = [b for b in named if b.manifest.source == source]
    sources = {b.manifest.source for b in named}
    if not own and len(sources) > 1:
        raise BackupInvalid(
            f"{place} holds backups of {len(sources)} databases of the name {wanted}, and none of this one",
            "name the file to take",
        )
    latest = (own or named)[0]
    for other in others:
        if other.is_of(wanted) and other.path.name > latest.file.name and other.path.suffix != DAMAGED:
            logger.warning("the latest backup may be another one: %s", other.reason)
    return latest


def _source(engine: Engine) -> str | None:
    """Return whose backups are an engine's own; None where there is no such database any more."""
    try:
        return engine.source
    except ConnectionFailed:
        return None


def verify(
    backup: Backup, settings: Settings | None = None, *, test_restore: bool = False, progress: Progress = silent
) -> Backup:
    """Read a backup's file to its end and compare it with the manifest; return the backup.

    :param test_restore: restore it into a scratch place too, on PostgreSQL on the server of the settings, and compare
        the fingerprints of all tables.
    :raises BackupInvalid: when it is not what its manifest tells.
    :raises VersionMismatch: when it cannot be restored on that server.
    """
    with told(), still_there(backup), work_for(backup) as work:
        verify_file(backup, progress)
        check(backup.file, backup.manifest, work, progress)
        if test_restore:
            engine = _engine_for_test(backup, settings)
            tested(engine, backup.file, backup.manifest, work, progress)
    return backup


def verify_file(backup: Backup, progress: Progress = silent) -> None:
    """Compare the size and the checksum of a backup with its manifest.

    :raises BackupInvalid: when they differ.
    """
    problem = backup.missing
    if problem is None and digest(backup.file, progress) != backup.manifest.sha256:
        problem = "its file was changed, or is damaged: the checksum differs"
    if problem:
        raise BackupInvalid(f"{backup.file}: {problem}", "take another backup: python -m whatspire_db.backup list")


@contextmanager
def still_there(backup: Backup) -> Iterator[None]:
    """Tell a backup that somebody deletes meanwhile from one that is damaged."""
    try:
        yield
    except (BackupInvalid, FileNotFoundError):
        with locked(backup.folder):  # who prunes deletes the file first
            if _is_there(backup):
                raise
        raise BackupFailed(
            f"{backup.file} was deleted meanwhile", "see what python -m whatspire_db.backup list still has"
        ) from None


def _is_there(backup: Backup) -> bool:
    """Tell whether a backup has its manifest, and not another one that got its name since."""
    try:
        found = read(backup.manifest_path).manifest
        return (found.serial, found.sha256) == (backup.manifest.serial, backup.manifest.sha256)
    except BackupInvalid:
        return backup.manifest_path.exists()


def _engine_for_test(backup: Backup, settings: Settings | None) -> Engine:
    if backup.manifest.content.engine == "sqlite":
        return SqliteEngine(SqliteTarget(str(backup.file), str(backup.file)))
    settings = settings or Settings.from_environment()
    require_engine(backup, settings)
    return engine_of(settings)


def require_engine(backup: Backup, settings: Settings) -> None:
    """Refuse a backup of the other engine.

    :raises BackupInvalid: when it is one.
    """
    kind = backup.manifest.content.engine
    if kind != settings.driver:
        raise BackupInvalid(
            f"{backup.file} is a backup of {ENGINES[kind]}, and WHATSAPP_DATABASE_DRIVER is {settings.driver}",
            f"set the driver to {kind}, or take another backup",
        )


@contextmanager
def work_for(backup: Backup) -> Iterator[Path]:
    """Give a workspace beside a backup, or where that folder cannot be written, among the temporary files."""
    writable = os.access(backup.folder, os.W_OK | os.X_OK)
    with workspace(backup.folder if writable else Path(tempfile.gettempdir())) as work:
        yield work
