"""SQLite: what mends drift: a table is made anew with all that belongs to it, an index alone is made again."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import peewee

from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.messages import first_line
from whatspire_db.migrate.ddl import ModelType, execute, quote, quote_text
from whatspire_db.migrate.diff import Drift
from whatspire_db.migrate.mending import (
    RUN_UP_FIRST,
    DriftedTable,
    Fix,
    unsafe,
    vectors_in_the_way,
)
from whatspire_db.migrate.schema import Column, Index, Key, Schema, Table, label
from whatspire_db.migrate.stamp import rendered

from .rebuild import CannotBeMade, composed
from .remarks import duplicates, has_values, lost_vectors, remarks

if TYPE_CHECKING:
    from .engine import SqliteEngine

# What keeps a failure from doing harm, also in a shell that goes on after it: the old table is renamed first, so that
# once the transaction is rolled back no later statement finds anything to drop. Each check rolls back when it fails.
_CHECKS = """CREATE TEMP TABLE whatspire_mending (
    violations INTEGER,
    unchanged INTEGER,
    as_seen CONSTRAINT "the table is not as it was seen, or foreign keys are on" CHECK (as_seen),
    made CONSTRAINT "the new table was not made" CHECK (made),
    keyed CONSTRAINT "rows without a key would be given one" CHECK (keyed),
    copied CONSTRAINT "rows would be lost" CHECK (copied),
    complete CONSTRAINT "an index or a trigger could not be made again" CHECK (complete),
    referred CONSTRAINT "rows would violate a foreign key" CHECK (referred)
)"""
_UNCHANGED = "(SELECT max(unchanged) FROM temp.whatspire_mending)"
_BELONGINGS = """
SELECT type, name, sql FROM main.sqlite_master
WHERE tbl_name = ? COLLATE NOCASE AND sql IS NOT NULL AND type IN ('table', 'index', 'trigger') ORDER BY rowid
"""
_REFERRING = """
SELECT DISTINCT t.name FROM main.sqlite_master AS t, pragma_foreign_key_list(t.name, 'main') AS f
WHERE t.type = 'table' AND t.sql NOT LIKE 'create virtual%' AND f."table" = ? COLLATE NOCASE
"""


@dataclass(frozen=True)
class Belongings:
    """A live table as it was written, with the indexes and triggers that go when it is dropped."""

    name: str
    sql: str
    columns: tuple[str, ...]
    indexes: dict[str, str]
    triggers: dict[str, str]

    @property
    def texts(self) -> list[str]:
        return [self.sql, *self.indexes.values(), *self.triggers.values()]

    @classmethod
    def of(cls, engine: SqliteEngine, table: str) -> Belongings:
        """Read what belongs to a table."""
        rows = execute(engine.db, _BELONGINGS, [table]).fetchall()
        by_type = {kind: {name: sql for of, name, sql in rows if of == kind} for kind in ("table", "index", "trigger")}
        ((name, sql),) = by_type["table"].items()
        columns = execute(engine.db, "SELECT name FROM pragma_table_xinfo(?, 'main')", [name]).fetchall()
        return cls(name, sql, tuple(column for (column,) in columns), by_type["index"], by_type["trigger"])


def fixes(
    engine: SqliteEngine, tables: Iterable[DriftedTable], models: Mapping[Key, ModelType], live: Schema
) -> list[Fix]:
    """Return what mends the drift of some tables."""
    return [fix for table in tables for fix in _fixes(engine, table, models[table.key], live)]


def _fixes(engine: SqliteEngine, table: DriftedTable, model: ModelType, live: Schema) -> Iterator[Fix]:
    if table.declared.kind != "table" or table.live.kind != "table":
        what = f"{label(table.key)} is a {table.live.kind}, and a {table.declared.kind} is declared"
        if table.declared.kind == table.live.kind:
            what = f"what a {table.live.kind} is made of cannot be changed"
        yield unsafe(table.drift, what, "move what it holds by hand, or change the model")
    elif table.key[0]:
        yield unsafe(table.drift, f"{table.key[0]} is an attached file", "run verify --sql on that file by itself")
    elif all(drift.kind == "index" for drift in table.drift):
        belongings = Belongings.of(engine, table.key[1])
        for drift in table.drift:
            yield _index(engine, table, model, belongings, drift)
    else:
        yield _rebuild(engine, table, model, live)


def _declared_index(engine: SqliteEngine, table: DriftedTable, model: ModelType, drift: Drift) -> str | None:
    """Return the statement that makes an index as declared; None where a column of it is missing."""
    assert isinstance(drift.wanted, Index)
    if table.lacks_columns_of(drift.wanted):
        return None
    made = {engine.fold(name): sql for name, sql in rendered(engine.db, model).indexes}
    return made.get(drift.wanted.name)


def _index(engine: SqliteEngine, table: DriftedTable, model: ModelType, belongings: Belongings, drift: Drift) -> Fix:
    """Return what makes an index again; in the one transaction nobody sees the table without it."""
    sql, wanted, got = _declared_index(engine, table, model, drift), drift.wanted, drift.got
    assert isinstance(wanted, Index)
    if sql is None or not isinstance(got, Index) or not got.name:
        return unsafe([drift], f"a column of {wanted.title} is missing", RUN_UP_FIRST)
    name = next(name for name in belongings.indexes if engine.fold(name) == got.name)
    others = {n: s for n, s in belongings.indexes.items() if n != name} | {wanted.name: sql}
    statements = (
        *_checks_made(),
        "BEGIN",
        _noted_unchanged(belongings.name, [belongings.indexes[name]], f"type = 'index' AND name = {quote_text(name)}"),
        f"DROP INDEX {quote(name)}",
        sql,
        _check("as_seen", _UNCHANGED),
        _check("complete", _all_there(belongings.name, [*others, *belongings.triggers])),
        "COMMIT",
    )
    found = duplicates(quote(belongings.name), [k.expression for k in wanted.keys]) if wanted.unique else ""
    return Fix((drift,), statements).explained(*filter(None, [found]))


def _checks_made() -> tuple[str, ...]:
    return "DROP TABLE IF EXISTS temp.whatspire_mending", _CHECKS


def _check(what: str, condition: str) -> str:
    return f"INSERT OR ROLLBACK INTO temp.whatspire_mending ({what}) SELECT coalesce({condition}, 0)"


def _noted_unchanged(table: str, texts: Sequence[str], of_table: str) -> str:
    """Return what notes whether a table still has the texts that were read: a check before it would stop nothing.

    :param of_table: which rows of sqlite_master hold them, and nothing else.
    """
    listed, number = ", ".join(map(quote_text, texts)), len(texts)
    same = f"count(*) = {number} AND sum(sql IN ({listed})) = {number}"
    found = f"FROM main.sqlite_master WHERE tbl_name = {quote_text(table)} COLLATE NOCASE AND {of_table}"
    return f"INSERT INTO temp.whatspire_mending (unchanged) SELECT {same} {found}"


def _all_there(table: str, names: Sequence[str]) -> str:
    listed = ", ".join(map(quote_text, names))
    return (
        f"(SELECT count(*) FROM main.sqlite_master WHERE tbl_name = {quote_text(table)} COLLATE NOCASE "
        f"AND type IN ('index', 'trigger') AND name COLLATE NOCASE IN ({listed})) = {len(names)}"
    )


def _rebuild(engine: SqliteEngine, table: DriftedTable, model: ModelType, live: Schema) -> Fix:
    """Return what makes a table anew with all that belongs to it, or why that cannot be."""
    belongings = Belongings.of(engine, table.key[1])
    if why := _half_accepted(table) or _vectors_in_the_way(engine, table, belongings):
        return unsafe(table.drift, why)
    indexes = dict(belongings.indexes)
    for drift in table.of_kind("index"):
        sql = _declared_index(engine, table, model, drift)
        assert isinstance(drift.got, Index)
        name = next((name for name in indexes if engine.fold(name) == drift.got.name), None)
        if sql is None or name is None:
            return unsafe(table.drift, f"a column of the index {drift.name} is missing", RUN_UP_FIRST)
        indexes[name] = sql
    try:
        probe = _Probe(engine, table, tuple(indexes.values()))
        declared = rendered(engine.db, model).table[-1]
        sql, made = composed(belongings.name, declared, belongings.sql, table, probe)
    except (CannotBeMade, peewee.PeeweeException) as error:
        first = str(error) if isinstance(error, CannotBeMade) else first_line(error)
        hint = RUN_UP_FIRST if table.missing_columns else "make a new table by hand, and copy the rows"
        return unsafe(table.drift, f"the table cannot be made anew: {first}", hint)
    script = _Script(engine, table, belongings, indexes, sql, made, _free_name(engine, belongings, live))
    return Fix(table.drift, tuple(script.statements())).explained(*remarks(engine, table, made, belongings.name))


def _half_accepted(table: DriftedTable) -> str | None:
    accepted = {drift.name for drift in table.accepted if isinstance(drift.wanted, Column)}
    torn = sorted({drift.name for drift in table.of_kind("column_")} & accepted)
    if not torn:
        return None
    return f"drift of {', '.join(torn)} is accepted, and other drift of it is not; accept all of it, or none"


def _vectors_in_the_way(engine: SqliteEngine, table: DriftedTable, belongings: Belongings) -> str | None:
    for name, (wanted, got) in lost_vectors(table).items():
        if wanted.not_null and has_values(engine, belongings.name, name):
            return vectors_in_the_way(f"{quote(belongings.name)}.{quote(name)}", wanted, got)
    return None


def _free_name(engine: SqliteEngine, belongings: Belongings, live: Schema) -> str:
    """Return a name for the meantime, which nobody gives a table of theirs: a shell that goes on would drop it."""
    number = zlib.crc32("\0".join(belongings.texts).encode())
    while ("", engine.fold(f"{belongings.name}_before_{number}")) in live.names:
        number += 1
    return f"{belongings.name}_before_{number}"


@dataclass(frozen=True)
class _Probe:
    """Makes a table in memory, and reads it there."""

    engine: SqliteEngine
    table: DriftedTable
    indexes: tuple[str, ...]

    def __call__(self, sql: str) -> Table:
        return self.engine.read_in_scratch([sql, *self.indexes], self.table.key)


@dataclass(frozen=True)
class _Script:
    """The statements that make a table anew: https://www.sqlite.org/lang_altertable.html, with the old one renamed.

    With legacy_alter_table, and foreign keys off, views, triggers and references of other tables keep naming the table.
    """

    engine: SqliteEngine
    table: DriftedTable
    belongings: Belongings
    indexes: dict[str, str]
    sql: str
    made: Table
    before: str

    def statements(self) -> Iterator[str]:
        """Yield them in order."""
        name, old = quote(self.belongings.name), quote(self.before)
        checked = list(self._checked_tables())
        yield "PRAGMA foreign_keys = OFF"
        yield "PRAGMA legacy_alter_table = ON"
        yield from _checks_made()
        yield f"INSERT INTO temp.whatspire_mending (violations) SELECT {_violations(checked)}"
        yield "BEGIN"
        yield _noted_unchanged(self.belongings.name, self.belongings.texts, "sql IS NOT NULL")
        yield f"ALTER TABLE {name} RENAME TO {old}"
        yield _check("as_seen", " AND ".join(self._as_seen()))
        yield self.sql
        found = f"SELECT count(*) FROM main.sqlite_master WHERE type = 'table' AND name IN ({self._both_names()})"
        yield _check("made", f"({found}) = 2")
        yield from self._keyed(old)
        yield self._copy(name, old)
        yield _check("copied", f"(SELECT count(*) FROM {name}) = (SELECT count(*) FROM {old})")
        yield from self._sequence(name)
        yield f"DROP TABLE {old}"
        yield from self.indexes.values()
        yield from self.belongings.triggers.values()
        yield _check("complete", _all_there(self.belongings.name, [*self.indexes, *self.belongings.triggers]))
        yield _check("referred", f"{_violations(checked)} <= (SELECT max(violations) FROM temp.whatspire_mending)")
        yield "COMMIT"
        yield "PRAGMA legacy_alter_table = OFF"
        if self.engine.ask("PRAGMA foreign_keys"):
            yield "PRAGMA foreign_keys = ON"

    def _both_names(self) -> str:
        return f"{quote_text(self.belongings.name)}, {quote_text(self.before)}"

    def _as_seen(self) -> Iterator[str]:
        """Yield conditions: nobody has changed the table since, and no row is deleted along with it."""
        yield "(SELECT foreign_keys FROM pragma_foreign_keys) = 0"
        yield _UNCHANGED
        yield f"EXISTS (SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = {quote_text(self.before)})"

    def _keyed(self, old: str) -> Iterator[str]:
        """Yield a check that each row has a key: SQLite makes a number of a NULL that becomes a rowid."""
        alias = self._alias()
        if alias is not None and not self.table.live.columns[alias].not_null:
            yield _check("keyed", f"NOT EXISTS (SELECT 1 FROM {old} WHERE {quote(alias)} IS NULL)")

    def _copy(self, name: str, old: str) -> str:
        fold = self.engine.fold
        columns = [quote(c) for c in self.belongings.columns if not self.made.columns[fold(c)].generated]
        if rowid := self._rowid():
            columns.insert(0, rowid)
        lost = {quote(column) for column in lost_vectors(self.table)}
        values = ", ".join("NULL" if fold(column) in lost else column for column in columns)
        return f"INSERT OR ROLLBACK INTO {name} ({', '.join(columns)}) SELECT {values} FROM {old}"

    def _alias(self) -> str | None:
        """Return the column of the new table that is its rowid."""
        (key,) = [c.columns for c in self.made.constraints if c.kind == "primary_key"] or [()]
        is_alias = len(key) == 1 and self.made.columns[key[0]].type == "integer"
        has_rowids = not {"WITHOUT ROWID", "PRIMARY KEY DESC"}.intersection(self.made.options)
        return key[0] if is_alias and has_rowids else None

    def _rowid(self) -> str | None:
        """Return the name under which rows keep their rowid, where no column of the key is it."""
        if any("WITHOUT ROWID" in table.options for table in (self.table.live, self.made)):
            return None
        if self._alias() is not None:
            return None
        names = (n for n in ("rowid", "_rowid_", "oid") if n not in self.made.columns)
        return next(names, None)

    def _sequence(self, name: str) -> Iterator[str]:
        """Yield what gives the new table the highest key that was ever used."""
        if all("AUTOINCREMENT" in table.options for table in (self.table.live, self.made)):
            old, new = quote_text(self.before), quote_text(self.belongings.name)
            there = f"SELECT 1 FROM main.sqlite_sequence WHERE name = {old}"
            yield f"DELETE FROM main.sqlite_sequence WHERE name = {new} AND EXISTS ({there})"
            (key,) = (c.columns for c in self.made.constraints if c.kind == "primary_key")
            used = f"coalesce((SELECT max({quote(key[0])}) FROM {name}), 0)"
            yield (
                f"INSERT INTO main.sqlite_sequence (name, seq) SELECT {new}, max(seq, {used}) "
                f"FROM main.sqlite_sequence WHERE name = {old}"
            )

    def _checked_tables(self) -> Iterator[str]:
        """Yield the tables whose references are counted: this one, and those that refer to it."""
        rows = execute(self.engine.db, _REFERRING, [self.belongings.name]).fetchall()
        for table in dict.fromkeys([self.belongings.name, *(name for (name,) in rows)]):
            try:
                execute(self.engine.db, f"EXPLAIN PRAGMA foreign_key_check({quote(table)})").fetchall()
            except peewee.OperationalError:
                continue  # it refers to what is not unique, so nothing can be said of its rows
            yield table


def _violations(tables: Sequence[str]) -> str:
    counts = [f"(SELECT count(*) FROM pragma_foreign_key_check({quote_text(table)}))" for table in tables]
    return " + ".join(counts) or "0"
