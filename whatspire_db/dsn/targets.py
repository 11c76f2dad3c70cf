"""Where a database is, as values: what a DSN says once it is parsed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..light_stdlib import dataclass, field, pattern

_SECRET_KEY = pattern(r"pass(?!file)|pwd|secret", re.IGNORECASE)


@dataclass(frozen=True)
class SqliteTarget:
    """Where a SQLite database is: `database` as sqlite3.connect takes it, the pragmas and the kind of BEGIN."""

    database: str
    path: str | None  # the file; None in memory
    uri: bool = False
    read_only: bool = False
    pragmas: Mapping[str, str] = field(default_factory=dict)
    lock_type: str = "IMMEDIATE"


@dataclass(frozen=True)
class PostgresTarget:
    """libpq's connection arguments; run-time parameters are folded into `options`."""

    arguments: Mapping[str, str] = field(repr=False)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The values to hide; one that is also the name of a user or a database is no secret that hiding would keep."""
        public = set(self.public.values())
        return tuple(v for k, v in self.arguments.items() if _SECRET_KEY.search(k) and v and v not in public)

    @property
    def public(self) -> dict[str, str]:
        """The arguments that are no secret."""
        return {k: v for k, v in self.arguments.items() if not _SECRET_KEY.search(k)}

    def to(self, database: str) -> PostgresTarget:
        """Return the same server and user, with another database."""
        return PostgresTarget({**self.arguments, "dbname": database})

    def __repr__(self) -> str:
        return f"PostgresTarget({self.describe()})"

    def describe(self) -> str:
        """Name the server and the database, without anything secret."""
        shown = {k: v for k, v in self.arguments.items() if k in ("host", "port", "dbname", "user")}
        return " ".join(f"{k}={v}" for k, v in shown.items()) or "the local server"
