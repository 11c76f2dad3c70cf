"""SQLite: what depends on a table or a column is found in the text of the schema, and tried on a copy of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing

import peewee

from whatspire_db.messages import first_line
from whatspire_db.migrate.added import Added
from whatspire_db.migrate.ddl import ModelType, execute, qualified, quote
from whatspire_db.migrate.schema import Column, Constraint, Index, Key, Schema, Table, folded_ascii
from whatspire_db.peewee_compat import load_extras

from ..undoing import Dependent, RecordsState, UndoEngine
from .engine import is_constant

_RECORDS = "SELECT type FROM main.sqlite_master WHERE name = ? COLLATE NOCASE"
_WRITTEN = "SELECT type, name, tbl_name, sql FROM {}.sqlite_master WHERE type IN ('view', 'trigger') ORDER BY name"
_REFERENCES = """
SELECT t.name, f.id, f."table", f."to"
FROM {0}.sqlite_master AS t, pragma_foreign_key_list(t.name, {1}) AS f WHERE t.type = 'table'
"""
_SCHEMA = """
SELECT type, sql FROM {}.sqlite_master WHERE sql IS NOT NULL AND substr(name, 1, 7) <> 'sqlite_'
ORDER BY type = 'trigger', type = 'view', rowid
"""
# Fails where it is reached: no whole number is so large.
_FAIL = "abs(-9223372036854775807 - 1)"


class SqliteUndo(UndoEngine):
    """SQLite, where an undo is one transaction under the write lock."""

    lock = "the database's write lock"
    online_lock = "the database's write lock"
    rewrites = True

    def records_state(self, model: ModelType) -> RecordsState:
        kind = self.schema.ask(_RECORDS, [model._meta.table_name])
        return RecordsState(kind is not None, kind == "table", kind in (None, "table"))

    def name(self, key: Key) -> str:
        return qualified(key[0], key[1])

    def dependents(self, added: Sequence[Added], live: Schema) -> list[Dependent]:
        return [dependent for each in added for dependent in self._of(each, live)]

    def _of(self, added: Added, live: Schema) -> Iterator[Dependent]:
        if added.kind not in ("table", "column"):
            return
        schema, table = added.table
        for kind, name, of_table, sql in execute(self.db, _WRITTEN.format(quote(schema or "main"))).fetchall():
            is_own = folded_ascii(of_table) == table
            if added.kind == "table" and is_own:
                continue  # a trigger of the table itself shows in its definition
            if _names(sql, table) or is_own:
                uses = added.kind == "table" or _names(sql, added.name) or (kind == "view" and "*" in sql)
                if uses:
                    yield Dependent(added, (kind, (schema, folded_ascii(of_table)), name), f"{kind} {name}")
        yield from self._references(added)
        if added.kind == "column":
            yield from _parts_with(added, live.tables[added.table])

    def _references(self, added: Added) -> Iterator[Dependent]:
        schema, table = added.table
        place = quote(schema or "main")
        query = _REFERENCES.format(place, "'" + (schema or "main").replace("'", "''") + "'")
        for owner, _, target, column in execute(self.db, query).fetchall():
            if folded_ascii(target) != table or (added.kind == "column" and folded_ascii(column or "") != added.name):
                continue
            if added.kind == "column" or folded_ascii(owner) != table:
                key = (schema, folded_ascii(owner))
                yield Dependent(added, ("constraint", key, ""), f"a foreign key of table {owner}")

    def cannot_drop(self, column: Column, key: Key, live: Schema) -> str | None:
        table = live.tables[key]
        for constraint in table.constraints:
            own = constraint.inline == column.name
            if column.name in constraint.columns and not own:
                return f"it is part of {_kind(constraint)}"
        if any(not index.name and column.name in index.columns for index in table.indexes):
            return "it is part of a UNIQUE constraint"
        if peewee.sqlite3.sqlite_version_info < (3, 35):
            return f"SQLite {peewee.sqlite3.sqlite_version} drops none, as it does from version 3.35 on"
        return None

    def is_unused(self, column: Column) -> str:
        name = quote(column.name)
        unused = f"{name} IS NULL"
        if column.default is None or not (is_constant(column.default) or column.default in ("true", "false")):
            return unused
        # A collation, an affinity or a zero byte can make two values equal that are not the same.
        stored = self._stored(column)
        same = f"typeof({name}) = typeof({stored}) AND {name} IS {stored} COLLATE BINARY"
        return f"{unused} OR ({same} AND CAST({name} AS BLOB) IS CAST({stored} AS BLOB))"

    def _stored(self, column: Column) -> str:
        """Return the literal of what SQLite keeps in a row that gets a column's default."""
        with closing(peewee.sqlite3.connect(":memory:")) as scratch:
            scratch.execute(f"CREATE TABLE t (a, c {column.type} DEFAULT {column.default})")
            scratch.execute("INSERT INTO t (a) VALUES (1)")
            (literal,) = scratch.execute("SELECT quote(c) FROM t").fetchone()
        return str(literal)

    def proof(self, key: Key, column: Column | None, left: str | None = None) -> str:
        rows = f"SELECT 1 FROM {self.name(key)}" + (f" WHERE NOT ({self.is_unused(column)})" if column else "")
        return f"SELECT CASE WHEN EXISTS ({rows}) THEN {_FAIL} END"

    def drop_column(self, key: Key, name: str) -> str:
        return f"ALTER TABLE {self.name(key)} DROP COLUMN {quote(name)}"

    def trial(self, statements: Sequence[str]) -> str | None:
        """Run statements on an empty copy of the schema: a view that is broken anywhere stops SQLite too."""
        scratch = peewee.SqliteDatabase(":memory:")
        try:
            load_extras(self.db, scratch.connection())
            for number, schema, _ in execute(self.db, "PRAGMA database_list").fetchall():
                if number != 1:  # the schema of temporary tables
                    self._copy(scratch, schema)
            for sql in statements:
                execute(scratch, sql)
        except peewee.PeeweeException as error:
            return first_line(error)
        finally:
            scratch.close()
        return None

    def _copy(self, scratch: peewee.SqliteDatabase, schema: str) -> None:
        if schema != "main":
            scratch.attach(":memory:", schema)
        place = quote(schema)
        connection = scratch.connection()
        for kind, sql in execute(self.db, _SCHEMA.format(place)).fetchall():
            words = f"VIRTUAL TABLE|TABLE|UNIQUE INDEX|INDEX|TRIGGER|{kind}"
            try:
                connection.execute(re.sub(rf"(?i)^CREATE ({words}) ", rf"CREATE \1 {place}.", sql, count=1))
            except peewee.sqlite3.Error:
                continue  # of a module that is not loaded, or one of its own tables


def _names(sql: str, name: str) -> bool:
    """Tell whether a text names something, or seems to."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", folded_ascii(sql)) is not None


def _kind(constraint: Constraint) -> str:
    return {"primary_key": "the PRIMARY KEY", "foreign_key": "a FOREIGN KEY"}.get(
        constraint.kind, f"{constraint.definition}, which belongs to the table"
    )


def _parts_with(added: Added, table: Table) -> Iterator[Dependent]:
    """Yield the indexes and the generated columns of a table that use a column of it."""
    for index in table.indexes:
        if index.name and (added.name in index.columns or _uses(index, added.name)):
            yield Dependent(added, ("index", added.table, index.name), f"index {index.name}")
    for column in table.columns.values():
        if column.name != added.name and _names(column.generated or "", added.name):
            yield Dependent(added, ("column", added.table, column.name), f"generated column {column.name}")
    for constraint in table.constraints:
        if constraint.inline not in (None, added.name) and added.name in constraint.columns:
            title = f"the CHECK of column {constraint.inline}"
            yield Dependent(added, ("column", added.table, str(constraint.inline)), title)


def _uses(index: Index, name: str) -> bool:
    return any(_names(text or "", name) for text in (index.predicate, *(key.expression for key in index.keys)))
