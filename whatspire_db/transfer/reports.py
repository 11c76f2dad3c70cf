"""What a transfer did, as values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .checking import Checked
from .faults import KINDS, REFUSE, TO_DO
from .opening import Ends, switch_lines


@dataclass(frozen=True)
class TableReport:
    """A table that was transferred and proved: its rows, their fingerprint, and the seconds of both."""

    table: str
    rows: int
    fingerprint: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "table": self.table,
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            "duration_ms": round(self.seconds * 1000),
        }


@dataclass(frozen=True)
class Lock:
    """The time for which a live transfer held up the source's writers; both moments are aware and in UTC."""

    began: datetime
    ended: datetime

    @property
    def seconds(self) -> float:
        return (self.ended - self.began).total_seconds()

    def to_json(self) -> dict[str, Any]:
        return {"from": self.began.isoformat(), "to": self.ended.isoformat(), "seconds": self.seconds}

    def __str__(self) -> str:
        return f"from {self.began:%Y-%m-%d %H:%M:%S.%f} to {self.ended:%H:%M:%S.%f} UTC, {self.seconds:.3f} s"


@dataclass(frozen=True)
class Report:
    """A transfer that is done and proved.

    `shortened` are times that were cut to microseconds, `replaced` values that something else took the place of,
    `set_aside` rows that are in the side file and not at the target. `locked` is the downtime of a live transfer.
    `has_log`: the source has the change log of a live transfer, which runs, or was killed.
    """

    ends: Ends
    tables: tuple[TableReport, ...]
    seconds: float
    shortened: int = 0
    replaced: int = 0
    set_aside: int = 0
    side_file: str = ""
    locked: Lock | None = None
    has_log: bool = False

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    @property
    def switch(self) -> list[str]:
        """The lines of .env that point a program at the target."""
        return switch_lines(self.ends.target)

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.ends.source_name,
            "to": self.ends.target_name,
            "proved": True,
            "tables": [table.to_json() for table in self.tables],
            "rows": self.rows,
            "shortened": self.shortened,
            "replaced": self.replaced,
            "set_aside": self.set_aside,
            "side_file": self.side_file or None,
            "locked": self.locked.to_json() if self.locked else None,
            "change_log": self.has_log,
            "switch": self.switch,
            "duration_ms": round(self.seconds * 1000),
        }


def found_lines(checked: Checked) -> Iterator[str]:
    """Yield what a check found, a line each."""
    yield from map(str, checked.findings)
    if checked.more:
        yield f"and {checked.more:,} more"
    totals: dict[tuple[str, str], int] = {}
    replaceable = set()
    for (kind, _, _, choice, is_replaceable), count in checked.counts.items():
        totals[kind, choice] = totals.get((kind, choice), 0) + count
        if choice == REFUSE and is_replaceable and KINDS[kind][1]:
            replaceable.add(kind)
    for (kind, choice), count in totals.items():
        offer = f"; --on {kind}=replace puts {KINDS[kind][1]} there" if choice == REFUSE and kind in replaceable else ""
        yield f"{kind}: {count:,}{TO_DO[choice]} ({KINDS[kind][0]}{offer})"
