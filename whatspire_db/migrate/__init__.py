"""MigrationRunner and the values that it returns."""

from .diff import Changes, Drift, Extra, Missing
from .history import MigrationStatus
from .plan import Plan, Refusal, Step
from .runner import MigrationRunner, Report

__all__ = [
    "Changes",
    "Drift",
    "Extra",
    "MigrationRunner",
    "MigrationStatus",
    "Missing",
    "Plan",
    "Refusal",
    "Report",
    "Step",
]
