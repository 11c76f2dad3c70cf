"""Changes -> Plan: steps in an order in which each finds what it needs, and what stands in their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..costs import INSTANT
from ..ddl import ModelType, quote
from ..diff import Changes, Drift
from ..engines.base import Engine
from ..engines.references import with_references
from ..ownership import foreign_tables
from ..plan import Plan, Refusal
from ..schema import Constraint, Index, Schema, Table, label
from .columns import add_columns
from .constraints import add_constraint, validate
from .draft import Draft
from .indexes import create_index, use_index
from .obstacles import is_violated
from .tables import close_cycles, create_table

# A reference can only be made to what is unique by then.
_RANKS = {"primary_key": 0, "check": 1, "exclude": 1, "foreign_key": 2}


def make_plan(
    engine: Engine,
    models: Sequence[ModelType],
    changes: Changes,
    declared: Schema,
    live: Schema,
    version: int,
    online_rows: int,
) -> Plan:
    """Turn the missing things into steps, in an order in which each finds what it needs.

    :param online_rows: a table with more is large: what takes long on it is done online, or refused.
    """
    by_key = {engine.key(m): m for m in models}
    foreign = list(foreign_tables(engine, declared, live, changes.missing))
    names = {refusal.table for refusal in foreign}
    missing = [item for item in changes.missing if label(item.table) not in names]
    draft = Draft(engine, by_key, declared, live, missing, online_rows, refusals=foreign)
    # What is finished first may be the key that a new table refers to.
    drift = tuple(d for d in changes.drift if d.table in names or not _finish(draft, d))
    _add_all(draft)
    steps = tuple(sorted(draft.steps, key=lambda step: step.online))
    if refused := engine.refuses_transaction([step for step in steps if not step.online], declared):
        draft.refusals.append(Refusal("transaction", "", "", refused.fact, refused.hint))
    notes = (*engine.notes(steps), *_places(draft))
    return Plan(engine.name, version, steps, tuple(draft.refusals), drift, notes)


def _places(draft: Draft) -> tuple[str, ...]:
    """Return where the tables stand that the plan is about, and those that new references lead to."""
    names = {step.table for step in draft.steps} | {refusal.table for refusal in draft.refusals}
    changed = [key for key in draft.declared.tables if label(key) in names]
    targets = [c.references for item in draft.missing for c in _constraints(item.item) if c.references]
    concerned = list(dict.fromkeys(key for key in (*changed, *targets) if key in draft.live.tables))
    new = [item.table for item in draft.of_kind("table") if label(item.table) in names]
    return draft.placements.notes(concerned, new) if names else ()


def _constraints(item: object) -> Sequence[Constraint]:
    if isinstance(item, Table):
        return item.constraints
    return [item] if isinstance(item, Constraint) else []


def _add_all(draft: Draft) -> None:
    """Plan to add what is missing. Columns and indexes come before the references to them."""
    for item in draft.of_kind("schema"):
        draft.add("create_schema", item.table, item.name, [f"CREATE SCHEMA {quote(item.name)}"], INSTANT)
    for item in draft.of_kind("extension"):
        draft.add("create_extension", item.table, item.name, [f"CREATE EXTENSION {quote(item.name)}"], INSTANT)
    for key, columns in draft.new_columns.items():
        add_columns(draft, key, columns)
    for item in draft.of_kind("index"):
        create_index(draft, item.table, item.item)  # type: ignore[arg-type]
    _add_constraints(draft, lambda constraint: constraint.kind == "primary_key")  # a new table may refer to one
    new = {item.table for item in draft.of_kind("table")}
    in_order = [m for m in with_references(list(draft.models.values())) if draft.engine.key(m) in new]
    keys_in_order = [draft.engine.key(model) for model in in_order]
    for position, model in enumerate(in_order):
        create_table(draft, model, keys_in_order[position + 1 :])
    for model in in_order:
        close_cycles(draft, model)
    _add_constraints(draft, lambda constraint: constraint.kind != "primary_key")


def _add_constraints(draft: Draft, is_meant: Callable[[Constraint], bool]) -> None:
    """Plan to add the missing constraints of some kinds, on an engine that adds any to a table that stands."""
    if not draft.engine.constraints_can_be_added:
        return
    wanted = [(i.table, i.item) for i in draft.of_kind("constraint") if isinstance(i.item, Constraint)]
    for key, constraint in sorted(wanted, key=lambda pair: _RANKS[pair[1].kind]):
        if is_meant(constraint):
            add_constraint(draft, key, constraint)


def _finish(draft: Draft, drift: Drift) -> bool:
    """Plan to finish what a killed run, or somebody else, left INVALID or NOT VALID; tell whether that can be."""
    key, wanted, got = drift.key, drift.unfinished, drift.left
    if wanted is None or key is None:
        return False
    steps, refusals = len(draft.steps), len(draft.refusals)
    if isinstance(wanted, Index):
        assert isinstance(got, Index)
        if got.valid:
            use_index(draft, key, wanted, online=False)
        else:
            create_index(draft, key, wanted, broken=got)
    elif not is_violated(draft, key, wanted):
        validate(draft, key, got.name if got else wanted.name)
    # Rows that stand in the way are the reason why it is as it is, and no reason to refuse all the rest.
    del draft.refusals[refusals:]
    return len(draft.steps) > steps
