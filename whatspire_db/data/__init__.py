"""The life of the rows: data migrations change them once, `retain` deletes old ones by rules that somebody set."""

from .migrations import DataMigrations, DataOutcome
from .records import DataState
from .retention import Retained, retain
from .rules import Rule, rules_of

__all__ = ["DataMigrations", "DataOutcome", "DataState", "Retained", "Rule", "retain", "rules_of"]
