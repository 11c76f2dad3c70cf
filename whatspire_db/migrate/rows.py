"""What the rows of the live database say: whether an addition would fail on them, and how many there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import peewee

from .ddl import ModelType, qualified, quote
from .engines import Engine, discarded
from .schema import Column, Constraint, Index, IndexKey, Key, Schema


@dataclass(frozen=True)
class Rows:
    """Questions about the rows of the tables that a migration changes."""

    engine: Engine
    models: Mapping[Key, ModelType]
    live: Schema

    def table(self, key: Key) -> str:
        """Return a table's name as it stands in SQL, in the spelling of its model."""
        return qualified(key[0], self.models[key]._meta.table_name if key in self.models else key[1])

    def any(self, key: Key) -> bool:
        """Tell whether a table has rows."""
        return bool(self.engine.ask(f"SELECT EXISTS (SELECT 1 FROM {self.table(key)})"))

    def exact(self, key: Key) -> int:
        """Count a table's rows."""
        return int(self.engine.ask(f"SELECT count(*) FROM {self.table(key)}"))

    def estimate(self, key: Key) -> int:
        """Return the catalog's estimate of a table's rows, or their count where it has none."""
        estimate = self.live.tables[key].rows
        return self.exact(key) if estimate is None else estimate

    def duplicates(self, key: Key, index: Index, new: Mapping[str, Column]) -> int:
        """Return how many rows share their value in a unique index that is not there yet.

        :param new: columns that are added before it, which hold their default in every row.
        """
        keys = tuple(k for k in index.keys if k.column not in new)
        fresh = [new[k.column] for k in index.keys if k.column is not None and k.column in new]
        if any(c.default in (None, "null") and not index.nulls_not_distinct for c in fresh):
            return 0  # NULLs in every row, which are distinct
        texts = [k.expression for k in keys if k.column is None] + [index.predicate or ""]
        if any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts for name in new):
            return 0  # what a column that is not there yet will hold cannot be asked
        condition = self.engine.index_condition(replace(index, keys=keys))
        group = f"GROUP BY {', '.join(map(_grouped, keys))}" if keys else ""
        return self._number(
            f"SELECT coalesce(sum(n), 0) FROM (SELECT count(*) AS n FROM {self.table(key)} "
            f"WHERE {condition} {group} HAVING count(*) > 1) AS doubled"
        )

    def violations(self, key: Key, constraint: Constraint, new: Mapping[str, Column]) -> int:
        """Return how many rows stand against a constraint that is not there yet."""
        if constraint.kind == "exclude" or any(c in new for c in constraint.columns):
            return 0
        table = self.table(key)
        if constraint.kind == "check":
            return self._number(f"SELECT count(*) FROM {table} WHERE NOT {checked(constraint)}")
        if constraint.kind == "foreign_key":
            return self._number(f"SELECT count(*) FROM {table} AS child WHERE {self._is_orphan(constraint)}")
        listed = ", ".join(map(quote, constraint.columns))
        nulls = " OR ".join(f"{quote(c)} IS NULL" for c in constraint.columns)
        doubled = f"count(*) - count(DISTINCT ({listed}))"
        return self._number(f"SELECT {doubled} + count(*) FILTER (WHERE {nulls}) FROM {table}")

    def _is_orphan(self, constraint: Constraint) -> str:
        conditions = [f"child.{quote(c)} IS NOT NULL" for c in constraint.columns]
        target = constraint.references
        if target is not None and (target in self.live.tables or target in self.live.others):
            pairs = zip(constraint.columns, constraint.referenced_columns, strict=True)
            same = " AND ".join(f"parent.{quote(there)} = child.{quote(here)}" for here, there in pairs)
            conditions.append(f"NOT EXISTS (SELECT 1 FROM {self.table(target)} AS parent WHERE {same})")
        return " AND ".join(conditions)

    def _number(self, sql: str) -> int:
        """Ask a number; 0 where the question itself cannot be asked, for the step then shows what is wrong."""
        found = 0
        with suppress(peewee.PeeweeException), discarded(self.engine.db):
            found = int(self.engine.ask(sql) or 0)
        return found


def checked(constraint: Constraint) -> str:
    """Return the expression of a CHECK constraint."""
    return re.sub(r"^CHECK |( NO INHERIT| NOT ENFORCED)+$", "", constraint.definition)


def _grouped(key: IndexKey) -> str:
    expression = quote(key.column) if key.column else key.expression
    return f"{expression} COLLATE {key.collation}" if key.collation else expression
