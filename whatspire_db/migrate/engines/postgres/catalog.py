"""PostgreSQL's catalogs: the one statement that reads a schema, and its rows as Tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import peewee

from whatspire_db.light_stdlib import Any
from whatspire_db.migrate.ddl import execute, qualified, quote
from whatspire_db.migrate.schema import SERIAL, Column, Constraint, Index, IndexKey, Key, OwnSequence, Table
from whatspire_db.sql import pinned

# {namespace} is the schema's oid; one parameter, the names of the tables asked for. One row a fact: what it is, of
# which relation, and its values as JSON.
_SNAPSHOT = """
WITH ns AS (
    SELECT n.oid, n.nspname FROM pg_catalog.pg_namespace AS n WHERE n.oid = {namespace}
), rel AS (
    SELECT c.oid, c.relname, c.relkind, c.reltuples, c.relpersistence, c.relispartition, c.relpartbound,
        c.relrowsecurity, c.relname = ANY (%s) AS asked
    FROM pg_catalog.pg_class AS c JOIN ns ON c.relnamespace = ns.oid
    WHERE c.relkind = ANY ('{{r,p,v,m,f}}')
), own AS (
    SELECT * FROM rel WHERE asked AND relkind = ANY ('{{r,p}}')
)
SELECT 'schema', nspname, NULL FROM ns
UNION ALL
SELECT 'extension', extname, NULL FROM pg_catalog.pg_extension
UNION ALL
SELECT 'table', relname, json_build_object('kind', relkind, 'rows', reltuples, 'asked', asked,
        'unlogged', relpersistence = 'u')::text
    FROM rel
    WHERE asked OR NOT relispartition AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend AS d
        WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = rel.oid AND d.deptype = 'e')
UNION ALL
SELECT 'name', c.relname, to_json(coalesce(t.relname, c.relname))::text
    FROM pg_catalog.pg_class AS c
    JOIN ns ON c.relnamespace = ns.oid
    LEFT JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
    LEFT JOIN pg_catalog.pg_class AS t ON t.oid = i.indrelid
UNION ALL
SELECT 'column', o.relname, json_build_object(
        'name', a.attname, 'position', a.attnum,
        'type', format_type(a.atttypid, a.atttypmod), 'not_null', a.attnotnull,
        'expression', pg_get_expr(d.adbin, d.adrelid), 'generated', a.attgenerated, 'identity', a.attidentity,
        'domain', t.typtype = 'd',
        'sequence', CASE WHEN a.attidentity <> '' OR d.oid IS NOT NULL THEN (
            SELECT json_build_array(s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle)
            FROM pg_catalog.pg_depend AS e JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = e.objid
            WHERE e.classid = 'pg_catalog.pg_class'::regclass AND e.refclassid = 'pg_catalog.pg_class'::regclass
                AND e.refobjid = a.attrelid AND e.refobjsubid = a.attnum
                AND (e.deptype = 'i' OR (e.deptype = 'a' AND EXISTS (
                    SELECT FROM pg_catalog.pg_depend AS used
                    WHERE used.classid = 'pg_catalog.pg_attrdef'::regclass AND used.objid = d.oid
                        AND used.refclassid = 'pg_catalog.pg_class'::regclass AND used.refobjid = e.objid)))
            LIMIT 1) END,
        'collation', CASE WHEN a.attcollation <> t.typcollation THEN (
            SELECT {collation} FROM pg_catalog.pg_collation AS l WHERE l.oid = a.attcollation) END)::text
    FROM own AS o
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT 'index', o.relname, json_build_object(
        'name', c.relname, 'oid', c.oid::bigint, 'method', am.amname, 'unique', i.indisunique,
        'valid', i.indisvalid AND i.indisready,
        'nulls_not_distinct', {nulls_not_distinct}, 'predicate', pg_get_expr(i.indpred, i.indrelid),
        'options', c.reloptions, 'disabled', {disabled},
        'constraint', k.contype, 'deferrable', k.condeferrable, 'deferred', k.condeferred,
        'keys', (
            SELECT json_agg(json_build_object(
                    'expression', CASE WHEN i.indkey[n - 1] = 0 THEN pg_get_indexdef(i.indexrelid, n::int, false)
                        ELSE quote_ident(a.attname) END,
                    'key', n <= i.indnkeyatts,
                    'column', a.attname,
                    'opclass', (SELECT {opclass} FROM pg_catalog.pg_opclass AS p
                        WHERE p.oid = i.indclass[n - 1] AND NOT (p.opcdefault AND {parameters} IS NULL)),
                    'parameters', {parameters},
                    'collation', (SELECT {collation} FROM pg_catalog.pg_collation AS l
                        WHERE l.oid = i.indcollation[n - 1] AND l.collname <> 'default'),
                    'option', CASE WHEN n <= i.indnkeyatts THEN i.indoption[n - 1] END) ORDER BY n)
            FROM generate_series(1, i.indnatts) AS n
            LEFT JOIN pg_catalog.pg_attribute AS a
                ON a.attrelid = i.indrelid AND a.attnum = i.indkey[n - 1] AND a.attnum <> 0))::text
    FROM own AS o
    JOIN pg_catalog.pg_index AS i ON i.indrelid = o.oid
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am AS am ON am.oid = c.relam
    LEFT JOIN pg_catalog.pg_constraint AS k
        ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype = ANY ('{{p,u,x}}')
    WHERE k.contype IS NULL OR k.contype = 'u'
