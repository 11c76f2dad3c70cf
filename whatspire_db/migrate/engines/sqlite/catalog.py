"""SQLite: the live schema from the pragmas and sqlite_schema, in one statement."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import peewee

from whatspire_db.errors import ModelError
from whatspire_db.migrate.ddl import execute, quote
from whatspire_db.migrate.schema import Column, Constraint, Index, IndexKey, Key, Schema, Table, folded_ascii

from .table_reader import (
    Reference,
    TableText,
    canonical_arguments,
    canonical_default,
    parse_index,
    parse_table,
    without_comments,
)

# {0} is the schema's name. One row a fact: what it is, of which table, and its values. What a transfer put there is its
# own: a fence is reported as one, and of a change log the table alone, without the triggers of every other table.
_SNAPSHOT = """
WITH t AS (
    SELECT name, type, sql, sql LIKE 'create virtual%' AS virtual
    FROM "{0}".sqlite_master
    WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name != 'whatspire_db_fence'
)
SELECT 'table' AS what, name, type, sql, virtual, NULL, NULL, NULL, NULL FROM t
UNION ALL
SELECT 'name', name, tbl_name, NULL, NULL, NULL, NULL, NULL, NULL FROM "{0}".sqlite_master WHERE type != 'trigger'
UNION ALL
SELECT 'rule', tbl_name, name, NULL, NULL, NULL, NULL, NULL, NULL FROM "{0}".sqlite_master WHERE type = 'trigger'
    AND name NOT GLOB 'whatspire_db_fence_*' AND name NOT GLOB 'whatspire_db_changes_*'
UNION ALL
SELECT 'column', t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk, c.hidden, NULL
    FROM t, pragma_table_xinfo(t.name, '{0}') AS c WHERE t.type = 'table' AND NOT t.virtual
UNION ALL
SELECT 'index', t.name, i.name, i."unique", i.origin, m.sql, i.partial, NULL, NULL
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


def snapshot(db: peewee.SqliteDatabase, schema: str, keys: Collection[Key], known: dict[object, Table]) -> Schema:
    """Return what stands in one file of a connection.

    :param schema: the name that it is attached under; "" is the main one.
    :param known: the tables that were read before, by all that SQLite says of them; what is read is added.
    :raises ModelError: when no file is attached so.
    """
    attached = {folded_ascii(row[1]) for row in execute(db, "PRAGMA database_list")} if schema else {schema}
    if schema not in attached:
        raise ModelError(f"no database is attached as {schema}", "attach it with db.attach(filename, name)")
    rows: dict[str, Rows] = defaultdict(lambda: defaultdict(list))
    written: dict[str, Rows] = {}  # by the name as it is written, for there is a row for each column
    for row in execute(db, _SNAPSHOT.format((schema or "main").replace('"', '""'))):
        table = row[1]
        if table not in written:
            written[table] = rows[folded_ascii(table)]
        written[table][row[0]].append(row[2:])
    tables, others = {}, []
    for name, of_table in rows.items():
        if "table" in of_table and (schema, name) in keys:
            tables[schema, name] = _known_table((schema, name), of_table, partial(_primary_key_of, rows), known)
        elif "table" in of_table and not _is_shadow(name, rows):
            others.append((schema, name))
    names = {(schema, n): folded_ascii(r["name"][0][0]) for n, r in rows.items() if "name" in r}
    return Schema(tables, names, tuple(sorted(others)))


def _is_shadow(name: str, rows: dict[str, Rows]) -> bool:
    """Tell whether a table is a virtual table's own storage, like docs_data of an FTS table docs."""
    owners = (n for n, r in rows.items() if "table" in r and r["table"][0][2])
    return any(name.startswith(owner + "_") for owner in owners)


def _primary_key_of(rows: dict[str, Rows], table: str) -> tuple[str, ...]:
    """Return the columns of a table's primary key; none where it has none, or is not there."""
    return _primary_key(rows[table]) if table in rows else ()


def _known_table(
    key: Key, rows: Rows, primary_key_of: Callable[[str], tuple[str, ...]], known: dict[object, Table]
) -> Table:
    """Return a table from its rows; the declared and the live one mostly have the same rows, which are read once."""
    if any(row[4] is None for row in rows["reference"]):  # it depends on another table, whose key that reference means
        return _table(key, rows, primary_key_of)
    facts = (key, tuple((what, tuple(rows[what])) for what in sorted(rows)))
    if facts not in known:
        known[facts] = _table(key, rows, primary_key_of)
    return known[facts]


def _table(key: Key, rows: Rows, primary_key_of: Callable[[str], tuple[str, ...]]) -> Table:
    """Return a table from its rows of the snapshot."""
    kind, sql, virtual = rows["table"][0][:3]
    if kind == "view" or virtual:
        options = (canonical_arguments(sql),) if virtual else ()
        # The name is the table's own; what the module and its arguments are is what can differ.
        return Table(
            key,
            "view" if kind == "view" else "virtual table",
            options=tuple(o.partition(" using ")[2] for o in options),
        )
    names = [folded_ascii(row[0]) for row in rows["column"]]
    text = parse_table(sql, names)
    alias = _rowid_alias(rows)
    columns = {name: _column(row, text, name == alias) for name, row in zip(names, rows["column"], strict=True)}
    return Table(
        key,
        columns=columns,
        indexes=tuple(_indexes(rows, names)),
        constraints=tuple(_constraints(rows, text, columns, primary_key_of)),
        options=text.options,
        rules=tuple(sorted(("trigger", name) for name, *_ in rows["rule"])),
    )


