"""Which tables are transferred, and how each column of theirs is: from the models, the source and the target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import peewee
from peewee import sqlite3

from ..dsn.redaction import shown
from ..errors import ConfigError, TransferRefused
from ..migrate.ddl import ModelType, qualified, quote
from ..migrate.engines.postgres.engine import PostgresEngine
from ..migrate.schema import Constraint, Index, Schema, folded_ascii, label
from .chunks import MOST, most_rows
from .columns import kind_of
from .faults import KINDS
from .kinds import Kind

OURS = "whatspire_db_"  # how the tables begin that this package keeps for itself
HISTORY = "migration_versions"
LEVELS = 50  # of operators in one pair of parentheses
# What SQLite's own modules add to a virtual table's name for the tables that keep its rows: FTS3 to FTS5, and R-tree.
# From version 3.37 on SQLite itself knows them, and a table of the user's with such a name is none.
LISTS_SHADOWS = (3, 37)
SHADOWS = ("data", "idx", "content", "docsize", "config", "segments", "segdir", "stat", "node", "parent", "rowid")
ONLY_TABLES = "a transfer takes tables alone: leave its model out (--models)"
_VIEWS = "SELECT name FROM main.sqlite_master WHERE type = 'view'"
_TABLES = """
SELECT name, sql FROM main.sqlite_master
WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name
"""


@dataclass(frozen=True)
class Column:
    """A column of a table that is transferred; what a generated one holds is compared, and never written."""

    name: str
    kind: Kind
    is_generated: bool = False

    @property
    def quoted(self) -> str:
        return quote(self.name)


@dataclass(frozen=True)
class TransferTable:
    """A table that is transferred: where it is on both sides, and its columns.

    `source` is its name on SQLite, `sqlite` and `postgres` are quoted places. `identity` are the quoted columns by
    which a row is found again on SQLite. In the columns `mended` a value with a fault of one of the `kinds` is
    replaced. `left_out` is the temporary table of rows that are set aside, "" without any. `most` is how many rows are
    in memory at one time.
    """

    name: str
    source: str
    sqlite: str
    postgres: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    identity: tuple[str, ...]
    indexes: tuple[Index, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    mended: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset(KINDS)
    left_out: str = ""
    most: int = MOST

    @property
    def written(self) -> tuple[Column, ...]:
        """The columns that are copied."""
        return tuple(column for column in self.columns if not column.is_generated)

    @property
    def remaining(self) -> str:
        """The condition for a row of SQLite's that is not set aside."""
        if not self.left_out:
            return "1"
        identity = ", ".join(self.identity)
        return f"({identity}) NOT IN (SELECT * FROM {self.left_out})"

    def select(self, columns: Iterable[Column], where: str = "1") -> str:
        """Return the query for columns of SQLite's rows that are not set aside."""
        names = ", ".join(column.quoted for column in columns)
        return f"SELECT {names} FROM {self.sqlite} WHERE {self.remaining} AND {where}"

    def column(self, name: str) -> Column:
        """Return the column of a name."""
        return next(column for column in self.columns if column.name == name)

    def with_replaced(self, kinds: frozenset[str]) -> TransferTable:
        """Return the table as it is transferred when every value with a fault of some kinds is replaced."""
        mended = frozenset(column.name for column in self.columns) if kinds else self.mended
        return replace(self, mended=mended, kinds=kinds)

    def with_faults(self, mended: frozenset[str], left_out: str) -> TransferTable:
        """Return the table as it is transferred when some values are replaced and some rows set aside."""
        return replace(self, mended=mended, left_out=left_out)


def transferred(models: Sequence[ModelType]) -> list[ModelType]:
    """Return the models whose rows are transferred, those first that others refer to."""
    own = [m for m in models if not (m._meta.temporary or is_ours(m._meta.table_name))]
    return [model for model in peewee.sort_models(own) if model in own]


