"""JSON as jsonb takes it, and as two engines that write it differently can be compared."""

from __future__ import annotations

import json
import re
from decimal import Decimal

from ..fields import UNREADABLE
from . import faults

# A zero character within a text, and not the six characters \u0000 behind a backslash.
_ZERO = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
# Digits of the longest whole number that Python reads, and so every model; jsonb keeps 1e5000 as 5001 of them.
_DIGITS = 4300
_PLACES = 16383  # digits behind the point, of which jsonb keeps no more
_ROOM = 200  # levels that are left when a value is read by somebody who was called from deeper down
_MANY_DIGITS = "[0-9]" * 20


def json_doubt(c: str) -> str:
    """Return the SQL condition for a text of a column that may be one that `json_fault` finds, besides those with \\u.

    The numbers are those that are long, or have an exponent of four digits. What is deep has many brackets.
    """
    exponent = f"{c} GLOB '*[0-9][eE][0-9][0-9][0-9][0-9]*' OR {c} GLOB '*[0-9][eE][-+][0-9][0-9][0-9][0-9]*'"
    is_long = f"length({c}) > 3000 AND {c} GLOB '*{_MANY_DIGITS}*'"
    is_deep = f"length({c}) > 600 AND length({c}) - length(replace(replace({c}, '[', ''), '{{', '')) > 300"
    return f"{exponent} OR ({is_long}) OR ({is_deep})"


def json_fault(text: str, is_binary: bool) -> str | None:
    """Return the fault of a JSON text for `jsonb`, or for `json`, which keeps the text as it is."""
    if "\0" in text:
        return faults.NUL
    try:
        real = _require_room if is_binary else float
        value = json.loads(text, parse_constant=_refuse, parse_float=real)
        json.loads(f"{'[' * _ROOM}{text}{']' * _ROOM}")
        if is_binary:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
    except UNREADABLE:
        return faults.JSON
    return faults.JSON if is_binary and _ZERO.search(text) else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _require_room(text: str) -> float:
    """Return a number as Python reads it, if jsonb has room for it and what jsonb makes of it can be read."""
    number = Decimal(text)
    if number.adjusted() >= _DIGITS or int(number.as_tuple().exponent) < -_PLACES:
        raise ValueError
    return float(number)


def _real(text: str) -> int | float:
    """Return a number with a point or an exponent: one engine writes 1e23, and the other the whole number."""
    if len(text) < 16 and "e" not in text and "E" not in text:  # a float has all of its digits
        short = float(text)
        return int(short) if short.is_integer() else short
    number = Decimal(text)
    is_whole = number.adjusted() < _DIGITS and number == number.to_integral_value()
    return int(number) if is_whole else float(number)


_read = json.JSONDecoder(parse_float=_real).decode
_written = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def levelled(text: str) -> str:
    """Return a JSON text in the one form that equal values share; whole numbers keep every digit."""
    return _written(_read(text))
