"""PostgreSQL: the backups of a database of a server."""

from __future__ import annotations

from pathlib import Path

from whatspire_db.backup.manifest import Content, Manifest, Progress
from whatspire_db.dsn.targets import PostgresTarget
from whatspire_db.errors import ConfigError

from ..base import Engine, Restoration, as_file_name
from . import verifying
from .dumping import SUFFIX, dump, source_of
from .omissions import lacks_of
from .restoring import restore
from .server import database_of
from .trust import require_trusted_database


class PostgresEngine(Engine):
    """Backups of a database of a server."""

    kind = "postgres"
    default_method = "gzip"

    def __init__(self, target: PostgresTarget) -> None:
        self.target = target
        if any("\ud800" <= letter <= "\udfff" for letter in target.arguments.get("dbname", "")):
            name = ascii(target.arguments["dbname"])
            raise ConfigError(f"the database's name {name} is not UTF-8", "give one that is")
        self.database = database_of(target)
        self.name = as_file_name(self.database)
        self.title = f"database {self.database}"

    @property
    def source(self) -> str:
        return source_of(self.target)

    def suffix(self, method: str) -> str:
        return SUFFIX

    def dump(self, draft: Path, method: str, wait: float, progress: Progress, *, accept_torn: bool = False) -> Content:
        return dump(self.target, draft, method, wait, progress, accept_torn=accept_torn)

    def lacks(self, *, is_tried: bool) -> list[str]:
        return lacks_of(self.target, is_tried=is_tried)

    def require_trusted(self, trust_source: bool) -> None:
        require_trusted_database(self.target, trust_source)

    def test_restore(
        self, file: Path, manifest: Manifest, work: Path, progress: Progress, trust_source: bool = False
    ) -> list[str]:
        content = manifest.content
        return verifying.test_restore(self.target, file, content, work, progress, trust_source=trust_source)

    def restore(self, wanted: Restoration) -> None:
        verifying.check(wanted.file, wanted.content.details["dumped_by"], wanted.progress)
        restore(self.target.to(self.database), wanted)
