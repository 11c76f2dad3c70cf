"""One neutral description of tables, and from it the source of equal models for Peewee, SQLAlchemy and Django."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import peewee

from whatspire_db.fields import InstantField, JSONBytesField

# The first class that a field is an instance of names its kind.
_KINDS: tuple[tuple[type[peewee.Field], str], ...] = (
    (InstantField, "instant"),
    (JSONBytesField, "bytes"),
    (peewee.BooleanField, "flag"),
    (peewee.BigIntegerField, "bigint"),
    (peewee.TextField, "text"),
)
_CHECK = re.compile(r'CONSTRAINT "(\w+)" CHECK \((\w+) IN \(([^)]*)\)\)')
_PEEWEE = {
    "text": "TextField",
    "bigint": "BigIntegerField",
    "flag": "BooleanField",
    "bytes": "BlobField",
    "instant": "DateTimeField",
}
_SQLALCHEMY = {
    "text": "Text",
    "bigint": "BigInteger",
    "flag": "Boolean",
    "bytes": "LargeBinary",
    "instant": "DateTime(timezone=True)",
}
_DJANGO = _PEEWEE | {"bytes": "BinaryField"}


@dataclass(frozen=True)
class Column:
    """A column; `default` is the constant of the database's own default, if it has one."""

    name: str
    kind: str
    null: bool = False
    key: bool = False
    default: bool | None = None


@dataclass(frozen=True)
class Index:
    """An index; each of its columns comes with whether it descends."""

    name: str
    columns: tuple[tuple[str, bool], ...]
    unique: bool = False

    @property
    def descends(self) -> bool:
        """Tell whether a column descends, which not every tool can say."""
        return any(descending for _, descending in self.columns)

    @property
    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [name for name, _ in self.columns]


@dataclass(frozen=True)
class Check:
    """A named constraint: a column holds one of some texts."""

    name: str
    column: str
    values: tuple[str, ...]

    @property
    def sql(self) -> str:
        """Return the condition."""
        return f"{self.column} IN ({', '.join(repr(value) for value in self.values)})"


@dataclass(frozen=True)
class Table:
    """A table with everything that a tool has to make."""

    name: str
    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def model(self) -> str:
        """Return the name of its model class."""
        return "".join(part.title() for part in self.name.split("_"))


def describe(models: Iterable[type[peewee.Model]]) -> list[Table]:
    """Describe Peewee models."""
    return [_describe(model) for model in models]


def _describe(model: type[peewee.Model]) -> Table:
    meta: Any = model._meta
    columns = []
    for field in meta.sorted_fields:
        defaults = [c.sql[len("DEFAULT ") :] for c in field.constraints or () if c.sql.startswith("DEFAULT ")]
        kind = next(kind for cls, kind in _KINDS if isinstance(field, cls))
        default = defaults[0] == "true" if defaults else None
        null = field.null and not field.primary_key
        columns.append(Column(field.column_name, kind, null, field.primary_key, default))
    indexes = []
    for index in meta.fields_to_index():
        parts = [(getattr(e, "node", e).column_name, isinstance(e, peewee.Ordering)) for e in index._expressions]
        indexes.append(Index(index._name, tuple(parts), bool(index._unique)))
    matches = (_CHECK.match(c.sql) for c in meta.constraints or ())
    checks = [Check(m[1], m[2], tuple(v.strip("'") for v in m[3].split(","))) for m in matches if m]
    return Table(meta.table_name, tuple(columns), tuple(indexes), tuple(checks))


def many(number: int) -> list[Table]:
    """Make up tables of eight columns and two indexes each."""
    kinds = ("bigint", "text", "text", "bigint", "flag", "text", "instant", "instant")
    names = ("id", "name", "kind", "amount", "active", "note", "created_at", "updated_at")
    columns = tuple(Column(n, k, null=n == "note", key=n == "id") for n, k in zip(names, kinds, strict=True))
    tables = []
    for i in range(number):
        indexed = tuple(Index(f"idx_part_{i:03}_{name}", ((name, False),)) for name in ("name", "created_at"))
        tables.append(Table(f"part_{i:03}", columns, indexed))
    return tables


def without(tables: Sequence[Table], table: str, column: str) -> list[Table]:
    """Return the tables as they were before a column was added."""
    return [
        replace(t, columns=tuple(c for c in t.columns if c.name != column)) if t.name == table else t for t in tables
    ]


def _arguments(**given: object) -> str:
    return ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)


def peewee_source(tables: Iterable[Table], driver: str, descending: bool = True) -> str:
    """Return a module with Peewee models, and the database that the environment names.

    :param descending: without it an index that descends becomes one that ascends.
    """
    lines = ["import os", "from peewee import *"]
    if driver == "sqlite":
        lines.append('database = SqliteDatabase(os.environ["BENCH_DSN"], pragmas={"synchronous": "NORMAL"})')
    else:
        lines += ["from psycopg2.extensions import parse_dsn", 'options = parse_dsn(os.environ["BENCH_DSN"])']
        lines.append('database = PostgresqlDatabase(options.pop("dbname"), **options)')
    names = []
    for table in tables:
        names.append(table.model)
        lines += ["", f"class {table.model}(Model):", *_peewee_fields(table), *_peewee_meta(table, descending)]
        for index in table.indexes:
            if descending and index.descends:
                parts = ", ".join(f"{table.model}.{c}{'.desc()' if d else ''}" for c, d in index.columns)
                lines.append(f"{table.model}.add_index({parts}, name={index.name!r})")
    return "\n".join([*lines, "", f"MODELS = [{', '.join(names)}]", ""])


