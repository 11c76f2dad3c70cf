"""What the commands do: make a backup, list, verify, restore and prune them."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from ..dsn import SqliteTarget
from ..errors import BackupFailed, BackupInvalid, ConfigError, ConnectionFailed, TargetRefused
from ..settings import Settings
from . import compression, sqlite
from .archive import (
    ENGINES,
    STAMP,
    Backup,
    Content,
    Manifest,
    NotABackup,
    Progress,
    digest,
    free_stem,
    manifest_name,
    read,
    read_folder,
    silent,
)
from .durable import locked, make_folder, new_file, publish, workspace
from .engines import Engine, PostgresEngine, SqliteEngine, check, engine_at, engine_of
from .retention import Policy, Verdict, decide

LATEST = "latest"
SAFETY = "before a restore"
LOCK_SECONDS = 10.0
METHODS = tuple(compression.SUFFIXES)


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
    :param name: the first part of the files' names; default: the database's.
    :param compress: none, gzip or zstd; default: none for SQLite, gzip for PostgreSQL.
    :param test_restore: restore it into a scratch place and compare all rows, before it gets its name.
    :param lock_timeout: seconds to wait for others' locks.
    :raises BackupFailed: when it cannot be made; nothing is left behind.
    """
    settings = settings or Settings.from_environment()
    return _create(
        engine_of(settings),
        Path(folder or settings.backup_dir),
        name=name,
        method=compress,
        test_restore=test_restore,
        purpose=purpose,
        wait=lock_timeout,
        progress=progress,
        now=now,
    )


def _create(
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
    method = method or engine.default_method
    if method not in METHODS:
        raise ConfigError(f"--compress is {method!r}", f"it takes {', '.join(METHODS)}")
    if name is not None and (not name or "/" in name or name.startswith(".")):
        raise ConfigError(f"--name is {name!r}", "it takes the beginning of a file's name")
    engine.require(method)
    with _told():
        make_folder(folder)
        with workspace(folder) as work:
            draft = new_file(work / "data")
            content = engine.dump(draft, method, wait, progress)
            manifest = _manifest(engine, name or engine.name, draft, content, method, purpose, progress)
            if test_restore:
                manifest = _tested(engine, draft, manifest, work, progress)
            return _published(manifest, draft, folder, engine.suffix(method), now)


def _manifest(
    engine: Engine, name: str, file: Path, content: Content, method: str, purpose: str, progress: Progress
) -> Manifest:
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
        package_version=version_of("whatspire-db"),
        purpose=purpose,
    )


def _tested(engine: Engine, file: Path, manifest: Manifest, work: Path, progress: Progress) -> Manifest:
    if lines := engine.test_restore(file, manifest, work, progress):
        raise BackupInvalid(f"restored, the backup differs: {lines[0]}", "look at the disk, and make another backup")
    return replace(manifest, tested_at=_iso(datetime.now(timezone.utc)))


def _published(manifest: Manifest, draft: Path, folder: Path, suffix: str, now: datetime | None) -> Backup:
    """Give a backup its names and its place behind all others of the folder."""
    time = now or datetime.now(timezone.utc)
    with locked(folder):
        backups, _ = read_folder(folder)
        stem = free_stem(folder, manifest.name, time)
        serial = 1 + max((b.manifest.serial for b in backups), default=0)
        manifest = replace(manifest, file=stem + suffix, created_at=_iso(time), serial=serial)
        file = draft.rename(draft.with_name(manifest.file))
        described = new_file(draft.with_name(manifest_name(manifest.file)))
        described.write_text(manifest.to_text(), encoding="utf-8")
        publish([file, described], folder)
    return Backup(folder, manifest)


def _iso(time: datetime) -> str:
    return time.astimezone(timezone.utc).isoformat(timespec="seconds")


# Finding and verifying


def list_backups(
    folder: str | Path | None = None, settings: Settings | None = None
) -> tuple[list[Backup], list[NotABackup]]:
    """Return the backups of a folder, the latest first, and what looks like one and is none."""
    return read_folder(_folder(folder, settings))


