"""What runs recorded -> the plan to take it back: what still stands as it was added, what depends on it, its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from .added import Added, described, parts_of
from .costs import INSTANT, Cost, Size
from .ddl import quote
from .engines.base import Engine, discarded
from .engines.undoing import Dependent, UndoEngine, undo_engine
from .plan import Refusal, Step
from .records import UNFINISHED, Record
from .rows import Rows, number_of_rows
from .schema import NOTES, PROOF, Column, Constraint, Key, Schema, Table, label
from .undo_plan import UndoPlan

if TYPE_CHECKING:
    from .plan import Lock, StepKind

WITH_DATA = "undo --with-data makes a backup, and drops it with what it holds"
NO_BACKUP = "a backup does not hold what is attached: copy that file, and drop it by hand"
# References go before what they lead to, and columns after what is built on them.
_ORDER = ("foreign_key", "table", "index", "constraint", "column", "extension", "schema")


def make_undo_plan(
    engine: Engine,
    records: Sequence[Record],
    live: Schema,
    version: int,
    online_rows: int,
    with_data: bool,
    counts: bool = True,
) -> UndoPlan:
    """Return what takes some runs back, or why that is refused.

    :param records: the newest first.
    :param live: the tables that they are about.
    :param online_rows: a table with more rows is large: it is locked for no scan.
    :param with_data: drop what holds rows too.
    :param counts: look at each row of a large table too, and not only at the first ones.
    """
    proofs = proofs_in(live)
    draft = Draft(engine, undo_engine(engine), records, without_proofs(live), proofs, online_rows, with_data, counts)
    refused = tuple(draft.refusals())
    steps = () if refused else tuple(draft.steps())
    if steps and (why := draft.undo.trial([sql for step in steps for sql in step.sql])):
        what = Refusal("undo", "", "", f"the database refuses it: {why}", "drop or mend what that names first")
        refused, steps = (what,), ()
    notes = (*engine.notes(steps), *draft.uncounted())
    return UndoPlan(engine.name, version, tuple(r.version for r in records), steps, refused, notes)


def keys_of(records: Iterable[Record]) -> list[Key]:
    """Return the tables that runs are about, and the schemas that they made."""
    found = [added for record in records for added in record.added]
    keys = [added.table for added in found if added.table[1]]
    keys += [(added.name, "") for added in found if added.kind == "schema"]
    return list(dict.fromkeys(keys))


def proofs_in(live: Schema) -> dict[Key, list[str]]:
    """Return the constraints of an undo that was killed, by their tables."""
    found = {key: [c.name for c in table.constraints if _is_proof(c)] for key, table in live.tables.items()}
    return {key: names for key, names in found.items() if names}


def without_proofs(live: Schema) -> Schema:
    """Return a schema without them."""
    tables = {
        key: replace(table, constraints=tuple(c for c in table.constraints if not _is_proof(c)))
        for key, table in live.tables.items()
    }
    return replace(live, tables=tables)


def _is_proof(constraint: Constraint) -> bool:
    return constraint.kind == "check" and constraint.name.startswith(PROOF)


BUILT_LATER = ("index", "constraint")  # online, after the transaction


def standing_of(records: Iterable[Record], live: Schema) -> list[Added]:
    """Return what runs added and is still there, as it was recorded; the newest first."""
    found: dict[tuple[str, Key, str], Added] = {}
    for record in records:
        for added in reversed(record.added):
            if added.table[1] in NOTES:  # whatever a record says, the history stays
                continue
            (now,) = described([added], live)
            # Only what a killed run was still to build has no definition yet.
            is_known = added.definition is not None or (record.version == UNFINISHED and added.kind in BUILT_LATER)
            if now.definition is not None and is_known:
                definition = now.definition if added.definition is None else added.definition
                found.setdefault(now.identity, replace(now, definition=definition))
    return list(found.values())


def parts_left(records: Sequence[Record], live: Schema) -> dict[Key, set[str]]:
    """Return what each table has without what runs added; those that they made are left out."""
    live = without_proofs(live)
    gone = standing_of(records, live)
    tables = {each.table for each in gone if each.kind == "table"}
    return {key: parts_after(table, gone) for key, table in live.tables.items() if key not in tables}


def parts_after(table: Table, dropped: Iterable[Added]) -> set[str]:
    """Return the parts of a table that are left when objects of it are dropped."""
    gone = {part for each in dropped if each.table == table.key for part in each.definition or ()}
    return set(parts_of(table)) - gone


@dataclass
class Draft:
    """An undo that is being planned."""

    engine: Engine
    undo: UndoEngine
    records: Sequence[Record]
    live: Schema
    proofs: dict[Key, list[str]]
    online_rows: int
    with_data: bool
    counts: bool = True
    _holding: dict[tuple[str, Key, str], int | None] = field(default_factory=dict)

    # What to drop

    @cached_property
    def standing(self) -> list[Added]:
        """What is still there of what the runs added."""
        return standing_of(self.records, self.live)

    @cached_property
    def targets(self) -> list[Added]:
        """What to drop; what belongs to a table goes with it."""
        tables = {each.table for each in self.standing if each.kind == "table"}
        left = [each for each in self.standing if each.kind == "table" or each.table not in tables]
        return sorted(left, key=lambda each: _ORDER.index(self._rank(each)))

    def _rank(self, added: Added) -> str:
        is_reference = added.kind == "constraint" and (added.definition or ("",))[0].find(" FOREIGN KEY ") > 0
        return "foreign_key" if is_reference else added.kind

    # What stands in the way

    def refusals(self) -> Iterator[Refusal]:
        """Yield why it cannot be done."""
        for added in self.targets:
            yield from self._changed(added)
        going = {each.identity for each in self.targets}
        found: dict[tuple[str, str], Dependent] = {}
        for dependent in self.dependents:
            if (
                dependent.identity not in going
                and dependent.identity[1] not in self._tables
                and not self._is_own(dependent)
            ):
                found.setdefault((dependent.of.title, dependent.title), dependent)
        for dependent in found.values():
            hint = "drop that first, or change it so that it does without"
            yield _refusal(dependent.of, f"{dependent.title} depends on it", hint)
        for added in self.targets:
            yield from self._impossible(added)
            yield from self._lost(added)

    @cached_property
    def dependents(self) -> list[Dependent]:
        """What depends on what is to go, also where it goes too."""
        return self.undo.dependents(self.targets, self.live)

    def _is_own(self, dependent: Dependent) -> bool:
        """Tell whether it is a part of what it depends on: the index of a constraint, or the column's own CHECK."""
        kind, table, name = dependent.identity
        if kind != "index":
            return False
        # Behind a UNIQUE or EXCLUDE constraint stands an index of its name, and beside a CHECK may stand one.
        others = self.live.tables[table].constraints if table in self.live.tables else ()
        if any(c.name == name and not c.has_index for c in others):
            return False
        if dependent.of.kind == "constraint":
            return (table, name) == (dependent.of.table, dependent.of.name)
        return ("constraint", table, name) in {each.identity for each in self.targets}

    def _changed(self, added: Added) -> Iterator[Refusal]:
        recorded = set(added.definition or ())
        if added.kind == "table":
            newer = [each for each in self.standing if each is not added]
            now = parts_after(self.live.tables[added.table], newer)
            recorded -= {part for each in newer if each.table == added.table for part in each.definition or ()}
        else:
            (found,) = described([added], self.live)
            now = set(found.definition or ())
        if now != recorded:
            more = [f"+ {part}" for part in sorted(now - recorded)] + [f"- {part}" for part in sorted(recorded - now)]
            reason = f"it is not as the run left it: {', '.join(more[:3])}"
            yield _refusal(added, reason, "undo that change first, or drop it by hand")

    def _impossible(self, added: Added) -> Iterator[Refusal]:
        if added.kind == "column":
            column = self.live.tables[added.table].columns[added.name]
            if why := self.undo.cannot_drop(column, added.table, self.live):
                yield _refusal(added, why, "leave it there, or make the table anew without it by hand")

    def _lost(self, added: Added) -> Iterator[Refusal]:
        if added.kind not in ("table", "column") or self._may_lose(added.table) or not (held := self.held(added)):
            return
        rows = number_of_rows(held) if self.counts or held <= self.online_rows else f"more than {self.online_rows} rows"
        what = f"it has {rows}" if added.kind == "table" else f"{rows} {'holds' if held == 1 else 'hold'} a value there"
        yield _refusal(added, what, WITH_DATA if self.undo.is_in_backup(added.table) else NO_BACKUP)

    def _may_lose(self, key: Key) -> bool:
        """Tell whether the rows of a table are given up, as a backup has them."""
        return self.with_data and self.undo.is_in_backup(key)

    def held(self, added: Added) -> int | None:
        """Return in how many rows a table, or a column, holds something that would be lost; None was not counted."""
        if added.identity not in self._holding:
            self._holding[added.identity] = self._count(added)
        return self._holding[added.identity]

    def uncounted(self) -> Iterator[str]:
        """Yield a note on the columns of large tables whose rows were not looked at."""
        found = [f"{label(key)}.{name}" for (_, key, name), held in self._holding.items() if held is None]
        if found:
            yield f"{', '.join(found)}: undo --plan finds out whether rows hold a value there"

    def _count(self, added: Added) -> int | None:
        column = self._column(added)
        where = ""
        if column is not None:
            if column.generated:
                return 0
            where = f" WHERE NOT ({self.undo.is_unused(column, added.table)})"
        count, table = f"SELECT {self.engine.function('count')}(*) FROM", self.undo.name(added.table)
        with discarded(self.engine.db):
            self.engine.see_every_row()
            if not self.counts:
                first = f"(SELECT 1 FROM {table} LIMIT {self.online_rows + 1}) AS first"
                found = int(self.engine.ask(f"{count} {first}"))
                if column is None or found > self.online_rows:
                    return found if column is None else None
            return int(self.engine.ask(f"{count} {table}{where}"))

    def _column(self, added: Added) -> Column | None:
        return self.live.tables[added.table].columns[added.name] if added.kind == "column" else None

    # Steps

    @cached_property
    def rows(self) -> Rows:
        return Rows(self.engine, {}, self.live, self.online_rows)

    def is_large(self, key: Key) -> bool:
        """Tell whether a scan of a table under a lock would be felt."""
        if not self.engine.builds_online:
            return False
        estimate = self.rows.estimate(key)
        return estimate is None or estimate > self.online_rows

    def size(self, key: Key) -> Size | None:
        """Return how many rows a table has; None where that would have to be counted, and is not to be."""
        if not (self.counts or self.engine.builds_online):
            return None
        estimate = self.rows.estimate(key)
        return Size(estimate, self.engine.builds_online and (estimate or 0) > self.online_rows)

    def steps(self) -> Iterator[Step]:
        """Yield the steps: what is done online first, proofs before what cannot be taken back."""
        found = [step for added in self.targets for step in self._steps(added)]
        yield from sorted(found, key=lambda step: (not step.online, step.online and step.kind == "drop_index"))

    def _steps(self, added: Added) -> Iterator[Step]:
        if added.kind == "table":
            yield self._drop_table(added)
        elif added.kind == "column":
            yield from self._drop_column(added)
        elif added.kind == "index":
            online = self._goes_online(added)
            sql = self.undo.drop_index(added.table, added.name, online=online)
            yield self._step("drop_index", added, [sql], INSTANT, online=online)
        elif added.kind == "constraint":
            sql = self.undo.drop_constraint(added.table, added.name)
            yield self._step("drop_constraint", added, [sql], INSTANT, self._targets_of(added))
        else:
            sql = f"DROP {added.kind.upper()} {quote(added.name)}"
            kind: StepKind = "drop_schema" if added.kind == "schema" else "drop_extension"
            yield Step(kind, "", added.name, (sql,), "none", INSTANT)

    def _goes_online(self, index: Added) -> bool:
        """Tell whether an index is dropped before the transaction: no reference that goes there may need it."""
        is_needed = any(dependent.of is index for dependent in self.dependents)
        return self.is_large(index.table) and not self.live.tables[index.table].partitioned and not is_needed

    def _drop_table(self, added: Added) -> Step:
        table = self.live.tables[added.table]
        proof = [] if self._may_lose(added.table) else [self.undo.proof(added.table, None)]
        # References in a circle: none of the tables can go first.
        later = self._tables[self._tables.index(added.table) + 1 :] if self.engine.constraints_can_be_added else []
        back = [(key, c) for key in later for c in self.live.tables[key].constraints if c.references == added.table]
        unlinked = [self.undo.drop_constraint(key, constraint.name) for key, constraint in back]
        targets = [c.references for c in table.constraints if c.references] + [key for key, _ in back]
        cost = INSTANT if proof else Cost("instant", lost=self._dropped(added, "drops {}"))
        sql = [*proof, *unlinked, f"DROP TABLE {self.undo.name(added.table)}"]
        return self._step("drop_table", added, sql, cost, targets)

    def _dropped(self, added: Added, what: str) -> str:
        held = self.held(added)
        return "" if held == 0 else what.format(Size(held))

    @cached_property
    def _tables(self) -> list[Key]:
        return [each.table for each in self.targets if each.kind == "table"]

    def _drop_column(self, added: Added) -> Iterator[Step]:
        key, column = added.table, self._column(added)
        drop = self.undo.drop_column(key, added.name)
        targets = self._targets_of(added)
        if self._may_lose(key) or column is None or column.generated:
            lost = self._dropped(added, "drops the values of {}")
            cost = Cost("rewrites", self.size(key), lost=lost) if self.undo.rewrites else Cost("instant", lost=lost)
            yield self._step("drop_column", added, [drop], cost, targets)
            return
        if not self.is_large(key):
            cost = Cost("rewrites" if self.undo.rewrites else "scans", self.size(key))
            left = next((name for name in self.proofs.get(key, ()) if name == self.undo.proof_name(column)), None)
            yield self._step("drop_column", added, [self.undo.proof(key, column, left), drop], cost, targets)
            return
        keep_out, prove = self.undo.online_proof(key, column)
        yield self._step("prove_unused", added, [keep_out], INSTANT, online=True, lock=self.undo.lock)
        scan = Cost("scans", self.size(key), online=True)
        yield self._step("prove_unused", added, [prove], scan, online=True)
        # Proved already, it is instant; where somebody took the proof away it fails.
        yield self._step("drop_column", added, [prove, drop], INSTANT, targets)

    def _targets_of(self, added: Added) -> list[Key]:
        """Return the tables that references lead to which go with an object."""
        for_column = added.kind == "column"
        return [
            c.references
            for c in self.live.tables[added.table].constraints
            if c.references and (added.name in c.columns if for_column else c.name == added.name)
        ]

    def _step(
        self,
        kind: StepKind,
        added: Added,
        sql: Sequence[str],
        cost: Cost,
        targets: Sequence[Key] = (),
        *,
        online: bool = False,
        lock: Lock | None = None,
    ) -> Step:
        """Return a step; one that runs online takes locks only where it is given one."""
        mode = lock or (self.undo.online_lock if online else self.undo.lock)
        locks: tuple[tuple[str, Lock], ...] = ()
        if self.engine.builds_online and (lock or not online):
            tables = [added.table, *(key for key in targets if key != added.table)]
            locks = tuple((self.undo.name(key), mode) for key in dict.fromkeys(tables))
        name = added.name or label(added.table)
        return Step(kind, label(added.table), name, tuple(sql), mode, cost, online, locks=locks)


def _refusal(added: Added, reason: str, hint: str) -> Refusal:
    name = added.name or label(added.table)
    return Refusal(f"drop_{added.kind}", label(added.table), name, f"cannot drop {added.title}: {reason}", hint)
