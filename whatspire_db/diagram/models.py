"""Peewee models -> Schema, by what the models say alone: no database is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import peewee

from .. import peewee_compat
from ..migrate.ddl import ModelType, indexes_of
from ..migrate.schema import Column, Constraint, Index, IndexKey, Key, Schema, Table

_NAMES = r"\(([^)]*)\)"
_FOREIGN = re.compile(rf"FOREIGN\s+KEY\s*{_NAMES}\s*REFERENCES\s+([^\s(]+)\s*(?:{_NAMES})?", re.IGNORECASE)
_REFERENCES = re.compile(rf"\bREFERENCES\s+([^\s(]+)\s*(?:{_NAMES})?", re.IGNORECASE)
_DEFAULT = re.compile(r"\s*DEFAULT\s+(.*)", re.IGNORECASE | re.DOTALL)
_NAMED = re.compile(r'\s*CONSTRAINT\s+("(?:[^"]|"")+"|\w+)\s+', re.IGNORECASE)
_RAW_INDEX = re.compile(
    r'CREATE\s+(UNIQUE\s+)?INDEX\s+(?:CONCURRENTLY\s+)?(?:IF\s+NOT\s+EXISTS\s+)?("(?:[^"]|"")+"|\w+)\s+ON\s+\S+\s*(.*)',
    re.IGNORECASE | re.DOTALL,
)


def schema_of_models(models: Sequence[ModelType], db: peewee.Database) -> Schema:
    """Return what models declare, as Peewee writes it for a kind of database; it is not connected to.

    :raises ModelError: when an index names a field that the model does not have.
    """
    tables = {}
    for model in models:
        table = _table(model, db)
        tables[table.key] = table
    return Schema(tables)


def key_of(model: ModelType) -> Key:
    """Return the schema and the name of a model's table."""
    return model._meta.schema or "", model._meta.table_name


def _table(model: ModelType, db: peewee.Database) -> Table:
    meta = model._meta
    columns = [_column(field, db) for field in meta.sorted_fields]
    keys = tuple(field.column_name for field in meta.get_primary_keys())
    constraints = [Constraint("", "primary_key", f"PRIMARY KEY ({', '.join(keys)})", keys)] if keys else []
    constraints += _references(model)
    constraints += _written(model)
    unique = [_unique(each) for each in constraints if each.kind == "unique"]
    indexes = (*(_index(index, db) for index in indexes_of(model)), *unique)
    others = tuple(_once([each for each in constraints if each.kind != "unique"]))
    return Table(key_of(model), columns={c.name: c for c in columns}, indexes=indexes, constraints=others)


def _unique(constraint: Constraint) -> Index:
    """Return the unique index that a constraint brings with it."""
    found = re.search(_NAMES, constraint.definition)
    columns = _names(found[1]) if found else constraint.columns
    keys = tuple(IndexKey(name, column=name) for name in columns)
    return Index(constraint.name, keys, unique=True, constraint="UNIQUE")


def _once(constraints: Sequence[Constraint]) -> Iterator[Constraint]:
    """Leave out a primary key or a reference that is both declared by a field and written as SQL."""
    seen: set[tuple[Any, ...]] = set()
    for each in constraints:
        fact: tuple[Any, ...] = (each.kind,)  # a table has one primary key
        if each.kind != "primary_key":
            fact += (each.columns, each.references, "" if each.references else each.definition)
        if fact not in seen:
            seen.add(fact)
            yield each


def _column(field: peewee.Field, db: peewee.Database) -> Column:
    written = [match for node in field.constraints or () if (match := _DEFAULT.match(_text(node)))]
    is_key = field.primary_key or field.name in {f.name for f in field.model._meta.get_primary_keys()}
    kind = _sql(field.ddl_datatype(db.get_sql_context()), db).lower()
    return Column(field.column_name, kind, is_key or not field.null, written[0][1] if written else None)


