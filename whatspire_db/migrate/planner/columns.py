"""Missing columns -> steps, with the constraints that some engines take only as part of a new column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .. import ddl
from ..costs import Cost, Size
from ..ddl import quote
from ..rows import number_of_rows
from ..schema import Column, Constraint, Key, Table, label
from .draft import Draft
from .obstacles import has_target, is_violated, title_of


def add_columns(draft: Draft, key: Key, columns: Mapping[str, Column]) -> None:
    """Add columns to a table that stands: each after those that it needs, or refused with the way around."""
    model, table = draft.models[key], draft.declared.tables[key]
    fields = {draft.engine.fold(f.column_name): f for f in model._meta.sorted_fields}
    rows = draft.rows.any(key)
    inherited = {name for parent in draft.live.tables[key].parents for name in draft.new_columns.get(parent, ())}
    own = [column for column in columns.values() if column.name not in inherited]  # the others come with the parent's
    ordered, circle = _in_order(table, sorted(own, key=lambda column: column.generated is not None))
    if not draft.engine.constraints_can_be_added:
        _refuse_circle(draft, key, circle)
    allowed = [c for c in (*ordered, *circle) if not _refuses_column(draft, key, table, c, rows)]
    rewriting = draft.engine.rewriting(model, allowed) if rows and allowed and not table.by_name else set()
    in_order = {column.name: column for column in (*ordered, *circle)}
    attached = {} if draft.engine.constraints_can_be_added else _attached(draft, table, in_order)
    for column in allowed:
        if column.name in rewriting and draft.is_large(key):
            _refuse_rewrite(draft, key, column)
            continue
        if draft.engine.constraints_can_be_added and not table.by_name:
            sql = ddl.add_canonical_column(draft.db, model, column)
        else:
            sql = ddl.add_declared_column(draft.db, model, fields[column.name], attached.get(column.name, ()))
        cost = Cost("rewrites" if column.name in rewriting else "instant", draft.size(key) if rows else Size(0))
        draft.add("add_column", key, column.name, draft.engine.within(key[0], sql), cost)


def _refuse_rewrite(draft: Draft, key: Key, column: Column) -> None:
    name, count = f"{label(key)}.{column.name}", draft.size(key)
    if column.generated:
        hint = "declare it VIRTUAL (from version 18 on), or add a plain column and let a trigger fill it"
    elif column.identity or column.is_serial:
        hint = "add a plain column, fill it in batches, then give it its sequence by hand"
    else:
        hint = (
            "declare it null=True and without the default, fill it in batches, then set the default: "
            f"ALTER TABLE {draft.rows.table(key)} ALTER {quote(column.name)} SET DEFAULT {column.default}"
        )
    reason = f"cannot add column {name}: it would rewrite {count} under ACCESS EXCLUSIVE"
    more = f"; or raise WHATSAPP_DATABASE_MIGRATION_ONLINE_ROWS over {draft.online_rows} in a quiet hour"
    draft.refuse("add_column", key, column.name, reason, hint + more)


def _refuses_column(draft: Draft, key: Key, table: Table, column: Column, rows: bool) -> bool:
    if table.by_name:
        return False  # what it is exactly is not known
    name = f"{label(key)}.{column.name}"
    if draft.live.tables[key].is_partition:
        parent = label(draft.live.tables[key].parents[0])
        reason = f"cannot add column {name}: the table is a partition of {parent}"
        draft.refuse("add_column", key, column.name, reason, f"add it to the model of {parent}, which hands it down")
        return True
    is_key = any(c.kind == "primary_key" and column.name in c.columns for c in table.constraints)
    refused = draft.placements.refuses_column(key, column) or draft.engine.refuses_column(
        draft.models[key], column, rows, is_key
    )
    if refused:
        draft.refuse("add_column", key, column.name, f"cannot add column {name}: {refused.fact}", refused.hint)
        return True
    if column.not_null and not column.fills_rows and rows:
        count = number_of_rows(draft.rows.exact(key))
        reason = f"cannot add column {name}: NOT NULL without a default, and the table has {count}"
        hint = (
            'give it a database default (constraints=[SQL("DEFAULT ...")]; a default in Python is not one), '
            "or null=True and fill it in a data migration"
        )
        draft.refuse("add_column", key, column.name, reason, hint)
        return True
    if not (column.not_null and column.generated and rows):
        return False
    empty = draft.rows.nulls(key, column, draft.new_columns[key])
    if empty:
        reason = f"cannot add column {name}: NOT NULL, and its expression is NULL for {number_of_rows(empty)}"
        draft.refuse("add_column", key, column.name, reason, "declare it null=True, or correct those rows")
    return bool(empty)


def _in_order(table: Table, columns: Sequence[Column]) -> tuple[list[Column], list[Column]]:
    """Put new columns behind those that their own CHECKs name; return also those that name each other in a circle."""
    new = {column.name for column in columns}
    needs = {name: {c for check in table.constraints if check.inline == name for c in check.columns} for name in new}
    ordered: list[Column] = []
    left = list(columns)
    while ready := [c for c in left if needs[c.name] & new <= {c.name, *(one.name for one in ordered)}]:
        ordered += ready
        left = [column for column in left if column not in ready]
    return ordered, left


def _refuse_circle(draft: Draft, key: Key, columns: Sequence[Column]) -> None:
    for column in columns:
        others = ", ".join(other.name for other in columns if other is not column)
        reason = f"cannot add column {label(key)}.{column.name}: its CHECK and those of {others} name each other"
        draft.refuse("add_column", key, column.name, reason, "write them as constraints of the table")


def _attached(draft: Draft, table: Table, new: Mapping[str, Column]) -> dict[str, list[str]]:
    """Return the constraints that come with new columns, for an engine that adds none by itself, by column."""
    attached: dict[str, list[str]] = {}
    for item in draft.of_kind("constraint"):
        constraint = item.item
        if item.table != table.key or not isinstance(constraint, Constraint):
            continue
        if constraint.inline in new:
            is_violated(draft, table.key, constraint)
            continue
        if constraint.kind == "check" and is_violated(draft, table.key, constraint):
            continue
        last = [name for name in new if name in constraint.columns][-1]
        name = f"CONSTRAINT {quote(constraint.name)} " if constraint.name else ""
        if constraint.kind == "check" or (
            constraint.kind == "foreign_key" and _can_attach(draft, table.key, constraint, new[last])
        ):
            attached.setdefault(last, []).append(name + constraint.sql)
    return attached


def _can_attach(draft: Draft, key: Key, constraint: Constraint, column: Column) -> bool:
    """Tell whether a reference can come with a new column; refuse it where not."""
    refused = draft.engine.refuses_reference(constraint, column, title_of(key, constraint))
    if refused:
        draft.refuse("add_constraint", key, constraint.name, refused.fact, refused.hint)
        return False
    return has_target(draft, "add_constraint", key, constraint)
