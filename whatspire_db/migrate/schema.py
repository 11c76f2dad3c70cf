"""Value types of a schema, declared or live: Schema, Table, Column, Index, Constraint; no peewee."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import printable
from ..light_stdlib import dataclass, field, replace

# (schema, name); the schema is "" for the one that unqualified names mean.
Key = tuple[str, str]
# What drifted: kind, table, name, declared, live.
Difference = tuple[str, str, str, str | None, str | None]


# Tables of this package that no model of the user's stands for: the recorded runs, and what each of them added.
HISTORY_TABLE, RUNS_TABLE = "migration_versions", "whatspire_db_runs"
# What the package notes, beside the rows that a database is for: runs, data migrations, transfers.
DATA_TABLE, TRANSFERS_TABLE = "whatspire_db_data_migrations", "whatspire_db_transfers"
NOTES = (HISTORY_TABLE, RUNS_TABLE, DATA_TABLE, TRANSFERS_TABLE)
PROOF = "whatspire_db_undo"  # how the constraints begin by which an undo proves that nothing is lost


class OwnSequence(str):
    """The default of a serial column, as messages show it: the next value of a sequence that is the column's own."""


SERIAL = OwnSequence("next of its own sequence")


_TO_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def folded_ascii(name: str) -> str:
    """Return a name in lower case, ASCII letters alone: to SQLite "Ö" and "ö" are two names."""
    return name.lower() if name.isascii() else name.translate(_TO_LOWER)


def label(key: Key) -> str:
    """Return a table's name as a user writes it."""
    return ".".join(filter(None, key))


def place_of(kind: str, table: str, name: str) -> str:
    """Return where a thing of a kind is, in one line: a table is its own place, a column may be named like it."""
    is_own = kind.endswith(("table", "schema", "extension"))
    return printable(table or name if is_own else ".".join(filter(None, (table, name))))


@dataclass(frozen=True)
class Column:
    """A column; every text is the engine's own canonical form. None is: not known, not compared."""

    name: str
    type: str | None
    not_null: bool
    default: str | None = None
    collation: str | None = None  # where it is not the type's own
    generated: str | None = None  # STORED (expression) or VIRTUAL (expression)
    identity: str | None = None
    not_null_valid: bool = True
    not_null_name: str = ""  # of the constraint that is NOT VALID

    @property
    def is_serial(self) -> bool:
        """Return whether the default is the next value of the column's own sequence."""
        return isinstance(self.default, OwnSequence)

    @property
    def fills_rows(self) -> bool:
        """Tell whether a row that is there already gets a value when the column is added."""
        has_default = self.default is not None and not re.fullmatch(r"NULL(::.*)?", self.default, re.IGNORECASE)
        return has_default or self.generated is not None or self.identity is not None

    @property
    def nullability(self) -> str:
        return ("NOT NULL" + ("" if self.not_null_valid else " NOT VALID")) if self.not_null else "NULL"


@dataclass(frozen=True)
class IndexKey:
    """One key of an index: a column's name or an expression, and how it is sorted."""

    expression: str
    collation: str = ""  # "" is the default
    opclass: str = ""  # "" is the type's default
    order: str = ""  # "" is ascending, NULLs where the engine puts them
    column: str | None = None  # its name, where it is a plain column

    def __str__(self) -> str:
        collation = f"COLLATE {self.collation}" if self.collation else ""
        return " ".join(filter(None, [self.expression, collation, self.opclass, self.order]))