def _folder(folder: str | Path | None, settings: Settings | None) -> Path:
    return Path(folder or (settings or Settings.from_environment()).backup_dir)


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
    place = _folder(folder, settings)
    if str(reference) != LATEST:
        path = Path(reference)
        return read(path if path.exists() or path.parent != Path() else place / path)
    engine = engine_of(settings)
    wanted = name or engine.name
    named = [
        backup
        for backup in read_folder(place)[0]
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
    return (own or named)[0]


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
    with _told(), _work_for(backup) as work:
        _verify_file(backup, progress)
        check(backup.file, backup.manifest, work, progress)
        if test_restore:
            engine = _engine_for_test(backup, settings)
            _tested(engine, backup.file, backup.manifest, work, progress)
    return backup


def _verify_file(backup: Backup, progress: Progress = silent) -> None:
    problem = backup.missing
    if problem is None and digest(backup.file, progress) != backup.manifest.sha256:
        problem = "its file was changed, or is damaged: the checksum differs"
    if problem:
        raise BackupInvalid(f"{backup.file}: {problem}", "take another backup: python -m whatspire_db.backup list")


def _engine_for_test(backup: Backup, settings: Settings | None) -> Engine:
    if backup.manifest.content.engine == "sqlite":
        return SqliteEngine(SqliteTarget(str(backup.file), str(backup.file)))
    settings = settings or Settings.from_environment()
    _require_engine(backup, settings)
    return engine_of(settings)


def _require_engine(backup: Backup, settings: Settings) -> None:
    kind = backup.manifest.content.engine
    if kind != settings.driver:
        raise BackupInvalid(
            f"{backup.file} is a backup of {ENGINES[kind]}, and WHATSAPP_DATABASE_DRIVER is {settings.driver}",
            f"set the driver to {kind}, or take another backup",
        )


@contextmanager
def _work_for(backup: Backup) -> Iterator[Path]:
    """Give a workspace beside a backup, or where that folder cannot be written, among the temporary files."""
    writable = os.access(backup.folder, os.W_OK | os.X_OK)
    with workspace(backup.folder if writable else Path(tempfile.gettempdir())) as work:
        yield work


# Restoring


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
    force: bool = False,
    safety_backup: bool = True,
    lock_timeout: float = LOCK_SECONDS,
    progress: Progress = silent,
) -> Restored:
    """Verify a backup and bring a database to what it holds. Whatever happens, the database is the old or the new one.

    :param folder: for the backup of what is overwritten; default: that of WHATSAPP_DATABASE_BACKUP_DIR.
    :param to: another place: a file, or another database of the server.
    :param force: overwrite data.
    :param safety_backup: make a backup of the data before.
    :raises BackupInvalid: when the backup is damaged, or the other engine's.
    :raises TargetRefused: when there is data without `force`, or others hold it.
    :raises VersionMismatch: when the server is older than the backup.
    """
    started = time.perf_counter()
    settings = settings or Settings.from_environment()
    _require_engine(backup, settings)
    engine = engine_of(settings) if to is None else engine_at(settings, to)
    place = _folder(folder, settings)
    with _told(), _work_for(backup) as work:
        _verify_file(backup, progress)
        if isinstance(engine, SqliteEngine):
            safety, kept = _restore_sqlite(
                engine, backup, place if safety_backup else None, work, force, lock_timeout, progress
            )
        else:
            safety, kept = _restore_postgres(engine, backup, place if safety_backup else None, work, force, progress)
    return Restored(engine.title, backup, safety, kept, (time.perf_counter() - started) * 1000)


def _restore_sqlite(
    engine: SqliteEngine, backup: Backup, place: Path | None, work: Path, force: bool, wait: float, progress: Progress
) -> tuple[Backup | None, tuple[str, ...]]:
    made: list[Backup] = []
    damaged: list[str] = []

    def keep(old: Path) -> None:
        try:
            content = sqlite.examine(old)
        except BackupInvalid as error:
            if not force:
                raise TargetRefused(f"{engine.path}: {error.fact}", "--force keeps a copy, and overwrites it") from None
            if place is not None and old.stat().st_size:
                damaged.append(str(_kept_damaged(engine, old, place)))
            return
        if not any(table.rows for name, table in content.tables.items() if name != "migration_versions"):
            return
        if not force:
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


def _adopted(engine: SqliteEngine, copy: Path, content: Content, folder: Path) -> Backup:
    """Make a backup of a copy that was made and looked at before."""
    make_folder(folder)
    with workspace(folder) as work:
        draft = new_file(work / "data")
        shutil.copyfile(copy, draft)
        manifest = _manifest(engine, engine.name, draft, content, "none", SAFETY, silent)
        if digest(copy) != manifest.sha256:
            raise BackupFailed("the copy of what is to be overwritten differs", "look at the disk; nothing was changed")
        return _published(manifest, draft, folder, engine.suffix("none"), None)


def _kept_damaged(engine: SqliteEngine, copy: Path, folder: Path) -> Path:
    """Keep a copy of what is no backup because it is damaged."""
    make_folder(folder)
    with workspace(folder) as work, locked(folder):
        stem = free_stem(folder, engine.name, datetime.now(timezone.utc))
        draft = new_file(work / f"{stem}.damaged")
        shutil.copyfile(copy, draft)
        publish([draft], folder)
    return folder / draft.name


