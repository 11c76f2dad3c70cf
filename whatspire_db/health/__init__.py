"""Whether a database can be used, and how it stands; changes nothing."""

from .check import check_health
from .values import Cluster, Health, PostgresServer, SqliteFile

__all__ = ["Cluster", "Health", "PostgresServer", "SqliteFile", "check_health"]
