"""PostgreSQL: what depends on an object is read from pg_depend, and a CHECK proves that nothing is lost."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from whatspire_db.errors import WhatspireDBError
from whatspire_db.migrate.added import Added
from whatspire_db.migrate.ddl import ModelType, execute, qualified, quote
from whatspire_db.migrate.schema import PROOF, Column, Key, Schema
from whatspire_db.sql import SAFE_TO_QUERY, pinned

from ..undoing import Dependent, RecordsState, UndoEngine
from . import NAME_BYTES, trust
from .online import drop_statement as online_drop
from .undo_asked import ASKED, FAMILY, INDEXES, called

if TYPE_CHECKING:
    from .engine import PostgresEngine

_RECORDS = pinned(f"""
SELECT r.oid IS NOT NULL, r.safe AND has_table_privilege(r.oid, 'SELECT'),
    CASE WHEN r.oid IS NULL THEN has_schema_privilege(current_schema(), 'CREATE')
        ELSE r.safe AND has_table_privilege(r.oid, 'SELECT') AND has_table_privilege(r.oid, 'INSERT')
            AND has_table_privilege(r.oid, 'UPDATE') AND has_table_privilege(r.oid, 'DELETE') END
FROM (SELECT 1) AS one LEFT JOIN LATERAL (
    SELECT oid, {SAFE_TO_QUERY} AS safe FROM pg_class WHERE oid = to_regclass(quote_ident(current_schema()) || %s)
) AS r ON true
""")

# One row a dependent: the object's number, what the dependent is, the schema, table and name that it has, and the
# server's words for it. What belongs to the object itself (its type, sequence, toast table or NOT NULL, its default, an
# index of a partition) is left out. A sequence that somebody gave to a column or table by OWNED BY does not belong to
# it, and neither does the index of a partition that PostgreSQL did not make itself: it is older than the one that it is
# a part of, or has another name than PostgreSQL and this package give. A view that uses a whole row names no column.
_DEPENDENTS = pinned(
    f"""
{ASKED}{FAMILY}{INDEXES}, parts AS (
    SELECT n, kind, rel, 0 AS attnum FROM asked WHERE kind = 'table'
    UNION ALL
    SELECT n, kind, rel, attnum FROM family
), objects AS (
    SELECT n, kind, 'pg_class'::regclass::oid AS class, rel AS oid, 0 AS sub, true AS is_own FROM asked
        WHERE kind = ANY ('{{table,index}}')
    UNION ALL
    SELECT n, kind, 'pg_type'::regclass::oid, t.oid, 0, true FROM parts
        JOIN pg_class AS c ON c.oid = rel JOIN pg_type AS y ON y.oid = c.reltype
        JOIN pg_type AS t ON t.oid = y.oid OR t.oid = y.typarray
    UNION ALL
    SELECT n, kind, 'pg_class'::regclass::oid, rel, attnum, true FROM family
    UNION ALL
    SELECT p.n, p.kind, d.classid, d.objid, 0, d.deptype = 'i' OR EXISTS (
            SELECT FROM pg_attrdef AS v JOIN pg_depend AS u ON u.classid = 'pg_attrdef'::regclass AND u.objid = v.oid
            WHERE u.refclassid = d.classid AND u.refobjid = d.objid AND v.adrelid = p.rel
                AND (p.attnum = 0 OR v.adnum = p.attnum))
        FROM parts AS p JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = p.rel
            AND (p.attnum = 0 OR d.refobjsubid = p.attnum) AND d.deptype = ANY ('{{a,i}}')
        JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'S'
    UNION ALL
    SELECT n, kind, x.class, x.oid, 0, true FROM asked
        JOIN pg_constraint AS k ON conrelid = rel AND conname::text = name
        CROSS JOIN LATERAL (SELECT 'pg_constraint'::regclass::oid AS class, k.oid
            UNION ALL SELECT 'pg_class'::regclass::oid, k.conindid WHERE k.contype = ANY ('{{p,u,x}}')) AS x
        WHERE kind = 'constraint'
    UNION ALL
    SELECT n, kind, 'pg_namespace'::regclass::oid, s.oid, 0, true FROM asked
        JOIN pg_namespace AS s ON nspname::text = name WHERE kind = 'schema'
    UNION ALL
    SELECT n, kind, x.class, x.oid, 0, true FROM asked JOIN pg_extension AS e ON extname::text = name
        CROSS JOIN LATERAL (SELECT 'pg_extension'::regclass::oid AS class, e.oid
            UNION ALL SELECT classid, objid FROM pg_depend
                WHERE refclassid = 'pg_extension'::regclass AND refobjid = e.oid AND deptype = 'e'
            UNION ALL SELECT d.classid, t.typarray FROM pg_depend AS d JOIN pg_type AS t ON t.oid = d.objid
                WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
                    AND d.classid = 'pg_type'::regclass AND t.typarray > 0) AS x
        WHERE kind = 'extension'
), found AS (
    SELECT o.n, d.classid, d.objid, d.objsubid FROM objects AS o
    JOIN pg_depend AS d ON d.refclassid = o.class AND d.refobjid = o.oid
        AND (d.refobjsubid = o.sub OR o.kind = 'table')
    LEFT JOIN pg_class AS c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    LEFT JOIN pg_constraint AS k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
    LEFT JOIN pg_attrdef AS v ON d.classid = 'pg_attrdef'::regclass AND v.oid = d.objid
    WHERE d.deptype <> ALL ('{{e,P,S}}')
        AND NOT EXISTS (SELECT FROM objects AS own WHERE own.n = o.n AND own.class = d.classid
            AND own.oid = d.objid AND (own.sub = 0 OR own.sub = d.objsubid) AND own.is_own)
        AND NOT EXISTS (SELECT FROM objects AS own WHERE own.n = o.n AND own.class = 'pg_class'::regclass
            AND own.oid = v.adrelid AND own.sub = v.adnum)
        AND NOT (d.deptype = 'i' AND d.classid = 'pg_type'::regclass)
        AND NOT coalesce(c.relkind = 't' OR (c.relkind = 'S' AND o.kind = ANY ('{{schema,extension}}')
            AND EXISTS (SELECT FROM pg_depend AS s
                WHERE s.classid = d.classid AND s.objid = c.oid AND s.deptype = ANY ('{{a,i}}'))), false)
        AND NOT (o.kind = 'extension' AND (d.deptype = 'i'
            OR d.classid = 'pg_amop'::regclass OR d.classid = 'pg_amproc'::regclass))
        AND NOT (o.kind = 'column' AND (coalesce(k.coninhcount > 0 AND NOT k.conislocal, false)
            OR EXISTS (SELECT FROM pg_depend AS s
                WHERE s.classid = d.classid AND s.objid = d.objid AND s.deptype = 'P')))
    UNION
    SELECT p.n, d.classid, d.objid, 0 FROM parts AS p JOIN pg_class AS c ON c.oid = p.rel
    JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid
    JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    WHERE p.kind = 'column' AND (r.ev_action::text ~ format(':varattno 0 :vartype %%s ', c.reltype))
    UNION
    SELECT x.n, 'pg_class'::regclass::oid, x.oid, 0 FROM indexes AS x
    JOIN pg_index AS i ON i.indexrelid = x.oid JOIN pg_class AS c ON c.oid = x.oid
    JOIN pg_class AS t ON t.oid = i.indrelid
    JOIN pg_index AS j ON j.indexrelid = x.top JOIN pg_class AS p ON p.oid = x.top
    JOIN pg_class AS r ON r.oid = j.indrelid
    WHERE x.oid <> x.top AND (x.oid < x.top OR NOT (
        (starts_with(c.relname::text, left(t.relname::text, 9))
            AND (c.relname::text ~ '_((idx|key|pkey|excl)[0-9]*|[0-9a-f]{{8}})$'))
        OR c.relname::text = concat(t.relname, CASE WHEN starts_with(p.relname::text, r.relname::text)
            THEN substr(p.relname::text, length(r.relname::text) + 1) ELSE concat('_', p.relname) END)))
)
SELECT f.n, CASE WHEN i.indexrelid IS NOT NULL THEN 'index' WHEN k.oid IS NOT NULL THEN 'constraint'
        WHEN v.oid IS NOT NULL OR f.objsubid > 0 THEN 'column' WHEN g.oid IS NOT NULL THEN 'trigger'
        WHEN r.oid IS NOT NULL THEN 'view' WHEN c.oid IS NOT NULL THEN 'table' ELSE '' END,
    s.nspname, t.relname, coalesce(c.relname::text, k.conname::text, a.attname::text, g.tgname::text, ''),
    CASE WHEN r.oid IS NOT NULL AND t.relkind = ANY ('{{v,m}}') THEN pg_describe_object('pg_class'::regclass, t.oid, 0)
        ELSE pg_describe_object(f.classid, f.objid, f.objsubid) END, a.attname::text
