"""SQLite: snapshot from the pragmas and sqlite_schema, scratch in memory, BEGIN IMMEDIATE as the lock."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import peewee

from ...errors import LockTimeout, ModelError
from ..ddl import ModelType, create_indexes, create_table, execute, quote
from ..schema import Column, Constraint, Index, IndexKey, Key, Schema, Table
from ..stamp import Stamps, Standing, mark_of
from . import Engine, T, with_references
from .sqlite_sql import TableText, canonical, canonical_default, parse_index, parse_table

# {0} is the schema's name. One row a fact: what it is, of which table, and its values.
_SNAPSHOT = """
WITH t AS (
    SELECT name, type, sql, sql LIKE 'create virtual%' AS virtual
    FROM "{0}".sqlite_master
    WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
)
SELECT 'table' AS what, name, type, sql, virtual, NULL, NULL, NULL, NULL FROM t
UNION ALL
SELECT 'name', name, tbl_name, NULL, NULL, NULL, NULL, NULL, NULL FROM "{0}".sqlite_master
UNION ALL
SELECT 'column', t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk, c.hidden, NULL
    FROM t, pragma_table_xinfo(t.name, '{0}') AS c WHERE t.type = 'table' AND NOT t.virtual
UNION ALL
SELECT 'index', t.name, i.name, i."unique", i.origin, m.sql, NULL, NULL, NULL
    FROM t, pragma_index_list(t.name, '{0}') AS i
    LEFT JOIN "{0}".sqlite_master AS m ON m.type = 'index' AND m.name = i.name
    WHERE t.type = 'table' AND NOT t.virtual
UNION ALL
SELECT 'key', t.name, i.name, k.seqno, k.cid, k.name, k."desc", k.coll, NULL
    FROM t, pragma_index_list(t.name, '{0}') AS i, pragma_index_xinfo(i.name, '{0}') AS k
    WHERE t.type = 'table' AND NOT t.virtual AND k.key
UNION ALL
SELECT 'reference', t.name, f.id, f.seq, f."table", f."from", f."to", f.on_update, f.on_delete
    FROM t, pragma_foreign_key_list(t.name, '{0}') AS f WHERE t.type = 'table' AND NOT t.virtual
