"""PostgreSQL: which statements mend which drift, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.migrate.ddl import ModelType, quote
from whatspire_db.migrate.diff import Drift
from whatspire_db.migrate.mending import DriftedTable, Fix, unknown
from whatspire_db.migrate.schema import Column, Constraint, Key, Schema

from . import mending_columns, mending_keys
from .mending_columns import ColumnWork
from .scripts import Reference, Site

if TYPE_CHECKING:
    from .engine import PostgresEngine

# By kind of drift. Fixes are run by rank: 0 NOT NULL, which identities and keys need; 1 columns; 2 primary keys and
# indexes; 3 what keys kept from being done, checks; 4 references, which need keys and equal types.
_BY_KIND: Mapping[str, Callable[[Site, Drift], Fix]] = {
    "table": mending_keys.table,
    "index": mending_keys.index,
    "primary_key": mending_keys.primary_key,
    "check": mending_keys.check,
    "exclude": mending_keys.exclude,
    "foreign_key": mending_keys.foreign_key,
}
# These kinds of one column are mended together.
_OF_COLUMN = ("column_type", "column_collation", "column_default", "column_generated", "column_identity")


def fixes(
    engine: PostgresEngine, tables: Iterable[DriftedTable], models: Mapping[Key, ModelType], live: Schema
) -> list[Fix]:
    """Return what mends the drift of some tables."""
    sites = [Site(engine, table, live, models.get(table.key)) for table in tables]
    works = [work for site in sites for work in _works(site)]
    return [*(fix for site in sites for fix in _fixes(site)), *_together(works, sites)]


def _works(site: Site) -> Iterator[ColumnWork]:
    by_column: dict[str, list[Drift]] = {}
    for drift in site.table.drift:
        if drift.kind in _OF_COLUMN:
            by_column.setdefault(drift.name, []).append(drift)
    return (ColumnWork.of(site, drifts) for drifts in by_column.values())


def _fixes(site: Site) -> Iterator[Fix]:
    for drift in site.table.drift:
        if drift.kind == "column_null" and isinstance(drift.wanted, Column):
            not_null = drift.wanted.not_null
            yield (mending_columns.set_not_null if not_null else mending_columns.drop_not_null)(site, drift)
        elif drift.kind in _BY_KIND and (drift.got is not None or drift.kind == "table"):
            yield _noted(_BY_KIND[drift.kind](site, drift), drift)
        elif drift.kind not in _OF_COLUMN:
            yield unknown(drift)


def _together(works: Sequence[ColumnWork], sites: Sequence[Site]) -> Iterator[Fix]:
    """Yield what mends columns: those at both ends of a foreign key that get other types in one transaction."""
    changed = {work.place for work in works if work.place}
    joined = [(ends, ref) for site in sites for ends, ref in _references(site) if len(ends & changed) > 1]
    left = list(works)
    while left:
        places, group = {left[0].place}, [left[0]]
        for _ in joined:  # a chain of references is as long as there are some at most
            places |= {end for ends, _ in joined if ends & places for end in ends & changed}
        group += [work for work in left[1:] if work.place is not None and work.place in places]
        left = [work for work in left if work not in group]
        yield mending_columns.columns(group, [ref for ends, ref in joined if ends & places])


def _references(site: Site) -> Iterator[tuple[set[tuple[Key, str] | None], Reference]]:
    """Yield the foreign keys of a table with the columns at both ends."""
    for c in site.table.live.constraints:
        if c.kind == "foreign_key" and c.references is not None:
            here = {(site.table.key, column) for column in c.columns}
            there = {(c.references, column) for column in c.referenced_columns}
            yield {*here, *there}, _reference(site, c)


def _reference(site: Site, constraint: Constraint) -> Reference:
    definition = constraint.definition.removesuffix(" DISABLED")
    return Reference(
        site.name,
        quote(constraint.name),
        definition,
        constraint.valid and not definition.endswith(" NOT ENFORCED"),  # there is nothing to validate
        definition != constraint.definition,
        site.makes_at_once(site.table.live.partitioned),
    )


def _noted(fix: Fix, drift: Drift) -> Fix:
    """Say of what up finishes that it does."""
    return fix.explained("the next run of up does this too") if drift.unfinished is not None and fix.is_safe else fix
