"""A schema and its differences -> a Diagram; which of its tables are shown; pure."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import ConfigError
from ..migrate.schema import Column, Constraint, Index, Key, Schema, Table, folded_ascii, label
from .values import Diagram, Difference, DrawnColumn, DrawnTable, Part, Reference, gravest

# Types of numbers that keys have; an array, a range, an interval or a point is none.
_NUMBER = re.compile(
    r"(unsigned )?(tiny|small|medium|big |big)?(int|integer|serial|numeric|decimal|number)[248]?( unsigned)?"
)


def diagram_of(schema: Schema, database: str, sources: str, differences: Iterable[Difference] | None = None) -> Diagram:
    """Return the picture of a schema.

    :param differences: what differs between both sources; None where there is one alone.
    """
    of_table: dict[Key, list[Difference]] = defaultdict(list)
    for difference in differences or ():
        of_table[difference.table].append(difference)
    references = tuple(_references(schema, of_table))
    drawn = {key: _drawn(table, references, of_table.pop(key, [])) for key, table in schema.tables.items()}
    others = tuple(difference for left in of_table.values() for difference in left)
    return Diagram(database, sources, drawn, references, others, is_compared=differences is not None)


def _drawn(table: Table, references: Sequence[Reference], differences: Sequence[Difference]) -> DrawnTable:
    own = {(r.columns, r.target) for r in references if r.source == table.key}
    declared = [constraint for constraint in table.constraints if constraint.kind == "foreign_key"]
    referring = {column for columns in (*(c for c, _ in own), *(c.columns for c in declared)) for column in columns}
    keys = {name: tuple(_keys_of(name, table, referring)) for name in table.columns}
    left = list(differences)

    def taken(names: Iterable[str], prefix: Sequence[str]) -> tuple[Difference, ...]:
        found = [d for d in left if d.name in names and d.kind.startswith(tuple(prefix))]
        left[:] = [d for d in left if d not in found]
        return tuple(found)

    columns = tuple(DrawnColumn(c, keys[c.name], taken([c.name], ["column"])) for c in table.columns.values())
    parts = [_of_index(i, taken([i.title], ["index"])) for i in table.indexes]
    others = ("check", "exclude", "constraint", "foreign_key", "primary_key", "not_null")
    parts += [_of_constraint(c, taken(_names_of(c), others)) for c in table.constraints if _is_shown(c, own)]
    parts += [Part(d.kind.replace("_", " "), d.name, d.name, (d,)) for d in left if not d.is_of_table]
    return DrawnTable(table.key, table.kind, columns, tuple(parts), tuple(d for d in left if d.is_of_table))


def _names_of(constraint: Constraint) -> list[str]:
    return [constraint.name or ", ".join(constraint.columns), constraint.definition]


def _is_shown(constraint: Constraint, lines: Container[tuple[tuple[str, ...], Key]]) -> bool:
    """Tell whether a table lists a constraint: a reference to a table that is not there has no line."""
    if constraint.kind == "foreign_key":
        return constraint.references is None or (constraint.columns, constraint.references) not in lines
    return constraint.kind != "primary_key"


def _of_index(index: Index, differences: tuple[Difference, ...]) -> Part:
    is_plain = index.predicate is None and not index.include and all(str(key) == key.column for key in index.keys)
    kind, definition = "unique" if index.unique else "index", index.shape.removeprefix("UNIQUE ")
    return Part(kind, index.name, definition, differences, index.columns if is_plain else ())


def _of_constraint(constraint: Constraint, differences: tuple[Difference, ...]) -> Part:
    definition = constraint.shown
    kind = constraint.kind.replace("_", " ")
    if definition.lower().startswith(kind):
        definition = definition[len(kind) :].strip()
    return Part(kind, constraint.name, definition, differences)


def _keys_of(column: str, table: Table, referring: Iterable[str]) -> Iterator[str]:
    if column in _primary_key(table):
        yield "PK"
    if column in referring:
        yield "FK"
    if _is_unique((column,), table) and (column,) != _primary_key(table):
        yield "UQ"


def _primary_key(table: Table) -> tuple[str, ...]:
    return next((c.columns for c in table.constraints if c.kind == "primary_key"), ())


def _is_unique(columns: tuple[str, ...], table: Table) -> bool:
    unique = [i.columns for i in table.indexes if i.unique and i.predicate is None and len(i.columns) == len(i.keys)]
    return columns in (_primary_key(table), *unique)


# References


def _references(schema: Schema, differences: Mapping[Key, Sequence[Difference]]) -> Iterator[Reference]:
    for table in schema.tables.values():
        declared = [c for c in table.constraints if c.kind == "foreign_key" and c.references]
        found: set[tuple[str, ...]] = set()
        for constraint in declared:
            assert constraint.references is not None
            target = constraint.references
            there = constraint.referenced_columns or (
                _primary_key(schema.tables[target]) if target in schema.tables else ()
            )
            names = _names_of(constraint)
            kinds = ("constraint", "foreign_key")
            state = gravest([d.state for d in differences.get(table.key, ()) if d.name in names and d.kind in kinds])
            found.add(constraint.columns)
            if target in schema.tables:
                yield _reference(table, constraint.columns, target, there, state=state)
        referring = {column for columns in found for column in columns}
        for column in table.columns.values():
            if column.name not in referring and (implied := _implied(table, column, schema)):
                yield implied


def _reference(
    table: Table,
    columns: tuple[str, ...],
    target: Key,
    there: tuple[str, ...],
    *,
    implied: bool = False,
    state: str = "",
) -> Reference:
    optional = any(not table.columns[name].not_null for name in columns if name in table.columns)
    return Reference(table.key, columns, target, there, implied, _is_unique(columns, table), optional, state)


def _implied(table: Table, column: Column, schema: Schema) -> Reference | None:
    """Return the reference that a column's name implies: session_id refers to the key of sessions."""
    name = folded_ascii(column.name)
    if not name.endswith("_id") or len(name) == len("_id"):
        return None
    stem = name.removesuffix("_id")
    wanted = [f"{stem}s", f"{stem}es", f"{stem[:-1]}ies" if stem.endswith("y") else "", stem]
    named = [key for key in schema.tables if key[0] == table.key[0]]
    # On PostgreSQL names can differ in case alone: the one that is written the same comes first.
    by_name = {folded_ascii(key[1]): key for key in named} | {key[1]: key for key in named}
    for each in filter(None, wanted):
        key = by_name.get(each)
        primary = _primary_key(schema.tables[key]) if key else ()
        if key and len(primary) == 1 and _are_alike(column, schema.tables[key].columns[primary[0]]):
            return (
                None
                if key == table.key and primary[0] == column.name
                else _reference(table, (column.name,), key, primary, implied=True)
            )
    return None


