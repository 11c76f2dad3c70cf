"""Making a backup: written, looked at, tried out, and only then given its names."""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

from ..connection.patience import patient
from ..dsn.redaction import looks_like_dsn, place_of, shown
from ..errors import BackupFailed, BackupInvalid, ConfigError
from ..files import sync
from ..settings.durations import seconds_of
from . import compression
from .archive import OTHER_FOLDER, Backup, digest, free_stem, manifest_name, read_folder
from .durable import LOCK_SECONDS, brought, locked, made_folder, new_file, publish, shielded, workspace, write_new
from .engines.base import Engine, Given, engine_of, require_place, settings_for
from .manifest import LAST_SERIAL, Content, Manifest, Progress, Purpose, silent

logger = logging.getLogger("whatspire_db.backup")

METHODS = tuple(compression.SUFFIXES)
NAME_BYTES = 200  # with a stamp and suffixes a file's name may have 255
# s3://bucket, file:///x, user@host:folder, remote:folder, C:\\folder: a colon before the first slash.
_ELSEWHERE = re.compile(r"[^/:]+:")
_NOT_EXPANDED = re.compile(r"\$\{?\w|%\w+%|([\"']).*\1\Z")
# What nobody means as the name of a new file or folder, unless written as a path: / or . comes first then.
_NOT_MEANT = (
    (re.compile(r"[^/.].*\\|\\"), "is a Windows path"),
    (re.compile(r"-"), "looks like an option, or like the standard output"),
)
_TO_DO = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota of this user",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.ENOMEM: "give the process more memory",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EROFS: "take a place that can be written",
    errno.EIO: "look at the disk",
    errno.EEXIST: "take a name that nothing else has",
    errno.ENOTDIR: "take a folder for a folder",
}
_OTHERWISE = "make room, or give this user the right to it"


@dataclass(frozen=True)
class Wish:
    """What is asked of a backup; see `create`."""

    name: str | None = None
    method: str | None = None
    purpose: Purpose = ""
    test_restore: bool = False
    trust_source: bool = False
    accept_torn: bool = False
    now: datetime | None = None


def create(
    settings: Given = None,
    folder: str | Path | None = None,
    *,
    name: str | None = None,
    compress: str | None = None,
    test_restore: bool = False,
    trust_source: bool = False,
    accept_torn: bool = False,
    purpose: Purpose = "",
    lock_timeout: float | timedelta | str = LOCK_SECONDS,
    progress: Progress = silent,
    now: datetime | None = None,
) -> Backup:
    """Make a backup, as of one moment and while others write, and return it.

    Its file and then its manifest get their names when they are whole, checked and on the disk.

    :param settings: name the database; a DSN or what `connect` returned does too; default: the environment and .env.
    :param folder: default: that of WHATSAPP_DATABASE_BACKUP_DIR.
    :param name: the first part of the files' names; default: that of the settings, or the database's.
    :param compress: none, gzip or zstd; default: none for SQLite, gzip for PostgreSQL.
    :param test_restore: restore it into a scratch place and compare all rows, before it gets its name.
    :param trust_source: let a superuser's test restore run the code of owners that are no superusers.
    :param accept_torn: also back up distributed tables of a cluster, whose rows no dump reads as of one moment.
    :param lock_timeout: how long to wait for others' locks, and for each connection to a server that is full: seconds,
        a timedelta or a text like 5s.
    :raises BackupFailed: when it cannot be made; nothing is left behind.
    :raises BackupTorn: when it would not be of one moment, without `accept_torn`.
    """
    settings = settings_for(settings, "create")
    require_place(settings)
    wait = seconds_of("lock_timeout", lock_timeout)
    place = as_folder(settings.backup_dir if folder is None else folder)
    wish = Wish(name, compress, purpose, test_restore, trust_source, accept_torn, now)
    with patient(wait):
        return create_of(engine_of(settings), place, wish, wait, progress)


def as_folder(name: str | Path) -> Path:
    """Return the path of a folder of backups.

    :raises ConfigError: for what cannot be one.
    """
    return as_path(name, "folder", OTHER_FOLDER)


def as_path(name: str | Path, kind: str, hint: str) -> Path:
    """Return the path of a file or folder of this machine; `~` is the user's home.

    :raises ConfigError: for a URL or a place on another machine, whose secrets the message does not repeat, and for a
        name that holds quotes or a variable.
    """
    text = str(name)
    if "\0" in text:
        raise ConfigError(f"the {kind} {text!r} has a zero byte in its name", hint)
    if looks_like_dsn(text) and "://" not in text:
        raise ConfigError(f"a DSN is given for a {kind}", hint)
    if _ELSEWHERE.match(text) and not os.path.lexists(text):
        raise ConfigError(
            f"{place_of(text)} is not a {kind} of this machine",
            f"name a mounted {kind}, or copy finished backups there yourself; if it is a name, write ./ before it",
        )
    if _NOT_EXPANDED.match(text):
        raise ConfigError(f"the {kind} {text} has quotes or a variable in its name", "write its name as it is")
    if not os.path.lexists(text):
        _require_meant(text, kind, hint)
    try:
        return Path(name).expanduser() if text.startswith("~") and isinstance(name, str) else Path(name)
    except RuntimeError:
        raise ConfigError(f"the {kind} {text} names the home of a user that has no home folder", hint) from None


