"""PostgreSQL with Citus: which node this is, where its cluster keeps each table's rows, and what it would refuse."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import peewee

from whatspire_db.errors import WhatspireDBError, WrongNode
from whatspire_db.light_stdlib import TYPE_CHECKING, dataclass
from whatspire_db.migrate.ddl import execute
from whatspire_db.migrate.placements import Placements
from whatspire_db.migrate.schema import Column, Constraint, Key, label
from whatspire_db.sql import pinned

if TYPE_CHECKING:
    from typing import Literal

    Kind = Literal["distributed", "single", "reference", "local"]

EXTENSION = "citus"
# Of a node without any node in its catalog nobody knows whether it is a coordinator: it may be all there is.
_NODE = pinned("""
SELECT citus_is_coordinator(), (SELECT count(*) FROM pg_dist_node),
    (SELECT concat_ws(':', nodename, nodeport) FROM pg_dist_node WHERE groupid = 0
        ORDER BY noderole::text = 'primary' DESC LIMIT 1)
""")
_KNOWS_GROUP = pinned("SELECT to_regclass('pg_catalog.pg_dist_local_group') IS NOT NULL")
_GROUP = pinned("SELECT groupid FROM pg_dist_local_group")
_IS_THERE = pinned("SELECT count(*) FROM pg_extension WHERE extname = 'citus'")
# https://docs.citusdata.com/en/stable/develop/api_metadata.html: partmethod h is hash, a append, r range, n none; of
# the last repmodel t is a reference table's, and those with a colocation belong to a distributed schema.
_PLACEMENTS = pinned("""
SELECT n.nspname::text, c.relname::text, p.partmethod::text, p.repmodel::text, p.colocationid,
    CASE WHEN p.partmethod::text <> 'n' THEN column_to_column_name(p.logicalrelid, p.partkey) END
