"""A backup as two files: the data, and the manifest that is written last and says what the data must be."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..errors import BackupFailed, BackupInvalid, printable
from ..files import (
    NotRegular,
    kind_of,
    open_regular,
    require_regular,
)
from .manifest import Manifest, Progress, silent
from .neighbours import Neighbours

STAMP = "%Y%m%dT%H%M%SZ"
CHUNK = 1 << 20  # bytes
MANIFEST_BYTES = 1 << 28  # more than any number of tables takes
OTHER_FOLDER = "give another one by --dir or WHATSAPP_DATABASE_BACKUP_DIR"
_NAME = re.compile(r"(?s)(?P<name>.+)-(?P<stamp>\d{8}T\d{6}Z)")


@dataclass(frozen=True)
class Backup:
    """A manifest that fits its place, and the files."""

    folder: Path
    manifest: Manifest

    @property
    def file(self) -> Path:
        return self.folder / self.manifest.file

    @property
    def manifest_path(self) -> Path:
        return self.folder / manifest_name(self.manifest.file)

    @property
    def missing(self) -> str | None:
        """Tell what a look at the file's size finds wrong; None when nothing."""
        try:
            status = self.file.lstat()
        except FileNotFoundError:
            return "its file is missing"
        except OSError as error:
            return f"its file cannot be looked at: {error.strerror}"
        if kind := kind_of(status):
            return f"its file is {kind}"
        size = status.st_size
        return None if size == self.manifest.size else f"its file has {size} bytes, not {self.manifest.size}"

    def to_json(self) -> dict[str, Any]:
        torn = {"torn": list(self.manifest.content.distributed)} if self.manifest.content.distributed else {}
        return {"path": str(self.file), "manifest": str(self.manifest_path), **self.manifest.to_json(), **torn}


@dataclass(frozen=True)
class NotABackup:
    """A file of a folder that looks like a backup's and is none."""

    path: Path
    reason: str

    def is_of(self, name: str) -> bool:
        """Tell whether backups of a name are called so."""
        match = _NAME.match(self.path.name)
        return match is not None and match["name"] == name


def stem(name: str, time: datetime) -> str:
    """Return the common part of the names of a backup's files."""
    return f"{name}-{time.strftime(STAMP)}"


def manifest_name(file: str) -> str:
    """Return the name of the manifest that goes with a backup's file."""
    match = _NAME.match(file)
    return (match[0] if match else file) + ".json"


def free_stem(folder: Path, name: str, time: datetime) -> str:
    """Return the first name from a time on that no file of the folder has; call it under the folder's lock."""
    taken = {path.name for path in folder.iterdir()}
    while any(other.startswith(stem(name, time) + ".") for other in taken):
        time += timedelta(seconds=1)
    return stem(name, time)


def read(path: Path, neighbours: Neighbours | None = None) -> Backup:
    """Return the backup that a path names: its file, or its manifest.

    :param neighbours: of the path's folder, where they are known.
    :raises BackupInvalid: when there is no manifest, it is not this file's, or one of both is another user's or not a
        regular file.
    """
    neighbours = neighbours or Neighbours(path.parent)
    try:
        manifest_path = _manifest_path(path)
        manifest = Manifest.from_text(_manifest_text(manifest_path, neighbours), manifest_path)
        named = path.name in (manifest.file, manifest_path.name)
        if not named or manifest_name(manifest.file) != manifest_path.name:
            raise BackupInvalid(
                f"{manifest_path} is the manifest of {manifest.file}", "give both files their names back"
            )
        backup = Backup(path.parent, manifest)
        with suppress(FileNotFoundError):  # which is a problem of the backup, and not of its manifest
            neighbours.require_trusted(backup.file, require_regular(backup.file, backup.file.lstat()))
    except NotRegular as error:
        raise BackupInvalid(
            f"{error.filename} is no file of a backup: {error.strerror}", "give the file itself this name"
        ) from None
    except OSError as error:
        raise BackupFailed(f"{path} cannot be read: {error.strerror}", "give this user the right to") from None
    return backup


def _manifest_path(path: Path) -> Path:
    if path.is_dir():
        raise BackupInvalid(f"{path} is a directory", "name a backup's file")
    manifest_path = path.with_name(manifest_name(path.name))
    if _is_there(manifest_path):
        return manifest_path
    if not _is_there(path):
        raise BackupInvalid(f"{path} does not exist", "see python -m whatspire_db.backup list")
    raise BackupInvalid(f"{path} has no manifest {manifest_path.name}", "without it a file is not a backup")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _manifest_text(path: Path, neighbours: Neighbours) -> str:
    """Return what a manifest holds; owner, kind and size are those of the very file that is read."""
    not_one = BackupInvalid(f"{path} is not the manifest of a backup", "take another backup")
    with os.fdopen(open_regular(path), "rb") as file:
        status = os.fstat(file.fileno())
        neighbours.require_trusted(path, status)
        if status.st_size > MANIFEST_BYTES:
            raise not_one
        data = file.read(status.st_size)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise not_one from None


def read_folder(folder: Path) -> tuple[list[Backup], list[NotABackup]]:
    """Return the backups of a folder, the latest first, and what looks like one and is none.

    :raises BackupFailed: when there is no such folder, or it cannot be read.
    """
    backups, others = [], []
    neighbours = Neighbours(folder)
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        raise BackupFailed(f"the folder {folder} does not exist", f"make a backup first, or {OTHER_FOLDER}") from None
    except OSError as error:
        raise BackupFailed(f"{folder} cannot be read: {error.strerror}", OTHER_FOLDER) from None
    for path in paths:
        match = _NAME.match(path.name)
        if path.name.startswith(".") or not match:
            continue
        if path.name == match[0] + ".json":
            try:
                backup = read(path, neighbours)
            except (BackupInvalid, BackupFailed) as error:  # one that cannot be read is in nobody's way
                if os.path.lexists(path):  # else it was deleted meanwhile
                    others.append(NotABackup(path, error.fact))
            else:
                backups.append(backup)
        elif not os.path.lexists(path.with_name(match[0] + ".json")) and os.path.lexists(path):
            others.append(NotABackup(path, printable(f"{path} has no manifest")))
    return sorted(backups, key=lambda b: (b.manifest.serial, b.manifest.time, b.manifest.file), reverse=True), others


def digest(path: Path, progress: Progress = silent, what: str = "checksum") -> str:
    """Return the SHA-256 of a regular file, in hexadecimal digits."""
    return _read_through(path, lambda chunk: None, progress, what)


def copy(path: Path, target: Path, progress: Progress = silent) -> str:
    """Copy a regular file into another that is there, and return the SHA-256 of what was copied."""
    with target.open("wb") as written:
        return _read_through(path, written.write, progress, "copying")


def _read_through(path: Path, take: Callable[[bytes], object], progress: Progress, what: str) -> str:
    found, done = hashlib.sha256(), 0
    with os.fdopen(open_regular(path), "rb") as file:
        total = os.fstat(file.fileno()).st_size
        while done < total and (chunk := file.read(min(CHUNK, total - done))):
            found.update(chunk)
            take(chunk)
            done += len(chunk)
            progress(what, done, total)
    return found.hexdigest()
