"""What PostgreSQL's programs say when they fail: which entry, why, and in which function; never the content of a row.

The programs run with messages in English; what they repeat from a server may be in any language.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from whatspire_db import messages

_ENTRY = re.compile(r"\w+: from TOC entry (\d+);")
# libpq puts two spaces behind the severity, in every language.
_SERVERS = re.compile(r"(?:.*: )?[^\s:]+:  (?P<words>.+)")
# Of the lines of a server's context those that name a function; others repeat rows and statements.
_FUNCTION = re.compile(r'(?:CONTEXT:  )?((?:PL/pgSQL|SQL) function (?:"[^"]+"|\S+\([^"\']*\)))(?: .*)?')
# Messages that hold names and no values, in the language that this package asks for where it may.
_NAMES_ALONE = re.compile(
    r"(?:function|operator|type|relation|schema|column|collation|extension|role|text search \w+) \S.* does not exist"
    r"|unrecognized configuration parameter \"[\w.]+\"|permission denied for .+|must be owner of .+"
    r"|could not (?:extend|write|create|open|read|fsync) .+|out of (?:shared )?memory|canceling statement .+"
    r"|terminating connection .+|server closed the connection unexpectedly"
)
_RAISED = re.compile(r" RAISE$")  # by a function, which words it as it likes


class Said(NamedTuple):
    """Why a program failed: its own words, or a server's."""

    words: str
    entry: int | None = None  # the number of the dump's entry that it worked on
    function: str = ""  # the innermost function that was running on the server
    is_raised: bool = False  # a function made the words
    is_first: bool = False  # nothing was said before, so that a program that tells what it does had done nothing

    @property
    def without_values(self) -> str:
        """The words, where they can hold no value of a row; else none."""
        return self.words if _NAMES_ALONE.fullmatch(self.words) and not self.is_raised else ""


def understood(program: str, text: str) -> Said:
    """Return what a program's standard error says of its failure; the words are empty where it says nothing."""
    lines = text.split("\n")
    first = next((n for n, line in enumerate(lines) if line.startswith(f"{program}: error: ")), None)
    if first is None:
        return Said(messages.clean(next((line for line in reversed(lines) if line.strip()), "")))
    entries = [match[1] for line in lines[:first] if (match := _ENTRY.match(line))]
    behind = lines[first + 1 :]
    words = lines[first].removeprefix(f"{program}: error: ")
    if behind and behind[0].startswith(f"{program}: detail: Error message from server: "):
        words = behind[0].removeprefix(f"{program}: detail: ")
    if servers := _SERVERS.fullmatch(words):
        words = servers["words"]
    context = _context(behind)
    functions = [match[1] for line in context if (match := _FUNCTION.fullmatch(line))]
    return Said(
        messages.clean(words),
        int(entries[-1]) if entries else None,
        messages.clean(functions[0]) if functions else "",
        any(_RAISED.search(line) for line in context),
        first == 0,
    )


def _context(lines: list[str]) -> list[str]:
    """Return the lines that say where a server was, of those behind an error."""
    start = next((n for n, line in enumerate(lines) if line.startswith("CONTEXT:  ")), len(lines))
    return lines[start:]
