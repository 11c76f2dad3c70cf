"""PostgreSQL: where the extension vector stands, and the settings under which its HNSW indexes give enough rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import peewee

from whatspire_db.errors import ModelError
from whatspire_db.sql import pinned, quoted, version_of

_EXTENSION = pinned("""
SELECT n.nspname, e.extversion, current_setting('server_version_num')::int
FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
""")
# Of pgvector, in case the session has not loaded it yet.
_DEFAULTS = {"hnsw.ef_search": "40", "hnsw.iterative_scan": "off", "hnsw.max_scan_tuples": "20000"}
_DEFAULTS |= {"hnsw.scan_mem_multiplier": "1"}
ITERATIVE_SINCE, SORTS_TIES_SINCE = (0, 8), 170000
LEAST_EF, LEAST_EF_FILTERED, MOST_EF = 200, 400, 1000
EF_PER_ROW = 4
ALL_TUPLES = 2**31 - 1
MEMORY = 16  # times work_mem


@dataclass(frozen=True)
class Extension:
    """The extension of a database: the schema of its types and operators, its version, and that of the server."""

    schema: str
    version: tuple[int, ...]
    server: int

    @property
    def sorts_ties(self) -> bool:
        """Whether a query keeps an index of distances if it sorts rows at one distance; earlier servers leave it."""
        return self.server >= SORTS_TIES_SINCE

    @property
    def quoted_schema(self) -> str:
        return quoted(self.schema)

    def operator(self, symbol: str) -> str:
        """Return an operator as a query writes it, whatever the search_path is."""
        return f"OPERATOR({self.quoted_schema}.{symbol})"

    def settings(self, rows: int, is_filtered: bool) -> dict[str, str]:
        """Return the settings for a search of an HNSW index that gives so many rows.

        A filter uses up candidates; and the more of them, the sooner the planner takes an index of the filter's
        columns, which finds the nearest of few rows exactly.
        """
        least = LEAST_EF_FILTERED if is_filtered else LEAST_EF
        chosen = {"hnsw.ef_search": str(min(MOST_EF, max(least, rows * EF_PER_ROW)))}
        if self.version >= ITERATIVE_SINCE:
            chosen |= {"hnsw.iterative_scan": "strict_order", "hnsw.max_scan_tuples": str(ALL_TUPLES)}
            chosen |= {"hnsw.scan_mem_multiplier": str(MEMORY)}
        return chosen


_found: WeakKeyDictionary[peewee.Database, tuple[Any, Extension]] = WeakKeyDictionary()


def extension_of(db: peewee.Database) -> Extension:
    """Return the extension of a database; it is asked for once, for as long as the object names that database.

    :raises ModelError: when the database does not have it.
    """
    place = (db.database, dict(db.connect_params))
    known = _found.get(db)
    if known is None or known[0] != place:
        row = db.execute_sql(_EXTENSION).fetchone()
        if row is None:
            raise ModelError(
                "the database does not have the extension vector",
                "run up, which creates it; or let a superuser run: CREATE EXTENSION vector;",
            )
        known = place, Extension(row[0], version_of(row[1]), row[2])
        _found[db] = known
    return known[1]


def is_inside_transaction(db: peewee.Database) -> bool:
    """Return whether this thread's session is in a transaction, the user's own BEGIN included."""
    info = getattr(db.connection(), "info", None)
    return db.in_transaction() or (info is not None and info.transaction_status != 0)


def in_one_message(db: peewee.Database) -> bool:
    """Return whether the driver takes several statements with parameters at once, as psycopg2 does."""
    return hasattr(db.connection(), "get_parameter_status")


def settings_sql(settings: Mapping[str, str]) -> str:
    """Return the statements that make settings for the rest of a transaction."""
    return "".join(f"SET LOCAL {name} = {value}; " for name, value in settings.items())


@contextmanager
def kept_settings(db: peewee.Database, names: Mapping[str, str]) -> Iterator[None]:
    """Give a transaction of the user's its settings back; one that fails is rolled back, and they with it."""
    query = pinned("SELECT " + ", ".join(f"current_setting('{name}', true)" for name in names))
    before = db.execute_sql(query).fetchone()
    yield
    back = {name: value or _DEFAULTS[name] for name, value in zip(names, before, strict=True)}
    db.execute_sql(settings_sql(back))
