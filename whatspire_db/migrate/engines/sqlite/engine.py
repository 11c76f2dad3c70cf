"""SQLite: snapshot from the pragmas and sqlite_schema, scratch in memory, BEGIN IMMEDIATE as the lock."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress

import peewee

from whatspire_db.errors import LockTimeout, ModelError, WhatspireDBError, bounded
from whatspire_db.files import WRITABLE_BY_OTHERS, open_regular, trusted_owners
from whatspire_db.light_stdlib import TYPE_CHECKING, lazy_module
from whatspire_db.messages import first_line, is_locked
from whatspire_db.migrate.ddl import ModelType, execute, quote, referenced_tables
from whatspire_db.migrate.schema import Column, Constraint, Index, Key, Schema, Table, folded_ascii
from whatspire_db.migrate.stamp import BYTES, Stamps, Standing, mark_of, recorded_version, rendered
from whatspire_db.peewee_compat import load_extras

from ..base import LOOK_SECONDS, Engine, T, discarded
from . import history

if TYPE_CHECKING:
    from whatspire_db.migrate.mending import DriftedTable, Fix
    from whatspire_db.migrate.plan import Lock, LockedWork
    from whatspire_db.migrate.times import TimeNote
    from whatspire_db.transfer.fence import Fence

    from .. import references
else:  # not for a start that finds its stamp
    references = lazy_module("whatspire_db.migrate.engines.references")

TURN_SECONDS = 0.2  # a wait for the write lock, in which no signal is heard

# Tables in a scratch database: the more there are, the longer SQLite takes to create one.
BATCH = 100

# Tables by all that SQLite says of them, so that what many files, or one file again and again, say is read once.
_READ: dict[object, Table] = {}
KEPT_TABLES = 5000  # beyond a run; one takes some 10 KiB, and its model twice that


# https://www.sqlite.org/datatype3.html, 3.1
_AFFINITIES = {"integer": "int", "text": "char|clob|text", "blob": "blob", "real": "real|floa|doub"}


class SqliteEngine(Engine):
    """SQLite. Names are compared in lower case, as SQLite compares them."""

    name = "sqlite"
    constraints_can_be_added = False
    builds_online = False

    def is_in_memory(self) -> bool:
        return not any(row[1] == "main" and row[2] for row in execute(self.db, "PRAGMA database_list"))

    def fold(self, name: str) -> str:
        return folded_ascii(name)

    def place(self, model: ModelType) -> Key:
        schema = self.fold(model._meta.schema) if model._meta.schema else ""
        return ("" if schema == "main" else schema, self.fold(model._meta.table_name))

    def snapshot(self, keys: Collection[Key]) -> Schema:
        return self._snapshot(self.db, keys)

    def _snapshot(self, db: peewee.SqliteDatabase, keys: Collection[Key]) -> Schema:
        from .catalog import snapshot  # not for a start that finds its stamp

        schema = Schema({})
        for name in sorted({key[0] for key in keys} | {""}):
            schema = schema.merge(snapshot(db, name, keys, _READ))
        return schema

    def declared(self, models: Sequence[ModelType]) -> Schema:
        all_models = references.with_references(models)
        by_name = references.named_by(all_models)
        known = {self.key(model) for model in all_models}
        schema = Schema({})
        for start in range(0, len(models), BATCH):
            own = models[start : start + BATCH]
            targets = {target: None for model in own for target in references.targets_of(model, by_name)}
            schema = schema.merge(self._declared(own, [target for target in targets if target not in own], known))
        return schema

    def _declared(self, models: Sequence[ModelType], targets: Sequence[ModelType], known: Collection[Key]) -> Schema:
        """Make tables in a scratch database, with those that they refer to, and read them there.

        :param known: the tables that have a model.
        """
        scratch = peewee.SqliteDatabase(":memory:")
        try:
            self._prepare(scratch, [*models, *targets])
            self._add_strangers(scratch, models, known)
            for model in [*targets, *models]:
                ddl = rendered(self.db, model)
                for sql in [*ddl.table, *(sql for _, sql in ddl.indexes if model in models)]:
                    _create(scratch, model, sql)
            return Schema(self._snapshot(scratch, [self.key(model) for model in models]).tables)
        finally:
            scratch.close()

    def read_in_scratch(self, statements: Sequence[str], key: Key) -> Table:
        """Return how SQLite reads a table that statements make in an empty database."""
        scratch = peewee.SqliteDatabase(":memory:")
        try:
            load_extras(self.db, scratch.connection())
            for sql in statements:
                execute(scratch, sql)
            return self._snapshot(scratch, [key]).tables[key]
        finally:
            scratch.close()

    def fixes(self, tables: Sequence[DriftedTable], models: Mapping[Key, ModelType], live: Schema) -> list[Fix]:
        from .mending import fixes  # only for verify --sql

        return fixes(self, tables, models, live)

    def _prepare(self, scratch: peewee.SqliteDatabase, models: Sequence[ModelType]) -> None:
        """Give the scratch database what the live one has: functions, collations, extensions, schemas."""
        load_extras(self.db, scratch.connection())
        for schema in sorted({self.key(m)[0] for m in models} - {""}):
            scratch.attach(":memory:", schema)

    def _add_strangers(
        self, scratch: peewee.SqliteDatabase, models: Sequence[ModelType], known: Collection[Key]
    ) -> None:
        """Give the scratch database the live tables that models refer to in SQL and that have no model.

        REFERENCES p means the primary key of p, whoever made it. A table that cannot be made here is left out.
        """
        named = {(self.key(m)[0], self.fold(name)) for m in models for name in references.references_in_text(m)}
        for schema, name in sorted(named.difference(known)):
            master = f"{quote(schema or 'main')}.sqlite_master"
            sql = self.ask(f"SELECT sql FROM {master} WHERE type = 'table' AND name = ? COLLATE NOCASE", [name])
            with suppress(peewee.PeeweeException):
                if sql:
                    execute(scratch, re.sub(r"(?i)^CREATE TABLE ", f"CREATE TABLE {quote(schema or 'main')}.", sql))

    def fence(self) -> Fence | None:
        from whatspire_db.transfer.fence import find  # not for a start that finds its stamp

        return find(self.db)

    @contextmanager
    def reading(self, wait_seconds: float) -> Iterator[None]:
        with self._waiting(wait_seconds), discarded(self.db, "DEFERRED"):
            yield

    def forget(self) -> None:
        super().forget()
        if len(_READ) > KEPT_TABLES:
            _READ.clear()

    @contextmanager
    def _waiting(self, seconds: float) -> Iterator[None]:
        """Wait no longer than this for another connection's lock."""
        usual = self.ask("PRAGMA busy_timeout")
        execute(self.db, f"PRAGMA busy_timeout = {max(1, int(seconds * 1000))}")
        try:
            yield
        finally:
            if not self.db.is_closed():
                execute(self.db, f"PRAGMA busy_timeout = {usual}")

    def locked_out(self, models: Sequence[ModelType], wait_seconds: float) -> LockTimeout:
        from whatspire_db.connection.engines.sqlite.holders import held_by  # only where something is wrong

        file = _file_of(str(self.db.database))
        return LockTimeout(
            f"{file or 'the database'} was locked by another connection for {wait_seconds:g} s"
            f"{held_by(file) if file else ''}",
            "find the process that writes to it for that long, raise --lock-timeout, or try again when it is quiet",
        )

    def is_lock_failure(self, error: Exception) -> bool:
        return is_locked(error)

    def standing(
        self, models: Sequence[ModelType], wait_seconds: float = LOOK_SECONDS, *, with_rows: bool = False
    ) -> Standing | None:
        usual = float(self.db.timeout or 0)  # the usual start is this one question, without another to set a limit
        try:
            if usual <= wait_seconds:
                return self._standing(models, with_rows)
        except peewee.OperationalError as error:
            if not is_locked(error):
                raise
        with self._waiting(wait_seconds - usual if usual <= wait_seconds else wait_seconds):
            return self._standing(models, with_rows)

    def _standing(self, models: Sequence[ModelType], with_rows: bool) -> Standing | None:
        keys = {self.key(model) for model in models}
        schemas = sorted({key[0] for key in keys} | {""})
        answer = history.answer(self.db, schemas, with_rows)
        if answer is None:
            return None
        (version, finished, *_), *facts = answer
        keys |= {(schema, folded_ascii(name)) for schema, name in _referred(facts, keys)}
        own = sorted(fact for fact in facts if ("" if fact[0] == "main" else fact[0], folded_ascii(fact[1])) in keys)
        mark = mark_of([peewee.sqlite3.sqlite_version, *own])
        may_write, names = self._stamps_file is not None, frozenset(finished.split("\n") if finished else ())
        return Standing(recorded_version(version), mark, self._read_stamps(), may_write, names)

    @property
    def _stamps_file(self) -> str | None:
        path = _file_of(str(self.db.database))
        return path and f"{path}-stamps"

    def _read_stamps(self) -> Stamps | None:
        if self._stamps_file is None:
            return None
        try:
            return Stamps.from_text(_own_text(self._stamps_file)) or Stamps()
        except (OSError, UnicodeDecodeError):
            return Stamps()

    def keep(self, stamps: Stamps) -> None:
        if self._stamps_file is not None:
            from .stamps_file import write  # not for a start that finds its stamp

            write(self._stamps_file, stamps.to_text())

    @contextmanager
    def lock(self, wait_seconds: float) -> Iterator[None]:
        # The write lock is the migration lock: nothing else can change the schema or the rows meanwhile.
        try:
            with self._waiting(wait_seconds), self._write_lock(wait_seconds):
                yield
        except peewee.OperationalError as error:
            if not is_locked(error):
                raise
            raise self.locked_out((), wait_seconds) from None

    def is_working(self, standing: Standing) -> bool:
        from .stamps_file import is_locked  # not for a start without data migrations

        return is_locked(self._stamps_file)

    def work_lock(self, wait_seconds: float) -> AbstractContextManager[None]:
        from .stamps_file import work_lock  # not for a migration

        return work_lock(self._stamps_file, str(self.db.database), wait_seconds)

    @contextmanager
    def _write_lock(self, wait_seconds: float) -> Iterator[None]:
        """Hold the write lock; it is waited for in short turns, between which Python handles signals."""
        deadline = time.monotonic() + wait_seconds
        transaction = self.db.transaction("IMMEDIATE")
        while True:
            left = deadline - time.monotonic()
            try:
                with self._waiting(min(TURN_SECONDS, max(left, 0))):
                    transaction.__enter__()
                break
            except peewee.OperationalError as error:
                if left <= 0 or not is_locked(error):
                    raise
        try:
            yield
        except BaseException as error:
            transaction.__exit__(type(error), error, error.__traceback__)
            raise
        transaction.__exit__(None, None, None)

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

    def lock_of(self, kind: LockedWork) -> Lock:
        return "the database's write lock"

    def may_create(self) -> bool:
        return not self.ask("PRAGMA query_only")

    def rewriting(self, model: ModelType, columns: Sequence[Column]) -> set[str]:
        return set()

    def refuses_column(self, model: ModelType, column: Column, has_rows: bool, is_key: bool) -> WhatspireDBError | None:
        rebuild = "make a new table with it and copy the rows, in a migration of your own"
        if is_key:
            return WhatspireDBError("SQLite cannot add a column of the primary key", rebuild)
        if column.generated and column.generated.startswith("STORED"):
            return WhatspireDBError("SQLite cannot add a STORED generated column", f"declare it VIRTUAL, or {rebuild}")
        variable = column.default is not None and not is_constant(column.default)
        if has_rows and variable:
            fact = f"SQLite cannot add the default {column.default} to a table with rows"
            return WhatspireDBError(fact, "use a constant default")
        return None

    def history_columns(self) -> set[str]:
        return history.columns(self.db)

    def time_notes(self, models: Sequence[ModelType], newest: int | None) -> tuple[TimeNote, ...]:
        from .times import offsets  # not for a start

        return tuple(offsets(self, models, newest))

    def refuses_reference(self, constraint: Constraint, column: Column, title: str) -> WhatspireDBError | None:
        fact = f"SQLite cannot add the foreign key {title} with a new column"
        if len(constraint.columns) > 1:
            return WhatspireDBError(fact, "make a new table and copy the rows")
        if column.default not in (None, "null") and self.ask("PRAGMA foreign_keys"):
            return WhatspireDBError(fact, "leave out the default")
        return None

    def family(self, type_: str) -> str:
        found = next((family for family, words in _AFFINITIES.items() if re.search(words, type_)), "number")
        return found if type_ else "blob"

    def as_stored(self, value: str, column: Column) -> str:
        # Of the affinities only that to text changes a constant in a way that a comparison sees.
        text = re.search("char|clob|text", column.type or "")
        stored = f"CAST({value} AS TEXT)" if text else f"({value})"
        return f"{stored} COLLATE {column.collation}" if column.collation else stored

    def index_condition(self, index: Index) -> str:
        parts = [f"({quote(k.column) if k.column else k.expression}) IS NOT NULL" for k in index.keys]
        return " AND ".join(parts + ([f"({index.predicate})"] if index.predicate else [])) or "1"