UNION ALL
SELECT 'constraint', o.relname, json_build_object(
        'name', k.conname, 'oid', k.oid::bigint, 'type', k.contype, 'valid', k.convalidated,
        'deferrable', k.condeferrable, 'deferred', k.condeferred,
        'definition', CASE WHEN k.contype = ANY ('{{c,x,p}}') THEN pg_get_constraintdef(k.oid) END,
        'set_columns', {set_columns},
        'index_valid', (SELECT i.indisvalid FROM pg_catalog.pg_index AS i WHERE i.indexrelid = k.conindid),
        'columns', (SELECT json_agg(a.attname ORDER BY p.n) FROM unnest(k.conkey) WITH ORDINALITY AS p (num, n)
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = p.num),
        'schema', (SELECT n.nspname FROM pg_catalog.pg_namespace AS n WHERE n.oid = f.relnamespace),
        'table', f.relname,
        'targets', (SELECT json_agg(a.attname ORDER BY p.n) FROM unnest(k.confkey) WITH ORDINALITY AS p (num, n)
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = p.num),
        'on_update', k.confupdtype, 'on_delete', k.confdeltype, 'match', k.confmatchtype,
        'enforced', {enforced}, 'period', {period}, 'disabled', {disabled})::text
    FROM own AS o
    JOIN pg_catalog.pg_constraint AS k ON k.conrelid = o.oid
    LEFT JOIN pg_catalog.pg_class AS f ON f.oid = k.confrelid
    WHERE (k.contype = ANY ('{{p,f,c,x}}') OR (k.contype = 'n' AND NOT k.convalidated))
        -- The server keeps a reference of its own for each partition of what a reference leads to.
        AND (k.conparentid = 0 OR k.confrelid = (
            WITH RECURSIVE parents AS (
                SELECT p.conparentid, p.confrelid FROM pg_catalog.pg_constraint AS p WHERE p.oid = k.conparentid
                UNION ALL
                SELECT p.conparentid, p.confrelid
                    FROM parents JOIN pg_catalog.pg_constraint AS p ON p.oid = parents.conparentid)
            SELECT confrelid FROM parents WHERE conparentid = 0))
