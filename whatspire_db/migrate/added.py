"""What a run added to a schema, as values: each object with its SQL and its definition as it stood afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import printable
from .plan import Step
from .schema import NOTES, Column, Constraint, Index, Key, Schema, Table

# What is added by each kind of step; the other kinds finish what another one adds.
_KINDS = {
    "create_schema": "schema",
    "create_extension": "extension",
    "create_table": "table",
    "add_column": "column",
    "create_index": "index",
    "add_constraint": "constraint",
}


@dataclass(frozen=True)
class Added:
    """An object that a run added: a schema, extension, table, column, index or constraint.

    `definition` is what stood there afterwards, part by part; None where that is not known, for the run was killed.
    """

    kind: str
    table: Key
    name: str
    sql: tuple[str, ...] = ()
    definition: tuple[str, ...] | None = None

    @property
    def identity(self) -> tuple[str, Key, str]:
        """What tells one object from another, whatever its definition."""
        return self.kind, self.table, self.name

    @property
    def title(self) -> str:
        """What a message calls it."""
        table = ".".join(filter(None, self.table))
        if self.kind in ("schema", "extension"):
            return printable(f"{self.kind} {self.name}")
        return printable(f"table {table}" if self.kind == "table" else f"{self.kind} {table}.{self.name}")

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "schema": self.table[0],
            "table": self.table[1],
            "name": self.name,
            "sql": list(self.sql),
            "definition": None if self.definition is None else list(self.definition),
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Added:
        """Read what `to_json` returned.

        :raises KeyError, TypeError, ValueError: when it is something else.
        """
        texts = [found[name] for name in ("kind", "schema", "table", "name")]
        definition = found["definition"]
        texts += [*found["sql"], *(definition or ())]
        if not all(isinstance(text, str) for text in texts) or texts[0] not in _KINDS.values():
            raise TypeError
        if "\0" in "".join(texts).encode().decode():  # a surrogate is no text either, and raises a ValueError
            raise TypeError
        kind, schema, table, name = texts[:4]
        return cls(kind, (schema, table), name, tuple(found["sql"]), None if definition is None else tuple(definition))


def additions(steps: Iterable[Step], declared: Schema) -> list[Added]:
    """Return what steps add, in their order; what belongs to a new table goes with it.

    The package's own tables are left out.
    """
    keys = {".".join(filter(None, key)): key for key in declared.tables}
    steps = [step for step in steps if step.kind in _KINDS and step.table not in NOTES]
    new = {step.table for step in steps if step.kind == "create_table"}
    found: dict[tuple[str, Key, str], Added] = {}
    for step in steps:
        kind = _KINDS[step.kind]
        if kind in ("schema", "extension"):
            added = Added(kind, ("", ""), step.name, step.sql)
        elif step.table not in keys or (step.table in new and kind != "table"):
            continue  # an index on a partition goes with that on the whole table
        else:
            name = "" if kind == "table" else step.name
            added = Added(kind, keys[step.table], name, step.sql)
        found.setdefault(added.identity, added)
    return list(found.values())


def joined(first: Iterable[Added], then: Iterable[Added]) -> list[Added]:
    """Return what two runs added, each object once."""
    return list({each.identity: each for each in (*first, *then)}.values())


def described(added: Iterable[Added], live: Schema) -> list[Added]:
    """Return what was added with the definitions that stand in a live schema; None for what is not there."""
    return joined((), (_described(each, live) for each in added))


def _described(added: Added, live: Schema) -> Added:
    if added.kind in ("schema", "extension"):
        present = live.schemas if added.kind == "schema" else live.extensions
        return replace(added, definition=(added.title,) if added.name in present else None)
    table = live.tables.get(added.table)
    if table is None:
        return replace(added, definition=None)
    if added.kind == "table":
        return replace(added, definition=parts_of(table))
    if added.kind == "column":
        return replace(added, definition=column_parts(table, added.name))
    constraint = next((c for c in table.constraints if c.name == added.name), None)
    if added.kind == "constraint" and constraint is not None:  # an index can have the name of a CHECK
        return replace(added, definition=(constraint_part(constraint),))
    index = next((i for i in table.indexes if i.name == added.name), None)
    if index is None:
        return replace(added, definition=None)
    kind = "constraint" if index.constraint else "index"  # a unique one may have become a constraint
    return replace(added, kind=kind, definition=(index_part(index),))


# Parts


def parts_of(table: Table) -> tuple[str, ...]:
    """Return all that is known of a table, a text each, sorted."""
    return tuple(sorted(_parts(table)))


def _parts(table: Table) -> Iterator[str]:
    yield table.kind + (" partitioned" if table.partitioned else "")
    yield from (f"option {option}" for option in table.options)
    yield from map(column_part, table.columns.values())
    yield from map(index_part, table.indexes)
    yield from map(constraint_part, table.constraints)
    yield from (f"{kind} {name}" for kind, name in table.rules)


def column_parts(table: Table, name: str) -> tuple[str, ...] | None:
    """Return a column, and the constraints that came with it; None where there is no such column."""
    column = table.columns.get(name)
    if column is None:
        return None
    return (column_part(column), *(constraint_part(c) for c in table.constraints if _comes_with(c, name)))


def _comes_with(constraint: Constraint, column: str) -> bool:
    """Tell whether a constraint stands in the definition of a column; SQLite has no names for references."""
    is_reference = constraint.kind == "foreign_key" and not constraint.name and constraint.columns == (column,)
    return constraint.inline == column or is_reference


def column_part(column: Column) -> str:
    """Return a column in words."""
    words = [
        f"column {column.name} {column.type}",
        f"COLLATE {column.collation}" if column.collation else "",
        "NOT NULL" if column.not_null else "",
        f"DEFAULT {column.default}" if column.default is not None else "",
        f"GENERATED {column.generated}" if column.generated else "",
        f"IDENTITY {column.identity}" if column.identity else "",
    ]
    return " ".join(filter(None, words))


def index_part(index: Index) -> str:
    """Return an index in words, whether or not it is valid."""
    return f"index {index.name} {replace(index, valid=True).definition}"


def constraint_part(constraint: Constraint) -> str:
    """Return a constraint in words, whether or not it is valid."""
    return f"constraint {constraint.name} {constraint.definition}"


def counted(added: Sequence[Added]) -> dict[str, int]:
    """Return how many objects of each kind there are."""
    kinds = [each.kind for each in added]
    return {kind: kinds.count(kind) for kind in _KINDS.values() if kind in kinds}


def in_words(counts: Mapping[str, int]) -> str:
    """Return such numbers as a text: 1 table, 2 indexes."""
    plural = {"index": "indexes"}
    return ", ".join(f"{n} {kind if n == 1 else plural.get(kind, kind + 's')}" for kind, n in counts.items())
