"""PostgreSQL with Citus: the tables whose rows are on several nodes, so that no dump of them is of one moment."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from whatspire_db.backup.manifest import Content
from whatspire_db.errors import BackupTorn

from .server import Session

logger = logging.getLogger("whatspire_db.backup")

_IS_THERE = "SELECT count(*) > 0 FROM pg_catalog.pg_extension WHERE extname = 'citus'"
# A table of partmethod n is on one node, unless its repmodel t says that it is a reference table, or its colocation
# that it belongs to a distributed schema.
_DISTRIBUTED = """
SELECT format('%I.%I', n.nspname, c.relname),
    CASE WHEN c.relispartition THEN '' WHEN p.partmethod::text <> 'n' THEN pg_catalog.column_to_column_name(
        p.logicalrelid, p.partkey) WHEN p.repmodel::text <> 't' THEN '' END
FROM pg_catalog.pg_dist_partition AS p JOIN pg_catalog.pg_class AS c ON c.oid = p.logicalrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE p.partmethod::text <> 'n' OR p.repmodel::text = 't' OR p.colocationid <> 0 ORDER BY 1
"""
SHOWN = 3  # tables in a message


def distributed_in(reading: Session) -> dict[str, str | None]:
    """Return the distributed tables and the column that each is distributed by.

    It is None for a reference table, and empty for what another table or a schema is distributed with.
    """
    return dict(reading.rows(_DISTRIBUTED)) if reading.value(_IS_THERE) else {}


def require_of_one_moment(distributed: Mapping[str, str | None], accept_torn: bool) -> None:
    """Refuse a dump whose tables would be of different moments.

    :raises BackupTorn: when they would, unless `accept_torn`.
    """
    if not distributed:
        return
    tables = _listed(distributed)
    if accept_torn:
        logger.warning("this backup is torn: the rows of %s were read from several nodes, not of one moment", tables)
        return
    raise BackupTorn(
        f"Citus keeps the rows of {tables} on several nodes, and no dump of them is of one moment",
        "make a base backup of each node (pg_basebackup, or your provider's); or take what there is with "
        "python -m whatspire_db.backup create --accept-torn",
    )


def warn_of_lost_distribution(content: Content) -> None:
    """Say after a restore that the tables of a cluster are plain ones now, and how to distribute them again."""
    if not content.distributed:
        return
    calls = [_call(name, column) for name, column in content.distributed.items()]
    logger.warning(
        "%s: plain tables of this node now, whose rows were not of one moment and were not compared: the distribution "
        "is lost. Add the nodes with citus_add_node(), then run: %s",
        _listed(content.distributed),
        " ".join(f"SELECT {call};" for call in filter(None, calls)),
    )


def _call(name: str, column: str | None) -> str:
    if column is None:
        return f"create_reference_table({_literal(name)})"
    return f"create_distributed_table({_literal(name)}, {_literal(column)})" if column else ""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _listed(names: Mapping[str, str | None]) -> str:
    first, more = list(names)[:SHOWN], len(names) - SHOWN
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")
