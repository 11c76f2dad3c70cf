"""Values of a picture: tables with their columns, references between them, and differences; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..migrate.schema import Column, Key, label

# The states of a difference, the gravest first, each with the sign that stands for it without colour.
SIGNS = {"refused": "!", "drift": "≠", "missing": "−", "pending": "+", "extra": "*", "accepted": "≈"}
MEANINGS = {
    "refused": "declared, not in the database, and a run refuses to add it",
    "drift": "declared and live differ, and no addition can fix that",
    "missing": "declared, and not in the database",
    "pending": "declared, not in the database, and the next run adds it",
    "extra": "in the database, and not declared",
    "accepted": "drift that the settings accept",
}


def gravest(states: Sequence[str]) -> str:
    """Return the gravest of some states; "" for none."""
    return min(states, key=list(SIGNS).index, default="")


@dataclass(frozen=True)
class Difference:
    """One difference between the declared and the live schema.

    :param note: why it is refused, and what to do.
    :param sql: what adds it, or what fixes the drift.
    """

    state: str
    kind: str
    table: Key
    name: str
    declared: str = ""
    live: str = ""
    note: str = ""
    sql: tuple[str, ...] = ()

    @property
    def is_of_table(self) -> bool:
        return self.kind == "table"

    @property
    def place(self) -> str:
        """What differs: `table` or `table.name`."""
        table = label(self.table)
        return table if self.is_of_table else f"{table}.{self.name}" if table else self.name

    @property
    def what(self) -> str:
        """What kind of thing differs, in words: "column type", "index"."""
        return self.kind.replace("_", " ")

    @property
    def values(self) -> str:
        """Both values of drift, in words; "" for other states."""
        if self.state not in ("drift", "accepted"):
            return ""
        return f"declared {self.declared or 'none'}, live {self.live or 'none'}"

    def __str__(self) -> str:
        values = f": {self.values}" if self.values else ""
        return f"{self.state} {self.what} {self.place}{values}"

    def to_json(self) -> dict[str, Any]:
        drift = {"declared": self.declared, "live": self.live} if self.values else {}
        head = {"state": self.state, "kind": self.kind, "table": label(self.table), "name": self.name}
        return head | drift | ({"note": self.note} if self.note else {}) | {"sql": list(self.sql)}


@dataclass(frozen=True)
class DrawnColumn:
    """A column of a drawn table, with the keys that it is part of: PK, FK, UQ."""

    column: Column
    keys: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()

    @property
    def name(self) -> str:
        return self.column.name

    @property
    def type(self) -> str:
        return self.column.type or ""

    @property
    def state(self) -> str:
        return gravest([d.state for d in self.differences])


@dataclass(frozen=True)
class Part:
    """An index, a CHECK or another rule of a table, by its kind, its name and its definition.

    :param columns: of an index that is no more than these columns.
    """

    kind: str
    name: str
    definition: str
    differences: tuple[Difference, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        return gravest([d.state for d in self.differences])

    @property
    def text(self) -> str:
        return f"{self.kind} {self.definition or self.name}"


@dataclass(frozen=True)
class DrawnTable:
    """A table with all that a picture shows of it; `hidden` columns are left out of it."""

    key: Key
    kind: str
    columns: tuple[DrawnColumn, ...]
    parts: tuple[Part, ...] = ()
    differences: tuple[Difference, ...] = ()  # of the table itself, or of what it does not show
    hidden: int = 0

    @property
    def label(self) -> str:
        return label(self.key)

    @property
    def state(self) -> str:
        """The state of the table itself: missing, extra and so on."""
        return gravest([d.state for d in self.differences if d.is_of_table])

    @property
    def more(self) -> str:
        """How many columns are left out, in words; "" for none."""
        return _many(self.hidden, "more column") if self.hidden else ""

    @property
    def all_differences(self) -> tuple[Difference, ...]:
        """Its own differences, and those of its columns and parts."""
        of_columns = [d for column in self.columns for d in column.differences]
        return (*self.differences, *of_columns, *(d for part in self.parts for d in part.differences))

    def row_of(self, column: str) -> int | None:
        """Return the place of a column among those that are shown."""
        return next((number for number, each in enumerate(self.columns) if each.name == column), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "table": self.label,
            "kind": self.kind,
            "columns": [
                {"name": c.name, "type": c.type, "not_null": c.column.not_null, "default": c.column.default}
                | {"keys": list(c.keys)}
                for c in self.columns
            ],
            "parts": [{"kind": p.kind, "name": p.name, "definition": p.definition} for p in self.parts],
        }


@dataclass(frozen=True)
class Reference:
    """A reference from columns of a table to those of another one; `is_implied` where only names say so."""

    source: Key
    columns: tuple[str, ...]
    target: Key
    target_columns: tuple[str, ...]
    is_implied: bool = False
    is_unique: bool = False  # at most one row refers to each row
    is_optional: bool = False  # a row may refer to none
    state: str = ""

    @property
    def title(self) -> str:
        columns = f"{label(self.source)}({', '.join(self.columns)})"
        implied = ", implied by its name" if self.is_implied else ""
        state = f", {self.state}" if self.state else ""
        return f"{columns} refers to {label(self.target)}({', '.join(self.target_columns)}){implied}{state}"

    def to_json(self) -> dict[str, Any]:
        return {
            "from": label(self.source),
            "columns": list(self.columns),
            "to": label(self.target),
            "to_columns": list(self.target_columns),
            "implied": self.is_implied,
        }


@dataclass(frozen=True)
class Diagram:
    """A picture of a schema.

    :param database: how its outputs name the database.
    :param sources: what was drawn: the models, the database, or both.
    :param others: differences of no table that is drawn.
    :param script: what fixes the drift, as `verify --sql` prints it; "" where it was not asked for.
    """

    database: str
    sources: str
    tables: Mapping[Key, DrawnTable]
    references: tuple[Reference, ...] = ()
    others: tuple[Difference, ...] = ()
    script: str = ""
    is_compared: bool = False
    notes: tuple[str, ...] = field(default=())

    @property
    def differences(self) -> tuple[Difference, ...]:
        """All differences, the gravest first."""
        found = [*self.others, *(d for table in self.tables.values() for d in table.all_differences)]
        return tuple(sorted(found, key=lambda d: list(SIGNS).index(d.state)))

    @property
    def counts(self) -> str:
        """How many tables and references there are, in words."""
        implied = sum(reference.is_implied for reference in self.references)
        of_them = f" ({implied} implied by names)" if implied else ""
        return f"{_many(len(self.tables), 'table')}, {_many(len(self.references), 'reference')}{of_them}"

    @property
    def verdict(self) -> str:
        """How both sources compare, in words."""
        if not self.is_compared:
            return ""
        states = [difference.state for difference in self.differences]
        found = [f"{states.count(state)} {state}" for state in SIGNS if state in states]
        in_sync = not set(states) - {"extra", "accepted"}
        return ", ".join([*(["in sync"] if in_sync else []), *found])

    @property
    def captions(self) -> Iterator[str]:
        """The lines that each output begins with."""
        yield f"database: {self.database}"
        yield f"drawn from: {self.sources}"
        yield self.counts
        if self.verdict:
            yield f"differences: {self.verdict}"
        yield from (f"note: {note}" for note in self.notes)
        for difference in self.others:  # they have no place in the picture
            yield f"{difference}: {difference.note}" if difference.note else str(difference)

    def to_json(self) -> dict[str, Any]:
        differences = {"differences": [d.to_json() for d in self.differences]} if self.is_compared else {}
        return {
            "sources": self.sources,
            **({"notes": list(self.notes)} if self.notes else {}),
            "tables": [table.to_json() for table in self.tables.values()],
            "references": [reference.to_json() for reference in self.references],
            **differences,
        }


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
