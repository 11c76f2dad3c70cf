"""PostgreSQL: an index on a large partitioned table, built partition by partition so that nobody waits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from whatspire_db.errors import ModelError
from whatspire_db.light_stdlib import TYPE_CHECKING
from whatspire_db.migrate.ddl import execute, index_named, index_on, qualified
from whatspire_db.migrate.schema import Index, Key
from whatspire_db.sql import pinned

from ..base import IndexPart
from . import NAME_BYTES, online

if TYPE_CHECKING:
    from .engine import PostgresEngine

# Parameter: the quoted table. One row a table of the tree, the parents first: its schema and name, its parent's, if
# it is partitioned itself, and its key's columns, NULL for an expression.
_TREE = pinned("""
SELECT n.nspname, c.relname, t.parentrelid::regclass::text, NOT t.isleaf, t.relid::regclass::text, (
        SELECT json_agg(a.attname ORDER BY k.n)
        FROM pg_partitioned_table AS p
        CROSS JOIN LATERAL unnest(p.partattrs) WITH ORDINALITY AS k (num, n)
        LEFT JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = k.num AND k.num <> 0
        WHERE p.partrelid = t.relid)
FROM pg_partition_tree(to_regclass(%s)) AS t
JOIN pg_class AS c ON c.oid = t.relid JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.level, n.nspname, c.relname
""")
# Parameter: quoted indexes. One row an index that is there: that text, its table, whether it is valid, and if it is
# attached to another.
_THERE = pinned("""
SELECT t, i.indrelid::regclass::text, i.indisvalid, EXISTS (
        SELECT FROM pg_inherits AS h WHERE h.inhrelid = i.indexrelid)
FROM unnest(%s::text[]) AS t JOIN pg_index AS i ON i.indexrelid = to_regclass(t)
""")


@dataclass(frozen=True)
class Node:
    """A table of a tree of partitions; `parent` is the text of its parent's name, None for the root."""

    key: Key
    text: str
    parent: str | None
    is_partitioned: bool
    columns: tuple[str | None, ...]  # of its partition key; None is an expression


@dataclass(frozen=True)
class There:
    """An existing index that already has the name of one to be built."""

    table: str
    is_valid: bool
    is_attached: bool


def tree(engine: PostgresEngine, key: Key) -> list[Node]:
    """Return a partitioned table and all partitions below it, each after its parent."""
    rows = execute(engine.db, _TREE, [qualified(key[0] or engine.default_schema, key[1])]).fetchall()
    return [Node((row[0], row[1]), row[4], row[2], row[3], tuple(row[5] or ())) for row in rows]


def lacking_key(engine: PostgresEngine, key: Key, columns: Sequence[str]) -> str | None:
    """Return what of a partition key some columns lack; None where they have all of it."""
    for node in tree(engine, key):
        for column in node.columns if node.is_partitioned else ():
            if column is None:
                return f"the expression that {node.text} is partitioned by"
            if column not in columns:
                return f"{column}, which {node.text} is partitioned by"
    return None


def build_parts(
    engine: PostgresEngine, key: Key, index: Index, index_sql: str, known: Mapping[Key, str]
) -> list[IndexPart]:
    """Return the steps that give a partitioned table an index, from where an earlier run was broken off.

    https://www.postgresql.org/docs/current/ddl-partitioning.html, 5.12.2.2: the index ON ONLY the table, which is
    INVALID at first; CONCURRENTLY on each partition; ATTACH each, with the last of which it becomes valid.
    """
    nodes = tree(engine, key)
    names = {node.text: known.get(_key(engine, node.key)) or _name(node, nodes[0], index) for node in nodes}
    places = {node.text: qualified(node.key[0], names[node.text]) for node in nodes}
    rows = execute(engine.db, _THERE, [list(places.values())]).fetchall()
    found = {place: There(*facts) for place, *facts in rows}
    steps: list[IndexPart] = []
    for node in nodes:
        there = found.get(places[node.text])
        if there is not None and there.table != node.text:
            raise ModelError(f"the name {places[node.text]} is taken by an index of {there.table}", "rename that index")
        steps += _made(node, names[node.text], places[node.text], index_sql, there)
    for node in reversed(nodes[1:]):
        there = found.get(places[node.text])
        if there is None or not there.is_attached:
            parent = next(other for other in nodes if other.text == node.parent)
            sql = f"ALTER INDEX {places[parent.text]} ATTACH PARTITION {places[node.text]}"
            locked = qualified(*node.key)
            steps.append(IndexPart("attach_index", parent.key, names[parent.text], (sql,), locked=locked))
    return [replace(part, table=_key(engine, part.table)) for part in steps]


def _key(engine: PostgresEngine, key: Key) -> Key:
    return ("" if key[0] == engine.default_schema else key[0], key[1])


def _made(node: Node, name: str, place: str, index_sql: str, there: There | None) -> Iterator[IndexPart]:
    table, named = qualified(*node.key), index_named(index_sql, name)
    if node.is_partitioned:
        if there is None:
            yield IndexPart("create_index", node.key, name, (index_on(named, f"ONLY {table}"),), locked=table)
        return
    if there is not None and there.is_valid:
        return
    if there is not None and there.is_attached:  # it cannot be dropped
        yield IndexPart("create_index", node.key, name, (f"REINDEX INDEX CONCURRENTLY {place}",))
        return
    statements = online.build_statements(index_on(named, table), place if there else None)
    yield IndexPart("create_index", node.key, name, tuple(statements), builds=place)


def _name(node: Node, root: Node, index: Index) -> str:
    """Return what the index of a partition is called: like the root's, which tells the next run that it is ours."""
    if node is root:
        return index.name
    name, table = node.key[1], root.key[1]
    rest = index.name.removeprefix(table) if index.name.startswith(table) else f"_{index.name}"
    full = name + rest
    if len(full.encode()) <= NAME_BYTES:
        return full
    digest = hashlib.sha256(full.encode()).hexdigest()[:8]
    return full.encode()[: NAME_BYTES - 9].decode(errors="ignore") + "_" + digest
