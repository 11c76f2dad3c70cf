"""What a dump of PostgreSQL says of itself: its entries, what each of them needs, and who owned them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from . import tools as pg_tools

_ENTRY = re.compile(r"(?P<number>\d+); (?P<catalog>\d+) \d+ (?P<words>.*)", re.DOTALL)
_NEEDS = re.compile(r";\s+depends on:((?: \d+)+)\s*")
_OWNER = re.compile(r' OWNER TO ("(?:[^"]|"")+"|[^\s";]+);$', re.MULTILINE)
_LARGE_OBJECTS = re.compile(r"BLOB(?: METADATA)? - \S+ (?P<owner>.*)", re.DOTALL)

# A kind is in capitals, behind it stands a schema or "-".
_WORDS = re.compile(r"(?P<kind>[A-Z]+(?: [A-Z]+)*) (?:- |(?P<schema>\S+) )(?P<name>.*)", re.DOTALL)
_NAMED = {"TABLE DATA": "the rows of table", "MATERIALIZED VIEW DATA": "materialized view"}


class Entry(NamedTuple):
    """A line of a dump's list: one object, or the rows of a table."""

    number: int
    catalog: int  # the oid of the system catalog that its object stands in; 0 for what is none, such as rows
    words: str  # its kind, its schema or "-", its name and its owner
    line: str
    needs: frozenset[int]  # the numbers of the entries that must be there before


def title(entry: Entry, owners: Iterable[str]) -> str:
    """Return an entry as a message names it: materialized view public.totals.

    :param owners: of the dump's objects; a list has them behind the names.
    """
    words = _WORDS.fullmatch(_without_owner(entry.words, owners))
    if not words:
        return entry.words.strip()
    kind = words["kind"]
    name = words["name"].strip().removeprefix(f"{kind} ")
    return f"{_NAMED.get(kind, kind.lower())} {words['schema'] + '.' if words['schema'] else ''}{name}"


def _without_owner(words: str, owners: Iterable[str]) -> str:
    for owner in sorted(map(_as_listed, owners), key=len, reverse=True):
        if words.endswith(f" {owner}"):
            return words[: -len(owner) - 1]
    return words


def entries_of(tool: pg_tools.Tool, file: Path) -> list[Entry]:
    """Return the entries of a dump, in its order.

    :raises BackupFailed: when the file cannot be read.
    """
    found: list[Entry] = []
    # Names may hold what str.splitlines takes for the end of a line; the program ends its lines by "\n" alone.
    for line in pg_tools.run(tool, ["--list", "--verbose", str(file)], None).split("\n"):
        if entry := _ENTRY.fullmatch(line):
            found.append(Entry(int(entry["number"]), int(entry["catalog"]), entry["words"], line, frozenset()))
        elif found and (needs := _NEEDS.fullmatch(line)):
            found[-1] = found[-1]._replace(needs=frozenset(map(int, needs[1].split())))
    return found


def needing(entries: Iterable[Entry], numbers: Iterable[int]) -> set[int]:
    """Return the numbers of some entries and of all that cannot be there without them."""
    found = set(numbers)
    entries = list(entries)
    while more := {entry.number for entry in entries if entry.needs & found} - found:
        found |= more
    return found


def owners_of(tool: pg_tools.Tool, file: Path) -> set[str]:
    """Return the roles that own something in a dump.

    In its list a name is not told from the owner behind it, and in its statements a function's text can look like one:
    an owner is in both. Large objects are not among those statements, and in the list they have numbers for names.
    """
    statements = pg_tools.run(tool, ["--schema-only", "--file=-", str(file)], None)
    named = {_unquoted(owner) for owner in _OWNER.findall(statements)}
    entries = entries_of(tool, file)
    large = {found["owner"] for entry in entries if (found := _LARGE_OBJECTS.fullmatch(entry.words))}
    return large | {owner for owner in named if owns_any(owner, entries)}


def owns_any(owner: str, entries: Iterable[Entry]) -> bool:
    """Tell whether a role owns any of some entries, as far as their lines tell: a longer name may end alike."""
    return any(entry.words.endswith(f" {_as_listed(owner)}") for entry in entries)


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _as_listed(name: str) -> str:
    """Return a name as the list of a dump has it: on one line."""
    return name.replace("\n", " ").replace("\r", " ")