UNION ALL
SELECT 'rule', o.relname, json_build_object('kind', x.kind, 'name', x.name,
        'schema', n.nspname, 'table', p.relname)::text
    FROM own AS o CROSS JOIN LATERAL (
        SELECT 'trigger' AS kind, g.tgname::text AS name, NULL::oid AS parent FROM pg_catalog.pg_trigger AS g
            WHERE g.tgrelid = o.oid AND NOT g.tgisinternal AND g.tgenabled <> 'D' AND NOT EXISTS (
                -- Citus passes TRUNCATE on by a trigger of its own.
                SELECT FROM pg_catalog.pg_depend AS d JOIN pg_catalog.pg_extension AS e ON e.oid = d.refobjid
                WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = g.tgfoid AND d.deptype = 'e'
                    AND e.extname = 'citus')
        UNION ALL
        SELECT 'rule', r.rulename::text, NULL FROM pg_catalog.pg_rewrite AS r
            WHERE r.ev_class = o.oid AND r.ev_enabled <> 'D'
        UNION ALL
        SELECT 'policy', p.polname::text, NULL FROM pg_catalog.pg_policy AS p
            WHERE p.polrelid = o.oid AND o.relrowsecurity
        UNION ALL
        SELECT 'row_security', '', NULL WHERE o.relrowsecurity
        UNION ALL
        SELECT 'partitioning', pg_get_partkeydef(o.oid), NULL WHERE o.relkind = 'p'
        UNION ALL
        SELECT CASE WHEN o.relispartition THEN 'partition' ELSE 'inheritance' END,
                concat_ws(' ', 'of', h.inhparent::regclass::text, pg_get_expr(o.relpartbound, o.oid)), h.inhparent
            FROM pg_catalog.pg_inherits AS h WHERE h.inhrelid = o.oid
    ) AS x
    LEFT JOIN pg_catalog.pg_class AS p ON p.oid = x.parent
    LEFT JOIN pg_catalog.pg_namespace AS n ON n.oid = p.relnamespace
"""

_COLLATION = """(SELECT CASE WHEN n.nspname = 'pg_catalog' THEN '' ELSE quote_ident(n.nspname) || '.' END
                    FROM pg_catalog.pg_namespace AS n WHERE n.oid = l.collnamespace) || quote_ident(l.collname)"""
# With its schema where the name alone would mean another one, or none.
_OPCLASS = """CASE WHEN pg_opclass_is_visible(p.oid) THEN '' ELSE (
                        SELECT quote_ident(n.nspname) || '.' FROM pg_catalog.pg_namespace AS n
                        WHERE n.oid = p.opcnamespace) END || quote_ident(p.opcname)"""
_DISABLED = """EXISTS (
            SELECT FROM pg_catalog.pg_trigger AS g WHERE g.tgconstraint = k.oid AND g.tgenabled = ANY ('{D,R}'))"""
_PARAMETERS = """(SELECT array_to_string(a.attoptions, ', ') FROM pg_catalog.pg_attribute AS a
                        WHERE a.attrelid = i.indexrelid AND a.attnum = n)"""


def parameter_status(connection: Any, name: str) -> str | None:
    """Return what the server reported of a setting when the session began, with either driver of Peewee's."""
    get = getattr(connection, "get_parameter_status", None) or connection.info.parameter_status
    status: str | None = get(name)
    return status


_SET_COLUMNS = """(SELECT json_agg(a.attname ORDER BY p.n)
            FROM unnest(k.confdelsetcols) WITH ORDINALITY AS p (num, n)
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = p.num)"""

