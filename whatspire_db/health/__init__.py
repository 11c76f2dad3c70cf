"""Whether a database can be used, and how it stands; changes nothing."""

from .check import check_health
from .values import Health, PostgresServer, SqliteFile

__all__ = ["Health", "PostgresServer", "SqliteFile", "check_health"]
