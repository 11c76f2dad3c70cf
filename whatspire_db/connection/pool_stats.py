"""The figures of a pool."""

from __future__ import annotations

from ..light_stdlib import NamedTuple


class PoolStats(NamedTuple):
    """The figures of Go's sql.DBStats."""

    max_open_connections: int  # 0: no limit
    open_connections: int  # in use and idle, those that are just being opened included
    in_use: int
    idle: int
    wait_count: int  # how often somebody waited for a connection
    wait_duration: float  # seconds, of all who waited together
    max_idle_closed: int  # closed because MAX_IDLE_CONNS were idle already
    max_lifetime_closed: int  # closed because of CONN_MAX_LIFETIME