FROM found AS f
LEFT JOIN pg_class AS c ON f.classid = 'pg_class'::regclass AND c.oid = f.objid
LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
LEFT JOIN pg_constraint AS k ON f.classid = 'pg_constraint'::regclass AND k.oid = f.objid
LEFT JOIN pg_attrdef AS v ON f.classid = 'pg_attrdef'::regclass AND v.oid = f.objid
LEFT JOIN pg_trigger AS g ON f.classid = 'pg_trigger'::regclass AND g.oid = f.objid
LEFT JOIN pg_rewrite AS r ON f.classid = 'pg_rewrite'::regclass AND r.oid = f.objid
LEFT JOIN pg_class AS t ON t.oid = coalesce(i.indrelid, nullif_zero.conrelid, v.adrelid, g.tgrelid, r.ev_class, c.oid)
LEFT JOIN pg_namespace AS s ON s.oid = t.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = t.oid
    AND a.attnum = CASE WHEN v.oid IS NOT NULL THEN v.adnum ELSE f.objsubid END AND a.attnum > 0
WHERE coalesce(k.contype <> 'n', true) AND NOT coalesce(g.tgisinternal, false)
ORDER BY f.n, 6
""".replace("nullif_zero.conrelid", "CASE WHEN k.conrelid > 0 THEN k.conrelid END")
)

# What an index is to its table, beside an index.
_MARKS = pinned(f"""
{ASKED}{INDEXES}
SELECT x.n, format(CASE WHEN i.indisreplident THEN 'the REPLICA IDENTITY of table %%s' ELSE 'CLUSTER of table %%s' END,
    i.indrelid::regclass)
