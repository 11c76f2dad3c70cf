"""SQLite: the backups of a file."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from whatspire_db.backup import compression
from whatspire_db.backup.archive import STAMP, read
from whatspire_db.backup.manifest import Content, Manifest, Progress
from whatspire_db.dsn.targets import SqliteTarget
from whatspire_db.errors import BackupInvalid, ConfigError, TargetRefused, WhatspireDBError
from whatspire_db.files import kind_of
from whatspire_db.migrate.schema import NOTES

from ..base import Engine, Restoration, as_file_name
from . import verifying
from .content import examine, fence_of, file_of
from .dumping import SUFFIX, dump
from .restoring import restore


class SqliteEngine(Engine):
    """Backups of a file."""

    kind = "sqlite"
    default_method = "none"

    def __init__(self, target: SqliteTarget) -> None:
        self.path = _file_of(target)
        self.name = as_file_name(self.path.stem)
        self.title = str(self.path)

    @property
    def source(self) -> str:
        return f"sqlite {self.path}"

    def suffix(self, method: str) -> str:
        return SUFFIX + compression.SUFFIXES[method]

    def require(self, method: str) -> None:
        compression.require(method)

    def dump(self, draft: Path, method: str, wait: float, progress: Progress, *, accept_torn: bool = False) -> Content:
        return dump(self.path, draft, method, wait, progress)

    def test_restore(
        self, file: Path, manifest: Manifest, work: Path, progress: Progress, trust_source: bool = False
    ) -> list[str]:
        return verifying.test_restore(file, manifest, work, progress)

    def require_target(self) -> None:
        with suppress(OSError):  # which the restore itself will report
            if kind := kind_of(self.path.stat()):
                raise ConfigError(f"{self.path} is {kind}", "name a file by --to or WHATSAPP_DATABASE_DSN")
        try:
            read(self.path)
        except WhatspireDBError:
            return
        raise TargetRefused(f"{self.path} is a backup itself", "name another file by --to")

    def restore(self, wanted: Restoration) -> None:
        plain = verifying.plain_file(wanted.file, wanted.backup.manifest, wanted.work, wanted.progress)
        verifying.require_same(wanted.backup.file, wanted.backup.manifest, plain, wanted.progress)
        moved = restore(
            plain,
            wanted.content,
            self.path,
            force=wanted.force,
            wait=wanted.wait,
            moved_name=f"moved-{datetime.now(timezone.utc).strftime(STAMP)}",
            keep=lambda old: self._keep(old, wanted),
            progress=wanted.progress,
        )
        wanted.outcome.kept += tuple(map(str, moved))
        wanted.outcome.is_done = True

    def _keep(self, old: Path, wanted: Restoration) -> None:
        """Keep a copy of what is about to be overwritten; refuse to overwrite data without `force`."""
        if not old.stat().st_size:
            return  # a file that SQLite opened, and nobody wrote
        try:
            content = examine(old, named=self.path)
        except BackupInvalid as error:
            if not wanted.force:
                raise TargetRefused(error.fact, "--force keeps a copy, and overwrites it") from None
            if damaged := wanted.safety.keep_damaged(old):
                wanted.outcome.kept = (str(damaged),)
            return
        holds_rows = any(table.rows for name, table in content.tables.items() if _is_for_data(name))
        if holds_rows and not wanted.force:
            fence = fence_of(old)
            holds = f"is fenced: {fence.fact}" if fence else "holds data"
            raise TargetRefused(f"{self.path} {holds}", "--force makes a backup of it, and overwrites it")
        wanted.outcome.safety = wanted.safety.adopt(old, content)


def _is_for_data(table: str) -> bool:
    """Tell a table from one for notes: the package's of its migrations, or SQLite's of statistics and counters."""
    return table not in NOTES and not table.startswith(("sqlite_stat", "sqlite_sequence"))


def _file_of(target: SqliteTarget) -> Path:
    """Return the file of a DSN; what cannot be the name of one is told before any work."""
    name = target.path or ""
    if "\0" in name:
        raise ConfigError(f"the file {name!r} has a zero byte in its name", "name a file by --to or --dsn")
    try:
        path = file_of(target)
    except FileNotFoundError:  # a name is completed by the current folder's
        raise ConfigError("the current folder is deleted", "go to another, or name every file in full") from None
    if os.path.islink(path):  # behind all links there is none, unless they go round
        raise ConfigError(f"{path} is a link that leads back to itself", "name a file by --to or --dsn")
    return path
