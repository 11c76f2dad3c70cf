"""PostgreSQL: the declared tables, made in pg_temp a few at a time, so that a look never holds many locks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import peewee

from whatspire_db.errors import ModelError, ScratchUnavailable, bounded
from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.messages import first_line, hint, is_lock_table_full, is_locked, sqlstate
from whatspire_db.migrate.ddl import (
    ModelType,
    create_indexes,
    create_table,
    create_target,
    deferred_foreign_keys,
    execute,
    indexes_of,
    is_unique_index,
    unnamed,
    unqualified,
)
from whatspire_db.migrate.schema import Key, Schema, Table
from whatspire_db.migrate.stamp import declared_text, rendered
from whatspire_db.sql import pinned

from ..base import discarded
from ..references import named_by, targets_of, with_references
from . import extensions, fileless, trust
from .stand_ins import StandIns
from .time_literals import refuse_moments

if TYPE_CHECKING:
    from .engine import PostgresEngine

# Rows of pg_locks that a batch may take. The lock table is shared by all databases of a server, and many starters can
# look at the same time.
LOCKS = 400
_OF_A_TABLE, _OF_A_REFERENCE = 10, 2  # its primary key, its TOAST table and its sequence included
READ_ONLY_TRANSACTION, INSUFFICIENT_PRIVILEGE, UNDEFINED_OBJECT = "25006", "42501", "42704"
GRANT_TEMPORARY = "grant this role TEMPORARY on the database"
_MAY_MAKE_TEMPORARY = pinned("SELECT has_database_privilege(current_database(), 'TEMPORARY')")
# What the server lacks, or what is in its way: no model needs a correction for it.
NOT_OF_THE_MODEL = (
    "22021",
    "22P05",
    "42501",
    "42704",
    "42883",
    "53100",
    "53200",
    "54011",
    "55P03",
    "57014",
    "57P01",
    "57P03",
)


@dataclass
class Batch:
    """Models whose tables are made together, and those that they only refer to."""

    own: dict[ModelType, None] = field(default_factory=dict)
    targets: dict[ModelType, None] = field(default_factory=dict)
    locks: int = 0

    def lacking(self, models: Collection[ModelType]) -> list[ModelType]:
        """Return those of the models that are not made with this batch."""
        return [model for model in models if model not in self.own and model not in self.targets]

    def add(self, model: ModelType, targets: Collection[ModelType]) -> None:
        """Add a model and what it refers to."""
        self.own[model] = None
        lacking = self.lacking(targets)
        self.targets.update(dict.fromkeys(lacking))
        self.locks += sum(map(_locks, [model, *lacking]))


def _locks(model: ModelType) -> int:
    """Return about how many rows of pg_locks the making of a model's table takes."""
    meta = model._meta
    written = len(meta.constraints or ())
    return _OF_A_TABLE + len(indexes_of(model)) + written + _OF_A_REFERENCE * len(meta.refs)


def batches(models: Sequence[ModelType], by_name: Mapping[str, Sequence[ModelType]]) -> Iterator[Batch]:
    """Divide models, each of which comes after those that it refers to, by the locks that their tables take.

    :param by_name: all models that they can refer to, as `named_by` returns them.
    """
    batch = Batch()
    for model in models:
        needed = targets_of(model, by_name)
        more = sum(map(_locks, [model, *batch.lacking(needed)]))
        if batch.own and (batch.locks + more > LOCKS or model in batch.targets):
            yield batch
            batch = Batch()
        batch.add(model, needed)
    if batch.own:
        yield batch


def declared(engine: PostgresEngine, models: Sequence[ModelType]) -> Schema:
    """Return the declared schema of models, extensions included, without leaving anything behind.

    :raises ModelError: when the server does not take a table.
    :raises ScratchUnavailable: when this role, or this server, makes no temporary tables.
    """
    needed = with_references(models)
    wanted = {e for m in needed for e in extensions.extensions_of(engine.db, m)}
    keys = [engine.key(model) for model in models]
    schema = Schema({}, schemas=frozenset({key[0] for key in keys} | {""}), extensions=frozenset(wanted))
    try:
        return _declared(engine, schema, set(keys), needed)
    except ModelError as error:
        cause = error.__cause__ or error
        if sqlstate(cause) == UNDEFINED_OBJECT:
            elsewhere = extensions.types_elsewhere(engine.db, needed)
            error.hint = elsewhere or extensions.types_too_new(engine.db, needed) or error.hint
        if sqlstate(cause) != INSUFFICIENT_PRIVILEGE or engine.ask(_MAY_MAKE_TEMPORARY):
            raise
        raise ScratchUnavailable(first_line(cause), GRANT_TEMPORARY) from None


def _declared(engine: PostgresEngine, schema: Schema, keys: Collection[Key], needed: Sequence[ModelType]) -> Schema:
    found = engine.strangers(needed)
    # To create an expression can evaluate a part of it, with what the search_path leads to.
    words = trust.words_of(declared_text(engine.db, needed))
    trust.require_trusted([stranger for stranger in found if stranger.is_meant_by(words)])
    with discarded(engine.db):
        for extension in sorted(schema.extensions):
            extensions.create_extension(engine, extension, found)
        for name in sorted({key[0] for key in keys}):
            schema = schema.merge(Schema(declared_tables(engine, name, keys, needed)))
    return schema