def _referred(facts: Sequence[tuple[str, ...]], keys: Collection[Key]) -> Iterator[tuple[str, str]]:
    """Yield the tables that others refer to: a reference without columns means their primary key."""
    for schema, table, kind, _, sql in facts:
        place = "" if schema == "main" else schema
        if kind == "table" and sql and (place, folded_ascii(table)) in keys:
            yield from ((place, name) for name in referenced_tables(sql))


def _own_text(path: str) -> str:
    """Return what a file holds that only this user, or root, can have written; "" for any other file.

    :raises OSError: when there is no such regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        status = os.fstat(file.fileno())
        is_own = status.st_uid in trusted_owners() and status.st_nlink == 1
        if not is_own or status.st_mode & WRITABLE_BY_OTHERS or status.st_size > BYTES:
            return ""
        return file.read(BYTES).decode()


def _file_of(database: str) -> str | None:
    """Return the path of a database's file; None where it is in memory."""
    if not database.startswith("file:"):
        return None if database in ("", ":memory:") else database
    from urllib.parse import parse_qs, unquote, urlsplit  # not for a path

    uri = urlsplit(database)
    in_memory = "memory" in parse_qs(uri.query).get("mode", ())
    path = unquote(uri.path)
    return None if in_memory or path in ("", ":memory:") else path


def _create(scratch: peewee.Database, model: ModelType, sql: str) -> None:
    try:
        execute(scratch, sql)
    except peewee.PeeweeException as error:
        raise ModelError(
            f"{model.__name__} makes no table that SQLite takes: {first_line(error)}",
            f"correct the model; its SQL was: {bounded(sql)}",
        ) from None


def is_constant(default: str) -> bool:
    """Tell whether a default is a literal."""
    number = r"[+-]? ?(0x[0-9a-f]+|[0-9.]+(e[+-]?[0-9]+)?)"
    return bool(re.fullmatch(rf"{number}|x?'(?:[^']|'')*'|null", default, re.IGNORECASE))
