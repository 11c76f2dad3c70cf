"""Times in the rows that are not UTC: texts with another offset, and wall clocks of another time zone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class TimeNote:
    """Times of a column that are not UTC, or may not be; `kind` is offset, future, time_zone or hidden.

    `rows` of the `of` rows that were looked at have one. Both are None for a time zone, which is the server's, and for
    a column whose rows a policy hides.
    """

    table: str
    column: str
    kind: str
    rows: int | None = None
    of: int | None = None
    example: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the note for a JSON document."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.table}.{self.column}: " + _SENTENCES[self.kind].format(**asdict(self))


_SENTENCES = {
    "offset": "{rows} of {of} rows hold a time whose offset is not UTC's (such as {example}); as texts they compare "
    "and sort wrongly: let their writer run in UTC (TZ=UTC)",
    "future": "{rows} of {of} rows hold a wall-clock time in the future of UTC; their writer may store local time: let "
    "it run in UTC (TZ=UTC)",
    "time_zone": "holds wall-clock times, and the server's time zone is {example}, not UTC: a session that sets none "
    "may store local time",
    "hidden": "row level security hides rows from this role, so their wall-clock times were not looked at",
}
