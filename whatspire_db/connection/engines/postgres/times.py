"""PostgreSQL's times: sessions in UTC, and times that Python has no value for kept apart from those it has."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from datetime import datetime, timedelta

from psycopg2 import extensions

from whatspire_db.fields import UTC, UnreadableTime
from whatspire_db.light_stdlib import Any, pattern

IN_UTC = frozenset({"UTC", "Etc/UTC", "GMT", "Etc/GMT"})
SET_UTC = "SET TimeZone TO 'UTC'"
_OPTION = pattern(r"(?:-c\s*|--)timezone\s*=", re.IGNORECASE)
_WRITTEN = pattern(
    r"(?P<year>\d{4,6})-(?P<rest>\d\d-\d\d \d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,6}))?"
    r"(?P<sign>[+-])(?P<hours>\d\d)(?::(?P<minutes>\d\d))?(?::(?P<seconds>\d\d))?(?P<bc> BC)?",
    re.ASCII,
)
Cast = Callable[[Any, Any], Any]


def names_time_zone(connection: Any) -> bool:
    """Return whether the DSN (or its service, or PGOPTIONS) sets the time zone of a session."""
    options = connection.info.dsn_parameters.get("options")
    return bool(options and _OPTION.search(options))


def is_in_utc(connection: Any) -> bool:
    """Return whether a session is in UTC; the server reports its time zone with every change."""
    return connection.get_parameter_status("TimeZone") in IN_UTC


def register(connection: Any) -> None:
    """Have a connection read times that Python has no value for as UnreadableTime.

    For some of them the driver raises a ValueError, which hides the row. Infinity it reads as the last moment of the
    year 9999, and 24:00 as midnight.
    """
    for kind in _TYPES:
        extensions.register_type(kind, connection)


def _guarded(read: Cast) -> Cast:
    def cast(text: str | None, cursor: Any) -> Any:
        if text is None:
            return None
        try:
            if not text.lstrip("-").startswith("inf"):
                return read(text, cursor)
        except (ValueError, OverflowError):
            pass
        return UnreadableTime(text)

    return cast


def _slow_instant(text: str | None, cursor: Any) -> Any:
    found = _read_instant(text, cursor)
    return _within_utc(found) if type(found) is UnreadableTime else found


def _instant(text: str | None, cursor: Any) -> Any:
    try:
        return datetime.fromisoformat(text)  # type: ignore[arg-type]  # in a quarter of the driver's time
    except (TypeError, ValueError):
        return _slow_instant(text, cursor)


def _within_utc(text: UnreadableTime) -> datetime | UnreadableTime:
    """Return a time that is of the years 1 to 9999 in UTC alone; the session's zone is another one then."""
    match = _WRITTEN.fullmatch(text)
    if match is None:
        return text
    year = 1 - int(match["year"]) if match["bc"] else int(match["year"])
    if year not in (0, 10000):
        return text
    # The calendar repeats every 400 years, so the year 2000 has the days of both.
    local = datetime.fromisoformat(f"2000-{match['rest']}.{(match['fraction'] or '').ljust(6, '0')}")
    offset = timedelta(
        hours=int(match["hours"]), minutes=int(match["minutes"] or 0), seconds=int(match["seconds"] or 0)
    )
    utc = local - offset if match["sign"] == "+" else local + offset
    try:
        return utc.replace(year=utc.year + year - 2000, tzinfo=UTC)
    except ValueError:
        return text


def _time_of_day(text: str | None, cursor: Any) -> Any:
    if text is not None and text.startswith("24:"):  # the end of a day, which the driver reads as its beginning
        raise ValueError
    return extensions.PYTIME(text, cursor)


def _array(read: Cast) -> Cast:
    def cast(text: str | None, cursor: Any) -> Any:
        found = read(text, cursor)
        return UnreadableTime(text) if found and _holds_unreadable(found) else found

    return cast


def _holds_unreadable(value: Any) -> bool:
    return any(map(_holds_unreadable, value)) if isinstance(value, list) else type(value) is UnreadableTime


_read_instant = _guarded(extensions.PYDATETIMETZ)
_CASTS: dict[str, tuple[int, int, Cast]] = {  # the OIDs of a type and its array, and how to read one
    "timestamptz": (1184, 1185, _slow_instant if sys.version_info < (3, 11) else _instant),
    "timestamp": (1114, 1115, _guarded(extensions.PYDATETIME)),
    "date": (1082, 1182, _guarded(extensions.PYDATE)),
    "time": (1083, 1183, _guarded(_time_of_day)),
    "timetz": (1266, 1270, _guarded(_time_of_day)),
    "interval": (1186, 1187, _guarded(extensions.PYINTERVAL)),
}


def _types() -> list[Any]:
    types = []
    for name, (oid, array_oid, cast) in _CASTS.items():
        one = extensions.new_type((oid,), name, cast)
        many = extensions.new_array_type((array_oid,), f"{name}[]", one)
        types += [one, extensions.new_type((array_oid,), f"{name}[]", _array(many))]
    return types


_TYPES = _types()
