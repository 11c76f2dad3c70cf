"""What the service's tables have in common, to the letter as the Go service makes it: key, CHECKs and indexes."""

from __future__ import annotations

from collections.abc import Callable

from peewee import SQL, ModelIndex

from ...light_stdlib import TypeVar
from ..base import BaseModel

M = TypeVar("M", bound=BaseModel)

KEY = SQL('PRIMARY KEY ("id")')


def one_of(table: str, column: str, *values: str) -> SQL:
    """Return the CHECK that GORM makes of a column that has one of some values."""
    listed = ",".join(f"'{value}'" for value in values)
    return SQL(f'CONSTRAINT "chk_{table}_{column}" CHECK ({column} IN ({listed}))')


def indexed(*columns: str, unique: str = "") -> Callable[[type[M]], type[M]]:
    """Give a model one index a column, named as GORM names it."""

    def add(model: type[M]) -> type[M]:
        for column in columns:
            name = f"idx_{model._meta.table_name}_{column}"
            model.add_index(ModelIndex(model, [model._meta.columns[column]], unique=column == unique, name=name))
        return model

    return add
