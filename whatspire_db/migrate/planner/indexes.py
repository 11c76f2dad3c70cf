"""Missing and broken indexes -> steps: in the transaction, or online on a large table."""

from __future__ import annotations

from ...errors import ModelError
from .. import ddl
from ..costs import INSTANT
from ..ddl import qualified, quote
from ..schema import Index, Key, label
from ..stamp import rendered
from .draft import Draft
from .obstacles import cannot_be_unique, constraint_is_named, has_duplicates, name_is_taken

# To build another kind of index takes some hundred times as long a row.
QUICKLY_BUILT = ("", "btree", "hash", "brin")


def create_index(draft: Draft, key: Key, index: Index, broken: Index | None = None) -> None:
    """Create an index, in place of a broken one: one of the same definition that is INVALID."""
    model = draft.models[key]
    kind = "add_constraint" if index.constraint else "create_index"
    if index.unique and cannot_be_unique(draft, kind, key, index.name, index.columns):
        return
    if broken is None and _comes_with_parent(draft, key, index):
        return
    if index.constraint and constraint_is_named(draft, key, index.name):
        return
    if (broken is None and name_is_taken(draft, key, index.name)) or has_duplicates(draft, key, index):
        return
    statements = {draft.engine.fold(name): sql for name, sql in rendered(draft.db, model).indexes}
    if index.name in statements:
        _build(draft, key, index, statements[index.name], broken)
    elif index.constraint:
        _add_unique(draft, key, index, broken)
    elif index.name:
        raise ModelError(
            f"no statement of {model.__name__} creates its index {index.name}",
            "write the name in Meta.indexes as the database keeps it",
        )
    else:
        name = "_".join([key[1], *index.columns, "unique"])
        columns = ", ".join(map(ddl.key_of_index, index.keys))
        sql = f"CREATE UNIQUE INDEX {quote(name)} ON {draft.rows.table(key)} ({columns})"
        draft.add("create_index", key, name, [sql], draft.scans(key))


def _comes_with_parent(draft: Draft, key: Key, index: Index) -> bool:
    """Tell whether a partition gets an index by that of the table that it is a partition of."""
    live = draft.live.tables[key]
    return live.is_partition and any(parent in _missing_alike(draft, index) for parent in live.parents)


def _missing_alike(draft: Draft, index: Index) -> dict[Key, str]:
    """Return the names of the missing indexes that do the same, by their tables."""
    missing = draft.of_kind("index")
    return {m.table: m.name for m in missing if isinstance(m.item, Index) and m.item.shape == index.shape}


def _is_built_online(draft: Draft, key: Key, index: Index) -> bool:
    limit = draft.online_rows if index.method in QUICKLY_BUILT else draft.online_rows // 100
    return draft.is_large(key, limit)


def _build(draft: Draft, key: Key, index: Index, sql: str, broken: Index | None) -> bool:
    """Add the step that builds an index; tell whether it was not refused."""
    if broken is None and not _is_built_online(draft, key, index):
        draft.add("create_index", key, index.name, [sql], draft.scans(key))
        return True
    if draft.live.tables[key].partitioned:
        return _build_by_parts(draft, key, index, sql)
    name = qualified(key[0], index.name)
    draft.add(
        "create_index",
        key,
        index.name,
        draft.engine.online_build(sql, name if broken else None),
        draft.scans(key, online=True),
        lock=draft.engine.lock_of("build_index"),
        online=True,
        builds=name,
        repairs=draft.rows.table(key) if broken else "",
    )
    return True


def _build_by_parts(draft: Draft, key: Key, index: Index, sql: str) -> bool:
    """Add the steps that build an index of a partitioned table; tell whether it was not refused."""
    if index.constraint:
        reason = f"cannot create constraint {index.name}: {label(key)} is partitioned, and large"
        hint = "declare a unique index in place of the constraint: that is built partition by partition"
        draft.refuse("create_index", key, index.name, reason, hint)
        return False
    lock = draft.engine.lock_of("build_index")
    for part in draft.engine.index_parts(key, index, sql, _missing_alike(draft, index)):
        cost = INSTANT if part.locked else draft.scans(key, online=True)
        draft.add(
            part.kind,
            part.table,
            part.name,
            part.sql,
            cost,
            lock=lock,
            online=True,
            builds=part.builds,
            locked=part.locked,
        )
    return True


def _add_unique(draft: Draft, key: Key, index: Index, broken: Index | None = None) -> None:
    model, definition = draft.models[key], ddl.unique_definition(index)
    if index.method not in ("", "btree") and draft.is_large(key):
        reason = f"cannot create constraint {index.name}: it would scan {draft.size(key)} under ACCESS EXCLUSIVE"
        hint = f"add it by hand in a quiet hour: ALTER TABLE {draft.rows.table(key)} ADD CONSTRAINT {definition}"
        draft.refuse("create_index", key, index.name, reason, hint)
        return
    if broken is None and not draft.is_large(key):
        sql = ddl.add_constraint(draft.db, model, index.name, definition)
        draft.add("add_constraint", key, index.name, [sql], draft.scans(key))
        return
    if _cannot_use_index(draft, key, index):
        return
    if _build(draft, key, index, ddl.unique_index(draft.rows.table(key), index), broken):
        use_index(draft, key, index, online=True)


def use_index(draft: Draft, key: Key, index: Index, *, online: bool) -> None:
    """Make a constraint of the unique index of its name."""
    if _cannot_use_index(draft, key, index):
        return
    definition = f"UNIQUE USING INDEX {quote(index.name)}{index.constraint.removeprefix('UNIQUE')}"
    sql = ddl.add_constraint(draft.db, draft.models[key], index.name, definition)
    draft.add("add_constraint", key, index.name, [sql], INSTANT, online=online)


def _cannot_use_index(draft: Draft, key: Key, index: Index) -> bool:
    found = draft.placements.refuses_unique_of_index(key)
    if found:
        reason = f"cannot make {label(key)} ({', '.join(index.columns)}) unique: {found.fact}"
        draft.refuse("add_constraint", key, index.name, reason, found.hint)
    return found is not None