"""

# The mark is a hash of the very SQL that the schema consists of, so no two schemas share one, whatever file they are
# in: what was found to hold the declared schema once does so for ever. The stamps lie in a file beside the database,
# which may be lost or deleted at any time.
_HISTORY = "SELECT (SELECT max(version) FROM migration_versions), NULL, NULL, NULL, NULL"
_STANDING = "SELECT {0}, tbl_name, type, name, sql FROM {1}.sqlite_master"

_Rows = dict[str, list[tuple[Any, ...]]]


class SqliteEngine(Engine):
    """SQLite. Names are compared in lower case, as SQLite compares them."""

    name = "sqlite"
    constraints_can_be_added = False
    builds_online = False
    reading_mode = ("DEFERRED",)

    def is_in_memory(self) -> bool:
        return not any(row[1] == "main" and row[2] for row in execute(self.db, "PRAGMA database_list"))

    def fold(self, name: str) -> str:
        return name.lower()

    def key(self, model: ModelType) -> Key:
        schema = self.fold(model._meta.schema or "")
        return ("" if schema == "main" else schema, self.fold(model._meta.table_name))

    def snapshot(self, keys: Collection[Key]) -> Schema:
        schema = Schema({})
        for name in sorted({key[0] for key in keys} | {""}):
            schema = schema.merge(self._snapshot_one(name, keys))
        return schema

    def _snapshot_one(self, schema: str, keys: Collection[Key]) -> Schema:
        attached = {row[1].lower() for row in execute(self.db, "PRAGMA database_list")} if schema else {schema}
        if schema not in attached:
            raise ModelError(f"no database is attached as {schema}", "attach it with db.attach(filename, name)")
        rows: dict[str, _Rows] = defaultdict(lambda: defaultdict(list))
        for what, table, *values in execute(self.db, _SNAPSHOT.format((schema or "main").replace('"', '""'))):
            rows[table.lower()][what].append(tuple(values))
        tables, others = {}, []
        for name, of_table in rows.items():
            if "table" in of_table and (schema, name) in keys:
                tables[schema, name] = _table((schema, name), of_table)
            elif "table" in of_table and not _is_shadow(name, rows):
                others.append((schema, name))
        names = {(schema, n): r["name"][0][0].lower() for n, r in rows.items() if "name" in r}
        return Schema(tables, names, tuple(sorted(others)))

    def declared(self, models: Sequence[ModelType]) -> Schema:
        scratch = peewee.SqliteDatabase(":memory:")
        try:
            self._prepare(scratch, models)
            for model in with_references(models):
                for sql in [
                    *create_table(scratch, model),
                    *(sql for _, sql in create_indexes(scratch, model)),
                ]:
                    _create(scratch, model, sql)
            keys = [self.key(model) for model in models]
            return Schema(SqliteEngine(scratch).snapshot(keys).tables)
        finally:
            scratch.close()

    def _prepare(self, scratch: peewee.SqliteDatabase, models: Sequence[ModelType]) -> None:
        """Give the scratch database what the live one has: functions, collations, extensions, schemas."""
        connection = scratch.connection()
        self.db._load_aggregates(connection)
        self.db._load_collations(connection)
        self.db._load_functions(connection)
        if self.db._extensions:
            self.db._load_extensions(connection)
        for schema in sorted({self.key(m)[0] for m in with_references(models)} - {""}):
            scratch.attach(":memory:", schema)

    def standing(self, models: Sequence[ModelType]) -> Standing | None:
        schemas = sorted({self.key(model)[0] for model in models} | {""})
        parts = [_STANDING.format(*quoted) for quoted in map(_both_quotes, schemas)]
        with peewee.__exception_wrapper__:
            try:
                cursor = self.db.cursor().execute(" UNION ALL ".join([_HISTORY, *parts]))
            except peewee.sqlite3.OperationalError as error:
                if "no such table" in str(error):
                    return None
                raise
            (version, *_), *facts = cursor
        keys = {self.key(model) for model in models}
        own = sorted(fact for fact in facts if ("" if fact[0] == "main" else fact[0], fact[1].lower()) in keys)
        mark = mark_of([peewee.sqlite3.sqlite_version, *own])
        return Standing(int(version or 0), mark, self._read_stamps(), self._stamps_file is not None)

    @property
    def _stamps_file(self) -> str | None:
        path = _file_of(str(self.db.database))
        return path and f"{path}-stamps"

    def _read_stamps(self) -> Stamps | None:
        if self._stamps_file is None:
            return None
        try:
            with open(self._stamps_file, encoding="utf-8") as file:
                return Stamps.from_text(file.read()) or Stamps()
        except (OSError, UnicodeDecodeError):
            return Stamps()

    def keep(self, stamps: Stamps) -> None:
        path = self._stamps_file
        if path is None:
            return
        with suppress(OSError):
            # In place, and not by way of another file, which a kill would leave behind; half a text counts as none.
            mode = os.stat(path.removesuffix("-stamps")).st_mode & 0o666
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with open(handle, "w", encoding="utf-8") as file:
                file.write(stamps.to_text())

    @contextmanager
    def lock(self, wait_seconds: float) -> Iterator[None]:
        # The write lock is the migration lock: nothing else can change the schema or the rows meanwhile.
        usual = self.ask("PRAGMA busy_timeout")
        execute(self.db, f"PRAGMA busy_timeout = {int(wait_seconds * 1000)}")
        try:
            with self.db.transaction("IMMEDIATE"):
                execute(self.db, f"PRAGMA busy_timeout = {usual}")
                yield
        except peewee.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise LockTimeout(
                f"the database was locked by another process for {wait_seconds:g} s",
                "find who writes to it for that long, raise --lock-timeout, or try again when it is quiet",
            ) from None
        finally:
            execute(self.db, f"PRAGMA busy_timeout = {usual}")

    def transact(
        self,
        body: Callable[[], T],
        locks: Sequence[tuple[str, str]],
        wait_seconds: float,
        before: Callable[[], None] | None = None,
    ) -> T:
        if before is not None:
            before()
        return body()  # within the lock's own transaction

    def estimate(self, table: str, exact_up_to: int) -> int:
        return int(self.ask(f"SELECT count(*) FROM {table}"))

    def lock_of(self, kind: str) -> str:
        return "the database's write lock"

    def rewriting(self, model: ModelType, columns: Sequence[Column]) -> set[str]:
        return set()

    def refuses_column(self, column: Column, has_rows: bool, is_key: bool) -> tuple[str, str] | None:
        rebuild = "make a new table with it and copy the rows, in a migration of your own"
        if is_key:
            return "SQLite cannot add a column of the primary key", rebuild
        if column.generated and column.generated.startswith("STORED"):
            return "SQLite cannot add a STORED generated column", "declare it VIRTUAL, or " + rebuild
        variable = column.default is not None and not _is_constant(column.default)
        if has_rows and variable:
            return (
                f"SQLite cannot add the default {column.default} to a table with rows",
                "use a constant default",
            )
        return None

    def as_stored(self, value: str, column: Column) -> str:
        # Of the affinities only that to text changes a constant in a way that a comparison sees.
        text = re.search("char|clob|text", column.type or "")
        stored = f"CAST({value} AS TEXT)" if text else f"({value})"
        return f"{stored} COLLATE {column.collation}" if column.collation else stored

    def index_condition(self, index: Index) -> str:
        parts = [f"({quote(k.column) if k.column else k.expression}) IS NOT NULL" for k in index.keys]
        return " AND ".join(parts + ([f"({index.predicate})"] if index.predicate else [])) or "1"


def _both_quotes(schema: str) -> tuple[str, str]:
    name = schema or "main"
    return "'" + name.replace("'", "''") + "'", quote(name)


def _file_of(database: str) -> str | None:
    """Return the path of a database's file; None where it is in memory."""
    if not database.startswith("file:"):
        return None if database in ("", ":memory:") else database
    uri = urlsplit(database)
    in_memory = "memory" in parse_qs(uri.query).get("mode", ())
    path = unquote(uri.path)
    return None if in_memory or path in ("", ":memory:") else path


