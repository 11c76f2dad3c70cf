"""PostgreSQL: snapshot from the catalogs, scratch in pg_temp, an advisory lock, steps that a service does not feel."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import peewee

from ...errors import ModelError, ScratchUnavailable
from ..ddl import (
    ModelType,
    add_canonical_column,
    create_indexes,
    create_table,
    deferred_foreign_keys,
    execute,
    qualified,
    quote,
    unnamed,
    unqualified,
)
from ..progress import Progress
from ..schema import Column, Index, Key, Schema, Table
from ..stamp import Stamps, Standing
from . import Engine, T, discarded, sqlstate, with_references
from .postgres_catalog import STANDING, Rows, read_table, snapshot_query
from .postgres_locks import (
    is_lock_failure,
    migration_lock,
    planned_rows,
    run_online,
    time_limits,
    transact,
    wait_for_builds,
)

# Types that an extension brings; a model can name more in Meta.extensions.
EXTENSION_TYPES = {
    "vector": "vector",
    "halfvec": "vector",
    "sparsevec": "vector",
    "hstore": "hstore",
    "citext": "citext",
    "ltree": "ltree",
}

_LOCKS = {
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


class PostgresEngine(Engine):
    """PostgreSQL, from version 12 on."""

    name = "postgres"
    constraints_can_be_added = True
    builds_online = True

    def __init__(self, db: peewee.PostgresqlDatabase) -> None:
        super().__init__(db)
        self._default: str | None = None

    @property
    def default_schema(self) -> str:
        """Return the schema that unqualified names are created in."""
        if self._default is None:
            self._default = self.ask("SELECT current_schema()")
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
        query = snapshot_query(oid, self.db.server_version or 0)
        params: list[Any] = [] if scratch else [quote(schema or self.default_schema)]
        rows: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for what, name, payload in execute(self.db, query, [*params, list(names)]):
            rows[what].append((name, json.loads(payload) if payload else None))
        here = next((name for name, _ in rows["schema"]), None)
        return self._read(schema, here, names, rows)

    def _read(
        self,
        schema: str,
        here: str | None,
        names: Mapping[str, Key],
        rows: Mapping[str, list[tuple[str, Any]]],
    ) -> Schema:
        of_table: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
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
                tables[names[name]] = read_table(names[name], value, of_table[name], target)
            else:
                others.append((schema, name))
        relations = {(schema, name): owner for name, owner in rows.get("name", ())}
        extensions = frozenset(name for name, _ in rows.get("extension", ()))
        return Schema(tables, relations, tuple(sorted(others)), frozenset({schema} if here else ()), extensions)

    def declared(self, models: Sequence[ModelType]) -> Schema:
        needed = with_references(models)
        extensions = {e for m in needed for e in _extensions(self.db, m)}
        keys = [self.key(model) for model in models]
        schema = Schema({}, schemas=frozenset({key[0] for key in keys} | {""}), extensions=frozenset(extensions))
        with discarded(self.db):
            for extension in sorted(extensions):
                self._create_extension(extension)
            for name in sorted({key[0] for key in keys}):
                with discarded(self.db):
                    schema = schema.merge(Schema(self._scratch(name, set(keys), needed).tables))
        return schema

    def _create_extension(self, name: str) -> None:
        if self.ask("SELECT count(*) FROM pg_extension WHERE extname = %s", [name]):
            return
        if not self.ask("SELECT count(*) FROM pg_available_extensions WHERE name = %s", [name]):
            raise ModelError(
                f"the models need the extension {name}, which the server does not have",
                "install it on the server; the image pgvector/pgvector:pg18-trixie brings vector",
            )
        try:
            with self.db.atomic():
                execute(self.db, f"CREATE EXTENSION {quote(name)}")
        except peewee.PeeweeException as error:
            if sqlstate(error) in ("23505", "42710"):  # unique_violation, duplicate_object: somebody was faster
                return
            raise ModelError(
                f"the models need the extension {name}, which this role may not create: {error}",
                f"let a superuser run: CREATE EXTENSION {quote(name)};",
            ) from None

    def _scratch(self, schema: str, keys: Collection[Key], models: Sequence[ModelType]) -> Schema:
        """Create the models of one schema in pg_temp, and what they refer to, and read their tables there."""
        models = with_references([m for m in models if self.key(m)[0] == schema])
        # A table of another schema, which only serves as a target of references, cannot take a name of this one.
        names = {m: key[1] if key[0] == schema else self.fold(".".join(key)) for m in models for key in [self.key(m)]}
        self.search_first("pg_temp", schema)
        for model in models:
            for sql in create_table(self.db, model, names):
                self._create(model, sql)
            self._create_indexes(model, names, whole=self.key(model)[0] == schema)
        deferred = set()
        for model in models:
            for column, sql in deferred_foreign_keys(self.db, model, names):
                self._create(model, sql)
                deferred.add((self.key(model), column))
        found = self._snapshot_one(schema, {name: self.key(m) for m, name in names.items()}, scratch=True)
        own = {key: table for key, table in found.tables.items() if key in keys and key[0] == schema}
        return Schema({key: _optional(table, deferred) for key, table in own.items()})

    def _create_indexes(self, model: ModelType, names: Mapping[ModelType, str], *, whole: bool) -> None:
        for _, sql in create_indexes(self.db, model, names):
            if whole:
                self._create(model, unqualified(sql))
                continue
            # A mere target needs its unique keys; an index written as text does not know the name it has here.
            with suppress(peewee.PeeweeException), self.db.atomic():
                execute(self.db, unnamed(unqualified(sql)))

    def _create(self, model: ModelType, sql: str) -> None:
        try:
            execute(self.db, sql)
        except peewee.PeeweeException as error:
            fact = " ".join(str(error).split())
            if "permission denied to create temporary tables" in fact:
                raise ScratchUnavailable(fact, "grant this role TEMPORARY on the database") from None
            if "read-only transaction" in fact or "during recovery" in fact:
                raise ScratchUnavailable(fact, "connect to the primary, or to a database that can be written") from None
            raise ModelError(
                f"{model.__name__} makes no table that PostgreSQL takes: {fact}",
                f"correct the model; its SQL was: {sql}",
            ) from None

    def standing(self, models: Sequence[ModelType]) -> Standing | None:
        names = [quote(self.fold(model._meta.table_name)) for model in models]
        schemas = [quote(model._meta.schema) if model._meta.schema else None for model in models]
        try:
            # Within a transaction in a savepoint, for a question that fails ends it.
            with self.db.atomic() if self.db.in_transaction() else nullcontext():
                row = self.ask_quietly(STANDING, [schemas, names])
        except peewee.ProgrammingError:
            return None
        if row is None:
            return None
        version, mark, text, may_write = row
        return Standing(int(version or 0), mark, Stamps.from_text(text), bool(may_write))

    def keep(self, stamps: Stamps) -> None:
        text = stamps.to_text().replace("'", "''")
        with suppress(peewee.PeeweeException), self.db.atomic():  # without them the next start looks in full
            execute(self.db, f"COMMENT ON TYPE migration_versions IS '{text}'")

    def lock(self, wait_seconds: float) -> AbstractContextManager[None]:
        return migration_lock(self.db, self.default_schema, wait_seconds)

    def transact(
        self,
        body: Callable[[], T],
        locks: Sequence[tuple[str, str]],
        wait_seconds: float,
        before: Callable[[], None] | None = None,
    ) -> T:
        return transact(self.db, body, locks, wait_seconds, before)

    def is_lock_failure(self, error: Exception) -> bool:
        return is_lock_failure(error)

    def wait_for_builds(self, tables: Sequence[str], wait_seconds: float) -> None:
        wait_for_builds(self.db, tables, wait_seconds)

    def run_online(
        self,
        sql: str,
        locks: Sequence[tuple[str, str]],
        wait_seconds: float,
        tell: Callable[[Progress], None],
    ) -> None:
        if not locks:
            return run_online(self.db, sql, wait_seconds, tell)
        # It may take long, and stops nobody while it runs: the time limit for statements is not meant for it.
        no_limit = [(name, "0") for name in time_limits(self.db)]
        transact(self.db, lambda: execute(self.db, sql), locks, wait_seconds, settings=no_limit)
        return None

    def is_invalid(self, index: str) -> bool:
        return self.ask("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)", [index]) is False

    def discard_failed_build(self, index: str) -> None:
        if self.is_invalid(index):
            run_online(self.db, f"DROP INDEX CONCURRENTLY {index}", 1.0, lambda progress: None)

    def estimate(self, table: str, exact_up_to: int) -> int:
        found = int(self.ask(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT {exact_up_to + 1}) AS first"))
        return found if found <= exact_up_to else max(found, planned_rows(self.db, table))

    def lock_of(self, kind: str) -> str:
        return _LOCKS[kind]

    def rewriting(self, model: ModelType, columns: Sequence[Column]) -> set[str]:
        """Ask by trying: a table of the same columns gets a new file when the addition rewrites it."""
        rewritten = set()
        table = qualified(self.key(model)[0], model._meta.table_name)
        with discarded(self.db):
            execute(self.db, f"CREATE TEMPORARY TABLE whatspire_probe (LIKE {table})")
            self.search_first("pg_temp", self.key(model)[0])
            for column in columns:
                before = self.ask("SELECT pg_relation_filenode('pg_temp.whatspire_probe')")
                execute(self.db, add_canonical_column(self.db, model, column, "whatspire_probe"))
                if before != self.ask("SELECT pg_relation_filenode('pg_temp.whatspire_probe')"):
                    rewritten.add(column.name)
        return rewritten

    def refuses_column(self, column: Column, has_rows: bool, is_key: bool) -> tuple[str, str] | None:
        return None

    def as_stored(self, value: str, column: Column) -> str:
        return f"CAST({value} AS {column.type})"

    def _path_after(self, *schemas: str) -> str:
        path = self.ask("SELECT current_setting('search_path')")
        return ", ".join(filter(None, [*map(quote, filter(None, schemas)), path]))

    def search_first(self, *schemas: str) -> None:
        if any(schemas):
            self.ask("SELECT set_config('search_path', %s, true)", [self._path_after(*schemas)])

    def within(self, schema: str, sql: str) -> tuple[str, ...]:
        if not schema:
            return (sql,)
        set_path = "SET LOCAL search_path TO "
        return (set_path + self._path_after(schema), sql, set_path + (self._path_after() or "''"))

    def index_condition(self, index: Index) -> str:
        parts = [] if index.nulls_not_distinct else [f"({key.expression}) IS NOT NULL" for key in index.keys]
        return " AND ".join(parts + ([f"({index.predicate})"] if index.predicate else [])) or "true"


def _optional(table: Table, deferred: Collection[tuple[Key, str]]) -> Table:
    constraints = (
        replace(c, optional=c.kind == "foreign_key" and (table.key, c.columns[0]) in deferred)
        for c in table.constraints
    )
    return replace(table, constraints=tuple(constraints))


def _extensions(db: peewee.Database, model: ModelType) -> set[str]:
    context = db.get_sql_context()
    types = (f.ddl_datatype(context) for f in model._meta.sorted_fields)
    names = {str(getattr(t, "sql", "")).partition("(")[0].lower() for t in types if t is not None}
    return {EXTENSION_TYPES[n] for n in names if n in EXTENSION_TYPES} | set(getattr(model._meta, "extensions", ()))