def _references(model: ModelType) -> Iterator[Constraint]:
    for field in model._meta.sorted_fields:
        if not isinstance(field, peewee.ForeignKeyField):
            continue
        target, there = field.rel_model, field.rel_field.column_name
        rules = "".join(f" ON {when} {rule}" for when, rule in _rules(field) if rule)
        definition = f"FOREIGN KEY ({field.column_name}) REFERENCES {target._meta.table_name} ({there}){rules}"
        yield _reference(definition, (field.column_name,), key_of(target), (there,))


def _rules(field: peewee.ForeignKeyField) -> tuple[tuple[str, str | None], ...]:
    return ("DELETE", field.on_delete), ("UPDATE", field.on_update)


def _reference(definition: str, columns: tuple[str, ...], target: Key, there: tuple[str, ...]) -> Constraint:
    return Constraint("", "foreign_key", definition, columns, references=target, referenced_columns=there)


def _written(model: ModelType) -> Iterator[Constraint]:
    """Yield the constraints that are written as SQL, of the model and of its fields."""
    for owner in (model._meta, *model._meta.sorted_fields):
        for node in owner.constraints or ():
            text = " ".join(_text(node).split())
            columns = () if owner is model._meta else (owner.column_name,)
            if text and not _DEFAULT.match(text):
                yield _constraint(text, columns, model._meta.schema or "")


def _constraint(text: str, columns: tuple[str, ...], schema: str) -> Constraint:
    named = _NAMED.match(text)
    name = _unquoted(named[1]) if named else ""
    definition = text[named.end() :] if named else text
    if found := _FOREIGN.match(definition):
        return _reference(definition, _names(found[1]), _target(found[2], schema), _names(found[3] or ""))
    if columns and (found := _REFERENCES.search(definition)):
        return _reference(definition, columns, _target(found[1], schema), _names(found[2] or ""))
    kinds = {"primary key": "primary_key", "check": "check", "exclude": "exclude", "unique": "unique"}
    words = " ".join(definition.lower().split())
    kind = next((kind for begins, kind in kinds.items() if words.startswith(begins)), "rule")
    return Constraint(name, kind, definition, columns)


def _index(index: Any, db: peewee.Database) -> Index:
    if not isinstance(index, peewee.ModelIndex):
        found = _RAW_INDEX.search(_text(index))
        if found is None:
            return Index("", (IndexKey(_text(index) or "expression"),))
        return Index(
            _unquoted(found[2]), (IndexKey(found[3].strip().removeprefix("(").removesuffix(")")),), bool(found[1])
        )
    name, expressions, unique, method, where = peewee_compat.parts_of(index)
    predicate = None if where is None else _sql(where, db)
    return Index(name, tuple(_key(part, db) for part in expressions), unique, method, predicate=predicate)


def _key(part: Any, db: peewee.Database) -> IndexKey:
    if isinstance(part, peewee.Field):
        return IndexKey(part.column_name, column=part.column_name)
    node = getattr(part, "node", None)
    if isinstance(part, peewee.Ordering) and isinstance(node, peewee.Field):
        return IndexKey(node.column_name, order=str(part.direction), column=node.column_name)
    return IndexKey(_sql(part, db))


def _sql(node: Any, db: peewee.Database) -> str:
    context = db.get_sql_context(value_literals=True) if hasattr(peewee, "ValueLiterals") else db.get_sql_context()
    return str(context.sql(node).query()[0])


def _text(node: Any) -> str:
    return str(getattr(node, "sql", "")) if isinstance(node, peewee.SQL) else ""


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _names(text: str) -> tuple[str, ...]:
    return tuple(_unquoted(part.strip()) for part in text.split(",") if part.strip())


def _target(text: str, schema: str) -> Key:
    *before, name = (_unquoted(part) for part in re.findall(r'"(?:[^"]|"")+"|[^".]+', text))
    return (before[0] if before else schema, name)
