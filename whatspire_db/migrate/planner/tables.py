"""Missing tables -> steps: each with its indexes, and the references that close a cycle at the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..costs import INSTANT
from ..ddl import ModelType
from ..schema import Key, Table, label
from ..stamp import rendered
from .draft import Draft
from .obstacles import has_target, is_unreachable, name_is_taken


def create_table(draft: Draft, model: ModelType, later: Collection[Key]) -> None:
    """Create a table with its indexes, or refuse it.

    :param later: the tables that are made after it.
    """
    key = draft.engine.key(model)
    if key in draft.live.names:
        reason = f"cannot create table {label(key)}: the name is taken by another relation"
        draft.refuse("create_table", key, key[1], reason, "rename that relation, or the model's table")
        return
    table = draft.declared.tables[key]
    for constraint in table.constraints:
        if constraint.references in later and not constraint.optional and draft.engine.constraints_can_be_added:
            target = label(constraint.references or key)
            reason = f"cannot create table {label(key)}: it refers to {target}, which refers back to it"
            hint = "make one of the references a DeferredForeignKey, or add it when both tables are there"
            draft.refuse("create_table", key, key[1], reason, hint)
        if has_target(draft, "create_table", key, constraint):
            is_unreachable(draft, "create_table", key, constraint)
    for name in [i.name for i in table.indexes if i.constraint] + [c.name for c in table.constraints if c.has_index]:
        name_is_taken(draft, key, name)
    referenced = {c.references for c in table.constraints if c.references and c.references in draft.live.tables}
    if _waits_for_unique_key(draft, key, table, referenced):
        return
    lock = draft.engine.lock_of("add_foreign_key") if referenced else None
    ddl = rendered(draft.db, model)
    draft.add("create_table", key, label(key), ddl.table, INSTANT, lock=lock, targets=sorted(referenced))
    for name, sql in ddl.indexes:
        if not name_is_taken(draft, key, name):
            draft.add("create_index", key, name, [sql], INSTANT, lock="none")


def close_cycles(draft: Draft, model: ModelType) -> None:
    """Add the references of a new table to tables that come after it."""
    key = draft.engine.key(model)
    if draft.engine.constraints_can_be_added:
        for column, sql in rendered(draft.db, model).deferred:
            draft.add("add_constraint", key, column, [sql], INSTANT, lock="none")


def _waits_for_unique_key(draft: Draft, key: Key, table: Table, referenced: Collection[Key]) -> bool:
    """Refuse a table that refers to a key whose index takes long to build; a second run can make it."""
    waiting = draft.being_built()
    for constraint in table.constraints:
        target = constraint.references
        if target in referenced and target is not None and label(target) in waiting:
            columns = ", ".join(constraint.referenced_columns)
            if _lacks_unique(draft, target, constraint.referenced_columns):
                reason = f"cannot create table {label(key)}: {label(target)} ({columns}) is not unique yet"
                draft.refuse("create_table", key, key[1], reason, "migrate first without that reference")
                return True
    return False


def _lacks_unique(draft: Draft, target: Key, columns: Sequence[str]) -> bool:
    found = draft.live.tables[target]
    keys = [c.columns for c in found.constraints if c.kind == "primary_key"]
    keys += [i.columns for i in found.indexes if i.unique and i.valid]
    return not any(set(k) == set(columns) for k in keys)
