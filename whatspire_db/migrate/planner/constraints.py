"""Missing constraints -> steps: whole, or on a large table for new rows at once and for those there are online."""

from __future__ import annotations

from .. import ddl
from ..costs import INSTANT
from ..ddl import quote
from ..schema import Constraint, Key, label
from .draft import Draft
from .obstacles import (
    cannot_be_unique,
    constraint_is_named,
    has_target,
    is_unreachable,
    is_violated,
    name_is_taken,
    title_of,
)


def add_constraint(draft: Draft, key: Key, constraint: Constraint) -> None:
    """Add a constraint to a table that stands, or refuse it."""
    if not has_target(draft, "add_constraint", key, constraint) or _is_misplaced(draft, key, constraint):
        return
    if is_violated(draft, key, constraint):
        return
    if constraint_is_named(draft, key, constraint.name):
        return
    if constraint.has_index and name_is_taken(draft, key, constraint.name):
        return
    _add_checked(draft, key, constraint)


def _is_misplaced(draft: Draft, key: Key, constraint: Constraint) -> bool:
    """Tell whether the places of the rows forbid a constraint."""
    if constraint.kind in ("primary_key", "exclude"):
        return cannot_be_unique(draft, "add_constraint", key, constraint.name, constraint.columns)
    return is_unreachable(draft, "add_constraint", key, constraint)


def _add_checked(draft: Draft, key: Key, constraint: Constraint) -> None:
    """Add a constraint, on a large table in two steps: for new rows at once, for those there are online."""
    target = constraint.references
    is_reference = constraint.kind == "foreign_key"
    targets = [target] if target in draft.live.tables and target is not None else []
    large = any(draft.is_large(k) for k in [key, *targets])
    # A reference of a partitioned table can be NOT VALID from version 18 on alone.
    whole = constraint.has_index or (is_reference and draft.live.tables[key].partitioned)
    lock = draft.engine.lock_of("add_foreign_key" if is_reference else "add_constraint")
    is_unasked = constraint.definition.endswith("NOT ENFORCED")
    if large and whole and not is_unasked:
        _refuse_scan(draft, key, constraint, lock)
        return
    waits = is_reference and not draft.being_built().isdisjoint(map(label, targets))
    in_two = (large or waits) and not (whole or is_unasked)
    sql = ddl.add_constraint(
        draft.db, draft.models[key], constraint.name, constraint.sql + (" NOT VALID" if in_two else "")
    )
    # A reference names its target in full; other definitions are written as seen from the table's schema.
    within = (sql,) if is_reference else draft.engine.within(key[0], sql)
    cost = INSTANT if in_two or is_unasked else draft.scans(key)
    draft.add("add_constraint", key, constraint.name, within, cost, lock=lock, targets=targets, online=waits)
    if in_two:
        validate(draft, key, constraint.name)


def validate(draft: Draft, key: Key, name: str) -> None:
    """Have the rows that are there checked, online."""
    sql = f"ALTER TABLE {draft.rows.table(key)} VALIDATE CONSTRAINT {quote(name)}"
    draft.add("validate_constraint", key, name, [sql], draft.scans(key, online=True), online=True)


def _refuse_scan(draft: Draft, key: Key, constraint: Constraint, lock: str) -> None:
    what, columns = constraint.kind.replace("_", " "), ", ".join(map(quote, constraint.columns))
    reason = f"cannot add {what} {title_of(key, constraint)}: it would scan {draft.size(key)} under {lock}"
    hint = f"add it by hand in a quiet hour: ALTER TABLE {draft.rows.table(key)} ADD {constraint.definition}"
    if constraint.kind == "primary_key":
        table, name = draft.rows.table(key), quote(constraint.name)
        hint = (
            f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {table} ({columns}); make the columns NOT NULL; "
            f"ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name}"
        )
    draft.refuse("add_constraint", key, constraint.name, reason, hint)