FROM indexes AS x JOIN pg_index AS i ON i.indexrelid = x.oid
WHERE i.indisreplident OR i.indisclustered
ORDER BY 1, 2
""")


# Which table it is, and which version of its row in the catalog: VACUUM and ANALYZE leave that alone.
_TABLE_MARKS = pinned("""
SELECT concat(c.oid, ':', c.xmin) FROM unnest(%s::text[]) WITH ORDINALITY AS a (rel, n)
LEFT JOIN pg_class AS c ON c.oid = to_regclass(a.rel)
ORDER BY a.n
""")
# How values of a type are compared so that no setting of a session matters: as 'text' where the type's text depends on
# none; as what one of PostgreSQL's own functions sends, which is the bytes of the value; or not at all. Reading a value
# of a type that is not PostgreSQL's own can run code of others; an enum cannot. With it the type below a domain.
_COMPARISON = pinned("""
WITH RECURSIVE types AS (
    SELECT oid, typtype, typbasetype, typtypmod, typelem, typcategory, typname, typsend, false AS is_base
        FROM pg_type WHERE oid = to_regtype(%s)
    UNION ALL
    SELECT b.oid, b.typtype, b.typbasetype, CASE WHEN b.typtype = 'd' THEN b.typtypmod ELSE t.typtypmod END, b.typelem,
        b.typcategory, b.typname, b.typsend, true
        FROM types AS t JOIN pg_type AS b ON b.oid = t.typbasetype WHERE t.typtype = 'd'
)
SELECT CASE WHEN e.typtype = 'e' OR e.typname = ANY (
            '{bit,bool,bpchar,char,cidr,inet,int2,int4,int8,json,jsonb,macaddr,macaddr8,name,numeric,oid,text,tsquery,'
            'tsvector,uuid,varbit,varchar}') AND e.oid < 16384 THEN 'text'
        WHEN e.oid < 16384 AND p.provolatile = 'i' THEN f.proname END,
    CASE WHEN t.is_base THEN format_type(t.oid, t.typtypmod) END
