"""What can be wrong with a row of SQLite for PostgreSQL: kinds of faults, what to do about each, findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..dsn.redaction import shown
from ..errors import ConfigError

REFUSE, REPLACE, SET_ASIDE = "refuse", "replace", "set-aside"
CHOICES = (REFUSE, REPLACE, SET_ASIDE)
TO_DO = {REFUSE: "", REPLACE: " to replace", SET_ASIDE: " to set aside"}

NUL, ENCODING, TYPE, RANGE, TIME = "nul", "encoding", "type", "range", "time"
LENGTH, INDEX, JSON, PRECISION = "length", "index", "json", "precision"
NULL, DUPLICATE, ORPHAN = "null", "duplicate", "orphan"

# What each kind means, and what takes the value's place; "" is: nothing can.
KINDS: Mapping[str, tuple[str, str]] = {
    NUL: ("a zero byte in a text", "U+FFFD"),
    ENCODING: ("a text that is not UTF-8", "U+FFFD for each wrong byte"),
    TYPE: ("a value of another type than the column's", "what the model reads, else NULL"),
    RANGE: ("a number that the column has no room for", "NULL"),
    TIME: ("a text or a number that is no time", "NULL"),
    LENGTH: ("a text that is too long", "its beginning"),
    JSON: ("a text that jsonb or json does not take", "NULL"),
    PRECISION: ("a number or a time with more digits than the column keeps", "the nearest number, the time before"),
    INDEX: ("a value too long for an index", ""),
    NULL: ("NULL in a column that is NOT NULL", ""),
    DUPLICATE: ("a value that a unique index takes once", ""),
    ORPHAN: ("a reference to a row that is not there", ""),
}


@dataclass(frozen=True)
class Finding:
    """A value that the target cannot hold: its kind, where it is, what becomes of it; the value is not repeated."""

    kind: str
    table: str
    column: str
    key: str
    choice: str = REFUSE
    is_replaceable: bool = True

    def __str__(self) -> str:
        why = "" if self.is_replaceable or not KINDS[self.kind][1] else ", in a column that is NOT NULL"
        to_do = f",{TO_DO[self.choice]}" if TO_DO[self.choice] else ""
        return f"{self.table}.{self.column}, key {self.key}: {KINDS[self.kind][0]}{why}{to_do}"

    def to_json(self) -> dict[str, Any]:
        place = {"kind": self.kind, "table": self.table, "column": self.column, "key": self.key}
        return place | {"choice": self.choice}


def ways_out(finding: Finding, may_set_aside: bool) -> str:
    """Say what to do so that a transfer takes a row with a fault as it is.

    :param may_set_aside: False for a live transfer.
    """
    can_replace = finding.is_replaceable and KINDS[finding.kind][1]
    replace, aside = f"--on {finding.kind}={REPLACE}", f"--on {finding.kind}={SET_ASIDE} --side-file FILE"
    if may_set_aside:
        return f"give {replace} or {aside}" if can_replace else f"give {aside}"
    return f"give {replace}" if can_replace else f"transfer without --live, while nothing writes, with {aside}"


def read_choices(given: Mapping[str, str]) -> dict[str, str]:
    """Return what to do about each kind of fault: what is given, refuse for the others; "all" stands for every kind.

    :raises ConfigError: for a kind or a choice that there is not, or one that the kind does not have.
    """
    if unknown := [kind for kind in given if kind not in KINDS and kind != "all"]:
        raise ConfigError(f"{shown(unknown[0])} is no kind of fault", f"there are {', '.join(KINDS)}, and all")
    chosen = dict.fromkeys(KINDS, REFUSE)
    for kind, choice in sorted(given.items(), key=lambda item: item[0] != "all"):
        if choice not in CHOICES:
            raise ConfigError(f"{shown(choice)} is no choice for {kind}", f"choose from {', '.join(CHOICES)}")
        if kind != "all" and choice == REPLACE and not KINDS[kind][1]:
            raise ConfigError(f"nothing can replace {KINDS[kind][0]}", f"{kind} takes {REFUSE} or {SET_ASIDE}")
        for each in KINDS if kind == "all" else (kind,):
            if choice != REPLACE or KINDS[each][1]:
                chosen[each] = choice
    return chosen
