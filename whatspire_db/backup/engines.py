"""What differs between the engines for a backup: its name, how it is made, read, tried out and brought back."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..dsn import PostgresTarget, SqliteTarget, looks_like_postgres, parse_sqlite
from ..errors import ConfigError
from ..settings import Settings
from . import compression, sqlite
from .archive import Content, Manifest, Progress


class SqliteEngine:
    """Backups of a file."""

    kind = "sqlite"
    default_method = "none"

    def __init__(self, target: SqliteTarget) -> None:
        self.path = _file_of(target)
        self.name = _as_file_name(self.path.stem)
        self.source = f"sqlite {self.path}"
        self.title = str(self.path)

    def suffix(self, method: str) -> str:
        return sqlite.SUFFIX + compression.SUFFIXES[method]

    def require(self, method: str) -> None:
        """Find out before any work what would stop it."""
        compression.require(method)

    def dump(self, draft: Path, method: str, wait: float, progress: Progress) -> Content:
        return sqlite.dump(self.path, draft, method, wait, progress)

    def test_restore(self, file: Path, manifest: Manifest, work: Path, progress: Progress) -> list[str]:
        return sqlite.test_restore(file, manifest, work, progress)


class PostgresEngine:
    """Backups of a database of a server."""

    kind = "postgres"
    default_method = "gzip"

    def __init__(self, target: PostgresTarget) -> None:
        from . import pg_server, postgres  # a backup of SQLite needs no driver for it

        self._postgres: Any = postgres
        self.target = target
        if any("\ud800" <= letter <= "\udfff" for letter in target.arguments.get("dbname", "")):
            name = ascii(target.arguments["dbname"])
            raise ConfigError(f"the database's name {name} is not UTF-8", "give one that is")
        self.database = pg_server.database_of(target)
        self.name = _as_file_name(self.database)
        self.title = f"database {self.database}"

    @property
    def source(self) -> str:
        return str(self._postgres.source_of(self.target))

    def suffix(self, method: str) -> str:
        return str(self._postgres.SUFFIX)

    def require(self, method: str) -> None:
        """Find out before any work what would stop it."""

    def dump(self, draft: Path, method: str, wait: float, progress: Progress) -> Content:
        content: Content = self._postgres.dump(self.target, draft, method, wait, progress)
        return content

    def test_restore(self, file: Path, manifest: Manifest, work: Path, progress: Progress) -> list[str]:
        lines: list[str] = self._postgres.test_restore(self.target, file, manifest.content, work, progress)
        return lines


Engine = SqliteEngine | PostgresEngine


def engine_of(settings: Settings) -> Engine:
    """Return the engine for the database of the settings."""
    target = settings.target
    return _named(settings, SqliteEngine(target) if isinstance(target, SqliteTarget) else PostgresEngine(target))


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
    if looks_like_postgres(place):
        raise ConfigError(
            "--to is the DSN of a server",
            f"name {takes}; where the server is, WHATSAPP_DATABASE_DRIVER and WHATSAPP_DATABASE_DSN say",
        )
    if isinstance(target, SqliteTarget):
        return _named(settings, SqliteEngine(parse_sqlite(place)))
    return _named(settings, PostgresEngine(target.to(place)))


def _file_of(target: SqliteTarget) -> Path:
    """Return the file of a DSN; what cannot be the name of one is told before any work."""
    name = target.path or ""
    if "\0" in name:
        raise ConfigError(f"the file {name!r} has a zero byte in its name", "name a file by --to or --dsn")
    try:
        path = sqlite.file_of(target)
    except FileNotFoundError:  # a name is completed by the current folder's
        raise ConfigError("the current folder is deleted", "go to another, or name every file in full") from None
    if os.path.islink(path):  # behind all links there is none, unless they go round
        raise ConfigError(f"{path} is a link that leads back to itself", "name a file by --to or --dsn")
    return path


def check(file: Path, manifest: Manifest, work: Path, progress: Progress) -> None:
    """Read a backup's file to its end.

    :raises BackupInvalid: when its structure is damaged.
    """
    if manifest.content.engine == "sqlite":
        sqlite.check(file, manifest, work, progress)
    else:
        from . import postgres

        postgres.check(file, manifest.content.details["dumped_by"], progress)


def _as_file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name).lstrip(".-") or "database"
