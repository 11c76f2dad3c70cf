"""What stands in the way of an addition: taken names, missing targets, rows that violate it; each is refused."""

from __future__ import annotations

from collections.abc import Sequence

from ..ddl import quote
from ..rows import checked, number_of_rows
from ..schema import Constraint, Index, Key, label
from .draft import Draft


def title_of(key: Key, constraint: Constraint) -> str:
    """Return what a refusal calls a constraint: its table and columns."""
    return f"{label(key)} ({', '.join(constraint.columns)})"


def name_is_taken(draft: Draft, key: Key, name: str) -> bool:
    """Tell whether anything, in this table or elsewhere, already has the name of an index to be created."""
    owner = draft.live.names.get((key[0], draft.engine.fold(name)))
    if owner is None:
        return False
    reason = f"cannot create index {name} on {label(key)}: {owner} has something of that name"
    draft.refuse("create_index", key, name, reason, "give the index another name")
    return True


def constraint_is_named(draft: Draft, key: Key, name: str) -> bool:
    """Tell whether another constraint of the table already has the name of one to be added."""
    live = draft.live.tables[key]
    if name not in {c.name for c in live.constraints} | {i.name for i in live.indexes if i.constraint}:
        return False
    reason = f"cannot add constraint {name} to {label(key)}: another of that name stands there"
    draft.refuse("add_constraint", key, name, reason, "give the constraint another name")
    return True


def has_target(draft: Draft, kind: str, key: Key, constraint: Constraint) -> bool:
    """Tell whether the table is there that a reference leads to, or will be; also for what is no reference."""
    target = constraint.references
    found = draft.live.tables.get(target) if target is not None else None
    if target is None or (target in draft.declared.tables and found is None) or target in draft.live.others:
        return True
    if draft.engine.has_table(target) if found is None else found.kind == "table":
        return True
    what = "does not exist" if found is None else f"is a {found.kind}"
    hint = "give the model of that table to the migration too" if found is None else "make it a table first"
    reason = f"cannot add the foreign key {title_of(key, constraint)}: table {label(target)} {what}"
    draft.refuse(kind, key, constraint.name, reason, hint)
    return False


def is_unreachable(draft: Draft, kind: str, key: Key, constraint: Constraint) -> bool:
    """Tell whether the rows of a reference's two tables are in places that it cannot connect."""
    found = draft.placements.refuses_reference(key, constraint)
    if found:
        reason = f"cannot add the foreign key {title_of(key, constraint)}: {found.fact}"
        draft.refuse(kind, key, constraint.name, reason, found.hint)
    return found is not None


def cannot_be_unique(draft: Draft, kind: str, key: Key, name: str, columns: Sequence[str]) -> bool:
    """Tell whether a table, as it is divided into partitions or among nodes, can have no such unique key."""
    found = draft.placements.refuses_unique(key, columns)
    if found is None and draft.live.tables[key].partitioned:
        found = draft.engine.refuses_unique(key, columns)
    if found:
        reason = f"cannot make {label(key)} ({', '.join(columns)}) unique: {found.fact}"
        draft.refuse(kind, key, name, reason, found.hint)
    return found is not None


def is_violated(draft: Draft, key: Key, constraint: Constraint) -> bool:
    """Tell whether rows stand against a constraint."""
    found = draft.rows.violations(key, constraint, draft.new_columns.get(key, {}))
    if found:
        table = draft.rows.table(key)
        what, hint = {
            "check": ("violate it", f"correct them: SELECT * FROM {table} WHERE NOT {checked(constraint)}"),
            "not_null": ("have none", f"fill them: SELECT * FROM {table} WHERE {quote(constraint.columns[0])} IS NULL"),
            "foreign_key": (
                f"refer to no row of {label(constraint.references or key)}",
                "add the missing rows, or correct the references",
            ),
            "primary_key": ("have no value of their own there", "give each row its own"),
        }[constraint.kind]
        title = f"{constraint.kind.replace('_', ' ')} {title_of(key, constraint)}"
        reason = f"cannot add {title}: {number_of_rows(found)} of {number_of_rows(draft.rows.exact(key))} {what}"
        draft.refuse("add_constraint", key, constraint.name, reason, hint)
    return bool(found)


def has_duplicates(draft: Draft, key: Key, index: Index) -> bool:
    """Tell whether rows share their value in an index that is to be unique."""
    found = draft.rows.duplicates(key, index, draft.new_columns.get(key, {})) if index.unique and index.keys else 0
    if found:
        columns = ", ".join(k.expression for k in index.keys)
        written = ", ".join(quote(k.column) if k.column else k.expression for k in index.keys)
        whole = number_of_rows(draft.rows.exact(key))
        reason = f"cannot make {label(key)} ({columns}) unique: {number_of_rows(found)} of {whole} share their value"
        query = f"SELECT {written}, count(*) FROM {draft.rows.table(key)} GROUP BY {written} HAVING count(*) > 1"
        draft.refuse("create_index", key, index.name, reason, f"find them with {query}, and keep one of each")
    return bool(found)
