"""What a health check says of a PostgreSQL database: its server's limits, and who is connected."""

from __future__ import annotations

import json
from dataclasses import replace

import peewee

from whatspire_db.sql import pinned

from ..values import Health, PostgresServer
from . import citus

# Other roles' sessions hide their backend_type from a plain one, but neither their user nor their database.
_FIGURES = pinned("""
WITH clients AS (
    SELECT coalesce(application_name, '') AS name, count(*) AS number FROM pg_catalog.pg_stat_activity
    WHERE backend_type = 'client backend' OR backend_type IS NULL AND usesysid IS NOT NULL AND datid IS NOT NULL
    GROUP BY 1
)
SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('max_connections')::int,
    current_setting('superuser_reserved_connections')::int,
    coalesce(current_setting('reserved_connections', true), '0')::int,
    (SELECT json_object_agg(name, number ORDER BY number DESC, name)::text FROM clients),
    (SELECT count(*) > 0 FROM pg_extension WHERE extname = 'citus')
""")


def unopened(health: Health, db: peewee.Database) -> Health:
    """Add nothing: before a connection is open, nothing is known of a server."""
    return health


def reached(health: Health, db: peewee.Database) -> Health:
    """Add the server's figures; to have its answer is to have reached it."""
    version, in_recovery, most, superuser, reserved, text, is_node = db.execute_sql(_FIGURES).fetchone()
    clients = json.loads(text or "{}")
    nodes = citus.cluster(db) if is_node else None
    server = PostgresServer(in_recovery, most, superuser, reserved, sum(clients.values()), clients, nodes)
    return replace(health, reachable=True, server_version=version.partition(" ")[0], server=server)


def is_kept_open(health: Health) -> bool:
    """Return False: a server keeps a database without a connection."""
    return False


def quick_checked(health: Health, db: peewee.Database) -> Health:
    """Add nothing: a server has no such check."""
    return health
