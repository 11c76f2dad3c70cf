"""What differs between the engines for a backup: its name, how it is made, read, tried out and brought back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..dsn import PostgresTarget, SqliteTarget, parse_sqlite
from ..errors import ConfigError
from ..settings import Settings
from . import compression, sqlite
from .archive import Content, Manifest, Progress


class SqliteEngine:
    """Backups of a file."""

    kind = "sqlite"
    default_method = "none"

    def __init__(self, target: SqliteTarget) -> None:
        self.path = sqlite.file_of(target)
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
    return SqliteEngine(target) if isinstance(target, SqliteTarget) else PostgresEngine(target)


def engine_at(settings: Settings, place: str) -> Engine:
    """Return the engine for another place: a file, or another database of the server."""
    target = settings.target
    if isinstance(target, SqliteTarget):
        is_uri = place == ":memory:" or place.lower().startswith("file:")
        return SqliteEngine(parse_sqlite(place) if is_uri else SqliteTarget(place, place))
    return PostgresEngine(target.to(place))


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
