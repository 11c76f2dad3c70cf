"""An embedded database toolkit on Peewee: connections, the Whatspire tables, and a migrator that never drops."""

import sys

if sys.argv[:1] == ["-m"]:  # perhaps a command of ours; first, for the import of all else takes a while
    from .cli import starting as starting

from .connection.connecting import connect
from .errors import (
    ConfigError,
    ConnectionFailed,
    DatabaseMoved,
    DataMigrationFailed,
    LockTimeout,
    MigrationRefused,
    ModelError,
    NotConnected,
    NotProved,
    PoolTimeout,
    RightMissing,
    StepFailed,
    TransactionError,
    TransferRefused,
    UndoRefused,
    ValueRefused,
    VerificationFailed,
    WhatspireDBError,
    WrongNode,
)
from .light_stdlib import TYPE_CHECKING, Any
from .models.base import BaseModel
from .models.queries import readable
from .settings import Settings

if TYPE_CHECKING:
    from .bulk import bulk_insert
    from .connection.pool_stats import PoolStats
    from .migrate import MigrationRunner
    from .models.data_migrations import data_migration
    from .models.service import (
        ApiKey,
        AuditLog,
        Event,
        MigrationVersion,
        Presence,
        Reaction,
        Receipt,
        Session,
        WebhookConfig,
    )
    from .vectors.field import VectorField
    from .vectors.nearest import nearest

__version__ = "0.1.0"

__all__ = [
    "ApiKey",
    "AuditLog",
    "BaseModel",
    "ConfigError",
    "ConnectionFailed",
    "DataMigrationFailed",
    "DatabaseMoved",
    "Event",
    "LockTimeout",
    "MigrationRefused",
    "MigrationRunner",
    "MigrationVersion",
    "ModelError",
    "NotConnected",
    "NotProved",
    "PoolStats",
    "PoolTimeout",
    "Presence",
    "Reaction",
    "Receipt",
    "RightMissing",
    "Session",
    "Settings",
    "StepFailed",
    "TransactionError",
    "TransferRefused",
    "UndoRefused",
    "ValueRefused",
    "VectorField",
    "VerificationFailed",
    "WebhookConfig",
    "WhatspireDBError",
    "WrongNode",
    "bulk_insert",
    "connect",
    "data_migration",
    "nearest",
    "readable",
]


# A program pays only for what it uses.
_LOADED_LATER = {
    "MigrationRunner": ".migrate",
    "PoolStats": ".connection.pool_stats",
    "VectorField": ".vectors.field",
    "bulk_insert": ".bulk",
    "data_migration": ".models.data_migrations",
    "nearest": ".vectors.nearest",
}


def __getattr__(name: str) -> Any:
    if name in __all__:  # the others are models of the service
        from importlib import import_module

        return getattr(import_module(_LOADED_LATER.get(name, ".models.service"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
