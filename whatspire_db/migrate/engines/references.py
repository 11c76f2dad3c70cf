"""Which models refer to which, in fields and in SQL, and an order in which each finds what it refers to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import peewee

from whatspire_db.errors import ModelError
from whatspire_db.light_stdlib import pattern

from ..ddl import ModelType, referenced_tables, written_constraints

_SEQUENCES = pattern(r"\bnextval\s*\(\s*'((?:[^']|'')+)'", re.IGNORECASE)


def with_references(models: Sequence[ModelType]) -> list[ModelType]:
    """Return the models and all that they refer to, each after what it refers to."""
    seen: dict[ModelType, None] = {}
    pending = list(models)
    while pending:
        model = pending.pop()
        if model not in seen:
            seen[model] = None
            pending.extend(model._meta.refs.values())
    for model in seen:
        for field in model._meta.sorted_fields:
            if isinstance(field, peewee.DeferredForeignKey):
                raise ModelError(
                    f"{model.__name__}.{field.name} refers to the model {field.rel_model_name}, which is not defined",
                    "import the module that defines it before the migration",
                )
    return _in_order_of_reference(list(peewee.sort_models(list(seen))))


def _in_order_of_reference(models: Sequence[ModelType]) -> list[ModelType]:
    """Put each model after those that it refers to, in a field or in the text of a constraint."""
    by_name = named_by(models)
    ordered: dict[ModelType, None] = {}
    visiting: set[ModelType] = set()

    def visit(model: ModelType) -> None:
        if model in visiting:
            return
        visiting.add(model)
        for field, target in model._meta.refs.items():
            if not field.deferred:
                visit(target)
        for name in names_in_text(model):
            for target in by_name.get(name.lower(), ()):
                visit(target)
        ordered[model] = None

    for model in models:
        visit(model)
    return list(ordered)


def named_by(models: Sequence[ModelType]) -> dict[str, list[ModelType]]:
    """Return the models by the names, in lower case, of their tables and of the sequences of their keys."""
    found: dict[str, list[ModelType]] = {}
    for model in models:
        table = model._meta.table_name.lower()
        keys = [f for f in model._meta.sorted_fields if isinstance(f, peewee.AutoField)]
        for name in [table, *(f"{table}_{key.column_name.lower()}_seq" for key in keys)]:
            found.setdefault(name, []).append(model)
    return found


def targets_of(model: ModelType, by_name: Mapping[str, Sequence[ModelType]]) -> list[ModelType]:
    """Return the other models that one refers to, in a field or by name in a constraint.

    :param by_name: as `named_by` returns them.
    """
    named = (target for name in names_in_text(model) for target in by_name.get(name.lower(), ()))
    found = dict.fromkeys([*model._meta.refs.values(), *named])
    return [target for target in found if target is not model]


def names_in_text(model: ModelType) -> Iterator[str]:
    """Yield the names of the tables and sequences that a model's constraints name in SQL."""
    for text in written_constraints(model):
        yield from referenced_tables(text)
        for written in _SEQUENCES.findall(text):
            yield written.replace("''", "'").rpartition(".")[2].strip('"')


def references_in_text(model: ModelType) -> Iterator[str]:
    """Yield the names of the tables that a model's constraints refer to in SQL."""
    for text in written_constraints(model):
        yield from referenced_tables(text)