FROM types AS t LEFT JOIN pg_range AS r ON r.rngtypid = t.oid AND t.oid < 16384
JOIN pg_type AS e ON e.oid = CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE coalesce(r.rngsubtype, t.oid) END
LEFT JOIN pg_proc AS p ON p.oid = e.typsend LEFT JOIN pg_proc AS f ON f.oid = t.typsend
WHERE t.typtype <> 'd'
""")
# A constant as the server shows it: a literal, and perhaps its type.
_CONSTANT = re.compile(r"(?P<plain>-?[0-9][0-9.e+-]*|true|false|'(?P<text>(?:[^']|'')*)')(?:::[\w \"\[\](),.]+)?")


# So many objects are asked about at once: the server compares each with each, and knows no faster way.
TOGETHER = 50
# Roles beside the owner that may write to the records, as a superuser sees it: what they write there, it would drop.
_WRITERS = pinned("""
SELECT coalesce(r.rolname::text, 'PUBLIC') FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
    LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE c.oid = to_regclass(quote_ident(current_schema()) || %s) AND a.privilege_type = ANY ('{INSERT,UPDATE}')
    AND a.grantee <> c.relowner AND NOT coalesce(r.rolsuper, false)
    AND (SELECT rolsuper FROM pg_roles WHERE rolname = current_user::text)
