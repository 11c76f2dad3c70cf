"""Making a backup: written, looked at, tried out, and only then given its names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

from ..errors import BackupFailed, BackupInvalid, ConfigError
from ..settings import Settings
from . import compression
from .archive import (
    LAST_SERIAL,
    OTHER_FOLDER,
    Backup,
    Content,
    Manifest,
    Progress,
    digest,
    free_stem,
    manifest_name,
    read_folder,
    silent,
)
from .durable import LOCK_SECONDS, locked, make_folder, new_file, publish, sync, workspace
from .engines import Engine, engine_of

SAFETY = "before a restore"
METHODS = tuple(compression.SUFFIXES)
NAME_BYTES = 200  # with a stamp and suffixes a file's name may have 255


def create(
    settings: Settings | None = None,
    folder: str | Path | None = None,
    *,
    name: str | None = None,
    compress: str | None = None,
    test_restore: bool = False,
    purpose: str = "",
    lock_timeout: float = LOCK_SECONDS,
    progress: Progress = silent,
    now: datetime | None = None,
) -> Backup:
    """Make a backup, as of one moment and while others write, and return it.

    Its file and then its manifest get their names when they are whole, checked and on the disk.

    :param settings: name the database; default: the environment and .env.
    :param folder: default: that of WHATSAPP_DATABASE_BACKUP_DIR.
    :param name: the first part of the files' names; default: that of the settings, or the database's.
    :param compress: none, gzip or zstd; default: none for SQLite, gzip for PostgreSQL.
    :param test_restore: restore it into a scratch place and compare all rows, before it gets its name.
    :param lock_timeout: seconds to wait for others' locks.
    :raises BackupFailed: when it cannot be made; nothing is left behind.
    """
    settings = settings or Settings.from_environment()
    return create_of(
        engine_of(settings),
        as_folder(folder or settings.backup_dir),
        name=name,
        method=compress,
        test_restore=test_restore,
        purpose=purpose,
        wait=lock_timeout,
        progress=progress,
        now=now,
    )


def as_folder(name: str | Path) -> Path:
    """Return the path of a folder of backups.

    :raises ConfigError: for what cannot be one.
    """
    if "\0" in str(name):
        raise ConfigError(f"the folder {str(name)!r} has a zero byte in its name", OTHER_FOLDER)
    return Path(name)


def create_of(
    engine: Engine,
    folder: Path,
    *,
    name: str | None = None,
    method: str | None = None,
    test_restore: bool = False,
    purpose: str = "",
    wait: float = LOCK_SECONDS,
    progress: Progress = silent,
    now: datetime | None = None,
) -> Backup:
    """Make a backup of the database of an engine; see `create`."""
    method = method or engine.default_method
    if method not in METHODS:
        raise ConfigError(f"--compress is {method!r}", f"it takes {', '.join(METHODS)}")
    require_name(engine.name if name is None else name)
    engine.require(method)
    with told():
        make_folder(folder)
        with workspace(folder, wait) as work:
            draft = new_file(work / "data")
            content = engine.dump(draft, method, wait, progress)
            manifest = manifest_of(engine, name or engine.name, draft, content, method, purpose, progress)
            if test_restore:
                manifest = tested(engine, draft, manifest, work, progress)
            return published(manifest, draft, folder, engine.suffix(method), now, wait)


def require_name(name: str) -> str:
    """Return a name if files' names can begin so.

    :raises ConfigError: when they cannot.
    """
    hint = "give another one by --name or WHATSAPP_DATABASE_BACKUP_NAME"
    if not name.isprintable() or "/" in name or name[:1] in ("", ".", "-"):
        raise ConfigError(f"{name!r} is not how a file's name can begin", hint)
    if len(os.fsencode(name)) > NAME_BYTES:
        raise ConfigError(f"the name {name} is too long for files", f"{hint}, of {NAME_BYTES} bytes at most")
    return name


def manifest_of(
    engine: Engine, name: str, file: Path, content: Content, method: str, purpose: str, progress: Progress
) -> Manifest:
    """Return the manifest of a file that has neither its name nor its place yet."""
    return Manifest(
        name=name,
        file="",
        created_at="",
        serial=0,
        source=engine.source,
        compression=method,
        size=file.stat().st_size,
        sha256=digest(file, progress),
        content=content,
        package_version=_package_version(),
        purpose=purpose,
    )


def _package_version() -> str:
    try:
        return version_of("whatspire-db")
    except PackageNotFoundError:  # run from its folder
        return "unknown"


def tested(engine: Engine, file: Path, manifest: Manifest, work: Path, progress: Progress) -> Manifest:
    """Restore a backup into a scratch place, compare it, and return the manifest that tells of it."""
    if lines := engine.test_restore(file, manifest, work, progress):
        raise BackupInvalid(f"restored, the backup differs: {lines[0]}", "look at the disk, and make another backup")
    return replace(manifest, tested_at=_iso(datetime.now(timezone.utc)))


def published(
    manifest: Manifest,
    draft: Path,
    folder: Path,
    suffix: str,
    now: datetime | None,
    wait: float = LOCK_SECONDS,
) -> Backup:
    """Give a backup its names and its place behind all others of the folder."""
    time = (now or datetime.now(timezone.utc)).astimezone(timezone.utc)
    sync(draft)  # which takes long, and should not while others wait for the folder
    with locked(folder, wait):
        backups, _ = read_folder(folder)
        stem = free_stem(folder, manifest.name, time)
        serial = min(1 + max((b.manifest.serial for b in backups), default=0), LAST_SERIAL)
        manifest = replace(manifest, file=stem + suffix, created_at=_iso(time), serial=serial)
        file = draft.rename(draft.with_name(manifest.file))
        described = new_file(draft.with_name(manifest_name(manifest.file)))
        described.write_text(manifest.to_text(), encoding="utf-8")
        publish([file, described], folder)
    return Backup(folder, manifest)


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


@contextmanager
def told() -> Iterator[None]:
    """Put what the operating system refuses in words."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        raise BackupFailed(
            f"{what}{error.strerror or error}", "make room, or give this user the right to it; nothing is half done"
        ) from None
