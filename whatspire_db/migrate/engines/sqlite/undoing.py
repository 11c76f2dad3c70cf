"""SQLite: what depends on a table or a column is found in the text of the schema, and tried on a copy of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import peewee

from whatspire_db.messages import first_line
from whatspire_db.migrate.added import Added
from whatspire_db.migrate.ddl import ModelType, execute, qualified, quote, quote_text
from whatspire_db.migrate.schema import Column, Constraint, Index, Key, Schema, Table, folded_ascii
from whatspire_db.peewee_compat import load_extras

from ..undoing import Dependent, RecordsState, UndoEngine
from .engine import is_constant
from .table_reader import Token, tokenize

_RECORDS = "SELECT type FROM main.sqlite_master WHERE name = ? COLLATE NOCASE"
_WRITTEN = """
SELECT CASE type WHEN 'table' THEN 'virtual table' ELSE type END, name, tbl_name, sql FROM {}.sqlite_master
WHERE type IN ('view', 'trigger') OR (type = 'table' AND sql LIKE 'create virtual%') ORDER BY name
"""
_REFERENCES = """
SELECT t.name, f.id, f."table", f."to"
FROM {0}.sqlite_master AS t, pragma_foreign_key_list(t.name, {1}) AS f WHERE t.type = 'table'
"""
_SCHEMA = """
SELECT type, sql FROM {}.sqlite_master WHERE sql IS NOT NULL AND substr(name, 1, 7) <> 'sqlite_'
ORDER BY type = 'trigger', type = 'view', rowid
"""
_TABLES = "SELECT name FROM {}.sqlite_master WHERE type = 'table' AND sql NOT LIKE 'create virtual%'"
_BEFORE_A_STAR = frozenset(("select", "distinct", "all", "returning", ",", "."))  # which then is no multiplication
_RESOLVES = re.compile(r"\b(?:on conflict|or (?:abort|fail|ignore|replace|rollback)|replace into)\b")
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
        return qualified(key[0] or "main", key[1])  # a temporary table of that name would come first

    def dependents(self, added: Sequence[Added], live: Schema) -> list[Dependent]:
        texts = {schema: self._texts(schema) for schema in {each.table[0] for each in added}}
        return [dependent for each in added for dependent in self._of(each, live, texts[each.table[0]])]

    def _texts(self, schema: str) -> list[_Text]:
        places = (schema or "main", "temp")  # views and triggers of the connection can be about any file
        return [_Text(*row) for place in places for row in execute(self.db, _WRITTEN.format(quote(place))).fetchall()]

    def _of(self, added: Added, live: Schema, texts: Sequence[_Text]) -> Iterator[Dependent]:
        if added.kind not in ("table", "column", "index"):
            return
        schema = added.table[0]
        index = next((index for index in live.tables[added.table].indexes if index.name == added.name), None)
        for text in texts:
            if text.needs_index(added, index) if added.kind == "index" else text.needs(added):
                yield Dependent(added, (text.kind, (schema, folded_ascii(text.of)), text.name), text.title)
        yield from self._references(added, index)
        if added.kind == "column":
            yield from _parts_with(added, live.tables[added.table])

    def _references(self, added: Added, index: Index | None) -> Iterator[Dependent]:
        schema, table = added.table
        place = quote(schema or "main")
        query = _REFERENCES.format(place, quote_text(schema or "main"))
        targets: dict[tuple[str, int], set[str]] = {}
        for owner, number, target, column in execute(self.db, query).fetchall():
            if folded_ascii(target) == table:
                targets.setdefault((owner, number), set()).add(folded_ascii(column or ""))
        for (owner, _), columns in targets.items():
            if added.kind == "table":
                is_needed = folded_ascii(owner) != table
            elif added.kind == "column":
                is_needed = folded_ascii(added.name) in columns
            else:
                is_needed = index is not None and index.unique and columns == set(map(folded_ascii, index.columns))
            if is_needed:
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

    def is_in_backup(self, key: Key) -> bool:
        return key[0] in ("", "main")  # and no file that is attached beside it

    def is_unused(self, column: Column, key: Key) -> str:
        name = quote(column.name)
        unused = f"{name} IS NULL"
        if column.default is None or not (is_constant(column.default) or column.default in ("true", "false")):
            return unused
        # A collation, an affinity or a zero byte can make two values equal that are not the same.
        return " OR ".join([unused, *(f"({_is_same(name, stored)})" for stored in self._stored(column, key))])

    def _stored(self, column: Column, key: Key) -> list[str]:
        """Return the literals of what SQLite keeps of a column's default.

        A row that was there before the column has the constant as it is written, and a later one has what the type
        makes of it. In a STRICT table the type ANY makes nothing of it.
        """
        strict = " STRICT" if self._is_strict(key) else ""
        with closing(peewee.sqlite3.connect(":memory:")) as scratch:
            scratch.execute(f"CREATE TABLE t (a INTEGER){strict}")
            scratch.execute("INSERT INTO t (a) VALUES (1)")
            scratch.execute(f"ALTER TABLE t ADD COLUMN c {column.type} DEFAULT {column.default}")
            scratch.execute("INSERT INTO t (a) VALUES (2)")
            return [str(row[0]) for row in scratch.execute("SELECT quote(c) FROM t GROUP BY quote(c) ORDER BY min(a)")]

    def _is_strict(self, key: Key) -> bool:
        if peewee.sqlite3.sqlite_version_info < (3, 37):
            return False
        query = "SELECT strict FROM pragma_table_list WHERE schema = ? AND name = ? COLLATE NOCASE"
        return bool(self.schema.ask(query, [key[0] or "main", key[1]]))

    def proof(self, key: Key, column: Column | None, left: str | None = None) -> str:
        rows = f"SELECT 1 FROM {self.name(key)}" + (f" WHERE NOT ({self.is_unused(column, key)})" if column else "")
        return f"SELECT CASE WHEN EXISTS ({rows}) THEN {_FAIL} END"

    def drop_column(self, key: Key, name: str) -> str:
        return f"ALTER TABLE {self.name(key)} DROP COLUMN {quote(name)}"

    def trial(self, statements: Sequence[str]) -> str | None:
        """Run statements on an empty copy of the schema: a view that is broken anywhere stops SQLite too."""
        scratch = peewee.SqliteDatabase(":memory:")
        try:
            load_extras(self.db, scratch.connection())
            for number, schema, _ in execute(self.db, "PRAGMA database_list").fetchall():
                # The schema of temporary tables is 1. A table whose functions are not known here cannot be tried.
                if number != 1 and not self._copy(scratch, schema):
                    return None
            for sql in statements:
                execute(scratch, sql)
        except peewee.PeeweeException as error:
            return first_line(error)
        finally:
            scratch.close()
        return None

    def _copy(self, scratch: peewee.SqliteDatabase, schema: str) -> bool:
        """Copy a schema without rows; return whether all of its tables are there but for virtual ones."""
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
        ours, theirs = (
            {name for (name,) in execute(db, _TABLES.format(place)).fetchall()} for db in (self.db, scratch)
        )
        return ours <= theirs


@dataclass(frozen=True)
class _Text:
    """A view, a trigger or a virtual table, as it was written."""

    kind: str
    name: str
    of: str  # the table or view of a trigger, otherwise its own name
    sql: str

    @property
    def title(self) -> str:
        return f"{self.kind} {self.name}"

    @cached_property
    def tokens(self) -> list[Token]:
        return tokenize(self.sql)

    @cached_property
    def words(self) -> list[str]:
        """All tokens without their quotes."""
        return [token.name for token in self.tokens]

    @cached_property
    def _folded(self) -> tuple[str, frozenset[str]]:
        return folded_ascii(self.sql), frozenset(self.words)

    def names(self, name: str) -> bool:
        """Tell whether it names something, in any quotes, or seems to: FTS5 and comments have their own grammar."""
        name = folded_ascii(name)
        sql, words = self._folded
        return name in words or (name in sql and _stands_in(sql, name))

    def needs(self, added: Added) -> bool:
        """Tell whether it needs a table or a column, or seems to."""
        table = added.table[1]
        is_own = folded_ascii(self.of) == table
        if added.kind == "table" or self.kind == "virtual table":
            return not is_own and self.names(table)  # a trigger of the table itself shows in its definition
        if not is_own and not self.names(table):
            return False
        return self.names(added.name) or self._takes_all_columns(table)

    def needs_index(self, added: Added, index: Index | None) -> bool:
        """Tell whether it needs an index by its name, or a unique one for what it does where two rows are equal."""
        if "indexed" in self.words and self.names(added.name):
            return True
        is_about = folded_ascii(self.of) == added.table[1] or self.names(added.table[1])
        is_unique = index is not None and index.unique
        return self.kind == "trigger" and is_about and is_unique and bool(_RESOLVES.search(" ".join(self.words)))

    def _takes_all_columns(self, table: str) -> bool:
        """Tell whether it uses columns that it does not name: by a star, by NATURAL or by their order."""
        pairs = zip(self.tokens, self.tokens[1:], strict=False)
        has_star = any(token.text == "*" and before.text in _BEFORE_A_STAR for before, token in pairs)
        return has_star or "natural" in self.words or self._takes_their_order(table)

    def _takes_their_order(self, table: str) -> bool:
        """Tell whether there is INSERT INTO a table without a list of columns, or a row that is IN it."""
        for position, word in enumerate(self.words):
            after = self.words[position + 1 : position + 7]
            after = after[2:] if after[1:2] == ["."] else after
            if word not in ("into", "in") or after[:1] != [table]:
                continue
            after = after[3:] if after[1:2] == ["as"] else after[1:]
            if word == "in" or after[:1] != ["("]:
                return True
        return False


def _is_same(name: str, stored: str) -> str:
    """Return the condition that a column holds just that."""
    same = f"typeof({name}) = typeof({stored}) AND {name} IS {stored} COLLATE BINARY"
    return f"{same} AND CAST({name} AS BLOB) IS CAST({stored} AS BLOB)"


def _names(sql: str, name: str) -> bool:
    """Tell whether an expression names a column, in any quotes, or seems to."""
    name = folded_ascii(name)
    return _stands_in(folded_ascii(sql), name) or any(token.name == name for token in tokenize(sql))


def _stands_in(folded: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", folded) is not None


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
