"""PostgreSQL: which statements mend which drift, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from whatspire_db.light import TYPE_CHECKING
from whatspire_db.migrate.ddl import ModelType
from whatspire_db.migrate.diff import Drift
from whatspire_db.migrate.mending import DriftedTable, Fix, unsafe
from whatspire_db.migrate.schema import Column, Key, Schema

from . import mending_columns, mending_keys
from .scripts import Site

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
    return [fix for table in tables for fix in _fixes(Site(engine, table, live, models.get(table.key)))]


def _fixes(site: Site) -> Iterator[Fix]:
    together: dict[str, list[Drift]] = {}
    for drift in site.table.drift:
        if drift.kind in _OF_COLUMN:
            together.setdefault(drift.name, []).append(drift)
        elif drift.kind == "column_null" and isinstance(drift.wanted, Column):
            not_null = drift.wanted.not_null
            yield (mending_columns.set_not_null if not_null else mending_columns.drop_not_null)(site, drift)
        elif drift.kind in _BY_KIND and (drift.got is not None or drift.kind == "table"):
            yield _noted(site, _BY_KIND[drift.kind](site, drift), drift)
        else:
            yield unsafe([drift], f"no statement for drift of the kind {drift.kind} is known")
    for drifts in together.values():
        yield mending_columns.column(site, drifts)


def _noted(site: Site, fix: Fix, drift: Drift) -> Fix:
    """Say of what up finishes that it does."""
    return fix.explained("the next run of up does this too") if drift.unfinished is not None and fix.is_safe else fix
