"""PostgreSQL: what mends drift of indexes, primary keys and constraints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from whatspire_db.light_stdlib import Any, TypeVar
from whatspire_db.migrate.ddl import (
    execute,
    index_named,
    qualified,
    quote,
    unique_definition,
    unique_index,
)
from whatspire_db.migrate.diff import Drift
from whatspire_db.migrate.mending import RUN_UP_FIRST, Fix, comment, unknown, unsafe
from whatspire_db.migrate.schema import Constraint, Index, Key, Table
from whatspire_db.migrate.stamp import rendered
from whatspire_db.sql import literal, pinned

from . import online
from .scripts import Reference, Site, guard, made_again, transaction, validated, without_tail

DEFERRABLE = ("NOT DEFERRABLE", "DEFERRABLE", "INITIALLY DEFERRED", "INITIALLY IMMEDIATE")
_REPLICA_IDENTITY = pinned("SELECT indisreplident, indisclustered FROM pg_index WHERE indexrelid = to_regclass(%s)")
_VALID = pinned("SELECT FROM pg_index WHERE indexrelid = to_regclass({0}) AND indisvalid")
T = TypeVar("T")


def _sides(drift: Drift, kind: type[T]) -> tuple[T, T]:
    """Return the declared and the live thing that differ."""
    assert isinstance(drift.wanted, kind)
    assert isinstance(drift.got, kind)
    return drift.wanted, drift.got


def index(site: Site, drift: Drift) -> Fix:
    """Return what puts an index as declared in the place of a live one; there is always one of the two."""
    wanted, got = _sides(drift, Index)
    if site.table.lacks_columns_of(wanted):
        return unsafe([drift], "a column of the index is missing", RUN_UP_FIRST)
    if wanted.constraint and wanted.shape == got.shape and got.valid and not got.constraint:
        return Fix((drift,), transaction(_as_constraint(site, wanted, got.name)), 2)
    temporary, cleared = site.free_index(wanted.name)
    made = _made(site, wanted, temporary)
    if made is None:
        return unsafe([drift], "no statement of the model makes it", "create it by hand")
    why = "the table is partitioned" if site.table.live.partitioned else ""
    if wanted.constraint and wanted.method == "gist":
        why = "a constraint WITHOUT OVERLAPS cannot be made of an index"
    if why:
        return Fix((drift,), tuple(_swapped_at_once(site, wanted, got, made, temporary, why)), 2)
    references = site.references_by(got.name)
    old = site.free_name(got.name, "old")
    # A reference that is made again could take the old one, which then could not go.
    is_dropped = bool(got.constraint or references)
    away = _dropped(site, got) if is_dropped else _rename(site, got.name, old)
    here = _as_constraint(site, wanted, temporary) if wanted.constraint else _rename(site, temporary, wanted.name)
    sql = [
        *(_no_duplicates(site, wanted) if wanted.unique else ()),
        *cleared,
        *online.build_statements(made, None),
        *_swap(site, [away, here, *_settings(site, got.name, wanted.name)], temporary, references),
        *([] if is_dropped else [f"DROP INDEX CONCURRENTLY IF EXISTS {site.relation(old)}"]),
        f"DROP INDEX CONCURRENTLY IF EXISTS {site.relation(temporary)}",
    ]
    return Fix((drift,), site.within(sql), 2)


def _swapped_at_once(site: Site, wanted: Index, got: Index, made: str, temporary: str, why: str) -> Iterator[str]:
    """Yield what swaps an index that cannot be built beside writers."""
    yield comment(f"{why}: writers wait while the index is built")
    steps = [made, _dropped(site, got), _rename(site, temporary, wanted.name)]
    if wanted.constraint:
        add = site.alter(f"ADD CONSTRAINT {quote(wanted.name)} {unique_definition(wanted)}")
        steps = [_dropped(site, got), add]
    references = site.references_by(got.name)
    around = [*(r.dropped() for r in references), *steps, *(r.added() for r in references)]
    yield from made_again(references)
    yield from site.within(transaction(*around))
    yield from validated(references)


def _as_constraint(site: Site, wanted: Index, index: str) -> str:
    definition = f"UNIQUE USING INDEX {quote(index)}{wanted.constraint.removeprefix('UNIQUE')}"
    return site.alter(f"ADD CONSTRAINT {quote(wanted.name)} {definition}")


def _dropped(site: Site, got: Index) -> str:
    if got.constraint:
        return site.alter(f"DROP CONSTRAINT {quote(got.name)}")
    return f"DROP INDEX {site.relation(got.name)}"


def _made(site: Site, wanted: Index, name: str) -> str | None:
    """Return CREATE INDEX under another name: the model's own, for a canonical text leaves out what we do not know."""
    if wanted.constraint:
        return unique_index(site.name, wanted).replace(quote(wanted.name), quote(name), 1)
    model = site.model
    statements = {site.engine.fold(n): sql for n, sql in rendered(site.engine.db, model).indexes} if model else {}
    sql = statements.get(wanted.name)
    return index_named(sql, name) if sql else None