def joined(parts: Iterable[str], by: str) -> str:
    """Join parts of an expression for SQLite, which takes no more than 1000 levels, and counts each operator as one."""
    some = list(parts)
    while len(some) > LEVELS:
        some = [f"({by.join(some[start : start + LEVELS])})" for start in range(0, len(some), LEVELS)]
    return by.join(some)


def is_ours(name: str) -> bool:
    """Tell whether this package made a table for itself, whose rows are about one database alone."""
    return folded_ascii(name) == HISTORY or folded_ascii(name).startswith(OURS)


def require_models(sqlite: Any, models: Sequence[ModelType], leave: Sequence[str]) -> None:
    """Refuse a SQLite source with tables, or columns, of which no model speaks, unless they are to be left.

    :raises TransferRefused: names them.
    :raises ConfigError: when what is to be left is not there, or has a model.
    """
    require_left(list(_strangers(sqlite, models)), leave)


def require_left(strangers: Sequence[str], leave: Sequence[str]) -> None:
    """Refuse tables and columns of which no model speaks, unless they are to be left.

    :raises TransferRefused: names them.
    :raises ConfigError: when what is to be left is not among them.
    """
    known = {folded_ascii(name) for name in strangers}
    for name in leave:
        if folded_ascii(name) not in known:
            raise ConfigError(
                f"--leave {shown(name)}: the source has no such table or column without a model",
                f"it has {', '.join(strangers)}" if strangers else "leave the option out: everything has a model",
            )
    if left := [name for name in strangers if folded_ascii(name) not in {folded_ascii(each) for each in leave}]:
        raise TransferRefused(
            f"no model has {', '.join(left)}, so what is in there would be lost",
            "give --models with the models' modules, or --leave what is to stay behind",
        )


def _strangers(sqlite: Any, models: Sequence[ModelType]) -> Iterator[str]:
    """Yield tables whose rows no model brings over as TABLE, and columns without a field as TABLE.COLUMN."""
    by_name = {folded_ascii(model._meta.table_name): model for model in transferred(models) if _is_in_main(model)}
    tables = dict(sqlite.execute(_TABLES))
    shadows = _shadows(sqlite, tables)
    for name in tables:
        if is_ours(name) or folded_ascii(name) in shadows:
            continue
        model = by_name.get(folded_ascii(name))
        if model is None:
            yield name
            continue
        fields = {folded_ascii(field.column_name) for field in model._meta.sorted_fields}
        yield from (f"{name}.{column}" for column in _columns(sqlite, name) if folded_ascii(column) not in fields)


def _shadows(sqlite: Any, tables: Mapping[str, str | None]) -> set[str]:
    """Return the names, in one case, of the tables that virtual tables keep their rows in."""
    if sqlite3.sqlite_version_info >= LISTS_SHADOWS:
        found = sqlite.execute("SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow'")
        return {folded_ascii(name) for (name,) in found}
    virtual = [name for name, sql in tables.items() if sql and sql.upper().startswith("CREATE VIRTUAL")]
    return {folded_ascii(f"{name}_{end}") for name in virtual for end in SHADOWS}


def _is_in_main(model: ModelType) -> bool:
    """Tell whether a model's table is in the file itself; those of other schemas stand in attached files."""
    return folded_ascii(model._meta.schema or "main") == "main"


def _columns(sqlite: Any, table: str) -> dict[str, int]:
    """Return the columns of a table of SQLite's, each with whether it is hidden or generated."""
    return dict(sqlite.execute("SELECT name, hidden FROM pragma_table_xinfo(?)", [table]))


