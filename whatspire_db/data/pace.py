"""How large a batch is, so that others wait for it no longer than a limit."""

from __future__ import annotations

from dataclasses import dataclass

STALL_SECONDS = 0.05


@dataclass(frozen=True)
class Pace:
    """The sizes of batches: as many rows as take about `seconds`, within limits."""

    seconds: float
    smallest: int
    largest: int

    def after(self, rows: int, seconds: float) -> int:
        """Return the size of the batch that follows one of so many rows which took so long."""
        fitting = rows * self.seconds / max(seconds, 1e-6)
        # One quick batch says little, so the next is at most twice as large; a slow one counts at once.
        return max(self.smallest, min(self.largest, int(min(fitting, 2 * rows))))
