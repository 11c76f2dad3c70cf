"""The life of the rows: `retain` deletes old ones by rules that somebody set."""

from .retention import Retained, Rule, retain, rules_of

__all__ = ["Retained", "Rule", "retain", "rules_of"]