FROM pg_dist_partition AS p JOIN pg_class AS c ON c.oid = p.logicalrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
""")

# set_config() reaches no worker. The first has what SET LOCAL sets afterwards go along with each statement, for
# without its lock_timeout a shard would be waited for without an end; the limits of roles there are for others.
PROPAGATED = (
    "SET LOCAL citus.propagate_set_commands = 'local'",
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL idle_in_transaction_session_timeout = 0",
)
# After shards were changed side by side, Citus takes no change of a reference table in the same transaction.
ONE_BY_ONE = "SET LOCAL citus.multi_shard_modify_mode = 'sequential'"

_ON_UPDATE = re.compile(r"\bON UPDATE (CASCADE|SET NULL|SET DEFAULT)\b")
_ON_DELETE = re.compile(r"\bON DELETE (SET NULL|SET DEFAULT)\b")
_IN_WORDS = {
    "single": "belongs to a distributed schema",
    "reference": "is a reference table",
    "local": "is kept on the coordinator alone",
}
_LOCAL_WORDS = _IN_WORDS["local"]


def settings(db: peewee.PostgresqlDatabase, *, at_once: bool) -> tuple[str, ...]:
    """Return the statements that a transaction begins with which waits for locks; none on a single server.

    :param at_once: the transaction changes several tables.
    """
    if not execute(db, _IS_THERE).fetchone()[0]:
        return ()
    return (*PROPAGATED, ONE_BY_ONE) if at_once else PROPAGATED


def elsewhere(db: peewee.PostgresqlDatabase) -> WrongNode | None:
    """Return that this node is a worker, and where the coordinator is; None on the coordinator."""
    is_coordinator, nodes, coordinator = execute(db, _NODE).fetchone()
    if is_coordinator or not nodes:
        return None
    if execute(db, _KNOWS_GROUP).fetchone()[0] and execute(db, _GROUP).fetchone() == (0,):
        return None  # a coordinator none of whose nodes is active
    where = coordinator or "which no node of pg_dist_node is: see citus_set_coordinator_host() there"
    return WrongNode(
        "this node is a worker of a Citus cluster, whose schema is changed and compared on the coordinator alone",
        f"connect to the coordinator, {where}: WHATSAPP_DATABASE_DSN or --dsn names the host and the port",
    )


@dataclass(frozen=True)
class Placement:
    """Where a table's rows are: divided by a column, all on one of the nodes, on each node, or on the coordinator.

    `group` is equal for tables whose equal values are on one node.
    """

    kind: Kind
    column: str | None
    group: int

    @property
    def is_spread(self) -> bool:
        return self.kind in ("distributed", "single")

    def __str__(self) -> str:
        return f"is distributed by {self.column}" if self.kind == "distributed" else _IN_WORDS[self.kind]


def placements(db: peewee.PostgresqlDatabase, key_of: Callable[[str, str], Key]) -> CitusPlacements:
    """Return where the cluster keeps the rows of the tables that it knows.

    :param key_of: returns the key of a schema and a table.
    """
    rows = execute(db, _PLACEMENTS).fetchall()
    return CitusPlacements({key_of(schema, name): _placement(*facts) for schema, name, *facts in rows})


def _placement(method: str, model: str, group: int, column: str | None) -> Placement:
    if method != "n":
        return Placement("distributed", column, group)
    return Placement("reference" if model == "t" else "single" if group else "local", None, group)


@dataclass(frozen=True)
class CitusPlacements(Placements):
    """What Citus refuses on the tables of a cluster; those that it does not know are plain ones of the coordinator."""

    tables: Mapping[Key, Placement]

    def refuses_column(self, key: Key, column: Column) -> WhatspireDBError | None:
        found = self.tables.get(key)
        if found is None or not (column.is_serial or column.identity):
            return None
        return WhatspireDBError(
            f"Citus adds no column with a sequence to {label(key)}, which {found}",
            "add it without the sequence (null=True, no default), and fill it in a data migration",
        )

    def refuses_unique(self, key: Key, columns: Sequence[str]) -> WhatspireDBError | None:
        found = self.tables.get(key)
        if found is None or found.column is None or found.column in columns:
            return None
        return WhatspireDBError(
            f"Citus takes no unique key of {label(key)}, which {found}, without that column",
            f"add {found.column} to its columns, or declare it without UNIQUE; a small table can be a reference table: "
            + f"SELECT undistribute_table('{label(key)}'); SELECT create_reference_table('{label(key)}')",
        )

    def refuses_unique_of_index(self, key: Key) -> WhatspireDBError | None:
        found = self.tables.get(key)
        if found is None:
            return None
        return WhatspireDBError(
            f"Citus makes no constraint of an index of {label(key)}, which {found}",
            "declare a unique index instead of the constraint, as Meta.indexes does, or add it by hand in a quiet hour",
        )

    def refuses_reference(self, key: Key, constraint: Constraint) -> WhatspireDBError | None:
        if constraint.references is None:
            return None
        source, target = self.tables.get(key), self.tables.get(constraint.references)
        if source is None or not source.is_spread:
            return self._from_one_place(key, constraint.references, target)
        if target is None or target.kind == "local":
            return _refused(
                f"{label(key)} {source}, and {label(constraint.references)} {_LOCAL_WORDS}",
                f"SELECT create_reference_table('{label(constraint.references)}'), or distribute it by the same column",
            )
        return _refuses_action(key, source, constraint) or _refuses_pair(key, source, target, constraint)

    def _from_one_place(self, key: Key, target_key: Key, target: Placement | None) -> WhatspireDBError | None:
        """Return why a table that is not spread cannot refer to one that is."""
        if target is None or not target.is_spread:
            return None
        source = self.tables.get(key)
        return _refused(
            f"{label(key)} {source or _LOCAL_WORDS}, and {label(target_key)} {target}",
            f"distribute {label(key)} by the column that refers to it, or leave the foreign key out",
        )

    def notes(self, concerned: Collection[Key], new: Collection[Key]) -> tuple[str, ...]:
        known = [(key, self.tables[key]) for key in concerned if key in self.tables]
        spread = [f"{label(key)} {found}" for key, found in known if found.is_spread]
        copied = [label(key) for key, found in known if found.kind == "reference"]
        lines = []
        if spread:
            lines.append(
                f"{', '.join(spread)}: what is done there is done on all shards, in a transaction of all nodes"
            )
        if copied:
            tables = "is a reference table" if len(copied) == 1 else "are reference tables"
            lines.append(f"{', '.join(copied)} {tables}: what is done there is done on every node")
        if new:
            stands = "stands" if len(new) == 1 else "stand"
            lines.append(
                f"{', '.join(map(label, new))} {stands} on the coordinator alone until you call "
                "create_distributed_table() or create_reference_table()"
            )
        return tuple(lines)


def _refuses_action(key: Key, source: Placement, constraint: Constraint) -> WhatspireDBError | None:
    """Return which action would change the column that says where a row is."""
    if source.column not in constraint.columns:
        return None
    found = _ON_UPDATE.search(constraint.definition) or _ON_DELETE.search(constraint.definition)
    if found is None:
        return None
    return _refused(f"{found[0]} would change {source.column}, by which {label(key)} is distributed", "leave it out")


def _refuses_pair(key: Key, source: Placement, target: Placement, constraint: Constraint) -> WhatspireDBError | None:
    """Return why rows of two spread tables that belong together are not on one node."""
    assert constraint.references is not None
    other = label(constraint.references)
    if target.kind == "reference":
        return None
    if source.group != target.group:
        fact = f"{label(key)} {source} and {other} {target}, which are not colocated"
        return _refused(fact, f"SELECT create_reference_table('{other}'), or distribute both alike: colocate_with")
    pairs = list(zip(constraint.columns, constraint.referenced_columns, strict=False))
    if source.kind == "single" or any(pair == (source.column, target.column) for pair in pairs):
        return None
    return _refused(
        f"{label(key)} {source} and {other} {target}, and the foreign key does not pair these columns",
        f"let it contain both: FOREIGN KEY ({source.column}, ...) REFERENCES {other} ({target.column}, ...)",
    )


def _refused(why: str, hint: str) -> WhatspireDBError:
    return WhatspireDBError(f"Citus takes no such foreign key: {why}", hint)