def _primary_key(rows: Rows) -> tuple[str, ...]:
    return tuple(folded_ascii(row[0]) for row in sorted(rows["column"], key=lambda row: int(row[4])) if row[4])


def _rowid_alias(rows: Rows) -> str | None:
    """Return the column that is the rowid itself, which is never NULL: a primary key without an index of its own."""
    key = _primary_key(rows)
    return key[0] if key and not any(origin == "pk" for _, _, origin, *_ in rows["index"]) else None


def _column(row: tuple[Any, ...], text: TableText, is_rowid: bool) -> Column:
    name, type_, not_null, default, _, hidden = row[:6]
    lower = folded_ascii(name)
    generated = None
    if hidden in (2, 3):
        generated = f"{'VIRTUAL' if hidden == 2 else 'STORED'} ({text.generated.get(lower, '')})"
        type_ = re.sub(r"\s*generated always$", "", type_, flags=re.IGNORECASE)
    type_ = without_comments(type_)
    collation = text.collations.get(lower)
    return Column(
        lower,
        type_.lower() if type_.isalnum() else re.sub(r"\s*([(,)])\s*", r"\1", " ".join(type_.lower().split())),
        bool(not_null) or is_rowid,
        canonical_default(default),
        None if collation == "binary" else collation,
        generated,
    )


def _keys(rows: Rows, index: str) -> list[tuple[Any, ...]]:
    return sorted((row for row in rows["key"] if row[0] == index), key=lambda row: int(row[1]))


def _indexes(rows: Rows, columns: Sequence[str]) -> Iterator[Index]:
    for name, unique, origin, sql, is_partial, *_ in rows["index"]:
        if origin == "pk":
            continue
        keys = _keys(rows, name)
        has_text = sql and (is_partial or any(row[2] == -2 for row in keys))
        collations = [folded_ascii(row[5]) for row in keys]
        expressions, predicate = parse_index(sql, columns, collations) if has_text else ([], None)
        found = [_index_key(row, expressions) for row in keys]
        own_name = "" if sql is None else folded_ascii(name)  # SQLite numbers the index of a UNIQUE constraint
        yield Index(own_name, tuple(found), bool(unique), predicate=predicate)


def _index_key(row: tuple[Any, ...], expressions: list[str]) -> IndexKey:
    _, position, cid, name, descending, collation = row[:6]
    column = None if cid == -2 else folded_ascii(name or "rowid")
    return IndexKey(
        column or expressions[position],
        "" if folded_ascii(collation) == "binary" else folded_ascii(collation),
        order="DESC" if descending else "",
        column=column,
    )


def _constraints(
    rows: Rows, text: TableText, columns: dict[str, Column], primary_key_of: Callable[[str], tuple[str, ...]]
) -> Iterator[Constraint]:
    if key := _primary_key(rows):
        shown = ", ".join(_shown_keys(rows, key, columns))
        yield Constraint("", "primary_key", f"PRIMARY KEY ({shown})", key)
    for check in text.checks:
        used = tuple(c for c in columns if c in check.words)
        yield Constraint(check.name, "check", f"CHECK ({check.expression})", used, sql=check.sql, inline=check.inline)
    references: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in rows["reference"]:
        references[row[0]].append(row)
    # The pragma lists the references from the last that is written to the first.
    for written, number in zip(text.references, sorted(references, reverse=True), strict=True):
        parts = sorted(references[number], key=lambda row: int(row[1]))
        yield _reference(parts, written, primary_key_of)


def _shown_keys(rows: Rows, key: tuple[str, ...], columns: dict[str, Column]) -> Iterator[str]:
    """Yield the columns of a primary key, each with its order and its collation where that is not the column's."""
    name = next((row[0] for row in rows["index"] if row[2] == "pk"), None)
    if name is None:
        yield from key
        return
    for _, _, _, column, descending, collation, *_ in _keys(rows, name):
        usual = columns[folded_ascii(column)].collation or "binary"
        other = f"COLLATE {folded_ascii(collation)}" if folded_ascii(collation) != usual else ""
        yield " ".join(filter(None, [folded_ascii(column), other, "DESC" if descending else ""]))


def _reference(
    parts: list[tuple[Any, ...]], written: Reference, primary_key_of: Callable[[str], tuple[str, ...]]
) -> Constraint:
    _, _, table, _, _, on_update, on_delete = parts[0]
    columns = tuple(folded_ascii(part[3]) for part in parts)
    # REFERENCES p means the primary key of p.
    targets = tuple(folded_ascii(part[4]) for part in parts if part[4]) or primary_key_of(folded_ascii(table))
    actions = [
        f"ON {event} {action}"
        for event, action in (("DELETE", on_delete), ("UPDATE", on_update))
        if action != "NO ACTION"
    ]
    tail = " ".join(filter(None, [*actions, written.deferrable]))
    listed = f" ({', '.join(map(quote, targets))})" if targets else ""
    plain = f" ({', '.join(targets)})" if targets else ""
    clause = " ".join(filter(None, [f"REFERENCES {quote(table)}{listed}", tail]))
    definition = " ".join(
        filter(None, [f"FOREIGN KEY ({', '.join(columns)}) REFERENCES {folded_ascii(table)}{plain}", tail])
    )
    return Constraint(
        written.name,
        "foreign_key",
        definition,
        columns,
        sql=clause,
        references=("", folded_ascii(table)),
        referenced_columns=targets,
        tail=tail,
    )