def _peewee_fields(table: Table) -> list[str]:
    single = {index.names[0]: index for index in table.indexes if len(index.names) == 1}
    lines = []
    for column in table.columns:
        index = single.get(column.name)
        arguments = _arguments(
            primary_key=column.key or None,
            null=column.null or None,
            index=True if index and not index.unique else None,
            unique=True if index and index.unique else None,
            default=column.default,
            constraints=None if column.default is None else f'[SQL("DEFAULT {str(column.default).lower()}")]',
        )
        lines.append(f"    {column.name} = {_PEEWEE[column.kind]}({arguments})")
    return lines


def _peewee_meta(table: Table, descending: bool) -> list[str]:
    composite = [i for i in table.indexes if len(i.names) > 1 and not (descending and i.descends)]
    indexes = "".join(f"({tuple(i.names)!r}, {i.unique}), " for i in composite)
    checks = ", ".join(f"SQL({f'CONSTRAINT {c.name} CHECK ({c.sql})'!r})" for c in table.checks)
    return [
        "    class Meta:",
        "        database = database",
        f"        table_name = {table.name!r}",
        f"        indexes = ({indexes})",
        f"        constraints = [{checks}]",
    ]


def sqlalchemy_source(tables: Iterable[Table], driver: str) -> str:
    """Return a module with SQLAlchemy models, and a function that makes the engine the environment names.

    On SQLite an index that descends becomes one that ascends: Alembic finds no others there.
    """
    lines = ["import os", "from sqlalchemy import *", "from sqlalchemy.orm import DeclarativeBase, mapped_column"]
    lines += ["", "def open_engine():"]
    if driver == "sqlite":
        lines += ['    engine = create_engine("sqlite:///" + os.environ["BENCH_DSN"])']
        lines += ['    @event.listens_for(engine, "connect")', "    def configure(connection, record):"]
        lines += ['        connection.execute("PRAGMA synchronous=NORMAL")', "    return engine"]
    else:
        lines += ["    from psycopg2.extensions import parse_dsn"]
        lines += ['    options = parse_dsn(os.environ["BENCH_DSN"])']
        lines += ['    return create_engine("postgresql+psycopg2://", connect_args=options)']
    lines += ["", "class Base(DeclarativeBase):", "    pass"]
    for table in tables:
        lines += ["", f"class {table.model}(Base):", f"    __tablename__ = {table.name!r}"]
        for column in table.columns:
            arguments = _arguments(
                primary_key=column.key or None,
                autoincrement=False if column.key and column.kind == "bigint" else None,
                nullable=column.null,
                server_default=None if column.default is None else f"{str(column.default).lower()}()",
            )
            lines.append(f"    {column.name} = mapped_column({_SQLALCHEMY[column.kind]}, {arguments})")
        parts = [_sqlalchemy_index(index, driver != "sqlite") for index in table.indexes]
        parts += [f"CheckConstraint({c.sql!r}, name={c.name!r})" for c in table.checks]
        lines.append(f"    __table_args__ = ({''.join(part + ', ' for part in parts)})")
    return "\n".join([*lines, ""])


def _sqlalchemy_index(index: Index, descending: bool) -> str:
    columns = ", ".join(f'text("{c} DESC")' if descending and down else repr(c) for c, down in index.columns)
    return f"Index({index.name!r}, {columns}, unique={index.unique})"


def django_source(tables: Iterable[Table]) -> str:
    """Return a module with Django models."""
    lines = ["from django.db import models"]
    for table in tables:
        lines += ["", f"class {table.model}(models.Model):"]
        for column in table.columns:
            arguments = _arguments(
                primary_key=column.key or None,
                null=column.null or None,
                default=column.default,
                db_default=column.default,
            )
            lines.append(f"    {column.name} = models.{_DJANGO[column.kind]}({arguments})")
        plain = [index for index in table.indexes if not index.unique]
        indexes = [f"models.Index(fields={_django_fields(i)}, name={i.name[:30]!r})" for i in plain]
        rules = [f"models.UniqueConstraint(fields={i.names!r}, name={i.name!r})" for i in table.indexes if i.unique] + [
            f"models.CheckConstraint(condition=models.Q({c.column}__in={list(c.values)!r}), name={c.name!r})"
            for c in table.checks
        ]
        lines += ["    class Meta:", f"        db_table = {table.name!r}"]
        lines += [f"        indexes = [{', '.join(indexes)}]", f"        constraints = [{', '.join(rules)}]"]
    return "\n".join([*lines, ""])


def _django_fields(index: Index) -> list[str]:
    return [f"-{name}" if descends else name for name, descends in index.columns]
