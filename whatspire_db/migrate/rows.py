"""What the rows of the live database say: whether an addition would fail on them, and how many there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import peewee

from ..messages import sqlstate
from .ddl import ModelType, qualified, quote
from .engines.base import Engine, discarded
from .schema import Column, Constraint, Index, IndexKey, Key, Schema

NOWHERE: Key = ("", "")  # a question whose names are all in full


@dataclass(frozen=True)
class Rows:
    """Questions about the rows of the tables that a migration changes."""

    engine: Engine
    models: Mapping[Key, ModelType]
    live: Schema
    exact_up_to: int  # more rows than that are estimated, where the engine has an estimate
    _estimates: dict[Key, int | None] = field(default_factory=dict)

    def table(self, key: Key) -> str:
        """Return a table's name as it stands in SQL, in the spelling of its model."""
        return qualified(key[0], self.models[key]._meta.table_name if key in self.models else key[1])

    def any(self, key: Key) -> bool:
        """Tell whether a table has rows; one that may not be read counts as having some."""
        return self._number(key, f"SELECT {self._count} FROM (SELECT 1 FROM {self.table(key)} LIMIT 1) AS one") != 0

    def exact(self, key: Key) -> int | None:
        """Count a table's rows; None where they may not be read."""
        return self._number(key, f"SELECT {self._count} FROM {self.table(key)}")

    def estimate(self, key: Key) -> int | None:
        """Return how many rows a table has, for a large one about; None where they may not be read."""
        if key not in self._estimates:
            try:
                with discarded(self.engine.db):
                    self._estimates[key] = self.engine.estimate(self.table(key), self.exact_up_to)
            except peewee.PeeweeException as error:
                if sqlstate(error) != "42501":  # insufficient_privilege, also for rows that a policy hides
                    raise
                # What was counted at the last ANALYZE may be long ago.
                rows = self.live.tables[key].rows
                self._estimates[key] = None if rows is not None and rows <= self.exact_up_to else rows
        return self._estimates[key]

    def with_new(self, key: Key, new: Mapping[str, Column]) -> str:
        """Return the table as it will be, for a FROM clause: with what each row will hold in the new columns."""
        source = self.table(key)
        plain = {n: c for n, c in new.items() if not c.generated}
        generated = {n: c for n, c in new.items() if c.generated}
        for columns in (plain, generated):
            if columns:
                listed = ", ".join(f"{self._future(c)} AS {quote(n)}" for n, c in columns.items())
                source = f"(SELECT now_there.*, {listed} FROM {source} AS now_there)"
        return source

    def _future(self, column: Column) -> str:
        counting = re.search(r"START (-?\d+) INCREMENT (-?\d+)", column.identity or "")
        if column.generated:
            value = column.generated.partition(" ")[2]
        elif counting:
            plus, minus, times = map(self.engine.operator, "+-*")
            value = f"({counting[1]}) {plus} (({self._row_number} {minus} 1) {times} ({counting[2]}))"
        elif column.identity or column.is_serial or "nextval(" in (column.default or ""):
            value = self._row_number  # to ask the sequence itself would move it
        else:
            value = column.default or "NULL"
        return self.engine.as_stored(value, column)

    def duplicates(self, key: Key, index: Index, new: Mapping[str, Column]) -> int:
        """Return how many rows share their value in a unique index that is not there yet.

        :param new: columns that are added before it, which hold their default in every row.
        """
        group = ", ".join(map(_grouped, index.keys))
        several = f"{self._count} {self.engine.operator('>')} 1"
        found = self._number(
            key,
            f"SELECT coalesce({self.engine.function('sum')}(n), 0) "
            f"FROM (SELECT {self._count} AS n FROM {self.with_new(key, new)} AS whole "
            f"WHERE {self.engine.index_condition(index)} GROUP BY {group} HAVING {several}) AS doubled",
        )
        return found or 0

    def nulls(self, key: Key, column: Column, new: Mapping[str, Column]) -> int:
        """Return in how many rows a new column will be NULL."""
        source = self.with_new(key, new)
        question = f"SELECT {self._count} FROM {source} AS whole WHERE {quote(column.name)} IS NULL"
        return self._number(key, question) or 0

    def violations(self, key: Key, constraint: Constraint, new: Mapping[str, Column]) -> int:
        """Return how many rows stand against a constraint that is not there yet."""
        source = self.with_new(key, new)
        if constraint.kind == "exclude" or constraint.definition.endswith("NOT ENFORCED"):
            return 0
        if constraint.kind == "check":
            question = f"SELECT {self._count} FROM {source} AS whole WHERE NOT {checked(constraint)}"
            return self._number(key, question) or 0
        if constraint.kind == "not_null":
            question = f"SELECT {self._count} FROM {source} AS whole WHERE {quote(constraint.columns[0])} IS NULL"
            return self._number(key, question) or 0
        if constraint.kind == "foreign_key":
            question = f"SELECT {self._count} FROM {source} AS child WHERE {self._is_orphan(constraint)}"
            return self._number(NOWHERE, question) or 0
        listed = ", ".join(map(quote, constraint.columns))
        nulls = " OR ".join(f"{quote(c)} IS NULL" for c in constraint.columns)
        distinct = f"{self.engine.function('count')}(DISTINCT ({listed})) FILTER (WHERE NOT ({nulls}))"
        question = f"SELECT {self._count} {self.engine.operator('-')} {distinct} FROM {source} AS whole"
        return self._number(key, question) or 0

    def _is_orphan(self, constraint: Constraint) -> str:
        conditions = [f"child.{quote(c)} IS NOT NULL" for c in constraint.columns]
        target = constraint.references
        if target is not None and self._is_there(target):
            pairs = zip(constraint.columns, constraint.referenced_columns, strict=True)
            columns = self.live.tables[target].columns if target in self.live.tables else {}
            same = " AND ".join(
                f"parent.{quote(there)} {self.engine.equals(columns.get(there))} child.{quote(here)}"
                for here, there in pairs
            )
            conditions.append(f"NOT EXISTS (SELECT 1 FROM {self.table(target)} AS parent WHERE {same})")
        return " AND ".join(conditions)

    def _is_there(self, key: Key) -> bool:
        return key in self.live.tables or key in self.live.others or self.engine.has_table(key)

    @property
    def _count(self) -> str:
        return f"{self.engine.function('count')}(*)"

    @property
    def _row_number(self) -> str:
        return f"{self.engine.function('row_number')}() OVER ()"

    def _number(self, key: Key, sql: str) -> int | None:
        """Ask a number; None where the question itself cannot be asked, for the step then shows what is wrong."""
        try:
            with discarded(self.engine.db):
                self.engine.search_first(key[0])
                return int(self.engine.ask(sql) or 0)
        except peewee.PeeweeException as error:
            if self.engine.is_lock_failure(error):
                raise
            return None


def number_of_rows(number: int | None) -> str:
    """Say a number of rows; None is one that could not be found out."""
    if number is None:
        return "an unknown number of rows"
    return f"{number:,} row{'' if number == 1 else 's'}"


def checked(constraint: Constraint) -> str:
    """Return the expression of a CHECK constraint."""
    return re.sub(r"^CHECK |( NO INHERIT| NOT ENFORCED)+$", "", constraint.definition)


def _grouped(key: IndexKey) -> str:
    expression = quote(key.column) if key.column else key.expression
    return f"{expression} COLLATE {key.collation}" if key.collation else expression
