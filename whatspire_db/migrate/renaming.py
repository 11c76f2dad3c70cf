"""Columns that may have been renamed: a missing one beside an extra one of the same type; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from .ddl import ModelType, qualified, quote
from .diff import Changes
from .schema import Column, Key, label


@dataclass(frozen=True)
class Renaming:
    """A missing column and an extra one that may be the same. It is a remark: nothing is done about it."""

    key: Key
    old: str
    new: str
    sql: str

    def __str__(self) -> str:
        what = f"{label(self.key)}.{self.new} is missing, and {self.old}, which no model declares, has its type"
        return f"renamed? {what}; if it is the same column, run this first: {self.sql}"

    def to_json(self) -> dict[str, str]:
        return {"table": label(self.key), "from": self.old, "to": self.new, "sql": self.sql}


def renamings(changes: Changes, models: Mapping[Key, ModelType], fold: Callable[[str], str]) -> Iterator[Renaming]:
    """Yield each missing column with each extra one of its type.

    :param fold: gives a name as the engine keeps it; the statements spell names as the models do.
    """
    extra: dict[Key, list[Column]] = {}
    for item in changes.extra:
        if item.key is not None and isinstance(item.item, Column):
            extra.setdefault(item.key, []).append(item.item)
    for missing in changes.missing:
        if not isinstance(missing.item, Column) or missing.item.type is None:
            continue
        meta = models[missing.table]._meta
        new = next((f.column_name for f in meta.sorted_fields if fold(f.column_name) == missing.name), missing.name)
        for column in extra.get(missing.table, ()):
            if (missing.item.type, missing.item.generated) == (column.type, column.generated):
                table = qualified(missing.table[0], fold(meta.table_name))
                sql = f"ALTER TABLE {table} RENAME COLUMN {quote(column.name)} TO {quote(new)}"
                yield Renaming(missing.table, column.name, new, sql)
