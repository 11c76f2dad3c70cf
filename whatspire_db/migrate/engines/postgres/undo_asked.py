"""PostgreSQL: what an undo asks about, and the functions and rules whose text needs it without a dependency."""

from __future__ import annotations

from whatspire_db.sql import pinned

# Parameters: of each object its kind, its quoted table, or an index's own name, and its name.
ASKED = """
WITH RECURSIVE asked AS (
    SELECT n, kind, to_regclass(rel)::oid AS rel, name
    FROM ROWS FROM (unnest(%s::text[]), unnest(%s::text[]), unnest(%s::text[])) WITH ORDINALITY
        AS a (kind, rel, name, n)
)"""
# A column also goes from partitions and child tables that have it from this table alone.
FAMILY = """, family AS (
    SELECT n, kind, rel, name, attnum FROM asked JOIN pg_attribute ON attrelid = rel AND attname::text = name
        WHERE kind = 'column'
    UNION
    SELECT f.n, f.kind, a.attrelid, f.name, a.attnum FROM family AS f JOIN pg_inherits AS h ON h.inhparent = f.rel
        JOIN pg_attribute AS a ON a.attrelid = h.inhrelid AND a.attname::text = f.name AND a.attinhcount = 1
            AND NOT a.attislocal
)"""
# The indexes that are asked about or stand behind a constraint, and those of partitions that go with them.
INDEXES = """, indexes AS (
    SELECT n, rel AS top, rel AS oid FROM asked WHERE kind = 'index'
    UNION ALL
    SELECT n, k.conindid, k.conindid FROM asked JOIN pg_constraint AS k ON conrelid = rel AND conname::text = name
        WHERE kind = 'constraint' AND k.contype = ANY ('{p,u,x}')
    UNION ALL
    SELECT x.n, x.top, h.inhrelid FROM indexes AS x JOIN pg_inherits AS h ON h.inhparent = x.oid
)"""

# Between two words: comments in /* */ hold a star, and so make a text name every column anyway.
_GAP = r"(\s|--[^\n]*(\n|$))"
# INSERT INTO a table without a list of columns; where a list follows, no such word is the next one. TABLE is SELECT *.
_BEFORE_A_ROW = rf'\yinto{_GAP}+([^\s(;]*\.\s*)?"?'
_AFTER_A_ROW = (
    rf'"?{_GAP}*(\yas{_GAP}+\S+{_GAP}*)?(overriding{_GAP}+\w+{_GAP}+value{_GAP}*)?(\(|{_GAP})*'
    r"\y(select|with|values|table|default)\y"
)
_BEFORE_A_TABLE = (
    rf"(?<!\y(truncate|alter|lock|drop|foreign|create|temp|temporary|unlogged){_GAP}+)\ytable{_GAP}+(only{_GAP}+)?"
    r'([^\s(;]*\.\s*)?"?'
)


def _as_word(name: str, before: str = "", after: str = "") -> str:
    """Return SQL for the pattern of a name that stands by itself; it may begin or end with what is in no word."""
    escaped = rf"regexp_replace({name}, '(\W)', '\\\1', 'g')"
    ends = [rf"CASE WHEN {name} ~ '{end}' THEN '\y' ELSE '' END" for end in (r"^\w", r"\w$")]
    return f"concat('(?i){before}', {ends[0]}, {escaped}, {ends[1]}, '{after}')"


# The texts of functions, and of rules other than those of views. The server records no dependencies of a text, and
# none of what ON CONFLICT needs in a text that it has parsed.
_BODIES = """, bodies AS (
    SELECT p.oid AS function, format('function %%I.%%I', s.nspname, p.proname) AS title, p.prosrc AS written,
        %body AS body
    FROM pg_proc AS p
    JOIN pg_namespace AS s ON s.oid = p.pronamespace JOIN pg_language AS l ON l.oid = p.prolang
    WHERE p.oid >= 16384 AND l.lanname <> ALL ('{c,internal}')
        AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
            AND d.deptype = 'e')
), rules AS (
    SELECT pg_describe_object('pg_rewrite'::regclass, r.oid, 0) AS title, pg_get_ruledef(r.oid) AS body
    FROM pg_rewrite AS r WHERE r.oid >= 16384 AND r.rulename <> '_RETURN'
)"""