def _rename(site: Site, old: str, new: str) -> str:
    return f"ALTER INDEX {site.relation(old)} RENAME TO {quote(new)}"


def _settings(site: Site, old: str, new: str) -> Iterator[str]:
    """Return what a table keeps of an index by its name."""
    row: Any = execute(site.engine.db, _REPLICA_IDENTITY, [site.relation(old)]).fetchone()
    found = row or (False, False)
    statements = (site.alter(f"REPLICA IDENTITY USING INDEX {quote(new)}"), site.alter(f"CLUSTER ON {quote(new)}"))
    return (sql for sql, is_set in zip(statements, found, strict=True) if is_set)


def _no_duplicates(site: Site, wanted: Index) -> tuple[str, ...]:
    keys = [k.expression for k in wanted.keys]
    return _unique(site, keys, site.engine.index_condition(wanted), wanted.title)


def _unique(site: Site, keys: Sequence[str], condition: str, title: str) -> tuple[str, ...]:
    listed = ", ".join(keys)
    count = f"{site.engine.function('count')}(*)"
    several = f"{count} {site.engine.operator('>')} 1"
    found = f"SELECT {listed}, {count} FROM {site.name} WHERE {condition} GROUP BY {listed} HAVING {several}"
    message = f"{site.name} has duplicate values in what must be unique: {title}"
    return comment(f"rows in the way: {found}"), guard(found, message, f"find them: {found}")


def _swap(site: Site, statements: Sequence[str], temporary: str, references: Sequence[Reference]) -> Iterator[str]:
    """Yield what swaps an index for the one that was just built, if that is valid, and keeps what refers to it."""
    name = literal(site.relation(temporary))
    unfit = f"SELECT WHERE NOT EXISTS ({_VALID.format(name)})"
    yield from made_again(references)
    yield from transaction(
        guard(unfit, f"the index {temporary} could not be built", "see the error before this one"),
        *(r.dropped() for r in references),
        *statements,
        *(r.added() for r in references),
    )
    yield from validated(references)


def primary_key(site: Site, drift: Drift) -> Fix:
    """Return what gives a table the declared primary key: its index is built first, beside readers and writers."""
    wanted, got = _sides(drift, Constraint)
    if site.table.lacks_columns_of(wanted):
        return unsafe([drift], "a column of the primary key is missing", RUN_UP_FIRST)
    if wanted.definition == got.definition:
        return Fix((drift,), (f"REINDEX INDEX CONCURRENTLY {site.relation(got.name)}",), 2)
    what, deferrable = without_tail(wanted.definition, *DEFERRABLE)
    references, settings = site.references_by(got.name), list(_settings(site, got.name, wanted.name))
    drop = site.alter(f"DROP CONSTRAINT {quote(got.name)}")
    columns = list(map(quote, wanted.columns))
    nulls = " OR ".join(f"{column} IS NULL" for column in columns)
    empty = f"SELECT * FROM {site.name} WHERE {nulls}"
    checks = (
        comment(f"rows in the way: {empty}"),
        guard(empty, f"{site.name} has rows without a primary key", f"find them: {empty}"),
        *_unique(site, columns, "true", wanted.definition),
    )
    if site.table.live.partitioned or "WITHOUT OVERLAPS" in what:
        add = site.alter(f"ADD CONSTRAINT {quote(wanted.name)} {wanted.definition}")
        kept = [*(r.dropped() for r in references), drop, add, *(r.added() for r in references)]
        said = comment("readers and writers wait while the index is built")
        whole = (*made_again(references), *transaction(*kept, *settings), *validated(references))
        return Fix((drift,), (*checks, said, *whole), 2)
    temporary, cleared = site.free_index(wanted.name)
    build = f"CREATE UNIQUE INDEX CONCURRENTLY {quote(temporary)} ON {site.name} {what.removeprefix('PRIMARY KEY ')}"
    using = " ".join(filter(None, [f"PRIMARY KEY USING INDEX {quote(temporary)}", deferrable]))
    swap = _swap(
        site, [drop, site.alter(f"ADD CONSTRAINT {quote(wanted.name)} {using}"), *settings], temporary, references
    )
    last = f"DROP INDEX CONCURRENTLY IF EXISTS {site.relation(temporary)}"
    return Fix((drift,), (*checks, *cleared, build, *swap, last), 2)


def check(site: Site, drift: Drift) -> Fix:
    """Return what puts a CHECK in the place of another one: for new rows at once, then for those that are there."""
    wanted, got = _sides(drift, Constraint)
    if site.table.lacks_columns_of(wanted):
        return unsafe([drift], "a column of the constraint is missing", RUN_UP_FIRST)
    expression, tail = without_tail(wanted.definition, "NO INHERIT", "NOT ENFORCED")
    found = f"SELECT * FROM {site.name} WHERE NOT {expression.removeprefix('CHECK ')}"
    return _constraint(site, drift, wanted, got, found, "NOT ENFORCED" not in tail)


