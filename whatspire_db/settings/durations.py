"""Durations as Go reads them: 300ms, 1.5h, 2h45m."""

from __future__ import annotations

from datetime import timedelta

from ..errors import ConfigError
from ..light_stdlib import lazy_module, pattern
from .kinds import A_DURATION

redaction = lazy_module("whatspire_db.dsn.redaction")  # for messages

# The engines count limits in milliseconds of 31 bits: some 24 days. What is longer comes to the same.
LONGEST_SECONDS = 2_000_000.0

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM = pattern(r"(?=\.?[0-9])([0-9]*)\.?([0-9]*)(ns|us|µs|μs|ms|s|m|h)")
_GO_LIMIT = 2**63  # nanoseconds, of which Go's time.Duration holds less, or as many below zero


def parse_duration(text: str) -> timedelta:
    """Read a duration as Go's time.ParseDuration does: 300ms, 1.5h, 2h45m, 0.

    Parts of a microsecond are dropped.

    :raises ValueError: for anything else, a number without a unit included.
    """
    negative = text.startswith("-")
    nanoseconds = _nanoseconds(text, start=1 if text[:1] in ("+", "-") else 0)
    if nanoseconds > _GO_LIMIT - (not negative):
        raise ValueError(f"{text!r} is out of range")
    duration = timedelta(microseconds=nanoseconds // 1000)
    return -duration if negative else duration


def _nanoseconds(text: str, start: int) -> int:
    if text[start:] == "0":
        return 0
    total, position = 0, start
    while position < len(text) or position == start:
        term = _TERM.match(text, position)
        if term is None:
            raise ValueError(f"{text!r} is not a duration")
        total += _term(*term.groups())
        position = term.end()
    return total


def _term(whole: str, fraction: str, unit: str) -> int:
    digits = whole.lstrip("0")
    if len(digits) > len(str(_GO_LIMIT)):  # more than fits; Python refuses to read thousands of digits
        return _GO_LIMIT + 1
    # Go computes the fraction in floating point and leaves out the digits that its integer has no room for.
    number, scale = 0, 1.0
    for digit in fraction:
        if number * 10 + int(digit) > _GO_LIMIT:
            break
        number, scale = number * 10 + int(digit), scale * 10
    return int(digits or "0") * _UNITS[unit] + int(number * (_UNITS[unit] / scale))


def in_units(duration: timedelta) -> str:
    """Return a duration of 0 or more as its largest units, like 1h30m or 200ms; `parse_duration` reads it."""
    left, parts = duration // timedelta(microseconds=1), ""
    for unit in ("h", "m", "s", "ms", "us"):
        number, left = divmod(left, _UNITS[unit] // 1000)
        parts += f"{number}{unit}" if number else ""
    return parts or "0s"


def seconds_of(name: str, limit: float | timedelta | str) -> float:
    """Return a limit in seconds: a number of them, a timedelta, or a text like 5s; what is too long is cut.

    :raises ConfigError: names what was given, what it got and what it takes.
    """
    if isinstance(limit, str):
        limit = read_duration(name, limit)
    if isinstance(limit, timedelta):
        limit = limit.total_seconds()
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 0:  # NaN is not
        raise ConfigError(
            f"{name} is {redaction.shown(limit)}", f"it takes seconds, 0 or more, a timedelta, or {A_DURATION}"
        )
    return float(min(limit, LONGEST_SECONDS))


def read_duration(name: str, value: str) -> timedelta:
    """Read a duration of 0 or more.

    :raises ConfigError: names what was set, what it got and what it takes.
    """
    try:
        duration = parse_duration(value.strip())
    except ValueError:
        duration = timedelta(-1)
    if duration < timedelta(0):
        raise ConfigError(f"{name} is {redaction.shown(value)}", f"it takes {A_DURATION}")
    return duration
