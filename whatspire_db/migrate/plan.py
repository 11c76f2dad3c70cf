"""Changes -> Steps and Refusals, with the exact SQL of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import peewee

from ..errors import ModelError
from . import ddl
from .ddl import ModelType, quote
from .diff import Changes, Drift, Missing
from .engines import Engine, with_references
from .rows import Rows, checked
from .schema import Column, Constraint, Index, Key, Schema, Table, label


@dataclass(frozen=True)
class Step:
    """One addition: its statements, the lock that they take, and what they cost."""

    kind: str
    table: str
    name: str
    sql: tuple[str, ...]
    lock: str
    cost: str

    @property
    def title(self) -> str:
        where = self.name if self.name == self.table or not self.table else f"{self.table}.{self.name}"
        return f"{self.kind.replace('_', ' ')} {where}"

    def __str__(self) -> str:
        lines = [f"{self.title}  (lock: {self.lock}; {self.cost})", *(f"    {sql};" for sql in self.sql)]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "table": self.table,
            "name": self.name,
            "sql": list(self.sql),
            "lock": self.lock,
            "cost": self.cost,
        }


@dataclass(frozen=True)
class Refusal:
    """An addition that would fail, lose data or stop the service, and what to do instead."""

    kind: str
    table: str
    name: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"{self.reason}\n    hint: {self.hint}"

    def to_json(self) -> dict[str, str]:
        return {
            "kind": self.kind,
            "table": self.table,
            "name": self.name,
            "reason": self.reason,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class Plan:
    """What a run would do; falsy when there is nothing to do. str() shows it, `to_json` gives plain data."""

    driver: str
    version: int
    pending: tuple[Step, ...] = ()
    refused: tuple[Refusal, ...] = ()
    drift: tuple[Drift, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pending or self.refused)

    def __str__(self) -> str:
        sections = [
            ("pending", self.pending),
            ("refused: nothing will be applied until this is solved", self.refused),
            ("drift: differences that adding cannot mend; they are left as they are", self.drift),
        ]
        lines = [f"{title}\n" + "\n".join(f"  {item}" for item in items) for title, items in sections if items]
        return "\n".join(lines) or "nothing to do"

    def sql(self) -> str:
        """Return the statements alone, ready for psql or sqlite3 in one transaction; nothing when refused."""
        statements = [f"{sql};\n" for step in self.pending for sql in step.sql]
        return "".join(["BEGIN;\n", *statements, "COMMIT;\n"]) if statements and not self.refused else ""

    def to_json(self) -> dict[str, Any]:
        return {
            "driver": self.driver,
            "version": self.version,
            "pending": [step.to_json() for step in self.pending],
            "refused": [refusal.to_json() for refusal in self.refused],
            "drift": [drift.to_json() for drift in self.drift],
        }


def make_plan(
    engine: Engine,
    models: Sequence[ModelType],
    changes: Changes,
    declared: Schema,
    live: Schema,
    version: int,
) -> Plan:
    """Turn the missing things into steps, in an order in which each finds what it needs."""
    planner = _Planner(engine, {engine.key(m): m for m in models}, declared, live, changes.missing)
    planner.run()
    return Plan(engine.name, version, tuple(planner.steps), tuple(planner.refusals), tuple(changes.drift))


@dataclass
class _Planner:
    engine: Engine
    models: Mapping[Key, ModelType]
    declared: Schema
    live: Schema
    missing: Sequence[Missing]
    steps: list[Step] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def db(self) -> peewee.Database:
        return self.engine.db

    @cached_property
    def rows(self) -> Rows:
        return Rows(self.engine, self.models, self.live)

    @cached_property
    def new_columns(self) -> dict[Key, dict[str, Column]]:
        found: dict[Key, dict[str, Column]] = {}
        for item in self.missing:
            if isinstance(item.item, Column):
                found.setdefault(item.table, {})[item.name] = item.item
        return found

    def run(self) -> None:
        for kind in ("schema", "extension"):
            for item in self._of_kind(kind):
                self._step(
                    f"create_{kind}",
                    item.table,
                    item.name,
                    [f"CREATE {kind.upper()} {quote(item.name)}"],
                    "instant",
                )
        new = {item.table for item in self._of_kind("table")}
        in_order = [m for m in with_references(list(self.models.values())) if self.engine.key(m) in new]
        # A reference can only be made to a column that is there and unique: columns and indexes come first.
        for key, columns in self.new_columns.items():
            self._add_columns(key, columns)
        for item in self._of_kind("index"):
            self._create_index(item.table, item.item)  # type: ignore[arg-type]
        for model in in_order:
            self._create_table(model)
        for model in in_order:
            self._close_cycles(model)
        if self.engine.constraints_can_be_added:
            ranks = {"primary_key": 0, "check": 1, "exclude": 1, "foreign_key": 2}
            wanted = [(i.table, i.item) for i in self._of_kind("constraint") if isinstance(i.item, Constraint)]
            for key, constraint in sorted(wanted, key=lambda pair: ranks[pair[1].kind]):
                self._add_constraint(key, constraint)

    def _of_kind(self, kind: str) -> Iterator[Missing]:
        return (item for item in self.missing if item.kind == kind)

    def _step(self, kind: str, key: Key, name: str, sql: Iterable[str], cost: str, lock: str | None = None) -> None:
        lock = self.engine.lock_of(kind) if lock is None else lock
        self.steps.append(Step(kind, label(key), name, tuple(sql), lock, cost))

    def _refuse(self, kind: str, key: Key, name: str, reason: str, hint: str) -> None:
        self.refusals.append(Refusal(kind, label(key), name, reason, hint))

    # Tables

    def _create_table(self, model: ModelType) -> None:
        key = self.engine.key(model)
        if key in self.live.names:
            reason = f"cannot create table {label(key)}: the name is taken by another relation"
            return self._refuse("create_table", key, key[1], reason, "rename that relation, or the model's table")
        table = self.declared.tables[key]
        for constraint in table.constraints:
            self._check_target("create_table", key, constraint)
        for name in [i.name for i in table.indexes if i.constraint] + [
            c.name for c in table.constraints if c.has_index
        ]:
            self._name_is_taken(key, name)
        self._step("create_table", key, label(key), ddl.create_table(self.db, model), "instant")
        for name, sql in ddl.create_indexes(self.db, model):
            if not self._name_is_taken(key, name):
                self._step("create_index", key, name, [sql], "instant", lock="none")
        return None

    def _check_target(self, kind: str, key: Key, constraint: Constraint) -> bool:
        target = constraint.references
        found = self.live.tables.get(target) if target is not None else None
        if target is None or (target in self.declared.tables and found is None) or target in self.live.others:
            return True
        if found is not None and found.kind == "table":
            return True
        what = "does not exist" if found is None else f"is a {found.kind}"
        hint = "give the model of that table to the migration too" if found is None else "make it a table first"
        reason = f"cannot add the foreign key {_of(key, constraint)}: table {label(target)} {what}"
        self._refuse(kind, key, constraint.name, reason, hint)
        return False

    def _close_cycles(self, model: ModelType) -> None:
        key = self.engine.key(model)
        if self.engine.constraints_can_be_added:
            for column, sql in ddl.deferred_foreign_keys(self.db, model):
                self._step("add_constraint", key, column, [sql], "instant", lock="none")

    def _name_is_taken(self, key: Key, name: str) -> bool:
        owner = self.live.names.get((key[0], self.engine.fold(name)))
        if owner is None or owner == key[1]:
            return False
        reason = f"cannot create index {name} on {label(key)}: {owner} has something of that name"
        self._refuse("create_index", key, name, reason, "give the index another name")
        return True

    # Columns

    def _add_columns(self, key: Key, columns: Mapping[str, Column]) -> None:
        model, table = self.models[key], self.declared.tables[key]
        fields = {self.engine.fold(f.column_name): f for f in model._meta.sorted_fields}
        rows = self.rows.any(key)
        ordered = sorted(columns.values(), key=lambda c: (c.generated is not None, self._needs(table, c, columns)))
        allowed = [c for c in ordered if not self._refuses_column(key, table, c, rows)]
        rewriting = self.engine.rewriting(model, allowed) if rows and allowed else set()
        in_order = {column.name: column for column in ordered}
        attached = {} if self.engine.constraints_can_be_added else self._attached(table, in_order)
        for column in allowed:
            if self.engine.constraints_can_be_added:
                sql = ddl.add_canonical_column(self.db, model, column)
            else:
                sql = ddl.add_declared_column(self.db, model, fields[column.name], attached.get(column.name, ()))
            count = _rows(self.rows.estimate(key)) if rows else "no rows"
            cost = f"rewrites the table, {count}" if column.name in rewriting else f"instant, {count}"
            self._step("add_column", key, column.name, self.engine.within(key[0], sql), cost)

    def _refuses_column(self, key: Key, table: Table, column: Column, rows: bool) -> bool:
        name = f"{label(key)}.{column.name}"
        is_key = any(c.kind == "primary_key" and column.name in c.columns for c in table.constraints)
        refused = self.engine.refuses_column(column, rows, is_key)
        if refused:
            self._refuse("add_column", key, column.name, f"cannot add column {name}: {refused[0]}", refused[1])
            return True
        if column.not_null and not column.fills_rows and rows:
            count = _rows(self.rows.exact(key))
            reason = f"cannot add column {name}: NOT NULL without a default, and the table has {count}"
            hint = (
                'give it a database default (constraints=[SQL("DEFAULT ...")]; a default in Python is not one), '
                "or null=True and fill it in a data migration"
            )
            self._refuse("add_column", key, column.name, reason, hint)
            return True
        empty = (
            self.rows.nulls(key, column, self.new_columns[key]) if column.not_null and column.generated and rows else 0
        )
        if empty:
            reason = f"cannot add column {name}: NOT NULL, and its expression is NULL for {_rows(empty)}"
            self._refuse("add_column", key, column.name, reason, "declare it null=True, or correct those rows")
        return bool(empty)

    def _needs(self, table: Table, column: Column, new: Mapping[str, Column]) -> int:
        """Count the other new columns that a new one's own CHECKs name: it comes after them."""
        own = [c for c in table.constraints if c.inline == column.name]
        return len({name for c in own for name in c.columns if name in new and name != column.name})

    def _attached(self, table: Table, new: Mapping[str, Column]) -> dict[str, list[str]]:
        """Return the constraints that SQLite takes only as part of a new column, by that column."""
        attached: dict[str, list[str]] = {}
        for item in self._of_kind("constraint"):
            constraint = item.item
            if item.table != table.key or not isinstance(constraint, Constraint):
                continue
            if constraint.inline in new:
                self._violates(table.key, constraint)
                continue
            if constraint.kind == "check" and self._violates(table.key, constraint):
                continue
            last = [name for name in new if name in constraint.columns][-1]
            name = f"CONSTRAINT {quote(constraint.name)} " if constraint.name else ""
            if constraint.kind == "check":
                attached.setdefault(last, []).append(name + constraint.sql)
            elif constraint.kind == "foreign_key":
                self._attach_reference(table.key, constraint, new[last], attached, name)
        return attached

    def _attach_reference(
        self, key: Key, constraint: Constraint, column: Column, attached: dict[str, list[str]], name: str
    ) -> None:
        if len(constraint.columns) > 1 or (
            column.default not in (None, "null") and self.engine.ask("PRAGMA foreign_keys")
        ):
            reason = f"SQLite cannot add the foreign key {_of(key, constraint)} with a new column"
            hint = "leave out the default" if len(constraint.columns) == 1 else "make a new table and copy the rows"
            self._refuse("add_constraint", key, constraint.name, reason, hint)
        elif self._check_target("add_constraint", key, constraint):
            attached.setdefault(column.name, []).append(name + constraint.sql)

    # Indexes

    def _create_index(self, key: Key, index: Index) -> None:
        model = self.models[key]
        if self._name_is_taken(key, index.name) or self._has_duplicates(key, index):
            return
        statements = {self.engine.fold(name): sql for name, sql in ddl.create_indexes(self.db, model)}
        cost = f"scans {_rows(self.rows.estimate(key))}"
        if index.name in statements:
            self._step("create_index", key, index.name, [statements[index.name]], cost)
        elif index.constraint:
            sql = ddl.add_constraint(self.db, model, index.name, _unique_definition(index))
            self._step("add_constraint", key, index.name, [sql], cost)
        elif index.name:
            raise ModelError(
                f"no statement of {model.__name__} creates its index {index.name}",
                "write the name in Meta.indexes as the database keeps it",
            )
        else:
            name = "_".join([key[1], *index.columns, "unique"])
            columns = ", ".join(map(quote, index.columns))
            sql = f"CREATE UNIQUE INDEX {quote(name)} ON {self.rows.table(key)} ({columns})"
            self._step("create_index", key, name, [sql], cost)

    def _has_duplicates(self, key: Key, index: Index) -> bool:
        found = self.rows.duplicates(key, index, self.new_columns.get(key, {})) if index.unique else 0
        if found:
            columns = ", ".join(k.expression for k in index.keys)
            whole = _rows(self.rows.exact(key))
            reason = f"cannot make {label(key)} ({columns}) unique: {_rows(found)} of {whole} share their value"
            query = f"SELECT {columns}, count(*) FROM {label(key)} GROUP BY {columns} HAVING count(*) > 1"
            self._refuse("create_index", key, index.name, reason, f"find them with {query}, and keep one of each")
        return bool(found)

    # Constraints

    def _add_constraint(self, key: Key, constraint: Constraint) -> None:
        if not self._check_target("add_constraint", key, constraint) or self._violates(key, constraint):
            return
        live = self.live.tables[key]
        if constraint.name in {c.name for c in live.constraints} | {i.name for i in live.indexes if i.constraint}:
            reason = f"cannot add constraint {constraint.name} to {label(key)}: another of that name stands there"
            self._refuse("add_constraint", key, constraint.name, reason, "give the constraint another name")
            return
        if constraint.has_index and self._name_is_taken(key, constraint.name):
            return
        sql = ddl.add_constraint(self.db, self.models[key], constraint.name, constraint.sql)
        lock = self.engine.lock_of("add_foreign_key" if constraint.kind == "foreign_key" else "add_constraint")
        # A reference names its target in full; other definitions are written as seen from the table's schema.
        within = (sql,) if constraint.kind == "foreign_key" else self.engine.within(key[0], sql)
        self._step("add_constraint", key, constraint.name, within, f"scans {_rows(self.rows.estimate(key))}", lock)

    def _violates(self, key: Key, constraint: Constraint) -> bool:
        found = self.rows.violations(key, constraint, self.new_columns.get(key, {}))
        if found:
            what, hint = {
                "check": ("violate it", f"correct them: SELECT * FROM {label(key)} WHERE NOT {checked(constraint)}"),
                "foreign_key": (
                    f"refer to no row of {label(constraint.references or key)}",
                    "add the missing rows, or correct the references",
                ),
                "primary_key": ("have no value of their own there", "give each row its own"),
            }[constraint.kind]
            title = f"{constraint.kind.replace('_', ' ')} {_of(key, constraint)}"
            reason = f"cannot add {title}: {_rows(found)} of {_rows(self.rows.exact(key))} {what}"
            self._refuse("add_constraint", key, constraint.name, reason, hint)
        return bool(found)


def _rows(number: int | None) -> str:
    if number is None:
        return "an unknown number of rows"
    return f"{number} row{'' if number == 1 else 's'}"


def _of(key: Key, constraint: Constraint) -> str:
    return f"{label(key)} ({', '.join(constraint.columns)})"


def _unique_definition(index: Index) -> str:
    parts = [
        "UNIQUE",
        "NULLS NOT DISTINCT" if index.nulls_not_distinct else "",
        f"({', '.join(map(quote, index.columns))})",
        f"INCLUDE ({', '.join(index.include)})" if index.include else "",
        index.constraint.removeprefix("UNIQUE").strip(),
    ]
    return " ".join(filter(None, parts))
