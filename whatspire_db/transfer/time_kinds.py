"""Kinds of columns that hold times: how the values of each are checked, copied, compared and brought back."""

from __future__ import annotations

import re
from datetime import date, datetime, time, timezone
from typing import Any

import peewee

from ..fields import UNREADABLE, format_instant
from . import faults
from .kinds import Kind, is_text

UTC = timezone.utc

# What a field for days or for times of day leaves out of a text that has both: a time but midnight, and the day.
_TIME_OF_DAY = re.compile(r"[ T].*[1-9]", re.DOTALL)
_DAY = re.compile(r"\d-\d")
_BELOW = re.compile(r"\.\d{6}0*[1-9]", re.ASCII)  # digits below the microsecond

# Times as Go and this package write them: most values, which need no parsing.
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d{0,3}(?:\+00:00|Z)", re.ASCII).fullmatch


def _is_second(c: str, text: str) -> str:
    """Return the SQL condition for a text that is a day and a time of day, of the years 1 to 9999."""
    # SQLite takes the 30th of February for a day, unless it reckons with it: then it is the 2nd of March.
    return f"{is_text(c)} AND datetime({text}, '+0 days') IS {text} AND {text} > '0001'"


class _TimeKind(Kind):
    """Times: a column may keep fewer digits of the second than six, like timestamp(3)."""

    @property
    def step(self) -> int:
        """How many microseconds lie between two times that the column can tell apart."""
        return 10 ** (6 - (*self.modifiers, 6)[0])

    def _read(self, value: Any) -> Any:
        """Return a stored value as a time or a date; None for one that is none."""
        raise NotImplementedError

    def fault(self, value: Any) -> str | None:
        found = self._read(value)
        if found is None:
            return faults.TIME
        return faults.PRECISION if getattr(found, "microsecond", 0) % self.step else None

    def count_shortened(self, value: Any) -> None:
        """Count a stored time that is cut; for the proof, which reads every row once, and a live copy some again."""
        self.shortened += isinstance(value, str) and _BELOW.search(value) is not None

    def mended(self, value: Any) -> str | None:
        found = self._read(value)
        if hasattr(found, "microsecond"):  # a date has none
            found = found.replace(microsecond=found.microsecond // self.step * self.step)
        return None if found is None else self.stored(found)


class InstantKind(_TimeKind):
    """A time of InstantField or NaiveInstantField: Go's texts, an offset or none, up to nine digits of a fraction."""

    def doubt(self, c: str) -> str:
        if self.step > 1:
            return f"{c} IS NOT NULL"
        second = f"replace(substr({c}, 1, 19), 'T', ' ')"
        digits = f"substr({c}, 20, 1) = '.' AND substr({c}, 21, length({c}) - 26) NOT GLOB '*[^0-9]*'"
        fits = f"length({c}) = 25 OR (length({c}) BETWEEN 27 AND 35 AND {digits})"
        return f"{c} IS NOT NULL AND NOT ({_is_second(c, second)} AND substr({c}, -6) = '+00:00' AND ({fits}))"

    def _read(self, value: Any) -> datetime | None:
        try:
            found: datetime | None = self.field.python_value(value) if isinstance(value, str) else None
            return found
        except UNREADABLE:
            return None

    def text(self, value: Any) -> str:
        match = _GO_TIME(value)
        if match is None:
            found = self.field.python_value(value).replace(tzinfo=None).isoformat(" ")
        else:
            found = " ".join(match.groups())
        return found if self.name.startswith("timestamp without") else f"{found}+00"

    def of_sqlite(self, value: Any) -> str:
        self.count_shortened(value)
        return str(self.field.python_value(value))

    def of_postgres(self, value: Any) -> str:
        return str(self.field.python_value(value))

    def stored(self, value: Any) -> str:
        return format_instant(self.field.python_value(value))


class MomentKind(_TimeKind):
    """A time, a date or a clock of Peewee's own fields, with no time zone."""

    types = {"date": date, "time without time zone": time}
    left_out = {"date": _TIME_OF_DAY, "time without time zone": _DAY}

    def doubt(self, c: str) -> str:
        if self.name == "date":
            return (
                f"{c} IS NOT NULL AND NOT (typeof({c}) = 'text' AND length({c}) = 10 AND date({c}, '+0 days') IS {c} "
                f"AND substr({c}, 1, 4) > '0000')"
            )
        if (
            self.step > 1
            or self.name != "timestamp without time zone"
            or self.field.formats != peewee.DateTimeField.formats
        ):
            return f"{c} IS NOT NULL"
        digits = f"substr({c}, 20, 1) = '.' AND substr({c}, 21) NOT GLOB '*[^0-9]*'"
        fits = f"length({c}) = 19 OR (length({c}) BETWEEN 21 AND 26 AND {digits})"
        return f"{c} IS NOT NULL AND NOT ({_is_second(c, f'substr({c}, 1, 19)')} AND ({fits}))"

    def fault(self, value: Any) -> str | None:
        found, left_out = super().fault(value), self.left_out.get(self.name)
        if found is None and left_out is not None and left_out.search(str(value)):
            return faults.PRECISION
        return found

    def _read(self, value: Any) -> Any:
        try:
            found = self.field.python_value(value)
        except UNREADABLE:
            return None
        if isinstance(found, datetime) and self.name == "date":
            return None
        if isinstance(found, datetime) and self.name.endswith("with time zone"):
            return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        is_right = isinstance(found, self.types.get(self.name, datetime))
        return found if is_right and getattr(found, "tzinfo", None) is None else None

    def text(self, value: Any) -> str:
        return str(self._read(value))

    def of_sqlite(self, value: Any) -> str:
        self.count_shortened(value)
        return self.of_postgres(value)

    def of_postgres(self, value: Any) -> str:
        found = self._read(value)
        return str(value if found is None else found)  # infinity and the like, from PostgreSQL

    def stored(self, value: Any) -> str:
        return str(value)
