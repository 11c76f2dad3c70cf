"""What all parts of the planner share: both schemas, questions about rows, and the steps and refusals so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import peewee

from ..costs import Cost, Size
from ..ddl import ModelType
from ..diff import Missing
from ..engines.base import Engine
from ..placements import Placements
from ..plan import Refusal, Step
from ..rows import Rows
from ..schema import Column, Key, Schema, label

if TYPE_CHECKING:
    from ..plan import Lock, StepKind


@dataclass
class Draft:
    """A plan that is being made.

    :param online_rows: a table with more is large: what takes long on it is done online, or refused.
    """

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
    def placements(self) -> Placements:
        return self.engine.placements(self.live)

    @cached_property
    def new_columns(self) -> dict[Key, dict[str, Column]]:
        found: dict[Key, dict[str, Column]] = {}
        for item in self.missing:
            if isinstance(item.item, Column):
                found.setdefault(item.table, {})[item.name] = item.item
        return found

    @cached_property
    def free_tables(self) -> set[Key]:
        """The new tables that lead to no table that stands already, not by way of others either."""
        free = {item.table for item in self.of_kind("table")}
        references = {key: {c.references for c in self.declared.tables[key].constraints} - {None} for key in free}
        while bound := {key for key in free if not references[key] <= free}:
            free -= bound
        return free

    def of_kind(self, kind: str) -> Iterator[Missing]:
        """Yield the missing things of a kind."""
        return (item for item in self.missing if item.kind == kind)

    def add(
        self,
        kind: StepKind,
        key: Key,
        name: str,
        sql: Iterable[str],
        cost: Cost,
        *,
        lock: Lock | None = None,
        targets: Iterable[Key] = (),
        online: bool = False,
        builds: str = "",
        repairs: str = "",
        locked: str = "",
    ) -> None:
        """Add a step.

        :param lock: default: the kind's own. It is taken on the table where that stands already, and on the targets.
        :param locked: the quoted table that it is taken on instead.
        """
        mode = self.engine.lock_of(kind) if lock is None else lock
        locks: tuple[tuple[str, Lock], ...] = ((locked, mode),) if locked else ()
        if not locked and self.engine.builds_online and mode != "none" and not builds:
            tables = [key, *targets] if key in self.live.tables else list(targets)
            locks = tuple((self.rows.table(t), mode) for t in dict.fromkeys(tables) if t[1])
        free = key in self.free_tables or kind in ("create_schema", "create_extension")
        self.steps.append(
            Step(kind, label(key), name, tuple(sql), mode, cost, online, free, locks, builds=builds, repairs=repairs)
        )

    def refuse(self, kind: str, key: Key, name: str, reason: str, hint: str) -> None:
        """Add a refusal."""
        self.refusals.append(Refusal(kind, label(key), name, reason, hint))

    def being_built(self) -> set[str]:
        """Return the tables on which an index is built online."""
        return {step.table for step in self.steps if step.builds}

    def is_large(self, key: Key, limit: int | None = None) -> bool:
        """Tell whether the service would feel it when a table is scanned or rewritten while it is locked."""
        if not self.engine.builds_online or key not in self.live.tables:
            return False
        estimate = self.rows.estimate(key)
        return estimate is None or estimate > (self.online_rows if limit is None else limit)

    def size(self, key: Key) -> Size:
        """Return how many rows a table has; of a large one it is an estimate."""
        estimate = self.rows.estimate(key)
        return Size(estimate, self.engine.builds_online and (estimate or 0) > self.online_rows)

    def scans(self, key: Key, online: bool = False) -> Cost:
        """Return what a step costs that reads a whole table."""
        return Cost("scans", self.size(key), online)
