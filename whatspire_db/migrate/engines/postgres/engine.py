"""PostgreSQL: snapshot from the catalogs, scratch in pg_temp, an advisory lock, steps that a service does not feel."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime

import peewee
from peewee import Value

from whatspire_db.errors import LockTimeout, ModelError, WhatspireDBError
from whatspire_db.light_stdlib import TYPE_CHECKING, Any, lazy_module
from whatspire_db.migrate.ddl import ModelType, execute, qualified, quote
from whatspire_db.migrate.plan import Step
from whatspire_db.migrate.progress import Progress
from whatspire_db.migrate.schema import Column, Index, Key, Schema, Table
from whatspire_db.migrate.stamp import Stamps, Standing, declared_text
from whatspire_db.sql import literal, pinned

from ..base import LOOK_SECONDS, Engine, IndexPart, T, discarded
from . import NAME_BYTES, history
from .limits import lock_limit

if TYPE_CHECKING:
    from whatspire_db.migrate.mending import DriftedTable, Fix
    from whatspire_db.migrate.placements import Placements
    from whatspire_db.migrate.plan import Lock, LockedWork
    from whatspire_db.migrate.times import TimeNote

    from .. import references
    from . import (
        catalog,
        citus,
        extensions,
        holders,
        lock_table,
        mending,
        online,
        partitions,
        probing,
        scratch,
        session,
        settling,
        trust,
    )
    from . import locks as locking
else:  # a start that finds its stamp needs none of these

    def lazy(names: str) -> Iterator[Any]:
        return (lazy_module(f"{__package__}.{name}") for name in names.split())

    catalog, citus, extensions, holders, mending = lazy("catalog citus extensions holders mending")
    lock_table, locking, online, partitions = lazy("lock_table locks online partitions")
    probing, scratch, session, settling, trust = lazy("probing scratch session settling trust")
    references = lazy_module("whatspire_db.migrate.engines.references")

KEEP_SECONDS = 1.0  # to wait for a lock that keeps the stamps from being stored
# They are pinned when they are asked: a start that finds its stamp asks none of them.
_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
_MAY_CREATE = (
    "SELECT current_setting('transaction_read_only') = 'off' AND has_schema_privilege(current_schema(), 'CREATE')"
)
_HAS_TABLE = "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(%s) AND relkind = ANY ('{r,p}'))"
_IS_BUILTIN = "SELECT to_regtype(%s)::oid < 16384"  # FirstNormalObjectId
_IS_DOMAIN = "SELECT typtype = 'd' FROM pg_type WHERE oid = to_regtype(%s)"

_LOCKS: Mapping[LockedWork, Lock] = {
    "create_schema": "none",
    "create_extension": "none",
    "create_table": "none",
    "create_index": "SHARE",
    "add_column": "ACCESS EXCLUSIVE",
    "add_constraint": "ACCESS EXCLUSIVE",
    "add_foreign_key": "SHARE ROW EXCLUSIVE",
    "validate_constraint": "SHARE UPDATE EXCLUSIVE",
    "build_index": "SHARE UPDATE EXCLUSIVE",
    "attach_index": "SHARE UPDATE EXCLUSIVE",
}
_PREPARED = (
    "clients that hold a prepared SELECT * (or RETURNING *) of {} get "
    '"cached plan must not change result type" (0A000) when they run it again, until they prepare it anew or '
    "reconnect; pgx, and with it the Go service, keeps prepared statements as long as a connection lives"
)
_FAMILIES = {
    "integer": "smallint|integer|bigint",
    "text": "text|character varying|character|citext|name",
    "number": "numeric|real|double precision",
}


class PostgresEngine(Engine):
    """PostgreSQL, from version 12 on."""

    name = "postgres"
    constraints_can_be_added = True
    builds_online = True
    takes_many_statements = True

    def __init__(self, db: peewee.PostgresqlDatabase, trust_source: bool = False) -> None:
        super().__init__(db, trust_source)
        self._default: str | None = None
        # Found by the look under way.
        self._strangers: dict[tuple[frozenset[ModelType], bool], list[trust.Stranger]] | None = None

    @property
    def default_schema(self) -> str:
        """Return the schema that unqualified names are created in."""
        if self._default is None:
            self._default = self.ask(pinned("SELECT current_schema()"))
        if self._default is None:
            raise ModelError("no schema of the search_path exists", "create one, or set search_path in the DSN")
        return self._default

    def fold(self, name: str) -> str:
        # A character that does not fit is dropped whole.
        return name.encode()[:NAME_BYTES].decode(errors="ignore")

    def place(self, model: ModelType) -> Key:
        schema = model._meta.schema or ""
        return ("" if schema == self.default_schema else schema, self.fold(model._meta.table_name))

    def snapshot(self, keys: Collection[Key]) -> Schema:
        schema = self._snapshot_one("", {key[1]: key for key in keys if not key[0]})
        for name in sorted({key[0] for key in keys} - {""}):
            with discarded(self.db):
                self.search_first(name)
                schema = schema.merge(self._snapshot_one(name, {k[1]: k for k in keys if k[0] == name}))
        return schema

    def _snapshot_one(self, schema: str, names: Mapping[str, Key], scratch: bool = False) -> Schema:
        """Read one schema; `names` are the tables asked for, by their names there."""
        oid = "pg_my_temp_schema()" if scratch else "to_regnamespace(%s)"
        query = catalog.snapshot_query(oid, self.db.server_version or 0)
        params: list[Any] = [] if scratch else [quote(schema or self.default_schema)]
        rows: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for what, name, value in catalog.facts(self.db, query, [*params, list(names)]):
            rows[what].append((name, value))
        here = next((name for name, _ in rows["schema"]), None)
        return self._read(schema, here, names, rows)

    def _read(
        self,
        schema: str,
        here: str | None,
        names: Mapping[str, Key],
        rows: Mapping[str, list[tuple[str, Any]]],
    ) -> Schema:
        of_table: dict[str, catalog.Rows] = defaultdict(lambda: defaultdict(list))
        for what in ("column", "index", "constraint", "rule"):
            for name, value in rows.get(what, ()):
                of_table[name][what].append(value)

        def target(value: Mapping[str, Any]) -> Key:
            if value["schema"] == here:
                return names.get(value["table"], (schema, value["table"]))
            return ("" if value["schema"] == self.default_schema else value["schema"], value["table"])

        tables, others = {}, []
        for name, value in rows.get("table", ()):
            if value["asked"]:
                tables[names[name]] = catalog.read_table(names[name], value, of_table[name], target)
            else:
                others.append((schema, name))
        relations = {(schema, name): owner for name, owner in rows.get("name", ())}
        extensions = frozenset(name for name, _ in rows.get("extension", ()))
        return Schema(tables, relations, tuple(sorted(others)), frozenset({schema} if here else ()), extensions)

    def declared(self, models: Sequence[ModelType]) -> Schema:
        return scratch.declared(self, models)

    def strangers(self, models: Sequence[ModelType], of_rows: bool = False) -> list[trust.Stranger]:
        if self.trust_source:
            return []
        known = {} if self._strangers is None else self._strangers
        if (asked := (frozenset(models), of_rows)) not in known:
            tables = [qualified(self.key(m)[0] or self.default_schema, self.key(m)[1]) for m in models]
            known[asked] = trust.strangers(self.db, trust.words_of(declared_text(self.db, models)), tables, of_rows)
        return known[asked]

    def refuses_everything(self, live: Schema) -> WhatspireDBError | None:
        return citus.elsewhere(self.db) if citus.EXTENSION in live.extensions else None

    def placements(self, live: Schema) -> Placements:
        if citus.EXTENSION not in live.extensions:
            return super().placements(live)
        here = self.default_schema
        return citus.placements(self.db, lambda schema, name: ("" if schema == here else schema, name))

    def untrusted(self, models: Sequence[ModelType]) -> WhatspireDBError | None:
        return trust.told(self.db, self.strangers(references.with_references(models)))

    def untrusted_table(self, model: ModelType) -> WhatspireDBError | None:
        return trust.told(self.db, [s for s in self.strangers([model], of_rows=True) if s.kind in trust.OF_ROWS])

    def has_table(self, key: Key) -> bool:
        return bool(self.ask(pinned(_HAS_TABLE), [qualified(key[0] or self.default_schema, key[1])]))

    def settled(self, table: Table) -> Table:
        return settling.settled(self, table)

    def scratch(self, schema: str, names: Mapping[str, Key]) -> Mapping[Key, Table]:
        """Return the tables that stand in pg_temp; `names` say in whose place, and in which schema's."""
        return self._snapshot_one(schema, names, scratch=True).tables

    @contextmanager
    def reading(self, wait_seconds: float) -> Iterator[None]:
        with discarded(self.db):
            locking.bound_look(self.db, wait_seconds)
            session.pin(self.db)
            self._strangers = {}
            try:
                yield
            finally:
                self._strangers = None

    def locked_out(self, models: Sequence[ModelType], wait_seconds: float) -> LockTimeout:
        tables = [qualified(m._meta.schema, self.fold(m._meta.table_name)) for m in models]
        return holders.locked_out(self.db, tables, wait_seconds)

    def standing(
        self, models: Sequence[ModelType], wait_seconds: float = LOOK_SECONDS, *, with_rows: bool = False
    ) -> Standing | None:
        tables = self.tables_of(models)
        # Within a transaction in a savepoint, for a question that fails ends it; outside of one the limit and the
        # question go to the server as one message.
        inside = self.db.in_transaction()

        def ask(sql: str) -> Any:
            with self.db.atomic() if inside else nullcontext():
                return self.ask_quietly(sql, tables)

        try:
            row = history.standing_row(self.db, ask, "" if inside else f"{lock_limit(wait_seconds)}; ", with_rows)
        except peewee.ProgrammingError:
            return None
        return None if row is None else history.standing_of(row)

    def tables_of(self, models: Sequence[ModelType]) -> list[list[str | None]]:
        """Return the parameters of the question how the database stands: schemas and tables, quoted."""
        schemas = [quote(model._meta.schema) if model._meta.schema else None for model in models]
        return [schemas, [quote(self.fold(model._meta.table_name)) for model in models]]

    def keep(self, stamps: Stamps) -> None:
        with suppress(peewee.PeeweeException), self.db.atomic():  # without them the next start looks in full
            execute(self.db, lock_limit(KEEP_SECONDS))
            execute(self.db, f"COMMENT ON TYPE migration_versions IS {literal(stamps.to_text())}")

    def looks_alone(self, standing: Standing | None) -> bool:
        # The scratch tables take locks of a table that all databases of the server share.
        return self.may_create() if standing is None else standing.may_write

    def may_create(self) -> bool:
        return bool(self.ask(pinned(_MAY_CREATE)))

    def lock(self, wait_seconds: float) -> AbstractContextManager[None]:
        return locking.run_lock(self.db, self.default_schema, wait_seconds)

    def work_lock(self, wait_seconds: float) -> AbstractContextManager[None]:
        return locking.run_lock(self.db, self.default_schema, wait_seconds, locking.ROWS)

    def transact(
        self,
        body: Callable[[], T],
        locks: Sequence[tuple[str, str]],
        wait_seconds: float,
        before: Callable[[], None] | None = None,
    ) -> T:
        def begin() -> None:
            session.pin(self.db)
            if before is not None:
                before()

        return locking.transact(self.db, body, locks, wait_seconds, begin, citus.settings(self.db, at_once=True))

    def is_lock_failure(self, error: Exception) -> bool:
        return holders.is_lock_failure(error)

    def wait_for_builds(self, tables: Sequence[str], wait_seconds: float) -> None:
        online.wait_for_builds(self.db, tables, wait_seconds)

    def run_online(
        self,
        sql: str,
        locks: Sequence[tuple[str, str]],
        wait_seconds: float,
        tell: Callable[[Progress], None],
    ) -> None:
        if not locks:
            return online.run_online(self.db, sql, wait_seconds, tell)
        settings = citus.settings(self.db, at_once=False)
        locking.transact(self.db, lambda: execute(self.db, sql), locks, wait_seconds, settings=settings)
        return None

    def is_invalid(self, index: str) -> bool:
        return self.ask(pinned(_IS_VALID), [index]) is False

    def discard_failed_build(self, index: str) -> None:
        if self.is_invalid(index):
            online.run_online(self.db, online.drop_statement(index), 1.0, lambda progress: None)

    def estimate(self, table: str, exact_up_to: int) -> int:
        first = f"SELECT pg_catalog.count(*) FROM (SELECT 1 FROM {table} LIMIT {exact_up_to + 1}) AS first"
        found = int(self.ask(first))
        return found if found <= exact_up_to else max(found, online.planned_rows(self.db, table))

    def lock_of(self, kind: LockedWork) -> Lock:
        return _LOCKS[kind]

    def index_parts(self, key: Key, index: Index, index_sql: str, names: Mapping[Key, str]) -> list[IndexPart]:
        return partitions.build_parts(self, key, index, index_sql, names)

    def refuses_unique(self, key: Key, columns: Sequence[str]) -> WhatspireDBError | None:
        lacks = partitions.lacking_key(self, key, columns)
        hint = "add that to it, or declare it without unique"
        return WhatspireDBError(f"it lacks {lacks}", hint) if lacks else None

    def online_build(self, index_sql: str, broken: str | None) -> list[str]:
        return online.build_statements(index_sql, broken)

    def rewriting(self, model: ModelType, columns: Sequence[Column]) -> set[str]:
        return probing.rewriting(self, model, columns)

    def see_every_row(self) -> None:
        execute(self.db, "SET LOCAL row_security = off")

    def refuses_column(self, model: ModelType, column: Column, has_rows: bool, is_key: bool) -> WhatspireDBError | None:
        if not has_rows or column.generated or column.not_null or not self.ask(pinned(_IS_DOMAIN), [column.type]):
            return None
        return probing.refused_by_its_type(self, model, column)

    def fixes(self, tables: Sequence[DriftedTable], models: Mapping[Key, ModelType], live: Schema) -> list[Fix]:
        return mending.fixes(self, tables, models, live)

    def refuses_transaction(self, steps: Sequence[Step], declared: Schema) -> WhatspireDBError | None:
        return lock_table.refuses(self.db, lock_table.locks_of(steps, declared))

    def as_stored(self, value: str, column: Column) -> str:
        return f"CAST({value} AS {column.type})"

    def path_after(self, *schemas: str) -> str:
        """Return the search_path behind other schemas, as SET takes it."""
        path = self.ask(pinned("SELECT current_setting('search_path')"))
        return ", ".join(filter(None, [*map(quote, filter(None, schemas)), path])) or "''"

    def search_first(self, *schemas: str) -> None:
        if any(schemas):
            self.ask(pinned("SELECT set_config('search_path', %s, true)"), [self.path_after(*schemas)])

    def history_columns(self) -> set[str]:
        return history.columns(self.db)

    def hides_history(self) -> bool:
        return history.hides_rows(self.db)

    def copied_history(self, columns: str) -> list[list[str]] | None:
        return history.copied(self.db, columns) if history.is_unsafe(self.db) else None

    def as_value(self, moment: datetime) -> Any:
        # The driver's own form names a type of the search_path.
        return Value(moment.isoformat(), converter=False)

    def time_notes(self, models: Sequence[ModelType], newest: int | None) -> tuple[TimeNote, ...]:
        from .times import wall_clocks  # not for a start

        return tuple(wall_clocks(self, models, newest))

    def notes(self, steps: Sequence[Step]) -> tuple[str, ...]:
        extended = sorted({step.table for step in steps if step.kind == "add_column"})
        return (_PREPARED.format(", ".join(extended)),) if extended else ()

    def family(self, type_: str) -> str:
        return next((family for family, words in _FAMILIES.items() if re.fullmatch(words, type_)), type_)

    def within(self, schema: str, sql: str) -> tuple[str, ...]:
        if not schema:
            return (sql,)
        set_path = "SET LOCAL search_path TO "
        return (set_path + self.path_after(schema), sql, set_path + self.path_after())

    def script_settings(self) -> tuple[str, ...]:
        return (f"SET search_path TO {self.path_after()}", *session.statements())

    def function(self, name: str) -> str:
        return f"pg_catalog.{name}"

    def operator(self, symbol: str) -> str:
        return f"OPERATOR(pg_catalog.{symbol})"

    def equals(self, column: Column | None) -> str:
        # An extension's type has its operators where the extension stands, which search_path leads to.
        builtin = self.ask(pinned(_IS_BUILTIN), [column.type]) if column and column.type else False
        return self.operator("=") if builtin else "="

    def index_condition(self, index: Index) -> str:
        parts = [] if index.nulls_not_distinct else [f"({key.expression}) IS NOT NULL" for key in index.keys]
        return " AND ".join(parts + ([f"({index.predicate})"] if index.predicate else [])) or "true"
