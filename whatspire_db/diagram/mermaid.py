"""A Diagram as the text of a Mermaid erDiagram, which GitHub and many wikis draw."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..errors import ConfigError
from ..migrate.schema import Key
from .text import plain
from .values import SIGNS, Diagram, Difference, DrawnColumn, DrawnTable, Reference

LONGEST = 50_000  # characters; of a longer text Mermaid draws an error instead (its setting maxTextSize)
# Words that mean something else where a table is named, in any case.
KEYS = frozenset({"pk", "fk", "uk"})
RESERVED = KEYS | {
    *("accdescr", "acctitle", "class", "classdef", "direction", "end", "erdiagram", "graph", "many", "one", "only"),
    *("optionally", "style", "subgraph", "title", "to", "u", "zero"),
}
KEY_WORDS = {"PK": "PK", "FK": "FK", "UQ": "UK"}
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENCODED = re.compile(r"[^\w .,:()'=/+*→≠−≈!-]|(?<=direction) ", re.IGNORECASE)


def mermaid(diagram: Diagram) -> str:
    """Return the text.

    :raises ConfigError: when it is longer than what Mermaid draws.
    """
    names = _names(diagram)
    lines = [
        "erDiagram",
        *(f"    %% {encoded(caption)}" for caption in diagram.captions),
        *(line for key, table in diagram.tables.items() for line in _table(names[key], table)),
        *(_reference(reference, names) for reference in diagram.references),
        # Of what has no place in its pictures, the text tells.
        *(f"    %% {encoded(f'{SIGNS[d.state]} {d}')}" for d in _not_drawn(diagram)),
    ]
    text = "\n".join(lines) + "\n"
    length = len(text.encode("utf-16-le", "surrogatepass")) // 2  # as JavaScript counts
    if length > LONGEST:
        raise ConfigError(
            f"the Mermaid text of {len(diagram.tables)} tables has {length:,} characters, and Mermaid draws at most "
            f"{LONGEST:,}",
            "choose some with --tables, leave columns out with --keys, or write --format html",
        )
    return text


def _not_drawn(diagram: Diagram) -> Iterator[Difference]:
    """Yield the differences of indexes and constraints."""
    return (d for table in diagram.tables.values() for part in table.parts for d in part.differences)


def encoded(text: str) -> str:
    """Return a text as it may stand between quotes, and in a comment: Mermaid decodes #37; to a percent sign."""
    return _ENCODED.sub(lambda found: f"#{ord(found[0])};", plain(text))


def _names(diagram: Diagram) -> dict[Key, str]:
    """Return a name for each table that Mermaid takes, and that no other table has."""
    names: dict[Key, str] = {}
    taken: set[str] = set()
    for key, table in diagram.tables.items():
        name = table.label
        if not _PLAIN_NAME.fullmatch(name) or name.lower() in RESERVED:
            name = "t_" + re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
        number, first = 1, name
        while name in taken:
            number += 1
            name = f"{first}_{number}"
        taken.add(name)
        names[key] = name
    return names


def _table(name: str, table: DrawnTable) -> Iterator[str]:
    state = f" ({SIGNS[table.state]} {table.state})" if table.state else ""
    shown = f'["{encoded(table.label)}{state}"]' if state or name != table.label else ""
    yield f"    {name}{shown} {{"
    yield from (_column(column) for column in table.columns)
    yield "    }"


def _column(column: DrawnColumn) -> str:
    kind, name = _safe(column.type or "unknown", "()"), _safe(column.name)
    keys = ", ".join(KEY_WORDS[key] for key in column.keys)
    notes = [] if name == column.name else [column.name]
    notes += [] if kind == column.type else [column.type] if column.type else []
    notes += [] if column.column.not_null else ["null"]
    notes += [f"{SIGNS[d.state]} {d.state} {d.what} {d.values}".strip() for d in column.differences]
    comment = f'"{encoded(", ".join(notes))}"' if notes else ""
    return "        " + " ".join(filter(None, [kind, name, keys, comment]))


def _safe(name: str, also: str = "") -> str:
    """Return a type or a column's name as Mermaid takes it."""
    safe = re.sub(rf"[^A-Za-z0-9_{re.escape(also)}]+", "_", name).rstrip("_")
    if not safe or not (safe[0].isascii() and (safe[0].isalpha() or safe[0] == "_")):
        safe = f"_{safe}"
    return f"{safe}_" if safe.lower() in KEYS else safe


def _reference(reference: Reference, names: Mapping[Key, str]) -> str:
    one = "|o" if reference.is_optional else "||"
    many = "o|" if reference.is_unique else "o{"
    line = ".." if reference.is_implied else "--"
    state = f" ({SIGNS[reference.state]} {reference.state})" if reference.state else ""
    text = encoded(", ".join(reference.columns)) + state
    return f'    {names[reference.target]} {one}{line}{many} {names[reference.source]} : "{text}"'
