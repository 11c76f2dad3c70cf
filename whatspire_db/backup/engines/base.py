"""What differs between the engines for a backup: its name, how it is made, read, tried out and brought back."""

from __future__ import annotations

import abc
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from whatspire_db.connection.connecting import settings_of
from whatspire_db.connection.database import Pooling
from whatspire_db.connection.engines.sqlite.folder import require_folder
from whatspire_db.dsn.forms import POSTGRES, SQLITE, kind_of
from whatspire_db.dsn.redaction import looks_like_dsn
from whatspire_db.dsn.sqlite import parse_sqlite
from whatspire_db.dsn.targets import PostgresTarget, SqliteTarget
from whatspire_db.errors import ConfigError
from whatspire_db.settings import Settings

from ..archive import Backup
from ..manifest import Content, Manifest, Progress

Given = Settings | str | os.PathLike[str] | Pooling | None  # what names a database in Python


class Safety(Protocol):
    """Keeps a copy of what a restore overwrites. Each method returns None if no copy is wanted."""

    def make(self) -> Backup | None:
        """Make a backup of the database."""

    def adopt(self, copy: Path, content: Content) -> Backup | None:
        """Make a backup of a copy that has already been examined."""

    def keep_damaged(self, copy: Path) -> Path | None:
        """Keep a copy of a damaged file, which cannot be a backup."""


@dataclass
class Outcome:
    """What a restore has done so far; an interrupt after `is_done` changes nothing.

    `safety` is a backup of what was there; `kept` are the places that hold what was put aside: files, or a database.
    """

    is_done: bool = False
    safety: Backup | None = None
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restoration:
    """A verified backup, and how to restore it.

    :param file: what to read it from.
    :param work: a folder for what is needed meanwhile.
    :param force: overwrite data.
    :param wait: seconds to wait for others' locks.
    :param trust_source: let a superuser's restore run the code of owners that are no superusers.
    """

    backup: Backup
    file: Path
    work: Path
    safety: Safety
    force: bool
    wait: float
    progress: Progress
    trust_source: bool
    outcome: Outcome

    @property
    def content(self) -> Content:
        return self.backup.manifest.content


class Engine(abc.ABC):
    """The questions that backups ask an engine about one database.

    `name` is that of the database's backups, `title` names it in messages.
    """

    kind: str
    default_method: str  # of compression
    name: str
    title: str

    @property
    @abc.abstractmethod
    def source(self) -> str:
        """Return what tells the database from others of its name."""

    @abc.abstractmethod
    def suffix(self, method: str) -> str:
        """Return how the name of a backup's file ends."""

    def require(self, method: str) -> None:  # noqa: B027 - where the engine compresses by itself
        """Find out before any work what would stop a method of compression."""

    @abc.abstractmethod
    def dump(self, draft: Path, method: str, wait: float, progress: Progress, *, accept_torn: bool = False) -> Content:
        """Write a backup into a file that is there, while others write; return what it holds.

        :param wait: seconds to wait for others' locks.
        :param accept_torn: also of a cluster whose tables cannot be read as of one moment.
        :raises BackupTorn: when it is one, unless `accept_torn`.
        """

    def lacks(self, *, is_tried: bool) -> list[str]:
        """Return what a backup lacks, or what may stop its restore."""
        return []

    def require_trusted(self, trust_source: bool) -> None:  # noqa: B027 - where nobody's code has rights of its own
        """Find out before a backup is made whether the code of its owners may run in a test restore.

        :raises SourceNotTrusted: when it may not, unless `trust_source`.
        """

    @abc.abstractmethod
    def test_restore(
        self, file: Path, manifest: Manifest, work: Path, progress: Progress, trust_source: bool = False
    ) -> list[str]:
        """Restore a backup into a scratch place and return in what that differs."""

    def require_target(self) -> None:  # noqa: B027 - a server itself refuses a bad name
        """Refuse a place that cannot be a database.

        :raises ConfigError: when it cannot.
        :raises TargetRefused: when it is a backup, which would be overwritten.
        """

    @abc.abstractmethod
    def restore(self, wanted: Restoration) -> None:
        """Replace the database by the backup, and record in the outcome what was done.

        :raises TargetRefused: when there is data without `force`, or others hold it.
        :raises LockTimeout: when others' transactions did not end in time.
        """


