"""One database's rows into another: from SQLite to PostgreSQL and back, with proof that both hold the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checking import Checked
    from .faults import Finding
    from .progress import Watcher
    from .reports import Report, TableReport
    from .transferring import check, transfer

_MODULES = {
    "Checked": "checking",
    "Finding": "faults",
    "Report": "reports",
    "TableReport": "reports",
    "Watcher": "progress",
    "check": "transferring",
    "transfer": "transferring",
}

__all__ = ["Checked", "Finding", "Report", "TableReport", "Watcher", "check", "transfer"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # the fence is looked for by programs that transfer nothing

    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