ORDER BY 1 LIMIT 1
""")


class PostgresUndo(UndoEngine):
    """PostgreSQL, where writers are kept out for milliseconds, whatever the size of a table."""

    schema: PostgresEngine
    lock = "ACCESS EXCLUSIVE"
    online_lock = "SHARE UPDATE EXCLUSIVE"
    rewrites = False

    def records_state(self, model: ModelType) -> RecordsState:
        row = execute(self.db, _RECORDS, [f".{quote(model._meta.table_name)}"]).fetchone()
        return RecordsState(*map(bool, row))

    def forgeable(self, model: ModelType) -> WhatspireDBError | None:
        table = model._meta.table_name
        row = None if self.schema.trust_source else execute(self.db, _WRITERS, [f".{quote(table)}"]).fetchone()
        if row is None:
            return None
        return WhatspireDBError(
            f"role {row[0]} may write to {table}, where it could name what a superuser is to drop",
            f"run REVOKE INSERT, UPDATE ON {table} FROM {row[0]}; or run it as the owner, or give --trust-source",
        )

    def untrusted(self, keys: Sequence[Key]) -> WhatspireDBError | None:
        if self.schema.trust_source:
            return None
        found = trust.strangers(self.db, (), [self.name(key) for key in keys if key[1]])
        return trust.told(self.db, [each for each in found if each.kind in trust.OF_ROWS])

    def marks(self, keys: Sequence[Key]) -> dict[Key, str]:
        found = execute(self.db, _TABLE_MARKS, [list(map(self.name, keys))]).fetchall()
        return dict(zip(keys, (mark for (mark,) in found), strict=True))

    def name(self, key: Key) -> str:
        return qualified(key[0] or self.schema.default_schema, key[1])

    def dependents(self, added: Sequence[Added], live: Schema) -> list[Dependent]:
        chunks = (added[start : start + TOGETHER] for start in range(0, len(added), TOGETHER))
        return [dependent for chunk in chunks for dependent in self._dependents(chunk)]

    def _dependents(self, added: Sequence[Added]) -> list[Dependent]:
        names = [
            self.name((a.table[0], a.name) if a.kind == "index" else a.table) if a.table[1] else None for a in added
        ]
        asked = [[a.kind for a in added], names, [a.name for a in added]]
        found = []
        for number, kind, schema, table, name, words, column in execute(self.db, _DEPENDENTS, asked).fetchall():
            key = ("" if schema == self.schema.default_schema else schema or "", table or "")
            identity = (kind, key, "" if kind == "table" else column if kind == "column" else name)
            if not name.startswith(PROOF):
                found.append(Dependent(added[number - 1], identity, words))
        for number, mark in execute(self.db, _MARKS, asked).fetchall():
            found.append(Dependent(added[number - 1], ("mark", ("", ""), mark), mark))
        for number, title in execute(self.db, called(self.db.server_version or 0), asked).fetchall():
            found.append(Dependent(added[number - 1], ("text", ("", ""), title), title))
        return found

    def cannot_drop(self, column: Column, key: Key, live: Schema) -> str | None:
        table = live.tables[key]
        if table.parents:
            return f"it belongs to {table.parents[0][1]}, of which this is a part"
        return None

    def is_unused(self, column: Column, key: Key) -> str:
        nothing, constant = f"{quote(column.name)} IS NULL", _CONSTANT.fullmatch(column.default or "")
        found = execute(self.db, _COMPARISON, [column.type]).fetchone() if constant else None
        if constant is None or found is None or found[0] is None:
            return nothing
        # "=" takes 1.0 for 1.00, and "A" for "a" where the type says so: the same text or the same bytes are meant.
        sender, base = found
        stored = f"({constant['plain']})::{base}" if base else f"({column.default})::{column.type}"
        return f"{nothing} OR {self._equal(quote(column.name), stored, sender)}"

    def _equal(self, name: str, stored: str, sender: str) -> str:
        if sender == "text":
            written = f"pg_catalog.format('%s', {name}) COLLATE pg_catalog.\"C\""
            return f"{written} OPERATOR(pg_catalog.=) pg_catalog.format('%s', {stored})"
        # A session that reads the constant from a script could take it for another one.
        ask = f"SELECT pg_catalog.encode(pg_catalog.{sender}({stored}), 'hex')"
        sent = execute(self.db, ask).fetchone()[0]
        return f"pg_catalog.{sender}({name}) OPERATOR(pg_catalog.=) pg_catalog.decode('{sent}', 'hex')"

    def proof(self, key: Key, column: Column | None, left: str | None = None) -> str:
        drop = f"DROP CONSTRAINT {quote(left)}, " if left else ""
        return f"ALTER TABLE {self.name(key)} {drop}ADD {self._check(column, key)}"

    def online_proof(self, key: Key, column: Column) -> tuple[str, str]:
        table, name = self.name(key), quote(self.proof_name(column))
        # One that a failed script left is replaced: it could be for another default.
        keep_out = f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD {self._check(column, key)} NOT VALID"
        return keep_out, f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}"

    def _check(self, column: Column | None, key: Key) -> str:
        condition = self.is_unused(column, key) if column else "false"
        return f"CONSTRAINT {quote(self.proof_name(column))} CHECK ({condition})"

    def proof_name(self, column: Column | None) -> str:
        if column is None:
            return PROOF
        # Names that begin alike are cut to the same one.
        own = f"_{zlib.crc32(column.name.encode()):08x}"
        return f"{PROOF}_{column.name}".encode()[: NAME_BYTES - len(own)].decode(errors="ignore") + own

    def withdraw(self, key: Key, name: str) -> str:
        return f"ALTER TABLE {self.name(key)} DROP CONSTRAINT IF EXISTS {quote(name)}"

    def drop_column(self, key: Key, name: str) -> str:
        return f"ALTER TABLE {self.name(key)} DROP COLUMN {quote(name)}"

    def drop_index(self, key: Key, name: str, online: bool = False) -> str:
        return online_drop(self.name((key[0], name))) if online else super().drop_index(key, name)

    def drop_constraint(self, key: Key, name: str) -> str:
        return f"ALTER TABLE {self.name(key)} DROP CONSTRAINT {quote(name)}"
