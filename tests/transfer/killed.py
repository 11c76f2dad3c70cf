"""A program that transfers the service's rows and kills itself at a point: a statement, or a part of the rows.

python -m tests.transfer.killed SOURCE TARGET POINT [live]

It prints how many points there are, if it comes to its end.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from whatspire_db.connection.engines.postgres.session import Cursor
from whatspire_db.transfer import Watcher, transfer


class Points:
    """Counts points, and ends the process at one of them."""

    def __init__(self, last: int) -> None:
        self.last, self.passed = last, 0

    def passing(self) -> None:
        self.passed += 1
        if self.passed == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


class Counting(Watcher):
    """Passes a point with each part of the rows."""

    def __init__(self, points: Points) -> None:
        super().__init__()
        self.points = points

    def progress(self, phase: str, table: str, done: int, total: int | None) -> None:
        self.points.passing()


def main(source: str, target: str, point: str, live: str = "") -> None:
    """Transfer until the point is met."""
    points = Points(int(point))
    execute = Cursor.execute

    def counted(cursor: Cursor, query: Any, vars: Any = None) -> None:
        points.passing()
        execute(cursor, query, vars)
        points.passing()

    Cursor.execute = counted  # type: ignore[method-assign]
    transfer(source, target, watcher=Counting(points), live=bool(live))
    sys.stdout.write(f"{points.passed}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
