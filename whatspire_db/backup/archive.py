"""A backup as two files: the data, and the manifest that is written last and says what the data must be."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ..errors import BackupFailed, BackupInvalid
from .shapes import Shape, fits, levels

FORMAT = 1
STAMP = "%Y%m%dT%H%M%SZ"
CHUNK = 1 << 20  # bytes
MANIFEST_BYTES = 1 << 28  # more than any number of tables takes
ENGINES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
LAST_SERIAL = 10**15
OTHER_FOLDER = "give another one by --dir or WHATSAPP_DATABASE_BACKUP_DIR"
LEVELS = 8  # in which the details of an engine lie, at most
NAME_BYTES = 255  # of a file's name
_NAME = re.compile(r"(?s)(?P<name>.+)-(?P<stamp>\d{8}T\d{6}Z)")

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much; 0 of 0 is not known


_COUNT = range(2**63)
_NUMBER = range(-(2**63), 2**63)
_SEQUENCES: Shape = {...: (_NUMBER, _NUMBER)}
_BODY: Shape = {
    "name": str,
    "file": str,
    "created_at": str,
    "serial": range(LAST_SERIAL + 1),
    "source": str,
    "compression": {"none", "gzip", "zstd"},
    "size": _COUNT,
    "sha256": str,
    "content": {
        "engine": set(ENGINES),
        "engine_version": str,
        "schema_version": int,
        "tables": {...: {"rows": _COUNT, "fingerprint": str}},
        "extensions": {...: str},
        "details": {},
    },
    "package_version": str,
    "purpose": str,
    "tested_at": {str, None},
}
_DATABASE: Shape = {
    "owner": str,
    "encoding": str,
    "collate": str,
    "ctype": str,
    "provider": {"c", "i", "b"},
    "locale": {str, None},
    "rules": {str, None},
    "connection_limit": _NUMBER,
    "is_template": bool,
    "tablespace": str,
    "comment": {str, None},
    "has_grants": bool,
    "settings": [(str, [str])],
    "grants": [(str, {"CREATE", "CONNECT", "TEMPORARY"}, bool, str)],
}
# What is read of the details; the rest is compared at most.
_DETAILS: dict[str, Shape] = {
    "sqlite": {"page_size": _NUMBER, "encoding": str},
    "postgres": {
        "major": _NUMBER,
        "dumped_by": _NUMBER,
        "sequences": _SEQUENCES,
        "roles": {...: [str]},
        "schemas": {...: str},
        "tablespaces": [str],
        "database": _DATABASE,
        "hnsw": bool,
    },
}


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody how far a backup is."""


@dataclass(frozen=True)
class Table:
    """What a table held: the number of its rows, and a fingerprint over all of them."""

    rows: int
    fingerprint: str


@dataclass(frozen=True)
class Content:
    """What a database held at the moment of its backup, as it must be again after a restore."""

    engine: str  # sqlite or postgres
    engine_version: str
    schema_version: int
    tables: Mapping[str, Table]
    extensions: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)  # what the engine needs to bring it back

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())


@dataclass(frozen=True)
class Manifest:
    """What a backup is of and what its file must be; times are UTC, sizes bytes.

    `serial` counts the backups of a folder, so that their order does not depend on a clock. `source` tells the
    database from another of the same name. `purpose` is empty, or says what a backup was made before.
    """

    name: str
    file: str  # beside the manifest
    created_at: str  # ISO 8601
    serial: int
    source: str
    compression: str
    size: int
    sha256: str
    content: Content
    package_version: str
    purpose: str = ""
    tested_at: str | None = None  # when it was restored into a scratch place and compared

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.created_at)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    def to_text(self) -> str:
        """Return the manifest as JSON that carries a checksum of itself."""
        body = self.to_json()
        # Names of files and tables need not be Unicode, so they are written in ASCII.
        return json.dumps(body | {"checksum": _checksum(body)}, indent=2) + "\n"

    @classmethod
    def from_text(cls, text: str, path: Path) -> Manifest:
        """Read what `to_text` wrote.

        :raises BackupInvalid: when it is no manifest, or was changed.
        """
        try:
            body = json.loads(text, parse_constant=_finite, parse_float=_finite)
            checksum = body.pop("checksum")
            if body["format"] != FORMAT:
                raise BackupInvalid(f"{path} is of another version of this package", "restore it with that version")
            if _checksum(body) != checksum:
                raise BackupInvalid(f"{path} was changed after the backup was made", "take another backup")
            del body["format"]
            _require_sense(body)
            content = body.pop("content")
            tables = {name: Table(**table) for name, table in content.pop("tables").items()}
            return cls(**body, content=Content(**content, tables=tables))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BackupInvalid(f"{path} is not the manifest of a backup", "take another backup") from None


def _finite(text: str) -> float:
    """Read a number that JSON can hold too when it is printed."""
    if not math.isfinite(number := float(text)):
        raise ValueError
    return number


