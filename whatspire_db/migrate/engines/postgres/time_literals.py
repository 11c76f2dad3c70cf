"""PostgreSQL: texts like 'now' that are a moment when DDL is read, and not at each row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import peewee

from whatspire_db.errors import ModelError, bounded
from whatspire_db.migrate.ddl import ModelType, written_constraints
from whatspire_db.migrate.schema import Table
from whatspire_db.migrate.stamp import rendered

from .sql_tokens import tokens

# https://www.postgresql.org/docs/current/datatype-datetime.html, "Special Values"; epoch and infinity do not move.
_MOMENT = re.compile(r"\W*(?:.*\s)?(?:now|today|tomorrow|yesterday)\b(?:.*)?", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"now|today|tomorrow|yesterday", re.IGNORECASE)  # without one of them there is none
# How the server shows what it took for one.
_CONSTANT = re.compile(r"'[-+:. \d]*\d[^']*'::(?:date|time)", re.IGNORECASE)


def refuse_moments(db: peewee.Database, model: ModelType, table: Table) -> None:
    """Refuse a model of which two tables, made one after the other, would not be alike.

    :param table: the model's table as the server shows it: a text that it took for a moment stands there as a date.
    :raises ModelError: names the field.
    """
    found = [literal for literal in _literals(_texts(db, model)) if _MOMENT.fullmatch(literal.strip("eE'"))]
    texts = list(_shown(table)) if found else []
    if not any(map(_CONSTANT.search, texts)):
        return
    shown = _literals(texts)
    for literal in dict.fromkeys(found):
        if found.count(literal) > shown.count(literal):
            raise ModelError(
                f"{_place(model, literal)}: {bounded(literal)} is the moment of CREATE TABLE, not that of a row",
                "write a function without quotes, like DEFAULT now() or CURRENT_DATE",
            )


def _texts(db: peewee.Database, model: ModelType) -> Iterator[str]:
    if any(map(_WORD.search, written_constraints(model))) or model._meta.indexes:
        ddl = rendered(db, model)
        yield from filter(_WORD.search, [*ddl.table, *(sql for _, sql in ddl.indexes)])


def _literals(texts: Iterable[str]) -> list[str]:
    return [token.text for text in texts for token in tokens(text) if token.kind == "string"]


def _shown(table: Table) -> Iterator[str]:
    for column in table.columns.values():
        yield column.default or ""
        yield column.generated or ""
    for constraint in table.constraints:
        yield constraint.definition
    for index in table.indexes:
        yield index.definition


def _place(model: ModelType, literal: str) -> str:
    for field in model._meta.sorted_fields:
        if any(literal in str(getattr(node, "sql", "")) for node in field.constraints or ()):
            return f"{model.__name__}.{field.name}"
    return str(model.__name__)
