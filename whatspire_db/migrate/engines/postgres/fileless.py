"""PostgreSQL: stand-ins without files, for files are most of what a table costs.

With a TOAST table and three indexes there are six. A partitioned table without partitions has columns, constraints and
indexes, and no file. Each of its unique keys has to contain the column that it is partitioned by, which is one of the
primary key's; of the others, unique indexes that Peewee declares are made as plain ones and read as unique.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from whatspire_db.light_stdlib import TYPE_CHECKING, dataclass, pattern, replace
from whatspire_db.migrate.ddl import ModelType, quote
from whatspire_db.migrate.schema import Table

if TYPE_CHECKING:
    from .engine import PostgresEngine

_NAME = r'"(?:[^"]|"")+"'
# On columns alone, by the default method: whatever takes it as a plain index takes it as a unique one.
_UNIQUE_INDEX = pattern(rf"CREATE UNIQUE INDEX ({_NAME}) ON {_NAME} \({_NAME}(?:, {_NAME})*\)")
# What a partitioned table does not take, or only together with its column.
_NOT_TAKEN = pattern(r"\b(?:UNIQUE|EXCLUDE)\b", re.IGNORECASE)
_NOT_TAKEN_BEFORE_17 = pattern(r"\b(?:UNIQUE|EXCLUDE|IDENTITY)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Form:
    """How one table is made without files: the column that it is partitioned by, its unique indexes by the SQL."""

    column: str
    unique: Mapping[str, str]

    def made(self, sql: str) -> str:
        """Return one of the table's statements as it makes no file."""
        if sql.startswith("CREATE TABLE "):
            return f"{sql} PARTITION BY LIST ({quote(self.column)})"
        return sql.replace("CREATE UNIQUE ", "CREATE ", 1) if sql in self.unique else sql

    def read(self, table: Table) -> Table:
        """Return a table that was made in this form, or as it is declared, as it is declared."""
        names = set(self.unique.values())
        indexes = (replace(index, unique=True) if index.name in names else index for index in table.indexes)
        rules = (rule for rule in table.rules if rule[0] != "partitioning")
        return replace(table, indexes=tuple(indexes), partitioned=False, rules=tuple(rules))


def forms(engine: PostgresEngine, statements: Sequence[tuple[ModelType, str]]) -> dict[ModelType, Form]:
    """Return the forms of those models' tables that can be made without files."""
    not_taken = _NOT_TAKEN if (engine.db.server_version or 0) >= 170000 else _NOT_TAKEN_BEFORE_17
    unique: dict[ModelType, dict[str, str]] = {model: {} for model, _ in statements}
    for model, sql in statements:
        if match := _UNIQUE_INDEX.fullmatch(sql):
            unique[model][sql] = engine.fold(match[1][1:-1].replace('""', '"'))
    kept = {model for model, sql in statements if sql not in unique[model] and not_taken.search(sql)}
    return {
        model: Form(model._meta.get_primary_keys()[0].column_name, unique[model])
        for model in unique
        if model not in kept and model._meta.primary_key and model._meta.table_settings is None
    }