def settings_for(given: Given, by: str) -> Settings:
    """Return the settings that a caller gives: as such, as a DSN, or as a database that `connect` made of them.

    :param by: what the caller called, for messages.
    :raises ConfigError: when it is none of them.
    """
    if isinstance(given, Pooling) and given.settings is not None:
        return given.settings
    return settings_of(given, by=f"backup.{by}()")


def engine_of(settings: Settings) -> Engine:
    """Return the engine for the database of the settings."""
    target = settings.target
    return _named(settings, _engine_for(target))


def _engine_for(target: SqliteTarget | PostgresTarget) -> Engine:
    if isinstance(target, SqliteTarget):
        from .sqlite.engine import SqliteEngine  # a backup of one engine needs no driver for the other

        return SqliteEngine(target)
    from .postgres.engine import PostgresEngine

    return PostgresEngine(target)


def require_place(settings: Settings) -> None:
    """Refuse a database whose file would be in no folder.

    :raises ConfigError: when it would.
    """
    require_folder(settings.name_of("dsn"), settings.target)


def is_a_database(manifest: Manifest) -> bool:
    """Tell whether a backup's file is a database by itself, once it is decompressed."""
    return manifest.content.engine == SQLITE


def engine_of_file(backup: Path) -> Engine:
    """Return the engine for a backup's own file, where such a file is a database by itself."""
    return _engine_for(SqliteTarget(str(backup), str(backup)))


def is_open_to_others(settings: Settings) -> bool:
    """Tell whether a backup can be made beside another connection; what is in memory is gone with its process.

    :raises ConfigError: where that connection holds the file alone, so that a backup would wait for ever.
    """
    target = settings.target
    if not isinstance(target, SqliteTarget):
        return True
    if target.path is not None and target.pragmas.get("locking_mode", "").lower() == "exclusive":
        raise ConfigError(
            "no backup can be made beside this run, whose DSN says _locking_mode=exclusive",
            "leave that out of the DSN for the migration; or run python -m whatspire_db.backup create before, and then "
            "migrate without --backup and WHATSAPP_DATABASE_BACKUP_BEFORE_MIGRATE",
        )
    return target.path is not None


def _named(settings: Settings, engine: Engine) -> Engine:
    """Let an engine's backups have the name that the settings give them instead of the database's."""
    engine.name = settings.backup_name or engine.name
    return engine


def engine_at(settings: Settings, place: str) -> Engine:
    """Return the engine for another place: a file, as a DSN names it, or another database of the server.

    :raises ConfigError: for what is neither; the message does not repeat it, for it may hold a password.
    """
    target = settings.target
    takes = "a file" if isinstance(target, SqliteTarget) else "another database of the server, by its name alone"
    if not place.strip() or "\0" in place:
        raise ConfigError("--to is empty, or has a zero byte", f"name {takes}")
    if looks_like_dsn(place) or (isinstance(target, SqliteTarget) and kind_of("--to", place) == POSTGRES):
        raise ConfigError(
            "--to is the DSN of a server",
            f"name {takes}; where the server is, WHATSAPP_DATABASE_DRIVER and WHATSAPP_DATABASE_DSN say",
        )
    if isinstance(target, SqliteTarget):
        return _named(settings, _engine_for(parse_sqlite(place)))
    return _named(settings, _engine_for(target.to(place)))


def check(file: Path, manifest: Manifest, work: Path, progress: Progress) -> None:
    """Read a backup's file to its end.

    :raises BackupInvalid: when its structure is damaged.
    """
    if is_a_database(manifest):
        from .sqlite import verifying as of_file

        of_file.check(file, manifest, work, progress)
        return
    from .postgres import verifying as of_dump

    of_dump.check(file, manifest.content.details["dumped_by"], progress)


def as_file_name(name: str) -> str:
    """Return a database's name as a part of a file's."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".-") or "database"
