"""PostgreSQL: snapshot from the catalogs, scratch in pg_temp, an advisory lock, steps that a service does not feel."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime

import peewee
from peewee import Value

from whatspire_db.errors import LockTimeout, ModelError, ScratchUnavailable, WhatspireDBError
from whatspire_db.light import TYPE_CHECKING, Any, lazy_module
from whatspire_db.messages import first_line, sqlstate
from whatspire_db.migrate.ddl import ModelType, add_canonical_column, execute, qualified, quote
from whatspire_db.migrate.plan import Step
from whatspire_db.migrate.progress import Progress
from whatspire_db.migrate.schema import Column, Index, Key, Schema, Table
from whatspire_db.migrate.stamp import Stamps, Standing, declared_text
from whatspire_db.sql import pinned

from ..base import LOOK_SECONDS, Engine, T, discarded, with_references
from . import history
from .limits import lock_limit

if TYPE_CHECKING:
    from whatspire_db.migrate.plan import Lock, LockedWork
    from whatspire_db.migrate.times import TimeNote

    from . import catalog, extensions, holders, lock_table, online, scratch, trust
    from . import locks as locking
else:  # a start that finds its stamp needs none of these
    _lazy = ("catalog", "extensions", "holders", "lock_table", "locks", "online", "scratch", "trust")
    catalog, extensions, holders, lock_table, locking, online, scratch, trust = (
        lazy_module(f"{__package__}.{name}") for name in _lazy
    )

INSUFFICIENT_PRIVILEGE, UNDEFINED_OBJECT = "42501", "42704"
KEEP_SECONDS = 1.0  # to wait for a lock that keeps the stamps from being stored
GRANT_TEMPORARY = "grant this role TEMPORARY on the database"
_IS_VALID = pinned("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)")
_MAY_CREATE = pinned(
    "SELECT current_setting('transaction_read_only') = 'off' AND has_schema_privilege(current_schema(), 'CREATE')"
)
_IS_BUILTIN = pinned("SELECT to_regtype(%s)::oid < 16384")  # FirstNormalObjectId
_PROBE_FILE = pinned("SELECT pg_relation_filenode('pg_temp.whatspire_probe')")

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
}


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

    def __init__(self, db: peewee.PostgresqlDatabase, trust_source: bool = False) -> None:
        super().__init__(db, trust_source)
        self._default: str | None = None

    @property
    def default_schema(self) -> str:
        """Return the schema that unqualified names are created in."""
        if self._default is None:
            self._default = self.ask(pinned("SELECT current_schema()"))
        if self._default is None:
            raise ModelError("no schema of the search_path exists", "create one, or set search_path in the DSN")
        return self._default

    def fold(self, name: str) -> str:
        # NAMEDATALEN - 1 bytes; a character that does not fit is dropped whole.
        return name.encode()[:63].decode(errors="ignore")

    def key(self, model: ModelType) -> Key:
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
        for what, name, payload in self._texts(query, [*params, list(names)]):
            rows[what].append((name, json.loads(payload) if payload else None))
        here = next((name for name, _ in rows["schema"]), None)
        return self._read(schema, here, names, rows)

    def _texts(self, query: str, params: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield a query's rows of three texts; a database in SQL_ASCII can hold bytes that are not text."""
        if catalog.parameter_status(self.db.connection(), "server_encoding") != "SQL_ASCII":
            yield from execute(self.db, query, params)
            return
        raw = "pg_catalog.convert_to({}, 'SQL_ASCII')"
        columns = ", ".join(raw.format(name) for name in ("what", "name", "payload"))
        for row in execute(self.db, f"SELECT {columns} FROM ({query}) AS facts (what, name, payload)", params):
            yield tuple(value if value is None else bytes(value).decode("utf-8", "surrogateescape") for value in row)

    def _read(
        self,
        schema: str,
        here: str | None,
        names: Mapping[str, Key],
        rows: Mapping[str, list[tuple[str, Any]]],
    ) -> Schema:
        of_table: dict[str, catalog.Rows] = defaultdict(lambda: defaultdict(list))
        for what in ("column", "index", "constraint"):
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
        needed = with_references(models)
        wanted = {e for m in needed for e in extensions.extensions_of(self.db, m)}
        keys = [self.key(model) for model in models]
        schema = Schema({}, schemas=frozenset({key[0] for key in keys} | {""}), extensions=frozenset(wanted))
        try:
            return self._declared(schema, sorted(wanted), set(keys), needed)
        except ModelError as error:
            cause = error.__cause__ or error
            if sqlstate(cause) == UNDEFINED_OBJECT and (elsewhere := extensions.types_elsewhere(self.db, needed)):
                error.hint = elsewhere
            if sqlstate(cause) != INSUFFICIENT_PRIVILEGE or self._may_make_temporary():
                raise
            raise ScratchUnavailable(first_line(cause), GRANT_TEMPORARY) from None

    def _may_make_temporary(self) -> bool:
        return bool(self.ask("SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')"))

    def _declared(
        self, schema: Schema, wanted: Sequence[str], keys: Collection[Key], needed: Sequence[ModelType]
    ) -> Schema:
        found = self._strangers(needed)
        # To create an expression can evaluate a part of it, with what the search_path leads to.
        words = trust.words_of(declared_text(self.db, needed))
        trust.require_trusted([stranger for stranger in found if stranger.is_meant_by(words)])
        with discarded(self.db):
            for extension in wanted:
                extensions.create_extension(self, extension, found)
            for name in sorted({key[0] for key in keys}):
                schema = schema.merge(Schema(scratch.declared_tables(self, name, keys, needed)))
        return schema

    def _strangers(self, models: Sequence[ModelType]) -> list[trust.Stranger]:
        if self.trust_source:
            return []
        tables = [qualified(self.key(m)[0] or self.default_schema, self.key(m)[1]) for m in models]
        return trust.strangers(self.db, trust.words_of(declared_text(self.db, models)), tables)

    def untrusted(self, models: Sequence[ModelType]) -> WhatspireDBError | None:
        return self._told(self._strangers(with_references(models)))

    def untrusted_table(self, model: ModelType) -> WhatspireDBError | None:
        return self._told([s for s in self._strangers([model]) if s.kind in ("table", "trigger")])

    def _told(self, found: Sequence[trust.Stranger]) -> WhatspireDBError | None:
        if not found:
            return None
        role = self.ask("SELECT session_user")
        fact = f"superuser {role} would run code of {', '.join(trust.owners(found))}: {trust.named(found)}"
        return WhatspireDBError(fact, trust.HINT)

    def scratch(self, schema: str, names: Mapping[str, Key]) -> Mapping[Key, Table]:
        """Return the tables that stand in pg_temp; `names` say in whose place, and in which schema's."""
        return self._snapshot_one(schema, names, scratch=True).tables

    @contextmanager
    def reading(self, wait_seconds: float) -> Iterator[None]:
        with discarded(self.db):
            locking.bound_look(self.db, wait_seconds)
            yield

    def locked_out(self, models: Sequence[ModelType], wait_seconds: float) -> LockTimeout:
        tables = [qualified(m._meta.schema, self.fold(m._meta.table_name)) for m in models]
        return holders.locked_out(self.db, tables, wait_seconds)

    def standing(self, models: Sequence[ModelType], wait_seconds: float = LOOK_SECONDS) -> Standing | None:
        tables = self.tables_of(models)
        # Within a transaction in a savepoint, for a question that fails ends it; outside of one the limit and the
        # question go to the server as one message.
        inside = self.db.in_transaction()

        def ask(sql: str) -> Any:
            with self.db.atomic() if inside else nullcontext():
                return self.ask_quietly(sql, tables)

        try:
            row = history.standing_row(self.db, ask, "" if inside else f"{lock_limit(wait_seconds)}; ")
        except peewee.ProgrammingError:
            return None
        return None if row is None else history.standing_of(row)

    def tables_of(self, models: Sequence[ModelType]) -> list[list[str | None]]:
        """Return the parameters of the question how the database stands: schemas and tables, quoted."""
        schemas = [quote(model._meta.schema) if model._meta.schema else None for model in models]
        return [schemas, [quote(self.fold(model._meta.table_name)) for model in models]]

    def keep(self, stamps: Stamps) -> None:
        text = stamps.to_text().replace("'", "''")
        with suppress(peewee.PeeweeException), self.db.atomic():  # without them the next start looks in full
            execute(self.db, lock_limit(KEEP_SECONDS))
            execute(self.db, f"COMMENT ON TYPE migration_versions IS '{text}'")

    def looks_alone(self, standing: Standing | None) -> bool:
        # The scratch tables take locks of a table that all databases of the server share.
        return bool(self.ask(_MAY_CREATE)) if standing is None else standing.may_write

    def lock(self, wait_seconds: float) -> AbstractContextManager[None]:
        return locking.migration_lock(self.db, self.default_schema, wait_seconds)

    def transact(
        self,
        body: Callable[[], T],
        locks: Sequence[tuple[str, str]],
        wait_seconds: float,
        before: Callable[[], None] | None = None,
    ) -> T:
        return locking.transact(self.db, body, locks, wait_seconds, before)

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
        locking.transact(self.db, lambda: execute(self.db, sql), locks, wait_seconds)
        return None

    def is_invalid(self, index: str) -> bool:
        return self.ask(_IS_VALID, [index]) is False

    def discard_failed_build(self, index: str) -> None:
        if self.is_invalid(index):
            online.run_online(self.db, f"DROP INDEX CONCURRENTLY {index}", 1.0, lambda progress: None)

    def estimate(self, table: str, exact_up_to: int) -> int:
        first = f"SELECT pg_catalog.count(*) FROM (SELECT 1 FROM {table} LIMIT {exact_up_to + 1}) AS first"
        found = int(self.ask(first))
        return found if found <= exact_up_to else max(found, online.planned_rows(self.db, table))

    def lock_of(self, kind: LockedWork) -> Lock:
        return _LOCKS[kind]

    def online_build(self, index_sql: str, broken: str | None) -> list[str]:
        return online.build_statements(index_sql, broken)

    def rewriting(self, model: ModelType, columns: Sequence[Column]) -> set[str]:
        """Ask by trying: a table of the same columns gets a new file when the addition rewrites it."""
        rewritten = set()
        table = qualified(self.key(model)[0], model._meta.table_name)
        with discarded(self.db):
            execute(self.db, f"CREATE TEMPORARY TABLE whatspire_probe (LIKE {table})")
            self.search_first("pg_temp", self.key(model)[0])
            for column in columns:
                before = self.ask(_PROBE_FILE)
                execute(self.db, add_canonical_column(self.db, model, column, "whatspire_probe"))
                if before != self.ask(_PROBE_FILE):
                    rewritten.add(column.name)
        return rewritten

    def see_every_row(self) -> None:
        execute(self.db, "SET LOCAL row_security = off")

    def refuses_column(self, column: Column, has_rows: bool, is_key: bool) -> WhatspireDBError | None:
        return None

    def refuses_transaction(self, steps: Sequence[Step], declared: Schema) -> WhatspireDBError | None:
        return lock_table.refuses(self.db, lock_table.locks_of(steps, declared))

    def as_stored(self, value: str, column: Column) -> str:
        return f"CAST({value} AS {column.type})"

    def _path_after(self, *schemas: str) -> str:
        path = self.ask(pinned("SELECT current_setting('search_path')"))
        return ", ".join(filter(None, [*map(quote, filter(None, schemas)), path]))

    def search_first(self, *schemas: str) -> None:
        if any(schemas):
            self.ask(pinned("SELECT set_config('search_path', %s, true)"), [self._path_after(*schemas)])

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
        if not extended:
            return ()
        return (
            f"clients that hold a prepared SELECT * (or RETURNING *) of {', '.join(extended)} get "
            '"cached plan must not change result type" (0A000) when they run it again, until they prepare it anew or '
            "reconnect; pgx, and with it the Go service, keeps prepared statements as long as a connection lives",
        )

    def family(self, type_: str) -> str:
        return next((family for family, words in _FAMILIES.items() if re.fullmatch(words, type_)), type_)

    def within(self, schema: str, sql: str) -> tuple[str, ...]:
        if not schema:
            return (sql,)
        set_path = "SET LOCAL search_path TO "
        return (set_path + self._path_after(schema), sql, set_path + (self._path_after() or "''"))

    def function(self, name: str) -> str:
        return f"pg_catalog.{name}"

    def operator(self, symbol: str) -> str:
        return f"OPERATOR(pg_catalog.{symbol})"

    def equals(self, column: Column) -> str:
        # An extension's type has its operators where the extension stands, which search_path leads to.
        builtin = self.ask(_IS_BUILTIN, [column.type]) if column.type else False
        return self.operator("=") if builtin else "="

    def index_condition(self, index: Index) -> str:
        parts = [] if index.nulls_not_distinct else [f"({key.expression}) IS NOT NULL" for key in index.keys]
        return " AND ".join(parts + ([f"({index.predicate})"] if index.predicate else [])) or "true"