@dataclass(frozen=True)
class Index:
    """An index, UNIQUE constraints included: these are indexes with `constraint` set."""

    name: str
    keys: tuple[IndexKey, ...]
    unique: bool = False
    method: str = ""
    include: tuple[str, ...] = ()
    predicate: str | None = None
    nulls_not_distinct: bool = False
    constraint: str = ""  # "UNIQUE", with its deferrability
    options: tuple[str, ...] = ()  # storage parameters
    valid: bool = True

    def _words(self) -> list[str]:
        return [
            "UNIQUE" if self.unique else "",
            self.method,
            f"({', '.join(map(str, self.keys))})",
            f"INCLUDE ({', '.join(self.include)})" if self.include else "",
            "NULLS NOT DISTINCT" if self.nulls_not_distinct else "",
            f"WHERE {self.predicate}" if self.predicate else "",
        ]

    @property
    def shape(self) -> str:
        """What the index is, whatever its name: two of one shape do the same."""
        return " ".join(filter(None, self._words()))

    @property
    def definition(self) -> str:
        marks = [
            f"WITH ({', '.join(self.options)})" if self.options else "",
            "" if self.valid else "INVALID",
            f"as constraint {self.constraint}" if self.constraint else "",
        ]
        return " ".join(filter(None, [self.shape, *marks]))

    @property
    def is_text(self) -> bool:
        """Tell whether an expression is part of it."""
        return self.predicate is not None or any(key.column is None for key in self.keys)

    @property
    def title(self) -> str:
        return self.name or self.shape

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(key.column for key in self.keys if key.column is not None)


@dataclass(frozen=True)
class Constraint:
    """A PRIMARY KEY, FOREIGN KEY, CHECK or EXCLUDE constraint; NOT NULL stands with the column."""

    name: str
    kind: str  # primary_key, foreign_key, check, exclude; not_null for one that is NOT VALID
    definition: str  # canonical, without NOT VALID
    columns: tuple[str, ...]
    valid: bool = True
    sql: str = ""  # as it was written, where that is not the canonical form
    references: Key | None = None
    referenced_columns: tuple[str, ...] = ()
    inline: str | None = None  # the column in whose definition it stands
    optional: bool = False  # a reference in a cycle, which peewee creates only when asked: compared where it is
    tail: str = ""  # what follows the columns in the definition of a reference

    @property
    def has_index(self) -> bool:
        """Tell whether an index of its name comes with it, on an engine that names it."""
        return self.kind in ("primary_key", "exclude") and bool(self.name)

    @property
    def is_text(self) -> bool:
        """Tell whether an expression is part of it."""
        return self.kind in ("check", "exclude")

    def means(self, other: Constraint) -> bool:
        """Tell whether another one does the same: the order of the pairs in a reference means nothing."""
        if self.kind != other.kind:
            return False
        if self.definition == other.definition:
            return True
        return bool(self._pairs) and self._reference == other._reference

    @property
    def _reference(self) -> tuple[object, ...]:
        return self._pairs, self.references, self.tail

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        has_all = self.kind == "foreign_key" and len(self.columns) == len(self.referenced_columns)
        return sorted(zip(self.columns, self.referenced_columns, strict=True)) if has_all else []

    @property
    def shown(self) -> str:
        return self.definition + ("" if self.valid else " NOT VALID")


@dataclass(frozen=True)
class Table:
    """A table with all that is compared. `rows` is the catalog's estimate, where there is one.

    `rules` are things by kind and name that no model declares and that can change or reject its rows: triggers,
    policies, the bounds of a partition.
    """

    key: Key
    kind: str = "table"
    columns: Mapping[str, Column] = field(default_factory=dict)
    indexes: tuple[Index, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    options: tuple[str, ...] = ()
    rows: int | None = None
    partitioned: bool = False
    by_name: bool = False  # a declared table of which the names are known and no more
    rules: tuple[tuple[str, str], ...] = ()
    parents: tuple[Key, ...] = ()  # tables whose columns it has too

    @property
    def is_partition(self) -> bool:
        return any(kind == "partition" for kind, _ in self.rules)


@dataclass(frozen=True)
class Schema:
    """All tables that were asked for, and the names of everything else.

    `names` are the relations of each schema, which an index cannot be named like; `others` the tables
    that were not asked for.
    """

    tables: Mapping[Key, Table]
    names: Mapping[Key, str] = field(default_factory=dict)  # relation -> the table that it belongs to
    others: tuple[Key, ...] = ()
    schemas: frozenset[str] = frozenset({""})
    extensions: frozenset[str] = frozenset()
    unproved: tuple[str, str] | None = None  # why a declared schema holds names alone, and what to do about it

    def merge(self, other: Schema) -> Schema:
        """Return the schema that holds what both hold."""
        return replace(
            self,
            tables={**self.tables, **other.tables},
            names={**self.names, **other.names},
            others=self.others + other.others,
            schemas=self.schemas | other.schemas,
            extensions=self.extensions | other.extensions,
        )