def _create(scratch: peewee.Database, model: ModelType, sql: str) -> None:
    try:
        execute(scratch, sql)
    except peewee.PeeweeException as error:
        raise ModelError(
            f"{model.__name__} makes no table that SQLite takes: {error}",
            f"correct the model; its SQL was: {sql}",
        ) from None


def _is_shadow(name: str, rows: dict[str, _Rows]) -> bool:
    """Tell whether a table is a virtual table's own storage, like docs_data of an FTS table docs."""
    owners = (n for n, r in rows.items() if "table" in r and r["table"][0][2])
    return any(name.startswith(owner + "_") for owner in owners)


def _is_constant(default: str) -> bool:
    number = r"[+-]? ?(0x[0-9a-f]+|[0-9.]+(e[+-]?[0-9]+)?)"
    return bool(re.fullmatch(rf"{number}|x?'(?:[^']|'')*'|null", default, re.IGNORECASE))


def _table(key: Key, rows: _Rows) -> Table:
    kind, sql, virtual = rows["table"][0][:3]
    if kind == "view" or virtual:
        options = (canonical(sql) or "",) if virtual else ()
        # The name is the table's own; what the module and its arguments are is what can differ.
        return Table(
            key,
            "view" if kind == "view" else "virtual table",
            options=tuple(o.partition(" using ")[2] for o in options),
        )
    text = parse_table(sql)
    columns = {row[0].lower(): _column(row, text) for row in rows["column"]}
    return Table(
        key,
        columns=columns,
        indexes=tuple(_indexes(rows)),
        constraints=tuple(_constraints(rows, text, columns)),
        options=text.options,
    )