def foreign_key(site: Site, drift: Drift) -> Fix:
    """Return what puts a foreign key in the place of another one."""
    wanted, got = _sides(drift, Constraint)
    target = wanted.references or site.table.key
    if site.table.lacks_columns_of(wanted) or _lacks(site, target, wanted):
        return unsafe([drift], "what it refers to is missing", RUN_UP_FIRST)
    here, there = (without_tail(c.definition, *DEFERRABLE, "NOT ENFORCED") for c in (wanted, got))
    is_enforced = "NOT ENFORCED" not in here[1]
    if here[0] == there[0] and got.valid and is_enforced and "NOT ENFORCED" not in there[1]:
        mode = here[1] or "NOT DEFERRABLE"
        return Fix((drift,), transaction(site.alter(f"ALTER CONSTRAINT {quote(got.name)} {mode}")), 4)
    return _constraint(site, drift, wanted, got, _orphans(site, wanted, target), is_enforced)


def _lacks(site: Site, target: Key, wanted: Constraint) -> bool:
    """Tell whether a model's table is not there yet, or not all of its columns."""
    found = site.live.tables.get(target)
    if found is None:
        return target not in site.live.names
    return not set(wanted.referenced_columns) <= found.columns.keys()


def _orphans(site: Site, wanted: Constraint, target: Key) -> str:
    pairs = list(zip(map(quote, wanted.columns), map(quote, wanted.referenced_columns), strict=True))
    given = " AND ".join(f"here.{column} IS NOT NULL" for column, _ in pairs)
    columns = site.live.tables[target].columns if target in site.live.tables else {}
    same = [site.engine.equals(columns.get(key)) for key in wanted.referenced_columns]
    equal = " AND ".join(f"there.{key} {is_} here.{column}" for (column, key), is_ in zip(pairs, same, strict=True))
    absent = f"NOT EXISTS (SELECT FROM {qualified(*target)} AS there WHERE {equal})"
    return f"SELECT * FROM {site.name} AS here WHERE {given} AND {absent}"


def _constraint(site: Site, drift: Drift, wanted: Constraint, got: Constraint, found: str, enforced: bool) -> Fix:
    """Return what swaps a constraint: rows that violate the new one stop it before anything is done."""
    rank = {"check": 3, "foreign_key": 4}[wanted.kind]
    check_rows = guard(found, f"{site.name} has rows that violate {wanted.name}", f"find them: {found}")
    said = comment(f"rows in the way: {found}")
    if wanted.definition == got.definition:  # it is only not valid
        validate = site.alter(f"VALIDATE CONSTRAINT {quote(got.name)}")
        return Fix((drift,), (said, *site.within([validate])), rank)
    drop, add = f"DROP CONSTRAINT {quote(got.name)}", f"ADD CONSTRAINT {quote(wanted.name)} {wanted.definition}"
    is_whole = wanted.kind == "foreign_key" and site.makes_at_once(site.table.live.partitioned)
    if not enforced or is_whole:
        return Fix((drift,), (said, *_within(site, wanted, transaction(site.alter(drop, add)))), rank)
    swapped = transaction(check_rows, site.alter(drop, f"{add} NOT VALID"))
    validate = site.alter(f"VALIDATE CONSTRAINT {quote(wanted.name)}")
    return Fix((drift,), (said, *_within(site, wanted, [*swapped, validate])), rank)


def _within(site: Site, wanted: Constraint, sql: Sequence[str]) -> tuple[str, ...]:
    # A reference names its target in full; other definitions are written as seen from the table's schema.
    return tuple(sql) if wanted.kind == "foreign_key" else site.within(sql)


def exclude(site: Site, drift: Drift) -> Fix:
    """Return what puts an EXCLUDE constraint in the place of another one, whose index takes its time."""
    wanted, got = _sides(drift, Constraint)
    if site.table.lacks_columns_of(wanted):
        return unsafe([drift], "a column of the constraint is missing", RUN_UP_FIRST)
    said = comment("readers and writers wait while its index is built; rows that conflict with each other stop it")
    swap = site.alter(f"DROP CONSTRAINT {quote(got.name)}", f"ADD CONSTRAINT {quote(wanted.name)} {wanted.definition}")
    return Fix((drift,), (said, *site.within(transaction(swap))), 3)


def table(site: Site, drift: Drift) -> Fix:
    """Return what makes a table permanent, or unlogged."""
    wanted, got = _sides(drift, Table)
    if wanted.kind != got.kind:
        hint = "move what it holds by hand, or change the model"
        return unsafe([drift], f"it is a {got.kind}, and a {wanted.kind} is declared", hint)
    if {*wanted.options, *got.options} != {"UNLOGGED"}:
        return unknown(drift)
    said = comment("rewrites the table; readers and writers wait meanwhile (ACCESS EXCLUSIVE)")
    mode = "UNLOGGED" if wanted.options else "LOGGED"
    return Fix((drift,), (said, *transaction(site.alter(f"SET {mode}"))), 0)
