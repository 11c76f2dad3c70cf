"""What would mend drift: the tables that have some, and the statements as values; nothing here runs them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import printable
from .diff import Changes, Drift, Extra, Missing
from .schema import Column, Constraint, Index, Key, Schema, Table

RUN_UP_FIRST = "run up first, and then verify --sql again"


def comment(text: str) -> str:
    """Return a comment of SQL in one line, whatever the names in it hold."""
    return f"-- {printable(text)}"


def is_comment(sql: str) -> bool:
    """Tell whether a line of a fix is a comment that `comment` made."""
    return sql.startswith("-- ")


_VECTORS = re.compile(r"(?:.*\.)?(?P<kind>vector|halfvec)\((?P<dimensions>\d+)\)")


def loses_vectors(wanted: Column, got: Column, casts: bool = True) -> bool:
    """Return whether a column of vectors gets another dimension, which no cast of a vector gives it.

    :param casts: the database can make vector of halfvec, and back.
    """
    new, old = (_VECTORS.fullmatch(str(column.type)) for column in (wanted, got))
    if new is None or old is None:
        return False
    return new["dimensions"] != old["dimensions"] or (not casts and new["kind"] != old["kind"])


def vectors_in_the_way(column: str, wanted: Column, got: Column) -> str:
    """Return why a column of vectors that may not be NULL cannot get another dimension."""
    what = f"the vectors of {column} are {got.type} and cannot become {wanted.type}, and the column is NOT NULL"
    return f"{what}; declare it null=True and fill it afterwards, or delete the rows"


def vectors_lost(column: str, wanted: Column, got: Column) -> str:
    """Return the remark about a column of vectors that gets another dimension."""
    return f"all vectors of {column} are lost, and NULL afterwards: {got.type} cannot become {wanted.type}"


@dataclass(frozen=True)
class Fix:
    """What mends some drift of a table: statements and comments, in the order in which they can be run.

    Fixes are run by rank, and within one in the order of the tables that refer to each other.
    """

    drift: tuple[Drift, ...]
    sql: tuple[str, ...]
    rank: int = 0

    @property
    def is_safe(self) -> bool:
        """Tell whether there is a statement to run, and not only a comment that says why there is none."""
        return any(not is_comment(sql) for sql in self.sql)

    def explained(self, *texts: str) -> Fix:
        """Return the fix with comments before its statements."""
        return replace(self, sql=(*map(comment, texts), *self.sql))


def unsafe(drift: Iterable[Drift], *why: str) -> Fix:
    """Return a fix without a statement: comments that say why there is none, and what to do."""
    first, *more = why
    return Fix(tuple(drift), tuple(map(comment, [f"no safe statement: {first}", *more])))


def unknown(drift: Drift) -> Fix:
    """Return the fix of a kind of drift that an engine knows none for."""
    return unsafe([drift], f"none is known for drift of the kind {drift.kind}", "mend it by hand, or change the model")


@dataclass(frozen=True)
class DriftedTable:
    """A table that has drift: both sides, what differs, and what else is missing, extra or accepted."""

    declared: Table
    live: Table
    drift: tuple[Drift, ...]
    missing: tuple[Missing, ...] = ()
    extra: tuple[Extra, ...] = ()
    accepted: tuple[Drift, ...] = ()  # what the settings accept, which stays

    @property
    def key(self) -> Key:
        return self.declared.key

    @property
    def missing_columns(self) -> frozenset[str]:
        return frozenset(m.name for m in self.missing if isinstance(m.item, Column))

    def of_kind(self, prefix: str) -> Iterator[Drift]:
        """Yield the drift whose kind begins so."""
        return (drift for drift in self.drift if drift.kind.startswith(prefix))

    def lacks_columns_of(self, item: Index | Constraint) -> bool:
        """Tell whether an index or a constraint names a column that is not there yet."""
        return not self.missing_columns.isdisjoint(item.columns)


def drifted_tables(changes: Changes, declared: Schema, live: Schema, order: Sequence[Key]) -> list[DriftedTable]:
    """Return the tables that have drift, in an order in which each comes after those that it refers to."""
    found: dict[Key, list[Drift]] = {}
    for drift in changes.drift:
        if drift.key is not None:
            found.setdefault(drift.key, []).append(drift)
    return [
        DriftedTable(
            declared.tables[key],
            live.tables[key],
            tuple(found[key]),
            tuple(m for m in changes.missing if m.table == key),
            tuple(e for e in changes.extra if e.key == key),
            tuple(d for d in changes.accepted if d.key == key),
        )
        for key in sorted(found, key=lambda key: order.index(key) if key in order else len(order))
    ]


@dataclass(frozen=True)
class Mending:
    """What differs, and what would mend the drift. str() is a script for the engine's own shell."""

    changes: Changes
    fixes: tuple[Fix, ...] = ()
    settings: tuple[str, ...] = ()  # at the head of the script, so that it means the same in every session

    def of(self, drift: Drift) -> list[str]:
        """Return the statements and comments for one drift; those that mend it along with other drift are in each."""
        return [sql for fix in self.fixes if any(drift is one for one in fix.drift) for sql in fix.sql]

    def __str__(self) -> str:
        settings = map(_ended, self.settings) if any(fix.is_safe for fix in self.fixes) else ()
        return "\n".join([*self._heading(), *settings, *(line for fix in self._in_order() for line in _lines(fix))])

    def _in_order(self) -> list[Fix]:
        return sorted(self.fixes, key=lambda fix: fix.rank)

    @classmethod
    def of_changes(cls, changes: Changes, fixes: Sequence[Fix], settings: Sequence[str] = ()) -> Mending:
        """Return what mends changes, with a comment for each drift that no fix mends."""
        mended = [id(drift) for fix in fixes for drift in fix.drift]
        others = [unknown(drift) for drift in changes.drift if id(drift) not in mended]
        return cls(changes, (*fixes, *others), tuple(settings))

    def _heading(self) -> Iterator[str]:
        yield from (comment(str(renaming)) for renaming in self.changes.renamed)
        if self.changes.missing:
            what = ", ".join(str(m).removeprefix("missing ") for m in self.changes.missing)
            yield comment(f"missing: {what}; run up afterwards, unless a comment below says first")
        if not self.changes.drift:
            yield comment("no drift")


def _lines(fix: Fix) -> Iterator[str]:
    yield ""
    yield from (comment(str(drift)) for drift in fix.drift)
    for sql in fix.sql:
        yield sql if is_comment(sql) else _ended(sql)


def _ended(sql: str) -> str:
    """Return a statement with its semicolon, which a comment at its end must not swallow."""
    return f"{sql}\n;" if "--" in sql.rpartition("\n")[2] else f"{sql};"
