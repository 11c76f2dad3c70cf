"""What a step costs, as a value: what it does with the rows that are there, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .rows import number_of_rows


@dataclass(frozen=True)
class Size:
    """How many rows a table has; `count` is None where row level security or a missing right hides them."""

    count: int | None
    is_estimate: bool = False

    def __str__(self) -> str:
        if self.count is None:
            return f"{number_of_rows(None)}, which row level security or a missing right hides"
        return ("about " if self.is_estimate else "") + number_of_rows(self.count)


@dataclass(frozen=True)
class Cost:
    """What a step costs: `instant` whatever the size, or a scan or a rewrite of all rows.

    `rows` is None where the number does not matter; `online` steps run beside readers and writers; `lost` says which
    rows or values go with what is dropped.
    """

    work: Literal["instant", "scans", "rewrites"]
    rows: Size | None = None
    online: bool = False
    lost: str = ""

    def __str__(self) -> str:
        count = "" if self.rows is None else str(self.rows) if self.rows.count != 0 else "no rows"
        if self.work == "scans":
            return ("online, " if self.online else "") + f"scans {count}"
        work = "rewrites the table" if self.work == "rewrites" else "instant"
        return ", ".join(filter(None, [work, count, self.lost]))


INSTANT = Cost("instant")
