"""Finding backups, and proving that they are what their manifests tell."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from ..connection.patience import patient
from ..errors import BackupFailed, BackupInvalid, ConnectionFailed
from ..files import others_can_replace
from ..settings import Settings
from ..settings.durations import seconds_of
from .archive import Backup, NotABackup, copy, digest, read, read_folder
from .create import as_folder, as_path, require_name, tested, told
from .durable import LOCK_SECONDS, locked, new_file, workspace
from .engines.base import Engine, Given, check, engine_of, engine_of_file, is_a_database, settings_for
from .manifest import ENGINES, Progress, silent

LATEST = "latest"
DAMAGED = ".damaged"

logger = logging.getLogger("whatspire_db.backup")


def list_backups(folder: str | Path | None = None, settings: Given = None) -> tuple[list[Backup], list[NotABackup]]:
    """Return the backups of a folder, the latest first, and what looks like one and is none."""
    return read_folder(folder_of(folder, settings))


def folder_of(folder: str | Path | None, settings: Given) -> Path:
    """Return the folder of backups, that of the settings where none is given."""
    return as_folder(settings_for(settings, "list_backups").backup_dir if folder is None else folder)


def find(
    reference: str | Path,
    folder: str | Path | None = None,
    settings: Given = None,
    *,
    name: str | None = None,
) -> Backup:
    """Return the backup that a path names, or the latest one of the settings' database.

    The latest is never what a restore put aside: who restores twice gets the same twice.

    :param name: of the backups to choose from; default: the database's.
    :raises BackupInvalid: when there is none, or it has no manifest that fits.
    """
    settings = settings_for(settings, "find")
    place = folder_of(folder, settings)
    if str(reference) != LATEST:
        return read(_path_of(reference, place))
    engine = engine_of(settings)
    wanted = engine.name if name is None else require_name(name)
    backups, others = read_folder(place)
    latest = _latest([b for b in backups if not b.manifest.is_safety], engine, wanted, place)
    for other in others:
        if other.is_of(wanted) and other.path.name > latest.file.name and other.path.suffix != DAMAGED:
            logger.warning("the latest backup may be another one: %s", other.reason)
    return latest


def _latest(backups: Sequence[Backup], engine: Engine, name: str, place: Path) -> Backup:
    """Return the latest backup of an engine's own database; of another one, where all of the name are of that one."""
    named = [b for b in backups if (b.manifest.name, b.manifest.content.engine) == (name, engine.kind)]
    if not named:
        raise BackupInvalid(f"{place} holds no backup of {name}", "name a file, or another folder by --dir")
    source = _source(engine)
    own = [b for b in named if b.manifest.source == source]
    sources = {b.manifest.source for b in named}
    if not own and len(sources) > 1:
        raise BackupInvalid(
            f"{place} holds backups of {len(sources)} databases of the name {name}, and none of this one",
            "name the file to take",
        )
    return (own or named)[0]


def backup_of(
    backup: Backup | str | Path, settings: Given, folder: str | Path | None = None, name: str | None = None
) -> Backup:
    """Return a backup as it is, or find the one that is meant."""
    return backup if isinstance(backup, Backup) else find(backup, folder, settings, name=name)


def _path_of(reference: str | Path, place: Path) -> Path:
    """Return the path of a backup's file: as it is given, or by its name alone in the folder of backups."""
    path = Path(reference)
    if str(reference) and (os.path.lexists(path) or os.path.lexists(place / path)):
        return path if os.path.lexists(path) else place / path
    path = as_path(reference, "file", "name a backup's file")
    return path if path.parent != Path() else place / path


def _source(engine: Engine) -> str | None:
    """Return whose backups are an engine's own; None where there is no such database any more."""
    try:
        return engine.source
    except ConnectionFailed:
        return None


def verify(
    backup: Backup | str | Path,
    settings: Given = None,
    *,
    test_restore: bool = False,
    trust_source: bool = False,
    lock_timeout: float | timedelta | str = LOCK_SECONDS,
    progress: Progress = silent,
) -> Backup:
    """Read a backup's file to its end and compare it with the manifest; return the backup.

    :param backup: as `find` returns it, or what it takes: a path, or "latest".
    :param test_restore: restore it into a scratch place too, on PostgreSQL on the server of the settings, and compare
        the fingerprints of all tables.
    :param trust_source: let a superuser's test restore run the code of owners that are no superusers.
    :param lock_timeout: how long to wait for the folder's lock, and for each connection to a server that is full:
        seconds, a timedelta or a text like 5s.
    :raises BackupInvalid: when it is not what its manifest tells.
    :raises VersionMismatch: when it cannot be restored on that server.
    """
    wait = seconds_of("lock_timeout", lock_timeout)
    backup = backup_of(backup, settings)
    with patient(wait), told(backup.file), still_there(backup, wait), work_for(backup, wait) as work:
        file = verified_file(backup, work, progress)
        check(file, backup.manifest, work, progress)
        if test_restore:
            engine = _engine_for_test(backup, settings)
            tested(engine, file, backup.manifest, work, progress, trust_source)
    return backup


def verify_file(backup: Backup, progress: Progress = silent) -> None:
    """Compare the size and the checksum of a backup with its manifest.

    :raises BackupInvalid: when they differ.
    """
    _require_intact(backup, lambda: digest(backup.file, progress))


def verified_file(backup: Backup, work: Path, progress: Progress = silent) -> Path:
    """Verify a backup's file and return what to read it from: a copy, where other users could replace it meanwhile.

    :raises BackupInvalid: when its size or checksum differs from its manifest's.
    """
    if not others_can_replace(backup.folder):
        verify_file(backup, progress)
        return backup.file
    private = new_file(work / backup.file.name)
    _require_intact(backup, lambda: copy(backup.file, private, progress))
    return private


def _require_intact(backup: Backup, checksum: Callable[[], str]) -> None:
    problem = backup.missing
    if problem is None and checksum() != backup.manifest.sha256:
        problem = "its file was changed, or is damaged: the checksum differs"
    if problem:
        raise BackupInvalid(f"{backup.file}: {problem}", "take another backup: python -m whatspire_db.backup list")


@contextmanager
def still_there(backup: Backup, wait: float = LOCK_SECONDS) -> Iterator[None]:
    """Tell a backup that somebody deletes meanwhile from one that is damaged.

    :param wait: seconds to wait for the folder's lock.
    """
    try:
        yield
    except (BackupInvalid, FileNotFoundError):
        with locked(backup.folder, wait):  # who prunes deletes the file first
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


def _engine_for_test(backup: Backup, settings: Given) -> Engine:
    if is_a_database(backup.manifest):
        return engine_of_file(backup.file)
    settings = settings_for(settings, "verify")
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
def work_for(backup: Backup, wait: float = LOCK_SECONDS) -> Iterator[Path]:
    """Give a workspace beside a backup; among the temporary files if that folder cannot be written or is not safe."""
    suits = os.access(backup.folder, os.W_OK | os.X_OK) and not others_can_replace(backup.folder)
    with workspace(backup.folder if suits else Path(tempfile.gettempdir()), wait) as work:
        yield work