def _restore_postgres(
    engine: PostgresEngine, backup: Backup, place: Path | None, work: Path, force: bool, progress: Progress
) -> tuple[Backup | None, tuple[str, ...]]:
    from . import postgres

    keep: Callable[[], Backup] | None = None
    if place is not None:
        folder = place

        def keep() -> Backup:
            return _create(engine, folder, purpose=SAFETY, progress=progress)

    check(backup.file, backup.manifest, work, progress)
    outcome = postgres.restore(
        engine.target.to(engine.database),
        backup.file,
        backup.manifest.content,
        force=force,
        keep=keep,
        work=work,
        progress=progress,
    )
    return outcome.safety, (outcome.kept_database,) if outcome.kept_database else ()


# Pruning


@dataclass(frozen=True)
class Pruned:
    """What became of a backup and why: kept, deleted, or damaged and left alone."""

    backup: Backup
    fate: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.backup.file), "fate": self.fate, "reasons": list(self.reasons)}


def prune(
    settings: Settings | None = None,
    folder: str | Path | None = None,
    policy: Policy | None = None,
    *,
    name: str | None = None,
    dry_run: bool = False,
    proved: Backup | None = None,
    progress: Progress = silent,
) -> list[Pruned]:
    """Delete the backups of a database that no rule keeps, and return what became of each, the latest first.

    Those that are kept instead of others are read to their end before anything is deleted: what is damaged counts
    for nothing, and is left alone. The backups of other databases, and all other files, are not touched.

    :param proved: one that was made just now, and need not be read.
    :raises ConfigError: when there is no rule.
    """
    if not policy:
        raise ConfigError(
            "no rule says what to keep", "give --keep-last, --keep-daily, --keep-weekly or --keep-monthly"
        )
    settings = settings or Settings.from_environment()
    engine = engine_of(settings)
    place = _folder(folder, settings)
    with _told():
        if not place.is_dir():
            raise BackupFailed(f"the folder {place} does not exist", "give another one by --dir")
        source, wanted = engine.source, name or engine.name
        with locked(place):
            found = [b for b in read_folder(place)[0] if (b.manifest.name, b.manifest.source) == (wanted, source)]
            verdicts, damaged = _decided(found, policy, proved, progress)
            if not dry_run:
                for verdict in verdicts:
                    if not verdict.kept:
                        _delete(verdict.item)
    fates = {
        v.item.file: Pruned(v.item, "kept" if v.kept else "deleted", v.reasons or ("no rule keeps it",))
        for v in verdicts
    }
    fates |= {b.file: Pruned(b, "damaged", (reason,)) for b, reason in damaged}
    return [fates[b.file] for b in found]


def _decided(
    found: list[Backup], policy: Policy, proved: Backup | None, progress: Progress
) -> tuple[list[Verdict[Backup]], list[tuple[Backup, str]]]:
    """Decide again without each backup that turns out to be damaged, until all that are kept are good."""
    good = {proved.file} if proved else set()
    damaged: list[tuple[Backup, str]] = []
    while True:
        left = [b for b in found if b not in [bad for bad, _ in damaged]]
        verdicts = _verdicts(left, policy)
        if all(v.kept for v in verdicts):
            return verdicts, damaged
        unknown = next((v.item for v in verdicts if v.kept and v.item.file not in good), None)
        if unknown is None:
            return verdicts, damaged
        try:
            _verify_file(unknown, progress)
            good.add(unknown.file)
        except BackupInvalid as error:
            damaged.append((unknown, error.fact))


def _verdicts(backups: list[Backup], policy: Policy) -> list[Verdict[Backup]]:
    """Decide by the policy; what restores put aside stands for itself, and evicts nothing else."""
    aside = [backup for backup in backups if backup.manifest.purpose == SAFETY]
    others = [backup for backup in backups if backup.manifest.purpose != SAFETY]
    return [
        *decide(others, lambda b: b.manifest.time, policy),
        *decide(aside, lambda b: b.manifest.time, Policy(last=max(1, policy.last))),
    ]


def _delete(backup: Backup) -> None:
    """Delete the file first: a manifest without it takes no room, and the next run finds it."""
    for path in (backup.file, backup.manifest_path):
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def _told() -> Iterator[None]:
    """Put what the operating system refuses in words."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        raise BackupFailed(
            f"{what}{error.strerror or error}", "make room, or give this user the right to it; nothing is half done"
        ) from None
