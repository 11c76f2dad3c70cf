"""SQLite: the live schema from the pragmas and sqlite_schema, in one statement."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import peewee

from whatspire_db.errors import ModelError
from whatspire_db.migrate.ddl import execute, quote
from whatspire_db.migrate.schema import Column, Constraint, Index, IndexKey, Key, Schema, Table

from .table_reader import TableText, canonical, canonical_default, parse_index, parse_table

# {0} is the schema's name. One row a fact: what it is, of which table, and its values.
_SNAPSHOT = """
WITH t AS (
    SELECT name, type, sql, sql LIKE 'create virtual%' AS virtual
    FROM "{0}".sqlite_master
    WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
)
SELECT 'table' AS what, name, type, sql, virtual, NULL, NULL, NULL, NULL FROM t
UNION ALL
SELECT 'name', name, tbl_name, NULL, NULL, NULL, NULL, NULL, NULL FROM "{0}".sqlite_master
UNION ALL
SELECT 'column', t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk, c.hidden, NULL
    FROM t, pragma_table_xinfo(t.name, '{0}') AS c WHERE t.type = 'table' AND NOT t.virtual
UNION ALL
SELECT 'index', t.name, i.name, i."unique", i.origin, m.sql, NULL, NULL, NULL
    FROM t, pragma_index_list(t.name, '{0}') AS i
    LEFT JOIN "{0}".sqlite_master AS m ON m.type = 'index' AND m.name = i.name
    WHERE t.type = 'table' AND NOT t.virtual
UNION ALL
SELECT 'key', t.name, i.name, k.seqno, k.cid, k.name, k."desc", k.coll, NULL
    FROM t, pragma_index_list(t.name, '{0}') AS i, pragma_index_xinfo(i.name, '{0}') AS k
    WHERE t.type = 'table' AND NOT t.virtual AND k.key
UNION ALL
SELECT 'reference', t.name, f.id, f.seq, f."table", f."from", f."to", f.on_update, f.on_delete
    FROM t, pragma_foreign_key_list(t.name, '{0}') AS f WHERE t.type = 'table' AND NOT t.virtual
"""

Rows = dict[str, list[tuple[Any, ...]]]


def snapshot(db: peewee.SqliteDatabase, schema: str, keys: Collection[Key]) -> Schema:
    """Return what stands in one file of a connection.

    :param schema: the name that it is attached under; "" is the main one.
    :raises ModelError: when no file is attached so.
    """
    attached = {row[1].lower() for row in execute(db, "PRAGMA database_list")} if schema else {schema}
    if schema not in attached:
        raise ModelError(f"no database is attached as {schema}", "attach it with db.attach(filename, name)")
    rows: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
    for what, table, *values in execute(db, _SNAPSHOT.format((schema or "main").replace('"', '""'))):
        rows[table.lower()][what].append(tuple(values))
    tables, others = {}, []
    for name, of_table in rows.items():
        if "table" in of_table and (schema, name) in keys:
            tables[schema, name] = _table((schema, name), of_table)
        elif "table" in of_table and not _is_shadow(name, rows):
            others.append((schema, name))
    names = {(schema, n): r["name"][0][0].lower() for n, r in rows.items() if "name" in r}
    return Schema(tables, names, tuple(sorted(others)))


def _is_shadow(name: str, rows: dict[str, Rows]) -> bool:
    """Tell whether a table is a virtual table's own storage, like docs_data of an FTS table docs."""
    owners = (n for n, r in rows.items() if "table" in r and r["table"][0][2])
    return any(name.startswith(owner + "_") for owner in owners)


