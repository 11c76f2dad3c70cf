"""MigrationRunner and the values that it returns."""

from ..light_stdlib import TYPE_CHECKING, Any
from .history import MigrationStatus
from .plan import Plan, Refusal, Step
from .progress import Progress, Watcher
from .reports import Report, SchemaCheck
from .runner import MigrationRunner

if TYPE_CHECKING:
    from .diff import Changes, Drift, Extra, Missing
    from .undo_plan import UndoPlan, UndoReport

__all__ = [
    "Changes",
    "Drift",
    "Extra",
    "MigrationRunner",
    "MigrationStatus",
    "Missing",
    "Plan",
    "Progress",
    "Refusal",
    "Report",
    "SchemaCheck",
    "Step",
    "UndoPlan",
    "UndoReport",
    "Watcher",
]


def __getattr__(name: str) -> Any:
    # A start that has nothing to do compares nothing.
    if name in ("Changes", "Drift", "Extra", "Missing"):
        from . import diff

        return getattr(diff, name)
    if name in ("UndoPlan", "UndoReport"):
        from . import undo_plan

        return getattr(undo_plan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
