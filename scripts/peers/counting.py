"""Count statements: on SQLite by its trace, on PostgreSQL by the server's log. The same are left out on both."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOG_PREFIX = "bench %d "

# Transaction control and settings; a comment alone is what SQLite runs on its own account.
_LEFT_OUT = re.compile(
    r"(BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE|SET|RESET)\b|PRAGMA\s+[\w.]+\s*=|$", re.I
)
_COMMENT = re.compile(r"\s*(--[^\n]*(\n|$)|/\*.*?\*/)\s*", re.S)
_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"[^"]*"|\$(\w*)\$.*?\$\1\$|--[^\n]*|/\*.*?\*/|;|[^'"$;/-]+|.""",
    re.S,
)


def split(sql: str) -> list[str]:
    """Split a text into its statements."""
    statements = [""]
    for match in _TOKEN.finditer(sql):
        if match[0] == ";":
            statements.append("")
        else:
            statements[-1] += match[0]
    return [statement.strip() for statement in statements if statement.strip()]


def counts(statement: str) -> bool:
    """Tell whether a statement is one of those that are counted."""
    while (match := _COMMENT.match(statement)) and match[0]:
        statement = statement[match.end() :]
    return not _LEFT_OUT.match(statement.strip())


class SqliteTrace:
    """Counts the statements of every SQLite connection that is opened after `install`."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.active = False

    def install(self) -> SqliteTrace:
        """Have every connection that is opened from now on traced."""
        original: Callable[..., sqlite3.Connection] = sqlite3.dbapi2.connect

        def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
            connection = original(*args, **kwargs)
            connection.set_trace_callback(self._trace)
            return connection

        sqlite3.connect = sqlite3.dbapi2.connect = connect  # type: ignore[assignment]
        return self

    def _trace(self, statement: str) -> None:
        if self.active and counts(statement):
            self.statements.append(statement)


def log_size(path: str) -> int:
    """Return where the next line of a log begins."""
    return Path(path).stat().st_size


def logged(path: str, start: int, database: str) -> list[str]:
    """Return the counted statements that PostgreSQL logged for a database since a place in its log."""
    with Path(path).open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    found = []
    for entry in re.split(r"^bench ", text, flags=re.M):
        match = re.match(re.escape(database) + r" LOG:  (?:statement|execute [^:]*): (.*)", entry, re.S)
        if match:
            # The lines of a statement after its first begin with a tab; what has another prefix is no part of it.
            lines = match[1].split("\n")
            body = [lines[0], *(line for line in lines[1:] if line.startswith("\t"))]
            found += [statement for statement in split("\n".join(body)) if counts(statement)]
    return found
