"""A comparison of the declared and the live schema -> one schema, and the differences of a picture; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..migrate.diff import Drift, Extra, Missing
from ..migrate.full_look import Comparison
from ..migrate.plan import Plan, Refusal, Step
from ..migrate.schema import Column, Constraint, Index, Key, Schema, Table, label
from .values import Difference


def differences_of(comparison: Comparison) -> list[Difference]:
    """Return all differences, each of the table that it belongs to."""
    keys = {label(key): key for key in (*comparison.live.tables, *comparison.declared.tables)}
    changes, plan, mending = comparison.mending.changes, comparison.plan, comparison.mending
    general = (refusal for refusal in plan.refused if not refusal.table)
    return [
        *(Difference("refused", r.kind, ("", ""), r.name or "all additions", note=_note(r)) for r in general),
        *(_missing(missing, plan) for missing in changes.missing),
        *(_drift(drift, "drift", keys, mending.of(drift)) for drift in changes.drift),
        *(_drift(drift, "accepted", keys) for drift in changes.accepted),
        *(_extra(extra, keys) for extra in changes.extra),
    ]


def merged(comparison: Comparison) -> Schema:
    """Return one schema with all that either side has; what both have is as it is declared."""
    keys = {label(key): key for key in comparison.live.tables}
    extras = comparison.mending.changes.extra
    tables = {
        key: _merged(table, comparison.live.tables.get(key), extras)
        for key, table in comparison.declared.tables.items()
    }
    found = (keys.get(extra.table) for extra in extras if extra.kind == "table")
    return Schema(tables | {key: comparison.live.tables[key] for key in found if key is not None})


def _merged(declared: Table, live: Table | None, extras: Sequence[Extra]) -> Table:
    if live is None:
        return declared
    own = [extra.item for extra in extras if extra.key == live.key]
    columns = {name: _with_type(column, live.columns.get(name)) for name, column in declared.columns.items()}
    columns |= {column.name: column for column in own if isinstance(column, Column)}
    if declared.by_name:  # names alone are known of what it declares
        return Table(declared.key, declared.kind, columns, live.indexes, live.constraints)
    indexes = (*declared.indexes, *(item for item in own if isinstance(item, Index)))
    constraints = (*declared.constraints, *(item for item in own if isinstance(item, Constraint)))
    return Table(declared.key, declared.kind, columns, indexes, constraints)


def _with_type(declared: Column, live: Column | None) -> Column:
    """Return a column with its live type where only the name of the declared one is known."""
    return live if declared.type is None and live is not None else declared


def _note(refusal: Refusal) -> str:
    return f"{refusal.reason}; {refusal.hint}" if refusal.hint else refusal.reason


def _missing(missing: Missing, plan: Plan) -> Difference:
    table = label(missing.table)
    head = (missing.kind, missing.table, missing.name)
    if refusal := next((r for r in plan.refused if _is_about(r, missing, table)), None):
        return Difference("refused", *head, note=_note(refusal))
    steps = [step for step in plan.pending if _is_about(step, missing, table)]
    sql = tuple(statement for step in steps for statement in step.sql)
    if steps and not plan.refused:
        return Difference("pending", *head, sql=sql)
    why = "a run adds nothing until what is refused is solved" if plan.refused else ""
    return Difference("missing", *head, note=why, sql=sql)


def _is_about(item: Step | Refusal, missing: Missing, table: str) -> bool:
    """Tell whether a step or a refusal is about something missing: all of a missing table's steps are."""
    if missing.kind in ("schema", "extension"):
        return item.kind == f"create_{missing.kind}" and item.name == missing.name
    if item.table != table:
        return False
    return missing.kind == "table" or (item.name == missing.name and item.kind.endswith(missing.kind))


def _drift(drift: Drift, state: str, keys: Mapping[str, Key], sql: Sequence[str] = ()) -> Difference:
    key = drift.key or keys.get(drift.table, ("", drift.table))
    note = "the next run finishes it" if drift.unfinished else ""
    return Difference(state, drift.kind, key, drift.name, drift.declared or "", drift.live or "", note, tuple(sql))


def _extra(extra: Extra, keys: Mapping[str, Key]) -> Difference:
    return Difference("extra", extra.kind, extra.key or keys.get(extra.table, ("", extra.table)), extra.name)
