"""The service's nine tables. A model is loaded when it is first used, because creating one takes about 0.3 ms."""

from __future__ import annotations

from importlib import import_module

from ...light_stdlib import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..base import BaseModel
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