_ACTIONS = {"r": "RESTRICT", "c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}
Rows = dict[str, list[dict[str, Any]]]


def snapshot_query(namespace: str, version: int) -> str:
    """Return the statement for a server's version; `namespace` is an expression for the schema's oid."""
    return pinned(
        _SNAPSHOT.format(
            namespace=namespace,
            nulls_not_distinct="i.indnullsnotdistinct" if version >= 150000 else "false",
            enforced="k.conenforced" if version >= 180000 else "true",
            set_columns=_SET_COLUMNS if version >= 150000 else "NULL",
            collation=_COLLATION,
            opclass=_OPCLASS,
            disabled=_DISABLED,
            period="k.conperiod" if version >= 180000 else "false",
            parameters=_PARAMETERS if version >= 130000 else "NULL::text",
        )
    )


def texts(db: peewee.PostgresqlDatabase, query: str, params: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield a query's rows of three texts; a database in SQL_ASCII can hold bytes that are not text."""
    if parameter_status(db.connection(), "server_encoding") != "SQL_ASCII":
        yield from execute(db, query, params)
        return
    raw = "pg_catalog.convert_to({}, 'SQL_ASCII')"
    columns = ", ".join(raw.format(name) for name in ("what", "name", "payload"))
    for row in execute(db, f"SELECT {columns} FROM ({query}) AS facts (what, name, payload)", params):
        yield tuple(value if value is None else bytes(value).decode("utf-8", "surrogateescape") for value in row)


def facts(db: peewee.PostgresqlDatabase, query: str, params: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the rows of the query for a snapshot: what each is, of which relation, and its values."""
    rows = list(texts(db, query, params))
    values = json.loads(f"[{','.join(payload or 'null' for _, _, payload in rows)}]")  # one call is quicker
    for (what, name, _), value in zip(rows, values, strict=True):
        yield what, name, value


def read_table(key: Key, value: Mapping[str, Any], rows: Rows, target: Callable[[Mapping[str, Any]], Key]) -> Table:
    """Return a table from its facts; `target` tells which table a foreign key's facts refer to."""
    kinds = {"r": "table", "p": "table", "v": "view", "m": "materialized view", "f": "foreign table"}
    unproved = {c: k["name"] for k in rows["constraint"] if k["type"] == "n" for c in k["columns"]}
    columns = (_column(row, unproved.get(row["name"], "")) for row in _in_order(rows["column"], "position"))
    return Table(
        key,
        kinds[value["kind"]],
        {column.name: column for column in columns},
        tuple(_index(row) for row in _in_order(rows["index"], "oid")),
        tuple(_constraint(row, target) for row in _in_order(rows["constraint"], "oid") if row["type"] != "n"),
        ("UNLOGGED",) if value["unlogged"] else (),
        int(value["rows"]) if value["rows"] >= 0 else None,
        value["kind"] == "p",
        rules=tuple(sorted((row["kind"], row["name"]) for row in rows["rule"])),
        parents=tuple(target(row) for row in rows["rule"] if row["table"]),
    )


def _in_order(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Sort by the order of creation, so that two plans of one schema are equal."""
    return sorted(rows, key=lambda row: int(row[key]))


def _column(row: Mapping[str, Any], unproved: str) -> Column:
    kind = {"s": "STORED", "v": "VIRTUAL"}.get(row["generated"], "")
    return Column(
        row["name"],
        row["type"],
        row["not_null"],
        None if kind else _default(row),
        row["collation"],
        f"{kind} ({row['expression']})" if kind else None,
        _identity(row),
        not unproved,
        unproved,
    )


def _default(row: Mapping[str, Any]) -> str | None:
    """Return a default; NULL is none, except where it stands before the default of a domain."""
    expression: str | None = row["expression"]
    if expression is None or (re.fullmatch(r"NULL(::.*)?", expression, re.DOTALL) and not row["domain"]):
        return None
    if row["sequence"] is None or not expression.startswith("nextval("):
        return expression
    counting = _counting(row)
    return OwnSequence(f"{SERIAL} ({counting})") if counting else SERIAL


def _identity(row: Mapping[str, Any]) -> str | None:
    """Return ALWAYS or BY DEFAULT, and in brackets how its sequence counts where that is not the default."""
    kind = {"a": "ALWAYS", "d": "BY DEFAULT"}.get(row["identity"])
    counting = _counting(row) if kind else ""
    return f"{kind} ({counting})" if counting else kind


def _counting(row: Mapping[str, Any]) -> str:
    """Return how a column's own sequence counts; "" for one that counts from 1 as far as the column's type goes."""
    if row["sequence"] is None:
        return ""
    start, increment, lowest, highest, cycles = row["sequence"]
    largest = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}.get(row["type"], 0) - 1
    if not cycles:  # what the type does not hold ends an INSERT as the end of the sequence does
        highest = min(highest, largest) if largest > 0 else highest
    if (start, increment, lowest, highest, cycles) == (1, 1, 1, largest, False):
        return ""
    limits = f"START {start} INCREMENT {increment} MINVALUE {lowest} MAXVALUE {highest}"
    return limits + (" CYCLE" if cycles else "")


def _index(row: Mapping[str, Any]) -> Index:
    keys = [k for k in row["keys"] if k["key"]]
    ordered = row["method"] == "btree"
    return Index(
        row["name"],
        tuple(_index_key(k, ordered) for k in keys),
        row["unique"],
        row["method"],
        tuple(k["expression"] for k in row["keys"] if not k["key"]),
        row["predicate"],
        row["nulls_not_distinct"],
        " ".join(filter(None, ["UNIQUE" if row["constraint"] else "", _deferrability(row), _disabled(row)])),
        tuple(sorted(row["options"] or ())),
        row["valid"],
    )


def _index_key(key: Mapping[str, Any], ordered: bool) -> IndexKey:
    # indoption: bit 1 is DESC, bit 2 NULLS FIRST, which is DESC's default.
    orders = {0: "", 1: "DESC NULLS LAST", 2: "NULLS FIRST", 3: "DESC"}
    order = orders[key["option"]] if ordered else ""
    opclass = (key["opclass"] or "") + (f" ({key['parameters']})" if key["parameters"] else "")
    return IndexKey(key["expression"], key["collation"] or "", opclass, order, key["column"])


def _disabled(row: Mapping[str, Any]) -> str:
    return "DISABLED" if row["disabled"] else ""  # its triggers are, and so nothing checks it


def _deferrability(row: Mapping[str, Any]) -> str:
    if not row["deferrable"]:
        return ""
    return "DEFERRABLE INITIALLY DEFERRED" if row["deferred"] else "DEFERRABLE"


def _constraint(row: Mapping[str, Any], target: Callable[[Mapping[str, Any]], Key]) -> Constraint:
    columns = tuple(row["columns"] or ())
    if row["type"] == "f":
        return _foreign_key(row, columns, target(row))
    if row["type"] == "p":
        definition = f"{row['definition']} {_disabled(row)}".rstrip()
        valid = row["valid"] and row["index_valid"]
        return Constraint(row["name"], "primary_key", definition, columns, valid, sql=definition)
    definition = f"{row['definition'].removesuffix(' NOT VALID')} {_disabled(row)}".rstrip()
    kind = "check" if row["type"] == "c" else "exclude"
    return Constraint(row["name"], kind, definition, columns, row["valid"] or not row["enforced"], sql=definition)


def _listed(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    *first, last = map(quote, columns)
    return ", ".join([*first, f"PERIOD {last}" if row["period"] else last])


def _foreign_key(row: Mapping[str, Any], columns: tuple[str, ...], target: Key) -> Constraint:
    columns_of_both = (
        f"FOREIGN KEY ({_listed(columns, row)}) REFERENCES {qualified(*target)} ({_listed(row['targets'], row)})"
    )
    parts = [
        "MATCH FULL" if row["match"] == "f" else "",
        f"ON UPDATE {_ACTIONS[row['on_update']]}" if row["on_update"] in _ACTIONS else "",
        f"ON DELETE {_ACTIONS[row['on_delete']]}" if row["on_delete"] in _ACTIONS else "",
        f"({', '.join(map(quote, sorted(row['set_columns'])))})" if row["set_columns"] else "",
        _deferrability(row),
        "" if row["enforced"] else "NOT ENFORCED",
        _disabled(row),
    ]
    tail = " ".join(filter(None, parts))
    definition = f"{columns_of_both} {tail}".rstrip()
    return Constraint(
        row["name"],
        "foreign_key",
        definition,
        columns,
        row["valid"] or not row["enforced"],
        sql=definition,
        references=target,
        referenced_columns=tuple(row["targets"]),
        tail=f"PERIOD {columns[-1]} {tail}" if row["period"] else tail,
    )
