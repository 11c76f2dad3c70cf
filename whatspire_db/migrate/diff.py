"""Two Schemas -> Changes: what is missing, what drifted, what is extra; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from .schema import NOTES, PROOF, Column, Constraint, Difference, Index, Key, Schema, Table, label, place_of

if TYPE_CHECKING:
    from .renaming import Renaming

T = TypeVar("T", Index, Constraint)
# The kinds of drift in which texts of expressions are compared.
EXPRESSIONS = ("check", "exclude", "index", "column_generated", "column_default")


@dataclass(frozen=True)
class Missing:
    """Something declared that the live schema does not have."""

    kind: str  # schema, extension, table, column, index, constraint
    table: Key
    name: str
    item: Table | Column | Index | Constraint | None = None

    @property
    def place(self) -> str:
        """Return where it would be."""
        return place_of(self.kind, label(self.table), self.name)

    def __str__(self) -> str:
        return f"missing {self.kind} {self.place}"

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "table": label(self.table), "name": self.name}


@dataclass(frozen=True)
class Drift:
    """A difference that adding cannot mend; `live` is None where the live schema has nothing there.

    `wanted` and `got` are the declared and the live item that differ, in the table `key`.

    Where the live side is what is declared, and only not finished (INVALID, NOT VALID, a unique index that is to
    become a constraint), `unfinished` is the declared and `left` the live one: a run finishes it.
    """

    kind: str
    table: str
    name: str
    declared: str | None
    live: str | None
    key: Key | None = field(default=None, compare=False, repr=False)
    unfinished: Index | Constraint | None = field(default=None, compare=False, repr=False)
    left: Index | Constraint | None = field(default=None, compare=False, repr=False)
    wanted: Table | Column | Index | Constraint | None = field(default=None, compare=False, repr=False)
    got: Table | Column | Index | Constraint | None = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> str:
        """Return where it is."""
        return place_of(self.kind, self.table, self.name)

    def __str__(self) -> str:
        shown = f"declared {self.declared or 'none'}, live {self.live or 'none'}"
        return f"drift {self.kind} {self.place}: {shown}"

    @property
    def names(self) -> set[str]:
        """Return its name, and that of what a run finishes there."""
        return {self.name, self.left.name} if self.left else {self.name}

    @property
    def facts(self) -> Difference:
        """Return what is compared and shown, as plain values."""
        return self.kind, self.table, self.name, self.declared, self.live

    def to_json(self) -> dict[str, str | None]:
        return {
            "kind": self.kind,
            "table": self.table,
            "name": self.name,
            "declared": self.declared,
            "live": self.live,
        }


@dataclass(frozen=True)
class Extra:
    """Something in the live schema that no model declares; it is left alone."""

    kind: str
    table: str
    name: str
    key: Key | None = field(default=None, compare=False, repr=False)
    item: Column | Index | Constraint | None = field(default=None, compare=False, repr=False)

    @property
    def place(self) -> str:
        """Return where it is."""
        return place_of(self.kind, self.table, self.name)

    def __str__(self) -> str:
        why = ", of an undo that is running or was killed: it refuses values until undo is run, or it is dropped"
        why = why if self.is_proof else ""
        return f"extra {self.kind} {self.place}{why}"

    @property
    def is_proof(self) -> bool:
        """Tell whether an undo keeps values out by it: that is for its time only, and can be left by one that died."""
        return isinstance(self.item, Constraint) and self.item.kind == "check" and self.name.startswith(PROOF)

    def to_json(self) -> dict[str, str]:
        return {"kind": self.kind, "table": self.table, "name": self.name}


@dataclass
class Changes:
    """The differences between the declared and the live schema; falsy when there are none.

    `accepted` is drift that the settings accept, and `outdated` what they accept and is not there.
    """

    missing: list[Missing] = field(default_factory=list)
    drift: list[Drift] = field(default_factory=list)
    extra: list[Extra] = field(default_factory=list)
    accepted: list[Drift] = field(default_factory=list)
    outdated: list[Difference] = field(default_factory=list)
    renamed: list[Renaming] = field(default_factory=list)  # missing columns that may be extra ones

    def __bool__(self) -> bool:
        return bool(self.missing or self.drift)

    def accepting(self, differences: Sequence[Difference]) -> Changes:
        """Return the changes without the drift that is exactly one of some differences."""
        found = {d.facts for d in self.drift}
        return replace(
            self,
            drift=[d for d in self.drift if d.facts not in differences],
            accepted=[d for d in self.drift if d.facts in differences],
            outdated=[difference for difference in differences if difference not in found],
        )

    def by_text_alone(self) -> set[Key]:
        """Return the tables whose expressions differ as they are written, and perhaps not in what they mean."""
        drifted = {d.key for d in self.drift if d.key and d.kind in EXPRESSIONS}
        return drifted | {m.table for m in self.missing if isinstance(m.item, Index | Constraint) and m.item.is_text}


def diff(declared: Schema, live: Schema, constraints_can_be_added: bool) -> Changes:
    """Compare two snapshots of the same engine.

    :param constraints_can_be_added: whether the engine adds a constraint to a table that stands; where
        it does not, one that comes with a new column is missing and any other is drift.
    """
    changes = Changes()
    changes.missing += [Missing("schema", (s, ""), s) for s in sorted(declared.schemas - live.schemas)]
    changes.missing += [Missing("extension", ("", ""), e) for e in sorted(declared.extensions - live.extensions)]
    for key, table in declared.tables.items():
        found = live.tables.get(key)
        if found is None:
            changes.missing.append(Missing("table", key, key[1], table))
        elif found.kind != table.kind:
            drift = Drift("table", label(key), label(key), table.kind, found.kind, key, wanted=table, got=found)
            changes.drift.append(drift)
        elif found is not table:  # as it is where the engine told the same of both
            _diff_table(table, found, changes, constraints_can_be_added)
    others = (key for key in live.others if key not in declared.tables and key[1] not in NOTES[1:])
    changes.extra += [Extra("table", label(key), key[1]) for key in others]
    return changes


def _diff_table(declared: Table, live: Table, changes: Changes, constraints_can_be_added: bool) -> None:
    name = label(declared.key)
    if declared.by_name:
        return _diff_names(declared, live, changes)
    if declared.options != live.options:
        wanted, got = (", ".join(t.options) or "plain" for t in (declared, live))
        changes.drift.append(Drift("table", name, name, wanted, got, declared.key, wanted=declared, got=live))
    new = declared.columns.keys() - live.columns.keys()
    for column in declared.columns.values():
        if column.name in new:
            changes.missing.append(Missing("column", declared.key, column.name, column))
        else:
            changes.drift += _diff_column(declared.key, column, live.columns[column.name])
    extra = [c for c in live.columns.values() if c.name not in declared.columns]
    changes.extra += [Extra("column", name, c.name, live.key, c) for c in extra]
    changes.extra += [Extra(kind, name, title) for kind, title in live.rules if (kind, title) not in declared.rules]
    _diff_indexes(declared, live, changes)
    return _diff_constraints(declared, live, changes, new, constraints_can_be_added)


def _diff_names(declared: Table, live: Table, changes: Changes) -> None:
    """Compare what is known of a table without the engine's help: names, and which columns are NOT NULL."""
    for column in declared.columns.values():
        found = live.columns.get(column.name)
        if found is None:
            changes.missing.append(Missing("column", declared.key, column.name, column))
        elif found.not_null != column.not_null:
            shown = ("column_null", label(declared.key), column.name, column.nullability, found.nullability)
            changes.drift.append(Drift(*shown, declared.key, wanted=column, got=found))
    names = {index.name for index in live.indexes}
    changes.missing += [Missing("index", declared.key, i.name, i) for i in declared.indexes if i.name not in names]


