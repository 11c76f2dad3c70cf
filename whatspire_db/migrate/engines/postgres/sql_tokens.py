"""PostgreSQL: the tokens of DDL that somebody wrote, so that what stands in a text or a comment is not taken for SQL.

The grammar is that of https://www.postgresql.org/docs/current/sql-syntax-lexical.html.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from whatspire_db.migrate.schema import folded_ascii
from whatspire_db.sql import WORD

_TOKEN = re.compile(
    rf"""(?P<skip>\s+|--[^\n]*|/\*.*?\*/)
      |(?P<string>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(?P<tag>[^\W\d]\w*|)\$.*?\$(?P=tag)\$)
      |(?P<name>"(?:[^"]|"")+"|{WORD})
      |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """A token: skip (space or a comment), string, name or other; its text, and where it stands."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """The name that it is, as the server keeps it."""
        return self.text[1:-1].replace('""', '"') if self.text.startswith('"') else folded_ascii(self.text)


def tokens(sql: str) -> list[Token]:
    """Return the tokens of SQL."""
    found = []
    for match in _TOKEN.finditer(sql):
        kind = next(k for k in ("skip", "string", "name", "other") if match.group(k) is not None)
        found.append(Token(kind, match.group(), match.start(), match.end()))
    return found