def transfer_tables(
    sqlite: Any, postgres: PostgresEngine, schema: Schema, models: Sequence[ModelType]
) -> list[TransferTable]:
    """Return the tables to transfer, as both databases have them; one that SQLite lacks is left out.

    :param schema: the tables of PostgreSQL, live or as the models declare them.
    :raises TransferRefused: when SQLite's table lacks a column, or is a view.
    :raises ModelError: when the values of a column cannot be transferred.
    """
    names = {folded_ascii(name): name for name, _ in sqlite.execute(_TABLES)}
    views = {folded_ascii(name): name for (name,) in sqlite.execute(_VIEWS)}
    found = []
    for model in transferred(models):
        key = postgres.key(model)
        wanted = folded_ascii(model._meta.table_name) if _is_in_main(model) else ""
        if wanted in views:
            raise TransferRefused(f"{views[wanted]} of SQLite is a view", ONLY_TABLES)
        name = names.get(wanted)
        if name is not None and key in schema.tables:
            found.append(_transfer_table(sqlite, postgres, schema, model, name))
    return found


def _transfer_table(sqlite: Any, engine: PostgresEngine, schema: Schema, model: ModelType, name: str) -> TransferTable:
    key = engine.key(model)
    live, table = _columns(sqlite, name), schema.tables[key]
    _require_columns(model, name, live)
    if table.kind != "table":
        raise TransferRefused(f"{label(key)} of PostgreSQL is a {table.kind}", ONLY_TABLES)
    columns = []
    for field in model._meta.sorted_fields:
        column = table.columns[engine.fold(field.column_name)]
        is_generated = bool(column.generated)
        kind = kind_of(field, column.type or "", column.not_null and not is_generated)
        columns.append(Column(field.column_name, kind, is_generated))
    return TransferTable(
        label(key),
        name,
        f"main.{quote(name)}",
        qualified(key[0] or engine.default_schema, key[1]),
        tuple(columns),
        tuple(field.column_name for field in model._meta.get_primary_keys()),
        identity_of(sqlite, name, live),
        table.indexes,
        table.constraints,
        most=most_rows(_largest(sqlite, name, live)),
    )


def _largest(sqlite: Any, name: str, columns: Iterable[str]) -> int:
    """Return how many bytes the largest row of a SQLite table has."""
    size = joined((f"coalesce(length(CAST({quote(column)} AS BLOB)), 0)" for column in columns), " + ")
    return int(sqlite.execute(f"SELECT coalesce(max({size}), 0) FROM main.{quote(name)}").fetchone()[0])


def _require_columns(model: ModelType, name: str, live: Mapping[str, int]) -> None:
    have = {folded_ascii(column) for column in live}
    if lacking := [f.column_name for f in model._meta.sorted_fields if folded_ascii(f.column_name) not in have]:
        raise TransferRefused(
            f"the SQLite table {name} lacks the column {', '.join(lacking)} of {model.__name__}",
            "bring it to the models first: whatspire-db up",
        )


def identity_of(sqlite: Any, name: str, columns: Mapping[str, int]) -> tuple[str, ...]:
    """Return the quoted columns by which a row of a SQLite table is found: its rowid, or the key without one."""
    taken = {folded_ascii(column) for column in columns}
    word = next((each for each in ("rowid", "_rowid_", "oid") if each not in taken), None)
    keys = sqlite.execute("SELECT name FROM pragma_table_xinfo(?) WHERE pk > 0 ORDER BY pk", [name]).fetchall()
    if word is not None and _has_rowid(sqlite, name):
        return (word,)
    if not keys:
        raise TransferRefused(
            f"nothing tells rows of the SQLite table {name} apart: columns hide its rowid", "give it a primary key"
        )
    return tuple(quote(key) for (key,) in keys)


def _has_rowid(sqlite: Any, name: str) -> bool:
    # A table WITHOUT ROWID is its own primary key's index, which is listed with no root page of its own.
    (own,) = sqlite.execute(
        "SELECT count(*) FROM pragma_index_list(:t) AS i JOIN main.sqlite_master AS m ON m.name = i.name "
        "WHERE i.origin = 'pk'",
        {"t": name},
    ).fetchone()
    (listed,) = sqlite.execute("SELECT count(*) FROM pragma_index_list(?) WHERE origin = 'pk'", [name]).fetchone()
    return bool(own == listed)