def _diff_column(key: Key, declared: Column, live: Column) -> Iterator[Drift]:
    compared = [
        ("column_type", declared.type, live.type),
        ("column_null", declared.nullability, live.nullability),
        ("column_default", declared.default, live.default),
        ("column_collation", declared.collation, live.collation),
        ("column_generated", declared.generated, live.generated),
        ("column_identity", declared.identity, live.identity),
    ]
    is_retyped = declared.type != live.type
    for kind, wanted, got in compared:
        if kind == "column_default" and is_retyped and declared.is_serial and live.is_serial:
            continue  # how far its sequence goes, depends on the type
        if wanted != got:
            drift = Drift(kind, label(key), declared.name, wanted, got, key, wanted=declared, got=live)
            is_unproved = kind == "column_null" and declared.not_null and live.not_null
            yield replace(drift, unfinished=_not_null(live), left=_not_null(live)) if is_unproved else drift


def _not_null(column: Column) -> Constraint:
    return Constraint(column.not_null_name, "not_null", f"NOT NULL {column.name}", (column.name,), valid=False)


def _match(declared: Sequence[T], live: Sequence[T], *rules: Callable[[T, T], bool]) -> Iterator[tuple[T, T | None]]:
    """Pair each declared item with a live one, each used once, by the first rule that finds one."""
    free = list(live)
    pairs: dict[int, T] = {}
    for rule in rules:
        for position, wanted in enumerate(declared):
            found = next((item for item in free if position not in pairs and rule(wanted, item)), None)
            if found is not None:
                pairs[position] = found
                free.remove(found)
    for position, wanted in enumerate(declared):
        yield wanted, pairs.get(position)


