"""The service's nine tables, and what they have in common, to the letter as the Go service makes it.

A model is loaded when it is first used, because creating one takes about 0.3 ms.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from peewee import SQL, ModelIndex

from ...light_stdlib import TYPE_CHECKING, Any, TypeVar
from ..base import BaseModel

if TYPE_CHECKING:
    from .access import ApiKey, AuditLog
    from .events import Event, WebhookConfig
    from .history import MigrationVersion
    from .messages import Presence, Reaction, Receipt
    from .sessions import Session

    SERVICE_MODELS: tuple[type[BaseModel], ...]

__all__ = [
    "SERVICE_MODELS",
    "ApiKey",
    "AuditLog",
    "Event",
    "MigrationVersion",
    "Presence",
    "Reaction",
    "Receipt",
    "Session",
    "WebhookConfig",
]

M = TypeVar("M", bound=BaseModel)

KEY = SQL('PRIMARY KEY ("id")')
# By name, in the order in which their tables are made.
MODULES = {
    "Session": "sessions",
    "Reaction": "messages",
    "Receipt": "messages",
    "Presence": "messages",
    "ApiKey": "access",
    "AuditLog": "access",
    "Event": "events",
    "WebhookConfig": "events",
    "MigrationVersion": "history",
}


def __getattr__(name: str) -> Any:
    if name == "SERVICE_MODELS":
        return tuple(_model(each) for each in MODULES)
    if name in MODULES:
        return _model(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _model(name: str) -> Any:
    return getattr(import_module(f".{MODULES[name]}", __name__), name)


def one_of(table: str, column: str, *values: str) -> SQL:
    """Return the CHECK that GORM makes of a column that has one of some values."""
    listed = ",".join(f"'{value}'" for value in values)
    return SQL(f'CONSTRAINT "chk_{table}_{column}" CHECK ({column} IN ({listed}))')


def indexed(*columns: str, unique: str = "") -> Callable[[type[M]], type[M]]:
    """Give a model one index a column, named as GORM names it."""

    def add(model: type[M]) -> type[M]:
        for column in columns:
            name = f"idx_{model._meta.table_name}_{column}"
            model.add_index(ModelIndex(model, [model._meta.columns[column]], unique=column == unique, name=name))
        return model

    return add
