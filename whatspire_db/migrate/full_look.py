"""The full look at a database: what is declared, what is live, what differs, and what there is to do."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import peewee

from ..errors import ModelError, ScratchUnavailable, WhatspireDBError
from ..models.service import MigrationVersion
from . import history
from .ddl import ModelType
from .diff import Changes, diff
from .engines.base import Engine, declared_names, discarded
from .engines.references import with_references
from .failures import can_be_of_a_change
from .plan import Plan, Refusal
from .renaming import renamings
from .schema import NOTES, Key, Schema, label
from .stamp import Standing
from .stamping import Stamping

if TYPE_CHECKING:
    from .mending import Mending

logger = logging.getLogger("whatspire_db.migrate")

LOOKS = 5  # tries to see a schema that stands still


@dataclass(frozen=True)
class Look:
    """What is declared and what there is to do, and how the database stood before and after that was found out."""

    declared: Schema
    plan: Plan
    before: Standing | None
    after: Standing | None

    @property
    def is_of_one_schema(self) -> bool:
        return bool(self.before and self.after and self.before.mark == self.after.mark)


@dataclass(frozen=True)
class Comparison:
    """Both schemas, what differs with what would mend it, and what a run would do; `live` is all that there is."""

    declared: Schema
    live: Schema
    mending: Mending
    plan: Plan


@dataclass(frozen=True)
class Looking:
    """Looks at a database with the eyes of some models.

    :param online_rows: a table with more is large: what takes long on it is done online, or refused.
    """

    stamping: Stamping
    online_rows: int

    @property
    def engine(self) -> Engine:
        return self.stamping.engine

    @property
    def models(self) -> Sequence[ModelType]:
        return self.stamping.models

    @property
    def all_models(self) -> list[ModelType]:
        """The models, and the one of the history, which a run that changes something needs."""
        key = self.engine.key
        if key(MigrationVersion) in {key(m) for m in self.models}:
            return list(self.models)
        return [*self.models, MigrationVersion]

    @contextmanager
    def reading(self, wait_seconds: float | None = None) -> Iterator[None]:
        """Look in a transaction that is rolled back, and wait for no lock longer than the limit."""
        seconds = self.stamping.wait_seconds if wait_seconds is None else wait_seconds
        with self.engine.reading(seconds):
            yield

    def look(self, before: Standing | None, wait_seconds: float | None = None) -> Look:
        """Look in full; again where somebody changed the schema meanwhile, for then the parts do not fit together."""
        for _ in range(LOOKS - 1):
            try:
                look = self._look_once(before, wait_seconds)
                if not look.plan.refused or look.is_of_one_schema:
                    return look
                before = look.after
            except (peewee.PeeweeException, ModelError) as error:
                if not can_be_of_a_change(error):
                    raise
                after = self.stamping.standing()
                if before and after and before.mark == after.mark:
                    raise
                before = after
        return self._look_once(before, wait_seconds)

    def _look_once(self, before: Standing | None, wait_seconds: float | None) -> Look:
        with self.reading(wait_seconds):
            declared = self.declared()
            plan = self.plan(declared, version=0)  # it is known once the schema stood still
            # Another run may have changed the schema since the first question, and not have recorded it yet.
            after = self.stamping.standing()
            version = after.version if after else history.version_or_zero(self.engine)
        return Look(declared, replace(plan, version=version), before, after)

    def plan(self, declared: Schema, version: int) -> Plan:
        """Return what there is to do for a declared schema; all is refused where the rows were moved elsewhere.

        :param version: the newest recorded one, which the plan tells.
        """
        plan = self._plan(declared, version)
        if (fence := self.engine.fence()) is None:
            return plan
        moved = Refusal("fence", "", "", fence.fact, fence.hint)
        return replace(plan, refused=(moved, *plan.refused), adoption=())

    def _plan(self, declared: Schema, version: int) -> Plan:
        live = self._judged()
        changes = self.changes(declared, live)
        adopts = self._would_adopt(declared, changes)
        if found := self.engine.untrusted(self.all_models) if adopts or _asks_for_work(changes) else None:
            changes = replace(changes, missing=[] if adopts else changes.missing)
            return Plan(self.engine.name, version, refused=_untrusted(changes, found), drift=tuple(changes.drift))
        from .planner import make_plan  # not for a look that compares alone

        with discarded(self.engine.db):
            self.engine.see_every_row()
            plan = make_plan(self.engine, self.all_models, changes, declared, live, version, self.online_rows)
        plan = replace(plan, left=tuple(str(extra) for extra in changes.extra if extra.is_proof))
        if self._brings_history and not plan.refused and all(step.table == self._history for step in plan.pending):
            return replace(plan, pending=(), notes=(), adoption=plan.pending if adopts else ())
        return replace(plan, renamed=tuple(changes.renamed))

    @property
    def _brings_history(self) -> bool:
        """Tell whether the history is not among the models: it is made only with something to record."""
        return len(self.all_models) > len(self.models)

    @property
    def _history(self) -> str:
        return label(self.engine.key(MigrationVersion))

    def _would_adopt(self, declared: Schema, changes: Changes) -> bool:
        """Tell whether all that is missing is a history, which this role may make."""
        if not self._brings_history or declared.unproved or not changes.missing:
            return False
        is_alone = all(label(item.table) == self._history for item in changes.missing)
        return is_alone and not any(d.unfinished for d in changes.drift) and self.engine.may_create()

    def compared(self) -> tuple[Schema, Changes]:
        """Return the declared schema and all that the live one differs in, but for the history nobody has asked for."""
        declared = self.declared()
        return declared, self._asked_for(self.changes(declared, self._judged()))

    def _asked_for(self, changes: Changes) -> Changes:
        keys = {self.engine.key(model) for model in self.models}
        return replace(changes, missing=[m for m in changes.missing if not m.table[1] or m.table in keys])

    def mending(self) -> tuple[Schema, Mending]:
        """Return the declared schema, what the live one differs in, and what would mend the drift."""
        declared = self.declared()
        return declared, self._mending(declared, self._judged())

    def _mending(self, declared: Schema, live: Schema) -> Mending:
        from .mending import Mending, drifted_tables  # only for verify --sql

        changes = self._asked_for(self.changes(declared, live))
        order = [self.engine.key(model) for model in with_references(self.all_models)]
        tables = drifted_tables(changes, declared, live, order)
        found = self.engine.fixes(tables, self.by_key, live) if tables else []
        return Mending.of_changes(changes, found, self.engine.script_settings())

    def comparison(self) -> Comparison:
        """Return both schemas, the live one with the tables that no model stands for, and all that follows of them."""
        declared, live = self.declared(), self._judged()
        mending, plan = self._mending(declared, live), self.plan(declared, version=0)
        asked = {key: declared.tables[key] for key in map(self.engine.key, self.models) if key in declared.tables}
        return Comparison(replace(declared, tables=asked), self._whole(live), mending, plan)

    def whole(self) -> Schema:
        """Return the live schema with all of its tables, but for those in which the package notes its own runs."""
        return self._whole(self._judged())

    def _whole(self, live: Schema) -> Schema:
        keys = [key for key in (*live.tables, *live.others) if key[1] not in NOTES[1:]]
        return self.engine.snapshot(keys)

    @property
    def by_key(self) -> dict[Key, ModelType]:
        """The models by their tables."""
        return {self.engine.key(model): model for model in self.all_models}

    def _judged(self) -> Schema:
        """Return the live schema, where this is the place to judge it."""
        live = self.snapshot()
        if refused := self.engine.refuses_everything(live):
            raise refused
        return live

    def snapshot(self) -> Schema:
        """Return the live schema, as far as the models concern it."""
        return self.engine.snapshot([self.engine.key(model) for model in self.all_models])

    def declared(self) -> Schema:
        """Return the declared schema; where the engine cannot make it, what is known of it by names.

        :raises ModelError: when two models declare one table.
        """
        keys: dict[tuple[str, str], ModelType] = {}
        for model in self.models:
            other = keys.setdefault(self.engine.key(model), model)
            if other is not model:
                raise ModelError(
                    f"{other.__name__} and {model.__name__} both declare table {model._meta.table_name}",
                    "give one of them another table_name, or leave it out",
                )
        models = self.all_models
        try:
            schema = self.engine.declared(models)
        except ScratchUnavailable as error:
            schema = replace(declared_names(self.engine, models), unproved=(error.fact, error.hint))
        # In the order of the models, so that two plans of one schema are equal.
        return replace(schema, tables={key: schema.tables[key] for key in map(self.engine.key, models)})

    def _settled(self, schema: Schema, keys: Collection[Key]) -> Schema:
        tables = {key: self.engine.settled(table) for key, table in schema.tables.items() if key in keys}
        return replace(schema, tables={**schema.tables, **tables})

    def changes(self, declared: Schema, live: Schema) -> Changes:
        """Compare two schemas; of the history counts only what is missing."""
        changes = diff(declared, live, self.engine.constraints_can_be_added)
        if keys := changes.by_text_alone():
            declared, live = (self._settled(schema, keys) for schema in (declared, live))
            changes = diff(declared, live, self.engine.constraints_can_be_added)
        if self.stamping.accepted:
            changes = changes.accepting(self.stamping.accepted)
        changes = replace(changes, renamed=list(renamings(changes, self.by_key, self.engine.fold)))
        if not self._brings_history:
            return changes
        return replace(
            changes,
            drift=[d for d in changes.drift if d.table != self._history],
            extra=[e for e in changes.extra if e.table != self._history],
        )


def warn_of_names(declared: Schema) -> None:
    """Say in the log when names alone could be compared, and why."""
    if declared.unproved:
        logger.warning("compared by names alone: %s (%s)", *declared.unproved)


def _asks_for_work(changes: Changes) -> bool:
    return bool(changes.missing) or any(drift.unfinished for drift in changes.drift)


def _untrusted(changes: Changes, why: WhatspireDBError) -> tuple[Refusal, ...]:
    """Refuse to add what is missing; with nothing missing, what was left half done stays as it is."""
    if not changes.missing:
        return ()
    first, more = changes.missing[0], len(changes.missing) - 1
    what = str(first).removeprefix("missing ") + (f" and {more} more" if more else "")
    kind = f"{'add' if first.kind in ('column', 'constraint') else 'create'}_{first.kind}"
    return (Refusal(kind, label(first.table), first.name, f"cannot add {what}: {why.fact}", why.hint),)