def declared_tables(
    engine: PostgresEngine, schema: str, keys: Collection[Key], models: Sequence[ModelType]
) -> dict[Key, Table]:
    """Return the tables of one schema as the server itself describes them, without leaving anything behind.

    :param keys: the tables that are asked for.
    :param models: theirs and all that they refer to, each after what it refers to.
    :raises ModelError: when the server does not take a table.
    """
    tables: dict[Key, Table] = {}
    own = [model for model in models if engine.key(model) in keys and engine.key(model)[0] == schema]
    for batch in batches(own, named_by(models)):
        with discarded(engine.db):  # which gives its locks back
            tables |= _made(engine, schema, batch)
    return tables


def _made(engine: PostgresEngine, schema: str, batch: Batch) -> dict[Key, Table]:
    """Make the tables of a batch in pg_temp, and read them there."""
    names = _names(engine, schema, [*batch.targets, *batch.own])
    engine.search_first("pg_temp", schema)
    for model in batch.targets:
        _make_target(engine.db, model, names)
    stand_ins = StandIns(engine, schema, {engine.key(model): name for model, name in names.items()})
    statements = [
        (model, stand_ins.redirected(sql)) for model in batch.own for sql in _statements(engine.db, model, names)
    ]
    deferred = set()
    for model in batch.own:
        for column, sql in deferred_foreign_keys(engine.db, model, names):
            statements.append((model, sql))
            deferred.add((engine.key(model), column))
    forms = fileless.forms(engine, statements)
    _create_all(engine.db, statements, forms)
    places = {name: engine.key(model) for model, name in names.items()} | stand_ins.made
    found = engine.scratch(schema, places)
    for model in batch.own:
        refuse_moments(engine.db, model, found[engine.key(model)])
    keys = {model: engine.key(model) for model in batch.own}
    declared = {key: forms[model].read(found[key]) if model in forms else found[key] for model, key in keys.items()}
    return {key: _optional(table, deferred) for key, table in declared.items()}


def _names(engine: PostgresEngine, schema: str, models: Sequence[ModelType]) -> dict[ModelType, str]:
    # A table of another schema, which only serves as a target of references, cannot take a name of this one.
    keys = {model: engine.key(model) for model in models}
    return {
        model: key[1] if key[0] == schema else f"whatspire target {number}"
        for number, (model, key) in enumerate(keys.items())
    }


def _statements(db: peewee.Database, model: ModelType, names: Mapping[ModelType, str]) -> list[str]:
    """Return the statements that make a table and its indexes under the names of the scratch place."""
    concerned = (model, *model._meta.refs.values())
    if all(names.get(m, m._meta.table_name) == m._meta.table_name and not m._meta.schema for m in concerned):
        ddl = rendered(db, model)
        return [*ddl.table, *(unqualified(sql) for _, sql in ddl.indexes)]
    return [*create_table(db, model, names), *_indexes(db, model, names)]


def _create_all(
    db: peewee.Database, statements: Sequence[tuple[ModelType, str]], forms: Mapping[ModelType, fileless.Form]
) -> None:
    """Run statements as one message; where one of them fails, again each by itself, for the message to name it."""
    try:
        with db.atomic():
            execute(db, ";\n".join(forms[model].made(sql) if model in forms else sql for model, sql in statements))
    except peewee.PeeweeException as error:
        if is_locked(error) or is_lock_table_full(error):
            raise
        for model, sql in statements:
            _create(db, model, sql)


def _indexes(db: peewee.Database, model: ModelType, names: Mapping[ModelType, str]) -> Iterator[str]:
    return (unqualified(sql) for _, sql in create_indexes(db, model, names))


def _make_target(db: peewee.Database, model: ModelType, names: Mapping[ModelType, str]) -> None:
    """Make a table that is only referred to: its columns and unique keys, without references of its own."""
    for sql in create_target(db, model, names):
        _create(db, model, sql)
    for sql in filter(is_unique_index, _indexes(db, model, names)):
        # An index written as text does not know the name that the table has here.
        with suppress(peewee.PeeweeException), db.atomic():
            execute(db, unnamed(sql))


def _create(db: peewee.Database, model: ModelType, sql: str) -> None:
    try:
        execute(db, sql)
    except peewee.PeeweeException as error:
        if is_locked(error) or is_lock_table_full(error):
            raise  # the model is not to blame
        raise _cannot_create(model, sql, error) from error


def _cannot_create(model: ModelType, sql: str, error: peewee.PeeweeException) -> ModelError:
    if sqlstate(error) == READ_ONLY_TRANSACTION:
        return ScratchUnavailable(first_line(error), hint(error))
    default = f"correct the model; its SQL was: {bounded(sql)}"
    return ModelError(
        f"{model.__name__} makes no table that PostgreSQL takes: {first_line(error, values=True)}",
        hint(error, default) if sqlstate(error) in NOT_OF_THE_MODEL else default,
    )


def _optional(table: Table, deferred: Collection[tuple[Key, str]]) -> Table:
    constraints = (
        replace(c, optional=c.kind == "foreign_key" and (table.key, c.columns[0]) in deferred)
        for c in table.constraints
    )
    return replace(table, constraints=tuple(constraints))
