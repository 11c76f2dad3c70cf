"""SQLite: the CREATE TABLE that a drifted table is to be made anew by, composed of the declared and the live text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from whatspire_db.migrate.ddl import key_of_index, quote
from whatspire_db.migrate.diff import diff
from whatspire_db.migrate.mending import DriftedTable
from whatspire_db.migrate.schema import Column, Constraint, Index, Schema, Table

from .table_reader import Token, is_constraint, parts_of

Probe = Callable[[str], Table]  # makes a table and its indexes in a scratch place, and returns how the engine reads it


@dataclass(frozen=True)
class Parts:
    """The parts of a CREATE TABLE as they were written: columns by name, constraints, and what follows."""

    columns: Mapping[str, tuple[Token, ...]]
    constraints: tuple[tuple[Token, ...], ...]
    tail: str
    sql: str

    @classmethod
    def of(cls, sql: str) -> Parts:
        """Split a CREATE TABLE."""
        elements, tail = parts_of(sql)
        return cls(
            {element[0].name: tuple(element) for element in elements if not is_constraint(element)},
            tuple(tuple(element) for element in elements if is_constraint(element)),
            sql[tail[0].start : tail[-1].end] if tail else "",
            sql,
        )

    def text(self, tokens: Sequence[Token]) -> str:
        """Return a part as it was written."""
        return self.sql[tokens[0].start : tokens[-1].end]


class CannotBeMade(Exception):
    """Why a table cannot be composed that is as declared and keeps what no model declares."""


def composed(name: str, declared_sql: str, live_sql: str, table: DriftedTable, probe: Probe) -> tuple[str, Table]:
    """Return the CREATE TABLE that mends a table, and how SQLite reads it.

    Columns stay in their order. What is missing is left out, and what no model declares is kept.

    :raises CannotBeMade: when SQLite reads it in another way than is wanted.
    """
    declared, live = Parts.of(declared_sql), Parts.of(live_sql)
    uniques: list[str] = []
    made = None
    for _ in range(2):  # which UNIQUE constraints the declared text lacks is seen of what it makes
        sql = _create_table(name, declared, live, table, uniques)
        made = probe(sql)
        shapes = {index.shape for index in made.indexes}
        uniques += [_unique(index) for index in table.live.indexes if not index.name and index.shape not in shapes]
    assert made is not None
    if why := next(_differences(table, made), None):
        raise CannotBeMade(why)
    return sql, made


def _create_table(name: str, declared: Parts, live: Parts, table: DriftedTable, uniques: Sequence[str]) -> str:
    has_key = any(c.kind == "primary_key" for c in table.declared.constraints)
    kept_as_is = _columns_kept_as_is(table)
    columns = [
        _extra_column(live, live.columns[column], has_key)
        if column in kept_as_is
        else declared.text(declared.columns[column])
        for column in table.live.columns
    ]
    kept = [declared.text(part) for part in declared.constraints if not _names(part) & table.missing_columns]
    kept += _extra_constraints(table, live, has_key)
    listed = ",\n    ".join([*columns, *kept, *uniques])
    return f"CREATE TABLE {quote(name)} (\n    {listed}\n) {declared.tail}".rstrip()


def _columns_kept_as_is(table: DriftedTable) -> set[str]:
    """Return the columns that no model declares, and those whose drift is accepted."""
    accepted = {drift.name for drift in table.accepted if isinstance(drift.wanted, Column)}
    return {name for name in table.live.columns if name not in table.declared.columns or name in accepted}


def _names(tokens: Sequence[Token]) -> set[str]:
    return {token.name for token in tokens if token.kind in ("word", "quoted")}


def _extra_column(live: Parts, tokens: Sequence[Token], has_key: bool) -> str:
    """Return a column that no model declares; where the table gets another key, it stays unique."""
    words = [token.text if token.kind == "word" else "" for token in tokens]
    if not has_key or "primary" not in words[1:]:
        return live.text(tokens)
    start = words.index("primary", 1)
    end = start + 2
    end += words[end : end + 1] in (["asc"], ["desc"])
    end += 3 * (words[end : end + 2] == ["on", "conflict"])
    end += words[end : end + 1] == ["autoincrement"]
    before, after = tokens[:start], tokens[end:]
    return " ".join([live.text(before), "UNIQUE", *([live.text(after)] if after else [])])


def _extra_constraints(table: DriftedTable, live: Parts, has_key: bool) -> Iterator[str]:
    """Yield the constraints that no model declares and that stand in no column which is kept as it is."""
    extra = _columns_kept_as_is(table)
    for item in (e.item for e in table.extra):
        if not isinstance(item, Constraint) or (item.kind == "primary_key" and has_key):
            continue
        # Of a CHECK it is known whether it stands in a column; other texts say so themselves.
        only = item.columns[0] if len(item.columns) == 1 and item.kind != "check" else ""
        column = item.inline or only
        word = {"foreign_key": "references", "primary_key": "primary"}.get(item.kind, "check")
        if column in extra and any(token.is_word(word) for token in live.columns[column]):
            continue
        name = f"CONSTRAINT {quote(item.name)} " if item.name else ""
        listed = ", ".join(map(quote, item.columns))
        head = {"foreign_key": f"FOREIGN KEY ({listed}) ", "primary_key": f"PRIMARY KEY ({listed})"}
        yield name + head.get(item.kind, "") + item.sql


def _unique(index: Index) -> str:
    return f"UNIQUE ({', '.join(map(key_of_index, index.keys))})"


def _differences(table: DriftedTable, made: Table) -> Iterator[str]:
    """Yield what is not as declared in a table, and what it lacks of the live one that did not drift."""
    declared, live, new = (Schema({table.key: side}) for side in (table.declared, table.live, made))
    ahead = diff(declared, new, constraints_can_be_added=False)
    wanted, got = [d.wanted for d in table.drift], [d.got for d in table.drift]
    accepted, left = {d.facts for d in table.accepted}, {d.facts for d in ahead.drift}
    yield from (f"it would not be as declared: {drift}" for drift in ahead.drift if drift.facts not in accepted)
    yield from (f"it would end what is accepted: {drift}" for drift in table.accepted if drift.facts not in left)
    yield from (f"it would not have what is declared: {m}" for m in ahead.missing if m.item and m.item in wanted)
    back = diff(live, new, constraints_can_be_added=False)
    yield from (f"it would lose what stands there: {m}" for m in back.missing if m.item not in got)
    # A rowid is never NULL; a column that is one no longer need not say so.
    keys = {
        name for constraint in table.live.constraints if constraint.kind == "primary_key" for name in constraint.columns
    }
    kept = [d for d in back.drift if d.wanted not in got and not (d.kind == "column_null" and d.name in keys)]
    yield from (f"it would change what stands there: {drift}" for drift in kept)
