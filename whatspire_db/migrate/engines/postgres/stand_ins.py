"""PostgreSQL: tables in pg_temp that stand for those that a model's SQL refers to and that have no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.migrate.ddl import execute, quote
from whatspire_db.migrate.schema import Key
from whatspire_db.sql import pinned

from .sql_tokens import Token, tokens

if TYPE_CHECKING:
    from .engine import PostgresEngine

_TARGET = pinned("""
SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.oid = to_regclass(%s) AND c.relpersistence <> 't'
""")
_COLUMNS = pinned("""
SELECT a.attname, format_type(a.atttypid, a.atttypmod), (
        SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) FROM pg_collation AS l
        JOIN pg_namespace AS n ON n.oid = l.collnamespace WHERE l.oid = a.attcollation AND l.collname <> 'default')
FROM pg_attribute AS a
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
        if "references" not in sql.lower():
            return sql
        written = [token for token in tokens(sql) if token.kind != "skip"]
        parts, end = [], 0
        for position, token in enumerate(written):
            if token.kind == "name" and token.text.lower() == "references":
                target = _name_after(written, position)
                place = self._place(target) if target else None
                if place is not None:
                    parts += [sql[end : target[0].start], quote(place)]
                    end = target[-1].end
        return "".join([*parts, sql[end:]])

    def _place(self, target: Sequence[Token]) -> str | None:
        """Return the name that a table has in the scratch place; None where the server is to say what is wrong."""
        schema, name = (target[0].name if len(target) > 1 else None), target[-1].name
        own = self.schema if schema is None else "" if schema == self.engine.default_schema else schema
        if (own, name) in self.names:
            return self.names[own, name]
        written = quote(name) if schema is None else f"{quote(schema)}.{quote(name)}"
        found = execute(self.engine.db, _TARGET, [written]).fetchone()
        if found is None:
            return None
        key = ("" if found[0] == self.engine.default_schema else found[0], found[1])
        place = next((place for place, made in self.made.items() if made == key), None)
        if place is None:
            place = f"whatspire stand-in {len(self.made)}"
            self._make(place, f"{quote(found[0])}.{quote(found[1])}")
            self.made[place] = key
        return place

    def _make(self, place: str, table: str) -> None:
        """Make a table of the same columns and unique keys, which its catalog tells to everybody."""
        parts = [
            f"{quote(name)} {type_}" + (f" COLLATE {collation}" if collation else "")
            for name, type_, collation in execute(self.engine.db, _COLUMNS, [table])
        ]
        for is_primary, columns in execute(self.engine.db, _KEYS, [table]):
            parts.append(f"{'PRIMARY KEY' if is_primary else 'UNIQUE'} ({', '.join(map(quote, columns))})")
        execute(self.engine.db, f"CREATE TEMPORARY TABLE {quote(place)} ({', '.join(parts)})")


def _name_after(written: Sequence[Token], position: int) -> list[Token]:
    """Return the names of a table that is written behind a token: its schema's, if that is there, and its own."""
    first, dot, second = [*written[position + 1 : position + 4], None, None, None][:3]
    if first is None or first.kind != "name":
        return []
    if dot is not None and dot.text == "." and second is not None and second.kind == "name":
        return [first, second]
    return [first]