def _table(key: Key, rows: Rows) -> Table:
    """Return a table from its rows of the snapshot."""
    kind, sql, virtual = rows["table"][0][:3]
    if kind == "view" or virtual:
        options = (canonical(sql) or "",) if virtual else ()
        # The name is the table's own; what the module and its arguments are is what can differ.
        return Table(
            key,
            "view" if kind == "view" else "virtual table",
            options=tuple(o.partition(" using ")[2] for o in options),
        )
    text = parse_table(sql)
    columns = {row[0].lower(): _column(row, text) for row in rows["column"]}
    return Table(
        key,
        columns=columns,
        indexes=tuple(_indexes(rows)),
        constraints=tuple(_constraints(rows, text, columns)),
        options=text.options,
    )


def _column(row: tuple[Any, ...], text: TableText) -> Column:
    name, type_, not_null, default, _, hidden = row[:6]
    lower = name.lower()
    generated = None
    if hidden in (2, 3):
        generated = f"{'VIRTUAL' if hidden == 2 else 'STORED'} ({text.generated.get(lower, '')})"
        type_ = re.sub(r"\s*generated always$", "", type_, flags=re.IGNORECASE)
    collation = text.collations.get(lower)
    return Column(
        lower,
        re.sub(r"\s*([(,)])\s*", r"\1", " ".join(type_.lower().split())),
        bool(not_null),
        canonical_default(default),
        None if collation == "binary" else collation,
        generated,
    )


def _indexes(rows: Rows) -> Iterator[Index]:
    keys: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows["key"]:
        keys[row[0]].append(row)
    for name, unique, origin, sql, *_ in rows["index"]:
        if origin == "pk":
            continue
        expressions, predicate = parse_index(sql) if sql else ([], None)
        found = [_index_key(row, expressions) for row in sorted(keys[name], key=lambda row: int(row[1]))]
        own_name = "" if sql is None else name.lower()  # SQLite numbers the index of a UNIQUE constraint
        yield Index(own_name, tuple(found), bool(unique), predicate=predicate)


def _index_key(row: tuple[Any, ...], expressions: list[str]) -> IndexKey:
    _, position, cid, name, descending, collation = row[:6]
    column = None if cid == -2 else (name or "rowid").lower()
    return IndexKey(
        column or expressions[position],
        "" if collation.lower() == "binary" else collation.lower(),
        order="DESC" if descending else "",
        column=column,
    )


def _constraints(rows: Rows, text: TableText, columns: dict[str, Column]) -> Iterator[Constraint]:
    key = [row[0].lower() for row in sorted(rows["column"], key=lambda row: int(row[4])) if row[4]]
    if key:
        yield Constraint("", "primary_key", f"PRIMARY KEY ({', '.join(key)})", tuple(key))
    for check in text.checks:
        used = tuple(c for c in columns if c in check.words)
        yield Constraint(check.name, "check", f"CHECK ({check.expression})", used, sql=check.sql, inline=check.inline)
    references: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows["reference"]:
        references[row[0]].append(row)
    for parts in references.values():
        yield _reference(sorted(parts, key=lambda row: int(row[1])), text)


def _reference(parts: list[tuple[Any, ...]], text: TableText) -> Constraint:
    _, _, table, _, _, on_update, on_delete = parts[0]
    columns = tuple(part[3].lower() for part in parts)
    targets = tuple(part[4].lower() for part in parts if part[4])
    written = next((r for r in text.references if r.columns == columns), None)
    actions = [
        f"ON {event} {action}"
        for event, action in (("DELETE", on_delete), ("UPDATE", on_update))
        if action != "NO ACTION"
    ]
    tail = [*actions, written.deferrable if written else ""]
    listed = f" ({', '.join(map(quote, targets))})" if targets else ""
    plain = f" ({', '.join(targets)})" if targets else ""
    clause = " ".join(filter(None, [f"REFERENCES {quote(table)}{listed}", *tail]))
    definition = " ".join(
        filter(None, [f"FOREIGN KEY ({', '.join(columns)}) REFERENCES {table.lower()}{plain}", *tail])
    )
    return Constraint(
        written.name if written else "",
        "foreign_key",
        definition,
        columns,
        sql=clause,
        references=("", table.lower()),
        referenced_columns=targets,
    )
