"""JSON as jsonb takes it, and as two engines that write it differently can be compared."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ..fields import UNREADABLE
from . import faults

# A zero character within a text, and not the six characters \u0000 behind a backslash.
_ZERO = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_EXACT = 2**53  # from here on a float is no exact integer


def json_fault(text: str, is_binary: bool) -> str | None:
    """Return the fault of a JSON text for `jsonb`, or for `json`, which keeps the text as it is."""
    if "\0" in text:
        return faults.NUL
    try:
        value = json.loads(text, parse_constant=_refuse)
        if is_binary:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate has no UTF-8
    except UNREADABLE:
        return faults.JSON
    return faults.JSON if is_binary and _ZERO.search(text) else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def levelled(value: Any) -> str:
    """Return a JSON value as a text, in the one form that equal values share."""
    return json.dumps(_levelled(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _levelled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _levelled(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_levelled(each) for each in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    try:
        number = float(value)
    except OverflowError:  # 1e400, which one engine gives back as it was and the other with all its digits
        number = math.inf if value > 0 else -math.inf
    return int(number) if number.is_integer() and abs(number) < _EXACT else number