def _column(row: tuple[Any, ...], text: TableText) -> Column:
    name, type_, not_null, default, _, hidden = row[:6]
    lower = name.lower()
    generated = None
    if hidden in (2, 3):
        generated = f"{'VIRTUAL' if hidden == 2 else 'STORED'} ({text.generated.get(lower, '')})"
        type_ = re.sub(r"\s*generated always$", "", type_, flags=re.IGNORECASE)
    collation = text.collations.get(lower)
    return Column(
        lower,
        re.sub(r"\s*([(,)])\s*", r"\1", " ".join(type_.lower().split())),
        bool(not_null),
        canonical_default(default),
        None if collation == "binary" else collation,
        generated,
    )


def _indexes(rows: _Rows) -> Iterator[Index]:
    keys: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows["key"]:
        keys[row[0]].append(row)
    for name, unique, origin, sql, *_ in rows["index"]:
        if origin == "pk":
            continue
        expressions, predicate = parse_index(sql) if sql else ([], None)
        found = [_index_key(row, expressions) for row in sorted(keys[name], key=lambda row: int(row[1]))]
        own_name = "" if sql is None else name.lower()  # SQLite numbers the index of a UNIQUE constraint
        yield Index(own_name, tuple(found), bool(unique), predicate=predicate)


def _index_key(row: tuple[Any, ...], expressions: list[str]) -> IndexKey:
    _, position, cid, name, descending, collation = row[:6]
    column = None if cid == -2 else (name or "rowid").lower()
    return IndexKey(
        column or expressions[position],
        "" if collation.lower() == "binary" else collation.lower(),
        order="DESC" if descending else "",
        column=column,
    )


def _constraints(rows: _Rows, text: TableText, columns: dict[str, Column]) -> Iterator[Constraint]:
    key = [row[0].lower() for row in sorted(rows["column"], key=lambda row: int(row[4])) if row[4]]
    if key:
        yield Constraint("", "primary_key", f"PRIMARY KEY ({', '.join(key)})", tuple(key))
    for check in text.checks:
        used = tuple(c for c in columns if c in check.words)
        yield Constraint(check.name, "check", f"CHECK ({check.expression})", used, sql=check.sql, inline=check.inline)
    references: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows["reference"]:
        references[row[0]].append(row)
    for parts in references.values():
        yield _reference(sorted(parts, key=lambda row: int(row[1])), text)


def _reference(parts: list[tuple[Any, ...]], text: TableText) -> Constraint:
    _, _, table, _, _, on_update, on_delete = parts[0]
    columns = tuple(part[3].lower() for part in parts)
    targets = tuple(part[4].lower() for part in parts if part[4])
    written = next((r for r in text.references if r.columns == columns), None)
    actions = [
        f"ON {event} {action}"
        for event, action in (("DELETE", on_delete), ("UPDATE", on_update))
        if action != "NO ACTION"
    ]
    tail = [*actions, written.deferrable if written else ""]
    listed = f" ({', '.join(map(quote, targets))})" if targets else ""
    plain = f" ({', '.join(targets)})" if targets else ""
    clause = " ".join(filter(None, [f"REFERENCES {quote(table)}{listed}", *tail]))
    definition = " ".join(
        filter(None, [f"FOREIGN KEY ({', '.join(columns)}) REFERENCES {table.lower()}{plain}", *tail])
    )
    return Constraint(
        written.name if written else "",
        "foreign_key",
        definition,
        columns,
        sql=clause,
        references=("", table.lower()),
        referenced_columns=targets,
    )
