"""Changes -> Plan: steps in an order in which each finds what it needs, and what stands in their way."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import peewee

from ..errors import ModelError
from . import ddl
from .ddl import ModelType, qualified, quote
from .diff import Changes, Drift, Missing
from .engines import Engine, with_references
from .plan import Plan, Refusal, Step
from .rows import Rows, checked
from .schema import SERIAL, Column, Constraint, Index, Key, Schema, Table, label


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
    planner = _Planner(engine, by_key, declared, live, changes.missing, online_rows)
    planner.run()
    drift = tuple(d for d in changes.drift if not planner.finish(d))
    steps = sorted(planner.steps, key=lambda step: step.online)
    return Plan(engine.name, version, tuple(steps), tuple(planner.refusals), drift)


@dataclass
class _Planner:
    engine: Engine
    models: Mapping[Key, ModelType]
    declared: Schema
    live: Schema
    missing: Sequence[Missing]
    online_rows: int
    steps: list[Step] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def db(self) -> peewee.Database:
        return self.engine.db

    @cached_property
    def rows(self) -> Rows:
        return Rows(self.engine, self.models, self.live, self.online_rows)

    @cached_property
    def new_columns(self) -> dict[Key, dict[str, Column]]:
        found: dict[Key, dict[str, Column]] = {}
        for item in self.missing:
            if isinstance(item.item, Column):
                found.setdefault(item.table, {})[item.name] = item.item
        return found

    @cached_property
    def free_tables(self) -> set[Key]:
        """Return the new tables that lead to no table that stands already, not by way of others either."""
        free = {item.table for item in self._of_kind("table")}
        references = {key: {c.references for c in self.declared.tables[key].constraints} - {None} for key in free}
        while bound := {key for key in free if not references[key] <= free}:
            free -= bound
        return free

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

    def _step(
        self,
        kind: str,
        key: Key,
        name: str,
        sql: Iterable[str],
        cost: str,
        lock: str | None = None,
        targets: Iterable[Key] = (),
        **more: Any,
    ) -> None:
        """Add a step. The lock is the kind's own on the table where it stands already, and on the targets."""
        mode = self.engine.lock_of(kind) if lock is None else lock
        locks: tuple[tuple[str, str], ...] = ()
        if self.engine.builds_online and mode != "none" and not more.get("builds"):
            tables = [key, *targets] if key in self.live.tables else list(targets)
            locks = tuple((self.rows.table(t), mode) for t in dict.fromkeys(tables) if t[1])
        free = key in self.free_tables or kind in ("create_schema", "create_extension")
        self.steps.append(Step(kind, label(key), name, tuple(sql), mode, cost, locks=locks, free=free, **more))

    def _is_large(self, key: Key, limit: int | None = None) -> bool:
        """Tell whether the service would feel it when a table is scanned or rewritten while it is locked."""
        if not self.engine.builds_online or key not in self.live.tables:
            return False
        estimate = self.rows.estimate(key)
        return estimate is None or estimate > (self.online_rows if limit is None else limit)

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
        referenced = {c.references for c in table.constraints if c.references and c.references in self.live.tables}
        if self._waits_for_unique_key(key, table, referenced):
            return None
        lock = self.engine.lock_of("add_foreign_key") if referenced else None
        statements = ddl.create_table(self.db, model)
        self._step("create_table", key, label(key), statements, "instant", lock, targets=sorted(referenced))
        for name, sql in ddl.create_indexes(self.db, model):
            if not self._name_is_taken(key, name):
                self._step("create_index", key, name, [sql], "instant", lock="none")
        return None

    def _waits_for_unique_key(self, key: Key, table: Table, referenced: Collection[Key]) -> bool:
        """Refuse a table that refers to a key whose index takes long to build; a second run can make it."""
        waiting = self._being_built()
        for constraint in table.constraints:
            target = constraint.references
            if target in referenced and target is not None and label(target) in waiting:
                columns = ", ".join(constraint.referenced_columns)
                if self._lacks_unique(target, constraint.referenced_columns):
                    reason = f"cannot create table {label(key)}: {label(target)} ({columns}) is not unique yet"
                    self._refuse("create_table", key, key[1], reason, "migrate first without that reference")
                    return True
        return False

    def _being_built(self) -> set[str]:
        """Return the tables on which an index is built online."""
        return {step.table for step in self.steps if step.builds}

    def _lacks_unique(self, target: Key, columns: Sequence[str]) -> bool:
        found = self.live.tables[target]
        keys = [c.columns for c in found.constraints if c.kind == "primary_key"]
        keys += [i.columns for i in found.indexes if i.unique and i.valid]
        return not any(set(k) == set(columns) for k in keys)

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
        rewriting = self.engine.rewriting(model, allowed) if rows and allowed and not table.by_name else set()
        in_order = {column.name: column for column in ordered}
        attached = {} if self.engine.constraints_can_be_added else self._attached(table, in_order)
        for column in allowed:
            if column.name in rewriting and self._is_large(key):
                self._refuse_rewrite(key, column)
                continue
            if self.engine.constraints_can_be_added and not table.by_name:
                sql = ddl.add_canonical_column(self.db, model, column)
            else:
                sql = ddl.add_declared_column(self.db, model, fields[column.name], attached.get(column.name, ()))
            count = self._size(key) if rows else "no rows"
            cost = f"rewrites the table, {count}" if column.name in rewriting else f"instant, {count}"
            self._step("add_column", key, column.name, self.engine.within(key[0], sql), cost)

    def _refuse_rewrite(self, key: Key, column: Column) -> None:
        name, count = f"{label(key)}.{column.name}", self._size(key)
        if column.generated:
            hint = "declare it VIRTUAL (PostgreSQL 18), or add a plain column and let a trigger fill it"
        elif column.identity or column.default == SERIAL:
            hint = "add a plain column, fill it in batches, then give it its sequence by hand"
        else:
            hint = (
                "declare it null=True and without the default, fill it in batches, then set the default: "
                f"ALTER TABLE {label(key)} ALTER {quote(column.name)} SET DEFAULT {column.default}"
            )
        reason = f"cannot add column {name}: it would rewrite {count} under ACCESS EXCLUSIVE"
        more = f"; or raise WHATSAPP_DATABASE_MIGRATION_ONLINE_ROWS over {self.online_rows} in a quiet hour"
        self._refuse("add_column", key, column.name, reason, hint + more)

    def _refuses_column(self, key: Key, table: Table, column: Column, rows: bool) -> bool:
        if table.by_name:
            return False  # what it is exactly is not known
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

    def _create_index(self, key: Key, index: Index, broken: Index | None = None) -> None:
        """Create an index, in place of a broken one: one of the same definition that is INVALID."""
        model = self.models[key]
        if self._name_is_taken(key, index.name) or self._has_duplicates(key, index):
            return
        statements = {self.engine.fold(name): sql for name, sql in ddl.create_indexes(self.db, model)}
        if index.name in statements:
            self._build(key, index, statements[index.name], broken)
        elif index.constraint:
            self._add_unique(key, index, broken)
        elif index.name:
            raise ModelError(
                f"no statement of {model.__name__} creates its index {index.name}",
                "write the name in Meta.indexes as the database keeps it",
            )
        else:
            name = "_".join([key[1], *index.columns, "unique"])
            columns = ", ".join(map(quote, index.columns))
            sql = f"CREATE UNIQUE INDEX {quote(name)} ON {self.rows.table(key)} ({columns})"
            self._step("create_index", key, name, [sql], self._scans(key))

    def _size(self, key: Key) -> str:
        estimate = self.rows.estimate(key)
        about = "about " if self.engine.builds_online and estimate and estimate > self.online_rows else ""
        return about + _rows(estimate)

    def _scans(self, key: Key) -> str:
        return f"scans {self._size(key)}"

    def _is_built_online(self, key: Key, index: Index) -> bool:
        # To build another kind takes some hundred times as long a row.
        limit = self.online_rows if index.method in ("", "btree", "hash", "brin") else self.online_rows // 100
        return self._is_large(key, limit)

    def _build(self, key: Key, index: Index, sql: str, broken: Index | None) -> bool:
        """Add the step that builds an index; tell whether it was not refused."""
        if broken is None and not self._is_built_online(key, index):
            self._step("create_index", key, index.name, [sql], self._scans(key))
            return True
        if self.live.tables[key].partitioned:
            reason = f"cannot create index {index.name}: {label(key)} is partitioned, and large"
            hint = (
                f"CREATE INDEX {quote(index.name)} ON ONLY {label(key)} ..., then on each partition CREATE INDEX "
                "CONCURRENTLY and ALTER INDEX ... ATTACH PARTITION"
            )
            self._refuse("create_index", key, index.name, reason, hint)
            return False
        name = qualified(key[0], index.name)
        drop = [f"DROP INDEX CONCURRENTLY {name}"] if broken else []
        self._step(
            "create_index",
            key,
            index.name,
            [*drop, ddl.concurrently(sql)],
            f"online, {self._scans(key)}",
            self.engine.lock_of("build_index"),
            online=True,
            builds=name,
            repairs=self.rows.table(key) if broken else "",
        )
        return True

    def _add_unique(self, key: Key, index: Index, broken: Index | None = None) -> None:
        model, definition = self.models[key], ddl.unique_definition(index)
        if broken is None and not self._is_large(key):
            sql = ddl.add_constraint(self.db, model, index.name, definition)
            self._step("add_constraint", key, index.name, [sql], self._scans(key))
            return
        if self._build(key, index, ddl.unique_index(self.rows.table(key), index), broken):
            self._use_index(key, index, online=True)

    def _use_index(self, key: Key, index: Index, *, online: bool) -> None:
        """Make a constraint of the unique index of its name."""
        definition = f"UNIQUE USING INDEX {quote(index.name)}{index.constraint.removeprefix('UNIQUE')}"
        sql = ddl.add_constraint(self.db, self.models[key], index.name, definition)
        self._step("add_constraint", key, index.name, [sql], "instant", online=online)

    def _has_duplicates(self, key: Key, index: Index) -> bool:
        found = self.rows.duplicates(key, index, self.new_columns.get(key, {})) if index.unique and index.keys else 0
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
        self._add_checked(key, constraint)

    def _add_checked(self, key: Key, constraint: Constraint) -> None:
        """Add a constraint, on a large table in two steps: for new rows at once, for those there are online."""
        target = constraint.references
        is_reference = constraint.kind == "foreign_key"
        targets = [target] if target in self.live.tables and target is not None else []
        large = any(self._is_large(k) for k in [key, *targets])
        # A reference of a partitioned table can be NOT VALID from PostgreSQL 18 on alone.
        whole = constraint.has_index or (is_reference and self.live.tables[key].partitioned)
        lock = self.engine.lock_of("add_foreign_key" if is_reference else "add_constraint")
        if large and whole:
            self._refuse_scan(key, constraint, lock)
            return
        waits = is_reference and not self._being_built().isdisjoint(map(label, targets))
        in_two = (large or waits) and not (whole or constraint.definition.endswith("NOT ENFORCED"))
        sql = ddl.add_constraint(
            self.db, self.models[key], constraint.name, constraint.sql + (" NOT VALID" if in_two else "")
        )
        # A reference names its target in full; other definitions are written as seen from the table's schema.
        within = (sql,) if is_reference else self.engine.within(key[0], sql)
        cost = "instant" if in_two else self._scans(key)
        self._step("add_constraint", key, constraint.name, within, cost, lock, targets=targets, online=waits)
        if in_two:
            self._validate(key, constraint.name)

    def _validate(self, key: Key, name: str) -> None:
        sql = f"ALTER TABLE {self.rows.table(key)} VALIDATE CONSTRAINT {quote(name)}"
        self._step("validate_constraint", key, name, [sql], f"online, {self._scans(key)}", online=True)

    def _refuse_scan(self, key: Key, constraint: Constraint, lock: str) -> None:
        what, columns = constraint.kind.replace("_", " "), ", ".join(map(quote, constraint.columns))
        reason = f"cannot add {what} {_of(key, constraint)}: it would scan {self._size(key)} under {lock}"
        hint = f"add it by hand in a quiet hour: ALTER TABLE {label(key)} ADD {constraint.definition}"
        if constraint.kind == "primary_key":
            table, name = label(key), quote(constraint.name)
            hint = (
                f"CREATE UNIQUE INDEX CONCURRENTLY {name} ON {table} ({columns}); make the columns NOT NULL; "
                f"ALTER TABLE {table} ADD CONSTRAINT {name} PRIMARY KEY USING INDEX {name}"
            )
        self._refuse("add_constraint", key, constraint.name, reason, hint)

    # What stands there half done

    def finish(self, drift: Drift) -> bool:
        """Plan to finish what a killed run, or somebody else, left INVALID or NOT VALID; tell whether that can be."""
        key, wanted, got = drift.key, drift.unfinished, drift.left
        if wanted is None or key is None:
            return False
        steps, refusals = len(self.steps), len(self.refusals)
        if isinstance(wanted, Index):
            assert isinstance(got, Index)
            if got.valid:
                self._use_index(key, wanted, online=False)
            else:
                self._create_index(key, wanted, broken=got)
        elif not self._violates(key, wanted):
            self._validate(key, got.name if got else wanted.name)
        # Rows that stand in the way are the reason why it is as it is, and no reason to refuse all the rest.
        del self.refusals[refusals:]
        return len(self.steps) > steps

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