# The names that an extension brings, but for those that PostgreSQL has too: of those nobody knows which are meant.
_MEMBERS = r""", members AS (
    SELECT n, concat('(?i)\y(', string_agg(DISTINCT regexp_replace(m.name, '(\W)', '\\\1', 'g'), '|'), ')\y') AS names
    FROM asked JOIN pg_extension AS e ON e.extname::text = name
    JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
    CROSS JOIN LATERAL (
        SELECT p.proname::text FROM pg_proc AS p WHERE d.classid = 'pg_proc'::regclass AND p.oid = d.objid
        UNION ALL
        SELECT t.typname::text FROM pg_type AS t WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid
    ) AS m (name)
    WHERE kind = 'extension' AND m.name ~ '^\w+$' AND NOT starts_with(m.name, '_')
        AND NOT EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = 'pg_catalog'::regnamespace
            AND p.proname::text = m.name)
        AND NOT EXISTS (SELECT FROM pg_type AS t WHERE t.typnamespace = 'pg_catalog'::regnamespace
            AND t.typname::text = m.name)
    GROUP BY n
)"""

# Functions that name a table, and where a column is asked for it or all columns. A trigger's function names the columns
# of its table alone. A product looks like "all columns"; count(*), and VALUES behind a list of columns, do not. What
# has ON CONFLICT needs a unique index where it names its table, and its columns or the constraint.
_CALLED = rf"""
{ASKED}{FAMILY}{INDEXES}{_BODIES}{_MEMBERS}, words AS (
    SELECT n, a.rel, kind = 'column' AS is_column, {_as_word("relname::text")} AS relation,
        {_as_word("relname::text", _BEFORE_A_ROW, _AFTER_A_ROW)} AS without_columns,
        {_as_word("relname::text", _BEFORE_A_TABLE)} AS whole, {_as_word("name")} AS attribute
    FROM (SELECT n, kind, rel, name FROM asked WHERE kind = 'table'
        UNION ALL SELECT n, kind, rel, name FROM family) AS a JOIN pg_class AS c ON c.oid = a.rel
), unique_ones AS (
    SELECT x.n, i.indexrelid, {_as_word("t.relname::text")} AS relation, {_as_word("c.relname::text")} AS own,
        ARRAY(SELECT {_as_word("attname::text")} FROM pg_attribute WHERE attrelid = i.indrelid
            AND attnum = ANY (i.indkey)) AS attributes
    FROM indexes AS x JOIN pg_index AS i ON i.indexrelid = x.oid JOIN pg_class AS t ON t.oid = i.indrelid
    JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indisunique OR i.indisexclusion
)
SELECT w.n, b.title FROM words AS w CROSS JOIN bodies AS b
WHERE (b.written ~ w.relation AND (NOT w.is_column OR b.written ~ w.attribute
        OR b.written ~ '[^(/\s]\s*\*' OR b.written ~ '(?i)[^)\s]\s*\yvalues\y'
        OR b.written ~ w.without_columns OR b.written ~ w.whole))
    OR (w.is_column AND (b.written ~ w.attribute OR b.written ~ '(?i)\y(new|old)\.\*')
        AND EXISTS (SELECT FROM pg_trigger AS g WHERE g.tgfoid = b.function AND g.tgrelid = w.rel))
UNION
SELECT u.n, b.title FROM unique_ones AS u
CROSS JOIN LATERAL (SELECT title, body FROM bodies UNION ALL SELECT title, body FROM rules) AS b
WHERE b.body ~ '(?i)\yon\s+conflict\y' AND b.body ~ u.relation AND (b.body ~ u.own
    OR NOT EXISTS (SELECT FROM unnest(u.attributes) AS a (attribute) WHERE b.body !~ a.attribute))
UNION
SELECT m.n, b.title FROM members AS m CROSS JOIN bodies AS b WHERE b.body ~ m.names
ORDER BY 1, 2
"""


def called(version: int) -> str:
    """Return the query for the texts that need what is asked about; its answer is a number and a title each.

    :param version: of the server; since PostgreSQL 14 it keeps the body of some functions as a tree.
    """
    body = "concat(p.prosrc, pg_get_function_sqlbody(p.oid))" if version >= 140000 else "p.prosrc"
    return pinned(_CALLED.replace("%body", body))