def _require_meant(text: str, kind: str, hint: str) -> None:
    if not text.strip():
        raise ConfigError(f"the name of the {kind} is empty", hint)
    if text != text.strip():
        raise ConfigError(f"the {kind} {text!r} begins or ends with white space", "write its name without")
    for pattern, what in _NOT_MEANT:
        if pattern.match(text):
            raise ConfigError(f"the {kind} {text} {what}", f"if it is its name, write ./ before it; else {hint}")


def create_of(
    engine: Engine, folder: Path, wish: Wish, wait: float = LOCK_SECONDS, progress: Progress = silent
) -> Backup:
    """Make a backup of the database of an engine; see `create`."""
    method = engine.default_method if wish.method is None else wish.method
    if method not in METHODS:
        raise ConfigError(f"--compress is {shown(method)}", f"it takes {', '.join(METHODS)}")
    require_name(engine.name if wish.name is None else wish.name)
    engine.require(method)
    if wish.test_restore:
        engine.require_trusted(wish.trust_source)
    with told(engine.title), made_folder(folder), workspace(folder, wait) as beside, shielded(folder, beside) as work:
        draft = new_file(work / "data")
        content = engine.dump(draft, method, wait, progress, accept_torn=wish.accept_torn)
        manifest = manifest_of(engine, wish.name or engine.name, draft, content, method, wish.purpose, progress)
        if wish.test_restore:
            manifest = tested(engine, draft, manifest, work, progress, wish.trust_source)
        for line in engine.lacks(is_tried=wish.test_restore):
            logger.warning("%s", line)
        return published(manifest, brought(draft, beside), folder, engine.suffix(method), wish.now, wait)


def require_name(name: str) -> str:
    """Return a name if files' names can begin so.

    :raises ConfigError: when they cannot.
    """
    hint = "give another one by --name or WHATSAPP_DATABASE_BACKUP_NAME"
    if not name.isprintable() or "/" in name or name[:1] in ("", ".", "-") or looks_like_dsn(name):
        raise ConfigError(f"{shown(name)} is not how a file's name can begin", hint)
    if len(os.fsencode(name)) > NAME_BYTES:
        raise ConfigError(f"the name {name} is too long for files", f"{hint}, of {NAME_BYTES} bytes at most")
    return name


def manifest_of(
    engine: Engine, name: str, file: Path, content: Content, method: str, purpose: Purpose, progress: Progress
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


def tested(
    engine: Engine, file: Path, manifest: Manifest, work: Path, progress: Progress, trust_source: bool
) -> Manifest:
    """Restore a backup into a scratch place, compare it, and return the manifest that tells of it."""
    if lines := engine.test_restore(file, manifest, work, progress, trust_source):
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
        serial = min(1 + max((b.manifest.serial for b in backups), default=0), LAST_SERIAL)
        manifest = replace(manifest, created_at=_iso(time), serial=serial)
        while True:
            named = replace(manifest, file=free_stem(folder, manifest.name, time) + suffix)
            if _is_published(named, draft, folder):
                return Backup(folder, named)
            time += timedelta(seconds=1)


def _is_published(manifest: Manifest, draft: Path, folder: Path) -> bool:
    """Publish a backup; return False if another process took its name, for want of locks."""
    file = draft.rename(draft.with_name(manifest.file))
    described = write_new(draft.with_name(manifest_name(manifest.file)), manifest.to_text().encode())
    try:
        publish([file, described], folder)
    except FileExistsError:
        described.unlink()
        file.rename(draft)
        return False
    return True


def _iso(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


@contextmanager
def told(subject: object) -> Iterator[None]:
    """Put what the operating system refuses in words.

    :param subject: the database, backup or folder that the work is about.
    """
    try:
        yield
    except OSError as error:
        what = error.filename or subject
        hint = _TO_DO.get(error.errno or 0, _OTHERWISE)
        raise BackupFailed(f"{what}: {error.strerror or error}", f"{hint}; nothing is half done") from None
    except MemoryError:
        raise BackupFailed(
            f"{subject}: memory ran out", f"{_TO_DO[errno.ENOMEM]}: several times its largest row; nothing is half done"
        ) from None