def _are_alike(column: Column, key: Column) -> bool:
    """Tell whether both columns are numbers, or neither is; a type that is not known fits each."""
    if column.type is None or key.type is None:
        return True
    return _is_number(column.type) == _is_number(key.type)


def _is_number(kind: str) -> bool:
    return _NUMBER.fullmatch(re.sub(r"\s*\(.*?\)", "", kind.lower()).strip()) is not None


# Which tables are shown


def chosen(diagram: Diagram, patterns: Sequence[str], neighbours: int = 0) -> Diagram:
    """Return the part of a picture that patterns name, with the tables within so many references of them.

    :raises ConfigError: when a pattern names no table.
    """
    if not patterns:
        return diagram
    keys: set[Key] = set()
    for pattern in patterns:
        found = {key for key in diagram.tables if _is_named(key, pattern)}
        if not found:
            raise ConfigError(f"--tables: no table matches {pattern}", _near(pattern, diagram.tables))
        keys |= found
    for _ in range(neighbours):
        keys |= {end for r in diagram.references if keys & {r.source, r.target} for end in (r.source, r.target)}
    tables = {key: table for key, table in diagram.tables.items() if key in keys}
    references = tuple(r for r in diagram.references if r.source in keys and r.target in keys)
    return replace(diagram, tables=tables, references=references)


def _is_named(key: Key, pattern: str) -> bool:
    """Tell whether a pattern names a table; one that is its name does, whatever signs are in it."""
    wanted = folded_ascii(pattern)
    return any(name == wanted or fnmatch.fnmatchcase(name, wanted) for name in map(folded_ascii, (key[1], label(key))))


def _near(pattern: str, tables: Iterable[Key]) -> str:
    from difflib import get_close_matches  # only for a mistake

    names = [label(key) for key in tables]
    near = get_close_matches(pattern, names, 3)
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names[:10]) or 'no tables'}"


def keys_alone(diagram: Diagram) -> Diagram:
    """Return a picture that shows of each table only the columns of keys, and what differs."""
    referred: dict[Key, set[str]] = defaultdict(set)
    for reference in diagram.references:
        referred[reference.target].update(reference.target_columns)
    return replace(
        diagram, tables={key: _with_keys_alone(table, referred[key]) for key, table in diagram.tables.items()}
    )


def _with_keys_alone(table: DrawnTable, referred: set[str]) -> DrawnTable:
    kept = tuple(c for c in table.columns if c.keys or c.differences or c.name in referred)
    parts = tuple(part for part in table.parts if part.differences or part.kind == "foreign key")
    return replace(table, columns=kept, parts=parts, hidden=len(table.columns) - len(kept))
