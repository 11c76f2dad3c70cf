"""The part of a health check for a node of a Citus cluster: its role, and which nodes are inactive."""

from __future__ import annotations

import peewee

from whatspire_db.sql import pinned

from ..values import Cluster

_NODES = pinned("""
SELECT concat_ws(':', nodename, nodeport), groupid, isactive, citus_is_coordinator()
FROM pg_dist_node ORDER BY groupid, nodeid
""")


def cluster(db: peewee.Database) -> Cluster:
    """Return the nodes of the cluster as this one knows them; one that knows no active node is a coordinator."""
    rows = db.execute_sql(_NODES).fetchall()
    return Cluster(
        is_coordinator=all(is_coordinator or not is_active for _, _, is_active, is_coordinator in rows),
        coordinator=next((node for node, group, *_ in rows if group == 0), None),
        nodes=len(rows),
        inactive=tuple(node for node, _, is_active, _ in rows if not is_active),
    )