def _require_sense(body: Mapping[str, Any]) -> None:
    """Find out here, and not amid the work, what somebody made up who knows how to compute a checksum.

    :raises ValueError: for what `create` does not write; OverflowError: for a time that is none in UTC.
    """
    if not fits(body, _BODY):
        raise ValueError
    details = body["content"]["details"]
    known = fits(details, _DETAILS[body["content"]["engine"]]) and fits(details.get("sequences", {}), _SEQUENCES)
    if not known or levels(details) > LEVELS:
        raise ValueError
    if not set(body["file"]).isdisjoint("/\0") or len(os.fsencode(body["file"])) > NAME_BYTES:
        raise ValueError
    time = datetime.fromisoformat(body["created_at"])
    if time.tzinfo is None:
        raise ValueError
    time.astimezone(timezone.utc)


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
            size = self.file.stat().st_size
        except FileNotFoundError:
            return "its file is missing"
        except OSError as error:
            return f"its file cannot be looked at: {error.strerror}"
        return None if size == self.manifest.size else f"its file has {size} bytes, not {self.manifest.size}"

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.file), "manifest": str(self.manifest_path), **self.manifest.to_json()}

    @property
    def is_foreign(self) -> bool:
        """Tell whether somebody put a link, a directory or the like in the place of one of the files."""
        files = (self.file, self.manifest_path)
        return any(path.is_symlink() or (path.exists() and not path.is_file()) for path in files)


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


def read(path: Path) -> Backup:
    """Return the backup that a path names: its file, or its manifest.

    :raises BackupInvalid: when there is no manifest, or it is not this file's.
    """
    try:
        if path.is_dir():
            raise BackupInvalid(f"{path} is a directory", "name a backup's file")
        manifest_path = path.with_name(manifest_name(path.name))
        if not path.exists() and not manifest_path.exists():
            raise BackupInvalid(f"{path} does not exist", "see python -m whatspire_db.backup list")
        if not manifest_path.exists():
            raise BackupInvalid(f"{path} has no manifest {manifest_path.name}", "without it a file is not a backup")
        if not manifest_path.is_file() or manifest_path.stat().st_size > MANIFEST_BYTES:
            raise BackupInvalid(f"{manifest_path} is not the manifest of a backup", "take another backup")
        text = manifest_path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BackupInvalid(f"{manifest_path} is not the manifest of a backup", "take another backup") from None
    except OSError as error:
        raise BackupFailed(f"{path} cannot be read: {error.strerror}", "give this user the right to") from None
    manifest = Manifest.from_text(text, manifest_path)
    named = path.name in (manifest.file, manifest_path.name)
    if not named or manifest_name(manifest.file) != manifest_path.name:
        raise BackupInvalid(f"{manifest_path} is the manifest of {manifest.file}", "give both files their names back")
    return Backup(path.parent, manifest)


def read_folder(folder: Path) -> tuple[list[Backup], list[NotABackup]]:
    """Return the backups of a folder, the latest first, and what looks like one and is none."""
    backups, others = [], []
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise BackupFailed(f"{folder} cannot be read: {error.strerror}", OTHER_FOLDER) from None
    for path in paths:
        match = _NAME.match(path.name)
        if path.name.startswith(".") or not match:
            continue
        if path.name == match[0] + ".json":
            try:
                backup = read(path)
            except (BackupInvalid, BackupFailed) as error:  # one that cannot be read is in nobody's way
                if os.path.lexists(path):  # else it was deleted meanwhile
                    others.append(NotABackup(path, error.fact))
            else:
                backups.append(backup)
        elif not path.with_name(match[0] + ".json").exists() and os.path.lexists(path):
            others.append(NotABackup(path, f"{path} has no manifest"))
    return sorted(backups, key=lambda b: (b.manifest.serial, b.manifest.time, b.manifest.file), reverse=True), others


def differences(expected: Content, found: Content) -> list[str]:
    """Return in what a restored database differs from the one of the backup; sequences may be further."""
    lines = []
    for name in sorted({*expected.tables, *found.tables}):
        before, after = expected.tables.get(name), found.tables.get(name)
        if before is None or after is None:
            lines.append(f"table {name} is {'missing' if after is None else 'new'}")
        elif before.rows != after.rows:
            lines.append(f"table {name} has {after.rows} rows, not {before.rows}")
        elif before != after:
            lines.append(f"table {name} has other rows")
    same = ("schema", "user_version", "application_id", "encoding")
    lines += [f"{key} differs" for key in same if expected.details.get(key) != found.details.get(key)]
    sequences = found.details.get("sequences", {})
    for name, (value, step) in expected.details.get("sequences", {}).items():
        after = sequences.get(name, (None, step))[0]
        if after is None or (after - value) * step < 0:
            lines.append(f"sequence {name} is at {after}, not {value}")
    return lines


def digest(path: Path, progress: Progress = silent, what: str = "checksum") -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    found, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while chunk := file.read(CHUNK):
            found.update(chunk)
            done += len(chunk)
            progress(what, done, total)
    return found.hexdigest()
