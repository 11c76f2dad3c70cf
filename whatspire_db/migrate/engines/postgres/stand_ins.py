"""PostgreSQL: tables in pg_temp that stand for those that a model's SQL refers to and that have no model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from whatspire_db.light import TYPE_CHECKING
from whatspire_db.migrate.ddl import execute, quote
from whatspire_db.migrate.schema import Key
from whatspire_db.sql import pinned

if TYPE_CHECKING:
    from .engine import PostgresEngine

_PART = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_REFERENCES = re.compile(rf"(\bREFERENCES\s+)(?:({_PART})\s*\.\s*)?({_PART})", re.IGNORECASE)
_TARGET = pinned("""
SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%s) AND c.relpersistence <> 't'
""")
_COLUMNS = pinned("""
SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute AS a
WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
""")
_KEYS = pinned("""
SELECT i.indisprimary, (
        SELECT json_agg(a.attname ORDER BY k.n) FROM unnest(i.indkey) WITH ORDINALITY AS k (num, n)
        JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.num WHERE k.n <= i.indnkeyatts)
FROM pg_index AS i
WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
""")


@dataclass
class StandIns:
    """The names that tables have in the scratch place, those without a model included.

    :param schema: the schema that the scratch place stands for.
    :param names: the names of the models' tables there, by where they stand.
    """

    engine: PostgresEngine
    schema: str
    names: Mapping[Key, str]
    made: dict[str, Key] = field(default_factory=dict)

    def redirected(self, sql: str) -> str:
        """Return DDL whose references lead to tables of the scratch place, which are made where they are missing."""
        return _REFERENCES.sub(self._redirect, sql)

    def _redirect(self, match: re.Match[str]) -> str:
        head, schema, name = match.groups()
        place = self._place(None if schema is None else _unquoted(schema), _unquoted(name))
        return match.group() if place is None else head + quote(place)

    def _place(self, schema: str | None, name: str) -> str | None:
        own = self.schema if schema is None else "" if schema == self.engine.default_schema else schema
        if (own, name) in self.names:
            return self.names[own, name]
        written = quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"
        found = execute(self.engine.db, _TARGET, [written]).fetchone()
        if found is None:
            return None  # the server says what is wrong
        key = ("" if found[0] == self.engine.default_schema else found[0], found[1])
        place = self.engine.fold(".".join(found))
        if place not in self.made:
            self._make(place, f"{quote(found[0])}.{quote(found[1])}")
            self.made[place] = key
        return place

    def _make(self, place: str, table: str) -> None:
        """Make a table of the same columns and unique keys, which its catalog tells to everybody."""
        parts = [f"{quote(name)} {type_}" for name, type_ in execute(self.engine.db, _COLUMNS, [table])]
        for is_primary, columns in execute(self.engine.db, _KEYS, [table]):
            parts.append(f"{'PRIMARY KEY' if is_primary else 'UNIQUE'} ({', '.join(map(quote, columns))})")
        execute(self.engine.db, f"CREATE TEMPORARY TABLE {quote(place)} ({', '.join(parts)})")


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name.lower()