def _does_the_same(wanted: Index, got: Index) -> bool:
    # A UNIQUE constraint does all that a unique index does; a deferrable one does not.
    as_good = not wanted.constraint and got.constraint == "UNIQUE"
    same_options = not wanted.options or wanted.options == got.options
    return wanted.shape == got.shape and (wanted.constraint == got.constraint or as_good) and same_options and got.valid


def _can_be_finished(wanted: Index, got: Index) -> bool:
    if not _named_alike(wanted, got) or wanted.shape != got.shape or wanted.options != got.options:
        return False
    if got.valid:
        return bool(wanted.constraint and not got.constraint)
    return not got.constraint


def _diff_indexes(declared: Table, live: Table, changes: Changes) -> None:
    name = label(declared.key)
    matched: list[Index] = []
    pairs = _match(
        # One without a name is matched by its shape alone: it comes first, so that none with a name takes its match.
        sorted(declared.indexes, key=lambda index: bool(index.name)),
        live.indexes,
        lambda a, b: a.name == b.name and _does_the_same(a, b),
        _does_the_same,
        _named_alike,
        lambda a, b: a.shape == b.shape and bool(a.constraint),
    )
    for wanted, got in pairs:
        if got is None:
            changes.missing.append(Missing("index", declared.key, wanted.title, wanted))
            continue
        matched.append(got)
        if not _does_the_same(wanted, got):
            shown = ("index", name, wanted.title, wanted.definition, got.definition)
            drift = Drift(*shown, declared.key, wanted=wanted, got=got)
            if _can_be_finished(wanted, got):
                drift = replace(drift, unfinished=wanted, left=got)
            changes.drift.append(drift)
    left = [i for i in live.indexes if i not in matched]
    changes.extra += [Extra("index", name, i.title, live.key, i) for i in left]


def _same_reference(a: Constraint, b: Constraint) -> bool:
    """Tell whether two references lead from the same columns to the same table: a column can have several."""
    return a.kind == b.kind == "foreign_key" and _same_columns(a, b) and a.references == b.references


def _same_place(a: Constraint, b: Constraint) -> bool:
    """Constraints that are each other's changed form: a table has one primary key, a column one reference."""
    if a.kind != b.kind:
        return False
    return a.kind == "primary_key" or (a.kind == "foreign_key" and _same_columns(a, b)) or _named_alike(a, b)


def _same_columns(a: Constraint, b: Constraint) -> bool:
    return sorted(a.columns) == sorted(b.columns)


def _named_alike(a: T, b: T) -> bool:
    return bool(a.name) and a.name == b.name


def _diff_constraints(
    declared: Table, live: Table, changes: Changes, new: Iterable[str], constraints_can_be_added: bool
) -> None:
    name, new = label(declared.key), set(new)
    matched: list[Constraint] = []
    pairs = _match(
        declared.constraints,
        live.constraints,
        lambda a, b: a.means(b) and a.name == b.name,
        Constraint.means,
        _same_reference,
        _same_place,
        lambda a, b: not constraints_can_be_added and a.kind == b.kind == "check" and a.columns == b.columns,
    )
    for wanted, got in pairs:
        title = wanted.name or ", ".join(wanted.columns)
        if got is not None:
            matched.append(got)
            is_same = wanted.means(got)
            if not is_same or wanted.valid != got.valid:
                drift = Drift(wanted.kind, name, title, wanted.shown, got.shown, declared.key, wanted=wanted, got=got)
                if is_same and wanted.valid and not got.has_index:
                    drift = replace(drift, unfinished=wanted, left=got)
                changes.drift.append(drift)
        elif wanted.optional:
            continue
        elif constraints_can_be_added or new.intersection(wanted.columns):
            changes.missing.append(Missing("constraint", declared.key, title, wanted))
        else:
            changes.drift.append(Drift(wanted.kind, name, title, wanted.shown, None, declared.key, wanted=wanted))
    left = [c for c in live.constraints if c not in matched]
    changes.extra += [Extra("constraint", name, c.name or c.definition, live.key, c) for c in left]
